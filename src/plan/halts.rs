//! What to do with a halt: it latches its matches as killed, counts them, and goes by itself when it may.

use crate::api::agent::AgentStatus;
use crate::api::condition;
use crate::api::halt::{HaltRelease, HaltSpec, HaltStatus};
use crate::plan::fleet::HaltInForce;
use crate::plan::status::ending;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// What to store and do for one halt.
#[must_use]
#[derive(Debug, Clone, PartialEq)]
pub struct HaltPlan {
    /// The status to store.
    pub status: HaltStatus,
    /// Put our finalizer on it, so that it cannot go before every match is latched.
    pub add_finalizer: bool,
    /// Take our finalizer off: every match is latched and somebody wants it gone.
    pub remove_finalizer: bool,
    /// Delete it: its work is done and it is to go by itself.
    pub delete: bool,
}

/// What a halt's record says beyond its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HaltFacts {
    /// Whether our finalizer is on it.
    pub has_finalizer: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// Returns what to do with a halt. `matches` are the statuses of all agents that it matches.
pub fn plan_halt(spec: &HaltSpec, stored: &HaltStatus, facts: HaltFacts, matches: &[AgentStatus], now: Timestamp) -> HaltPlan {
    let pending = matches.iter().filter(|status| ending(status).is_none()).count();
    let killed = matches.iter().filter(|status| condition::is_true(&status.conditions, condition::KILLED)).count();
    let mut status = stored.clone();
    status.engaged_at.get_or_insert(MicroTime(now));
    // Agents that were latched may be deleted meanwhile: the count of the killed never shrinks.
    status.killed = status.killed.max(u32::try_from(killed).unwrap_or(u32::MAX));
    status.pending = u32::try_from(pending).unwrap_or(u32::MAX);
    condition::set(&mut status.conditions, "Engaged", true, "Met", "nothing that matches starts", now);
    let done = pending == 0;
    let text = if done { "every match is latched as killed" } else { "waits for matches to be latched as killed" };
    condition::set(&mut status.conditions, "Done", done, if done { "Met" } else { "Pending" }, text, now);
    HaltPlan {
        add_finalizer: !facts.has_finalizer && !facts.deleting,
        remove_finalizer: facts.has_finalizer && facts.deleting && done,
        delete: !facts.deleting && facts.has_finalizer && done && spec.release.unwrap_or_default() == HaltRelease::WhenDone,
        status,
    }
}

/// What the fleet needs of a halt. `matchExpressions` are not evaluated: a halt that uses them stops everything in its namespace, for a
/// halt that is understood only in part must not stop too little.
#[must_use]
pub fn in_force(name: &str, spec: &HaltSpec) -> HaltInForce {
    let labels = spec.selector.as_ref().filter(|selector| selector.match_expressions.as_ref().is_none_or(Vec::is_empty));
    HaltInForce {
        name: name.to_owned(),
        namespace: spec.namespace.clone(),
        match_labels: labels.and_then(|selector| selector.match_labels.clone()).unwrap_or_default(),
        reason: spec.reason.clone().unwrap_or_else(|| "no reason given".to_owned()),
    }
}
