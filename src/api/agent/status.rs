//! What was seen of an agent.

use super::Driver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Installation (a state folder on a host) that began the first attempt: sandbox and tree are there, and only there can they be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<String>,
    /// Which driver the sandboxes of the current attempt are made with, also where the spec says `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
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
