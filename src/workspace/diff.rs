//! The unified diff between two commits, for people. No external driver, no conversion: libgit2 on our own objects.

use super::Workspaces;
use super::error::WorkspaceError;
use super::repository::Pair;
use crate::api::names::{CommitId, Namespace};
use crate::gates::tamper::Change;
use git2::{DiffFormat, DiffOptions, FileMode, Oid};

/// See [`Workspaces::diff`].
pub(super) fn diff(
    workspaces: &Workspaces,
    namespace: &Namespace,
    repository: &str,
    from: &CommitId,
    to: &CommitId,
    bytes_max: usize,
) -> Result<String, WorkspaceError> {
    let pair = Pair::of(workspaces, namespace, repository);
    let opened = pair.open_work()?;
    let read = |commit: &CommitId| pair.commit(&opened, commit)?.tree().map_err(pair.git("read a tree"));
    let mut diff = opened.diff_tree_to_tree(Some(&read(from)?), Some(&read(to)?), None).map_err(pair.git("compare commits"))?;
    diff.find_similar(None).map_err(pair.git("compare commits"))?;
    let mut text = Vec::new();
    let printed = diff.print(DiffFormat::Patch, |_, _, line| {
        if matches!(line.origin(), '+' | '-' | ' ') {
            text.push(line.origin() as u8);
        }
        text.extend_from_slice(line.content());
        text.len() <= bytes_max
    });
    match printed {
        Ok(()) => {}
        Err(_) if text.len() > bytes_max => {}
        Err(error) => return Err(pair.git("compare commits")(error)),
    }
    let cut = text.len() > bytes_max;
    text.truncate(bytes_max);
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if cut {
        text.push_str("\n… (cut: the diff is longer)\n");
    }
    Ok(text)
}

/// See [`Workspaces::changes`].
pub(super) fn changes(
    workspaces: &Workspaces,
    namespace: &Namespace,
    repository: &str,
    from: &CommitId,
    to: &CommitId,
) -> Result<Vec<Change>, WorkspaceError> {
    let pair = Pair::of(workspaces, namespace, repository);
    let opened = pair.open_work()?;
    let read = |commit: &CommitId| pair.commit(&opened, commit)?.tree().map_err(pair.git("read a tree"));
    // A file that became a link, or a link a file, is one change.
    let mut options = DiffOptions::new();
    options.include_typechange(true);
    let diff = opened.diff_tree_to_tree(Some(&read(from)?), Some(&read(to)?), Some(&mut options)).map_err(pair.git("compare commits"))?;
    // A submodule is a commit of another repository: it has no content here.
    let id = |file: git2::DiffFile<'_>| (!file.id().is_zero() && file.mode() != FileMode::Commit).then(|| file.id().to_string());
    let changes = diff.deltas().map(|delta| {
        let path = delta.new_file().path_bytes().or_else(|| delta.old_file().path_bytes()).unwrap_or_default();
        let link = delta.new_file().mode() == FileMode::Link;
        Change { path: String::from_utf8_lossy(path).into_owned(), before: id(delta.old_file()), after: id(delta.new_file()), link }
    });
    Ok(changes.collect())
}

/// See [`Workspaces::read_object`].
pub(super) fn read_object(workspaces: &Workspaces, namespace: &Namespace, repository: &str, id: &str) -> Result<Vec<u8>, WorkspaceError> {
    let pair = Pair::of(workspaces, namespace, repository);
    let opened = pair.open_work()?;
    let blob = Oid::from_str(id).and_then(|id| opened.find_blob(id)).map_err(pair.git("read a file"))?;
    Ok(blob.content().to_vec())
}
