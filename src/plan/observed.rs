//! What was seen of one agent: `Unknown` (could not look) differs from `Seen` (looked, and this is all there is) and from `GivenUp`.

use crate::api::agent::{Driver, GateDefinition, SandboxStatus};
use crate::api::names::{Branch, CommitId, RunId, Uid};
use crate::plan::action::ActionId;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// The result of a look.
#[derive(Debug, Clone, PartialEq)]
pub enum Look<T> {
    /// Could not look; why. Creates nothing and destroys nothing.
    Unknown(String),
    /// Looked.
    Seen(T),
    /// Could not look, and it is waited for no longer: whose it is does not come back. Where it may still be.
    GivenUp(String),
}

/// Everything that was seen of one agent in this pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// All sandboxes that carry the agent's uid, whatever their attempt or role.
    pub sandboxes: Look<Vec<SandboxSeen>>,
    /// The working tree.
    pub workspace: Look<Option<WorkspaceSeen>>,
    /// Blocking effects of this agent that were started and have not ended.
    pub in_flight: BTreeSet<ActionId>,
    /// Blocking effects of this agent that have ended; kept until the record shows that their outcome was taken in.
    pub outcomes: BTreeMap<ActionId, Result<Outcome, Failure>>,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxSeen {
    /// Which run.
    pub run: RunId,
    /// Which driver.
    pub driver: Driver,
    /// The driver's id of it.
    pub id: String,
    /// What is enforced, as init reported it from inside.
    pub isolation: Vec<String>,
    /// Where it is.
    pub state: SandboxState,
    /// What goes on while it is made, where that can take long: an image is pulled. Of one that runs: why it may not any more.
    pub doing: Option<String>,
}

impl SandboxSeen {
    /// What a record says of it.
    #[must_use]
    pub fn status(&self) -> SandboxStatus {
        SandboxStatus { driver: self.driver, id: self.id.clone(), isolation: self.isolation.clone() }
    }
}

/// Where a sandbox is.
#[derive(Debug, Clone, PartialEq)]
pub enum SandboxState {
    /// Made, but nothing of the agent's has run: init waits for its grant.
    Preparing,
    /// Granted; the agent runs.
    Running {
        /// When it was granted.
        since: Timestamp,
        /// Last output or progress.
        last_sign_at: Timestamp,
        /// The agent's own word: fraction 0.0 to 1.0 and one line.
        progress: Option<(Option<f64>, Option<String>)>,
    },
    /// Nothing of it runs any more; that was looked at, not inferred.
    Ended(RunEnd),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// Why.
    pub cause: EndCause,
    /// From the grant to the end, in milliseconds; 0 if it was never granted.
    pub duration_millis: u64,
    /// The end of what it printed, cleaned of control characters, at most 8 KiB.
    pub output_tail: String,
    /// The agent's result file, if there was a valid one.
    pub result: Option<AgentResult>,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndCause {
    /// The command exited with this code.
    Exited(i32),
    /// A signal that was not ours ended the command.
    Signaled(i32),
    /// Its own deadline was over (gates).
    TimedOut,
    /// No renewal reached init for the lease time.
    LeaseExpired,
    /// We stopped it.
    Stopped,
    /// The start gate refused it, or nobody answered: the command never ran.
    NotStarted(String),
    /// The command could not be executed (not found, not executable): 127 and 126 in a shell's words.
    CannotExecute(String),
    /// A limit of the sandbox ended it.
    LimitExceeded {
        /// Which one.
        limit: Limit,
        /// What was seen, as a sentence.
        message: String,
    },
    /// It died without init's word.
    Lost(String),
}

/// A limit that ends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Memory.
    Memory,
    /// Processes and threads at once.
    Pids,
    /// Bytes on the disk.
    Disk,
    /// Files, folders and links on the disk.
    Inodes,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Pids, Self::Disk, Self::Inodes];

    /// Its name, as in `isolation`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Disk => "disk",
            Self::Inodes => "inodes",
        }
    }
}

/// The agent's `/mosaic/out/result.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentResult {
    /// What was done, or why nothing was.
    pub summary: Option<String>,
    /// Message for the commit.
    pub commit_message: Option<String>,
}

/// The working tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceSeen {
    /// Name, `agent-{agentId}-{taskId}`.
    pub worktree: String,
    /// Commit it was laid out from.
    pub base: CommitId,
    /// Commit whose content it was laid out with, when not the base.
    pub content: Option<CommitId>,
    /// True when it is complete and mounted; false after a reboot or a half-done preparation.
    pub ready: bool,
}

/// What a blocking effect brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing to tell beyond that it is done.
    Done,
    /// `Resolve`: the repository as it is.
    Resolved(Resolved),
    /// `TakeSnapshot`: the tree as a commit, and a candidate on the present base as well; `None`: that did not work out, and is `Integrate`'s.
    Snapshot(Snapshot, Option<Integrated>),
    /// `Integrate`: the candidate on the present base.
    Integrated(Integrated),
    /// `Push`: what the remote has now.
    Pushed(Pushed),
    /// `Rescue`: where unpushed work was kept; `None`: there was none.
    Rescued(Option<String>),
}

/// The repository at admission.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The remote, without credentials.
    pub remote: String,
    /// The base branch: the wished one, or the repository's default.
    pub base_branch: Branch,
    /// Tip of the base branch.
    pub base: CommitId,
    /// Present value of the target ref; `None`: absent.
    pub target: Option<CommitId>,
    /// Where the gates come from.
    pub gate_source: String,
    /// Commit of the trusted branch.
    pub trusted: CommitId,
    /// The gates that the profile and `required` ask for, dependencies included, in an order in which they may run.
    pub gates: Vec<GateDefinition>,
}

/// The tree as a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snapshot {
    /// A commit of the controller's making in the work repository.
    Candidate(CommitId),
    /// The tree equals its base.
    Unchanged,
    /// The tree cannot become a commit; one line each.
    Refused(Vec<String>),
    /// Conflict markers are still in these paths.
    Unresolved(Vec<String>),
}

/// The candidate on the present base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Integrated {
    /// The base did not move, or the merge was clean: gate and push `head`.
    Head {
        /// Commit to gate.
        head: CommitId,
        /// Base it stands on.
        base: CommitId,
    },
    /// As `Head`, but the change touches what decides the verdicts on it.
    Tampered {
        /// Commit that is refused.
        head: CommitId,
        /// Base it stands on.
        base: CommitId,
        /// Hash of what was compared with.
        definition: String,
        /// Paths and reasons, for the agent and for people.
        evidence: String,
    },
    /// The change conflicts with the present base.
    Conflict {
        /// The present base.
        base: CommitId,
        /// Commit on that base with conflict markers in the paths.
        content: CommitId,
        /// Paths in conflict.
        paths: Vec<String>,
        /// Their hunks, capped.
        hunks: String,
    },
    /// The merge is empty: the base already has all of it.
    Empty {
        /// The present base.
        base: CommitId,
    },
}

/// What the remote has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// The ref was read back and equals the commit.
    Verified(CommitId),
    /// The base branch has another tip than the gated base; nothing was pushed.
    BaseMoved(CommitId),
    /// The target ref has a value that is neither the expected old one nor ours; nothing was pushed.
    RefTaken(Option<CommitId>),
    /// The remote refused (hook, protected branch); its words.
    Rejected(String),
}

/// Why an effect did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault, which decides what comes next.
    pub class: FailureClass,
    /// One of `condition::reason`.
    pub reason: String,
    /// For people: what was tried, on what, and what to do.
    pub message: String,
    /// When it was seen.
    pub at: Timestamp,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The record asks for what cannot be: it is not admitted, and looked at again slowly.
    Invalid,
    /// The infrastructure's: tried again with backoff, from its own budget.
    Infrastructure,
}

/// Everything that carries our labels, with or without a record: input of `plan_orphans`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Sandboxes.
    pub sandboxes: Vec<SandboxSeen>,
    /// Working trees by agent uid.
    pub workspaces: Vec<(Uid, String)>,
    /// Trees of gates by agent uid, with the run they were made for.
    pub gate_trees: Vec<(Uid, String)>,
}
