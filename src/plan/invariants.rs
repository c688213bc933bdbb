//! What holds of every plan; run by tests, the simulation and debug builds.

use crate::api::condition;
use crate::api::names::{CommitId, Role};
use crate::plan::action::Action;
use crate::plan::fleet::Permit;
use crate::plan::gates::{GatesState, state};
use crate::plan::observed::{Look, Observed, SandboxState};
use crate::plan::retry::GATE_TRIES_MAX;
use crate::plan::status::ending;
use crate::plan::{Desired, Plan};

/// Returns what is wrong with a plan; empty: nothing.
#[must_use]
pub fn check(desired: &Desired<'_>, observed: &Observed, permit: &Permit, plan: &Plan) -> Vec<String> {
    let mut wrong = Vec::new();
    check_status(desired, plan, &mut wrong);
    for action in &plan.actions {
        check_action(desired, observed, permit, plan, action, &mut wrong);
    }
    let settled = ending(&plan.status).is_some() && condition::is_true(&plan.status.conditions, condition::CLEANED_UP);
    if !settled && plan.actions.is_empty() && plan.waiting.is_empty() {
        wrong.push("not settled, no action, and not a word why".to_owned());
    }
    wrong
}

/// Facts only grow: nothing that was stored is taken back.
fn check_status(desired: &Desired<'_>, plan: &Plan, wrong: &mut Vec<String>) {
    let (old, new) = (desired.status, &plan.status);
    let mut rule = |holds: bool, text: &str| {
        if !holds {
            wrong.push(text.to_owned());
        }
    };
    rule(new.attempt >= old.attempt, "the attempt went back");
    rule(new.attempt <= old.attempt.saturating_add(1), "an attempt was left out");
    rule(new.counts.agent_failures >= old.counts.agent_failures, "a count of failures went back");
    rule(new.counts.rejections >= old.counts.rejections, "a count of rejections went back");
    rule(new.counts.infrastructure >= old.counts.infrastructure, "a count of infrastructure failures went back");
    rule(old.completed_at.is_none() || new.completed_at == old.completed_at, "an end was taken back");
    let killed = |s: &crate::api::agent::AgentStatus| condition::is_true(&s.conditions, condition::KILLED);
    rule(!killed(old) || killed(new), "a kill was taken back");
    rule(old.completed_at.is_none() || ending(new) == ending(old), "an end became another one");
    rule(old.phase.is_none_or(|phase| new.phase.is_some_and(|to| to >= phase)), "the phase went back");
}

fn check_action(desired: &Desired<'_>, observed: &Observed, permit: &Permit, plan: &Plan, action: &Action, wrong: &mut Vec<String>) {
    let mut rule = |holds: bool, text: &str| {
        if !holds {
            wrong.push(format!("{}: {text}", action.name()));
        }
    };
    let ended = ending(&plan.status).is_some();
    let halted = matches!(permit, Permit::Halted { .. });
    let gone = desired.deleting.is_some() || desired.latched.is_some();
    let suspended = desired.spec.is_ok_and(|agent| agent.suspend);
    rule(!observed.in_flight.contains(&action.id()), "is in flight already");
    rule(desired.has_finalizer || !makes_something(action), "before the finalizer is on the record");
    match action {
        Action::Resolve | Action::TakeSnapshot { .. } | Action::Integrate { .. } => {
            rule(!ended && !halted && !gone, "for an agent that must do nothing more");
        }
        Action::EnsureSandbox { run, .. } => {
            rule(!ended && !halted && !suspended && !gone, "starts what must not run");
            rule(run.uid == *desired.uid, "for another agent");
            rule(run.attempt.0 == plan.status.attempt && !plan.status.between_attempts, "for another attempt");
            rule(nothing_else_lives(observed, run), "while another sandbox of the agent lives, or nobody could look");
        }
        Action::Push { head, base, .. } => {
            rule(!ended && !halted && !gone, "pushes for an agent that must do nothing more");
            rule(state(&plan.status, head, base, GATE_TRIES_MAX) == GatesState::Passed, "pushes what the gates did not pass");
            rule(is_head(plan, head, base), "pushes another commit than the head");
            rule(condition::is_true(&plan.status.conditions, condition::GATES_PASSED), "pushes before the verdict is stored");
        }
        Action::RemoveWorkspace => {
            rule(ended, "removes the tree of an agent that has not ended");
            let kept = plan.status.workspace.as_ref().is_some_and(|w| w.rescued);
            let delivered = ending(&plan.status) == Some(crate::plan::status::Ending::Completed);
            rule(kept || delivered || desired.discard, "removes work that was not kept");
            rule(no_sandbox(observed), "while a sandbox is left, or nobody could look");
        }
        Action::RemoveSandbox { run } => {
            let alive = |look: &Look<Vec<_>>| match look {
                Look::Unknown(_) | Look::GivenUp(_) => true,
                Look::Seen(all) => {
                    all.iter().any(|s: &crate::plan::observed::SandboxSeen| s.run == *run && !matches!(s.state, SandboxState::Ended(_)))
                }
            };
            rule(!alive(&observed.sandboxes), "removes what lives");
        }
        Action::RemoveFinalizer => {
            rule(desired.deleting.is_some(), "of a record that stays");
            rule(no_sandbox(observed) && observed.in_flight.is_empty(), "before everything was seen gone");
            let is_gone = matches!(observed.workspace, Look::Seen(None) | Look::GivenUp(_));
            rule(is_gone, "before the tree was seen gone, or given up");
            rule(plan.actions.last() == Some(action), "is not the last action");
        }
        Action::DeleteRecord => rule(ended, "deletes a record that has not ended"),
        Action::AddFinalizer => rule(desired.deleting.is_none(), "on a record that goes"),
        Action::StopSandbox { .. } | Action::Rescue { .. } | Action::Archive => {}
    }
}

/// Actions after which something exists that must be removed before the record goes. Ending and removing needs no finalizer: somebody
/// may have taken it off.
fn makes_something(action: &Action) -> bool {
    match action {
        Action::Resolve
        | Action::EnsureSandbox { .. }
        | Action::TakeSnapshot { .. }
        | Action::Integrate { .. }
        | Action::Push { .. }
        | Action::RemoveFinalizer => true,
        Action::AddFinalizer
        | Action::StopSandbox { .. }
        | Action::RemoveSandbox { .. }
        | Action::Rescue { .. }
        | Action::RemoveWorkspace
        | Action::Archive
        | Action::DeleteRecord => false,
    }
}

fn is_head(plan: &Plan, head: &CommitId, base: &CommitId) -> bool {
    plan.status
        .workspace
        .as_ref()
        .is_some_and(|w| w.head_sha.as_deref() == Some(head.as_str()) && w.head_base_sha.as_deref() == Some(base.as_str()))
}

fn no_sandbox(observed: &Observed) -> bool {
    matches!(&observed.sandboxes, Look::Seen(all) if all.is_empty())
}

/// One live sandbox per agent; the gates of one commit may run side by side.
fn nothing_else_lives(observed: &Observed, run: &crate::api::names::RunId) -> bool {
    let Look::Seen(all) = &observed.sandboxes else { return false };
    all.iter().filter(|seen| seen.run != *run && !matches!(seen.state, SandboxState::Ended(_))).all(|seen| {
        match (&seen.run.role, &run.role) {
            (Role::Gate { sha: a, .. }, Role::Gate { sha: b, .. }) => a == b,
            (Role::Agent, _) | (_, Role::Agent) => false,
        }
    })
}
