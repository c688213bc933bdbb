//! The tree of one agent: laid out, looked at, mounted again after a reboot, removed.

use super::Workspaces;
use super::error::{WorkspaceError, io};
use super::files;
use super::place::{self, Meta, Place, Stage};
use super::repository::Pair;
use super::types::{GateTreeSpec, TreeInventory, TreePaths, TreeSpec};
use super::{address, checkout, rescue};
use crate::api::names::Uid;
use crate::cleanups::Stray;
use crate::plan::observed::WorkspaceSeen;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Longest key of a gate's tree.
const KEY_BYTES_MAX: usize = 100;
/// Longest name of a tree's folder: what file systems allow, less what we append.
const NAME_BYTES_MAX: usize = 200;

/// Name of the lock of all trees of one agent.
pub(super) fn lock(uid: &Uid) -> String {
    format!("tree/{uid}")
}

/// See [`Workspaces::ensure_tree`].
pub(super) fn ensure(workspaces: &Workspaces, spec: &TreeSpec) -> Result<TreePaths, WorkspaceError> {
    let plain = spec.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && spec.name.len() <= NAME_BYTES_MAX;
    if !plain || !spec.name.starts_with(&prefix(&spec.uid)) {
        return Err(WorkspaceError::Unusable(format!("{:?} is no name of a tree of agent {}", spec.name, spec.uid)));
    }
    workspaces.locks.with(&lock(&spec.uid), || {
        let place = Place { parent: workspaces.folders.trees.clone(), name: spec.name.clone() };
        let pair = Pair::of(workspaces, &spec.namespace, &spec.repository);
        pair.ensure(workspaces)?;
        if !pair.base_has(&[&spec.base])? {
            // Our copy was lost, or is another host's.
            pair.fetch_missing(workspaces, &address::parse(&workspaces.allowed, &spec.repository)?, &[&spec.base])?;
        }
        let wanted = Meta {
            uid: spec.uid.clone(),
            agent: spec.agent.clone(),
            hash: pair.hash.clone(),
            repository: spec.repository.clone(),
            name: spec.name.clone(),
            gate: None,
            attempt: spec.attempt,
            base: spec.base.clone(),
            content: spec.content.clone(),
            branch: Some(spec.branch_for_head.clone()),
            mode: workspaces.mode,
            stage: Stage::Partial,
        };
        match place.read()? {
            Some(present) if present.attempt > spec.attempt => {
                let (uid, asked) = (spec.uid.clone(), spec.attempt);
                return Err(WorkspaceError::OlderAttempt { uid, present: present.attempt, asked });
            }
            Some(present) if present.stage == Stage::Ready && is_same(&present, &wanted) => {
                place.remount(workspaces, &pair, &present)?;
                if present.attempt < spec.attempt {
                    place.write(&Meta { attempt: spec.attempt, ..present })?;
                }
            }
            Some(present) if present.stage == Stage::Ready => {
                rescue::keep_tree(workspaces, &place, &present)?;
                place.fill(workspaces, &pair, wanted)?;
            }
            Some(_) | None => place.fill(workspaces, &pair, wanted)?,
        }
        Ok(paths_of(&place, &pair))
    })
}

fn is_same(present: &Meta, wanted: &Meta) -> bool {
    present.hash == wanted.hash && present.base == wanted.base && present.content == wanted.content
}

fn paths_of(place: &Place, pair: &Pair) -> TreePaths {
    TreePaths { tree: place.tree(), home: place.home(), base_objects: pair.base.join("objects") }
}

fn prefix(uid: &Uid) -> String {
    format!("agent-{uid}-")
}

fn gate_prefix(uid: &Uid) -> String {
    format!("gate-{uid}-")
}

/// The tree of an agent, however far it is.
pub(super) fn find(workspaces: &Workspaces, uid: &Uid) -> Result<Option<(Place, Meta)>, WorkspaceError> {
    Ok(place::of_agent(&workspaces.folders.trees, &prefix(uid), uid)?.into_iter().next())
}

/// See [`Workspaces::observe_tree`].
pub(super) fn observe(workspaces: &Workspaces, uid: &Uid) -> Result<Option<WorkspaceSeen>, WorkspaceError> {
    let Some((place, meta)) = find(workspaces, uid)? else { return Ok(None) };
    let ready = place.is_ready(&meta)?;
    Ok(Some(WorkspaceSeen { worktree: meta.name, base: meta.base, content: meta.content, ready }))
}

/// See [`Workspaces::tree_paths`].
pub(super) fn paths(workspaces: &Workspaces, uid: &Uid) -> Result<Option<TreePaths>, WorkspaceError> {
    let found = find(workspaces, uid)?;
    Ok(found.map(|(place, meta)| paths_of(&place, &Pair::of_hash(workspaces, &meta.hash, &meta.repository))))
}

/// See [`Workspaces::ensure_gate_tree`]. A gate may have changed its tree, so each gets one of its own.
pub(super) fn ensure_gate(workspaces: &Workspaces, spec: &GateTreeSpec) -> Result<PathBuf, WorkspaceError> {
    let place = gate_place(workspaces, &spec.uid, &spec.key)?;
    workspaces.locks.with(&lock(&spec.uid), || {
        let pair = Pair::of(workspaces, &spec.namespace, &spec.repository);
        let wanted = Meta {
            uid: spec.uid.clone(),
            agent: String::new(),
            hash: pair.hash.clone(),
            repository: spec.repository.clone(),
            name: place.name.clone(),
            gate: Some(spec.key.clone()),
            attempt: spec.attempt,
            base: spec.head.clone(),
            content: None,
            branch: None,
            mode: workspaces.mode,
            stage: Stage::Partial,
        };
        match place.read()? {
            Some(present) if present.stage == Stage::Ready && is_same(&present, &wanted) => place.remount(workspaces, &pair, &present)?,
            Some(_) | None => place.fill(workspaces, &pair, wanted)?,
        }
        Ok(place.tree())
    })
}

/// See [`Workspaces::remove_gate_tree`].
pub(super) fn remove_gate(workspaces: &Workspaces, uid: &Uid, key: &str) -> Result<(), WorkspaceError> {
    let place = gate_place(workspaces, uid, key)?;
    workspaces.locks.with(&lock(uid), || {
        let hash = place.read()?.map(|meta| meta.hash);
        place.remove()?;
        hash.map_or(Ok(()), |hash| checkout::prune(workspaces, &hash))
    })
}

fn gate_place(workspaces: &Workspaces, uid: &Uid, key: &str) -> Result<Place, WorkspaceError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(plain) {
        return Err(WorkspaceError::Unusable(format!("{key:?} is no key of a gate's tree: use 1 to {KEY_BYTES_MAX} of a-z, 0-9 and '-'")));
    }
    Ok(Place { parent: workspaces.folders.gate_trees.clone(), name: format!("{}{key}", gate_prefix(uid)) })
}

/// See [`Workspaces::remove`].
pub(super) fn remove(workspaces: &Workspaces, uid: &Uid) -> Result<(), WorkspaceError> {
    workspaces.locks.with(&lock(uid), || {
        let mut hashes = BTreeSet::new();
        // The agent's own last: while it is there somebody comes back for the rest.
        for (parent, prefix) in [(&workspaces.folders.gate_trees, gate_prefix(uid)), (&workspaces.folders.trees, prefix(uid))] {
            for (place, meta) in place::of_agent(parent, &prefix, uid)? {
                place.remove()?;
                hashes.insert(meta.hash);
            }
        }
        for hash in hashes {
            checkout::prune(workspaces, &hash)?;
        }
        Ok(())
    })
}

/// See [`Workspaces::inventory`].
pub(super) fn inventory(workspaces: &Workspaces) -> Result<TreeInventory, WorkspaceError> {
    let mut inventory = TreeInventory::default();
    for meta in place::all(workspaces)? {
        match meta.gate {
            None => inventory.trees.push((meta.uid, meta.name)),
            Some(key) => inventory.gate_trees.push((meta.uid, meta.attempt, key)),
        }
    }
    Ok(inventory)
}

/// Takes away what a crash left before a tree could remember anything; called once, before anybody works here.
pub(super) fn sweep(workspaces: &Workspaces) -> Result<(), WorkspaceError> {
    for parent in [&workspaces.folders.trees, &workspaces.folders.gate_trees] {
        for name in files::names_in(parent).map_err(io("read", parent))? {
            let place = Place { parent: parent.clone(), name };
            // A stray file is none of ours.
            let is_folder = std::fs::symlink_metadata(place.folder()).is_ok_and(|found| found.is_dir());
            if is_folder && place.read()?.is_none() {
                place.remove()?;
                workspaces.config.cleanups.tell(Stray::Folder, &format!("a tree that was not begun, {}", place.folder().display()));
            }
        }
    }
    Ok(())
}
