//! DOING IT: `trait World` and the real one. One `match`, one arm per `Action`, no decisions.
//!
//! `observe` looks; `apply` starts. Blocking effects run in the in-flight table, keyed (uid, action): `apply` returns at once, the next
//! pass sees the action in `Observed::in_flight` and later its result in `Observed::outcomes`. A deadline abandons the wait, never the
//! ownership. An outcome is forgotten when the record shows that it was taken in; after a crash the action is simply done again.

pub mod flight;
pub mod real;
pub mod task;
pub mod waits;

use crate::api::agent::Driver;
use crate::api::names::{Epoch, Uid};
use crate::api::validate::ValidAgent;
use crate::plan::action::{ActionId, Effect};
use crate::plan::observed::{Inventory, Observed};
use crate::plan::orphans::OrphanAction;
use crate::store::Record;
use futures::future::BoxFuture;
use std::collections::BTreeSet;

/// The record that a pass is about. `agent` is `None` when the spec does not decode: teardown needs metadata only.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The record as this pass has it, read live or just written (and written again, if its status changed).
    pub record: Record,
    /// Its uid.
    pub uid: Uid,
    /// The checked agent.
    pub agent: Option<ValidAgent>,
}

/// An effect that could not be done or started.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The store refused.
    #[error("failed to write the record")]
    Store(#[source] crate::store::StoreError),
    /// A higher epoch was seen: this controller leads no longer.
    #[error("refused: epoch {mine:?} is older than {seen:?}")]
    Fenced {
        /// Epoch of the effect.
        mine: Epoch,
        /// Highest epoch seen.
        seen: Epoch,
    },
    /// Anything else; the text says what was tried on what.
    #[error("{0}")]
    Failed(String),
}

/// Looks and does.
pub trait World: Send + Sync {
    /// Where this world is: the installation whose sandboxes and trees it can look at; `None`: it sees all there are.
    fn place(&self) -> Option<&str> {
        None
    }

    /// The driver that the sandboxes of an agent's next attempt will be of; `None`: there is only one.
    fn driver_of(&self, agent: &ValidAgent) -> Option<Driver> {
        let _ = agent;
        None
    }

    /// Looks at everything that carries the agent's uid. Never fails: what could not be looked at is `Unknown`.
    fn observe<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Observed>;

    /// Does an effect, or starts it when it is blocking. Idempotent.
    fn apply<'a>(&'a self, subject: &'a Subject, effect: Effect) -> BoxFuture<'a, Result<(), EffectError>>;

    /// Effects under way whose good end would change nothing, as the pass that looked last found: they need not wake anybody. Holds
    /// until the next `observe` of the agent, which must not miss an end: what ends after that look wakes unless it is said here again.
    fn end_quietly(&self, _uid: &Uid, _effects: &BTreeSet<ActionId>) {}

    /// Forgets outcomes: the record shows what they brought.
    fn acknowledge(&self, uid: &Uid, taken: &BTreeSet<ActionId>);

    /// Breaks off what is under way for an agent that has ended, except what ends and clears it. Its end is still waited for.
    fn abandon(&self, uid: &Uid) {
        let _ = uid;
    }

    /// Whether effects are under way that should end before another one leads.
    fn is_busy(&self) -> bool {
        false
    }

    /// Forgets everything kept in memory for an agent whose record is gone.
    fn forget(&self, uid: &Uid);

    /// Everything that carries our labels. An error means "could not look": nothing is removed.
    fn inventory(&self) -> BoxFuture<'_, Result<Inventory, EffectError>>;

    /// Removes what has no record. Idempotent.
    fn apply_orphan(&self, epoch: Epoch, action: OrphanAction) -> BoxFuture<'_, Result<(), EffectError>>;
}
