//! The unified diff between two commits, for people. No external driver, no conversion: libgit2 on our own objects.

use super::Workspaces;
use super::error::WorkspaceError;
use super::repository::Pair;
use crate::api::names::{CommitId, Namespace};
use git2::DiffFormat;

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
