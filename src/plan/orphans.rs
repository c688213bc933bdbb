//! (inventory, records) -> what to do with what has no record.

use crate::api::names::{RunId, Uid};

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
