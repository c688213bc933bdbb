//! `enum Action`: every effect that this program can have. Each is idempotent and addressed by agent uid, attempt and epoch.

use crate::api::names::{Attempt, CommitId, Epoch, Role, RunId, Uid};
use crate::store::Key;

/// One effect, addressed: an effector refuses an epoch lower than the highest it has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// Record it is for.
    pub key: Key,
    /// Identity of the record.
    pub uid: Uid,
    /// Leader epoch that decided it.
    pub epoch: Epoch,
    /// What to do.
    pub action: Action,
}

/// Every effect that this program can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Put our finalizer on the record, before anything is made for it.
    AddFinalizer,
    /// Fetch the repository, find the base, the target ref and the gates. Blocking.
    Resolve,
    /// Lay out the tree that the run works on, make a sandbox and grant its start. Blocking.
    EnsureSandbox {
        /// Which run.
        run: RunId,
        /// Commit that the tree starts from.
        base: CommitId,
        /// Commit whose content is laid out instead (a merge with conflict markers; for a gate the commit it judges).
        content: Option<CommitId>,
    },
    /// SIGKILL everything in the sandbox and look that it is gone. Blocking.
    StopSandbox {
        /// Which run.
        run: RunId,
    },
    /// Remove an ended sandbox: its folder, its mounts, its tree if it was a gate's; logs are kept. Blocking.
    RemoveSandbox {
        /// Which run.
        run: RunId,
    },
    /// Read the tree into one commit, and put that on the present base as `Integrate` does. Blocking.
    TakeSnapshot {
        /// Of which attempt.
        attempt: Attempt,
        /// Parent of the commit.
        base: CommitId,
    },
    /// Fetch, and merge the candidate with the base branch if that moved: again, or because it failed beside the snapshot. Blocking.
    Integrate {
        /// Of which attempt.
        attempt: Attempt,
        /// The candidate.
        candidate: CommitId,
        /// Which merge of this attempt (0: the first).
        round: u32,
    },
    /// Push the gated commit with a lease on the old value, and read the ref back. Blocking.
    Push {
        /// Of which attempt.
        attempt: Attempt,
        /// The gated commit.
        head: CommitId,
        /// The base it was gated on.
        base: CommitId,
        /// The value that the ref must have; `None`: absent.
        expected_old: Option<CommitId>,
    },
    /// Keep unpushed work under `refs/rescue` of the work repository. Blocking.
    Rescue {
        /// Of which attempt.
        attempt: Attempt,
    },
    /// Remove the working tree, HOME and feedback of the agent. Blocking.
    RemoveWorkspace,
    /// Keep the last state of the record in the history.
    Archive,
    /// Take our finalizer off; the record goes.
    RemoveFinalizer,
    /// Delete the record itself (its time to live is over).
    DeleteRecord,
}

/// Which action of one agent: the key of the in-flight table, with everything that makes two of them different work.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActionId(pub Action);

/// What makes an effect of an old leader or an old attempt harmless. Every variant names one (`Action::fence`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// The store's compare-and-set.
    CompareAndSet,
    /// A name with uid and attempt: an old effect touches only what is old.
    NameWithAttempt,
    /// The expected old value of a ref.
    ExpectedOldRef,
    /// init refuses a lower epoch; the start gate refuses what is not wanted any more.
    InitEpoch,
    /// Content-addressed: doing it again gives the same.
    SameResult,
}

impl Action {
    /// The key of this action in the in-flight table.
    #[must_use]
    pub fn id(&self) -> ActionId {
        ActionId(self.clone())
    }

    /// What fences this action.
    #[must_use]
    pub fn fence(&self) -> Fence {
        match self {
            Self::AddFinalizer | Self::RemoveFinalizer | Self::DeleteRecord => Fence::CompareAndSet,
            Self::Archive | Self::Resolve | Self::TakeSnapshot { .. } | Self::Integrate { .. } => Fence::SameResult,
            Self::StopSandbox { .. } | Self::RemoveSandbox { .. } => Fence::NameWithAttempt,
            Self::Rescue { .. } | Self::RemoveWorkspace => Fence::NameWithAttempt,
            Self::EnsureSandbox { .. } => Fence::InitEpoch,
            Self::Push { .. } => Fence::ExpectedOldRef,
        }
    }

    /// Whether the action blocks: it is started, and its end is observed in a later pass.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        match self {
            Self::AddFinalizer | Self::Archive | Self::RemoveFinalizer | Self::DeleteRecord => false,
            Self::Resolve
            | Self::EnsureSandbox { .. }
            | Self::StopSandbox { .. }
            | Self::RemoveSandbox { .. }
            | Self::TakeSnapshot { .. }
            | Self::Integrate { .. }
            | Self::Push { .. }
            | Self::Rescue { .. }
            | Self::RemoveWorkspace => true,
        }
    }

    /// Whether it begins or goes on with the agent's work: for one that has ended it is not begun, and broken off. Everything else serves the end.
    #[must_use]
    pub fn starts_something(&self) -> bool {
        match self {
            Self::Resolve | Self::EnsureSandbox { .. } | Self::TakeSnapshot { .. } | Self::Integrate { .. } | Self::Push { .. } => true,
            Self::AddFinalizer
            | Self::StopSandbox { .. }
            | Self::RemoveSandbox { .. }
            | Self::Rescue { .. }
            | Self::RemoveWorkspace
            | Self::Archive
            | Self::RemoveFinalizer
            | Self::DeleteRecord => false,
        }
    }

    /// Name for audit, metrics and traces.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::Resolve => "Resolve",
            Self::EnsureSandbox { run, .. } => match run.role {
                Role::Agent => "EnsureSandbox",
                Role::Gate { .. } => "EnsureGate",
            },
            Self::StopSandbox { .. } => "StopSandbox",
            Self::RemoveSandbox { .. } => "RemoveSandbox",
            Self::TakeSnapshot { .. } => "TakeSnapshot",
            Self::Integrate { .. } => "Integrate",
            Self::Push { .. } => "Push",
            Self::Rescue { .. } => "Rescue",
            Self::RemoveWorkspace => "RemoveWorkspace",
            Self::Archive => "Archive",
            Self::RemoveFinalizer => "RemoveFinalizer",
            Self::DeleteRecord => "DeleteRecord",
        }
    }

    /// What goes on while it runs, for people; the same in every pass, because a status is written only when it says something new.
    #[must_use]
    pub fn doing(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "making sure that its end will be seen through",
            Self::Resolve => "reading repository, branch and gates",
            Self::EnsureSandbox { run, .. } => match run.role {
                Role::Agent => "preparing the tree and starting the agent",
                // Also once they run: that they do is no news that a record would have to be written for.
                Role::Gate { .. } => "running the gates",
            },
            Self::StopSandbox { .. } => "ending what still runs",
            Self::RemoveSandbox { .. } => "removing a sandbox that has ended",
            Self::TakeSnapshot { .. } => "reading what the agent changed",
            Self::Integrate { .. } => "putting the work on the newest base",
            Self::Push { .. } => "pushing the commit that passed",
            Self::Rescue { .. } => "keeping the work that was not pushed",
            Self::RemoveWorkspace => "removing the tree",
            Self::Archive => "writing the history",
            Self::RemoveFinalizer => "letting the record go",
            Self::DeleteRecord => "removing the record",
        }
    }
}
