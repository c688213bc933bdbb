//! Settings, and what the callers hand in and get back.

use super::access::RemoteAccess;
use crate::api::names::{Attempt, Branch, CommitId, Namespace, Uid};
use crate::cleanups::Cleanups;
use k8s_openapi::jiff::Timestamp;
use std::path::PathBuf;
use std::time::Duration;

/// How working trees are made, as the operator wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TreeModeWish {
    /// Overlay where the state folder can carry one, else checkout.
    #[default]
    Auto,
    /// Overlay, or refuse to start.
    Overlay,
    /// Checkout.
    Checkout,
}

/// How working trees are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TreeMode {
    /// An overlay mount over a checkout that agents share: the cost does not grow with the repository.
    Overlay,
    /// A copy of its own for each agent.
    Checkout,
}

/// What one tree may hold to become a commit. Units are in the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// Files and links.
    pub files_max: usize,
    /// All files together.
    pub bytes_max: u64,
    /// One file: it is held in memory while it is read.
    pub file_bytes_max: u64,
    /// One path from the root of the tree.
    pub path_bytes_max: usize,
    /// Folders within folders.
    pub depth_max: usize,
}

impl Default for SnapshotLimits {
    /// Twice the files of the largest trees in common use, and the file size that the large hosts accept.
    fn default() -> Self {
        Self { files_max: 200_000, bytes_max: 4 << 30, file_bytes_max: 100 << 20, path_bytes_max: 1024, depth_max: 100 }
    }
}

/// Settings of the workspaces.
#[derive(Debug, Clone)]
pub struct WorkspaceConfig {
    /// The state folder; it exists.
    pub state: PathBuf,
    /// User that the sandboxes run as: trees belong to it from the start.
    pub sandbox_uid: u32,
    /// Its group.
    pub sandbox_gid: u32,
    /// Folders beneath which paths and `file://` may be used as remotes; none: no path may.
    pub local_repos: Vec<PathBuf>,
    /// Author and committer of every commit that is made here.
    pub author_name: String,
    /// Its address.
    pub author_email: String,
    /// Branches, besides the default one, whose own gate definitions count.
    pub trusted_branches: Vec<Branch>,
    /// How trees are made.
    pub tree_mode: TreeModeWish,
    /// Longest time for one fetch, look or push.
    pub remote_timeout: Duration,
    /// A remote over the network that is silent for so long is given up.
    pub remote_silence: Duration,
    /// How remotes over the network may be reached.
    pub remotes: Vec<RemoteAccess>,
    /// The `mosaic` program, which `git` asks for a credential.
    pub askpass: PathBuf,
    /// What one tree may hold.
    pub limits: SnapshotLimits,
    /// Told of what is swept up.
    pub cleanups: Cleanups,
}

/// A repository as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedRepository {
    /// The remote without credentials; paths are canonical.
    pub remote: String,
    /// Tip of the base branch.
    pub base: CommitId,
    /// The base branch.
    pub base_branch: Branch,
    /// Present value of the target ref; `None`: absent.
    pub target: Option<CommitId>,
    /// Commit whose gate definitions count: the base, if its branch is trusted, else the tip of the default branch.
    pub trusted: CommitId,
    /// The repository's default branch.
    pub default_branch: Branch,
}

/// Which tree to lay out.
#[derive(Debug, Clone)]
pub struct TreeSpec {
    /// Namespace of the agent.
    pub namespace: Namespace,
    /// Repository as the record has it.
    pub repository: String,
    /// The agent.
    pub uid: Uid,
    /// `namespace/name` of the agent, for who has to know it by the tree alone.
    pub agent: String,
    /// `agent-{uid}-{slug of the task id}`.
    pub name: String,
    /// The attempt; a lower one than the tree has seen is refused.
    pub attempt: Attempt,
    /// Commit that the agent starts from.
    pub base: CommitId,
    /// Commit whose content is laid out instead: the base with conflict markers.
    pub content: Option<CommitId>,
    /// Branch that `HEAD` of the agent's own `.git` names.
    pub branch_for_head: Branch,
}

/// Where an agent's tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePaths {
    /// The tree: `/workspace` in the sandbox.
    pub tree: PathBuf,
    /// HOME, kept between attempts.
    pub home: PathBuf,
    /// Objects of the base repository: `/mosaic/base/objects` in the sandbox, read-only.
    pub base_objects: PathBuf,
}

/// Which tree to read into a commit.
#[derive(Debug, Clone)]
pub struct SnapshotSpec<'a> {
    /// Namespace of the agent.
    pub namespace: Namespace,
    /// Repository as the record has it.
    pub repository: String,
    /// The agent.
    pub uid: Uid,
    /// Parent of the commit.
    pub base: CommitId,
    /// Paths whose conflict markers must be gone.
    pub conflicts: &'a [String],
    /// Message of the commit.
    pub message: String,
    /// Its date: from the record, so that the same tree gives the same commit.
    pub date: Timestamp,
}

/// Which candidate to put on the present base.
#[derive(Debug, Clone)]
pub struct IntegrateSpec {
    /// Namespace of the agent.
    pub namespace: Namespace,
    /// Repository as the record has it.
    pub repository: String,
    /// The base branch.
    pub base_branch: Branch,
    /// The candidate.
    pub candidate: CommitId,
    /// The base that the candidate was made on.
    pub candidate_base: CommitId,
    /// Message of the merge.
    pub message: String,
    /// Its date: from the record, so that a merge made again has the same id.
    pub date: Timestamp,
}

/// What to push.
#[derive(Debug, Clone)]
pub struct PushSpec {
    /// Namespace of the agent.
    pub namespace: Namespace,
    /// Repository as the record has it.
    pub repository: String,
    /// The agent.
    pub uid: Uid,
    /// The base branch.
    pub base_branch: Branch,
    /// The base that `head` was gated on.
    pub base: CommitId,
    /// The gated commit.
    pub head: CommitId,
    /// Branch to push to.
    pub target: Branch,
    /// Value that it must have; `None`: absent. When the target is the base branch, `base` counts instead.
    pub expected_old: Option<CommitId>,
}

/// Which tree a gate runs in.
#[derive(Debug, Clone)]
pub struct GateTreeSpec {
    /// Namespace of the agent.
    pub namespace: Namespace,
    /// Repository as the record has it.
    pub repository: String,
    /// The agent.
    pub uid: Uid,
    /// The attempt.
    pub attempt: Attempt,
    /// The run it is for: `[a-z0-9-]`, at most 100 bytes.
    pub key: String,
    /// The commit.
    pub head: CommitId,
}

/// What to keep.
#[derive(Debug, Clone)]
pub struct RescueSpec<'a> {
    /// Namespace of the agent.
    pub namespace: Namespace,
    /// Repository as the record has it.
    pub repository: String,
    /// The agent.
    pub uid: Uid,
    /// Base of the tree; `None`: what the tree itself remembers.
    pub base: Option<CommitId>,
    /// Candidate and head, as far as there are any.
    pub commits: &'a [CommitId],
    /// Date of the rescue commit.
    pub date: Timestamp,
}

/// Every tree of this state folder, with or without a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TreeInventory {
    /// Working trees: agent and name.
    pub trees: Vec<(Uid, String)>,
    /// Trees of gates: agent, attempt and key.
    pub gate_trees: Vec<(Uid, Attempt, String)>,
}
