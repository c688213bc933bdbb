//! Seeded scheduler: drives the real `reconcile()` as futures polled by hand, and decides at every step what happens next: a poll, a
//! part of an effect, a message, a crash, a user. One seed is one run. Phase one has faults; in phase two they stop, and everything must
//! settle. It keeps the promises of the real queue (never two passes of one record in one controller, `Next` and `error_policy`
//! honoured) and no others.

use super::engine::Engine;
use super::faults::{Faults, Rng};
use super::git::Git;
use super::lane::Lane;
use super::oracle::Oracle;
use super::passes::{orphan_pass, record_pass};
use super::plants::Plant;
use super::store::{Change, FakeStore, Records};
use super::truth::{EPOCH_MILLIS, Log, Shared, Truth};
use super::world::FakeWorld;
use futures::future::LocalBoxFuture;
use mosaic::api::names::{Epoch, RunId, Uid};
use mosaic::api::validate::validate;
use mosaic::controller::halts::reconcile_halt;
use mosaic::controller::own::OwnWrites;
use mosaic::controller::reconcile::{Context, Journal, Next, PassError, error_policy, reconcile};
use mosaic::kill::latch::{Latch, Note};
use mosaic::plan::fleet::{Fleet, FleetLimits, HaltInForce};
use mosaic::plan::halts::in_force;
use mosaic::store::{Key, Kind, Record};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Passes of one controller at once.
const PASSES_MAX: usize = 3;
/// Passes over one record without time going by: more is a hot loop.
const SPINS_MAX: u32 = 60;
/// Pause between two looks for halts that the store does not know.
const RECORD_MILLIS: u64 = 500;
/// Longest time in which nothing happens while an agent is unsettled: longer than any backoff, recheck or look of this fleet.
const STALL_MILLIS: u64 = 45_000;

/// What a future that a controller runs has brought.
pub enum Done {
    Pass(Key, Result<Next, PassError>),
    Orphans,
    Recorded,
}

/// Something that a controller hears.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "most messages are changes")]
enum Message {
    Change(Change),
    Halts(Option<Vec<HaltInForce>>),
}

/// One controller process.
pub struct Controller {
    pub id: u32,
    pub epoch: Epoch,
    pub paused: bool,
    pub ctx: Arc<Context>,
    woken: Arc<Mutex<Vec<Key>>>,
    pub queue: BTreeSet<Key>,
    timers: BTreeMap<Key, u64>,
    failures: BTreeMap<Key, u32>,
    pub passes: Vec<(Option<Key>, LocalBoxFuture<'static, Done>)>,
    inbox: VecDeque<Message>,
    /// When it looks again whether something is latched that the store does not know; `None`: it does so now.
    record_at: Option<u64>,
}

impl Controller {
    /// Whether nothing is left to do for it.
    pub fn is_quiet(&self) -> bool {
        self.passes.is_empty() && self.queue.is_empty() && self.inbox.is_empty() && self.ctx.latch.halts().is_empty()
    }
}

/// One run.
pub struct Sim {
    pub truth: Shared,
    pub controllers: Vec<Controller>,
    controllers_begun: u32,
    pub halts: Vec<HaltInForce>,
    pub halts_readable: bool,
    limits: FleetLimits,
    spins: BTreeMap<Key, u32>,
    pub passes: BTreeMap<Key, u32>,
    /// Agents that nobody has created yet.
    pub to_create: Vec<Record>,
    weights: Weights,
    pub healing: bool,
}

/// How likely each kind of step is against the others: slow watches, slow effects and slow passes meet different mistakes.
#[derive(Debug, Clone, Copy)]
struct Weights {
    poll: u64,
    begin: u64,
    hear: u64,
    effect: u64,
    cell: u64,
}

impl Sim {
    pub fn new(seed: u64, plant: Option<Plant>, limits: FleetLimits, faults: Faults) -> Self {
        let mut rng = Rng::new(!seed);
        let mut weight = || *rng.pick(&[1, 5, 20, 40]);
        let weights = Weights { poll: weight(), begin: weight(), hear: weight(), effect: weight(), cell: weight() };
        let truth = Truth {
            rng: Rng::new(seed),
            wall: EPOCH_MILLIS,
            elapsed: 0,
            renewed: 0,
            faults,
            plant,
            records: Records::default(),
            git: Git::default(),
            bodies: BTreeMap::new(),
            scripts: BTreeMap::new(),
            effects: BTreeMap::new(),
            effects_begun: 0,
            tables: BTreeMap::new(),
            paused: BTreeSet::new(),
            highest_epoch: Epoch(0),
            aims: Vec::new(),
            crash_requests: BTreeSet::new(),
            needs_resync: false,
            pokes: Vec::new(),
            log: Log::default(),
            oracle: Oracle::new(limits),
            latches: BTreeMap::new(),
            lane: Lane::default(),
            engine: Engine::default(),
            contained: BTreeSet::new(),
            pids_given: 0,
            applied: Vec::new(),
            reads_and_writes: (0, 0),
        };
        Self {
            truth: Arc::new(Mutex::new(truth)),
            controllers: Vec::new(),
            controllers_begun: 0,
            halts: Vec::new(),
            halts_readable: true,
            limits,
            spins: BTreeMap::new(),
            passes: BTreeMap::new(),
            to_create: Vec::new(),
            weights,
            healing: false,
        }
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Truth) -> T) -> T {
        act(&mut self.truth.lock().unwrap())
    }

    /// A controller process starts and becomes leader: a higher epoch, an empty in-flight table, a list of all records.
    pub fn start_controller(&mut self) {
        self.controllers_begun += 1;
        let id = self.controllers_begun;
        let (epoch, records) = self.with(|truth| {
            truth.highest_epoch = Epoch(truth.highest_epoch.0 + 1);
            truth.oracle.epochs.insert(id, truth.highest_epoch.0);
            truth.note(format!("controller {id} leads with epoch {}", truth.highest_epoch.0));
            (truth.highest_epoch, truth.records.map.values().cloned().collect::<Vec<_>>())
        });
        let woken = Arc::new(Mutex::new(Vec::new()));
        let ctx = Arc::new(self.context(id, epoch, &woken));
        self.with(Truth::sweep_containers);
        for record in records.iter().filter(|record| record.kind == Kind::Agent) {
            ctx.take_into_fleet(record, validate(record).as_ref().ok());
        }
        let mut controller = Controller {
            id,
            epoch,
            paused: false,
            ctx,
            woken,
            queue: records.iter().map(Record::key).collect(),
            timers: BTreeMap::new(),
            failures: BTreeMap::new(),
            passes: Vec::new(),
            inbox: VecDeque::new(),
            record_at: Some(0),
        };
        controller.inbox.push_back(Message::Halts(self.readable_halts()));
        self.controllers.push(controller);
    }

    fn context(&self, id: u32, epoch: Epoch, woken: &Arc<Mutex<Vec<Key>>>) -> Context {
        let store = |shared: &Shared| FakeStore { shared: shared.clone(), controller: id };
        let clock = self.truth.clone();
        let woken = woken.clone();
        let limits = if self.with(|truth| truth.planted(Plant::CapsIgnored)) {
            FleetLimits { running_max: 100, starting_max: 100 }
        } else {
            self.limits
        };
        let latch: Arc<Latch> = Arc::default();
        let kept = self.with(|truth| {
            truth.latches.insert(id, latch.clone());
            truth.notes_read_at_start()
        });
        latch.note(&kept);
        let latch = if self.with(|truth| truth.planted(Plant::LatchForgotten)) { Arc::default() } else { latch };
        Context {
            store: Arc::new(store(&self.truth)),
            world: Arc::new(FakeWorld { shared: self.truth.clone(), controller: id, store: store(&self.truth) }),
            fleet: Mutex::new(Fleet::new(limits)),
            epoch: Arc::new(move || Some(epoch)),
            latch,
            clock: Arc::new(move || clock.lock().unwrap().now()),
            journal: Journal::silent(),
            wake: Arc::new(move |key| woken.lock().unwrap().push(key)),
            own_writes: OwnWrites::default(),
            seen_in: Mutex::default(),
            waiting: <_>::default(),
        }
    }

    pub fn readable_halts(&self) -> Option<Vec<HaltInForce>> {
        let records = self.with(|truth| {
            let halts = truth.records.map.values().filter(|record| record.kind == Kind::Halt).filter_map(|record| record.halt().ok());
            halts.map(|halt| in_force(halt.metadata.name.as_deref().unwrap_or_default(), &halt.spec)).collect::<Vec<_>>()
        });
        self.halts_readable.then(|| self.halts.iter().cloned().chain(records).collect())
    }

    /// The halts have changed: every controller hears of it some time.
    pub fn tell_halts(&mut self) {
        let halts = self.readable_halts();
        for controller in &mut self.controllers {
            controller.inbox.push_back(Message::Halts(halts.clone()));
        }
    }

    /// A controller process ends without a word; some of its effects still land.
    pub fn crash(&mut self, id: u32, all_land: bool) {
        self.controllers.retain(|controller| controller.id != id);
        self.with(|truth| {
            truth.note(format!("controller {id} crashes"));
            truth.paused.remove(&id);
            truth.orphan_effects(id, all_land);
            truth.lane_dies(id);
            if truth.planted(Plant::AcknowledgedWriteLost) {
                for (key, record) in std::mem::take(&mut truth.records.previous) {
                    let version = truth.records.map.get(&key).and_then(|r| r.metadata.resource_version.clone());
                    if let Some(current) = truth.records.map.get_mut(&key) {
                        *current = record;
                        current.metadata.resource_version = version;
                    }
                }
            }
        });
    }

    /// Hands out what has happened since the last step: changes, pokes, wakes, timers, crashes.
    fn distribute(&mut self) {
        let (changes, pokes, crashes) = self.with(|truth| {
            let pokes: Vec<(Option<u32>, Option<Key>)> =
                std::mem::take(&mut truth.pokes).into_iter().map(|(to, uid)| (to, truth.records.by_uid(&uid))).collect();
            (std::mem::take(&mut truth.records.changes), pokes, std::mem::take(&mut truth.crash_requests))
        });
        let elapsed = self.with(|truth| truth.elapsed);
        let deaf = self.with(|truth| truth.planted(Plant::EndsWakeNobody));
        for controller in &mut self.controllers {
            controller.inbox.extend(changes.iter().cloned().map(Message::Change));
            for (to, key) in &pokes {
                let lost = deaf || self.truth.lock().unwrap().lost_trigger();
                if to.is_none_or(|to| to == controller.id) && !lost {
                    controller.queue.extend(key.clone());
                }
            }
            controller.queue.append(&mut controller.woken.lock().unwrap().drain(..).collect());
            let due: Vec<Key> = controller.timers.iter().filter(|(_, at)| **at <= elapsed).map(|(key, _)| key.clone()).collect();
            for key in due {
                controller.timers.remove(&key);
                controller.queue.insert(key);
            }
        }
        let kind = |change: &Change| match change {
            Change::Applied(record) | Change::Deleted(record) => record.kind,
        };
        if changes.iter().any(|change| kind(change) == Kind::Halt) {
            self.tell_halts();
        }
        for id in crashes {
            self.crash(id, true);
        }
    }

    /// One step of the run. Returns false when nothing can happen any more, whatever time it is.
    pub fn step(&mut self) -> bool {
        self.distribute();
        if self.healing && self.controllers.is_empty() {
            self.start_controller();
        }
        let choices = self.choices();
        let Some(choice) = self.choose(&choices) else { return self.next_moment() };
        match choice {
            Choice::Poll(at, pass) => self.poll(at, pass),
            Choice::Begin(at, key) => self.begin(at, key),
            Choice::Hear(at) => self.hear(at),
            Choice::Effect(number) => self.with(|truth| truth.step_effect(number)),
            Choice::Cell(uid, run) => self.with(|truth| truth.step_cell(&uid, &run)),
            Choice::Job(at) => self.with(|truth| truth.step_job(at)),
            Choice::Init(run) => self.with(|truth| truth.step_init(&run)),
            Choice::Kill(number) => self.with(|truth| truth.step_kill(number)),
            Choice::Record(at) => self.begin_record(at),
        }
        if self.with(|truth| truth.rng.hits(60)) {
            let millis = self.with(|truth| 1 + truth.rng.below(400));
            self.pass_time(millis);
        }
        true
    }

    fn choose(&mut self, choices: &[(u64, Choice)]) -> Option<Choice> {
        let total: u64 = choices.iter().map(|(weight, _)| weight).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.with(|truth| truth.rng.below(total));
        for (weight, choice) in choices {
            if at < *weight {
                return Some(choice.clone());
            }
            at -= weight;
        }
        None
    }

    fn choices(&self) -> Vec<(u64, Choice)> {
        let mut choices = Vec::new();
        let weights = self.weights;
        let elapsed = self.with(|truth| truth.elapsed);
        for (at, controller) in self.controllers.iter().enumerate().filter(|(_, controller)| !controller.paused) {
            choices.extend((0..controller.passes.len()).map(|pass| (weights.poll, Choice::Poll(at, pass))));
            let busy = |key: &&Key| controller.passes.iter().any(|(of, _)| of.as_ref() == Some(*key));
            if controller.passes.len() < PASSES_MAX {
                choices.extend(controller.queue.iter().filter(|key| !busy(key)).map(|key| (weights.begin, Choice::Begin(at, key.clone()))));
            }
            if !controller.inbox.is_empty() {
                choices.push((weights.hear, Choice::Hear(at)));
            }
            if controller.record_at.is_some_and(|due| due <= elapsed) && !controller.ctx.latch.halts().is_empty() {
                choices.push((weights.begin, Choice::Record(at)));
            }
        }
        self.with(|truth| {
            let silent = |controller: u32| truth.paused.contains(&controller);
            let live = truth.effects.iter().filter(|(_, p)| p.late || !silent(p.controller) || p.result.is_none() && p.part < 3);
            choices.extend(live.map(|(number, _)| (weights.effect, Choice::Effect(*number))));
            choices.extend(truth.due_cells().into_iter().map(|(uid, run)| (weights.cell, Choice::Cell(uid, run))));
            choices.extend((0..truth.engine.jobs.len()).filter(|_| !truth.engine.down).map(|at| (weights.cell, Choice::Job(at))));
            if truth.latches.keys().any(|id| !silent(*id)) {
                choices.extend(truth.waiting_inits().into_iter().map(|run| (weights.cell, Choice::Init(run))));
            }
            let kills = truth.lane.kills.iter().filter(|(_, kill)| kill.owner.is_none_or(|owner| !silent(owner)));
            choices.extend(kills.map(|(number, _)| (weights.hear, Choice::Kill(*number))));
        });
        choices
    }

    /// Nothing can happen now: on to the next moment at which something can.
    fn next_moment(&mut self) -> bool {
        let awake = || self.controllers.iter().filter(|c| !c.paused);
        let records = awake().filter(|c| !c.ctx.latch.halts().is_empty()).filter_map(|c| c.record_at);
        let timers = awake().flat_map(|c| c.timers.values().copied()).chain(records);
        let next = timers.chain(self.with(|truth| truth.next_cell_at())).filter(|at| *at < u64::MAX).min();
        let Some(next) = next else { return false };
        let elapsed = self.with(|truth| truth.elapsed);
        let millis = next.saturating_sub(elapsed).max(1);
        if self.healing && millis > STALL_MILLIS {
            for text in self.unsettled() {
                self.with(|truth| truth.violate(format!("nothing happens for {millis} ms, and this waits: {text}")));
            }
        }
        self.pass_time(millis);
        true
    }

    pub fn pass_time(&mut self, millis: u64) {
        let highest = self.with(|truth| truth.highest_epoch);
        let leads = self.controllers.iter().any(|c| !c.paused && c.epoch == highest);
        self.with(|truth| truth.pass_time(millis, leads));
        self.spins.clear();
    }

    fn begin(&mut self, at: usize, key: Key) {
        let controller = &mut self.controllers[at];
        controller.queue.remove(&key);
        controller.timers.remove(&key);
        *self.passes.entry(key.clone()).or_default() += 1;
        let spins = self.spins.entry(key.clone()).or_default();
        *spins += 1;
        if *spins == SPINS_MAX {
            self.truth.lock().unwrap().violate(format!("{} is passed over {SPINS_MAX} times at once", key.name));
        }
        let ctx = controller.ctx.clone();
        let of = Some(key.clone());
        controller.passes.push((
            of,
            Box::pin(async move {
                let result = match key.kind {
                    Kind::Agent => reconcile(&key, &ctx).await,
                    Kind::Halt => reconcile_halt(&key, &ctx).await,
                };
                Done::Pass(key, result)
            }),
        ));
    }

    /// Begins a pass over what has no record.
    pub fn begin_orphans(&mut self, at: usize) {
        let early = self.with(|truth| truth.planted(Plant::OrphansListedTooEarly));
        let controller = &mut self.controllers[at];
        let (ctx, epoch) = (controller.ctx.clone(), controller.epoch);
        controller.passes.push((None, Box::pin(orphan_pass(ctx, epoch, early))));
    }

    /// Begins to tell the store of a halt that is latched.
    fn begin_record(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        let Some(note) = controller.ctx.latch.halts().into_iter().next() else { return };
        controller.record_at = None;
        controller.passes.push((None, Box::pin(record_pass(controller.ctx.clone(), self.truth.clone(), note))));
    }

    fn poll(&mut self, at: usize, pass: usize) {
        let controller = &mut self.controllers[at];
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let halts = controller.ctx.latch.halts();
        let polled = controller.passes[pass].1.as_mut().poll(&mut cx);
        let left = controller.ctx.latch.halts();
        for note in halts.iter().filter(|note| !left.contains(note)) {
            if let Note::Halt { name, .. } = note {
                self.truth.lock().unwrap().handed_over(controller.id, name);
            }
        }
        let Poll::Ready(done) = polled else { return };
        drop(controller.passes.remove(pass));
        let (key, result) = match done {
            Done::Pass(key, result) => (key, result),
            Done::Orphans => return,
            Done::Recorded => {
                controller.record_at = Some(self.truth.lock().unwrap().elapsed + RECORD_MILLIS);
                return;
            }
        };
        let next = match result {
            Ok(next) => {
                controller.failures.remove(&key);
                next
            }
            Err(error) => {
                let failures = controller.failures.entry(key.clone()).or_default();
                *failures += 1;
                let (policy, id) = (error_policy(&error, *failures - 1), controller.id);
                self.truth.lock().unwrap().note(format!("pass of {} by {id}: {error} -> {policy:?}", key.name));
                policy
            }
        };
        self.come_back(at, key, next);
    }

    fn come_back(&mut self, at: usize, key: Key, next: Next) {
        let (elapsed, forgetful) = self.with(|truth| (truth.elapsed, truth.planted(Plant::RequeueIgnored)));
        let controller = &mut self.controllers[at];
        match next {
            Next::After(Duration::ZERO) => {
                controller.queue.insert(key);
            }
            Next::After(wait) if !forgetful => {
                let due = elapsed + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX / 2) + 1;
                controller.timers.insert(key, due);
            }
            Next::After(_) | Next::Await => {}
        }
    }

    /// Drops a pass in the middle; the queue brings the record again.
    pub fn drop_pass(&mut self, at: usize, pass: usize) {
        let controller = &mut self.controllers[at];
        if pass < controller.passes.len() {
            let (key, future) = controller.passes.remove(pass);
            drop(future);
            controller.record_at.get_or_insert(0);
            controller.queue.extend(key);
        }
    }

    pub fn pass_count(&self, at: usize) -> usize {
        self.controllers[at].passes.len()
    }

    fn hear(&mut self, at: usize) {
        let blind = self.with(|truth| truth.planted(Plant::HaltsReadAsEmpty));
        let controller = &mut self.controllers[at];
        let Some(message) = controller.inbox.pop_front() else { return };
        match message {
            Message::Halts(halts) => {
                self.truth.lock().unwrap().oracle.halts.insert(controller.id, halts.clone());
                let seen = if blind { Some(Vec::new()) } else { halts };
                let woken = controller.ctx.fleet().set_halts(seen);
                controller.ctx.wake_all(woken);
            }
            Message::Change(Change::Applied(record)) => {
                if record.kind == Kind::Agent {
                    controller.ctx.take_watched(&record, validate(&record).as_ref().ok());
                }
                let lost = self.truth.lock().unwrap().lost_trigger();
                if !controller.ctx.is_own_write(&record) && !lost {
                    controller.queue.insert(record.key());
                }
            }
            Message::Change(Change::Deleted(record)) => {
                if record.kind == Kind::Agent {
                    controller.ctx.drop_from_fleet(&super::store::uid_of(&record));
                }
                controller.queue.insert(record.key());
            }
        }
    }

    /// Everybody looks at everything again.
    pub fn resync(&mut self) {
        let keys: Vec<Key> = self.with(|truth| truth.records.map.keys().cloned().collect());
        for controller in &mut self.controllers {
            controller.queue.extend(keys.iter().cloned());
        }
    }
}

impl Truth {
    fn lost_trigger(&mut self) -> bool {
        self.rng.hits(self.faults.trigger_lost)
    }
}

/// What can happen next.
#[derive(Debug, Clone)]
enum Choice {
    Poll(usize, usize),
    Begin(usize, Key),
    Hear(usize),
    Effect(u64),
    Cell(Uid, RunId),
    /// The engine does a job.
    Job(usize),
    /// The init of a container that waits for its start.
    Init(RunId),
    Kill(u64),
    Record(usize),
}
