//! What all drivers are told alike: where the state is, who sandboxes are, how long things may take.

use crate::cleanups::Cleanups;
use crate::kill::latch::Latch;
use crate::tools::ToolRoot;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Uid and gid of everything in a sandbox, unless configured. Not 65534: that is what unmapped ids look like.
pub const SANDBOX_UID: u32 = 61357;

/// Who everything in a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxIds {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether we are an ordinary user, whose sandboxes can have no other ids than that user's own: process sandboxes are made within a user
    /// namespace of ours then.
    pub unprivileged: bool,
}

impl SandboxIds {
    /// As root the ids that are given; else this program's own.
    #[must_use]
    pub fn of(uid_of_root: u32) -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            Self { uid: uid_of_root, gid: uid_of_root, unprivileged: false }
        } else {
            Self { uid: uid.as_raw(), gid: gid.as_raw(), unprivileged: true }
        }
    }
}

/// Settings of all drivers.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// The state folder.
    pub state: PathBuf,
    /// Id of this installation: runs of another one are left alone.
    pub installation: String,
    /// A static `mosaic-init`, see `find_init`.
    pub init: PathBuf,
    /// Uid and gid of everything inside.
    pub ids: SandboxIds,
    /// Folders of tools that every process sandbox sees, read-only (`tools::resolve`).
    pub tool_roots: Vec<ToolRoot>,
    /// Primitives of isolation (`inside::confine`) and limits (`sandbox::limits`) without which sandboxes start all the same.
    pub allow_missing: Vec<String>,
    /// Without a renewal for so long a sandbox ends itself.
    pub lease: Duration,
    /// How long `stop` looks for the end before it says that it could not see it.
    pub stop_timeout: Duration,
    /// How long `ensure` waits for the command to execute.
    pub start_timeout: Duration,
    /// Size of a run's log; older output is dropped.
    pub output_bytes_max: u64,
    /// What was killed or halted outside the store: it is granted no start.
    pub latch: Arc<Latch>,
    /// No run of an agent begins before `Drivers::ask_before_grants` was called.
    pub is_gated: bool,
    /// Told of what is swept up.
    pub cleanups: Cleanups,
}

impl SandboxConfig {
    /// The defaults: lease 30 s, stop 5 s, start 20 s, 8 MiB of output.
    pub fn new(state: impl Into<PathBuf>, installation: impl Into<String>, init: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            installation: installation.into(),
            init: init.into(),
            ids: SandboxIds::of(SANDBOX_UID),
            tool_roots: Vec::new(),
            allow_missing: Vec::new(),
            lease: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(5),
            start_timeout: Duration::from_secs(20),
            output_bytes_max: 8 * 1024 * 1024,
            latch: Arc::default(),
            is_gated: false,
            cleanups: Cleanups::default(),
        }
    }
}
