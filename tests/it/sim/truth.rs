//! Ground truth: everything outside the controllers. Sandboxes, trees, tombstones, effects under way, the clock, and the log of what
//! really happened. Nobody but the fakes, the scheduler and the oracle looks here.

use super::engine::Engine;
use super::faults::{Aim, Faults, Rng};
use super::git::{Files, Git};
use super::lane::Lane;
use super::oracle::Oracle;
use super::plants::Plant;
use super::store::Records;
use k8s_openapi::jiff::Timestamp;
use mosaic::api::names::{CommitId, Epoch, Role, RunId, Uid};
use mosaic::kill::latch::Latch;
use mosaic::plan::action::{Action, ActionId, Effect};
use mosaic::plan::observed::{AgentResult, EndCause, Failure, Outcome, RunEnd};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// The truth, shared by the fakes of all controllers.
pub type Shared = Arc<Mutex<Truth>>;

/// No renewal for so long ends every sandbox.
pub const LEASE_MILLIS: u64 = 30_000;
/// Start of the simulated wall clock.
pub const EPOCH_MILLIS: i64 = 1_760_000_000_000;

/// What an agent does in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Good work.
    Good,
    /// Work that `tests` refuses.
    Bad,
    /// Work that `lint` refuses.
    Ugly,
    /// Work that `tests` refuses once the base has an `api`.
    Fragile,
    /// Good work that also changes the shared file.
    Share,
    /// Work that the remote's hook refuses.
    Forbidden,
    /// Changes nothing and does not say why.
    Nothing,
    /// Changes nothing and says why.
    NothingSaid,
    /// Leaves a tree that cannot become a commit.
    Unfit,
    /// Ends with an exit code.
    Exit(i32),
    /// Ends by a signal.
    Signal,
    /// Cannot be executed.
    CannotExecute,
    /// Never ends, never says a word.
    Hang,
    /// Never ends, always says something.
    Forever,
}

/// One sandbox as it really is.
#[derive(Debug, Clone)]
pub struct Cell {
    pub state: CellState,
    pub behaviour: Behaviour,
    /// Commit that a gate judges, and the base it was told.
    pub judges: Option<(CommitId, CommitId)>,
    /// Made by an effect whose controller was dead already.
    pub late: bool,
    /// When it does its next thing, in elapsed milliseconds.
    pub next_at: u64,
    /// How many things are left to do before it ends.
    pub left: u32,
    /// Its init as the kernel shows it; `None`: not shown yet.
    pub pid: Option<Pid>,
    /// It has its SIGKILL and is not dead yet.
    pub dying: bool,
    /// Processes that go on writing after the reported end (planted bug only).
    pub writes_on: bool,
}

/// A process: its number may be another's later, its start never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pid {
    pub number: u32,
    pub started: u64,
}

/// Where a sandbox really is.
#[derive(Debug, Clone, PartialEq)]
pub enum CellState {
    Preparing,
    Running { since: Timestamp, sign: Timestamp },
    Ended(RunEnd),
}

impl Cell {
    pub fn runs(&self) -> bool {
        matches!(self.state, CellState::Running { .. })
    }
}

/// A working tree as it really is.
#[derive(Debug, Clone)]
pub struct Tree {
    pub base: CommitId,
    pub content: Option<CommitId>,
    pub files: Files,
    pub late: bool,
}

/// Everything that exists of one agent outside the store.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pub name: String,
    pub script: Vec<Behaviour>,
    pub cells: BTreeMap<RunId, Cell>,
    pub tombstones: BTreeSet<RunId>,
    pub tree: Option<Tree>,
    pub attempt_seen: u32,
    /// Contents that were kept by a rescue.
    pub rescued: Vec<Files>,
    /// What the agent left in its tree when it ended, by attempt.
    pub finished: BTreeMap<u32, Files>,
}

impl Body {
    /// The agent's own file.
    pub fn path(&self) -> String {
        format!("work/{}", self.name)
    }
}

/// A blocking effect under way.
#[derive(Debug, Clone)]
pub struct Pending {
    pub controller: u32,
    pub effect: Effect,
    /// Repository and target ref, from the subject; empty for a subject that does not decode.
    pub repository: String,
    pub target: String,
    /// Rounds that the agent has used up.
    pub round: u32,
    /// Whether the agent said why it changed nothing, and may have.
    pub discard: bool,
    /// Parts that were done already.
    pub part: u32,
    /// What it brought, once it is done.
    pub result: Option<Result<Outcome, Failure>>,
    /// The controller is dead: nobody will hear of it.
    pub late: bool,
    /// When it was started, in elapsed milliseconds.
    pub begun_at: u64,
    /// It is not wanted any more since before this part.
    pub abandoned: Option<u32>,
}

/// The in-flight table of one controller; gone with it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub in_flight: BTreeMap<(Uid, ActionId), u64>,
    /// Of those: whose good end wakes nobody until the next look.
    pub quiet: BTreeSet<(Uid, ActionId)>,
    pub outcomes: BTreeMap<(Uid, ActionId), Result<Outcome, Failure>>,
}

/// What really happened, as text and as one number.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub lines: Vec<String>,
    pub hash: u64,
}

/// Everything outside the controllers.
pub struct Truth {
    pub rng: Rng,
    /// Wall clock, milliseconds since 1970; may jump.
    pub wall: i64,
    /// Milliseconds since the start of the run; never jumps.
    pub elapsed: u64,
    /// When a leader last renewed the leases.
    pub renewed: u64,
    pub faults: Faults,
    pub plant: Option<Plant>,
    pub records: Records,
    pub git: Git,
    pub bodies: BTreeMap<Uid, Body>,
    pub scripts: BTreeMap<String, Vec<Behaviour>>,
    pub effects: BTreeMap<u64, Pending>,
    pub effects_begun: u64,
    pub tables: BTreeMap<u32, Table>,
    pub paused: BTreeSet<u32>,
    pub highest_epoch: Epoch,
    pub aims: Vec<Aim>,
    /// Controllers that an aimed fault has ended.
    pub crash_requests: BTreeSet<u32>,
    /// Something landed of which nobody could hear, or a trigger was lost: only the regular look at everything finds it.
    pub needs_resync: bool,
    /// Agents whose controller should look again: (controller or all, uid).
    pub pokes: Vec<(Option<u32>, Uid)>,
    pub log: Log,
    pub oracle: Oracle,
    /// What each controller that lives knows of kills and halts.
    pub latches: BTreeMap<u32, Arc<Latch>>,
    pub lane: Lane,
    pub engine: Engine,
    /// Names of the agents whose sandboxes are containers.
    pub contained: BTreeSet<String>,
    /// Processes that were ever started.
    pub pids_given: u64,
    /// Names of the actions that were applied, in order.
    pub applied: Vec<&'static str>,
    /// Records that controllers have read one by one, and statuses that they have stored.
    pub reads_and_writes: (u32, u32),
}

impl Truth {
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall).expect("a simulated time")
    }

    pub fn planted(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// Writes down what really happened.
    pub fn note(&mut self, line: String) {
        let line = format!("{:>8} {line}", self.elapsed);
        for byte in line.bytes() {
            self.log.hash = (self.log.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.log.lines.push(line);
    }

    /// Writes down a broken invariant.
    pub fn violate(&mut self, text: String) {
        self.note(format!("VIOLATION {text}"));
        self.oracle.violations.push(text);
    }

    pub fn poke(&mut self, uid: &Uid) {
        self.pokes.push((None, uid.clone()));
    }

    pub fn body(&mut self, uid: &Uid) -> &mut Body {
        let scripts = &self.scripts;
        let record = self.records.by_uid(uid);
        self.bodies.entry(uid.clone()).or_insert_with(|| {
            let name = record.map(|key| key.name).unwrap_or_default();
            Body { script: scripts.get(&name).cloned().unwrap_or_else(|| vec![Behaviour::Good]), name, ..Body::default() }
        })
    }

    /// Sandboxes of an agent in which something of its own runs.
    pub fn running_cells(&self, uid: &Uid) -> usize {
        let Some(body) = self.bodies.get(uid) else { return 0 };
        body.cells.iter().filter(|(run, cell)| run.role == Role::Agent && (cell.runs() || cell.writes_on)).count()
    }

    /// When a sandbox does its next thing.
    pub fn next_cell_at(&self) -> Option<u64> {
        let cells = self.bodies.values().flat_map(|body| body.cells.values());
        cells.filter(|cell| cell.runs() || cell.writes_on).map(|cell| cell.next_at).min()
    }

    /// Sandboxes that have something to do by now.
    pub fn due_cells(&self) -> Vec<(Uid, RunId)> {
        let mut due = Vec::new();
        for (uid, body) in &self.bodies {
            for (run, cell) in &body.cells {
                if (cell.runs() || cell.writes_on) && cell.next_at <= self.elapsed {
                    due.push((uid.clone(), run.clone()));
                }
            }
        }
        due
    }

    /// A sandbox does its next thing: works, says something, or ends.
    pub fn step_cell(&mut self, uid: &Uid, run: &RunId) {
        if self.cell(run).is_some_and(|cell| cell.dying) {
            return self.end_cell(uid, run, EndCause::Stopped, None);
        }
        if self.rng.hits(self.faults.sandbox_lost) {
            return self.end_cell(uid, run, EndCause::Lost("the host ended it".into()), None);
        }
        match run.role {
            Role::Agent => self.step_agent(uid, run),
            Role::Gate { .. } => self.step_gate(uid, run),
        }
    }

    fn step_agent(&mut self, uid: &Uid, run: &RunId) {
        let (now, elapsed) = (self.now(), self.elapsed);
        let body = self.bodies.get_mut(uid).expect("a cell has a body");
        let path = body.path();
        let cell = body.cells.get_mut(run).expect("a due cell exists");
        let behaviour = cell.behaviour;
        if cell.writes_on {
            cell.writes_on = false;
            if let Some(tree) = body.tree.as_mut() {
                tree.files.insert(path, format!("late write of {uid}"));
            }
            return self.note(format!("late write in {run}"));
        }
        if behaviour == Behaviour::Hang {
            cell.next_at = u64::MAX;
            return;
        }
        if let CellState::Running { sign, .. } = &mut cell.state {
            *sign = now;
        }
        if behaviour == Behaviour::Forever {
            cell.next_at = elapsed + 50_000;
            return self.note(format!("{run} goes on and on"));
        }
        if cell.left > 0 {
            cell.left -= 1;
            cell.next_at = elapsed + 700;
            let writes = !matches!(behaviour, Behaviour::Nothing | Behaviour::NothingSaid);
            if let (Some(tree), true) = (body.tree.as_mut(), writes) {
                tree.files.insert(path, format!("half-done {uid}"));
            }
            return self.note(format!("{run} works"));
        }
        self.finish_agent(uid, run, behaviour);
    }

    /// The agent's command ends by itself.
    fn finish_agent(&mut self, uid: &Uid, run: &RunId, behaviour: Behaviour) {
        let body = self.bodies.get_mut(uid).expect("a cell has a body");
        let (path, name) = (body.path(), body.name.clone());
        if let Some(tree) = body.tree.as_mut() {
            work(&mut tree.files, behaviour, &path, uid, &name);
            body.finished.insert(run.attempt.0, tree.files.clone());
        }
        let cause = match behaviour {
            Behaviour::Exit(code) => EndCause::Exited(code),
            Behaviour::Signal => EndCause::Signaled(9),
            Behaviour::CannotExecute => EndCause::CannotExecute("no such file".into()),
            _ => EndCause::Exited(0),
        };
        let said = behaviour == Behaviour::NothingSaid;
        let result = said.then(|| AgentResult { summary: Some("nothing to do".into()), commit_message: None });
        self.end_cell(uid, run, cause, result);
        if self.planted(Plant::EndBeforeAllIsDead) {
            let elapsed = self.elapsed;
            let cell = self.body(uid).cells.get_mut(run).expect("it has just ended");
            cell.writes_on = true;
            cell.next_at = elapsed + 400;
        }
    }

    fn step_gate(&mut self, uid: &Uid, run: &RunId) {
        let Role::Gate { name, .. } = &run.role else { return };
        let cell = self.bodies[uid].cells[run].clone();
        let (head, base) = cell.judges.expect("a gate judges a commit");
        let passed = self.git.judge(name.as_str(), &head);
        if passed {
            self.oracle.passed.insert((uid.clone(), name.to_string(), head, base));
        }
        self.end_cell(uid, run, EndCause::Exited(i32::from(!passed)), None);
    }

    /// Nothing of a sandbox runs any more.
    pub fn end_cell(&mut self, uid: &Uid, run: &RunId, cause: EndCause, result: Option<AgentResult>) {
        self.end_vessel(run);
        self.close_cell(uid, run, cause, result);
    }

    /// A sandbox counts as ended.
    pub fn close_cell(&mut self, uid: &Uid, run: &RunId, cause: EndCause, result: Option<AgentResult>) {
        self.note(format!("{run} ended: {cause:?}"));
        let Some(cell) = self.bodies.get_mut(uid).and_then(|body| body.cells.get_mut(run)) else { return };
        cell.state = CellState::Ended(RunEnd { cause, duration_millis: 1000, output_tail: "output".into(), result });
        self.poke(uid);
    }

    /// Time goes by; without a leader the leases run out.
    pub fn pass_time(&mut self, millis: u64, leader_lives: bool) {
        self.elapsed += millis;
        self.wall += i64::try_from(millis).expect("a short time");
        if leader_lives {
            self.renewed = self.elapsed;
        } else if self.elapsed - self.renewed > LEASE_MILLIS {
            let live = self.bodies.iter().flat_map(|(uid, body)| body.cells.iter().map(move |(run, cell)| (uid, run, cell)));
            let live: Vec<(Uid, RunId)> = live.filter(|(_, _, cell)| cell.runs()).map(|(uid, run, _)| (uid.clone(), run.clone())).collect();
            for (uid, run) in live {
                self.end_cell(&uid, &run, EndCause::LeaseExpired, None);
            }
            for run in self.waiting_inits() {
                self.end_vessel(&run);
                self.conclude(&run, "nobody answered");
            }
        }
    }

    /// Whether an aimed fault strikes this effect now.
    pub fn aimed(&mut self, action: &Action) -> Option<super::faults::Strike> {
        let name = action.name();
        let aim = self.aims.first_mut()?;
        if !aim.action.is_empty() && aim.action != name {
            return None;
        }
        if aim.skip > 0 {
            aim.skip -= 1;
            return None;
        }
        let aim = self.aims.remove(0);
        self.note(format!("{:?} strikes {name}", aim.strike));
        Some(aim.strike)
    }
}

/// What an agent leaves in its tree.
fn work(files: &mut Files, behaviour: Behaviour, path: &str, uid: &Uid, name: &str) {
    let word = match behaviour {
        Behaviour::Bad => "bad",
        Behaviour::Ugly => "ugly",
        Behaviour::Fragile => "fragile",
        Behaviour::Forbidden => "forbidden",
        Behaviour::Unfit => "unfit",
        Behaviour::Nothing | Behaviour::NothingSaid => return,
        _ => "good",
    };
    files.insert(path.to_owned(), format!("{word} work of {uid}"));
    if behaviour == Behaviour::Share {
        files.insert("shared".into(), format!("shared by {name}"));
    }
    // Every agent resolves the conflicts that it finds.
    for text in files.values_mut().filter(|text| text.starts_with(super::git::MARKER)) {
        *text = format!("resolved by {name}");
    }
}
