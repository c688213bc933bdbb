//! Facts -> conditions, with phase and reason as their summary for people.

use crate::api::agent::{AgentStatus, Phase, TaskState, Verdict};
use crate::api::condition::{self, reason};
use crate::plan::{Desired, Plan, gates};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// Length of the cause in a message, in bytes.
const CAUSE_BYTES_MAX: usize = 300;

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Delivered, or nothing to deliver.
    Completed,
    /// Given up.
    Failed,
    /// Killed.
    Killed,
}

/// How the agent ended, if it has. A fact: read from conditions and `completedAt`, never from the phase.
#[must_use]
pub fn ending(status: &AgentStatus) -> Option<Ending> {
    if condition::is_true(&status.conditions, condition::KILLED) {
        return Some(Ending::Killed);
    }
    status.completed_at.as_ref()?;
    let pushed = condition::get(&status.conditions, condition::PUSHED);
    let delivered = pushed.is_some_and(|c| c.status == "True" || c.reason == reason::NO_CHANGES);
    Some(if delivered { Ending::Completed } else { Ending::Failed })
}

/// What failed last, for people: between attempts the round's own words, else a gate that could not judge, else what `Pushed` says since.
pub(super) fn last_failure(status: &AgentStatus) -> Option<String> {
    if status.between_attempts {
        return status.feedback.last().map(|round| round.summary.clone());
    }
    if let Some(gate) = status.gates.iter().find(|gate| gate.verdict == Verdict::Error) {
        let words = gate.evidence.as_deref().and_then(|text| text.lines().next()).unwrap_or_default();
        return Some(format!("gate {} could not judge: {}", gate.name, gates::keep_start(words, CAUSE_BYTES_MAX)));
    }
    let pushed = condition::get(&status.conditions, condition::PUSHED).filter(|pushed| pushed.status == "False")?;
    Some(format!("{}: {}", pushed.reason, pushed.message))
}

/// Ends the agent as failed.
pub(super) fn fail(plan: &mut Plan, why: &str, message: impl Into<String>, now: Timestamp) {
    plan.status.completed_at = Some(MicroTime(now));
    plan.status.reason = Some(why.to_owned());
    plan.status.message = Some(message.into());
}

/// Ends the agent as completed: delivered, or with nothing to deliver.
pub(super) fn complete(plan: &mut Plan, why: &str, message: impl Into<String>, now: Timestamp) {
    let message = message.into();
    condition::set(&mut plan.status.conditions, condition::PUSHED, why == reason::DELIVERED, why, &message, now);
    plan.status.completed_at = Some(MicroTime(now));
    plan.status.reason = Some(why.to_owned());
    plan.status.message = Some(message);
}

/// Latches the agent as killed. What was delivered or given up before stays so.
pub(super) fn latch_killed(plan: &mut Plan, message: &str, now: Timestamp) {
    if ending(&plan.status).is_some() {
        return;
    }
    condition::set(&mut plan.status.conditions, condition::KILLED, true, reason::KILLED, message, now);
    plan.status.completed_at = Some(MicroTime(now));
    plan.status.reason = Some(reason::KILLED.to_owned());
    plan.status.message = Some(message.to_owned());
    if let Some(text) = open_push(&plan.status) {
        condition::set(&mut plan.status.conditions, condition::PUSHED, false, reason::PUSH_UNKNOWN, &text, now);
    }
}

/// What may have been under way to the remote when the agent was killed: everything that a push needs was there, and none was seen through.
/// What is learnt of it later takes this sentence's place.
fn open_push(status: &AgentStatus) -> Option<String> {
    let head = status.workspace.as_ref()?.head_sha.as_deref()?;
    let push = status.push.as_ref().filter(|push| push.sha.is_none())?;
    let (remote, target) = (&push.remote, &push.ref_name);
    condition::is_true(&status.conditions, condition::GATES_PASSED).then(|| {
        format!("a push of {head} may have been under way, and was not seen through: `git ls-remote {remote} {target}` tells what the remote has")
    })
}

/// Sets everything that follows from the facts: conditions of the present attempt, phase, task state, reason, message.
pub(super) fn summarise(plan: &mut Plan, desired: &Desired<'_>, now: Timestamp) {
    let status = &mut plan.status;
    status.observed_generation = Some(desired.generation);
    let attempt = status.attempt;
    let finished = status.run.as_ref().is_some_and(|run| run.attempt == attempt && attempt > 0);
    if attempt > 0 {
        let ready = status.sandbox.is_some() || finished;
        let text = if ready { "the sandbox was granted its start" } else { "the sandbox of this attempt does not run yet" };
        set(status, condition::SANDBOX_READY, ready, now, text);
        let laid_out = status.workspace.as_ref().is_some_and(|w| w.worktree.is_some());
        set(
            status,
            condition::WORKSPACE_READY,
            laid_out,
            now,
            if laid_out { "the tree is laid out" } else { "the tree is not laid out yet" },
        );
        let text = if finished { "the agent has ended and nothing of it runs" } else { "the agent has not ended" };
        set(status, condition::AGENT_FINISHED, finished, now, text);
    }
    status.conditions.iter_mut().for_each(|condition| condition.observed_generation = Some(desired.generation));
    let phase = phase(status);
    status.phase = Some(phase);
    status.task_state = Some(task_state(status, phase));
    if ending(status).is_none() {
        // What the agent itself waits for says more than what is swept up beside it.
        let first = plan.waiting.iter().find(|w| w.reason != reason::CLEANING_UP).or(plan.waiting.first());
        plan.status.reason = first.map(|w| w.reason.clone());
        plan.status.message = first.map(|w| w.message.clone());
    } else if !condition::is_true(&plan.status.conditions, condition::CLEANED_UP)
        && let Some(stuck) = plan.waiting.iter().find(|w| w.reason != reason::CLEANING_UP)
    {
        // How it ended stays; that something of it may still live must be told beside that.
        condition::set(&mut plan.status.conditions, condition::CLEANED_UP, false, &stuck.reason, &stuck.message, now);
    }
}

fn set(status: &mut AgentStatus, type_: &str, value: bool, now: Timestamp, message: &str) {
    condition::set(&mut status.conditions, type_, value, if value { reason::MET } else { reason::PENDING }, message, now);
}

/// The phase never goes back: a later attempt of a running agent still runs.
fn phase(status: &AgentStatus) -> Phase {
    match ending(status) {
        Some(Ending::Completed) => Phase::Completed,
        Some(Ending::Failed) => Phase::Failed,
        Some(Ending::Killed) => Phase::Killed,
        None if status.attempt == 0 => Phase::Pending,
        None if status.sandbox.is_some() || status.run.is_some() => Phase::Running,
        None => status.phase.unwrap_or_default().max(Phase::Spawning),
    }
}

fn task_state(status: &AgentStatus, phase: Phase) -> TaskState {
    match phase {
        Phase::Pending => TaskState::Pending,
        Phase::Spawning => TaskState::Assigned,
        Phase::Running => TaskState::Executing,
        Phase::Completed => TaskState::Completed,
        Phase::Failed | Phase::Killed => {
            debug_assert!(status.completed_at.is_some(), "an ended agent has an end");
            TaskState::Failed
        }
    }
}
