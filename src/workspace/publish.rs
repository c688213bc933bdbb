//! Publish: look at the remote, push with a lease on the old value, read the ref back. What counts is what the remote then has.
//!
//! Doing it again after a crash or a lost reply finds the ref at its value and pushes nothing. A failure that leaves open what happened
//! is answered by another look, never by another push.

use super::address::Remote;
use super::error::{WorkspaceError, io};
use super::pushing::Pushing;
use super::remote::RemoteRefs;
use super::repository::{Pair, oid};
use super::types::PushSpec;
use super::{Workspaces, process, tree};
use crate::plan::observed::Pushed;
use std::time::Duration;

/// Longest last look at a push that was broken off.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Ref of the work repository that remembers what an agent delivered.
pub(super) fn pushed_ref(uid: &crate::api::names::Uid) -> String {
    format!("refs/pushed/{uid}")
}

/// See [`Workspaces::push`].
pub(super) fn push(workspaces: &Workspaces, spec: &PushSpec) -> Result<Pushed, WorkspaceError> {
    let remote = workspaces.remote(&spec.namespace, &spec.repository)?;
    let pair = Pair::of(workspaces, &spec.namespace, &spec.repository);
    let expected_old = if spec.target == spec.base_branch { Some(&spec.base) } else { spec.expected_old.as_ref() };
    let before = look(workspaces, &remote, spec)?;
    let present = before.branches.get(&spec.target);
    if present == Some(&spec.head) {
        return verified(&pair, spec);
    }
    match before.branches.get(&spec.base_branch) {
        Some(tip) if *tip == spec.base => {}
        Some(tip) => return Ok(Pushed::BaseMoved(tip.clone())),
        None => {
            let advice = "it was there before; push it again, or delete this agent".to_owned();
            return Err(WorkspaceError::BranchNotFound { repository: spec.repository.clone(), branch: spec.base_branch.clone(), advice });
        }
    }
    if present != expected_old {
        return Ok(Pushed::RefTaken(present.cloned()));
    }
    pair.commit(&pair.open_work()?, &spec.head)?;
    let push = || workspaces.git.push(&pair.work, &remote, &spec.head, &spec.target, expected_old);
    // From here on a kill finds it; one that came before is found by it.
    let reply = match tree::find(workspaces, &spec.uid)? {
        Some((place, _)) => process::noted(Pushing::announce(&place.folder()).map_err(io("announce a push in", place.folder()))?, push),
        // Nothing of it is on this disk: no kill looks for it here.
        None => push(),
    };
    let after = match process::is_stopped() {
        // It may have arrived before it could be broken off; a short look, as somebody waits for the end.
        true => process::unstoppable(|| workspaces.git.look_within(&remote, Some(&[&spec.base_branch, &spec.target]), LAST_LOOK))?,
        false => look(workspaces, &remote, spec)?,
    };
    let present = after.branches.get(&spec.target);
    if present == Some(&spec.head) {
        return verified(&pair, spec);
    }
    if present != expected_old {
        return Ok(Pushed::RefTaken(present.cloned()));
    }
    match reply {
        Ok(reply) if reply.refused => Ok(Pushed::Rejected(advised(reply.words))),
        Ok(reply) => Err(WorkspaceError::Remote { what: "push to", repository: spec.repository.clone(), words: reply.words }),
        Err(error) => Err(error),
    }
}

fn look(workspaces: &Workspaces, remote: &Remote, spec: &PushSpec) -> Result<RemoteRefs, WorkspaceError> {
    workspaces.git.look(remote, Some(&[&spec.base_branch, &spec.target]))
}

/// Remembers what was delivered, so that it is never taken for unpushed work.
fn verified(pair: &Pair, spec: &PushSpec) -> Result<Pushed, WorkspaceError> {
    let opened = pair.open_work()?;
    let name = pushed_ref(&spec.uid);
    opened.reference(&name, oid(&spec.head), true, "pushed").map_err(pair.git("remember a push"))?;
    Ok(Pushed::Verified(spec.head.clone()))
}

fn advised(words: String) -> String {
    if words.contains("branch is currently checked out") {
        return format!("{words}\nthat branch is checked out in the remote: use another target branch, or a bare repository as the remote");
    }
    words
}
