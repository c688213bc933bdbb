//! (inventory, records) -> what to do with what has no record.
//!
//! Second pure function beside `plan()`: sandboxes, trees and gate trees of this installation whose agent has no record never reach
//! `plan()`. What runs is stopped first; a tree goes only when nothing of its agent runs, and its unpushed work is kept. What could not
//! be looked at is not in the inventory's place: the caller gets no inventory at all and removes nothing.

use crate::api::names::{RunId, Uid};
use crate::plan::observed::{Inventory, SandboxState};
use std::collections::BTreeSet;

/// An effect on something that has no record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrphanAction {
    /// SIGKILL a sandbox whose agent has no record.
    StopSandbox(RunId),
    /// Remove an ended sandbox whose agent has no record.
    RemoveSandbox(RunId),
    /// Keep unpushed work, then remove a tree whose agent has no record.
    RemoveWorkspace(Uid),
}

/// What the records say, for orphans.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownRecords {
    /// Uids of all records, also of those that do not decode, but of those that another place has taken over: what is left of them here is
    /// nobody's.
    pub uids: BTreeSet<Uid>,
    /// True when the store is not the one that this state folder last saw (empty or older): then nothing is removed, for the world wins
    /// over a store that has forgotten.
    pub amnesia: bool,
}

/// Returns what to stop and remove. Level-triggered: the same inventory gives the same answer.
#[must_use]
pub fn plan_orphans(inventory: &Inventory, known: &KnownRecords) -> BTreeSet<OrphanAction> {
    if known.amnesia {
        return BTreeSet::new();
    }
    let orphan = |uid: &Uid| !known.uids.contains(uid);
    let mut actions = BTreeSet::new();
    let mut busy = BTreeSet::new();
    for seen in inventory.sandboxes.iter().filter(|seen| orphan(&seen.run.uid)) {
        busy.insert(seen.run.uid.clone());
        actions.insert(match seen.state {
            SandboxState::Preparing | SandboxState::Running { .. } => OrphanAction::StopSandbox(seen.run.clone()),
            SandboxState::Ended(_) => OrphanAction::RemoveSandbox(seen.run.clone()),
        });
    }
    let trees = inventory.workspaces.iter().map(|(uid, _)| uid).chain(inventory.gate_trees.iter().map(|(uid, _)| uid));
    for uid in trees.filter(|uid| orphan(uid) && !busy.contains(*uid)) {
        actions.insert(OrphanAction::RemoveWorkspace(uid.clone()));
    }
    actions
}
