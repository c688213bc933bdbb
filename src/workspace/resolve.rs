//! The repository at admission: which branch, which commits, who may say what the gates are. And its files, read from our copies.

use super::Workspaces;
use super::error::WorkspaceError;
use super::remote::RemoteRefs;
use super::repository::Pair;
use super::types::ResolvedRepository;
use crate::api::names::{Branch, CommitId, Namespace};
use git2::{FileMode, ObjectType};
use std::path::Path;

/// Most branches that a message names.
const BRANCHES_NAMED_MAX: usize = 8;

/// See [`Workspaces::resolve`].
pub(super) fn resolve(
    workspaces: &Workspaces,
    namespace: &Namespace,
    repository: &str,
    branch: Option<&Branch>,
    target: &Branch,
) -> Result<ResolvedRepository, WorkspaceError> {
    let remote = workspaces.remote(namespace, repository)?;
    let refs = workspaces.git.look(&remote, None)?;
    if refs.branches.is_empty() {
        return Err(WorkspaceError::Empty { repository: repository.to_owned() });
    }
    let default_branch = default_branch(repository, &refs)?;
    let default = refs.branches[&default_branch].clone();
    let base_branch = branch.cloned().unwrap_or_else(|| default_branch.clone());
    let Some(base) = refs.branches.get(&base_branch).cloned() else {
        let advice = format!("{}; correct spec.context.branch or push that branch", known(&refs, &default_branch));
        return Err(WorkspaceError::BranchNotFound { repository: repository.to_owned(), branch: base_branch, advice });
    };
    if let Some(present) = refs.branches.keys().find(|present| is_in_the_way(present.as_str(), target.as_str())) {
        let (repository, target, present) = (repository.to_owned(), target.clone(), present.clone());
        return Err(WorkspaceError::BranchInTheWay { repository, target, present });
    }
    let trusted = if workspaces.config.trusted_branches.contains(&base_branch) { base.clone() } else { default };
    let pair = Pair::of(workspaces, namespace, repository);
    pair.ensure(workspaces)?;
    pair.fetch_missing(workspaces, &remote, &[&base, &trusted])?;
    Ok(ResolvedRepository { remote: remote.url, base, target: refs.branches.get(target).cloned(), base_branch, trusted, default_branch })
}

/// Git keeps branches like files: `a` and `a/b` cannot both exist.
fn is_in_the_way(present: &str, target: &str) -> bool {
    let beneath = |name: &str, folder: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    beneath(present, target) || beneath(target, present)
}

/// The branch that HEAD names; if none, the only branch there is. Never a guess: the gates come from it.
fn default_branch(repository: &str, refs: &RemoteRefs) -> Result<Branch, WorkspaceError> {
    if let Some(default) = refs.default.as_ref().filter(|default| refs.branches.contains_key(*default)) {
        return Ok(default.clone());
    }
    let mut branches = refs.branches.keys();
    match (branches.next(), branches.next()) {
        (Some(only), None) => Ok(only.clone()),
        _ => {
            let some: Vec<_> = refs.branches.keys().take(BRANCHES_NAMED_MAX).map(Branch::as_str).collect();
            let advice = format!("set it there with `git symbolic-ref HEAD refs/heads/<branch>`; it has {}", some.join(", "));
            Err(WorkspaceError::NoDefaultBranch { repository: repository.to_owned(), advice })
        }
    }
}

fn known(refs: &RemoteRefs, default_branch: &Branch) -> String {
    let some: Vec<_> = refs.branches.keys().take(BRANCHES_NAMED_MAX).map(Branch::as_str).collect();
    let more = if refs.branches.len() > some.len() { format!(" and {} more", refs.branches.len() - some.len()) } else { String::new() };
    format!("the default branch is {default_branch}, and it has {}{more}", some.join(", "))
}

/// See [`Workspaces::read_file`].
pub(super) fn read_file(
    workspaces: &Workspaces,
    namespace: &Namespace,
    repository: &str,
    commit: &CommitId,
    path: &str,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, WorkspaceError> {
    let pair = Pair::of(workspaces, namespace, repository);
    let opened = pair.open_work()?;
    let tree = pair.commit(&opened, commit)?.tree().map_err(pair.git("read a tree"))?;
    let entry = match tree.get_path(Path::new(path)) {
        Ok(entry) => entry,
        Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(None),
        Err(error) => return Err(pair.git("read a tree")(error)),
    };
    let bad =
        |why: String| WorkspaceError::BadFile { repository: repository.to_owned(), commit: commit.clone(), path: path.to_owned(), why };
    if entry.kind() != Some(ObjectType::Blob) || entry.filemode() == i32::from(FileMode::Link) {
        return Err(bad("it is not a plain file".to_owned()));
    }
    let odb = opened.odb().map_err(pair.git("open the objects"))?;
    let (size, _) = odb.read_header(entry.id()).map_err(pair.git("read a file"))?;
    if size > bytes_max {
        return Err(bad(format!("it has {size} bytes, and {bytes_max} is the most")));
    }
    let blob = opened.find_blob(entry.id()).map_err(pair.git("read a file"))?;
    Ok(Some(blob.content().to_vec()))
}

/// See [`Workspaces::list_root`].
pub(super) fn list_root(
    workspaces: &Workspaces,
    namespace: &Namespace,
    repository: &str,
    commit: &CommitId,
) -> Result<Vec<String>, WorkspaceError> {
    let pair = Pair::of(workspaces, namespace, repository);
    let opened = pair.open_work()?;
    let tree = pair.commit(&opened, commit)?.tree().map_err(pair.git("read a tree"))?;
    Ok(tree.iter().map(|entry| String::from_utf8_lossy(entry.name_bytes()).into_owned()).collect())
}
