//! Seeded scheduler: drives the real `reconcile()` as futures polled by hand, and decides at every step what happens next: a poll, a
//! part of an effect, a message, a crash, a user. One seed is one run. Phase one has faults; in phase two they stop, and everything must
//! settle. It keeps the promises of the real queue (never two passes of one record in one controller, `Next` and `error_policy`
//! honoured) and no others.

use super::faults::{Faults, Rng};
use super::git::Git;
use super::mischief;
use super::oracle::{self, Oracle, status_of};
use super::plants::Plant;
use super::store::{Change, FakeStore, Records};
use super::truth::{EPOCH_MILLIS, Log, Shared, Truth};
use super::world::FakeWorld;
use futures::future::LocalBoxFuture;
use mosaic::api::condition;
use mosaic::api::names::{Epoch, Uid};
use mosaic::api::validate::validate;
use mosaic::controller::reconcile::{Context, Journal, Next, PassError, error_policy, reconcile};
use mosaic::plan::fleet::{Fleet, FleetLimits, HaltInForce};
use mosaic::plan::orphans::{KnownRecords, plan_orphans};
use mosaic::plan::status::ending;
use mosaic::store::{Key, Kind, Record};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Passes of one controller at once.
const PASSES_MAX: usize = 3;
/// Passes over one record without time going by: more is a hot loop.
const SPINS_MAX: u32 = 60;
/// Steps in which everything must settle once the faults have stopped.
const HEAL_STEPS_MAX: u32 = 60_000;
/// Longest time in which nothing happens while an agent is unsettled: longer than any backoff, recheck or look of this fleet.
const STALL_MILLIS: u64 = 45_000;
/// Passes of one agent in which it must settle once the faults have stopped,
const HEAL_PASSES_MAX: u64 = 120;
/// and one more for so many milliseconds: who is refused is looked at again every 30 s, who runs every 15 s.
const HEAL_PASS_MILLIS: u64 = 4_000;

/// What a future that a controller runs has brought.
enum Done {
    Pass(Key, Result<Next, PassError>),
    Orphans,
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
    ctx: Arc<Context>,
    woken: Arc<Mutex<Vec<Key>>>,
    queue: BTreeSet<Key>,
    timers: BTreeMap<Key, u64>,
    failures: BTreeMap<Key, u32>,
    passes: Vec<(Option<Key>, LocalBoxFuture<'static, Done>)>,
    inbox: VecDeque<Message>,
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
    healing: bool,
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
            applied: Vec::new(),
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
        Context {
            store: Arc::new(store(&self.truth)),
            world: Arc::new(FakeWorld { shared: self.truth.clone(), controller: id, store: store(&self.truth) }),
            fleet: Mutex::new(Fleet::new(limits)),
            epoch: Arc::new(move || Some(epoch)),
            latch: Arc::default(),
            clock: Arc::new(move || clock.lock().unwrap().now()),
            journal: Journal::silent(),
            wake: Arc::new(move |key| woken.lock().unwrap().push(key)),
            own_writes: Mutex::new(BTreeMap::new()),
        }
    }

    pub fn readable_halts(&self) -> Option<Vec<HaltInForce>> {
        self.halts_readable.then(|| self.halts.clone())
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
        for (at, controller) in self.controllers.iter().enumerate().filter(|(_, controller)| !controller.paused) {
            choices.extend((0..controller.passes.len()).map(|pass| (weights.poll, Choice::Poll(at, pass))));
            let busy = |key: &&Key| controller.passes.iter().any(|(of, _)| of.as_ref() == Some(*key));
            if controller.passes.len() < PASSES_MAX {
                choices.extend(controller.queue.iter().filter(|key| !busy(key)).map(|key| (weights.begin, Choice::Begin(at, key.clone()))));
            }
            if !controller.inbox.is_empty() {
                choices.push((weights.hear, Choice::Hear(at)));
            }
        }
        self.with(|truth| {
            let silent = |controller: u32| truth.paused.contains(&controller);
            let live = truth.effects.iter().filter(|(_, p)| p.late || !silent(p.controller) || p.result.is_none() && p.part < 3);
            choices.extend(live.map(|(number, _)| (weights.effect, Choice::Effect(*number))));
            choices.extend(truth.due_cells().into_iter().map(|(uid, run)| (weights.cell, Choice::Cell(uid, run))));
        });
        choices
    }

    /// Nothing can happen now: on to the next moment at which something can.
    fn next_moment(&mut self) -> bool {
        let timers = self.controllers.iter().filter(|c| !c.paused).flat_map(|c| c.timers.values().copied());
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
                let result = reconcile(&key, &ctx).await;
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

    fn poll(&mut self, at: usize, pass: usize) {
        let controller = &mut self.controllers[at];
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let Poll::Ready(done) = controller.passes[pass].1.as_mut().poll(&mut cx) else { return };
        drop(controller.passes.remove(pass));
        let Done::Pass(key, result) = done else { return };
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
                controller.ctx.take_watched(&record, validate(&record).as_ref().ok());
                let lost = self.truth.lock().unwrap().lost_trigger();
                if !controller.ctx.is_own_write(&record) && !lost {
                    controller.queue.insert(record.key());
                }
            }
            Message::Change(Change::Deleted(record)) => {
                let uid = super::store::uid_of(&record);
                controller.ctx.drop_from_fleet(&uid);
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

    /// Faults stop; everything must settle.
    pub fn heal(&mut self) {
        self.with(|truth| {
            truth.note("faults stop".into());
            truth.needs_resync |= truth.faults.trigger_lost > 0;
        });
        mischief::repair(self);
        while self.with(|truth| truth.effects.values().any(|p| p.late)) {
            let late = self.with(|truth| truth.effects.iter().find(|(_, p)| p.late).map(|(number, _)| *number));
            self.with(|truth| truth.step_effect(late.expect("there is one")));
        }
        self.passes.clear();
        self.healing = true;
        let began = self.with(|truth| truth.elapsed);
        if self.with(|truth| truth.needs_resync) {
            self.resync();
        }
        for round in 0..2 {
            self.settle();
            if round == 0 {
                self.begin_orphans(0);
            }
        }
        let worst = self.passes.iter().max_by_key(|(_, passes)| **passes).map(|(key, passes)| (key.name.clone(), *passes));
        let passes_max = HEAL_PASSES_MAX + (self.with(|truth| truth.elapsed) - began) / HEAL_PASS_MILLIS;
        if let Some((name, passes)) = worst.filter(|(_, passes)| u64::from(*passes) > passes_max) {
            self.with(|truth| truth.violate(format!("{name} needed {passes} passes to settle")));
        }
        self.with(oracle::at_the_end);
    }

    fn settle(&mut self) {
        for _ in 0..HEAL_STEPS_MAX {
            let quiet = self.controllers.iter().all(|c| c.passes.is_empty() && c.queue.is_empty() && c.inbox.is_empty());
            let still = self.with(|truth| truth.effects.is_empty() && truth.pokes.is_empty() && truth.records.changes.is_empty());
            if quiet && still && self.unsettled().is_empty() {
                return;
            }
            if !self.step() {
                break;
            }
        }
        for text in self.unsettled() {
            self.with(|truth| truth.violate(format!("did not settle: {text}")));
        }
    }

    /// Agents that have not ended, and are not refused for a reason that stands.
    fn unsettled(&self) -> Vec<String> {
        self.with(|truth| {
            let agents = truth.records.map.values().filter(|record| record.kind == Kind::Agent);
            let open = agents.filter_map(|record| {
                let status = status_of(record);
                let cleaned = condition::is_true(&status.conditions, condition::CLEANED_UP);
                let settled = ending(&status).is_some() && cleaned && record.metadata.deletion_timestamp.is_none();
                (!settled && !truth.waits(record, 0)).then(|| format!("{} {:?} {:?}", record.key().name, status.phase, status.message))
            });
            open.collect()
        })
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
    Cell(Uid, mosaic::api::names::RunId),
}

/// One pass over what has no record: the inventory first, then the records, so that nothing new counts as an orphan.
async fn orphan_pass(ctx: Arc<Context>, epoch: Epoch, early_list: bool) -> Done {
    let known = async || {
        let (records, _) = ctx.store.list(Kind::Agent).await.ok()?;
        Some(KnownRecords { uids: records.iter().map(super::store::uid_of).collect(), amnesia: false })
    };
    let before = if early_list { known().await } else { None };
    if early_list {
        super::store::slowly().await;
    }
    let Ok(inventory) = ctx.world.inventory().await else { return Done::Orphans };
    let Some(known) = (if early_list { before } else { known().await }) else { return Done::Orphans };
    for action in plan_orphans(&inventory, &known) {
        if ctx.world.apply_orphan(epoch, action).await.is_err() {
            break;
        }
    }
    Done::Orphans
}
