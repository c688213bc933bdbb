//! A real `Controller` over a real `EmbeddedStore`, and a world in which there is nothing to see: what is left is the cost of control.

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::{Timestamp, Unit};
use mosaic::api::names::{Epoch, FINALIZER, Uid};
use mosaic::controller::own::OwnWrites;
use mosaic::controller::reconcile::{Context, Journal, Transition};
use mosaic::controller::trigger::Trigger;
use mosaic::controller::{Controller, Progress};
use mosaic::effect::{EffectError, Subject, World};
use mosaic::plan::action::{Action, ActionId, Effect};
use mosaic::plan::fleet::{Fleet, FleetLimits};
use mosaic::plan::observed::{Inventory, Look, Observed};
use mosaic::plan::orphans::OrphanAction;
use mosaic::store::embedded::{EmbeddedOptions, EmbeddedStore};
use mosaic::store::{Key, Kind, Record, Store};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// No pass for so long: the controller has nothing left to do.
const QUIET: Duration = Duration::from_millis(60);
/// How often it is looked for quiet.
const QUIET_LOOK: Duration = Duration::from_millis(5);
/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(600);
/// Records that are declared at once while a fleet is set up.
const DECLARED_AT_ONCE: usize = 64;

/// A controller that runs.
pub struct Rig {
    pub store: Arc<EmbeddedStore>,
    pub looks: Arc<Looks>,
    progress: Progress,
    written: watch::Receiver<(String, i64)>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

/// How often the world was looked at, and whose passes nobody had asked for.
#[derive(Default)]
pub struct Looks {
    expected: Mutex<Option<String>>,
    unrelated: AtomicU64,
}

impl Looks {
    /// From now on only passes over this agent have a reason.
    pub fn expect(&self, name: &str) {
        *self.expected.lock().expect("nobody panics") = Some(name.to_owned());
    }

    /// Passes over others since the first `expect`.
    pub fn unrelated(&self) -> u64 {
        self.unrelated.load(Ordering::Relaxed)
    }
}

/// Nothing runs, nothing lies about; only the record itself can be written.
struct EmptyWorld {
    store: Arc<EmbeddedStore>,
    looks: Arc<Looks>,
}

impl World for EmptyWorld {
    fn observe<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Observed> {
        let name = subject.record.metadata.name.as_deref();
        let expected = self.looks.expected.lock().expect("nobody panics");
        if expected.as_deref().is_some_and(|expected| Some(expected) != name) {
            self.looks.unrelated.fetch_add(1, Ordering::Relaxed);
        }
        let nothing = Observed {
            sandboxes: Look::Seen(Vec::new()),
            workspace: Look::Seen(None),
            in_flight: BTreeSet::new(),
            outcomes: std::collections::BTreeMap::new(),
        };
        std::future::ready(nothing).boxed()
    }

    fn apply<'a>(&'a self, subject: &'a Subject, effect: Effect) -> BoxFuture<'a, Result<(), EffectError>> {
        async move {
            let Action::AddFinalizer = effect.action else {
                return Err(EffectError::Failed(format!("an idle agent needs no {}", effect.action.name())));
            };
            let mut record = subject.record.clone();
            record.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
            self.store.replace(record).await.map(|_| ()).map_err(EffectError::Store)
        }
        .boxed()
    }

    fn acknowledge(&self, _: &Uid, _: &BTreeSet<ActionId>) {}

    fn forget(&self, _: &Uid) {}

    fn inventory(&self) -> BoxFuture<'_, Result<Inventory, EffectError>> {
        std::future::ready(Ok(Inventory::default())).boxed()
    }

    fn apply_orphan(&self, _: Epoch, _: OrphanAction) -> BoxFuture<'_, Result<(), EffectError>> {
        std::future::ready(Ok(())).boxed()
    }
}

impl Rig {
    /// Opens the store of a folder and starts a controller over it, wired as `mosaic up` does.
    pub fn start(folder: &Path, options: EmbeddedOptions) -> Self {
        let store = Arc::new(EmbeddedStore::open(&folder.join("mosaic.redb"), options).expect("a store"));
        let looks = Arc::new(Looks::default());
        let (trigger, queue) = Trigger::new();
        let (tell, written) = watch::channel((String::new(), 0));
        let waker = trigger.clone();
        let told = move |transition: Transition| {
            let generation = transition.after.observed_generation.unwrap_or_default();
            tell.send_replace((transition.key.name, generation));
        };
        let ctx = Arc::new(Context {
            store: store.clone(),
            world: Arc::new(EmptyWorld { store: store.clone(), looks: looks.clone() }),
            fleet: Mutex::new(Fleet::new(FleetLimits { running_max: 10, starting_max: 4 })),
            epoch: Arc::new(|| Some(Epoch(1))),
            latch: Arc::default(),
            clock: Arc::new(|| Timestamp::now().round(Unit::Microsecond).expect("the present")),
            journal: Journal { transition: Arc::new(told), ..Journal::silent() },
            wake: Arc::new(move |key: Key| waker.wake(key)),
            own_writes: OwnWrites::default(),
            seen_in: Mutex::default(),
            waiting: <_>::default(),
        });
        let controller = Controller::new(ctx, trigger, queue);
        let progress = controller.progress();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(controller.run(async move { drop(stopped.await) }));
        Self { store, looks, progress, written, stop: Some(stop), running }
    }

    /// Passes since the start.
    pub fn passes(&self) -> u64 {
        self.progress.passes()
    }

    /// Declares agents `from..to`, a few at once, and waits until none of them has anything left to do.
    pub async fn declare(&self, from: usize, to: usize) {
        use futures::StreamExt;
        let created = futures::stream::iter(from..to).map(|number| self.store.create(idle_agent(number)));
        created.buffer_unordered(DECLARED_AT_ONCE).for_each(|result| async move { drop(result.expect("a record")) }).await;
        self.settled().await;
    }

    /// Waits until everything was listed and no pass was made for a while.
    pub async fn settled(&self) {
        let (mut since, mut seen) = (Instant::now(), self.passes());
        let started = since;
        while since.elapsed() < QUIET || !self.progress.is_synced() {
            assert!(started.elapsed() < PATIENCE, "the controller does not come to rest");
            tokio::time::sleep(QUIET_LOOK).await;
            let now = self.passes();
            if now != seen {
                (since, seen) = (Instant::now(), now);
            }
        }
    }

    /// Changes the priority of one agent and waits until its pass has stored that it saw the change. Returns the seconds from the
    /// moment the change was handed to the store.
    pub async fn change(&mut self, number: usize) -> f64 {
        let key = Key::agent("default", name_of(number));
        self.looks.expect(&key.name);
        let mut record = self.store.get(&key).await.expect("an answer").expect("the agent");
        let priority = record.spec["priority"].as_i64().unwrap_or(5);
        record.spec["priority"] = json!(if priority == 5 { 6 } else { 5 });
        let started = Instant::now();
        let generation = self.store.replace(record).await.expect("a change").metadata.generation.unwrap_or_default();
        let done = self.written.wait_for(|(name, seen)| *name == key.name && *seen >= generation);
        drop(tokio::time::timeout(PATIENCE, done).await.expect("a pass").expect("a controller"));
        started.elapsed().as_secs_f64()
    }

    /// All agents as JSON objects.
    pub async fn objects(&self) -> Vec<Value> {
        let (records, _) = self.store.list(Kind::Agent).await.expect("a list");
        records.iter().map(Record::to_object).collect()
    }

    /// Ends the controller; the store closes with it.
    pub async fn end(mut self) {
        self.stop = None;
        self.running.await.expect("the controller ends");
    }
}

/// Name of an idle agent.
pub fn name_of(number: usize) -> String {
    format!("agent-{number:05}")
}

/// An agent that is suspended: declared, and nothing to do. With its status about 2 KB of JSON.
fn idle_agent(number: usize) -> Record {
    let sentence = "Read the module that the work item names, find out why its test fails, repair the cause and not the test, \
                    and say in one paragraph what was wrong. ";
    let object = json!({
        "kind": "Agent",
        "metadata": {
            "name": name_of(number),
            "namespace": "default",
            "labels": {"team": format!("team-{:02}", number % 20), "app.kubernetes.io/part-of": "sample"},
            "annotations": {"example.org/requested-by": format!("person-{:03}@example.org", number % 200)},
        },
        "spec": {
            "taskId": format!("TASK-{number:05}"),
            "agentType": "worker",
            "context": {
                "repository": format!("https://git.example.org/group/project-{:02}.git", number % 50),
                "branch": "main",
                "workItems": [format!("ITEM-{number:05}"), "review the error handling"],
                "instructions": sentence.repeat(6),
            },
            "runtime": {"command": {"args": ["agent", "--headless", "--task", format!("TASK-{number:05}")]}},
            "sandbox": {"driver": "auto", "cpu": "2", "memory": "2Gi"},
            "gates": {"profile": "standard"},
            "priority": 5,
            "timeout": "30m",
            "maxRetries": 3,
            "suspend": true,
        },
    });
    serde_json::from_value(object).expect("a record")
}

/// CPU seconds of this process, all threads.
pub fn cpu_seconds() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel fills the whole struct, which outlives the call; RUSAGE_SELF cannot fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
