//! Asks the plan what it would say next, without another look: `plan` is pure, so the answer costs no I/O.
//!
//! Two questions at the end of a pass. Does what was just stored open another step? Then the record comes back at once, else it waits.
//! And whose end would change nothing? An ended sandbox is taken away while the gates run; that it is gone at last concerns nobody, so
//! that end wakes nobody. The effect is modelled as it ends well (`after`); a failure always wakes, and whatever else changes
//! meanwhile makes a pass of its own, which asks anew.

use crate::plan::action::{Action, ActionId};
use crate::plan::fleet::Permit;
use crate::plan::observed::{Look, Observed, SandboxSeen, SandboxState};
use crate::plan::{Desired, Plan, plan};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeSet;

/// What the plan would say next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Foresight {
    /// The stored status opens another step: come back at once.
    pub opens_more: bool,
    /// Effects under way whose good end would change nothing.
    pub quiet: BTreeSet<ActionId>,
}

/// Looks ahead from a plan that was carried out: `desired` has the stored status, `observed` is what the plan was made of.
#[must_use]
pub fn foresee(desired: &Desired<'_>, observed: &Observed, permit: &Permit, decided: &Plan, now: Timestamp) -> Foresight {
    let present = carried_out(observed, decided);
    let same = |observed: &Observed| {
        let next = plan(desired, observed, permit, now);
        next.status == *desired.status && next.actions.is_empty()
    };
    if !same(&present) {
        return Foresight { opens_more: true, quiet: BTreeSet::new() };
    }
    let candidates: BTreeSet<ActionId> = present.in_flight.iter().filter(|id| can_be_quiet(&id.0)).cloned().collect();
    let all_ended = candidates.iter().fold(present.clone(), |seen, id| after(seen, id, now));
    // Each alone and all together: two ends of which either changes nothing may change something as a pair.
    let quiet = same(&all_ended) && candidates.iter().all(|id| same(&after(present.clone(), id, now)));
    Foresight { opens_more: false, quiet: if quiet { candidates } else { BTreeSet::new() } }
}

/// What would be observed now: the outcomes that were taken in are gone, what was started is in flight.
fn carried_out(observed: &Observed, decided: &Plan) -> Observed {
    let mut seen = observed.clone();
    seen.outcomes.retain(|id, _| !decided.taken.contains(id));
    for action in decided.actions.iter().filter(|action| action.is_blocking()) {
        seen.outcomes.remove(&action.id());
        seen.in_flight.insert(action.id());
    }
    seen
}

/// Whether everything that the effect brings can be seen by looking; of the others the outcome itself is awaited.
fn can_be_quiet(action: &Action) -> bool {
    match action {
        Action::EnsureSandbox { .. } | Action::RemoveSandbox { .. } => true,
        Action::AddFinalizer
        | Action::Resolve
        | Action::StopSandbox { .. }
        | Action::TakeSnapshot { .. }
        | Action::Integrate { .. }
        | Action::Push { .. }
        | Action::Rescue { .. }
        | Action::RemoveWorkspace
        | Action::Archive
        | Action::RemoveFinalizer
        | Action::DeleteRecord => false,
    }
}

/// What would be observed once the effect has ended well.
fn after(mut seen: Observed, id: &ActionId, now: Timestamp) -> Observed {
    seen.in_flight.remove(id);
    if let Look::Seen(sandboxes) = &mut seen.sandboxes {
        match &id.0 {
            Action::RemoveSandbox { run } => sandboxes.retain(|seen| seen.run != *run),
            Action::EnsureSandbox { run, .. }
                if !sandboxes.iter().any(|seen| seen.run == *run && seen.state != SandboxState::Preparing) =>
            {
                sandboxes.retain(|seen| seen.run != *run);
                let state = SandboxState::Running { since: now, last_sign_at: now, progress: None };
                let (driver, id, isolation) = Default::default();
                sandboxes.push(SandboxSeen { run: run.clone(), driver, id, isolation, state, doing: None });
            }
            _ => {}
        }
    }
    seen
}
