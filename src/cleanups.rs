//! Telling of what was cleaned up that belonged to nobody: containers, control groups, mounts and folders that a crash, or another start, has
//! left behind. Whoever removes such a thing tells once, after it was removed; the audit log keeps it and tells it on as an event.

use std::fmt;
use std::sync::Arc;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// A container with our labels and without a run.
    Container,
    /// A control group without a run.
    Group,
    /// A mount that nobody uses.
    Mount,
    /// A folder that was half made, half removed or of nobody.
    Folder,
    /// A file in a repository that a killed `git` or writer left there: a lock of a ref, a half-written object.
    RepositoryFile,
    /// A sandbox whose agent has no record; it was stopped before.
    Sandbox,
    /// A tree whose agent has no record.
    Tree,
}

impl Stray {
    /// Reason of the event.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Container => "StrayContainerRemoved",
            Self::Group => "StrayControlGroupRemoved",
            Self::Mount => "StrayMountRemoved",
            Self::Folder => "StrayFolderRemoved",
            Self::RepositoryFile => "StrayRepositoryFileRemoved",
            Self::Sandbox => "OrphanSandboxRemoved",
            Self::Tree => "OrphanTreeRemoved",
        }
    }
}

type Told = dyn Fn(Stray, &str) + Send + Sync;

/// Where it is told.
#[derive(Clone)]
pub struct Cleanups(Arc<Told>);

impl Cleanups {
    /// Told what was removed, and which one.
    #[must_use]
    pub fn new(told: impl Fn(Stray, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }

    /// Something was removed.
    pub fn tell(&self, stray: Stray, text: &str) {
        (self.0)(stray, text);
    }
}

/// Tells nobody.
impl Default for Cleanups {
    fn default() -> Self {
        Self::new(|_, _| ())
    }
}

impl fmt::Debug for Cleanups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cleanups")
    }
}
