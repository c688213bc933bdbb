//! Raw record -> `ValidAgent`, once. Later steps never see a raw spec.

use crate::api::agent::{AgentStatus, AgentType, Driver, GateProfile};
use crate::api::names::{AgentName, Branch, GateName, Namespace, Uid};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// What runs, checked.
#[derive(Debug, Clone, PartialEq)]
pub enum ValidRuntime {
    /// Any command that keeps the agent contract.
    Command {
        /// Program and arguments.
        args: Vec<String>,
        /// Further environment.
        env: BTreeMap<String, String>,
    },
    /// A runtime that this version knows by name but cannot run yet; admission refuses it with this text.
    NotBuilt(String),
}

/// Limits of one sandbox. Units are in the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// CPU in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub pids_max: u32,
    /// Tree and HOME together, in bytes.
    pub disk_bytes: u64,
}

/// An agent whose every field was checked and parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidAgent {
    /// Namespace.
    pub namespace: Namespace,
    /// Name.
    pub name: AgentName,
    /// Identity.
    pub uid: Uid,
    /// Generation of the spec.
    pub generation: i64,
    /// When the record was created.
    pub created_at: Timestamp,
    /// Whether our finalizer is on the record.
    pub has_finalizer: bool,
    /// The caller's id of the task.
    pub task_id: String,
    /// What kind of agent.
    pub agent_type: AgentType,
    /// URL or path of the repository.
    pub repository: String,
    /// Base branch; `None`: the repository's default branch.
    pub branch: Option<Branch>,
    /// Branch to push to.
    pub target_branch: Branch,
    /// Pieces of work.
    pub work_items: Vec<String>,
    /// What to do.
    pub instructions: String,
    /// Skills.
    pub skills: Vec<String>,
    /// What runs.
    pub runtime: ValidRuntime,
    /// Wished driver.
    pub driver: Driver,
    /// Wished image.
    pub image: Option<String>,
    /// Limits.
    pub limits: Limits,
    /// Things the spec asks for that are not built yet (egress, budget, runtimeClass, …), each as a sentence.
    pub not_built: Vec<String>,
    /// Gate profile.
    pub profile: GateProfile,
    /// Further required gates.
    pub required_gates: Vec<GateName>,
    /// 1 to 10, 10 is most urgent.
    pub priority: u8,
    /// From the first start to the push.
    pub timeout: Duration,
    /// Without a sign of life.
    pub idle_timeout: Duration,
    /// Agent failures and rejections together that are answered by another round.
    pub retries_max: u32,
    /// First waiting time after a failure.
    pub backoff_initial: Duration,
    /// Longest waiting time after a failure.
    pub backoff_max: Duration,
    /// Agents of this namespace that must complete first.
    pub depends_on: Vec<AgentName>,
    /// How long the finished record is kept.
    pub ttl_after_finished: Option<Duration>,
    /// Not started, or stopped with its tree kept.
    pub suspend: bool,
    /// What was seen so far.
    pub status: AgentStatus,
}

impl ValidAgent {
    /// Name of the working tree, `agent-{agentId}-{taskId}`.
    #[must_use]
    pub fn worktree_name(&self) -> String {
        format!("agent-{}-{}", self.uid, crate::api::names::slug(&self.task_id, 40))
    }
}
