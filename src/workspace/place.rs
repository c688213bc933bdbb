//! The folder of one tree, an agent's or a gate's: `{meta.json, tree, upper, work, home}`; what it remembers, and how it is filled.
//!
//! `meta.json` is there before anything else and goes last. `Stage::Partial` means that nobody has used the tree yet, so that it can be
//! thrown away; `Stage::Ready` means that an agent may have worked in it, so that it is only ever mounted again.

use super::Workspaces;
use super::checkout;
use super::error::{WorkspaceError, io};
use super::files;
use super::overlay::{self, Layers};
use super::repository::Pair;
use super::scratch;
use super::types::TreeMode;
use crate::api::names::{Attempt, Branch, CommitId, Uid};
use crate::durable;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How far a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    /// Being filled or removed.
    Partial,
    /// Complete.
    Ready,
}

/// What a tree remembers of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// The agent.
    pub(super) uid: Uid,
    /// `namespace/name` of the agent; empty for a gate's, and where an earlier version wrote it.
    #[serde(default)]
    pub(super) agent: String,
    /// Folder name of the repositories.
    pub(super) hash: String,
    /// The repository as the record has it.
    pub(super) repository: String,
    /// Name of the tree's folder.
    pub(super) name: String,
    /// The run, for the tree of a gate.
    pub(super) gate: Option<String>,
    /// Highest attempt that used it.
    pub(super) attempt: Attempt,
    /// What it was laid out from.
    pub(super) base: CommitId,
    /// What it was laid out with, if not the base.
    pub(super) content: Option<CommitId>,
    /// The branch of its `.git`; a gate's has none.
    pub(super) branch: Option<Branch>,
    /// How it was made.
    pub(super) mode: TreeMode,
    /// How far it is.
    pub(super) stage: Stage,
}

impl Meta {
    /// Commit that HEAD of its `.git` names.
    pub(super) fn head(&self) -> &CommitId {
        &self.base
    }

    /// Commit whose files it shows.
    pub(super) fn shown(&self) -> &CommitId {
        self.content.as_ref().unwrap_or(&self.base)
    }

    /// Name of the shared checkout beneath it.
    pub(super) fn checkout_key(&self) -> String {
        match (&self.content, &self.gate) {
            (Some(content), _) => format!("{}-{content}", self.base),
            (None, Some(_)) => format!("{}-gate", self.base),
            (None, None) => self.base.to_string(),
        }
    }
}

/// The folder of one tree.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The folder of all of its kind.
    pub(super) parent: PathBuf,
    /// Its name there.
    pub(super) name: String,
}

impl Place {
    /// The folder itself.
    pub(super) fn folder(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Where the tree is seen.
    pub(super) fn tree(&self) -> PathBuf {
        self.folder().join("tree")
    }

    /// The agent's HOME.
    pub(super) fn home(&self) -> PathBuf {
        self.folder().join("home")
    }

    fn meta_file(&self) -> PathBuf {
        self.folder().join("meta.json")
    }

    /// What the tree remembers; `None`: there is no such tree, or only an empty folder.
    pub(super) fn read(&self) -> Result<Option<Meta>, WorkspaceError> {
        let path = self.meta_file();
        match std::fs::read(&path) {
            // Empty after a loss of power: it was `Partial`, which is written without waiting for the disk.
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => {
                let broken = |error: serde_json::Error| io("understand", &path)(std::io::Error::other(error));
                serde_json::from_slice(&bytes).map(Some).map_err(broken)
            }
            // A stray file in the place of a folder is none of ours.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    /// Remembers.
    pub(super) fn write(&self, meta: &Meta) -> Result<(), WorkspaceError> {
        files::make_folder(&self.folder()).map_err(io("make", self.folder()))?;
        let bytes = serde_json::to_vec_pretty(meta).expect("it is plain data");
        // Only what may hold an agent's work must be known after a loss of power; a partial tree is laid out again anyway.
        let put = if meta.stage == Stage::Ready { durable::replace } else { durable::replace_for_this_boot };
        put(&self.meta_file(), &bytes).map_err(io("write", self.meta_file()))
    }

    /// Whether the tree can be used as it is.
    pub(super) fn is_ready(&self, meta: &Meta) -> Result<bool, WorkspaceError> {
        let seen = match meta.mode {
            TreeMode::Checkout => true,
            TreeMode::Overlay => overlay::is_mounted(&self.tree()).map_err(io("look at", self.tree()))?,
        };
        Ok(seen && meta.stage == Stage::Ready)
    }

    /// Lays the tree out from nothing. What was there of an earlier tree is thrown away; HOME stays.
    pub(super) fn fill(&self, workspaces: &Workspaces, pair: &Pair, meta: Meta) -> Result<(), WorkspaceError> {
        let meta = Meta { stage: Stage::Partial, ..meta };
        self.write(&meta)?;
        self.clear()?;
        let tree = self.tree();
        files::make_folder(&tree).map_err(io("make", &tree))?;
        match meta.mode {
            TreeMode::Overlay => {
                let (upper, work) = (self.folder().join("upper"), self.folder().join("work"));
                for path in [&upper, &work] {
                    files::make_folder(path).map_err(io("make", path))?;
                }
                self.own(workspaces, &upper, 0o755)?;
                if let Some(branch) = &meta.branch {
                    scratch::write_branch(&upper, branch, meta.head(), workspaces.owner)?;
                }
                self.mount(workspaces, pair, &meta)?;
            }
            TreeMode::Checkout => {
                checkout::lay_out(workspaces, pair, &tree, meta.head(), meta.shown())?;
                if let Some(branch) = &meta.branch {
                    scratch::write_branch(&tree, branch, meta.head(), workspaces.owner)?;
                }
            }
        }
        if meta.gate.is_none() && !self.home().is_dir() {
            let home = self.home();
            files::make_folder(&home).map_err(io("make", &home))?;
            self.own(workspaces, &home, 0o700)?;
        }
        self.write(&Meta { stage: Stage::Ready, ..meta })
    }

    /// Mounts a complete tree again after a reboot; nothing to do for a checkout.
    pub(super) fn remount(&self, workspaces: &Workspaces, pair: &Pair, meta: &Meta) -> Result<(), WorkspaceError> {
        match meta.mode {
            TreeMode::Overlay => self.mount(workspaces, pair, meta),
            TreeMode::Checkout => Ok(()),
        }
    }

    /// Mounts the overlay of a tree over its shared checkout.
    fn mount(&self, workspaces: &Workspaces, pair: &Pair, meta: &Meta) -> Result<(), WorkspaceError> {
        let (tree, folder) = (self.tree(), self.folder());
        if overlay::is_mounted(&tree).map_err(io("look at", &tree))? {
            return Ok(());
        }
        let lower = checkout::ensure(workspaces, pair, meta)?;
        files::make_folder(&tree).map_err(io("make", &tree))?;
        let layers = Layers { lower: &lower, upper: &folder.join("upper"), work: &folder.join("work"), target: &tree };
        overlay::mount(layers).map_err(io("mount", &tree))
    }

    /// Unmounts, and removes everything but HOME and `meta.json`.
    fn clear(&self) -> Result<(), WorkspaceError> {
        let folder = self.folder();
        overlay::unmount(&self.tree()).map_err(io("unmount", self.tree()))?;
        for name in ["tree", "upper", "work"] {
            crate::beneath::remove_all(&folder, name).map_err(io("remove", folder.join(name)))?;
        }
        Ok(())
    }

    /// Unmounts and removes everything, in an order in which it can be done again after a crash.
    pub(super) fn remove(&self) -> Result<(), WorkspaceError> {
        if let Some(meta) = self.read()?.filter(|meta| meta.stage == Stage::Ready) {
            self.write(&Meta { stage: Stage::Partial, ..meta })?;
        }
        self.clear()?;
        let folder = self.folder();
        crate::beneath::remove_all(&folder, "home").map_err(io("remove", self.home()))?;
        crate::beneath::remove_all(&self.parent, &self.name).map_err(io("remove", folder))
    }

    fn own(&self, workspaces: &Workspaces, path: &Path, mode: u32) -> Result<(), WorkspaceError> {
        let opened = crate::beneath::open_folder(path).map_err(io("open", path))?;
        rustix::fs::fchmod(&opened, rustix::fs::Mode::from_raw_mode(mode)).map_err(io("open up", path))?;
        workspaces.owner.take(&opened).map_err(io("give away", path))
    }
}

/// What every tree of this state folder remembers.
pub(super) fn all(workspaces: &Workspaces) -> Result<Vec<Meta>, WorkspaceError> {
    let mut metas = Vec::new();
    for parent in [&workspaces.folders.trees, &workspaces.folders.gate_trees] {
        for name in files::names_in(parent).map_err(io("read", parent))? {
            metas.extend(Place { parent: parent.clone(), name }.read()?);
        }
    }
    Ok(metas)
}

/// The places of one agent in `parent`, found by name and proven by what they remember.
pub(super) fn of_agent(parent: &Path, prefix: &str, uid: &Uid) -> Result<Vec<(Place, Meta)>, WorkspaceError> {
    let mut found = Vec::new();
    for name in files::names_in(parent).map_err(io("read", parent))? {
        if name.starts_with(prefix) {
            let place = Place { parent: parent.to_owned(), name };
            found.extend(place.read()?.filter(|meta| meta.uid == *uid).map(|meta| (place, meta)));
        }
    }
    Ok(found)
}
