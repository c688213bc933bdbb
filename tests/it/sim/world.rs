//! Fake `World` of one controller: looks at the truth, and starts effects that the scheduler carries out later, part by part, in any
//! order (`effects.rs`). Refuses what the real one refuses: an epoch lower than the highest it has seen.

use super::effects::failure;
use super::faults::{Moment, Strike};
use super::oracle;
use super::plants::Plant;
use super::store::{FakeStore, pause, slowly};
use super::truth::{Cell, CellState, Pending, Shared, Truth};
use futures::future::BoxFuture;
use mosaic::api::agent::Driver;
use mosaic::api::condition::reason;
use mosaic::api::names::{ANNOTATION_DISCARD, Epoch, FINALIZER, Role, RunId, Uid};
use mosaic::effect::{EffectError, Subject, World};
use mosaic::plan::action::{Action, ActionId, Effect};
use mosaic::plan::observed::{Inventory, Look, Observed, SandboxSeen, SandboxState, WorkspaceSeen};
use mosaic::plan::orphans::OrphanAction;
use mosaic::store::Store;
use std::collections::BTreeSet;

/// The world as one controller reaches it.
pub struct FakeWorld {
    pub shared: Shared,
    pub controller: u32,
    pub store: FakeStore,
}

impl FakeWorld {
    fn with<T>(&self, act: impl FnOnce(&mut Truth) -> T) -> T {
        act(&mut self.shared.lock().unwrap())
    }

    async fn look(&self, subject: &Subject) -> Observed {
        // In flight first, then the looks: what ends in between is taken for unfinished, never for absent.
        let early = self.with(|truth| truth.planted(Plant::InFlightReadLast));
        let mut tables = self.with(|truth| truth.table_of(self.controller, &subject.uid));
        pause().await;
        let sandboxes = self.with(|truth| truth.look_sandboxes(Some(&subject.uid)));
        pause().await;
        let workspace = self.with(|truth| truth.look_workspace(&subject.uid));
        if early {
            slowly().await;
            tables = self.with(|truth| truth.table_of(self.controller, &subject.uid));
        }
        let (in_flight, outcomes) = tables;
        Observed { sandboxes, workspace, in_flight, outcomes }
    }

    async fn do_or_start(&self, subject: &Subject, effect: Effect, halted: bool) -> Result<(), EffectError> {
        pause().await;
        let strike = self.with(|truth| {
            truth.admit_effect(self.controller, subject, &effect, halted)?;
            Ok(truth.aimed(&effect.action))
        })?;
        if strike == Some(Strike::CrashBefore) {
            self.crash().await;
        }
        if strike == Some(Strike::Kill(Moment::Before)) {
            self.with(|truth| truth.kill_now(self.controller, &subject.uid));
        }
        let result = if effect.action.is_blocking() {
            self.with(|truth| truth.begin_effect(self.controller, subject, &effect));
            Ok(())
        } else {
            self.on_record(subject, &effect.action).await
        };
        match strike {
            Some(Strike::CrashAndLand) => self.crash().await,
            Some(Strike::CrashAfter) => {
                self.with(|truth| truth.land_fully(self.controller, &effect));
                self.crash().await;
            }
            Some(Strike::ReplyLost) if !effect.action.is_blocking() => {
                return Err(EffectError::Failed("the reply was lost".into()));
            }
            Some(Strike::ReplyLost) => self.with(|truth| truth.land_and_lose(self.controller, &effect)),
            Some(Strike::Kill(moment)) => self.with(|truth| truth.kill_at(self.controller, &effect, moment)),
            Some(Strike::CrashBefore) | None => {}
        }
        pause().await;
        result
    }

    async fn crash(&self) {
        self.with(|truth| truth.crash_requests.insert(self.controller));
        std::future::pending::<()>().await;
    }

    /// The effects on the record itself: compare-and-set on what the pass has read.
    async fn on_record(&self, subject: &Subject, action: &Action) -> Result<(), EffectError> {
        let mut record = subject.record.clone();
        let result = match action {
            Action::AddFinalizer => {
                if self.with(|truth| truth.planted(Plant::FinalizerLost)) {
                    return Ok(());
                }
                let finalizers = record.metadata.finalizers.get_or_insert_default();
                if finalizers.iter().all(|name| name != FINALIZER) {
                    finalizers.push(FINALIZER.to_owned());
                }
                self.store.replace(record).await.map(|_| ())
            }
            Action::RemoveFinalizer => {
                record.metadata.finalizers.get_or_insert_default().retain(|name| name != FINALIZER);
                self.store.replace(record).await.map(|_| ())
            }
            Action::Archive => self.store.archive(record).await,
            Action::DeleteRecord => self.store.delete(&record.key(), Some(&subject.uid), &[]).await.map(|_| ()),
            other => unreachable!("{} is a blocking effect", other.name()),
        };
        result.map_err(EffectError::Store)
    }
}

impl World for FakeWorld {
    fn observe<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Observed> {
        Box::pin(self.look(subject))
    }

    fn apply<'a>(&'a self, subject: &'a Subject, effect: Effect) -> BoxFuture<'a, Result<(), EffectError>> {
        // A halt that is heard of from here on finds the start under way, and ends it.
        let halted = self.with(|truth| {
            let latched = truth.lane.is_known(self.controller, &subject.uid);
            latched || oracle::is_halted(truth, self.controller, subject)
        });
        Box::pin(self.do_or_start(subject, effect, halted))
    }

    fn acknowledge(&self, uid: &Uid, taken: &BTreeSet<ActionId>) {
        self.with(|truth| {
            let table = truth.tables.entry(self.controller).or_default();
            table.outcomes.retain(|(of, id), _| of != uid || !taken.contains(id));
        });
    }

    fn abandon(&self, uid: &Uid) {
        self.with(|truth| truth.abandon(self.controller, uid));
    }

    fn end_quietly(&self, uid: &Uid, effects: &BTreeSet<ActionId>) {
        self.with(|truth| {
            let table = truth.tables.entry(self.controller).or_default();
            let under_way = |id: &&ActionId| table.in_flight.contains_key(&(uid.clone(), (*id).clone()));
            let quiet: Vec<_> = effects.iter().filter(under_way).map(|id| (uid.clone(), id.clone())).collect();
            table.quiet.retain(|(of, _)| of != uid);
            table.quiet.extend(quiet);
        });
    }

    fn forget(&self, uid: &Uid) {
        self.with(|truth| truth.tables.entry(self.controller).or_default().outcomes.retain(|(of, _), _| of != uid));
    }

    fn inventory(&self) -> BoxFuture<'_, Result<Inventory, EffectError>> {
        Box::pin(async move {
            pause().await;
            self.with(Truth::sweep_containers);
            self.with(|truth| match truth.look_sandboxes(None) {
                Look::Unknown(why) | Look::GivenUp(why) => Err(EffectError::Failed(why)),
                Look::Seen(sandboxes) => {
                    let trees = truth.bodies.iter().filter(|(_, body)| body.tree.is_some());
                    let workspaces = trees.map(|(uid, body)| (uid.clone(), body.name.clone())).collect();
                    Ok(Inventory { sandboxes, workspaces, gate_trees: Vec::new() })
                }
            })
        })
    }

    fn apply_orphan(&self, epoch: Epoch, action: OrphanAction) -> BoxFuture<'_, Result<(), EffectError>> {
        Box::pin(async move {
            pause().await;
            self.with(|truth| truth.apply_orphan(epoch, &action))
        })
    }
}

type TableOf =
    (BTreeSet<ActionId>, std::collections::BTreeMap<ActionId, Result<mosaic::plan::observed::Outcome, mosaic::plan::observed::Failure>>);

/// What a controller sees of the truth, and what the truth admits of it.
impl Truth {
    /// What a controller does for an agent that has ended is not wanted any more, but for what serves the end.
    pub fn abandon(&mut self, controller: u32, uid: &Uid) {
        let unwanted = |p: &&mut Pending| p.controller == controller && p.effect.uid == *uid && p.effect.action.starts_something();
        for pending in self.effects.values_mut().filter(unwanted) {
            pending.abandoned.get_or_insert(pending.part);
        }
    }

    fn table_of(&mut self, controller: u32, uid: &Uid) -> TableOf {
        let forgetful = self.planted(Plant::LateCompletionCountsAsDone);
        let table = self.tables.entry(controller).or_default();
        // From this look on every end wakes again.
        table.quiet.retain(|(of, _)| of != uid);
        let in_flight = table.in_flight.keys().filter(|(of, _)| of == uid && !forgetful).map(|(_, id)| id.clone()).collect();
        let outcomes = table.outcomes.iter().filter(|((of, _), _)| of == uid).map(|((_, id), o)| (id.clone(), o.clone())).collect();
        (in_flight, outcomes)
    }

    fn look_sandboxes(&mut self, uid: Option<&Uid>) -> Look<Vec<SandboxSeen>> {
        if self.rng.hits(self.faults.look_fails) {
            if self.planted(Plant::UnknownIsAbsent) {
                return Look::Seen(Vec::new());
            }
            return Look::Unknown("the driver does not answer".into());
        }
        let mut unseen = BTreeSet::new();
        for run in self.hidden_runs(uid) {
            match self.may_come(&run) {
                Ok(true) => {}
                Ok(false) if self.planted(Plant::NoSuchContainerBelieved) => drop(unseen.insert(run)),
                Ok(false) => self.conclude(&run, "no container came of it"),
                Err(_) if self.planted(Plant::ReleasedOnUnknown) => drop(unseen.insert(run)),
                // Of all, one that cannot be looked at is told as about to start.
                Err(_) if uid.is_none() => {}
                Err(why) => return Look::Unknown(why),
            }
        }
        let blind = self.planted(Plant::GateSandboxesUnseen);
        let bodies = self.bodies.iter().filter(|(of, _)| uid.is_none_or(|uid| uid == *of));
        let cells = bodies.flat_map(|(_, body)| body.cells.iter());
        let seen =
            cells.filter(|(run, _)| !(unseen.contains(*run) || blind && matches!(run.role, Role::Gate { .. }))).map(|(run, cell)| {
                SandboxSeen {
                    run: run.clone(),
                    driver: if self.is_contained(&run.uid) { Driver::Docker } else { Driver::Process },
                    id: run.to_string(),
                    isolation: Vec::new(),
                    state: match &cell.state {
                        CellState::Preparing => SandboxState::Preparing,
                        CellState::Running { since, sign } => SandboxState::Running { since: *since, last_sign_at: *sign, progress: None },
                        CellState::Ended(end) => SandboxState::Ended(end.clone()),
                    },
                    doing: None,
                }
            });
        Look::Seen(seen.collect())
    }

    /// Containers whose init the kernel has not shown.
    fn hidden_runs(&self, uid: Option<&Uid>) -> Vec<RunId> {
        let bodies = self.bodies.iter().filter(|(of, _)| uid.is_none_or(|uid| uid == *of) && self.is_contained(of));
        let hidden = |cell: &&Cell| cell.state == CellState::Preparing && cell.pid.is_none();
        bodies.flat_map(|(_, body)| &body.cells).filter(|(_, cell)| hidden(cell)).map(|(run, _)| run.clone()).collect()
    }

    fn look_workspace(&mut self, uid: &Uid) -> Look<Option<WorkspaceSeen>> {
        if self.rng.hits(self.faults.look_fails) {
            return if self.planted(Plant::UnknownIsAbsent) { Look::Seen(None) } else { Look::Unknown("the disk does not answer".into()) };
        }
        let tree = self.bodies.get(uid).and_then(|body| body.tree.as_ref().map(|tree| (body.name.clone(), tree)));
        Look::Seen(tree.map(|(name, tree)| WorkspaceSeen {
            worktree: format!("agent-{uid}-{name}"),
            base: tree.base.clone(),
            content: tree.content.clone(),
            ready: true,
        }))
    }

    /// Refuses an old epoch; lets the oracle look at everything else.
    fn admit_effect(&mut self, controller: u32, subject: &Subject, effect: &Effect, halted: bool) -> Result<(), EffectError> {
        self.note(format!("apply {:?} for {} by {controller}", effect.action, effect.uid));
        if effect.epoch < self.highest_epoch && !self.planted(Plant::FencingForgotten) {
            return Err(EffectError::Fenced { mine: effect.epoch, seen: self.highest_epoch });
        }
        if self.rng.hits(self.faults.apply_fails) {
            return Err(EffectError::Failed("could not be started".into()));
        }
        self.applied.push(effect.action.name());
        oracle::on_apply(self, subject, effect, halted);
        Ok(())
    }

    fn begin_effect(&mut self, controller: u32, subject: &Subject, effect: &Effect) {
        let slot = (effect.uid.clone(), effect.action.id());
        self.body(&effect.uid);
        let table = self.tables.entry(controller).or_default();
        if table.in_flight.contains_key(&slot) {
            return;
        }
        table.outcomes.remove(&slot);
        self.effects_begun += 1;
        let number = self.effects_begun;
        self.tables.entry(controller).or_default().in_flight.insert(slot, number);
        let agent = subject.agent.as_ref();
        let counts = agent.map(|agent| agent.status.counts).unwrap_or_default();
        let notes = subject.record.metadata.annotations.as_ref();
        let is_latched = self.latches.get(&controller).is_some_and(|latch| latch.killed(&effect.uid).is_some());
        let is_unwanted = is_latched && effect.action.starts_something() && !self.planted(Plant::QueuedPushBegun);
        let pending = Pending {
            controller,
            effect: effect.clone(),
            repository: agent.map(|agent| agent.repository.clone()).unwrap_or_default(),
            target: agent.map(|agent| agent.target_branch.full_ref()).unwrap_or_default(),
            round: counts.agent_failures + counts.rejections,
            discard: notes.and_then(|all| all.get(ANNOTATION_DISCARD)).is_some_and(|text| text == "true"),
            part: 0,
            result: None,
            late: false,
            begun_at: self.elapsed,
            // Of whom the controller knows by now that it was killed nothing is begun.
            abandoned: is_unwanted.then_some(0),
        };
        self.effects.insert(number, pending);
    }

    fn effect_number(&self, controller: u32, effect: &Effect) -> Option<u64> {
        self.tables.get(&controller)?.in_flight.get(&(effect.uid.clone(), effect.action.id())).copied()
    }

    /// The lane kills the agent of an effect that was begun.
    fn kill_at(&mut self, controller: u32, effect: &Effect, moment: Moment) {
        match moment {
            Moment::Before => return,
            Moment::During(parts) => {
                let number = self.effect_number(controller, effect).unwrap_or_default();
                for part in 0..parts {
                    if self.effects.get(&number).is_some_and(|pending| pending.result.is_none()) {
                        self.step_effect(number);
                    }
                    if part % 2 == 1 && !self.engine.jobs.is_empty() {
                        self.step_job(0);
                    }
                }
            }
            Moment::After => self.land_fully(controller, effect),
        }
        self.kill_now(controller, &effect.uid);
    }

    /// Does an effect to its end; with it, what it waits for of an engine.
    fn land_fully(&mut self, controller: u32, effect: &Effect) {
        let Some(number) = self.effect_number(controller, effect) else { return };
        while self.effects.get(&number).is_some_and(|pending| pending.result.is_none()) {
            self.step_effect(number);
            while !self.engine.jobs.is_empty() {
                self.step_job(0);
            }
            for run in self.waiting_inits() {
                self.step_init(&run);
            }
        }
    }

    /// Does an effect to its end and reports it as failed.
    fn land_and_lose(&mut self, controller: u32, effect: &Effect) {
        self.land_fully(controller, effect);
        let lost = Err(failure(self, reason::REMOTE_UNAVAILABLE, "the reply was lost"));
        let Some(number) = self.effect_number(controller, effect) else { return };
        if let Some(pending) = self.effects.get_mut(&number) {
            pending.result = Some(lost);
        }
    }
}
