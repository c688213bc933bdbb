//! What the controller, the launcher and init tell each other: files of a run's folder and messages of the link.
//!
//! Plain serde structs; unknown fields are ignored on both sides, so that a controller can adopt sandboxes of the version before.
//! The link is HTTP/1.1 over a Unix socket, one request per connection, JSON bodies:
//! `POST /v1/grant` ([`GrantRequest`] -> [`GrantAnswer`]) asks once whether the command may run; `POST /v1/renew`
//! ([`RenewRequest`] -> [`RenewAnswer`]) is a long poll that renews the lease, or brings the word to stop.
//! The init of a pod reaches the same over TLS, with the pod's own token in each request, and more: `POST /v1/begin` gives it what the other
//! ones are handed ([`Beginning`]), `/v1/fetch` the files in pieces, `/v1/output` takes pieces of the log, `/v1/tree` and `/v1/take`
//! ([`Take`]) what has changed in the tree, `/v1/exit` ([`ExitNotice`]) the last word.
//!
//! Progress: a line on standard output `{"progress": {"fraction": 0.5, "message": "half of it"}}`; both fields are optional.

use crate::inside::limits::{Counters, LimitSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The intent and everything needed to adopt a run; written before anything is started.
pub const FILE_SPEC: &str = "spec.json";
/// Content of `/mosaic/task.json`.
pub const FILE_TASK: &str = "task.json";
/// The launcher's [`Identity`].
pub const FILE_LAUNCHER: &str = "launcher.json";
/// init's [`Identity`]; durable before init may ask for its grant.
pub const FILE_IDENTITY: &str = "identity.json";
/// init's [`ExitReport`].
pub const FILE_EXIT: &str = "exit.json";
/// The launcher's [`WaitReport`].
pub const FILE_WAIT: &str = "wait.json";
/// The controller's note of the grant: hash of the session secret, and when.
pub const FILE_SESSION: &str = "session";
/// Tombstone: this run was stopped and never starts again. One that nothing ever came of has why in it; the others are empty.
pub const FILE_STOPPED: &str = "stopped";
/// The controller's [`LimitReport`], when it ended the run for one.
pub const FILE_LIMIT: &str = "limit.json";
/// The engine's id and name of the container, once it has answered that it is made.
pub const FILE_CONTAINER: &str = "container.json";
/// Control groups that the engine made for the container; written with [`FILE_IDENTITY`].
pub const FILE_GROUPS: &str = "groups.json";
/// Ending of a file's name while it is written.
pub const DRAFT: &str = ".new";
/// Held (OFD lock) by the launcher and by init: free means that neither of them lives.
pub const FILE_LOCK: &str = "lock";
/// Folder of the control socket; never visible to the agent. In the mount namespace of a process sandbox the new root covers it.
pub const FOLDER_CONTROL: &str = "control";
/// Folder mounted at `/mosaic/link`: the gateway's socket.
pub const FOLDER_LINK: &str = "link";
/// Folder mounted at `/mosaic/out`.
pub const FOLDER_OUT: &str = "out";
/// Where that is in a sandbox.
pub const OUT_INSIDE: &str = "/mosaic/out";
/// Name of the control socket.
pub const SOCKET_CONTROL: &str = "control.sock";
/// Name of the socket over which the init of a container gets what the launcher would have given it.
pub const SOCKET_FILES: &str = "files.sock";
/// Folder of the sockets as the init of a container sees it. The agent sees it as well; only init is answered there.
pub const CONTROL_INSIDE: &str = "/mosaic/control";
/// Program of the init of a container, as it is seen there.
pub const INIT_INSIDE: &str = "/mosaic/init";
/// Path of the request for a start.
pub const PATH_GRANT: &str = "/v1/grant";
/// Path of the renewal.
pub const PATH_RENEW: &str = "/v1/renew";
/// Path of the question how to begin, in a pod.
pub const PATH_BEGIN: &str = "/v1/begin";
/// Path of the pieces of the files that a pod begins with.
pub const PATH_FETCH: &str = "/v1/fetch";
/// Path of the pieces of a pod's output.
pub const PATH_OUTPUT: &str = "/v1/output";
/// Path of the pieces of what has changed in a pod's files.
pub const PATH_TREE: &str = "/v1/tree";
/// Path of the word that all pieces are there.
pub const PATH_TAKE: &str = "/v1/take";
/// Path of a pod's last word.
pub const PATH_EXIT: &str = "/v1/exit";
/// Header with the name of the run's folder.
pub const HEADER_RUN: &str = "mosaic-run";
/// Header with the session secret.
pub const HEADER_SECRET: &str = "mosaic-secret";
/// Header with where in the whole a piece begins.
pub const HEADER_OFFSET: &str = "mosaic-offset";
/// Header with the number of what a piece belongs to.
pub const HEADER_NUMBER: &str = "mosaic-number";
/// Largest piece.
pub const PIECE_BYTES_MAX: usize = 2 << 20;
/// Name by which the controller's certificate is known; addresses may change.
pub const LINK_NAME: &str = "link.mosaicstack.dev";
/// Variable of a pod: addresses of the link, separated by commas.
pub const ENV_LINK: &str = "MOSAIC_LINK";
/// Variable of a pod: certificate of the authority that signs the link's, as hexadecimal DER.
pub const ENV_AUTHORITY: &str = "MOSAIC_LINK_AUTHORITY";
/// Variable of a pod: name of the run's folder.
pub const ENV_RUN: &str = "MOSAIC_LINK_RUN";
/// Variable of a pod, from its Secret: the token.
pub const ENV_TOKEN: &str = "MOSAIC_LINK_TOKEN";
/// How all variables begin that are for init alone.
pub const ENV_PREFIX: &str = "MOSAIC_LINK";
/// The tree inside; also the working directory.
pub const WORKSPACE: &str = "/workspace";
/// Objects of the base repository inside.
pub const BASE_OBJECTS_INSIDE: &str = "/mosaic/base/objects";
/// HOME inside.
pub const HOME: &str = "/home/agent";
/// The agent's login name inside.
pub const USER: &str = "agent";

/// What the launcher reads of [`FILE_SPEC`]; the controller keeps more in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpecFile {
    /// What to launch.
    pub launch: LaunchSpec,
}

/// Everything that the launcher and init need. Paths are the host's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchSpec {
    /// The run, as text.
    pub run: String,
    /// Leader epoch that decided it.
    pub epoch: u64,
    /// Mounted read-write at `/workspace`.
    pub tree: PathBuf,
    /// Mounted read-write as HOME; `None`: a tmpfs.
    pub home: Option<PathBuf>,
    /// Mounted read-only at `/mosaic/base/objects`.
    pub base_objects: Option<PathBuf>,
    /// Folders of tools, mounted read-only.
    pub tools: Vec<ToolMount>,
    /// Links that HOME needs for the tools: place beneath HOME, and target. What is there already stays.
    pub home_links: Vec<(PathBuf, PathBuf)>,
    /// PATH inside.
    pub search_path: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment beyond init's own.
    pub env: BTreeMap<String, String>,
    /// init ends everything after this time.
    pub deadline_millis: Option<u64>,
    /// Uid and gid on the host and inside.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// The launcher is an ordinary user and enters a user namespace first, in which it may do what root may outside.
    #[serde(default)]
    pub unprivileged: bool,
    /// init is PID 1 of a container: an engine has made its namespaces and mounts.
    #[serde(default)]
    pub contained: bool,
    /// The container is a pod's: it has a network, closed by a policy, and its host is not the controller's.
    #[serde(default)]
    pub pod: bool,
    /// Without a renewal for so long, init ends everything.
    pub lease_millis: u64,
    /// Size of each of the tmpfs at `/tmp`, `/dev/shm` and HOME.
    pub tmp_bytes_max: u64,
    /// Primitives of isolation that the operator can do without.
    #[serde(default)]
    pub allow_missing: Vec<String>,
    /// What bounds the command.
    #[serde(default)]
    pub limits: LimitSpec,
    /// The log: a ring file that the controller has made (see `inside::output`).
    pub log: PathBuf,
}

/// What the init of a container gets over [`SOCKET_FILES`], after a header of eight bytes (its length, little-endian) that carries the
/// descriptors of the lock, the log and the exit report.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// What to launch.
    pub launch: LaunchSpec,
    /// Kinds and inodes of the controller's namespaces, to compare with.
    pub host_namespaces: Vec<(String, u64)>,
}

/// What the init of a pod begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beginning {
    /// What to launch.
    pub launch: LaunchSpec,
    /// Content of `/mosaic/task.json`.
    pub task: Option<String>,
    /// The files, to be fetched.
    pub files: Parcel,
    /// Whether tree and HOME are wanted back.
    pub is_taken_back: bool,
    /// Most bytes of them.
    pub bytes_max: u64,
    /// Most files, folders and links of them.
    pub entries_max: u64,
    /// How often they are sent while the command runs.
    pub snapshot_millis: u64,
}

/// An archive (`inside::archive`) as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// All pieces of an archive were sent: lay it out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Take {
    /// Which one, counted from 1.
    pub number: u64,
    /// What it is.
    pub parcel: Parcel,
}

/// The init of a pod says how it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExitNotice {
    /// How.
    pub report: ExitReport,
    /// Why its files could not be taken back; `None`: they were, as far as they are wanted.
    pub untaken: Option<String>,
}

/// A folder of tools, mounted read-only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToolMount {
    /// Folder on the host.
    pub host: PathBuf,
    /// Absolute path inside.
    pub inside: PathBuf,
}

/// A process for ever: no later process has the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Process id in the host's namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Inode of its pid namespace; 0: it could not be looked at.
    pub pid_namespace: u64,
    /// Inode of the pid namespace in which `pid` is its number; 0 where an earlier version wrote it.
    #[serde(default)]
    pub seen_from: u64,
}

/// How a run ended, as init saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitCause {
    /// The command exited with this code.
    Exited(i32),
    /// A signal ended the command.
    Signaled(i32),
    /// The deadline was over.
    TimedOut,
    /// No renewal for the lease time.
    LeaseExpired,
    /// The controller said so.
    Stopped,
    /// The start gate refused, nobody answered or isolation was not in force.
    NotStarted(String),
    /// The command could not be executed.
    CannotExecute(String),
}

/// init's last word; nothing else lives in its namespace when it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitReport {
    /// Why.
    pub cause: ExitCause,
    /// From the grant to the end.
    pub duration_millis: u64,
    /// What the kernel counted, where init itself is in the control groups.
    #[serde(default)]
    pub counters: Option<Counters>,
}

/// The launcher's last word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitReport {
    /// Why there never was a sandbox.
    pub failed: Option<String>,
    /// init's wait status, as the kernel gives it.
    pub status: Option<i32>,
    /// CPU time of all its processes that were reaped, in user mode.
    pub user_micros: u64,
    /// The same in kernel mode.
    pub system_micros: u64,
    /// Largest resident set of one process.
    pub rss_max_kibibytes: u64,
    /// Processes that the kernel ended because the memory was used up.
    #[serde(default)]
    pub oom_kills: u64,
    /// Processes and threads that the kernel refused to make.
    #[serde(default)]
    pub pids_refused: u64,
    /// Bytes of output that were dropped from the log.
    #[serde(default)]
    pub output_bytes_dropped: u64,
}

/// A limit that the controller saw exceeded; written before it ends the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitReport {
    /// Name of the limit.
    pub limit: String,
    /// What was seen, as a sentence.
    pub message: String,
}

/// May I start?
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantRequest {
    /// Which run.
    pub run: String,
    /// Leader epoch of the run.
    pub epoch: u64,
    /// Made by init, kept in its memory only; renewals prove it.
    pub secret: String,
    /// What is enforced, as looked at from inside.
    pub isolation: Vec<String>,
}

/// The controller's word on a start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantAnswer {
    /// Whether the command may run.
    pub granted: bool,
    /// Why not.
    pub reason: String,
    /// Highest epoch that the controller knows.
    pub epoch: u64,
}

/// I live; may I go on?
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// The session secret.
    pub secret: String,
}

/// The controller's word on a running command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewAnswer {
    /// Go on or end.
    pub word: Word,
    /// Highest epoch that the controller knows; init takes no word of a lower one than it has seen.
    pub epoch: u64,
}

/// Go on or end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Word {
    /// The lease is renewed.
    Renew,
    /// End everything now.
    Stop,
}

/// How long the controller holds a renewal before it answers, for a lease.
#[must_use]
pub fn hold_millis(lease_millis: u64) -> u64 {
    (lease_millis / 6).max(50)
}
