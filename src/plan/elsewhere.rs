//! An agent that another controller has begun: how long that one is waited for, and what is done when it does not come back.
//!
//! Its tree and what its attempt has brought are where nobody here can look; only its pods can be looked at. Once nothing of it runs it begins
//! again here, with a new look at the repository and from its base as it is by then. That look also finds what was pushed before and not stored
//! any more (`absorb`). One that is being deleted is ended from here. What may run elsewhere than in pods is never let go of.

use crate::api::condition::reason;
use crate::api::validate::ValidAgent;
use crate::plan::Plan;
use crate::plan::absorb::infrastructure_failure;
use crate::plan::action::Action;
use crate::plan::observed::{Look, Observed, SandboxSeen, SandboxState, WorkspaceSeen};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// How long an agent that was deleted and whose pods were made by another controller waits for that one to take away what it has of it, from when
/// they were seen to have ended.
pub const DELETED_PATIENCE: Duration = Duration::from_secs(60);

/// How often one that is suspended and was given up is looked at again: after a longer gap the wait for its controller would begin anew
/// (`effect::waits`).
pub const SUSPENDED_RECHECK: Duration = Duration::from_secs(5);

/// What is known of an agent that another controller has begun, whose pods were looked at.
#[derive(Debug, Clone)]
pub struct Elsewhere<'a> {
    /// The installation that has begun it.
    pub installation: &'a str,
    /// Why nobody but its own controller can look at the rest.
    pub why: &'a str,
    /// The record is being deleted.
    pub is_deleted: bool,
    /// The agent has ended: it was killed, by a halt for one, failed or is complete. What lives of it is to be ended, as of one that is deleted.
    pub has_ended: bool,
    /// It is known that its attempt has no other sandboxes than pods.
    pub has_only_pods: bool,
    /// All its pods that are there.
    pub pods: Vec<SandboxSeen>,
    /// Its controller has said a moment ago that it lives.
    pub is_attended: bool,
    /// For how long nothing of it was seen alive, nor its controller unless it is deleted.
    pub quiet: Duration,
    /// How long one that is not deleted waits.
    pub takeover_after: Duration,
}

/// What of it counts as seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Its sandboxes.
    pub sandboxes: Look<Vec<SandboxSeen>>,
    /// Its tree.
    pub workspace: Look<Option<WorkspaceSeen>>,
}

impl Judged {
    /// Nothing.
    #[must_use]
    pub fn unknown(why: &str) -> Self {
        Self { sandboxes: Look::Unknown(why.to_owned()), workspace: Look::Unknown(why.to_owned()) }
    }
}

/// Whether anything of it runs, or may.
#[must_use]
pub fn lives(pods: &[SandboxSeen]) -> bool {
    !pods.iter().all(is_over)
}

fn is_over(pod: &SandboxSeen) -> bool {
    matches!(pod.state, SandboxState::Ended(_))
}

/// Judges: what lives is ended only once its agent has ended or is deleted, and what has ended is its own controller's to take away for as long as that one may come.
#[must_use]
pub fn judge(known: Elsewhere<'_>) -> Judged {
    let Elsewhere { installation, why, is_deleted, has_ended, has_only_pods, pods, is_attended, quiet, takeover_after } = known;
    let lives = lives(&pods);
    if lives && (is_deleted || has_ended) {
        // Of one whose record stays its controller is to see the end of each pod that has ended: that is not taken away meanwhile.
        let seen = pods.into_iter().filter(|pod| is_deleted || !is_over(pod)).collect();
        return Judged { sandboxes: Look::Seen(seen), workspace: Look::Unknown(why.to_owned()) };
    }
    if lives || !has_only_pods {
        return Judged::unknown(why);
    }
    if is_attended && !is_deleted {
        let what = if has_ended { "takes the rest away" } else { "goes on with it when it leads" };
        return Judged::unknown(&format!("nothing of it runs at the moment; {why}, which is there, and {what}"));
    }
    let (patience, what) = match (is_deleted, has_ended) {
        (true, _) => (DELETED_PATIENCE, "take it away"),
        (false, true) => (takeover_after, "take it away"),
        (false, false) => (takeover_after, "lead again, or it begins again here"),
    };
    let seconds = patience.as_secs();
    if quiet >= patience {
        let text =
            format!("its tree may still be in the state folder of installation {installation}, which did not come within {seconds} s");
        return Judged { sandboxes: Look::Seen(pods), workspace: Look::GivenUp(text) };
    }
    let text = format!("nothing of it runs any more; {why}, and has {seconds} s to {what}");
    let sandboxes = if is_deleted { Look::Seen(Vec::new()) } else { Look::Unknown(text.clone()) };
    Judged { sandboxes, workspace: Look::Unknown(text) }
}

/// Takes over what was given up (`why`), of which nothing lives. What is left of it in the cluster is removed once that is stored: whose it was
/// learns from the record that somebody has seen its end.
pub(super) fn begin_again(plan: &mut Plan, agent: &ValidAgent, observed: &Observed, why: &str, now: Timestamp) {
    if agent.suspend {
        plan.wait(reason::SUSPENDED, format!("spec.suspend is true; it will begin again here: {why}"));
        // Its controller may come after all.
        return plan.requeue(SUSPENDED_RECHECK);
    }
    if let Look::Seen(sandboxes) = &observed.sandboxes {
        plan.actions.extend(sandboxes.iter().map(|seen| Action::RemoveSandbox { run: seen.run.clone() }));
    }
    plan.status.installation = None;
    plan.status.between_attempts = true;
    plan.status.sandbox = None;
    if let Some(workspace) = plan.status.workspace.as_mut() {
        (workspace.base_sha, workspace.worktree) = (None, None);
    }
    let text = format!("begins again here: {why}");
    infrastructure_failure(plan, reason::SANDBOX_LOST, &text, now);
    plan.wait(reason::SANDBOX_LOST, text);
}
