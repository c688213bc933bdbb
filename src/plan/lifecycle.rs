//! Next actions while the agent should exist: admit -> run -> snapshot -> integrate -> gates -> push -> clean up.
//!
//! Each step acts only on stored facts or on what is observed now; what it starts is seen in a later pass. `live` walks the steps in
//! order and stops at the first that is not done.

use crate::api::agent::{AgentStatus, GateStatus, ProgressStatus, RunStatus, Verdict};
use crate::api::condition::{self, reason};
use crate::api::names::{Attempt, CommitId, GateName, Role, RunId};
use crate::api::validate::{ValidAgent, ValidRuntime};
use crate::plan::absorb::{Setback, absorb, agent_failure, begin_attempt, infrastructure_failure, rejection};
use crate::plan::action::Action;
use crate::plan::fleet::Permit;
use crate::plan::gates::{self, GatesState};
use crate::plan::observed::{EndCause, Look, Observed, RunEnd, SandboxSeen, SandboxState};
use crate::plan::retry::{ADMISSION_RECHECK, GATE_TRIES_MAX, backoff, remaining, until_retry};
use crate::plan::status::{ending, fail, last_failure};
use crate::plan::{Desired, Plan, elsewhere, teardown};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// Gates of one agent that run at once.
pub const GATES_PARALLEL_MAX: usize = 2;
/// How often the progress and idleness of a running agent are looked at when nothing else wakes it.
pub const RUNNING_RESYNC: Duration = Duration::from_secs(15);

/// What every step of the walk looks at.
struct Step<'a> {
    desired: &'a Desired<'a>,
    agent: &'a ValidAgent,
    observed: &'a Observed,
    sandboxes: &'a [SandboxSeen],
    permit: &'a Permit,
    now: Timestamp,
}

/// The record does not decode or is refused by a rule that the store could not check.
pub(super) fn undecodable(plan: &mut Plan, errors: &[String], now: Timestamp) {
    let message = errors.join("; ");
    condition::set(&mut plan.status.conditions, condition::ADMITTED, false, reason::INVALID_SPEC, &message, now);
    plan.wait(reason::INVALID_SPEC, message);
}

/// An agent that is neither deleted nor killed nor halted.
pub(super) fn live(plan: &mut Plan, desired: &Desired<'_>, agent: &ValidAgent, observed: &Observed, permit: &Permit, now: Timestamp) {
    if !desired.has_finalizer {
        plan.wait(reason::PENDING, Action::AddFinalizer.doing());
        plan.actions.push(Action::AddFinalizer);
        return;
    }
    absorb(plan, agent, observed, now);
    check_timeout(plan, agent, now);
    if ending(&plan.status).is_some() {
        return finished(plan, desired, agent, observed, now);
    }
    let Look::Seen(sandboxes) = &observed.sandboxes else {
        // Nothing can be decided on a look that failed; come back soon.
        let (Look::Unknown(why) | Look::GivenUp(why)) = &observed.sandboxes else { return };
        plan.wait(reason::CANNOT_OBSERVE, format!("could not look at the sandboxes: {why}"));
        return plan.requeue(crate::plan::TEARDOWN_RETRY);
    };
    if let Some(ahead) = sandboxes.iter().map(|seen| seen.run.attempt.0).max().filter(|ahead| *ahead > plan.status.attempt) {
        // Attempts are stored before anything of them is made: the store has forgotten, and what lives is newer than what it says.
        let known = plan.status.attempt;
        let text = format!("a sandbox of attempt {ahead} is there, but the record knows only {known}: the store is older than the sandbox");
        plan.wait(reason::CANNOT_OBSERVE, text);
        return plan.requeue(RUNNING_RESYNC);
    }
    let lives = sandboxes.iter().any(|seen| !matches!(seen.state, SandboxState::Ended(_)));
    if let (Look::GivenUp(why), false) = (&observed.workspace, lives) {
        return elsewhere::begin_again(plan, agent, observed, why, now);
    }
    let step = Step { desired, agent, observed, sandboxes, permit, now };
    if agent.suspend {
        return suspended(plan, &step);
    }
    walk(plan, &step);
    if ending(&plan.status).is_some() {
        plan.actions.clear();
        finished(plan, desired, agent, observed, now);
    } else if plan.status.between_attempts {
        teardown::clear_sandboxes(plan, observed, now);
        retry_is_due(plan, &step);
    }
}

/// The steps in order; a round that was refused begins the next one in the same pass.
fn walk(plan: &mut Plan, step: &Step<'_>) {
    for _ in 0..2 {
        if !admitted(plan, step) || !begun(plan, step) {
            return;
        }
        let attempt = plan.status.attempt;
        forget_stale(plan, step);
        if ran(plan, step) && submitted(plan, step) && gated(plan, step) {
            push(plan, step);
        }
        if plan.status.attempt == attempt || ending(&plan.status).is_some() {
            return;
        }
    }
}

fn check_timeout(plan: &mut Plan, agent: &ValidAgent, now: Timestamp) {
    let Some(started) = plan.status.started_at.as_ref() else { return };
    if ending(&plan.status).is_some() {
        return;
    }
    match remaining(started.0, agent.timeout, now) {
        Some(left) => plan.requeue(left),
        None => fail(plan, reason::TIMEOUT, format!("spec.timeout of {} s is over", agent.timeout.as_secs()), now),
    }
}

/// Clean-up of a finished agent, and the end of its time to live.
fn finished(plan: &mut Plan, desired: &Desired<'_>, agent: &ValidAgent, observed: &Observed, now: Timestamp) {
    plan.requeue_after = None;
    if !teardown::clear(plan, desired, observed, now) {
        return;
    }
    let (Some(keep), Some(ended)) = (agent.ttl_after_finished, plan.status.completed_at.as_ref()) else { return };
    match remaining(ended.0, keep, now) {
        Some(left) => plan.requeue(left),
        None => plan.actions.push(Action::DeleteRecord),
    }
}

/// Stops what runs, keeps the tree, begins nothing.
fn suspended(plan: &mut Plan, step: &Step<'_>) {
    let mine = |seen: &&SandboxSeen| matches!(seen.run.role, Role::Gate { .. });
    for seen in step.sandboxes.iter().filter(mine) {
        if let SandboxState::Ended(end) = &seen.state {
            take_gate_end(plan, seen, end, step.now);
        }
    }
    plan.requeue_after = None;
    let ran = plan.status.run.as_ref().is_some_and(|run| run.attempt == plan.status.attempt);
    let clear = teardown::clear_sandboxes(plan, step.observed, step.now);
    if plan.status.attempt > 0 && !ran {
        plan.status.between_attempts = true;
        // The agent keeps its place among the running until nothing of it runs.
        plan.status.sandbox = (!clear).then(|| plan.status.sandbox.take().unwrap_or_default());
    }
    plan.waiting
        .insert(0, crate::plan::Waiting { reason: reason::SUSPENDED.into(), message: "spec.suspend is true; the tree is kept".into() });
}

/// Whether repository, branch and gates were found. Resolves when a place is free, or when a refused record is due again.
fn admitted(plan: &mut Plan, step: &Step<'_>) -> bool {
    // A status that lost its base, or was edited, finds it again.
    let has_base = base(plan).is_some();
    if plan.status.attempt > 0 && has_base {
        return true;
    }
    if let Some(text) = not_built(step.agent) {
        condition::set(&mut plan.status.conditions, condition::ADMITTED, false, reason::NOT_SUPPORTED, &text, step.now);
        plan.wait(reason::NOT_SUPPORTED, text);
        return false;
    }
    if !permitted(plan, step) {
        return false;
    }
    let admitted = condition::get(&plan.status.conditions, condition::ADMITTED).cloned();
    if has_base && admitted.as_ref().is_some_and(|c| c.status == "True") {
        return true;
    }
    if let (Some(refusal), Some(failed)) = (admitted.filter(|c| c.status != "True"), plan.status.last_failure_at.as_ref())
        && let Some(left) = until_retry(failed.0, ADMISSION_RECHECK, step.now)
    {
        plan.wait(&refusal.reason, refusal.message);
        plan.requeue(left);
        return false;
    }
    if retry_is_due(plan, step) {
        plan.act(Action::Resolve, step.observed, step.now, reason::RESOLVING);
    }
    false
}

/// What the spec asks for that this version cannot do yet, as one text.
#[must_use]
pub fn not_built(agent: &ValidAgent) -> Option<String> {
    let runtime = match &agent.runtime {
        ValidRuntime::Command { .. } => None,
        ValidRuntime::NotBuilt(text) => Some(text.clone()),
    };
    let all: Vec<String> = runtime.into_iter().chain(agent.not_built.iter().cloned()).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Whether the fleet lets the agent begin; if not, says why.
fn permitted(plan: &mut Plan, step: &Step<'_>) -> bool {
    match step.permit {
        Permit::Granted => true,
        Permit::Waiting { reason, message, refused } => {
            if *refused {
                condition::set(&mut plan.status.conditions, condition::ADMITTED, false, reason, message, step.now);
            }
            plan.wait(reason, message.clone());
            false
        }
        Permit::Halted { message, .. } => {
            plan.wait(reason::HALTED, message.clone());
            false
        }
    }
}

/// Whether an attempt is under way; begins one when the backoff is over and the fleet permits.
fn begun(plan: &mut Plan, step: &Step<'_>) -> bool {
    if plan.status.attempt > 0 && !plan.status.between_attempts {
        return true;
    }
    // A record that was refused until this very pass has no place yet: it goes through the queue like any other.
    let was_refused = condition::get(&step.desired.status.conditions, condition::ADMITTED).is_some_and(|c| c.status == "False");
    if was_refused {
        plan.wait(reason::QUEUED, "admitted; goes to the queue");
        return false;
    }
    if plan.status.between_attempts {
        if !clear_of_sandboxes(plan, step) {
            return false;
        }
        // With the last sandbox the place goes back, and the next attempt waits for its turn like everybody.
        if plan.status.sandbox.take().is_some() {
            plan.wait(reason::QUEUED, "goes back to the queue");
            return false;
        }
        if !retry_is_due(plan, step) || !permitted(plan, step) {
            return false;
        }
    }
    begin_attempt(&mut plan.status, step.now);
    true
}

/// Between attempts: what still runs is stopped, what ended is removed, before the next attempt gets a number.
fn clear_of_sandboxes(plan: &mut Plan, step: &Step<'_>) -> bool {
    teardown::clear_sandboxes(plan, step.observed, step.now)
}

/// Whether the backoff after the last failure is over.
fn retry_is_due(plan: &mut Plan, step: &Step<'_>) -> bool {
    let Some(failed) = plan.status.last_failure_at.as_ref() else { return true };
    let failures = plan.status.counts.agent_failures + plan.status.counts.infrastructure;
    let wait = backoff(step.desired.uid, failures, step.agent.backoff_initial, step.agent.backoff_max);
    let Some(left) = until_retry(failed.0, wait, step.now) else { return true };
    let cause = last_failure(&plan.status).map(|cause| format!(": {cause}")).unwrap_or_default();
    plan.wait(reason::BACKOFF, format!("waits {} s after failure {failures} before it tries again{cause}", wait.as_secs()));
    plan.requeue(left);
    false
}

/// Stops and removes sandboxes of earlier attempts, and of gates on commits that nobody asks about any more.
fn forget_stale(plan: &mut Plan, step: &Step<'_>) {
    for seen in step.sandboxes.iter().filter(|seen| !is_current(&plan.status, &seen.run)).collect::<Vec<_>>() {
        let action = match seen.state {
            SandboxState::Preparing | SandboxState::Running { .. } => Action::StopSandbox { run: seen.run.clone() },
            SandboxState::Ended(_) => Action::RemoveSandbox { run: seen.run.clone() },
        };
        plan.act(action, step.observed, step.now, reason::CLEANING_UP);
    }
}

fn is_current(status: &AgentStatus, run: &RunId) -> bool {
    let head = status.workspace.as_ref().and_then(|w| w.head_sha.as_deref());
    let ran = status.run.as_ref().is_some_and(|of| of.attempt == status.attempt);
    match &run.role {
        Role::Agent => run.attempt.0 == status.attempt && !ran,
        Role::Gate { sha, .. } => run.attempt.0 == status.attempt && head == Some(sha.as_str()),
    }
}

/// Whether the agent of this attempt has run to a good end.
fn ran(plan: &mut Plan, step: &Step<'_>) -> bool {
    let attempt = Attempt(plan.status.attempt);
    if plan.status.run.as_ref().is_some_and(|run| run.attempt == attempt.0) {
        return true;
    }
    let run = RunId { uid: step.desired.uid.clone(), attempt, role: Role::Agent };
    match step.sandboxes.iter().find(|seen| seen.run == run) {
        None => start(plan, step, run),
        Some(seen) => {
            take_worktree(plan, step);
            match &seen.state {
                SandboxState::Preparing if !retry_is_due(plan, step) => {}
                SandboxState::Preparing => {
                    plan.act(ensure_agent(plan, run), step.observed, step.now, reason::STARTING_SANDBOX);
                    if let (Some(doing), Some(waiting)) = (&seen.doing, plan.waiting.last_mut()) {
                        waiting.message.clone_from(doing);
                    }
                }
                SandboxState::Running { last_sign_at, progress, .. } => running(plan, step, seen, *last_sign_at, progress.as_ref()),
                SandboxState::Ended(end) => ended(plan, step, seen, end),
            }
        }
    }
    // An end that was seen in this pass is acted on once it is stored; nothing of the agent runs any more.
    plan.status.run.as_ref().is_some_and(|run| run.attempt == attempt.0 && run.exit_code == Some(0)) && !plan.status.between_attempts
}

/// No sandbox of this attempt: it was never made, or it is lost.
fn start(plan: &mut Plan, step: &Step<'_>, run: RunId) {
    if plan.status.sandbox.take().is_some() {
        plan.status.between_attempts = true;
        return infrastructure_failure(plan, reason::SANDBOX_LOST, "the sandbox is gone without a trace", step.now);
    }
    let alive = |seen: &SandboxSeen| !matches!(seen.state, SandboxState::Ended(_));
    if step.sandboxes.iter().any(alive) {
        return plan.wait(reason::CLEANING_UP, "an earlier sandbox of this agent still runs");
    }
    if retry_is_due(plan, step) {
        plan.act(ensure_agent(plan, run), step.observed, step.now, reason::STARTING_SANDBOX);
    }
}

fn ensure_agent(plan: &Plan, run: RunId) -> Action {
    let base = base(plan).expect("an admitted agent has a base");
    let content = plan.status.workspace.as_ref().and_then(|workspace| workspace.content_sha.clone());
    Action::EnsureSandbox { run, base, content: content.and_then(|sha| CommitId::new(sha).ok()) }
}

/// The commit that the agent's work starts from, once it was resolved.
fn base(plan: &Plan) -> Option<CommitId> {
    plan.status.workspace.as_ref()?.base_sha.as_ref().and_then(|sha| CommitId::new(sha.clone()).ok())
}

fn take_worktree(plan: &mut Plan, step: &Step<'_>) {
    if let (Look::Seen(Some(seen)), Some(workspace)) = (&step.observed.workspace, plan.status.workspace.as_mut()) {
        workspace.worktree = Some(seen.worktree.clone());
    }
}

fn running(plan: &mut Plan, step: &Step<'_>, seen: &SandboxSeen, sign: Timestamp, progress: Option<&(Option<f64>, Option<String>)>) {
    plan.status.sandbox = Some(seen.status());
    if let Some((fraction, message)) = progress {
        plan.status.progress = Some(ProgressStatus { fraction: *fraction, message: message.clone() });
    }
    match remaining(sign, step.agent.idle_timeout, step.now) {
        Some(left) => {
            match &seen.doing {
                Some(doubt) => plan.wait(reason::CANNOT_OBSERVE, doubt.clone()),
                None => plan.wait(reason::AGENT_RUNNING, "the agent runs"),
            }
            plan.requeue(left.min(RUNNING_RESYNC));
        }
        None => {
            let text = format!("no output or progress for {} s (spec.idleTimeout)", step.agent.idle_timeout.as_secs());
            agent_failure(plan, step.agent, Setback { why: reason::IDLE_TIMEOUT, kind: "agent", summary: &text, details: None }, step.now);
            plan.act(Action::StopSandbox { run: seen.run.clone() }, step.observed, step.now, reason::CLEANING_UP);
        }
    }
}

/// The agent's run has ended: takes in how.
fn ended(plan: &mut Plan, step: &Step<'_>, seen: &SandboxSeen, end: &RunEnd) {
    let (exit_code, signal) = match &end.cause {
        EndCause::Exited(code) => (Some(*code), None),
        EndCause::Signaled(signal) => (None, Some(*signal)),
        EndCause::CannotExecute(_) => (Some(127), None),
        EndCause::TimedOut
        | EndCause::LeaseExpired
        | EndCause::Stopped
        | EndCause::LimitExceeded { .. }
        | EndCause::NotStarted(_)
        | EndCause::Lost(_) => (None, None),
    };
    let result = end.result.clone().unwrap_or_default();
    let run = RunStatus {
        attempt: plan.status.attempt,
        finished_at: Some(MicroTime(step.now)),
        exit_code,
        signal,
        summary: result.summary,
        commit_message: result.commit_message,
    };
    let output = Some(end.output_tail.clone());
    let mut failed = |text: String| {
        agent_failure(
            plan,
            step.agent,
            Setback { why: reason::AGENT_FAILED, kind: "agent", summary: &text, details: output.clone() },
            step.now,
        )
    };
    match &end.cause {
        EndCause::Exited(0) => {}
        EndCause::Exited(code) => failed(format!("the agent's command ended with exit code {code}")),
        EndCause::Signaled(signal) => failed(format!("the agent's command was ended by signal {signal}")),
        EndCause::CannotExecute(why) => failed(format!("the agent's command could not be executed: {why}")),
        EndCause::LimitExceeded { limit, message } => {
            let text = format!("the agent exceeded its {} limit: {message}", limit.as_str());
            agent_failure(
                plan,
                step.agent,
                Setback { why: reason::LIMIT_EXCEEDED, kind: "agent", summary: &text, details: output },
                step.now,
            );
        }
        EndCause::LeaseExpired => return again(plan, step, reason::LEASE_EXPIRED, "the sandbox lost its lease"),
        EndCause::NotStarted(why) => return again(plan, step, reason::SANDBOX_FAILED, why),
        EndCause::Lost(why) => return again(plan, step, reason::SANDBOX_LOST, why),
        EndCause::TimedOut | EndCause::Stopped => {
            // Ended by us, after a suspend that was lifted again: nobody failed.
            plan.status.between_attempts = true;
            plan.status.sandbox = None;
            return plan.wait(reason::CLEANING_UP, "the attempt was stopped; the next one begins");
        }
    }
    if plan.status.between_attempts && ending(&plan.status).is_none() {
        plan.status.sandbox = None;
    } else {
        plan.status.sandbox.get_or_insert_with(|| seen.status());
    }
    plan.status.run = Some(run);
}

fn again(plan: &mut Plan, step: &Step<'_>, why: &str, message: &str) {
    plan.status.between_attempts = true;
    plan.status.sandbox = None;
    infrastructure_failure(plan, why, message, step.now);
    plan.wait(why, message);
}

/// Whether the tree has become a commit on the present base.
fn submitted(plan: &mut Plan, step: &Step<'_>) -> bool {
    let own = |seen: &&SandboxSeen| seen.run.role == Role::Agent && seen.run.attempt.0 == plan.status.attempt;
    if let Some(seen) = step.sandboxes.iter().find(own) {
        if !matches!(seen.state, SandboxState::Ended(_)) {
            // Its end is stored, and yet it lives: it is being stopped as a stale one, and nothing reads the tree until then.
            plan.wait(reason::CLEANING_UP, "the sandbox of this attempt still runs");
            return false;
        }
        plan.act(Action::RemoveSandbox { run: seen.run.clone() }, step.observed, step.now, reason::CLEANING_UP);
    }
    let attempt = Attempt(plan.status.attempt);
    let workspace = plan.status.workspace.clone().unwrap_or_default();
    let commit = |sha: &Option<String>| sha.clone().and_then(|sha| CommitId::new(sha).ok());
    if workspace.head_sha.is_some() {
        return true;
    }
    if !retry_is_due(plan, step) {
        return false;
    }
    match (commit(&workspace.candidate_sha), commit(&workspace.base_sha)) {
        (Some(candidate), _) => {
            let action = Action::Integrate { attempt, candidate, round: workspace.base_moves };
            plan.act(action, step.observed, step.now, reason::INTEGRATING);
        }
        (None, Some(base)) if matches!(step.observed.workspace, Look::Seen(Some(_))) => {
            plan.act(Action::TakeSnapshot { attempt, base }, step.observed, step.now, reason::TAKING_SNAPSHOT);
        }
        (None, _) => match &step.observed.workspace {
            Look::Unknown(why) | Look::GivenUp(why) => {
                plan.wait(reason::CANNOT_OBSERVE, format!("could not look at the tree: {why}"));
                plan.requeue(crate::plan::TEARDOWN_RETRY);
            }
            Look::Seen(_) => again(plan, step, reason::WORKSPACE_FAILED, "the tree is gone; the work of this attempt is lost"),
        },
    }
    false
}

/// Whether every required gate passed on the head commit; runs those that did not judge yet.
fn gated(plan: &mut Plan, step: &Step<'_>) -> bool {
    let ended_gates =
        step.sandboxes.iter().filter(|seen| matches!(seen.run.role, Role::Gate { .. }) && is_current(&plan.status, &seen.run));
    for seen in ended_gates.collect::<Vec<_>>() {
        if let SandboxState::Ended(end) = &seen.state {
            take_gate_end(plan, seen, end, step.now);
            plan.act(Action::RemoveSandbox { run: seen.run.clone() }, step.observed, step.now, reason::CLEANING_UP);
        }
    }
    let Some((head, base)) = head_of(&plan.status) else { return false };
    match gates::state(&plan.status, &head, &base, GATE_TRIES_MAX) {
        GatesState::Passed => {
            let text = format!("all gates passed on {head}");
            condition::set(&mut plan.status.conditions, condition::GATES_PASSED, true, reason::MET, &text, step.now);
            true
        }
        GatesState::Failed(failed) => {
            reject_by_gates(plan, step, &failed);
            false
        }
        GatesState::Broken(gate) => {
            let text = format!("gate {} could not judge: {}", gate.name, gate.evidence.unwrap_or_default());
            fail(plan, reason::GATE_ERROR, text, step.now);
            false
        }
        GatesState::Pending(runnable) if runnable.is_empty() => {
            fail(plan, reason::GATE_MISSING, "no gate can run: the set is empty or needs what it lacks", step.now);
            false
        }
        GatesState::Pending(runnable) => {
            for (gate, tries) in runnable.into_iter().take(GATES_PARALLEL_MAX) {
                run_gate(plan, step, &gate.name, tries, &head, &base);
            }
            false
        }
    }
}

fn head_of(status: &AgentStatus) -> Option<(CommitId, CommitId)> {
    let workspace = status.workspace.as_ref()?;
    let head = CommitId::new(workspace.head_sha.clone()?).ok()?;
    Some((head, CommitId::new(workspace.head_base_sha.clone()?).ok()?))
}

fn run_gate(plan: &mut Plan, step: &Step<'_>, name: &str, tries: u32, head: &CommitId, base: &CommitId) {
    let Ok(name) = GateName::new(name) else { return };
    let role = Role::Gate { name, sha: head.clone(), tries };
    let run = RunId { uid: step.desired.uid.clone(), attempt: Attempt(plan.status.attempt), role };
    let seen = step.sandboxes.iter().find(|seen| seen.run == run);
    let ensure = Action::EnsureSandbox { run, base: base.clone(), content: Some(head.clone()) };
    if seen.is_some_and(|seen| !matches!(seen.state, SandboxState::Preparing)) {
        return plan.wait(reason::GATES_RUNNING, ensure.doing());
    }
    let in_the_way = |seen: &SandboxSeen| match &seen.run.role {
        Role::Agent => !matches!(seen.state, SandboxState::Ended(_)),
        Role::Gate { sha, .. } => sha != head && !matches!(seen.state, SandboxState::Ended(_)),
    };
    if step.sandboxes.iter().any(in_the_way) {
        return plan.wait(reason::CLEANING_UP, "an earlier sandbox of this agent still runs");
    }
    if !retry_is_due(plan, step) {
        return;
    }
    plan.act(ensure, step.observed, step.now, reason::GATES_RUNNING);
}

/// Takes in the verdict of a gate's ended sandbox, unless the record has it.
fn take_gate_end(plan: &mut Plan, seen: &SandboxSeen, end: &RunEnd, now: Timestamp) {
    let Role::Gate { name, sha, tries } = &seen.run.role else { return };
    let Some((head, base)) = head_of(&plan.status).filter(|(head, _)| head == sha) else { return };
    let gates = plan.status.gate_set.as_ref().map(|set| set.gates.clone()).unwrap_or_default();
    let Some(gate) = gates.iter().find(|gate| gate.name == name.as_str()) else { return };
    let known = gates::verdict_of(&plan.status, gate, &head, &base);
    let undecided = |verdict: Verdict| matches!(verdict, Verdict::Error | Verdict::Skipped);
    if known.is_some_and(|v| !undecided(v.verdict) || v.tries > *tries) {
        return;
    }
    let (verdict, evidence) = gates::judge(end);
    let failed = verdict == Verdict::Error;
    let verdict = GateStatus {
        name: gate.name.clone(),
        verdict,
        sha: head.to_string(),
        base_sha: base.to_string(),
        definition: gate.digest.clone(),
        duration_millis: Some(end.duration_millis),
        evidence,
        tries: if undecided(verdict) { tries.saturating_add(1) } else { *tries },
    };
    gates::record(&mut plan.status, verdict);
    if failed {
        plan.status.counts.infrastructure = plan.status.counts.infrastructure.saturating_add(1);
        plan.status.last_failure_at = Some(MicroTime(now));
    }
}

fn reject_by_gates(plan: &mut Plan, step: &Step<'_>, failed: &[GateStatus]) {
    let names: Vec<&str> = failed.iter().map(|gate| gate.name.as_str()).collect();
    let summary = format!("rejected by {}", names.join(", "));
    let details: Vec<String> =
        failed.iter().map(|gate| format!("== gate {} ==\n{}", gate.name, gate.evidence.as_deref().unwrap_or_default())).collect();
    condition::set(&mut plan.status.conditions, condition::GATES_PASSED, false, reason::GATE_REJECTED, &summary, step.now);
    rejection(
        plan,
        step.agent,
        Setback { why: reason::GATE_REJECTED, kind: "gate", summary: &summary, details: Some(details.join("\n")) },
        step.now,
    );
}

/// Pushes the gated commit, once that it passed is stored.
fn push(plan: &mut Plan, step: &Step<'_>) {
    let Some((head, base)) = head_of(&plan.status) else { return };
    if !retry_is_due(plan, step) {
        return;
    }
    let base_branch = plan.status.workspace.as_ref().and_then(|w| w.base_branch.clone());
    let target_is_base = base_branch.as_deref() == Some(step.agent.target_branch.as_str());
    let recorded = plan.status.push.as_ref().map(|push| push.expected_old.clone()).unwrap_or_default();
    let expected_old = if target_is_base { Some(base.clone()) } else { CommitId::new(recorded).ok() };
    let action = Action::Push { attempt: Attempt(plan.status.attempt), head, base, expected_old };
    plan.act(action, step.observed, step.now, reason::PUSHING);
}
