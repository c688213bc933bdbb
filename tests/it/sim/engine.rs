//! A container engine as the simulation sees it, for those agents whose sandboxes are containers. It makes and starts what it is asked to,
//! some time: an answer may come many steps later or never, and the work is done all the same. Asked what there is, it may not answer, or
//! lie for a while. What counts is the kernel's word once it has shown init (`Cell::pid`); until then the engine's is all there is.

use super::effects::failure;
use super::plants::Plant;
use super::truth::{Cell, CellState, Pending, Truth};
use mosaic::api::condition::reason;
use mosaic::api::names::{RunId, Uid};
use mosaic::kill::engine::Saw;
use mosaic::plan::action::Action;
use mosaic::plan::observed::{EndCause, Failure, Outcome};
use std::collections::BTreeMap;

/// Where a container really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// There is none (yet).
    Nothing,
    /// Made, never started.
    Created,
    /// Its init lives; whether the agent's command does is the cell's matter.
    Up,
    /// Nothing of it lives.
    Exited,
}

/// The container of one run.
#[derive(Debug, Clone)]
pub struct Vessel {
    pub made: Made,
    /// The answer to its create was heard.
    pub answered: bool,
    /// The engine has told something of it that was not so.
    pub lied: bool,
}

/// What the engine was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Create,
    Start,
}

/// The engine.
#[derive(Debug, Clone, Default)]
pub struct Engine {
    /// Hangs: neither works nor answers.
    pub down: bool,
    pub vessels: BTreeMap<RunId, Vessel>,
    /// Asked for and not done; a job outlives whoever asked.
    pub jobs: Vec<(RunId, Job)>,
    /// What it answered that was not so; for the report.
    pub lies: u32,
}

impl Engine {
    fn made(&self, run: &RunId) -> Made {
        self.vessels.get(run).map_or(Made::Nothing, |vessel| vessel.made)
    }

    fn is_asked(&self, run: &RunId, job: Job) -> bool {
        self.jobs.iter().any(|(of, what)| of == run && *what == job)
    }

    fn ask(&mut self, run: &RunId, job: Job) {
        if !self.is_asked(run, job) {
            self.jobs.push((run.clone(), job));
        }
    }

    /// Whether something that was asked for may still come of a run.
    pub fn is_unanswered(&self, run: &RunId) -> bool {
        self.vessels.get(run).is_none_or(|vessel| !vessel.answered)
    }
}

impl Truth {
    /// Whether a run is a container.
    pub fn is_contained(&self, uid: &Uid) -> bool {
        self.bodies.get(uid).is_some_and(|body| self.contained.contains(&body.name))
    }

    /// The engine does one job.
    pub fn step_job(&mut self, at: usize) {
        let (run, job) = self.engine.jobs.remove(at);
        match job {
            // By name: the same one again makes nothing.
            Job::Create => {
                self.engine.vessels.entry(run.clone()).or_insert(Vessel { made: Made::Created, answered: false, lied: false });
            }
            Job::Start => {
                if let Some(vessel) = self.engine.vessels.get_mut(&run).filter(|vessel| vessel.made == Made::Created) {
                    vessel.made = Made::Up;
                }
            }
        }
        self.note(format!("the engine has done {job:?} of {run}"));
        self.poke(&run.uid);
    }

    /// Containers whose init has something to do: to show itself, then to ask for its start.
    pub fn waiting_inits(&self) -> Vec<RunId> {
        let up = self.engine.vessels.iter().filter(|(_, vessel)| vessel.made == Made::Up).map(|(run, _)| run);
        let waits = |run: &&RunId| self.cell(run).is_none_or(|cell| !cell.runs());
        up.filter(waits).cloned().collect()
    }

    pub fn cell(&self, run: &RunId) -> Option<&Cell> {
        self.bodies.get(&run.uid)?.cells.get(run)
    }

    /// An init that waits for its start does its next thing.
    pub fn step_init(&mut self, run: &RunId) {
        let Some(by) = self.latches.keys().rev().find(|id| !self.paused.contains(id)).copied() else { return };
        let is_known = self.cell(run).is_some_and(|cell| cell.state == CellState::Preparing);
        if is_known && self.cell(run).is_some_and(|cell| cell.pid.is_none()) {
            let pid = self.new_pid();
            self.body(&run.uid).cells.get_mut(run).expect("it is known").pid = Some(pid);
            return self.note(format!("{run} is shown as pid {pid:?}"));
        }
        // Its link is served until it is removed, whatever it was taken for.
        let refusal = if self.cell(run).is_some() { self.gate(by, run) } else { Some("nobody serves it any more") };
        match refusal {
            None => self.grant(run, by, false),
            Some(why) => {
                self.note(format!("{run} is refused its start: {why}"));
                self.end_vessel(run);
                self.conclude(run, why);
            }
        }
    }

    /// What the engine says of a container.
    pub fn engine_says(&mut self, run: &RunId) -> Saw {
        if self.engine.down || self.rng.hits(self.faults.engine_silent) {
            return Saw::Unknown("the engine does not answer".into());
        }
        let truth = match self.engine.made(run) {
            Made::Nothing => Saw::None,
            Made::Created | Made::Exited => Saw::Dead,
            Made::Up => Saw::Runs,
        };
        if !self.rng.hits(self.faults.engine_lies) {
            return truth;
        }
        let lie = match truth {
            Saw::Runs => self.rng.pick(&[Saw::None, Saw::Dead]).clone(),
            Saw::None | Saw::Dead => self.rng.pick(&[Saw::Runs, Saw::None]).clone(),
            // The last two are words of a cluster.
            Saw::Coming | Saw::Unknown(_) | Saw::Terminated | Saw::SaidGone(_) => return truth,
        };
        self.engine.lies += 1;
        self.engine.vessels.entry(run.clone()).and_modify(|vessel| vessel.lied = true);
        self.note(format!("the engine says {lie:?} of {run}, which is {truth:?}"));
        lie
    }

    /// The engine's path of the lane: as `engine_kills`, but what was never started is taken away, so that nothing starts it any more.
    pub fn engine_ends(&mut self, run: &RunId) -> Saw {
        let is_open = self.engine.is_unanswered(run) && !self.planted(Plant::UnansweredIsNothing);
        let said = match self.engine_kills(run) {
            Saw::Dead if self.engine.made(run) == Made::Created && !self.planted(Plant::CreatedIsDead) => {
                self.engine.vessels.remove(run);
                Saw::None
            }
            other => other,
        };
        if said == Saw::None && is_open { Saw::Coming } else { said }
    }

    /// The engine is told to kill a container, and asked what became of it.
    pub fn engine_kills(&mut self, run: &RunId) -> Saw {
        match self.engine_says(run) {
            Saw::Runs if self.engine.made(run) == Made::Up => {
                self.end_vessel(run);
                if self.cell(run).is_some_and(|cell| !matches!(cell.state, CellState::Ended(_))) {
                    self.end_cell(&run.uid, run, EndCause::Stopped, None);
                }
                Saw::Dead
            }
            other => other,
        }
    }

    /// Nothing of a container lives any more.
    pub fn end_vessel(&mut self, run: &RunId) {
        if let Some(vessel) = self.engine.vessels.get_mut(run) {
            vessel.made = Made::Exited;
        }
    }

    /// What never ran is taken for ended: an engine may have lied, and something may still come up, which its tombstone stops.
    pub fn conclude(&mut self, run: &RunId, why: &str) {
        if self.cell(run).is_some_and(|cell| !matches!(cell.state, CellState::Ended(_))) {
            if !self.planted(Plant::ConcludedUnburied) {
                self.body(&run.uid).tombstones.insert(run.clone());
            }
            self.close_cell(&run.uid, run, EndCause::NotStarted(why.to_owned()), None);
        }
    }

    /// Whether somebody makes a run at this moment.
    fn is_being_made(&self, run: &RunId) -> bool {
        let makes = |pending: &Pending| matches!(&pending.effect.action, Action::EnsureSandbox { run: of, .. } if of == run);
        self.effects.values().any(|pending| makes(pending) && !pending.late && pending.result.is_none())
    }

    /// Looks at a container that has not shown itself: `Err`, could not look; else whether something may come of it.
    pub fn may_come(&mut self, run: &RunId) -> Result<bool, String> {
        if self.is_being_made(run) && !self.planted(Plant::NoSuchContainerBelieved) {
            return Ok(true);
        }
        let is_stopped = self.bodies.get(&run.uid).is_some_and(|body| body.tombstones.contains(run));
        match self.engine_says(run) {
            Saw::Coming => Ok(true),
            Saw::Unknown(why) => Err(why),
            Saw::None | Saw::Terminated | Saw::SaidGone(_) => Ok(false),
            Saw::Runs => Ok(true),
            Saw::Dead => Ok(self.engine.made(run) == Made::Created && !is_stopped),
        }
    }

    /// Asks the engine for a container and its start, and hears the answers; `None`: goes on waiting.
    pub fn ensure_contained(&mut self, pending: &Pending, run: &RunId) -> Option<Result<Outcome, Failure>> {
        if pending.late {
            // Nobody waits for the answers; what was asked for is done some time.
            return Some(Ok(Outcome::Done));
        }
        let asked = match self.engine.made(run) {
            Made::Nothing => Job::Create,
            Made::Created => {
                self.engine.vessels.get_mut(run).expect("it is made").answered = true;
                Job::Start
            }
            // Shown, it waits for its grant; refused or ended, there is nothing to wait for.
            Made::Up => return None,
            Made::Exited => return Some(Ok(Outcome::Done)),
        };
        let waits = self.engine.is_asked(run, asked);
        self.engine.ask(run, asked);
        if waits && (self.engine.down || self.rng.hits(100)) {
            return Some(Err(failure(self, reason::ENGINE_UNAVAILABLE, "the engine has not answered")));
        }
        None
    }

    /// Ends a container. What could not be looked at is not ended.
    pub fn stop_contained(&mut self, run: &RunId) -> Result<Outcome, Failure> {
        let Some(cell) = self.cell(run).filter(|cell| !matches!(cell.state, CellState::Ended(_))) else { return Ok(Outcome::Done) };
        if cell.pid.is_some() {
            self.end_vessel(run);
            self.end_cell(&run.uid, run, EndCause::Stopped, None);
            return Ok(Outcome::Done);
        }
        if self.is_being_made(run) {
            return Err(failure(self, reason::SANDBOX_FAILED, "what starts it has not answered"));
        }
        match self.engine_kills(run) {
            Saw::None | Saw::Dead | Saw::Terminated | Saw::SaidGone(_) => {
                self.conclude(run, "it was stopped before it started");
                Ok(Outcome::Done)
            }
            Saw::Runs | Saw::Coming => Err(failure(self, reason::SANDBOX_FAILED, "its container still runs, by the engine's word")),
            Saw::Unknown(why) => Err(failure(self, reason::ENGINE_UNAVAILABLE, &why)),
        }
    }

    /// Takes away containers of ours that belong to no run.
    pub fn sweep_containers(&mut self) {
        if self.engine.down || self.rng.hits(self.faults.engine_silent) {
            return;
        }
        let strays: Vec<RunId> = self.engine.vessels.keys().filter(|run| self.cell(run).is_none()).cloned().collect();
        for run in strays {
            self.note(format!("the container of {run} belongs to no run"));
            self.engine.vessels.remove(&run);
        }
    }
}
