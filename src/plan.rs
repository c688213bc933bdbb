//! WHAT TO DO NEXT: `plan()` and `Plan`; no async, clock, randomness or I/O.
//!
//! `plan` takes one record, what was seen of it, what the fleet permits, and the time; it returns the status to store and the effects
//! to start once that status is stored. It is a pure function: the same facts give the same plan, so a pass can be repeated at any time,
//! by anybody, after any crash. A plan is no script: it holds only actions whose preconditions are already observed or stored.
//!
//! Flow: absorb outcomes of earlier effects into facts (`absorb`) -> decide (`lifecycle`, or `teardown` once deleted, killed or halted)
//! -> sum up for people (`status`). What the plan deliberately does not do: look, wait, or trust that an earlier plan was carried out.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod absorb;
pub mod action;
pub mod elsewhere;
pub mod fleet;
pub mod gates;
pub mod halts;
pub mod invariants;
pub mod lifecycle;
pub mod observed;
pub mod orphans;
pub mod retry;
pub mod status;
pub mod teardown;

use crate::api::agent::AgentStatus;
use crate::api::condition::{self, reason};
use crate::api::names::Uid;
use crate::api::validate::ValidAgent;
use action::{Action, ActionId};
use fleet::Permit;
use k8s_openapi::jiff::Timestamp;
use observed::{Failure, Observed};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long an effect that failed while tearing down waits before it is tried again.
pub const TEARDOWN_RETRY: Duration = Duration::from_secs(1);

/// One record as it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired<'a> {
    /// Identity.
    pub uid: &'a Uid,
    /// Generation of the spec.
    pub generation: i64,
    /// Whether our finalizer is on the record.
    pub has_finalizer: bool,
    /// How the agent was killed outside the store, if it was (`kill::latch`): whatever the record says, it never runs again.
    pub latched: Option<&'a str>,
    /// Whether the record is being deleted, and how it was asked for (`kill`, `kill-all`, `delete`).
    pub deleting: Option<&'a str>,
    /// Whether unpushed work is to be dropped instead of kept.
    pub discard: bool,
    /// The stored status.
    pub status: &'a AgentStatus,
    /// The checked spec, or why it is none. Teardown does not need it.
    pub spec: Result<&'a ValidAgent, &'a [String]>,
}

/// Why an agent that is not settled has nothing to do right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// One of `condition::reason`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What to store, and what to start after that.
#[must_use]
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The status to store before any action.
    pub status: AgentStatus,
    /// Effects to start, in order; the first error ends the pass.
    pub actions: Vec<Action>,
    /// What the agent waits for.
    pub waiting: Vec<Waiting>,
    /// When to look again although nothing happened.
    pub requeue_after: Option<Duration>,
    /// Outcomes whose facts are in `status` now; forgotten once that is stored.
    pub taken: BTreeSet<ActionId>,
}

impl Plan {
    fn new(status: AgentStatus) -> Self {
        Self { status, actions: Vec::new(), waiting: Vec::new(), requeue_after: None, taken: BTreeSet::new() }
    }

    fn wait(&mut self, reason: &str, message: impl Into<String>) {
        self.waiting.push(Waiting { reason: reason.to_owned(), message: message.into() });
    }

    fn requeue(&mut self, after: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |earlier| earlier.min(after)));
    }

    /// Starts an action unless it is in flight or has failed a moment ago; in either case the plan waits for it.
    fn act(&mut self, action: Action, observed: &Observed, now: Timestamp, waiting_for: &str) {
        let id = action.id();
        if self.actions.contains(&action) {
            return;
        }
        if observed.in_flight.contains(&id) {
            self.wait(waiting_for, action.doing());
        } else if let Some((left, failure)) = failed_recently(observed, &id, now) {
            self.wait(&failure.reason, failure.message.clone());
            self.requeue(left);
        } else {
            self.wait(waiting_for, action.doing());
            self.actions.push(action);
        }
    }
}

fn failed_recently<'a>(observed: &'a Observed, id: &ActionId, now: Timestamp) -> Option<(Duration, &'a Failure)> {
    let failure = observed.outcomes.get(id)?.as_ref().err()?;
    retry::until_retry(failure.at, TEARDOWN_RETRY, now).map(|left| (left, failure))
}

/// Returns what to store and what to start for one agent. `permit` is the fleet's answer for it (`Fleet::permit`).
///
/// # Guarantees
/// Pure. Halted, deleted, killed or latched agents start nothing. A failed look creates and destroys nothing. An agent that is not settled
/// has an action, or says in `waiting` why it has none. `invariants::check` holds for every plan.
pub fn plan(desired: &Desired<'_>, observed: &Observed, permit: &Permit, now: Timestamp) -> Plan {
    let mut plan = Plan::new(desired.status.clone());
    let killed = condition::is_true(&plan.status.conditions, condition::KILLED);
    let finished = status::ending(&plan.status).is_some();
    match (desired.deleting, permit, desired.spec) {
        (Some(how), _, _) => teardown::deleted(&mut plan, desired, observed, how, now),
        (None, _, _) if killed => teardown::killed(&mut plan, desired, observed, now),
        (None, _, _) if !finished && desired.latched.is_some() => teardown::latched(&mut plan, desired, observed, now),
        (None, Permit::Halted { by: Some(halt), message }, _) if !finished => {
            teardown::halted(&mut plan, desired, observed, halt, message, now);
        }
        (None, Permit::Halted { by: None, message }, _) if !finished => plan.wait(reason::HALTED, message.clone()),
        (None, _, Ok(agent)) => lifecycle::live(&mut plan, desired, agent, observed, permit, now),
        (None, _, Err(errors)) => lifecycle::undecodable(&mut plan, errors, now),
    }
    status::summarise(&mut plan, desired, now);
    plan
}
