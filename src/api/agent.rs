//! `Agent`: a task on a git repository. `AgentSpec` is what is wanted, `AgentStatus` what was seen.
//!
//! The text of each field becomes the description in the custom resource definition. Everything is optional where Kubernetes would
//! otherwise refuse to decode: an object that is wrong is reported on itself and blinds nobody. `api::validate` turns the raw spec
//! into a `ValidAgent` once; no later step sees a raw spec.

#![allow(clippy::duplicated_attributes, reason = "the lint reads arguments of different columns as one attribute")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
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
    #[schemars(length(min = 1, max = 200))]
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
    #[schemars(length(max = 100), inner(length(max = 4096)))]
    pub work_items: Option<Vec<String>>,
    /// What to do, as text for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub instructions: Option<String>,
    /// Names of skills to make available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), inner(length(max = 200)))]
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
    #[schemars(length(max = 500))]
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

/// What was seen of the agent. Only what cannot be looked up again is kept; the rest is summary for people.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary for people; no code branches on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Summary in the words of the task queue: pending, assigned, executing, completed or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_state: Option<TaskState>,
    /// Why the agent is where it is, in one CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The current attempt; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// What went wrong so far, by kind.
    #[serde(default)]
    pub counts: Counts,
    /// When the first attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When the agent completed, failed or was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<MicroTime>,
    /// When the last failure was seen; the backoff counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_at: Option<MicroTime>,
    /// True while the next attempt waits (backoff after a failure, or suspend).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub between_attempts: bool,
    /// The sandbox of the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxStatus>,
    /// The finished run of the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunStatus>,
    /// Tree and commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceStatus>,
    /// The gates as the trusted branch defined them at admission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_set: Option<GateSetStatus>,
    /// Verdicts, by commit, base and definition; those of the last commits only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateStatus>,
    /// The independent review.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review: Option<ReviewStatus>,
    /// Where the result goes, and whether it was seen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushStatus>,
    /// What was used of models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// The agent's own word on how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// What earlier rounds were told; the last rounds only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feedback: Vec<Feedback>,
    /// Facts: Admitted, Killed, WorkspaceReady, SandboxReady, AgentFinished, GatesPassed, Pushed, CleanedUp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where an agent is, for people.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    /// Not started: waits for admission, dependencies or a free place.
    #[default]
    Pending,
    /// Workspace and sandbox are being made.
    Spawning,
    /// The agent runs, or its work is judged or pushed.
    Running,
    /// The remote ref was read back and equals the gated commit, or there was nothing to change.
    Completed,
    /// Given up; the reason says why.
    Failed,
    /// Killed; it never comes back.
    Killed,
}

/// Where a task is, for queue views.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Waits.
    #[default]
    Pending,
    /// An attempt was begun.
    Assigned,
    /// The agent runs or is judged.
    Executing,
    /// Delivered.
    Completed,
    /// Failed or killed.
    Failed,
}

/// What went wrong so far. `maxRetries` counts the first two; infrastructure has a budget of its own.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Runs that the agent itself failed.
    #[serde(default)]
    pub agent_failures: u32,
    /// Rounds refused by a gate, a merge conflict or the remote.
    #[serde(default)]
    pub rejections: u32,
    /// Failures that are not the agent's.
    #[serde(default)]
    pub infrastructure: u32,
}

/// The sandbox of the current attempt.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SandboxStatus {
    /// Which driver.
    pub driver: Driver,
    /// The driver's id of it.
    pub id: String,
    /// What is enforced, as seen from inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<String>,
}

/// A finished run.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// Attempt that ran.
    pub attempt: u32,
    /// When its end was seen; dates of the commit come from here, so that a commit made again has the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Exit code, when it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal, when one ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `summary` of the agent's result file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// `commitMessage` of the agent's result file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_message: Option<String>,
}

/// Tree and commits of the agent.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// Name of the working tree, `agent-{agentId}-{taskId}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worktree: Option<String>,
    /// Branch that the work starts from and is compared with before the push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_branch: Option<String>,
    /// Commit that the tree starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_sha: Option<String>,
    /// Commit whose content the tree is laid out with, when it is not the base itself (a merge with conflict markers).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_sha: Option<String>,
    /// Paths that had conflicts in `contentSha`; their markers must be gone from the next candidate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
    /// The commit that the controller made of the tree of the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_sha: Option<String>,
    /// The commit that is gated and pushed: the candidate, or its merge with a moved base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_sha: Option<String>,
    /// The base that `headSha` stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_base_sha: Option<String>,
    /// How often the base moved between the gates and the push of this attempt.
    #[serde(default)]
    pub base_moves: u32,
    /// Whether unpushed work was looked for, and kept if there was any, so that the tree may go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rescued: bool,
    /// Where unpushed work was kept before the tree was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue_ref: Option<String>,
}

/// The gates as the trusted branch defined them at admission.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct GateSetStatus {
    /// `.mosaic/gates.toml` or what they were detected from.
    pub source: String,
    /// Commit of the trusted branch that they were read from.
    pub trusted_sha: String,
    /// The gates that must pass, in the order in which they may run.
    pub gates: Vec<GateDefinition>,
}

/// One gate.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct GateDefinition {
    /// Name, unique in the set.
    pub name: String,
    /// Command for `sh -c` in the tree.
    pub command: String,
    /// Longest time, in seconds.
    pub timeout_seconds: u32,
    /// Gates that must pass before this one runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Hash of everything above: a verdict is for one definition.
    pub digest: String,
}

/// One verdict on one commit.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// Which gate.
    pub name: String,
    /// What it said.
    pub verdict: Verdict,
    /// Commit that was judged.
    pub sha: String,
    /// Base that the commit stands on.
    pub base_sha: String,
    /// Digest of the definition that judged.
    pub definition: String,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_millis: Option<u64>,
    /// The end of what it printed, capped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// How often its infrastructure failed on this commit.
    #[serde(default)]
    pub tries: u32,
}

/// Outcome of a gate. Only `Pass` passes.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passed.
    Pass,
    /// It judged and refused.
    Fail,
    /// It could not judge.
    Error,
    /// It did not run; the evidence says why.
    Skipped,
}

/// The independent review.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ReviewStatus {
    /// approved, rejected or error.
    pub verdict: String,
    /// 0.0 to 1.0, as a decimal number.
    pub confidence: String,
}

/// Where the result goes.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PushStatus {
    /// The remote, without credentials.
    pub remote: String,
    /// Full name of the ref.
    #[serde(rename = "ref")]
    pub ref_name: String,
    /// Value that the ref must have before the push: a commit, or empty for "absent".
    #[serde(default)]
    pub expected_old: String,
    /// Commit that was read back after the push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha: Option<String>,
    /// When it was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<MicroTime>,
}

/// What was used of models.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// Tokens read.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// Tokens read from the provider's cache.
    pub cache_read_tokens: i64,
    /// Cost in US dollars, as a decimal number.
    pub cost_usd: String,
}

/// The agent's own word on how far it is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// 0.0 to 1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// One line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What one round was told, for the next one.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Feedback {
    /// Attempt that it is about.
    pub attempt: u32,
    /// `gate`, `conflict`, `agent`, `tree` or `remote`.
    pub kind: String,
    /// One line.
    pub summary: String,
    /// Evidence, hunks or output; capped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}
