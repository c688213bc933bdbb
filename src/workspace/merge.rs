//! A candidate on the present base: unchanged, merged, or a commit with conflict markers for the agent's next round.
//!
//! All in memory by libgit2, on our own objects. Author, date and the order of parents come from the record: a merge made again after a
//! crash has the same id.

use super::Workspaces;
use super::conflict;
use super::error::WorkspaceError;
use super::repository::{Pair, Writer, clean_message, oid, seconds, signature};
use super::types::IntegrateSpec;
use crate::api::names::CommitId;
use crate::plan::observed::Integrated;
use git2::{Commit, Index, MergeOptions, Repository};

/// See [`Workspaces::integrate`].
pub(super) fn integrate(workspaces: &Workspaces, spec: &IntegrateSpec) -> Result<Integrated, WorkspaceError> {
    let remote = workspaces.remote(&spec.namespace, &spec.repository)?;
    let refs = workspaces.git.look(&remote, Some(&[&spec.base_branch]))?;
    let Some(tip) = refs.branches.get(&spec.base_branch) else {
        let advice = "it was there before; push it again, or delete this agent".to_owned();
        return Err(WorkspaceError::BranchNotFound { repository: spec.repository.clone(), branch: spec.base_branch.clone(), advice });
    };
    if *tip == spec.candidate_base {
        return Ok(Integrated::Head { head: spec.candidate.clone(), base: tip.clone() });
    }
    let pair = Pair::of(workspaces, &spec.namespace, &spec.repository);
    pair.fetch_missing(workspaces, &remote, &[tip])?;
    let opened = pair.open_work()?;
    merge(workspaces, &pair, &opened, spec, tip)
}

fn merge(
    workspaces: &Workspaces,
    pair: &Pair,
    opened: &Repository,
    spec: &IntegrateSpec,
    tip: &CommitId,
) -> Result<Integrated, WorkspaceError> {
    let ours = pair.commit(opened, tip)?;
    let theirs = pair.commit(opened, &spec.candidate)?;
    let old = pair.commit(opened, &spec.candidate_base)?;
    // A branch that was rewritten must not get its dropped commits back through the candidate's history: then only the change itself
    // is carried over, onto the tip alone.
    let follows = opened.graph_descendant_of(ours.id(), old.id()).map_err(pair.git("compare commits"))?;
    let mut index = three_way(pair, opened, &old, &ours, &theirs)?;
    let mut writer = Writer::new(pair, opened)?;
    let signature = signature(workspaces, seconds(spec.date))?;
    let message = clean_message(&spec.message);
    if index.has_conflicts() {
        let found = conflict::mark(pair, opened, &mut writer, &mut index, spec.base_branch.as_str())?;
        let tree = index.write_tree_to(opened).map_err(pair.git("write a tree"))?;
        writer.note_tree(opened, tree, &ours)?;
        let content = writer.commit(opened, &signature, &message, tree, &[&ours])?;
        writer.sync()?;
        return Ok(Integrated::Conflict { base: tip.clone(), content, paths: found.paths, hunks: found.hunks });
    }
    let tree = index.write_tree_to(opened).map_err(pair.git("write a tree"))?;
    if tree == ours.tree_id() {
        return Ok(Integrated::Empty { base: tip.clone() });
    }
    writer.note_tree(opened, tree, &ours)?;
    let parents: &[&Commit<'_>] = if follows { &[&ours, &theirs] } else { &[&ours] };
    let head = writer.commit(opened, &signature, &message, tree, parents)?;
    writer.sync()?;
    Ok(Integrated::Head { head, base: tip.clone() })
}

fn three_way(pair: &Pair, opened: &Repository, old: &Commit<'_>, ours: &Commit<'_>, theirs: &Commit<'_>) -> Result<Index, WorkspaceError> {
    let read = |commit: &Commit<'_>| opened.find_tree(commit.tree_id()).map_err(pair.git("read a tree"));
    let mut options = MergeOptions::new();
    options.find_renames(true);
    opened.merge_trees(&read(old)?, &read(ours)?, &read(theirs)?, Some(&options)).map_err(pair.git("merge"))
}

/// Whether `commit` is reachable from `tip`.
pub(super) fn contains(pair: &Pair, opened: &Repository, tip: &CommitId, commit: &CommitId) -> Result<bool, WorkspaceError> {
    if tip == commit {
        return Ok(true);
    }
    opened.graph_descendant_of(oid(tip), oid(commit)).map_err(pair.git("compare commits"))
}
