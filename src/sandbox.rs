//! `trait Sandbox`: where an agent or a gate runs. One contract, several drivers: `process`, `docker` and `pod`, served side by side by
//! `Drivers`.
//!
//! `ensure` makes a sandbox and grants its start; `observe` looks; `stop` is SIGKILL and a look that nothing is left; `remove` takes
//! the rest away. All are idempotent and addressed by `RunId`. A sandbox outlives the controller: after a restart `observe` finds it
//! again (adoption), and its lease is renewed as if nothing had been. Every run's folder carries the uid, attempt and epoch.
//! One contract suite (`tests/it/contracts/sandbox.rs`) runs on every driver.

mod bridge;
pub mod cgroup;
mod config;
pub mod docker;
mod drivers;
pub mod folder;
pub mod init_binary;
pub mod kill;
pub mod limits;
pub mod link;
pub mod logs;
pub mod pod;
mod process;
pub mod runs;

pub use config::{SANDBOX_UID, SandboxConfig, SandboxIds};
pub use drivers::Drivers;

use crate::api::agent::Driver;
use crate::api::condition::reason;
use crate::api::names::{Epoch, RunId, Uid};
use crate::api::validate::Limits;
use crate::plan::observed::SandboxSeen;
use crate::sandbox::docker::engine::EngineError;
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
    /// It cannot be made as it was asked for, or not now; the text says what would help.
    #[error("{message}")]
    Refused {
        /// Why.
        why: Refusal,
        /// What was tried, on what, and what to do.
        message: String,
    },
    /// The engine did not do it; unless it said no, it may still.
    #[error("failed to {what} sandbox {run}")]
    Engine {
        /// Verb.
        what: &'static str,
        /// Which run.
        run: RunId,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// The cluster did not do it; unless it said no, it may still.
    #[error("failed to {what} pod of {run}")]
    Cluster {
        /// Verb.
        what: &'static str,
        /// Which run.
        run: RunId,
        /// Whether it may still happen.
        unknown: bool,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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

impl SandboxError {
    /// Whether what was tried may still happen.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Engine { source, .. } => source.is_unknown(),
            Self::Cluster { unknown, .. } => *unknown,
            Self::Unsupported(_)
            | Self::Refused { .. }
            | Self::Fenced(_)
            | Self::Unverified { .. }
            | Self::Failed { .. }
            | Self::CannotObserve(_) => false,
        }
    }

    /// The reason of it, as it is written into records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused { why, .. } => why.reason(),
            Self::Engine { source, .. } if source.is_unknown() => reason::ENGINE_UNAVAILABLE,
            Self::Cluster { unknown: true, .. } => reason::CLUSTER_UNAVAILABLE,
            Self::Unverified { .. } => reason::REVOKED_UNVERIFIED,
            Self::Engine { .. }
            | Self::Cluster { .. }
            | Self::Unsupported(_)
            | Self::Fenced(_)
            | Self::Failed { .. }
            | Self::CannotObserve(_) => reason::SANDBOX_FAILED,
        }
    }

    /// Whether the record asks for what cannot be, so that trying again soon is of no use.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused { why, .. } if why.is_invalid())
    }
}

/// Why a sandbox was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// This controller does not serve the driver.
    DriverNotServed,
    /// No engine answers.
    EngineUnavailable,
    /// The engine does not share our files, or not under these paths.
    FilesNotShared,
    /// There is no such image, here or where it would be pulled from.
    ImageNotFound,
    /// The registry wants a credential, or refuses the one that the engine has.
    ImageRefused,
    /// The image could not be pulled.
    ImagePullFailed,
    /// The image is for another machine.
    ImagePlatform,
    /// The engine has no such runtime.
    RuntimeNotFound,
    /// Isolation or a limit is not in force.
    NotIsolated,
    /// No node of the cluster takes the pod.
    Unschedulable,
    /// The namespace's quota is used up.
    QuotaExceeded,
    /// The cluster takes no such pod: admission, rights, or what it names is not there.
    PodRefused,
}

impl Refusal {
    /// The reason, as it is written into records.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::DriverNotServed => reason::DRIVER_NOT_SERVED,
            Self::EngineUnavailable => reason::ENGINE_UNAVAILABLE,
            Self::FilesNotShared => reason::FILES_NOT_SHARED,
            Self::ImageNotFound => reason::IMAGE_NOT_FOUND,
            Self::ImageRefused => reason::IMAGE_REFUSED,
            Self::ImagePullFailed => reason::IMAGE_PULL_FAILED,
            Self::ImagePlatform => reason::IMAGE_PLATFORM,
            Self::RuntimeNotFound => reason::RUNTIME_NOT_FOUND,
            Self::NotIsolated => reason::NOT_ISOLATED,
            Self::Unschedulable => reason::UNSCHEDULABLE,
            Self::QuotaExceeded => reason::QUOTA_EXCEEDED,
            Self::PodRefused => reason::POD_REFUSED,
        }
    }

    /// Whether only another record, or another set-up, helps.
    #[must_use]
    pub fn is_invalid(self) -> bool {
        match self {
            Self::DriverNotServed | Self::ImageNotFound | Self::ImageRefused | Self::ImagePlatform | Self::RuntimeNotFound => true,
            Self::EngineUnavailable
            | Self::FilesNotShared
            | Self::ImagePullFailed
            | Self::NotIsolated
            | Self::Unschedulable
            | Self::QuotaExceeded
            | Self::PodRefused => false,
        }
    }

    /// Whether waiting may be all that it needs: a node or an image may be on its way.
    #[must_use]
    pub fn may_pass(self) -> bool {
        self == Self::Unschedulable
    }
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

    /// The driver of a new sandbox for whom asks for `wish`; `wants_image`: it names an image or a runtime.
    fn driver_of(&self, wish: Driver, wants_image: bool) -> Driver;

    /// Looks at the sandboxes of an agent that another installation has made, as far as both can reach them: pods of one cluster. `None`: it cannot.
    /// `stop` and `remove` take their runs as well.
    /// # Errors
    /// Could not look.
    fn observe_elsewhere<'a>(
        &'a self,
        uid: &'a Uid,
        installation: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<SandboxSeen>>, SandboxError>>;

    /// SIGKILLs everything in it and looks that it is gone. `Ok` means seen gone. Idempotent; a run that never existed is gone.
    fn stop<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>>;

    /// Removes an ended sandbox's folder and mounts; its log moves to the agent's logs. Refuses while anything of it runs.
    fn remove<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>>;
}
