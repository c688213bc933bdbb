//! Workspaces: our copies of a repository, one working tree per agent, and the way from that tree to a commit on the remote.
//!
//! ```text
//! remote ──fetch──> base.git ──objects, read-only──> sandbox: /mosaic/base/objects
//!    ^                 ^                                 ^
//!    │              borrows           shared checkout + overlay (or a checkout)
//!    │                 │                                 │
//!    └────push──── work.git <──snapshot, merge── tree: /workspace, hostile once an agent ran
//! ```
//!
//! Flow: `resolve` finds the base, `ensure_tree` lays a tree out, an agent works in it, `snapshot` reads it into one commit of ours,
//! `integrate` puts that on the present base, `ensure_gate_tree` lays the result out for gates, `push` delivers it with a lease on the
//! old value and reads it back, `rescue` keeps what was not delivered, `remove` takes the tree away.
//!
//! Every function blocks, is idempotent, and may be cut short by a crash at any instant: the next call goes on from what is on disk.
//! What this module deliberately does not do: it decides nothing, it knows no record, it never reads the agent's `.git`, and it never
//! lets anything in a tree or a repository choose what runs, which path is written or where something is sent.

mod access;
mod address;
mod candidate;
mod checkout;
mod conflict;
mod diff;
mod error;
mod files;
mod held;
mod ignored;
mod layout;
mod locks;
mod merge;
mod names;
mod overlay;
mod owner;
mod place;
mod process;
mod publish;
mod pushing;
mod reader;
mod remote;
mod repository;
mod rescue;
mod resolve;
mod scratch;
mod snapshot;
mod tree;
mod types;

pub use access::{RemoteAccess, RemoteCredential};
pub(crate) use access::{check_private, is_plain_path, read_token};
pub use error::{RemoteCause, WorkspaceError};
pub use held::{Held, held};
pub use process::{Stop, stoppable};
pub use pushing::{Push, is_noted as is_pushing, look as look_for_push, signal as signal_push};
pub use remote::report;
pub use types::{
    GateTreeSpec, IntegrateSpec, PushSpec, RescueSpec, ResolvedRepository, SnapshotLimits, SnapshotSpec, TreeInventory, TreeMode,
    TreeModeWish, TreePaths, TreeSpec, WorkspaceConfig,
};

use crate::api::names::{Branch, CommitId, Namespace, Uid};
use crate::plan::observed::{Integrated, Pushed, Snapshot, WorkspaceSeen};
use error::io;
use std::path::PathBuf;

/// Folders of ours in the state folder.
#[derive(Debug, Clone)]
struct Folders {
    repositories: PathBuf,
    checkouts: PathBuf,
    trees: PathBuf,
    gate_trees: PathBuf,
}

/// All workspaces of one state folder.
#[derive(Debug)]
pub struct Workspaces {
    config: WorkspaceConfig,
    folders: Folders,
    allowed: address::Allowed,
    git: remote::Git,
    mode: TreeMode,
    owner: files::Owner,
    umask: u32,
    boot: String,
    locks: locks::Locks,
}

impl Workspaces {
    /// Opens the workspaces of a state folder: finds `git`, tries whether overlays work there, sweeps up what a crash left half-made.
    /// # Errors
    /// `Unusable` says what is missing and what to install or set.
    pub fn open(config: WorkspaceConfig) -> Result<Self, WorkspaceError> {
        repository::prepare_library();
        let state = config.state.canonicalize().map_err(io("find the state folder", &config.state))?;
        let folder = |name: &str| state.join(name);
        let folders = Folders {
            repositories: folder("repositories"),
            checkouts: folder("checkouts"),
            trees: folder(held::FOLDER_TREES),
            gate_trees: folder("gate-trees"),
        };
        for path in [&folders.repositories, &folders.checkouts, &folders.trees, &folders.gate_trees] {
            files::make_folder(path).map_err(io("make", path))?;
        }
        let own = rustix::process::geteuid();
        let owner = files::Owner { uid: config.sandbox_uid, gid: config.sandbox_gid, change: own.as_raw() != config.sandbox_uid };
        if owner.change && !own.is_root() {
            let text = format!("only root can give trees to uid {}: set the sandbox uid to your own, {}", owner.uid, own.as_raw());
            return Err(WorkspaceError::Unusable(text));
        }
        let mut allowed = address::Allowed { folders: Vec::new(), state: state.clone() };
        for path in &config.local_repos {
            allowed.folders.push(path.canonicalize().map_err(io("find the folder of local repositories", path))?);
        }
        let git = remote::Git::find(&folders.repositories, config.remote_timeout)?.with_network(&config.askpass, config.remote_silence);
        let mode = tree_mode(&state, config.tree_mode)?;
        let umask = umask().map_err(io("read the umask from", "/proc/self/status"))?;
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(boot_id).map_err(io("read", boot_id))?;
        let config = WorkspaceConfig { state, ..config };
        let workspaces = Self { config, folders, allowed, git, mode, owner, umask, boot, locks: locks::Locks::default() };
        repository::sweep(&workspaces)?;
        tree::sweep(&workspaces)?;
        checkout::sweep(&workspaces)?;
        Ok(workspaces)
    }

    /// Reads and judges an address, and finds how this namespace may reach it.
    fn remote(&self, namespace: &Namespace, repository: &str) -> Result<address::Remote, WorkspaceError> {
        let remote = address::parse(&self.allowed, repository)?;
        if remote.protocol == "file" {
            return Ok(remote);
        }
        let access = access::choose(&self.config.remotes, namespace, &remote.url);
        Ok(address::Remote { access, ..remote })
    }

    /// How trees are made here.
    #[must_use]
    pub fn tree_mode(&self) -> TreeMode {
        self.mode
    }

    /// Looks at the remote and fetches what an agent starts from.
    /// # Errors
    /// Says what is wrong with the repository or branch, and what to do.
    pub fn resolve(
        &self,
        namespace: &Namespace,
        repository: &str,
        branch: Option<&Branch>,
        target: &Branch,
    ) -> Result<ResolvedRepository, WorkspaceError> {
        resolve::resolve(self, namespace, repository, branch, target)
    }

    /// Reads one plain file of a commit; `None`: there is none of that path.
    /// # Errors
    /// The commit is not here, or the path is no plain file or larger than `bytes_max`.
    pub fn read_file(
        &self,
        namespace: &Namespace,
        repository: &str,
        commit: &CommitId,
        path: &str,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, WorkspaceError> {
        resolve::read_file(self, namespace, repository, commit, path, bytes_max)
    }

    /// Names at the root of a commit.
    /// # Errors
    /// The commit is not here.
    pub fn list_root(&self, namespace: &Namespace, repository: &str, commit: &CommitId) -> Result<Vec<String>, WorkspaceError> {
        resolve::list_root(self, namespace, repository, commit)
    }

    /// Lays out an agent's tree, or mounts it again. The same base and content leave the agent's work as it is; others first keep it
    /// under `refs/rescue`, then lay the tree out anew. HOME stays in any case.
    /// # Errors
    /// `OlderAttempt` for an attempt lower than the tree has seen.
    pub fn ensure_tree(&self, spec: &TreeSpec) -> Result<TreePaths, WorkspaceError> {
        tree::ensure(self, spec)
    }

    /// Looks at an agent's tree. Read-only.
    /// # Errors
    /// Could not look.
    pub fn observe_tree(&self, uid: &Uid) -> Result<Option<WorkspaceSeen>, WorkspaceError> {
        tree::observe(self, uid)
    }

    /// Where an agent's tree is, however far it is.
    /// # Errors
    /// Could not look.
    pub fn tree_paths(&self, uid: &Uid) -> Result<Option<TreePaths>, WorkspaceError> {
        tree::paths(self, uid)
    }

    /// Reads an agent's tree into one commit. The sandbox must have been seen gone.
    /// # Errors
    /// There is no complete tree, or it could not be read; what must not be in a commit is `Snapshot::Refused` instead.
    pub fn snapshot(&self, spec: &SnapshotSpec<'_>) -> Result<Snapshot, WorkspaceError> {
        snapshot::take(self, spec)
    }

    /// Puts a candidate on the present tip of the base branch.
    /// # Errors
    /// The remote does not answer, or the base branch is gone.
    pub fn integrate(&self, spec: &IntegrateSpec) -> Result<Integrated, WorkspaceError> {
        merge::integrate(self, spec)
    }

    /// Pushes a gated commit and reads the ref back.
    /// # Guarantees
    /// `Verified` only after the remote itself named the commit. Nothing is pushed when base or target have another value than expected.
    /// # Errors
    /// The remote does not answer; whether something was pushed is found out by the next call.
    pub fn push(&self, spec: &PushSpec) -> Result<Pushed, WorkspaceError> {
        publish::push(self, spec)
    }

    /// Lays out one commit for one gate, or mounts it again.
    /// # Errors
    /// The commit is not here, or cannot be laid out.
    pub fn ensure_gate_tree(&self, spec: &GateTreeSpec) -> Result<PathBuf, WorkspaceError> {
        tree::ensure_gate(self, spec)
    }

    /// Removes the tree of one gate.
    /// # Errors
    /// It could not be unmounted or removed.
    pub fn remove_gate_tree(&self, uid: &Uid, key: &str) -> Result<(), WorkspaceError> {
        tree::remove_gate(self, uid, key)
    }

    /// Keeps what was not delivered under `refs/rescue/<uid>/<n>` of the work repository; the ref, or `None` when there was nothing.
    /// # Errors
    /// It could not be kept: do not remove the tree.
    pub fn rescue(&self, spec: &RescueSpec<'_>) -> Result<Option<String>, WorkspaceError> {
        rescue::rescue(self, spec)
    }

    /// As `rescue`, for an agent of which only the tree is left: it remembers its own repository and base.
    /// # Errors
    /// It could not be kept: do not remove the tree.
    pub fn rescue_tree(&self, uid: &Uid) -> Result<Option<String>, WorkspaceError> {
        rescue::rescue_tree(self, uid)
    }

    /// Removes all trees of an agent, and its HOME.
    /// # Errors
    /// Something could not be unmounted or removed; calling again goes on.
    pub fn remove(&self, uid: &Uid) -> Result<(), WorkspaceError> {
        tree::remove(self, uid)
    }

    /// The unified diff between two commits, at most about `bytes_max` long.
    /// # Errors
    /// A commit is not here.
    pub fn diff(
        &self,
        namespace: &Namespace,
        repository: &str,
        from: &CommitId,
        to: &CommitId,
        bytes_max: usize,
    ) -> Result<String, WorkspaceError> {
        diff::diff(self, namespace, repository, from, to, bytes_max)
    }

    /// Every path that differs between two commits.
    /// # Errors
    /// A commit is not here.
    pub fn changes(
        &self,
        namespace: &Namespace,
        repository: &str,
        from: &CommitId,
        to: &CommitId,
    ) -> Result<Vec<crate::gates::tamper::Change>, WorkspaceError> {
        diff::changes(self, namespace, repository, from, to)
    }

    /// The content of a file by the id that `changes` gave.
    /// # Errors
    /// It is no file, or not here.
    pub fn read_object(&self, namespace: &Namespace, repository: &str, id: &str) -> Result<Vec<u8>, WorkspaceError> {
        diff::read_object(self, namespace, repository, id)
    }

    /// Every tree of this state folder, with or without a record.
    /// # Errors
    /// Could not look: nothing may be taken for absent.
    pub fn inventory(&self) -> Result<TreeInventory, WorkspaceError> {
        tree::inventory(self)
    }
}

fn tree_mode(state: &std::path::Path, wish: TreeModeWish) -> Result<TreeMode, WorkspaceError> {
    match wish {
        TreeModeWish::Checkout => Ok(TreeMode::Checkout),
        TreeModeWish::Auto => Ok(if overlay::probe(state).is_ok() { TreeMode::Overlay } else { TreeMode::Checkout }),
        TreeModeWish::Overlay => match overlay::probe(state) {
            Ok(()) => Ok(TreeMode::Overlay),
            Err(error) => Err(WorkspaceError::Unusable(format!(
                "overlay mounts do not work in {}: {error}; run as root on a file system like ext4 or xfs, or choose checkouts",
                state.display()
            ))),
        },
    }
}

fn umask() -> std::io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:")).map(str::trim);
    value.and_then(|value| u32::from_str_radix(value, 8).ok()).ok_or_else(|| std::io::Error::other("no line \"Umask:\""))
}
