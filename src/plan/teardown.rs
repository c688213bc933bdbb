//! Next actions once the agent is deleted, killed or halted; also the clean-up of a finished one. Needs metadata and status only, so that
//! a record that does not decode can be killed as well.
//!
//! Order: latch -> SIGKILL -> look that nothing is left -> keep unpushed work -> remove the tree -> history -> finalizer last.

use crate::api::agent::WorkspaceStatus;
use crate::api::condition::{self, reason};
use crate::api::names::Attempt;
use crate::plan::action::Action;
use crate::plan::observed::{Look, Observed, Outcome, Pushed, SandboxState};
use crate::plan::status::{Ending, ending, latch_killed};
use crate::plan::{Desired, Plan};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// What the condition says once everything was seen gone.
pub const SEEN_GONE: &str = "sandboxes and tree were seen gone";

/// The record is being deleted: this is the kill switch.
pub(super) fn deleted(plan: &mut Plan, desired: &Desired<'_>, observed: &Observed, how: &str, now: Timestamp) {
    latch_killed(plan, &format!("ended by {how}"), now);
    if !clear(plan, desired, observed, now) {
        return;
    }
    if desired.has_finalizer {
        plan.wait(reason::CLEANING_UP, "the record goes");
        plan.actions.push(Action::Archive);
        plan.actions.push(Action::RemoveFinalizer);
    }
}

/// The agent is latched as killed; its record stays until somebody deletes it.
pub(super) fn killed(plan: &mut Plan, desired: &Desired<'_>, observed: &Observed, now: Timestamp) {
    clear(plan, desired, observed, now);
}

/// The kill lane has killed it, and the record does not say so yet.
pub(super) fn latched(plan: &mut Plan, desired: &Desired<'_>, observed: &Observed, now: Timestamp) {
    latch_killed(plan, &format!("ended by {}", desired.latched.unwrap_or_default()), now);
    clear(plan, desired, observed, now);
}

/// A halt matches an agent that has not ended.
pub(super) fn halted(plan: &mut Plan, desired: &Desired<'_>, observed: &Observed, halt: &str, message: &str, now: Timestamp) {
    latch_killed(plan, &format!("killed by halt {halt}: {message}"), now);
    clear(plan, desired, observed, now);
}

/// Ends and removes everything of the agent. Returns true once it was seen that nothing is left.
pub(super) fn clear(plan: &mut Plan, desired: &Desired<'_>, observed: &Observed, now: Timestamp) -> bool {
    take_cleanup_outcomes(plan, observed, now);
    if !clear_sandboxes(plan, observed, now) || !clear_workspace(plan, desired, observed, now) {
        return false;
    }
    if condition::is_true(&plan.status.conditions, condition::CLEANED_UP) {
        return true;
    }
    let text = match &observed.workspace {
        Look::GivenUp(why) => format!("its sandboxes were seen gone; {why}"),
        Look::Seen(_) | Look::Unknown(_) => SEEN_GONE.to_owned(),
    };
    condition::set(&mut plan.status.conditions, condition::CLEANED_UP, true, reason::MET, &text, now);
    true
}

/// Ends and removes all sandboxes. Returns true once it was seen that there is none and none can still appear.
pub(super) fn clear_sandboxes(plan: &mut Plan, observed: &Observed, now: Timestamp) -> bool {
    let Look::Seen(sandboxes) = &observed.sandboxes else {
        cannot_observe(plan, "sandboxes", &observed.sandboxes);
        return false;
    };
    for seen in sandboxes {
        let action = match seen.state {
            SandboxState::Preparing | SandboxState::Running { .. } => Action::StopSandbox { run: seen.run.clone() },
            SandboxState::Ended(_) => Action::RemoveSandbox { run: seen.run.clone() },
        };
        plan.act(action, observed, now, reason::CLEANING_UP);
    }
    // A start that is under way may still make a sandbox: its tombstone makes that harmless, and we wait for the start to return.
    for id in &observed.in_flight {
        if let Action::EnsureSandbox { run, .. } = &id.0
            && !sandboxes.iter().any(|seen| seen.run == *run)
        {
            plan.act(Action::StopSandbox { run: run.clone() }, observed, now, reason::CLEANING_UP);
        }
    }
    if sandboxes.is_empty() && !observed.in_flight.is_empty() {
        plan.wait(reason::CLEANING_UP, "waits for effects that are under way");
    }
    sandboxes.is_empty() && observed.in_flight.is_empty()
}

fn clear_workspace(plan: &mut Plan, desired: &Desired<'_>, observed: &Observed, now: Timestamp) -> bool {
    let workspace = match &observed.workspace {
        Look::Unknown(_) => {
            cannot_observe(plan, "the tree", &observed.workspace);
            return false;
        }
        Look::GivenUp(_) => return true,
        Look::Seen(workspace) => workspace,
    };
    if workspace.is_none() {
        return true;
    }
    let delivered = ending(&plan.status) == Some(Ending::Completed);
    let rescued = plan.status.workspace.as_ref().is_some_and(|w| w.rescued);
    let action = if delivered || rescued || desired.discard {
        Action::RemoveWorkspace
    } else {
        Action::Rescue { attempt: Attempt(plan.status.attempt) }
    };
    plan.act(action, observed, now, reason::CLEANING_UP);
    false
}

/// Takes in where unpushed work was kept, and forgets effects of the clean-up that succeeded.
fn take_cleanup_outcomes(plan: &mut Plan, observed: &Observed, now: Timestamp) {
    for (id, outcome) in &observed.outcomes {
        match (&id.0, outcome) {
            (Action::Rescue { .. }, Ok(Outcome::Rescued(kept))) => {
                let workspace = plan.status.workspace.get_or_insert_with(WorkspaceStatus::default);
                workspace.rescued = true;
                workspace.rescue_ref.clone_from(kept);
                plan.taken.insert(id.clone());
            }
            // The remote had it before the end could break the push off: the record says what is there.
            (Action::Push { .. }, Ok(Outcome::Pushed(Pushed::Verified(sha)))) if ending(&plan.status) != Some(Ending::Completed) => {
                if let Some(push) = plan.status.push.as_mut() {
                    push.sha = Some(sha.to_string());
                    push.verified_at = Some(MicroTime(now));
                }
                let text = format!("the remote had {sha} before the agent was ended");
                condition::set(&mut plan.status.conditions, condition::PUSHED, false, reason::KILLED, &text, now);
                plan.taken.insert(id.clone());
            }
            (Action::Push { .. }, Ok(Outcome::Pushed(Pushed::Rejected(_) | Pushed::RefTaken(_) | Pushed::BaseMoved(_)))) => {
                let pushed = condition::get(&plan.status.conditions, condition::PUSHED);
                if pushed.is_some_and(|pushed| pushed.reason == reason::PUSH_UNKNOWN) {
                    let text = "the push that was under way came to nothing: the remote was not changed";
                    condition::set(&mut plan.status.conditions, condition::PUSHED, false, reason::KILLED, text, now);
                }
                plan.taken.insert(id.clone());
            }
            // Failures stay until their action is started again: they space the tries and say why nothing moves.
            (Action::StopSandbox { .. } | Action::RemoveSandbox { .. } | Action::RemoveWorkspace | Action::Rescue { .. }, Err(_)) => {}
            // What the agent's work has still brought is nobody's question any more.
            _ => {
                plan.taken.insert(id.clone());
            }
        }
    }
}

fn cannot_observe<T>(plan: &mut Plan, what: &str, look: &Look<T>) {
    if let Look::Unknown(why) | Look::GivenUp(why) = look {
        plan.wait(reason::CANNOT_OBSERVE, format!("could not look at {what}: {why}"));
        plan.requeue(crate::plan::TEARDOWN_RETRY);
    }
}
