//! What each blocking effect does to the truth, part by part. An effect whose controller is dead may still land, but is granted nothing
//! and nobody hears of it. Every refusal here is one that the real effectors make: tombstones, attempts, epochs, expected old values.

use super::git::MARKER;
use super::oracle;
use super::plants::Plant;
use super::store::uid_of;
use super::truth::{Behaviour, Cell, CellState, Pending, Tree, Truth};
use mosaic::api::condition::reason;
use mosaic::api::names::{CommitId, Epoch, Role, RunId, Uid};
use mosaic::effect::EffectError;
use mosaic::plan::action::Action;
use mosaic::plan::observed::{EndCause, Failure, FailureClass, Integrated, Outcome, Pushed, Resolved, Snapshot};
use mosaic::plan::orphans::OrphanAction;

/// `None`: the effect has further parts.
type Part = Option<Result<Outcome, Failure>>;

/// A failure of the infrastructure, seen now.
pub fn failure(truth: &Truth, why: &str, message: &str) -> Failure {
    Failure { class: FailureClass::Infrastructure, reason: why.to_owned(), message: message.to_owned(), at: truth.now() }
}

const DONE: Part = Some(Ok(Outcome::Done));

impl Truth {
    /// Does the next part of an effect.
    pub fn step_effect(&mut self, number: u64) {
        let Some(pending) = self.effects.get(&number).cloned() else { return };
        if pending.result.is_some() {
            return self.reply_effect(number);
        }
        // What had not begun never does; what had, is broken off if that can still be done.
        let is_latched = || self.latches.get(&pending.controller).is_some_and(|latch| latch.killed(&pending.effect.uid).is_some());
        let is_late_kill = pending.part == 0 && !pending.late && pending.effect.action.starts_something() && is_latched();
        let unwanted = pending.abandoned.or(is_late_kill.then_some(0));
        let unwanted = unwanted.filter(|_| pending.part <= 1 && !self.planted(Plant::QueuedPushBegun));
        if unwanted.is_some_and(|since| since == 0 || self.rng.hits(500)) {
            let failed = failure(self, reason::KILLED, "broken off: its agent has ended");
            return self.end_effect(number, Err(failed));
        }
        if pending.part == 0 && self.rng.hits(self.faults.effect_fails) {
            let failed = failure(self, reason::WORKSPACE_FAILED, "the disk is full");
            return self.end_effect(number, Err(failed));
        }
        let result = self.part_of(&pending);
        self.note(format!("part {} of {} for {} -> {result:?}", pending.part, pending.effect.action.name(), pending.effect.uid));
        match result {
            None => self.effects.get_mut(&number).expect("it is under way").part += 1,
            Some(_) if self.rng.hits(self.faults.effect_reply_lost) => {
                let lost = failure(self, reason::REMOTE_UNAVAILABLE, "the reply was lost");
                self.end_effect(number, Err(lost));
            }
            Some(result) => self.end_effect(number, result),
        }
    }

    /// The lane ends what pushes for an agent, and looks that it has; what the remote has already, it has.
    pub fn break_off_pushes(&mut self, uid: &Uid) {
        let under_way =
            |p: &Pending| matches!(p.effect.action, Action::Push { .. }) && p.effect.uid == *uid && p.result.is_none() && p.part <= 1;
        let numbers: Vec<u64> = self.effects.iter().filter(|(_, p)| under_way(p)).map(|(number, _)| *number).collect();
        for number in numbers {
            let failed = failure(self, reason::KILLED, "broken off: its agent was killed");
            self.end_effect(number, Err(failed));
        }
    }

    /// Who waits for an effect waits no longer: whether it happens is unknown.
    pub fn give_up(&mut self, number: u64) {
        let failed = failure(self, reason::ENGINE_UNAVAILABLE, "the engine has not answered");
        self.end_effect(number, Err(failed));
    }

    fn end_effect(&mut self, number: u64, result: Result<Outcome, Failure>) {
        let pending = self.effects.get_mut(&number).expect("it is under way");
        pending.result = Some(result);
        if pending.late {
            self.effects.remove(&number);
        }
    }

    /// The controller hears how an effect ended.
    fn reply_effect(&mut self, number: u64) {
        let Some(pending) = self.effects.remove(&number) else { return };
        let slot = (pending.effect.uid.clone(), pending.effect.action.id());
        let Some(mut result) = pending.result else { return };
        if let Err(failed) = &mut result {
            failed.at = self.now();
        }
        let table = self.tables.entry(pending.controller).or_default();
        table.in_flight.remove(&slot);
        let wakes = !table.quiet.remove(&slot) || result.is_err();
        table.outcomes.insert(slot, result);
        if wakes {
            self.pokes.push((Some(pending.controller), pending.effect.uid));
        }
    }

    fn part_of(&mut self, pending: &Pending) -> Part {
        let uid = &pending.effect.uid;
        match &pending.effect.action {
            Action::Resolve => Some(self.resolve(pending)),
            Action::EnsureSandbox { run, base, content } => self.ensure(pending, run, base, content.as_ref()),
            Action::StopSandbox { run } => Some(self.stop(uid, run)),
            Action::RemoveSandbox { run } => Some(self.remove(uid, run)),
            Action::TakeSnapshot { base, .. } => Some(self.snapshot(pending, base)),
            Action::Integrate { candidate, .. } => Some(self.integrate(pending, candidate).map(Outcome::Integrated)),
            Action::Push { head, base, expected_old, .. } => self.push(pending, head, base, expected_old.as_ref()),
            Action::Rescue { .. } => Some(Ok(self.rescue(uid))),
            Action::RemoveWorkspace => {
                oracle::on_tree_removed(self, uid, pending.discard);
                self.body(uid).tree = None;
                DONE
            }
            Action::AddFinalizer | Action::Archive | Action::RemoveFinalizer | Action::DeleteRecord => DONE,
        }
    }

    fn remote_fails(&self, url: &str) -> Option<Failure> {
        let remote = &self.git.remotes[url];
        remote.down.then(|| failure(self, reason::REMOTE_UNAVAILABLE, "the remote does not answer"))
    }

    fn resolve(&mut self, pending: &Pending) -> Result<Outcome, Failure> {
        if let Some(failed) = self.remote_fails(&pending.repository) {
            return Err(failed);
        }
        let remote = &self.git.remotes[&pending.repository];
        if !remote.exists {
            let absent = failure(self, reason::REPOSITORY_NOT_FOUND, "no such repository");
            return Err(Failure { class: FailureClass::Invalid, ..absent });
        }
        Ok(Outcome::Resolved(Resolved {
            remote: pending.repository.clone(),
            base_branch: mosaic::api::names::Branch::new("main").unwrap(),
            base: remote.base.clone(),
            target: remote.refs.get(&pending.target).cloned(),
            gate_source: ".mosaic/gates.toml".into(),
            trusted: remote.base.clone(),
            gates: remote.gates.clone(),
        }))
    }

    /// Whether a sandbox must not start (any more): its tombstone, a newer attempt, a higher epoch.
    fn refused(&self, pending: &Pending, run: &RunId) -> Option<&'static str> {
        if self.planted(Plant::StartGateOpen) {
            return None;
        }
        let body = self.bodies.get(&pending.effect.uid)?;
        if body.tombstones.contains(run) {
            return Some("it was stopped before");
        }
        if run.attempt.0 < body.attempt_seen {
            return Some("a newer attempt was seen");
        }
        let stale = pending.effect.epoch < self.highest_epoch && !self.planted(Plant::FencingForgotten);
        (stale && !pending.late).then_some("a higher epoch was seen")
    }

    /// Tree, sandbox, grant.
    fn ensure(&mut self, pending: &Pending, run: &RunId, base: &CommitId, content: Option<&CommitId>) -> Part {
        if let Some(why) = self.refused(pending, run) {
            return Some(Err(failure(self, reason::SANDBOX_FAILED, why)));
        }
        let again = self.planted(Plant::EnsureNotIdempotent);
        if let Some(cell) = self.body(&pending.effect.uid).cells.get(run)
            && !matches!(cell.state, CellState::Preparing)
            && !(again && pending.part == 2)
        {
            return DONE;
        }
        if again
            && pending.part == 1
            && !pending.late
            && !self.is_contained(&run.uid)
            && self.body(&pending.effect.uid).cells.contains_key(run)
        {
            self.grant(run, pending.controller, false);
        }
        match pending.part {
            0 => {
                if run.role == Role::Agent {
                    self.lay_out(pending, base, content);
                }
                None
            }
            1 => {
                let contained = self.is_contained(&run.uid);
                let pid = (!contained).then(|| self.new_pid());
                let behaviour = self.behaviour(pending);
                let judges = content.filter(|_| run.role != Role::Agent).map(|head| (head.clone(), base.clone()));
                let (state, late) = (CellState::Preparing, pending.late);
                let cell = Cell { state, behaviour, judges, late, next_at: 0, left: 2, pid, dying: false, writes_on: false };
                let body = self.body(&pending.effect.uid);
                body.attempt_seen = body.attempt_seen.max(run.attempt.0);
                body.cells.entry(run.clone()).or_insert(cell);
                None
            }
            _ if self.is_contained(&run.uid) => {
                if self.paused.contains(&pending.controller) && !pending.late {
                    return None;
                }
                self.ensure_contained(pending, run)
            }
            // Nobody grants for a controller that is dead: init waits, and is adopted or removed.
            _ if pending.late && !self.planted(Plant::StartGateOpen) => DONE,
            _ if self.paused.contains(&pending.controller) && !self.planted(Plant::FencingForgotten) => None,
            _ => {
                match self.gate(pending.controller, run) {
                    Some(why) => self.end_cell(&run.uid, run, EndCause::NotStarted(why.into()), None),
                    None => self.grant(run, pending.controller, pending.late),
                }
                DONE
            }
        }
    }

    fn behaviour(&mut self, pending: &Pending) -> Behaviour {
        let script = &self.body(&pending.effect.uid).script;
        script.get(pending.round as usize).or(script.last()).copied().unwrap_or(Behaviour::Good)
    }

    /// Why a run is refused its start by a controller; `None` grants.
    pub fn gate(&self, by: u32, run: &RunId) -> Option<&'static str> {
        if self.planted(Plant::StartGateOpen) {
            return None;
        }
        if self.bodies.get(&run.uid).is_some_and(|body| body.tombstones.contains(run)) {
            return Some("it was stopped before it started");
        }
        let latch = self.latches.get(&by).filter(|_| !self.planted(Plant::GateGrantsLatched))?;
        let latched = latch.killed(&run.uid).is_some() || latch.halted("default").is_some();
        latched.then_some("its agent was killed, or everything is halted")
    }

    /// The agent's command begins.
    pub fn grant(&mut self, run: &RunId, by: u32, late: bool) {
        let (now, elapsed) = (self.now(), self.elapsed);
        let first_at = elapsed + 300 + self.rng.below(2000);
        let Some(cell) = self.body(&run.uid).cells.get_mut(run) else { return };
        if matches!(cell.state, CellState::Ended(_)) {
            return self.violate(format!("{run} was taken for ended, and is granted its start"));
        }
        cell.state = CellState::Running { since: now, sign: now };
        cell.next_at = first_at;
        self.note(format!("{run} runs"));
        oracle::on_grant(self, run, by, late);
        self.poke(&run.uid);
    }

    fn lay_out(&mut self, pending: &Pending, base: &CommitId, content: Option<&CommitId>) {
        let files = self.git.files(content.unwrap_or(base)).clone();
        let body = self.body(&pending.effect.uid);
        if body.tree.as_ref().is_some_and(|tree| tree.base == *base && tree.content.as_ref() == content) {
            return;
        }
        body.tree = Some(Tree { base: base.clone(), content: content.cloned(), files, late: pending.late });
    }

    fn stop(&mut self, uid: &Uid, run: &RunId) -> Result<Outcome, Failure> {
        let pretends = self.planted(Plant::StopOnlyPretends);
        let body = self.body(uid);
        body.tombstones.insert(run.clone());
        let Some(cell) = body.cells.get_mut(run) else { return Ok(Outcome::Done) };
        if matches!(cell.state, CellState::Ended(_)) {
            return Ok(Outcome::Done);
        }
        if cell.dying {
            return Err(failure(self, reason::SANDBOX_FAILED, "its init still lives"));
        }
        cell.writes_on = pretends;
        if self.is_contained(uid) {
            return self.stop_contained(run);
        }
        self.end_cell(uid, run, EndCause::Stopped, None);
        Ok(Outcome::Done)
    }

    fn remove(&mut self, uid: &Uid, run: &RunId) -> Result<Outcome, Failure> {
        let body = self.body(uid);
        let alive = body.cells.get(run).is_some_and(|cell| !matches!(cell.state, CellState::Ended(_)));
        if alive {
            return Err(failure(self, reason::SANDBOX_FAILED, "it lives"));
        }
        body.tombstones.insert(run.clone());
        if self.engine.vessels.contains_key(run) {
            if self.engine.down {
                return Err(failure(self, reason::ENGINE_UNAVAILABLE, "the engine does not answer"));
            }
            self.engine.vessels.remove(run);
        }
        let body = self.body(uid);
        if body.cells.get(run).is_some_and(|cell| !cell.writes_on) {
            body.cells.remove(run);
        }
        Ok(Outcome::Done)
    }

    fn snapshot(&mut self, pending: &Pending, base: &CommitId) -> Result<Outcome, Failure> {
        let uid = &pending.effect.uid;
        oracle::on_snapshot(self, uid);
        let Some(tree) = self.body(uid).tree.clone() else {
            return Err(failure(self, reason::WORKSPACE_FAILED, "the tree is gone"));
        };
        let any = |word: &str| tree.files.iter().filter(|(_, text)| text.starts_with(word)).map(|(path, _)| path.clone()).collect();
        let (unfit, unresolved): (Vec<String>, Vec<String>) = (any("unfit"), any(MARKER));
        if !unfit.is_empty() {
            return Ok(Outcome::Snapshot(Snapshot::Refused(unfit), None));
        }
        if !unresolved.is_empty() {
            return Ok(Outcome::Snapshot(Snapshot::Unresolved(unresolved), None));
        }
        if tree.files == *self.git.files(base) {
            return Ok(Outcome::Snapshot(Snapshot::Unchanged, None));
        }
        let candidate = self.git.commit(vec![base.clone()], tree.files);
        let integrated = self.integrate(pending, &candidate).ok();
        Ok(Outcome::Snapshot(Snapshot::Candidate(candidate), integrated))
    }

    fn integrate(&mut self, pending: &Pending, candidate: &CommitId) -> Result<Integrated, Failure> {
        if let Some(failed) = self.remote_fails(&pending.repository) {
            return Err(failed);
        }
        let tip = self.git.remotes[&pending.repository].base.clone();
        let base = self.git.commits[candidate].parents[0].clone();
        if base == tip {
            return Ok(Integrated::Head { head: candidate.clone(), base });
        }
        let (files, conflicts) = self.git.merge(&base, candidate, &tip);
        Ok(if !conflicts.is_empty() {
            let content = self.git.commit(vec![tip.clone()], files);
            Integrated::Conflict { base: tip, content, paths: conflicts, hunks: "hunks".into() }
        } else if files == *self.git.files(&tip) {
            Integrated::Empty { base: tip }
        } else {
            let head = self.git.commit(vec![tip.clone(), candidate.clone()], files);
            Integrated::Head { head, base: tip }
        })
    }

    /// Compares, writes the ref with a lease on its old value, reads it back.
    fn push(&mut self, pending: &Pending, head: &CommitId, base: &CommitId, expected_old: Option<&CommitId>) -> Part {
        if let Some(failed) = self.remote_fails(&pending.repository) {
            return Some(Err(failed));
        }
        let remote = &self.git.remotes[&pending.repository];
        let found = remote.refs.get(&pending.target).cloned();
        if pending.part == 0 {
            if found.as_ref() != Some(head) && remote.base != *base && !self.planted(Plant::BaseNotReadAgain) {
                return Some(Ok(Outcome::Pushed(Pushed::BaseMoved(remote.base.clone()))));
            }
            return None;
        }
        if found.as_ref() == Some(head) {
            return Some(Ok(Outcome::Pushed(Pushed::Verified(head.clone()))));
        }
        if self.planted(Plant::PushOnlyPretends) {
            return Some(Ok(Outcome::Pushed(Pushed::Verified(head.clone()))));
        }
        if found.as_ref() != expected_old && !self.planted(Plant::ExpectedOldIgnored) {
            return Some(Ok(Outcome::Pushed(Pushed::RefTaken(found))));
        }
        if self.git.files(head).values().any(|text| text.starts_with("forbidden")) {
            return Some(Ok(Outcome::Pushed(Pushed::Rejected("pre-receive: forbidden word".into()))));
        }
        oracle::on_ref_written(self, pending, head, base, found.as_ref());
        let remote = self.git.remotes.get_mut(&pending.repository).expect("it was read above");
        remote.refs.insert(pending.target.clone(), head.clone());
        None
    }

    fn rescue(&mut self, uid: &Uid) -> Outcome {
        let Some(tree) = self.body(uid).tree.clone() else { return Outcome::Rescued(None) };
        if self.planted(Plant::RescuedAfterRemoval) && self.lane.is_kept(uid) {
            // Its name is given first, and the tree looked for later.
            return Outcome::Rescued(Some(format!("refs/rescue/{}/1", self.body(uid).name)));
        }
        if self.planted(Plant::RescueForgotten) || tree.files == *self.git.files(&tree.base) {
            return Outcome::Rescued(None);
        }
        let body = self.body(uid);
        body.rescued.push(tree.files);
        Outcome::Rescued(Some(format!("refs/rescue/{}/{}", body.name, body.rescued.len())))
    }

    /// An effect on something that has no record.
    pub fn apply_orphan(&mut self, epoch: Epoch, action: &OrphanAction) -> Result<(), EffectError> {
        self.note(format!("orphan {action:?}"));
        if epoch < self.highest_epoch {
            return Err(EffectError::Fenced { mine: epoch, seen: self.highest_epoch });
        }
        oracle::on_orphan(self, action);
        match action {
            OrphanAction::StopSandbox(run) => {
                return self.stop(&run.uid, run).map(|_| ()).map_err(|failed| EffectError::Failed(failed.message));
            }
            OrphanAction::RemoveSandbox(run) => {
                let removed = self.remove(&run.uid, run);
                return removed.map(|_| ()).map_err(|failed| EffectError::Failed(failed.message));
            }
            OrphanAction::RemoveWorkspace(uid) => {
                self.rescue(uid);
                self.body(uid).tree = None;
            }
        }
        Ok(())
    }

    /// What of a dead controller's effects still lands: each of them, or not.
    pub fn orphan_effects(&mut self, controller: u32, all: bool) {
        let numbers: Vec<u64> = self.effects.iter().filter(|(_, p)| p.controller == controller).map(|(n, _)| *n).collect();
        for number in numbers {
            let lands = all || self.rng.hits(500);
            let pending = self.effects.get_mut(&number).expect("listed above");
            pending.late = true;
            self.needs_resync = true;
            if pending.result.is_some() || !lands {
                self.effects.remove(&number);
            }
        }
        self.tables.remove(&controller);
    }

    /// Whether a uid has a record.
    pub fn has_record(&self, uid: &Uid) -> bool {
        self.records.map.values().any(|record| record.metadata.uid.is_some() && uid_of(record) == *uid)
    }
}
