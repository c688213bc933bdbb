//! `Agent`: a task on a git repository. `AgentSpec` is what is wanted, `AgentStatus` what was seen.
//!
//! The text of each field becomes the description in the custom resource definition. Everything is optional where Kubernetes would
//! otherwise refuse to decode: an object that is wrong is reported on itself and blinds nobody. `api::validate` turns the raw spec
//! into a `ValidAgent` once; no later step sees a raw spec.

#![allow(clippy::duplicated_attributes, reason = "the lint reads arguments of different columns as one attribute")]

mod status;

pub use status::*;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one agent shall do, with what, and when it counts as done.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[kube(
    group = "mosaicstack.dev",
    version = "v1alpha1",
    kind = "Agent",
    plural = "agents",
    shortname = "ag",
    category = "mosaic",
    doc = "A task on a git repository: an agent works on it, gates judge the exact commit, and the controller pushes it.",
    namespaced,
    status = "AgentStatus",
    derive = "PartialEq",
    derive = "Default",
    selectable = ".spec.taskId",
    selectable = ".spec.agentType",
    selectable = ".status.phase",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.agentType"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Gates", type_ = "string", json_path = ".spec.gates.profile"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", priority = 1),
    printcolumn(name = "Repository", type_ = "string", json_path = ".spec.context.repository", priority = 1),
    printcolumn(name = "Ref", type_ = "string", json_path = ".status.push.ref", priority = 1)
)]
#[x_kube(
    validation = Rule::new("has(self.taskId) == has(oldSelf.taskId) && (!has(self.taskId) || self.taskId == oldSelf.taskId) && has(self.agentType) == has(oldSelf.agentType) && (!has(self.agentType) || self.agentType == oldSelf.agentType) && self.context == oldSelf.context && self.runtime == oldSelf.runtime && has(self.sandbox) == has(oldSelf.sandbox) && (!has(self.sandbox) || self.sandbox == oldSelf.sandbox) && has(self.gates) == has(oldSelf.gates) && (!has(self.gates) || self.gates == oldSelf.gates) && has(self.timeout) == has(oldSelf.timeout) && (!has(self.timeout) || self.timeout == oldSelf.timeout) && has(self.idleTimeout) == has(oldSelf.idleTimeout) && (!has(self.idleTimeout) || self.idleTimeout == oldSelf.idleTimeout) && has(self.maxRetries) == has(oldSelf.maxRetries) && (!has(self.maxRetries) || self.maxRetries == oldSelf.maxRetries) && has(self.backoff) == has(oldSelf.backoff) && (!has(self.backoff) || self.backoff == oldSelf.backoff) && has(self.budget) == has(oldSelf.budget) && (!has(self.budget) || self.budget == oldSelf.budget) && has(self.dependsOn) == has(oldSelf.dependsOn) && (!has(self.dependsOn) || self.dependsOn == oldSelf.dependsOn) && has(self.ttlAfterFinished) == has(oldSelf.ttlAfterFinished) && (!has(self.ttlAfterFinished) || self.ttlAfterFinished == oldSelf.ttlAfterFinished) && has(self.rerunOf) == has(oldSelf.rerunOf) && (!has(self.rerunOf) || self.rerunOf == oldSelf.rerunOf)").message("only spec.priority and spec.suspend can be changed; to run with another spec, delete this Agent and create a new one")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// The caller's id of the task. Spawning is idempotent by it within a namespace. Default: the record's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^\P{C}*$"))]
    pub task_id: Option<String>,

    /// What kind of agent this is: worker (default), reviewer or tester.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_type: Option<AgentType>,

    /// Where and on what the agent works.
    pub context: Context,

    /// What runs: exactly one of `claude`, `preset` and `command`.
    pub runtime: Runtime,

    /// Where it runs and within which limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxSpec>,

    /// Which gates must pass before anything is pushed. Default: profile `standard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<GatesSpec>,

    /// 1 to 10; 10 is the most urgent. Default 5. Can be changed at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub priority: Option<i32>,

    /// Longest time from the first start to the push, as `90s`, `30m`, `1h30m` or seconds. Default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]+(h|m|s|ms))+$|^[0-9]+$"))]
    pub timeout: Option<String>,

    /// Longest time without a sign of life (output or progress) from the agent. Default 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]+(h|m|s|ms))+$|^[0-9]+$"))]
    pub idle_timeout: Option<String>,

    /// How many agent failures and rejections together are answered by another round. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 20))]
    pub max_retries: Option<i32>,

    /// How long to wait between attempts after a failure: doubles from `initial` to `max`, with jitter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffSpec>,

    /// What the agent may use of models. Needs the model gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetSpec>,

    /// Names of agents of this namespace that must complete first. Cycles are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 63)))]
    pub depends_on: Option<Vec<String>>,

    /// How long the finished record is kept, as a duration. Default: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]+(h|m|s|ms))+$|^[0-9]+$"))]
    pub ttl_after_finished: Option<String>,

    /// True: the agent is not started, or is stopped with its tree kept. Can be changed at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Uid of a finished agent with the same task id that this one runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rerun_of: Option<String>,
}

/// What kind of agent.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum AgentType {
    /// Changes the repository.
    #[default]
    Worker,
    /// Judges a change.
    Reviewer,
    /// Writes and runs tests.
    Tester,
}

/// Where and on what the agent works.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// URL or path of the git repository: `https://…`, `ssh://…`, `file://…` or an absolute path that the operator allows.
    #[schemars(length(min = 1, max = 2048))]
    pub repository: String,
    /// Branch to start from. Default: the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub branch: Option<String>,
    /// The pieces of work, in the caller's words or ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), inner(length(max = 4096), regex(pattern = r"^[^\x00]*$")))]
    pub work_items: Option<Vec<String>>,
    /// What to do, as text for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536), regex(pattern = r"^[^\x00]*$"))]
    pub instructions: Option<String>,
    /// Names of skills to make available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), inner(length(max = 200), regex(pattern = r"^\P{C}*$")))]
    pub skills: Option<Vec<String>>,
    /// Branch to push to. Default `mosaic/<name>-<first 8 of the uid>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub target_branch: Option<String>,
}

/// What runs: exactly one of the three.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[x_kube(validation = Rule::new("[has(self.claude), has(self.preset), has(self.command)].filter(x, x).size() == 1").message("spec.runtime needs exactly one of claude, preset and command"))]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// The built-in Claude agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claude: Option<ClaudeRuntime>,
    /// A command-line agent by name: claude-code, codex, gemini, opencode or goose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Any command that keeps the agent contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandRuntime>,
}

/// The built-in Claude agent.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ClaudeRuntime {
    /// Model name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub model: Option<String>,
    /// Most turns of the tool loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_turns: Option<i32>,
}

/// A known command-line agent.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Claude Code.
    ClaudeCode,
    /// Codex CLI.
    Codex,
    /// Gemini CLI.
    Gemini,
    /// OpenCode.
    Opencode,
    /// Goose.
    Goose,
}

/// Any command that keeps the agent contract (docs/agent-contract.md).
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct CommandRuntime {
    /// Program and arguments; no shell is added.
    #[schemars(length(min = 1, max = 200), inner(length(max = 16384)))]
    pub args: Vec<String>,
    /// Further environment variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 100))]
    pub env: Option<BTreeMap<String, EnvValue>>,
}

/// Value of an environment variable, at most 32 KiB.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(transparent)]
pub struct EnvValue(#[schemars(length(max = 32768))] pub String);

/// Where the agent runs and within which limits.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// auto (default), process, docker or pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Container image; docker and pod only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500), regex(pattern = r"^[A-Za-z0-9\[][A-Za-z0-9._:/@+\[\]-]*$"))]
    pub image: Option<String>,
    /// CPU limit as `2`, `0.5` or `500m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub cpu: Option<String>,
    /// Memory limit as `512Mi` or `2Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub memory: Option<String>,
    /// Most processes and threads at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub pids: Option<i32>,
    /// Disk limit of tree and HOME together, as `2Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub disk: Option<String>,
    /// Hosts that the agent may reach through the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253)))]
    pub egress: Option<Vec<String>>,
    /// Runtime class (pod) or engine runtime (docker).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub runtime_class: Option<String>,
}

/// Kind of sandbox.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// What the controller was started with.
    #[default]
    Auto,
    /// A local process in namespaces of its own.
    Process,
    /// A Docker container.
    Docker,
    /// A Kubernetes pod.
    Pod,
}

/// Which gates must pass.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct GatesSpec {
    /// minimal (tests), standard (tests, lint; default) or strict (typecheck, lint, tests, coverage, build, review, 50 % rule).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<GateProfile>,
    /// Further gates, by name, that the trusted branch defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 63)))]
    pub required: Option<Vec<String>>,
}

/// A named set of required gates; each contains the one before.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum GateProfile {
    /// tests.
    Minimal,
    /// tests and lint.
    #[default]
    Standard,
    /// typecheck, lint, tests, coverage, build, review, 50 % rule.
    Strict,
}

/// Waiting time between attempts.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct BackoffSpec {
    /// First waiting time. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]+(h|m|s|ms))+$|^[0-9]+$"))]
    pub initial: Option<String>,
    /// Longest waiting time. Default 300s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]+(h|m|s|ms))+$|^[0-9]+$"))]
    pub max: Option<String>,
}

/// What the agent may use of models.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct BudgetSpec {
    /// Most tokens, in and out together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// Most money, in US dollars, as a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub max_cost_usd: Option<String>,
}
