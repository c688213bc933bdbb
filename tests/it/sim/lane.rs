//! The kill lane as an actor of the simulation: it notes in the real latch, signals, asks the engine, brings its notes to the disk and gives
//! receipts, one deed at a time and in any order that the real threads may have, in a controller's process or in that of a command line.
//! Whoever carries it may die between any two deeds. What is said of a run is `kill::judge`'s; what must hold of it is looked at here, too.
//!
//! The latch's file is `Lane::kept`: who starts reads it, and who lives finds it changed. What was noted and not kept dies with its process.

use super::oracle;
use super::plants::Plant;
use super::store::uid_of;
use super::truth::{Cell, CellState, Pid, Truth};
use mosaic::api::names::{Role, RunId, Uid};
use mosaic::kill::engine::Saw;
use mosaic::kill::judge;
use mosaic::kill::latch::Note;
use mosaic::kill::receipt::Verdict;
use mosaic::kill::strike::Seen;
use mosaic::plan::observed::EndCause;
use mosaic::store::{Kind, Record};
use std::collections::{BTreeMap, BTreeSet};

/// How often a kill of everything looks again for what came up meanwhile.
const SWEEPS_MAX: u32 = 8;

/// What the lane has done and left behind.
#[derive(Debug, Clone, Default)]
pub struct Lane {
    /// The latch's file.
    pub kept: Vec<Note>,
    /// What is noted in the memory of each controller that lives.
    pub noted: BTreeMap<u32, Vec<Note>>,
    pub kills: BTreeMap<u64, Kill>,
    pub begun: u64,
    /// Records of what was killed, as they were before: what an older copy of the store would bring back.
    pub older: BTreeMap<Uid, Record>,
    /// Whom each halt meant when it was noted.
    pub halted: BTreeMap<String, BTreeSet<Uid>>,
    /// Who came back by an older copy of the store.
    pub restored: BTreeSet<Uid>,
    /// Whose notes are not read any more (planted bug only).
    pub forgotten: BTreeSet<Uid>,
    /// Of whom there was a receipt and a note on the disk: nothing of them may be pushed any more.
    pub unpushable: BTreeSet<Uid>,
    /// By verdict: how many receipts were given.
    pub receipts: BTreeMap<&'static str, u32>,
}

/// One kill under way.
#[derive(Debug, Clone)]
pub struct Kill {
    /// Whose process it is in; `None`: a command line's.
    pub owner: Option<u32>,
    /// Whom; `None`: all.
    meant: Option<Uid>,
    halt: Option<Note>,
    found: Vec<Found>,
    done: BTreeSet<RunId>,
    /// Noted and not kept yet.
    loose: Vec<Note>,
    /// What is left to do in this sweep.
    todo: Vec<Deed>,
    sweeps: u32,
    /// The last sweep found nothing new.
    barren: bool,
    /// Everything that was there and meant, whether or not it was found.
    there: BTreeSet<RunId>,
    /// Agents that are meant: by name, by a run or by a tree.
    agents: BTreeSet<Uid>,
    verdicts: BTreeMap<Uid, Verdict>,
    /// Of whom there was a receipt.
    told: BTreeSet<Uid>,
}

/// One run that is being killed.
#[derive(Debug, Clone)]
struct Found {
    run: RunId,
    signalled: bool,
    said: Option<Saw>,
}

/// One deed; each happens at once, and anything may happen between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Signal,
    Keep,
    Bury,
    Tell,
    AskEngine,
}

fn uid_noted(note: &Note) -> Option<&Uid> {
    match note {
        Note::Killed { uid, .. } => Some(uid),
        Note::Halt { .. } => None,
    }
}

fn is_alive(cell: &Cell) -> bool {
    !matches!(cell.state, CellState::Ended(_))
}

impl Lane {
    /// Whether a controller must know that nothing of an agent may start: it noted so itself, or the file says it.
    pub fn is_known(&self, controller: u32, uid: &Uid) -> bool {
        let own = self.noted.get(&controller).into_iter().flatten();
        own.chain(&self.kept).any(|note| uid_noted(note).is_none_or(|of| of == uid))
    }

    /// Whether it is on the disk that an agent was killed.
    pub fn is_kept(&self, uid: &Uid) -> bool {
        self.kept.iter().any(|note| uid_noted(note) == Some(uid))
    }

    /// Halts on the disk.
    pub fn halts(&self) -> usize {
        self.kept.iter().filter(|note| uid_noted(note).is_none()).count()
    }
}

/// Where kills come from, and what becomes of their notes.
impl Truth {
    /// Somebody kills one agent, or everything.
    pub fn begin_kill(&mut self, owner: Option<u32>, meant: Option<Uid>, hold: bool) -> u64 {
        self.lane.begun += 1;
        let number = self.lane.begun;
        self.note(format!("kill {number} of {meant:?} by {owner:?} begins"));
        let at_millis = self.wall;
        let halt = meant.is_none().then(|| Note::Halt {
            name: format!("kill-all-{number}"),
            namespace: None,
            hold,
            reason: "kill-all".into(),
            at_millis,
        });
        if let Some(Note::Halt { name, .. }) = &halt {
            let agents = self.records.map.values().filter(|record| record.kind == Kind::Agent);
            let uids = agents.map(uid_of).collect();
            self.lane.halted.insert(name.clone(), uids);
        }
        // What is being started at this moment meets it at its gate.
        let mut loose = Vec::new();
        if let Some(halt) = halt.clone() {
            self.note_in_memory(owner, std::slice::from_ref(&halt));
            loose.push(halt);
        }
        let kill = Kill {
            owner,
            meant,
            halt,
            found: Vec::new(),
            done: BTreeSet::new(),
            loose,
            todo: Vec::new(),
            sweeps: 0,
            barren: false,
            there: BTreeSet::new(),
            agents: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            told: BTreeSet::new(),
        };
        self.lane.kills.insert(number, kill);
        // Nobody is woken by a file: the regular look finds what a command line has noted.
        self.needs_resync = true;
        number
    }

    /// What a controller finds in the file when it starts.
    pub fn notes_read_at_start(&self) -> Vec<Note> {
        if self.planted(Plant::LatchLostAtRestart) {
            return Vec::new();
        }
        let read = |note: &&Note| uid_noted(note).is_none_or(|uid| !self.lane.forgotten.contains(uid));
        self.lane.kept.iter().filter(read).cloned().collect()
    }

    fn note_in_memory(&mut self, owner: Option<u32>, notes: &[Note]) {
        let Some(owner) = owner else { return };
        if let Some(latch) = self.latches.get(&owner) {
            latch.note(notes);
            self.lane.noted.entry(owner).or_default().extend(notes.iter().cloned());
        }
    }

    /// Notes are in the file: who lives finds it changed.
    fn keep(&mut self, notes: Vec<Note>) {
        self.latches.values().for_each(|latch| latch.note(&notes));
        self.lane.kept.extend(notes);
    }

    /// A halt was handed over by a controller: it is taken out of the file, and counts on only where it was noted.
    pub fn handed_over(&mut self, by: u32, name: &str) {
        self.note(format!("halt {name} is handed over by {by}"));
        let is_it = |note: &Note| matches!(note, Note::Halt { name: of, .. } if of == name);
        oracle::lane::on_handed_over(self, name);
        self.lane.kept.retain(|note| !is_it(note));
        self.lane.noted.entry(by).or_default().retain(|note| !is_it(note));
        for (id, latch) in &self.latches {
            if !self.lane.noted.get(id).into_iter().flatten().any(is_it) {
                latch.hand_over(name).expect("it is in memory only");
            }
        }
    }

    /// A process has died: with it what it had noted, and the kills that it carried.
    pub fn lane_dies(&mut self, controller: u32) {
        self.latches.remove(&controller);
        self.lane.noted.remove(&controller);
        self.lane.kills.retain(|_, kill| kill.owner != Some(controller));
    }
}

/// The deeds of one kill.
impl Truth {
    /// Does the next deed.
    pub fn step_kill(&mut self, number: u64) {
        let Some(mut kill) = self.lane.kills.remove(&number) else { return };
        if kill.todo.is_empty() && kill.found.is_empty() {
            self.find(number, &mut kill);
        } else if kill.todo.is_empty() {
            self.give_receipts(number, &mut kill);
        } else {
            let at = self.rng.below(kill.todo.len() as u64) as usize;
            let deed = kill.todo.remove(at);
            self.note(format!("kill {number}: {deed:?}"));
            match deed {
                Deed::Signal => self.signal(&mut kill),
                Deed::Keep => self.keep_of(&mut kill),
                Deed::Bury => {
                    for found in &kill.found {
                        self.body(&found.run.uid).tombstones.insert(found.run.clone());
                    }
                }
                Deed::Tell => self.tell(&kill),
                Deed::AskEngine => self.ask_engine(&mut kill),
            }
        }
        let is_over = kill.todo.is_empty() && kill.found.is_empty() && (kill.meant.is_some() || kill.barren || kill.sweeps >= SWEEPS_MAX);
        if !is_over {
            self.lane.kills.insert(number, kill);
            return;
        }
        self.end_pushes(&kill);
        // Of whom nothing is told, nothing was found: that is said as well.
        let silent: BTreeSet<Uid> = kill.there.iter().map(|run| run.uid.clone()).filter(|uid| !kill.told.contains(uid)).collect();
        silent.iter().for_each(|uid| oracle::lane::on_receipt(self, uid, &kill.there));
    }

    /// The controller beside the lane breaks off what it does for them, and looks at their records.
    fn tell(&mut self, kill: &Kill) {
        for uid in kill.agents.clone() {
            if let Some(owner) = kill.owner {
                self.abandon(owner, &uid);
            }
            self.pokes.push((kill.owner, uid));
        }
    }

    /// Before the receipts: nothing of them is pushed any more, by whomever it was begun. Of whom no note reached the disk nothing is promised.
    fn end_pushes(&mut self, kill: &Kill) {
        for uid in kill.agents.iter().filter(|uid| self.lane.is_kept(uid)).cloned().collect::<Vec<_>>() {
            if !self.planted(Plant::QueuedPushBegun) {
                self.break_off_pushes(&uid);
            }
            self.lane.unpushable.insert(uid);
        }
    }

    /// A whole kill at once, by a controller's lane.
    pub fn kill_now(&mut self, owner: u32, uid: &Uid) {
        let number = self.begin_kill(Some(owner), Some(uid.clone()), false);
        while self.lane.kills.contains_key(&number) {
            self.step_kill(number);
        }
    }

    /// What has a folder, is meant and was not struck yet; noted before anything is signalled.
    fn find(&mut self, number: u64, kill: &mut Kill) {
        kill.sweeps += 1;
        let gates_too = !self.planted(Plant::GatesSpared);
        let bodies = self.bodies.iter().filter(|(uid, _)| kill.meant.as_ref().is_none_or(|meant| meant == *uid));
        let there: Vec<RunId> = bodies.flat_map(|(_, body)| body.cells.keys().cloned()).collect();
        kill.there.extend(there.iter().cloned());
        let runs = there.iter().filter(|run| !kill.done.contains(run) && (gates_too || run.role == Role::Agent));
        kill.found = runs.map(|run| Found { run: run.clone(), signalled: false, said: None }).collect();
        kill.barren = kill.found.is_empty() && kill.sweeps > 1;
        let trees = self.bodies.iter().filter(|(uid, body)| body.tree.is_some() && kill.meant.as_ref().is_none_or(|meant| meant == *uid));
        let trees: Vec<Uid> = trees.map(|(uid, _)| uid.clone()).collect();
        let found = kill.found.iter().map(|found| found.run.uid.clone());
        let uids: Vec<Uid> = found.chain(kill.meant.clone()).chain(trees).filter(|uid| kill.agents.insert(uid.clone())).collect();
        for uid in &uids {
            if let Some(record) = self.records.record(uid).cloned() {
                self.lane.older.entry(uid.clone()).or_insert(record);
            }
        }
        let (by, at_millis) = (if kill.halt.is_some() { "kill-all" } else { "kill" }.to_owned(), self.wall);
        let notes: Vec<Note> = uids.into_iter().map(|uid| Note::Killed { uid, by: by.clone(), at_millis }).collect();
        self.note_in_memory(kill.owner, &notes);
        kill.loose.extend(notes);
        self.note(format!("kill {number} finds {} runs", kill.found.len()));
        kill.todo = vec![Deed::Keep, Deed::Tell];
        if !kill.found.is_empty() {
            kill.todo.extend([Deed::Signal, Deed::Bury, Deed::AskEngine]);
        }
        kill.done.extend(kill.found.iter().map(|found| found.run.clone()));
    }

    /// SIGKILL by the kernel's path: to what lives and is the same process as the folder says.
    fn signal(&mut self, kill: &mut Kill) {
        for found in &mut kill.found {
            let Some(identity) = self.cell(&found.run).and_then(|cell| cell.pid) else { continue };
            let Some((run, pid)) = self.holder_of(identity) else { continue };
            if pid != identity && !self.planted(Plant::PidReused) {
                continue;
            }
            found.signalled = true;
            oracle::lane::on_strike(self, &run, &found.run);
            let runs = self.cell(&run).is_some_and(Cell::runs);
            if runs && self.rng.hits(self.faults.undying) {
                // It waits for a disk that does not answer; it does nothing more, and still it lives.
                let elapsed = self.elapsed;
                let cell = self.body(&run.uid).cells.get_mut(&run).expect("it holds a pid");
                (cell.dying, cell.next_at) = (true, elapsed + 400);
            } else {
                self.end_cell(&run.uid, &run, EndCause::Stopped, None);
            }
        }
    }

    /// Who lives under the number of a process now.
    fn holder_of(&self, pid: Pid) -> Option<(RunId, Pid)> {
        let cells = self.bodies.values().flat_map(|body| &body.cells).filter(|(_, cell)| is_alive(cell));
        cells.filter_map(|(run, cell)| Some((run.clone(), cell.pid?))).find(|(_, of)| of.number == pid.number)
    }

    /// The lowest number that nobody has: numbers come back soon.
    pub fn new_pid(&mut self) -> Pid {
        let alive = self.bodies.values().flat_map(|body| body.cells.values()).filter(|cell| is_alive(cell));
        let taken: BTreeSet<u32> = alive.filter_map(|cell| Some(cell.pid?.number)).collect();
        self.pids_given += 1;
        let number = (1..).find(|number| !taken.contains(number)).expect("numbers are endless");
        Pid { number, started: self.pids_given }
    }

    fn keep_of(&mut self, kill: &mut Kill) {
        let notes = std::mem::take(&mut kill.loose);
        if self.rng.hits(self.faults.disk_stuck) {
            self.note("the disk does not take the latch; the receipt says so".into());
        } else {
            self.keep(notes);
        }
    }

    /// The engine is asked about what the kernel does not show.
    fn ask_engine(&mut self, kill: &mut Kill) {
        for at in 0..kill.found.len() {
            let run = kill.found[at].run.clone();
            let is_hidden = self.is_contained(&run.uid) && self.cell(&run).is_none_or(|cell| cell.pid.is_none());
            if is_hidden {
                kill.found[at].said = Some(self.engine_ends(&run));
            }
        }
    }

    /// Looks, and says what was seen.
    fn give_receipts(&mut self, number: u64, kill: &mut Kill) {
        let found = std::mem::take(&mut kill.found);
        for Found { run, signalled, said } in &found {
            let seen = if self.planted(Plant::ReceiptWithoutLooking) { Seen::Dead } else { self.seen(run) };
            if matches!(seen, Seen::Lives(_)) && self.rng.hits(500) {
                // The time is not over: it looks again.
                kill.found.push(Found { run: run.clone(), signalled: *signalled, said: said.clone() });
                continue;
            }
            let fenced = self.lane.is_kept(&run.uid) || self.bodies[&run.uid].tombstones.contains(run);
            let (verdict, message) = judge(run, &seen, *signalled, said.as_ref(), fenced);
            self.note(format!("kill {number}: {run} {}: {message}", verdict.as_str()));
            if verdict == Verdict::DeadVerified {
                oracle::lane::on_dead_verified(self, run);
            }
            let worst = kill.verdicts.entry(run.uid.clone()).or_insert(verdict);
            *worst = verdict.max(*worst);
        }
        if kill.found.is_empty() {
            for (uid, verdict) in std::mem::take(&mut kill.verdicts) {
                kill.told.insert(uid.clone());
                if verdict == Verdict::DeadVerified {
                    oracle::lane::on_receipt(self, &uid, &kill.there);
                }
                *self.lane.receipts.entry(verdict.as_str()).or_default() += 1;
            }
        }
    }

    /// What the kernel shows of a run.
    fn seen(&self, run: &RunId) -> Seen {
        let shown = self.cell(run).filter(|cell| cell.pid.is_some());
        match shown {
            Some(cell) if is_alive(cell) => Seen::Lives("its init still lives".into()),
            Some(_) => Seen::Dead,
            None if self.is_contained(&run.uid) => Seen::Hidden("the kernel has not shown its process here".into()),
            None => Seen::Dead,
        }
    }
}
