//! When a controller that stands by asks for the lease, and when the one that leads gives it up for that. The decisions are pure: the time is an argument.
//!
//! An agent belongs to the controller that has begun it: nobody else can look at its sandboxes and its tree. Who leads cannot go on with agents of
//! others, and who holds them may not while it stands by; so what has ended there, and waits, is work that would be lost. Whoever has such agents
//! wishes to lead, through the lease; whoever leads sees the wish with its next renewal and hands over. Its own sandboxes run on meanwhile, and
//! should one of its agents need it, it wishes in its turn.

use crate::api::agent::AgentStatus;
use crate::api::names::{RunId, Uid};
use crate::plan::Plan;
use crate::plan::action::Action;
use crate::plan::observed::{Look, Observed, SandboxState};
use crate::plan::status::ending;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The shortest term: who has begun to lead first passes over all agents, and controllers that alternate shall do more than take over.
pub const TERM_MIN: Duration = Duration::from_secs(15);
/// How long effects that are under way, such as a push, are let finish before the lease is handed over. What takes longer goes on all the same:
/// the agent stays this controller's, and its outcome is taken in when that leads again.
/// With the shortest term it is well below the time that an init waits for its start (`lease`): who leads next may have some under way.
pub const BUSY_MAX: Duration = Duration::from_secs(10);
/// How often a wish is repeated; one that is not lapses (`store::lease::WISH_TIME`).
pub const WISH_INTERVAL: Duration = Duration::from_secs(2);

/// How often who stands by says that it lives, so that nobody takes over what it has begun (`store::lease::PRESENCE_TIME`).
/// Each time whoever leads finds its lease changed, and renews it anew.
pub const PRESENCE_INTERVAL: Duration = Duration::from_secs(20);
/// How long that may take: who asks for the lease must not miss that it is free.
pub const PRESENCE_PATIENCE: Duration = Duration::from_secs(1);

/// Whether who does not lead asks for the lease now: `waiting` agents wait for it to lead, and it has last asked so long ago.
#[must_use]
pub fn wishes(waiting: usize, asked_ago: Option<Duration>) -> bool {
    waiting > 0 && asked_ago.is_none_or(|ago| ago >= WISH_INTERVAL)
}

/// Whether who has led for so long hands over now to one that has wished for so long.
#[must_use]
pub fn yields(led: Duration, wished: Duration, is_busy: bool) -> bool {
    let Some(due) = led.checked_sub(TERM_MIN) else { return false };
    !is_busy || due.min(wished) >= BUSY_MAX
}

/// Whether there is something to do for an agent of this controller, which stands by, that only who leads may do: by what would be planned. What
/// its record says in words does not count: who leads writes others there. Nor does what is swept up while it runs.
#[must_use]
pub fn needs_a_leader(stored: &AgentStatus, observed: &Observed, decided: &Plan) -> bool {
    let seen = match &observed.sandboxes {
        Look::Seen(sandboxes) => sandboxes.as_slice(),
        Look::Unknown(_) | Look::GivenUp(_) => &[],
    };
    // A start waits for a leader to let it begin, once it is not something else that it waits for: a node, an image.
    let waits_otherwise = |wanted: &RunId| seen.iter().any(|seen| seen.run == *wanted && seen.doing.is_some());
    let starts = observed.in_flight.iter().any(|id| matches!(&id.0, Action::EnsureSandbox { run, .. } if !waits_otherwise(run)));
    let urges = |action: &Action| action.starts_something() || matches!(action, Action::StopSandbox { .. });
    let is_seen = matches!(observed.sandboxes, Look::Seen(_));
    let rests = is_seen && seen.iter().all(|seen| matches!(seen.state, SandboxState::Ended(_)));
    starts || decided.actions.iter().any(urges) || rests && (!decided.actions.is_empty() || facts(stored) != facts(&decided.status))
}

/// What a status says beside its summary for people.
fn facts(status: &AgentStatus) -> (bool, AgentStatus) {
    let summary = AgentStatus::default();
    let facts = AgentStatus {
        observed_generation: summary.observed_generation,
        phase: summary.phase,
        task_state: summary.task_state,
        reason: summary.reason,
        message: summary.message,
        progress: summary.progress,
        conditions: summary.conditions,
        ..status.clone()
    };
    (ending(status).is_some(), facts)
}

/// Agents of this controller that wait for it to lead, as its passes have found while it stood by.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<BTreeSet<Uid>>);

impl Waiting {
    /// Notes whether an agent waits.
    pub fn note(&self, uid: &Uid, waits: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            all.insert(uid.clone());
        } else {
            all.remove(uid);
        }
    }

    /// How many there are; what is not known any more counts no longer, and is forgotten.
    #[must_use]
    pub fn count(&self, is_known: impl Fn(&Uid) -> bool) -> usize {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(is_known);
        all.len()
    }
}
