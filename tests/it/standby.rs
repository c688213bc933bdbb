//! Passes of a controller that stands by: what they find, and that they do nothing.

use crate::plan::build::{Stage, agent_run, ended, now, observed, running, status, tree};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use mosaic::api::agent::AgentStatus;
use mosaic::api::names::{Epoch, FINALIZER, RunId, Uid};
use mosaic::controller::own::OwnWrites;
use mosaic::controller::reconcile::{Context, Journal, Next, reconcile};
use mosaic::effect::{EffectError, Subject, World};
use mosaic::plan::action::{ActionId, Effect};
use mosaic::plan::fleet::{Fleet, FleetLimits};
use mosaic::plan::observed::{EndCause, Inventory, Observed, SandboxSeen};
use mosaic::plan::orphans::OrphanAction;
use mosaic::store::embedded::{EmbeddedOptions, EmbeddedStore};
use mosaic::store::{Key, Kind, Record, Store};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

const HERE: &str = "this-state-folder";

/// Shows what it is told to show, and notes what it is asked to do.
#[derive(Default)]
struct Told {
    sandboxes: Mutex<Vec<SandboxSeen>>,
    applied: Mutex<Vec<&'static str>>,
}

impl World for Told {
    fn place(&self) -> Option<&str> {
        Some(HERE)
    }

    fn observe<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Observed> {
        let of_it = |seen: SandboxSeen| SandboxSeen { run: RunId { uid: subject.uid.clone(), ..seen.run }, ..seen };
        ready(observed(self.sandboxes.lock().unwrap().iter().cloned().map(of_it).collect(), tree())).boxed()
    }

    fn apply<'a>(&'a self, _: &'a Subject, effect: Effect) -> BoxFuture<'a, Result<(), EffectError>> {
        self.applied.lock().unwrap().push(effect.action.name());
        ready(Ok(())).boxed()
    }

    fn acknowledge(&self, _: &Uid, _: &BTreeSet<ActionId>) {}

    fn forget(&self, _: &Uid) {}

    fn inventory(&self) -> BoxFuture<'_, Result<Inventory, EffectError>> {
        ready(Ok(Inventory::default())).boxed()
    }

    fn apply_orphan(&self, _: Epoch, _: OrphanAction) -> BoxFuture<'_, Result<(), EffectError>> {
        ready(Ok(())).boxed()
    }
}

/// A controller that stands by until it is told that it leads, and one agent whose first attempt another one, or this one, has begun.
struct Controller {
    ctx: Context,
    world: Arc<Told>,
    epoch: Arc<Mutex<Option<Epoch>>>,
    key: Key,
    _folder: tempfile::TempDir,
}

impl Controller {
    async fn with_agent_of(installation: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&folder.path().join("mosaic.redb"), EmbeddedOptions::default()).unwrap());
        let metadata = json!({"name": "one", "namespace": "default", "finalizers": [FINALIZER]});
        let spec = json!({"context": {"repository": "file:///one"}, "runtime": {"command": {"args": ["work"]}}});
        let record = Record { kind: Kind::Agent, metadata: serde_json::from_value(metadata).unwrap(), spec, status: json!(null) };
        let mut record = store.create(record).await.unwrap();
        let status = AgentStatus { installation: Some(installation.to_owned()), ..status(Stage::SandboxKnown) };
        record.status = serde_json::to_value(status).unwrap();
        let key = store.replace_status(record).await.unwrap().key();
        let (world, epoch) = (Arc::new(Told::default()), Arc::new(Mutex::new(None)));
        let leads = epoch.clone();
        let mut fleet = Fleet::new(FleetLimits { running_max: 10, starting_max: 4 });
        fleet.set_halts(Some(Vec::new()));
        let ctx = Context {
            store,
            world: world.clone(),
            fleet: Mutex::new(fleet),
            epoch: Arc::new(move || *leads.lock().unwrap()),
            latch: Arc::default(),
            clock: Arc::new(now),
            journal: Journal::silent(),
            wake: Arc::new(|_| ()),
            own_writes: OwnWrites::default(),
            seen_in: Mutex::default(),
            waiting: <_>::default(),
        };
        Self { ctx, world, epoch, key, _folder: folder }
    }

    async fn pass(&self, sandboxes: Vec<SandboxSeen>) -> Next {
        *self.world.sandboxes.lock().unwrap() = sandboxes;
        reconcile(&self.key, &self.ctx).await.unwrap()
    }

    async fn record(&self) -> Record {
        self.ctx.store.get(&self.key).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn who_stands_by_finds_what_waits_for_it_and_leaves_it_alone() {
    let controller = Controller::with_agent_of(HERE).await;
    let before = controller.record().await;
    let next = controller.pass(vec![running(agent_run(1), 1)]).await;
    assert!(matches!(next, Next::After(_)), "its limits of time are looked after: {next:?}");
    assert_eq!(controller.ctx.waiting.count(|_| true), 0, "it runs");
    controller.pass(vec![ended(agent_run(1), EndCause::Exited(0))]).await;
    assert_eq!(controller.ctx.waiting.count(|_| true), 1);
    assert_eq!((controller.record().await, controller.world.applied.lock().unwrap().len()), (before, 0), "nothing is written or done");

    *controller.epoch.lock().unwrap() = Some(Epoch(7));
    controller.pass(vec![ended(agent_run(1), EndCause::Exited(0))]).await;
    assert_eq!(controller.ctx.waiting.count(|_| true), 0, "it leads");
    assert!(controller.world.applied.lock().unwrap().contains(&"TakeSnapshot"));
}

#[tokio::test]
async fn agents_of_others_do_not_wait_for_who_stands_by() {
    let controller = Controller::with_agent_of("another-state-folder").await;
    assert_eq!(controller.pass(vec![ended(agent_run(1), EndCause::Exited(0))]).await, Next::Await);
    assert_eq!(controller.ctx.waiting.count(|_| true), 0);
}

#[tokio::test]
async fn what_was_taken_over_or_is_gone_waits_no_longer() {
    let controller = Controller::with_agent_of(HERE).await;
    controller.pass(Vec::new()).await;
    assert_eq!(controller.ctx.waiting.count(|_| true), 1, "its sandbox is lost");
    let mut record = controller.record().await;
    record.status["installation"] = json!("another-state-folder");
    let record = controller.ctx.store.replace_status(record).await.unwrap();
    controller.pass(Vec::new()).await;
    assert_eq!(controller.ctx.waiting.count(|_| true), 0);

    let uid = Uid::new(record.metadata.uid.unwrap()).unwrap();
    controller.ctx.waiting.note(&uid, true);
    assert_eq!(controller.ctx.waiting.count(|_| false), 0, "its record is gone");
    assert_eq!(controller.ctx.waiting.count(|_| true), 0, "and so it is, whoever asks next");
    controller.ctx.waiting.note(&uid, true);
    controller.ctx.forget(&controller.key, &uid);
    assert_eq!(controller.ctx.waiting.count(|_| true), 0);
}
