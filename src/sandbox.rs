//! `trait Sandbox`: where an agent or a gate runs. One contract, several drivers (`sandbox/process.rs` is the first).
//!
//! `ensure` makes a sandbox and grants its start; `observe` looks; `stop` is SIGKILL and a look that nothing is left; `remove` takes
//! the rest away. All are idempotent and addressed by `RunId`. A sandbox outlives the controller: after a restart `observe` finds it
//! again (adoption), and its lease is renewed as if nothing had been. Every run's folder carries the uid, attempt and epoch.
//! One contract suite (`tests/it/contracts/sandbox.rs`) runs on every driver.

pub mod docker;
pub mod folder;
pub mod init_binary;
pub mod kill;
pub mod limits;
pub mod link;
pub mod logs;
pub mod process;

use crate::api::agent::Driver;
use crate::api::names::{Epoch, RunId, Uid};
use crate::api::validate::Limits;
use crate::plan::observed::SandboxSeen;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a driver needs to make one sandbox. Paths are the controller's.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Which run.
    pub run: RunId,
    /// Leader epoch that decided it.
    pub epoch: Epoch,
    /// Where it runs; `Auto`: where this controller runs what asks for nothing else.
    pub driver: Driver,
    /// Container image; `None`: the configured one. The process driver has none.
    pub image: Option<String>,
    /// Runtime of the container engine; `None`: its default. The process driver has none.
    pub runtime_class: Option<String>,
    /// `namespace/name` of the agent, for people and labels.
    pub agent: String,
    /// Folder mounted read-write at `/workspace`; also the working directory.
    pub tree: PathBuf,
    /// Folder mounted read-write as HOME and kept between attempts; `None`: an empty one that is thrown away (gates).
    pub home: Option<PathBuf>,
    /// Object folder of the base repository, mounted read-only at `/mosaic/base/objects` (alternate of the agent's scratch `.git`).
    pub base_objects: Option<PathBuf>,
    /// Content of `/mosaic/task.json`; `None` for gates.
    pub task: Option<Vec<u8>>,
    /// Program and arguments; no shell is added.
    pub args: Vec<String>,
    /// Environment beyond the driver's own (HOME, PATH, TMPDIR, LANG, …).
    pub env: BTreeMap<String, String>,
    /// init ends everything after this time (gates); `None`: the controller watches.
    pub deadline: Option<Duration>,
    /// Limits.
    pub limits: Limits,
}

/// What a driver could not do.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The host lacks something that isolation needs; the text says which sysctl, package or setting would help.
    #[error("{0}")]
    Unsupported(String),
    /// A newer attempt or epoch was seen.
    #[error("refused: {0}")]
    Fenced(String),
    /// The sandbox was signalled, but that everything in it is gone could not be seen.
    #[error("sent SIGKILL to {run}, but could not see it gone: {why}")]
    Unverified {
        /// Which run.
        run: RunId,
        /// What was seen or failed.
        why: String,
    },
    /// Anything else.
    #[error("failed to {what} sandbox {run}")]
    Failed {
        /// Verb.
        what: &'static str,
        /// Which run.
        run: RunId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Could not look.
    #[error("failed to look at the sandboxes: {0}")]
    CannotObserve(String),
}

/// Where an agent or a gate runs.
pub trait Sandbox: Send + Sync {
    /// Makes the sandbox and grants its start; returns once init has its grant and executes. Idempotent by `RunId`: a second call for a
    /// run that exists, running or ended, changes nothing.
    /// # Errors
    /// `Fenced` when a newer attempt of the same uid and role, or a higher epoch, was seen; `Unsupported` when the host cannot.
    fn ensure(&self, spec: RunSpec) -> BoxFuture<'_, Result<(), SandboxError>>;

    /// Looks at all sandboxes of one agent, or (`None`) of this installation.
    /// # Errors
    /// Could not look; the caller must take nothing for absent.
    fn observe<'a>(&'a self, uid: Option<&'a Uid>) -> BoxFuture<'a, Result<Vec<SandboxSeen>, SandboxError>>;

    /// SIGKILLs everything in it and looks that it is gone. `Ok` means seen gone. Idempotent; a run that never existed is gone.
    fn stop<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>>;

    /// Removes an ended sandbox's folder and mounts; its log moves to the agent's logs. Refuses while anything of it runs.
    fn remove<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>>;
}
