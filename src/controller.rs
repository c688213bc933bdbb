//! AGAIN AND AGAIN: a slim reflector cache and kube's `applier` as the one work queue for all stores.
//!
//! Watches, finished effects and sandbox events send keys (`trigger`); the queue merges doubles, never runs two passes of one record at
//! once, and brings a record back when its pass asked for it. A pass (`reconcile`, `halts`) reads the record live, or has it as it was just
//! written (`own`). `orphans` looks after what has no record; `leadership` says who acts, and `handover` when that changes. What happens to an
//! agent is not decided here; that is `plan`'s.

pub mod cache;
pub mod foresight;
pub mod halts;
pub mod handover;
pub mod leadership;
pub mod orphans;
pub mod own;
pub mod reconcile;
pub mod trigger;

use cache::{Slim, key_of, reference};
use futures::{FutureExt, StreamExt};
use kube::runtime::controller::{Action as Requeue, Config, applier};
use kube::runtime::reflector::ObjectRef;
use reconcile::{Context, Next, PassError, error_policy, reconcile};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use trigger::{Follower, Trigger};

use crate::store::{Key, Kind, StoreError};

/// Passes that run at once. They wait for disk and engine, not for the processor.
pub const PASSES_MAX: u16 = 64;

/// What the queue's passes share.
struct Work {
    ctx: Arc<Context>,
    trigger: Trigger,
    failures: Mutex<BTreeMap<Key, u32>>,
    passes: Arc<AtomicU64>,
}

/// A controller that is being set up: hand `trigger` to whatever wakes records, then `run` it.
pub struct Controller {
    ctx: Arc<Context>,
    trigger: Trigger,
    queue: mpsc::UnboundedReceiver<Key>,
    synced: (watch::Sender<bool>, watch::Sender<bool>),
    passes: Arc<AtomicU64>,
}

/// Ends the controller and tells how far it is.
#[derive(Clone)]
pub struct Progress {
    agents: watch::Receiver<bool>,
    halts: watch::Receiver<bool>,
    passes: Arc<AtomicU64>,
}

impl Progress {
    /// Whether both kinds were listed: before that the controller knows too little to be ready.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.agents.borrow() && *self.halts.borrow()
    }

    /// Passes since the start.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }
}

impl Controller {
    /// Sets up a controller over a context and the two ends of its trigger.
    #[must_use]
    pub fn new(ctx: Arc<Context>, trigger: Trigger, queue: mpsc::UnboundedReceiver<Key>) -> Self {
        let synced = (watch::Sender::new(false), watch::Sender::new(false));
        Self { ctx, trigger, queue, synced, passes: Arc::new(AtomicU64::new(0)) }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { agents: self.synced.0.subscribe(), halts: self.synced.1.subscribe(), passes: self.passes.clone() }
    }

    /// Follows both kinds and works the queue until `shutdown` is done. Passes that run are let finish; sandboxes run on.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) {
        let reader = self.trigger.queued().reader();
        let follower = |kind, synced| Follower { kind, ctx: self.ctx.clone(), trigger: self.trigger.clone(), synced };
        // Halts are known before the first agent is looked at; until then every agent counts as halted.
        let followers = [tokio::spawn(follower(Kind::Halt, self.synced.1).run()), tokio::spawn(follower(Kind::Agent, self.synced.0).run())];
        let queue = tokio_stream::wrappers::UnboundedReceiverStream::new(self.queue).map(|key| Ok::<_, Infallible>(reference(&key)));
        let work = Arc::new(Work { ctx: self.ctx, trigger: self.trigger, failures: Mutex::default(), passes: self.passes });
        let config = Config::default().concurrency(PASSES_MAX);
        let passes = applier(|slim, work| pass(slim, work).boxed(), on_error, work, reader, queue.take_until(shutdown), config);
        passes.for_each(|result| async move { report(&result) }).await;
        for follower in followers {
            follower.abort();
        }
    }
}

async fn pass(slim: Arc<Slim>, work: Arc<Work>) -> Result<Requeue, PassError> {
    let key = slim.key();
    work.passes.fetch_add(1, Ordering::Relaxed);
    work.trigger.queued().begin(&key);
    let next = match key.kind {
        Kind::Agent => reconcile(&key, &work.ctx).await?,
        Kind::Halt => halts::reconcile_halt(&key, &work.ctx).await?,
    };
    work.failures.lock().expect("nobody panics while holding it").remove(&key);
    if next == Next::Await {
        work.trigger.queued().rest(&key);
    }
    Ok(requeue(next))
}

fn on_error(slim: Arc<Slim>, error: &PassError, work: Arc<Work>) -> Requeue {
    let mut failures = work.failures.lock().expect("nobody panics while holding it");
    let count = failures.entry(slim.key()).or_default();
    *count += 1;
    requeue(error_policy(error, *count - 1))
}

fn requeue(next: Next) -> Requeue {
    match next {
        Next::Await => Requeue::await_change(),
        Next::After(wait) => Requeue::requeue(wait),
    }
}

type Passed = Result<(ObjectRef<Slim>, Requeue), kube::runtime::controller::Error<PassError, Infallible>>;

fn report(result: &Passed) {
    use kube::runtime::controller::Error;
    match result {
        Ok((reference, _)) => tracing::trace!(key = ?key_of(reference), "pass done"),
        // A later pass has seen what it was queued for, or somebody else wrote it meanwhile: both are everyday.
        Err(Error::ObjectNotFound(_)) => {}
        Err(Error::ReconcilerFailed(PassError::Store { source: StoreError::Conflict(_), .. }, _)) => {}
        Err(error) => {
            tracing::info!(error = crate::causes::one_line(error), "a pass was broken off; it is run again");
        }
    }
}
