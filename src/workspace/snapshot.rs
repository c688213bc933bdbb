//! The tree as one commit of the controller's making: parent, author, date and message come from the record, so that the same tree
//! gives the same id whenever it is read.

use super::Workspaces;
use super::candidate;
use super::error::{WorkspaceError, io};
use super::place::{Place, Stage};
use super::reader::Reader;
use super::repository::{Pair, Writer, clean_message, seconds, signature};
use super::tree;
use super::types::SnapshotSpec;
use crate::api::names::CommitId;
use crate::plan::observed::Snapshot;
use git2::{Oid, Repository, Tree};
use std::collections::BTreeSet;
use std::path::Path;

/// See [`Workspaces::snapshot`].
pub(super) fn take(workspaces: &Workspaces, spec: &SnapshotSpec<'_>) -> Result<Snapshot, WorkspaceError> {
    workspaces.locks.with(&tree::lock(&spec.uid), || {
        let (place, meta) = tree::find(workspaces, &spec.uid)?
            .filter(|(_, meta)| meta.stage == Stage::Ready)
            .ok_or_else(|| WorkspaceError::NoTree { uid: spec.uid.clone() })?;
        let pair = Pair::of_hash(workspaces, &meta.hash, &spec.repository);
        place.remount(workspaces, &pair, &meta)?;
        let opened = pair.open_work()?;
        let mut writer = Writer::new(&pair, &opened)?;
        let parent = pair.commit(&opened, &spec.base)?;
        let base = parent.tree().map_err(pair.git("read a tree"))?;
        let (id, refused) = read(workspaces, &pair, &opened, &mut writer, &place, &base, false)?;
        if !refused.is_empty() {
            return Ok(Snapshot::Refused(refused));
        }
        if id == base.id() {
            return Ok(Snapshot::Unchanged);
        }
        let made = opened.find_tree(id).map_err(pair.git("read a tree"))?;
        let unresolved = unresolved(&opened, &made, &base, spec.conflicts);
        if !unresolved.is_empty() {
            return Ok(Snapshot::Unresolved(unresolved));
        }
        let refused = candidate::check(&pair, &opened, &base, &made)?;
        if !refused.is_empty() {
            return Ok(Snapshot::Refused(refused));
        }
        let signature = signature(workspaces, seconds(spec.date))?;
        let commit: CommitId = writer.commit(&opened, &signature, &clean_message(&spec.message), id, &[&parent])?;
        writer.sync()?;
        Ok(Snapshot::Candidate(commit))
    })
}

/// Reads a tree that is in place.
pub(super) fn read<'r>(
    workspaces: &Workspaces,
    pair: &Pair,
    opened: &'r Repository,
    writer: &mut Writer<'r>,
    place: &Place,
    base: &Tree<'_>,
    lenient: bool,
) -> Result<(Oid, Vec<String>), WorkspaceError> {
    let root = crate::beneath::open_folder(&place.tree()).map_err(io("open", place.tree()))?;
    Reader::new(pair, opened, writer, &workspaces.config.limits, lenient).read(&root, base)
}

/// Which of the paths still hold marker lines that the base did not have.
fn unresolved(opened: &Repository, made: &Tree<'_>, base: &Tree<'_>, conflicts: &[String]) -> Vec<String> {
    let markers = |tree: &Tree<'_>, path: &str| -> BTreeSet<Vec<u8>> {
        let blob = tree.get_path(Path::new(path)).ok().and_then(|entry| opened.find_blob(entry.id()).ok());
        let lines = blob.iter().flat_map(|blob| blob.content().split(|byte| *byte == b'\n'));
        lines.filter(|line| line.starts_with(b"<<<<<<< ") || line.starts_with(b">>>>>>> ")).map(<[u8]>::to_vec).collect()
    };
    conflicts.iter().filter(|path| !markers(made, path).is_subset(&markers(base, path))).cloned().collect()
}
