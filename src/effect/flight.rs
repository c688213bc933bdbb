//! The in-flight table: blocking effects that were started, and outcomes that nobody has taken in yet.
//!
//! It is memory of this process only. After a crash nothing in it is missed: an effect that was not recorded as done is simply done again.
//! An effect stays in flight until it has really ended; nobody gives up its ownership for want of patience.

use crate::api::condition::reason;
use crate::api::names::Uid;
use crate::plan::action::{Action, ActionId, Effect};
use crate::plan::observed::{Failure, FailureClass, Outcome};
use crate::workspace::Stop;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// Blocking effects that run at once, besides stops: they share disk and processor.
pub const EFFECTS_PARALLEL_MAX: usize = 16;

/// What an ended effect brought.
pub type Ended = Result<Outcome, Failure>;
/// Told of every ended effect: writes the audit log, and wakes the record if the last argument says so.
pub type OnEnd = Arc<dyn Fn(&Effect, &Ended, bool) + Send + Sync>;

#[derive(Default)]
struct Flight {
    /// With what says whether it is still wanted.
    running: BTreeMap<ActionId, Arc<Stop>>,
    /// Of those: whose good end wakes nobody, unless somebody looks before it.
    quiet: BTreeSet<ActionId>,
    ended: BTreeMap<ActionId, Ended>,
}

/// The table.
#[derive(Clone)]
pub struct Flights {
    table: Arc<Mutex<BTreeMap<Uid, Flight>>>,
    places: Arc<Semaphore>,
    on_end: OnEnd,
}

impl Flights {
    /// An empty table.
    #[must_use]
    pub fn new(on_end: OnEnd) -> Self {
        Self { table: Arc::default(), places: Arc::new(Semaphore::new(EFFECTS_PARALLEL_MAX)), on_end }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Uid, Flight>> {
        self.table.lock().expect("nobody panics while holding it")
    }

    /// What is in flight and what has ended, for one agent. From now on every end wakes it again.
    #[must_use]
    pub fn look(&self, uid: &Uid) -> (BTreeSet<ActionId>, BTreeMap<ActionId, Ended>) {
        let mut table = self.table();
        let Some(flight) = table.get_mut(uid) else { return <_>::default() };
        flight.quiet.clear();
        (flight.running.keys().cloned().collect(), flight.ended.clone())
    }

    /// Whether anything is in flight, of any agent, but starts: one goes on whoever leads, and waits for its controller to.
    #[must_use]
    pub fn any_but_starts(&self) -> bool {
        let is_start = |id: &ActionId| matches!(id.0, Action::EnsureSandbox { .. });
        self.table().values().any(|flight| !flight.running.keys().all(is_start))
    }

    /// The good end of these, as far as they are still under way, wakes nobody until the next look. What ended since the last look has
    /// woken already.
    pub fn end_quietly(&self, uid: &Uid, effects: &BTreeSet<ActionId>) {
        if let Some(flight) = self.table().get_mut(uid) {
            flight.quiet = effects.iter().filter(|id| flight.running.contains_key(id)).cloned().collect();
        }
    }

    /// Starts an effect unless the same one is in flight. `urgent` effects (stops) wait for no place. `stop` is raised by `abandon`, or knows by
    /// itself that the agent was killed; work that has not begun by then never does.
    pub fn start(&self, effect: Effect, urgent: bool, stop: Arc<Stop>, work: BoxFuture<'static, Ended>) {
        let id = effect.action.id();
        {
            let mut table = self.table();
            let flight = table.entry(effect.uid.clone()).or_default();
            if flight.running.contains_key(&id) {
                return;
            }
            flight.running.insert(id.clone(), stop.clone());
            flight.ended.remove(&id);
        }
        let this = self.clone();
        tokio::spawn(async move {
            let place = if urgent { None } else { this.places.clone().acquire_owned().await.ok() };
            if stop.is_raised() {
                drop(place);
                return this.end(&effect, Err(abandoned(&effect)));
            }
            // A task of its own: a panic in one effect is that effect's failure and nobody else's.
            let result = tokio::spawn(work).await.unwrap_or_else(|panic| Err(panicked(&effect, &panic)));
            drop(place);
            this.end(&effect, result);
        });
    }

    fn end(&self, effect: &Effect, result: Ended) {
        let id = effect.action.id();
        let mut wakes = true;
        if let Some(flight) = self.table().get_mut(&effect.uid) {
            flight.running.remove(&id);
            wakes = !flight.quiet.remove(&id) || result.is_err();
            flight.ended.insert(id, result.clone());
        }
        (self.on_end)(effect, &result, wakes);
    }

    /// Breaks off what an ended agent does not need: all but stopping, keeping and removing. Each stays in flight until it has ended.
    pub fn abandon(&self, uid: &Uid) {
        let table = self.table();
        let unwanted = table.get(uid).into_iter().flat_map(|flight| &flight.running).filter(|(id, _)| id.0.starts_something());
        unwanted.for_each(|(_, stop)| stop.raise());
    }

    /// Forgets outcomes that the record shows.
    pub fn acknowledge(&self, uid: &Uid, taken: &BTreeSet<ActionId>) {
        if let Some(flight) = self.table().get_mut(uid) {
            flight.ended.retain(|id, _| !taken.contains(id));
        }
    }

    /// Forgets an agent that is gone. Nothing of it is in flight any more: its finalizer waited for that.
    pub fn forget(&self, uid: &Uid) {
        self.table().remove(uid);
    }
}

fn panicked(effect: &Effect, panic: &tokio::task::JoinError) -> Failure {
    failure(reason::INTERNAL_ERROR, format!("{} broke: {panic}", effect.action.name()))
}

fn abandoned(effect: &Effect) -> Failure {
    failure(reason::KILLED, format!("{} was not begun: the agent has ended", effect.action.name()))
}

fn failure(reason: &str, message: String) -> Failure {
    Failure { class: FailureClass::Infrastructure, reason: reason.to_owned(), message, at: Timestamp::now() }
}
