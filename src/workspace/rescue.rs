//! Nothing an agent made is lost: what the remote does not have is kept under `refs/rescue/<uid>/<n>` of the work repository.
//!
//! Kept are the given commits and what the tree holds beyond them, read leniently: an entry that no commit may have is left out, the
//! rest is kept. The same content is kept once, under the same ref.

use super::Workspaces;
use super::error::WorkspaceError;
use super::merge::contains;
use super::place::{Meta, Place, Stage};
use super::publish::pushed_ref;
use super::repository::{Pair, Writer, commit_id, oid, seconds, signature};
use super::types::RescueSpec;
use super::{snapshot, tree};
use crate::api::names::{CommitId, Uid};
use git2::{Oid, Repository};
use std::collections::{BTreeMap, BTreeSet};

/// Message of a commit that keeps what a tree held.
const MESSAGE: &str = "Rescued: the tree of an agent, as it was before it was removed\n";

/// See [`Workspaces::rescue`].
pub(super) fn rescue(workspaces: &Workspaces, spec: &RescueSpec<'_>) -> Result<Option<String>, WorkspaceError> {
    workspaces.locks.with(&tree::lock(&spec.uid), || {
        let found = tree::find(workspaces, &spec.uid)?.filter(|(_, meta)| meta.stage == Stage::Ready);
        let pair = match &found {
            Some((_, meta)) => Pair::of_hash(workspaces, &meta.hash, &spec.repository),
            None => Pair::of(workspaces, &spec.namespace, &spec.repository),
        };
        if !pair.work.is_dir() {
            return Ok(None);
        }
        let keeper = Keeper { workspaces, pair: &pair, opened: &pair.open_work()?, uid: &spec.uid };
        let mut kept = None;
        for commit in spec.commits {
            kept = keeper.keep_commit(commit, spec.commits)?.or(kept);
        }
        if let Some((place, meta)) = found {
            let base = spec.base.clone().unwrap_or_else(|| meta.base.clone());
            kept = keeper.keep_tree(&place, &meta, &base, spec.commits, seconds(spec.date))?.or(kept);
        }
        Ok(kept)
    })
}

/// See [`Workspaces::rescue_tree`].
pub(super) fn rescue_tree(workspaces: &Workspaces, uid: &Uid) -> Result<Option<String>, WorkspaceError> {
    workspaces.locks.with(&tree::lock(uid), || {
        let found = tree::find(workspaces, uid)?.filter(|(_, meta)| meta.stage == Stage::Ready);
        found.map_or(Ok(None), |(place, meta)| keep_tree(workspaces, &place, &meta))
    })
}

/// Keeps what a tree holds before it is laid out anew.
pub(super) fn keep_tree(workspaces: &Workspaces, place: &Place, meta: &Meta) -> Result<Option<String>, WorkspaceError> {
    let pair = Pair::of_hash(workspaces, &meta.hash, &meta.repository);
    let opened = pair.open_work()?;
    let date = pair.commit(&opened, &meta.base)?.time().seconds();
    Keeper { workspaces, pair: &pair, opened: &opened, uid: &meta.uid }.keep_tree(place, meta, &meta.base, &[], date)
}

struct Keeper<'a> {
    workspaces: &'a Workspaces,
    pair: &'a Pair,
    opened: &'a Repository,
    uid: &'a Uid,
}

impl Keeper<'_> {
    /// Keeps one commit unless the remote has it, or another of the commits contains it.
    fn keep_commit(&self, commit: &CommitId, all: &[CommitId]) -> Result<Option<String>, WorkspaceError> {
        if self.opened.find_commit(oid(commit)).is_err() || self.is_delivered(commit)? {
            return Ok(None);
        }
        for other in all.iter().filter(|other| *other != commit) {
            if self.opened.find_commit(oid(other)).is_ok() && contains(self.pair, self.opened, other, commit)? {
                return Ok(None);
            }
        }
        self.keep(oid(commit)).map(Some)
    }

    /// Keeps what a tree holds, unless a commit that we know holds the same.
    fn keep_tree(
        &self,
        place: &Place,
        meta: &Meta,
        base: &CommitId,
        commits: &[CommitId],
        seconds: i64,
    ) -> Result<Option<String>, WorkspaceError> {
        place.remount(self.workspaces, self.pair, meta)?;
        let parent = self.pair.commit(self.opened, base)?;
        let base_tree = parent.tree().map_err(self.pair.git("read a tree"))?;
        let mut writer = Writer::new(self.pair, self.opened)?;
        let (id, _) = snapshot::read(self.workspaces, self.pair, self.opened, &mut writer, place, &base_tree, true)?;
        if self.known_trees(meta, base, commits).contains(&id) {
            return Ok(None);
        }
        for (name, commit) in self.rescued()? {
            if self.opened.find_commit(commit).is_ok_and(|commit| commit.tree_id() == id) {
                return Ok(Some(name));
            }
        }
        let signature = signature(self.workspaces, seconds)?;
        let commit = writer.commit(self.opened, &signature, MESSAGE, id, &[&parent])?;
        writer.sync()?;
        self.keep(oid(&commit)).map(Some)
    }

    /// Trees that need no keeping: what was laid out, what the commits hold, what was delivered and the candidate that went into it.
    fn known_trees(&self, meta: &Meta, base: &CommitId, commits: &[CommitId]) -> BTreeSet<Oid> {
        let mut ids: Vec<Oid> = [base, &meta.base, meta.shown()].into_iter().chain(commits).map(oid).collect();
        if let Some(pushed) = self.pushed() {
            ids.push(oid(&pushed));
            ids.extend(self.opened.find_commit(oid(&pushed)).iter().flat_map(git2::Commit::parent_ids));
        }
        ids.into_iter().filter_map(|id| self.opened.find_commit(id).ok()).map(|commit| commit.tree_id()).collect()
    }

    fn pushed(&self) -> Option<CommitId> {
        self.opened.refname_to_id(&pushed_ref(self.uid)).ok().map(commit_id)
    }

    /// Whether the remote is known to have a commit: pushed by us, or fetched from it.
    fn is_delivered(&self, commit: &CommitId) -> Result<bool, WorkspaceError> {
        if let Some(pushed) = self.pushed()
            && contains(self.pair, self.opened, &pushed, commit)?
        {
            return Ok(true);
        }
        Ok(self.pair.open_base()?.find_commit(oid(commit)).is_ok())
    }

    /// Rescue refs of this agent.
    fn rescued(&self) -> Result<BTreeMap<String, Oid>, WorkspaceError> {
        let failed = || self.pair.git("read the rescue refs");
        let mut rescued = BTreeMap::new();
        for reference in self.opened.references_glob(&format!("refs/rescue/{}/*", self.uid)).map_err(failed())? {
            let reference = reference.map_err(failed())?;
            if let (Ok(name), Some(id)) = (reference.name(), reference.target()) {
                rescued.insert(name.to_owned(), id);
            }
        }
        Ok(rescued)
    }

    /// Puts a commit under the next free number, unless it is under one already.
    fn keep(&self, commit: Oid) -> Result<String, WorkspaceError> {
        let rescued = self.rescued()?;
        if let Some((name, _)) = rescued.iter().find(|(_, id)| **id == commit) {
            return Ok(name.clone());
        }
        let numbers = rescued.keys().filter_map(|name| name.rsplit('/').next()?.parse::<u64>().ok());
        let name = format!("refs/rescue/{}/{}", self.uid, numbers.max().unwrap_or(0) + 1);
        self.opened.reference(&name, commit, false, "rescued").map_err(self.pair.git("keep a rescue ref"))?;
        // The ref itself must outlive a loss of power, as the tree is removed next.
        let path = self.pair.work.join(&name);
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(super::error::io("sync", path))?;
        Ok(name)
    }
}
