//! What must hold of kills: nobody else is hit, nothing is called dead that lives or may still come, nothing is let go before it was seen
//! through. That nothing killed starts anything again is looked at where things start (`on_apply`, `on_grant`, `on_ref_written`).

use super::{ending, status_of};
use crate::sim::engine::{Job, Made};
use crate::sim::truth::{CellState, Truth};
use mosaic::api::names::{RunId, Uid};
use std::collections::BTreeSet;

/// A signal was sent to a process.
pub fn on_strike(truth: &mut Truth, hit: &RunId, aimed: &RunId) {
    if hit != aimed {
        truth.violate(format!("the kill of {aimed} hit {hit}"));
    }
}

/// A run is said to be dead, and that this was seen.
pub fn on_dead_verified(truth: &mut Truth, run: &RunId) {
    if truth.cell(run).is_some_and(|cell| cell.runs() || cell.pid.is_some() && cell.state == CellState::Preparing) {
        truth.violate(format!("{run} is said to be dead, and lives"));
    }
    if truth.engine.jobs.contains(&(run.clone(), Job::Create)) {
        truth.violate(format!("{run} is said to be dead, and its create is not answered"));
    }
    // Of an engine that lies only the gate saves anybody.
    let is_there = truth.engine.vessels.get(run).is_some_and(|vessel| !vessel.lied);
    if is_there && truth.engine.jobs.contains(&(run.clone(), Job::Start)) {
        truth.violate(format!("{run} is said to be dead, and can still be started"));
    }
    if truth.latches.keys().any(|by| truth.gate(*by, run).is_none()) {
        truth.violate(format!("{run} is said to be dead, and would be granted its start"));
    }
}

/// An agent is said to be dead; `there` was there when it was killed.
pub fn on_receipt(truth: &mut Truth, uid: &Uid, there: &BTreeSet<RunId>) {
    let lives = |run: &&RunId| run.uid == *uid && truth.cell(run).is_some_and(|cell| cell.runs());
    if let Some(run) = there.iter().find(lives).cloned() {
        truth.violate(format!("{uid} is said to be dead, and {run} lives"));
    }
}

/// A halt counts in the store alone from now on: everything that it meant must be on its way out.
pub fn on_handed_over(truth: &mut Truth, name: &str) {
    for uid in truth.lane.halted.get(name).cloned().unwrap_or_default() {
        let Some(record) = truth.records.record(&uid) else { continue };
        // Who came back since is latched by its own uid.
        if truth.lane.restored.contains(&uid) {
            continue;
        }
        if record.metadata.deletion_timestamp.is_none() && ending(&status_of(record)).is_none() {
            truth.violate(format!("{name} was handed over, and {uid} is not being deleted"));
        }
    }
}

/// Everything has settled.
pub fn at_the_end(truth: &Truth, wrong: &mut Vec<String>) {
    for record in truth.records.map.values().filter(|record| record.kind == mosaic::store::Kind::Agent) {
        let uid = crate::sim::store::uid_of(record);
        if truth.lane.is_kept(&uid) && ending(&status_of(record)).is_none() {
            wrong.push(format!("{uid} was killed, and its record never says so"));
        }
    }
    for (run, vessel) in &truth.engine.vessels {
        if truth.cell(run).is_none() {
            wrong.push(format!("a container of {run} is left ({:?}), and belongs to no run", vessel.made));
        } else if vessel.made == Made::Up && truth.cell(run).is_some_and(|cell| matches!(cell.state, CellState::Ended(_))) {
            wrong.push(format!("the container of {run} lives after its end"));
        }
    }
    if truth.lane.halts() > 0 || !truth.lane.kills.is_empty() {
        wrong.push(format!("{} halts are latched and {} kills under way at the end", truth.lane.halts(), truth.lane.kills.len()));
    }
}
