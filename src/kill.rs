//! The kill lane: latch, SIGKILL by every path at once, a look, a receipt. It depends on as little as possible.
//!
//! ```text
//!  HTTP kill ──────┐                        ┌─> latch       memory at once, disk beside the SIGKILL
//!  admin socket ───┼─> Killer::kill ────────┼─> strike      every init by its handle, control groups, frozen ones thawed
//!  mosaic kill ────┘   (a thread of its own)├─> link        the word to stop; effects are broken off, the records are woken
//!  (no controller)                          ├─> engine      what the kernel does not show, and containers without a folder
//!                                           ├─> cluster     pods, by the API server and the word of their kubelet
//!                                           ├─> pushes      `git` and all that it has started here
//!                                           └─> look ──> receipts: dead-verified | revoked-unverified | failed
//! ```
//!
//! No store, queue, lock or limit of the rest is in the way: whom a kill means is read from the state folder (`targets`): every agent of which
//! there is a run or a tree, so also one that is merged, judged or pushed at the moment. The command
//! line does the same by itself when no controller answers. What comes after the death (keeping unpushed work, removing the tree, the
//! record) is the controller's, which finds the latch; it is no condition of a kill. `record` brings what was latched to the store.

pub mod admin;
mod book;
pub mod cluster;
pub mod drill;
pub mod engine;
pub mod lane;
pub mod latch;
mod lost;
pub mod matrix;
mod pushes;
pub mod receipt;
pub mod record;
pub mod strike;
pub mod targets;

pub use book::judge;

use crate::api::agent::Driver;
use crate::api::names::{Attempt, Role, RunId, Uid};
use crate::audit::{Audit, Draft, Outcome};
use crate::inside::wire::{FILE_STOPPED, Identity};
use crate::sandbox::folder::{RunFolder, short};
use crate::store::Key;
use crate::workspace::{Held, is_pushing};
use book::{Book, judge_stray, open_of_prepared};
use cluster::ClusterPath;
use engine::{Answer, EnginePath, Saw};
use k8s_openapi::jiff::Timestamp;
use latch::{Latch, NOTE_TIME_MAX, Note};
use lost::Lost;
use receipt::{KillRequest, Receipts, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use strike::{Struck, strike};
use targets::{Target, Targets};

/// How long a kill looks for the end of what it has signalled.
pub const KILL_TIME_MAX: Duration = Duration::from_millis(4_500);
/// How often a kill of everything looks again for what came up meanwhile.
const SWEEPS_MAX: u32 = 8;
/// How long it is waited for the intent of what is held and has none: a run that is being made has its lock a moment before, and a disk that is
/// busy makes that long.
const INTENT_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks for it.
const INTENT_PAUSE: Duration = Duration::from_millis(20);
/// Attempts that are tried to tell the run of a folder by its name.
const ATTEMPTS_TRIED: u32 = 100;
/// Least time for the end of pushes.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What the controller is told, from any thread.
type Tell = Box<dyn Fn(&[RunId], &[Uid]) + Send + Sync>;
/// An agent and its `namespace/name`.
type Named = (Uid, String);
/// What the controller knows of the agents that a request means.
type Known = Box<dyn Fn(&KillRequest) -> Vec<Named> + Send + Sync>;
/// A run that lives, and the process that shows it.
type Living = (RunId, Driver, Identity);
/// What the drivers remember.
type Alive = Box<dyn Fn() -> Vec<Living> + Send + Sync>;
/// A thread that asks the engine or the cluster, where there is something to ask; the error is why it could not be asked.
type Asking = Result<Option<JoinHandle<Answer>>, String>;
/// What the engine saw of a target, and when.
type Seen = (Target, Struck, Option<(Saw, Instant)>);

/// The controller beside the lane.
pub struct Controller {
    /// Told what is being killed, runs and agents: says the word over the links, breaks off effects, wakes the records. Nothing waits for it.
    pub tell: Tell,
    /// Agents that a request means, with `namespace/name`, of which there may be nothing on the disk yet. Must not wait.
    pub known: Known,
    /// Runs that live as far as the drivers remember: whoever empties a folder hides nothing. Must not wait.
    pub alive: Alive,
}

/// Kills what a state folder knows.
pub struct Killer {
    /// The state folder.
    pub state: PathBuf,
    /// The latch; the error is why there is none, for receipts.
    pub latch: Result<Arc<Latch>, String>,
    /// The controller, where there is one.
    pub controller: Option<Arc<Controller>>,
    /// Where kills are written down.
    pub audit: Option<Arc<Audit>>,
}

impl Killer {
    /// Kills, looks, and says what was seen. Blocks for at most [`KILL_TIME_MAX`] and a little.
    #[must_use]
    pub fn kill(&self, request: &KillRequest) -> Receipts {
        let mut round = Round::begin(self, request);
        for sweep in 0.. {
            let found = self.find(&mut round);
            let is_news = sweep == 0 || !found.is_empty() || !round.notes.is_empty();
            if is_news {
                self.strike(&mut round, found, sweep == 0);
            }
            let now = Instant::now();
            if round.is_unreadable && now < round.started + INTENT_PATIENCE {
                std::thread::sleep(INTENT_PAUSE);
            } else if !is_news || !request.all || sweep + 1 >= SWEEPS_MAX || now >= round.until {
                break;
            }
        }
        let receipts = self.close(round);
        self.write_down(request, &receipts);
        receipts
    }

    /// Strikes what was found, by every path.
    fn strike(&self, round: &mut Round<'_>, found: Found, is_first: bool) {
        let Found { runs, held, known } = found;
        let runs_of = runs.iter().filter(|target| !target.is_prepared).map(|target| (&target.run.uid, &target.agent));
        let agents =
            runs_of.chain(held.iter().map(|agent| (&agent.uid, &agent.agent))).chain(known.iter().map(|(uid, agent)| (uid, agent)));
        let mut news = Vec::new();
        for (uid, agent) in agents {
            round.books.entry(uid.clone()).or_insert_with(|| {
                news.push(uid.clone());
                Book::new(agent)
            });
        }
        round.notes.extend(latch_notes(news.iter(), round.request));
        self.note(&round.notes);
        let notes = std::mem::take(&mut round.notes);
        round.keeping.push(self.keep(notes, runs.iter().map(|target| target.folder.clone()).collect()));
        round.pushing.extend(held.iter().filter(|agent| is_pushing(&agent.folder)).map(|agent| agent.uid.clone()));
        let (mut asking, mut asking_cluster) = (Ok(None), Ok(None));
        let struck = strike(&runs, round.until, || {
            self.tell_of(&runs, news, held.clone());
            asking_cluster = self.ask_cluster(round, &runs);
            asking = self.ask_engine(round, &runs);
        });
        let mut answer = answer_of(engine::CONTAINERS, asking);
        let of_cluster = answer_of(cluster::PODS, asking_cluster);
        answer.saw.extend(of_cluster.saw);
        answer.strays.extend(of_cluster.strays);
        for (target, struck) in runs.into_iter().zip(struck) {
            round.done.insert(target.run.clone());
            let said = answer.saw.get(&target.run).cloned();
            if target.is_prepared {
                round.receipts.unknown.extend(open_of_prepared(&target, &struck, said.as_ref()));
            } else {
                round.seen.push((target, struck, said));
            }
        }
        let (prepared, strays): (Vec<_>, Vec<_>) = answer.strays.into_iter().partition(|(stray, ..)| stray.agent.is_empty());
        let open = prepared.into_iter().map(judge_stray).filter(|(verdict, _)| *verdict != Verdict::DeadVerified);
        round.receipts.unknown.extend(open.map(|(_, message)| message));
        round.notes = latch_notes(strays.iter().map(|(stray, ..)| &stray.run.uid), round.request);
        for stray in strays {
            round.done.insert(stray.0.run.clone());
            round.books.entry(stray.0.run.uid.clone()).or_insert_with(|| Book::new(&stray.0.agent)).take_stray(stray);
        }
        // A lost process of a container is found by what the kernel shows; that of a pod by the cluster alone.
        let blind = answer.blind.filter(|_| round.request.all).into_iter().chain(of_cluster.blind);
        round.receipts.unknown.extend(blind.filter(|_| is_first));
        round.held.extend(held);
    }

    /// Judges once the notes are on the disk, or it is known that they are not.
    fn close(&self, mut round: Round<'_>) -> Receipts {
        if round.is_unreadable {
            // What was told by other signs is over by now.
            let still = targets::find(&self.state).map_or_else(|e| vec![e.to_string()], |found| found.unreadable);
            round.receipts.unknown.extend(still);
        }
        self.note(&round.notes);
        let keeping = self.keep(std::mem::take(&mut round.notes), Vec::new());
        round.keeping.push(keeping);
        let Round { started, until, mut receipts, mut books, keeping, seen, held, pushing, .. } = round;
        let latched = settle(keeping, started, &mut receipts.warnings);
        if latched.is_none() && self.controller.is_none() && !books.is_empty() {
            let text = "no latch is on the disk, and no controller knows of this kill: the next one may begin anew what was killed; look at what the \
                        warnings say of the latch, mend it, and kill again";
            receipts.unknown.push(text.to_owned());
        }
        for (target, struck, said) in seen {
            let fenced = latched.is_some() || target.folder.is_stopped().unwrap_or(false);
            let book = books.get_mut(&target.run.uid).expect("each target has one");
            book.take(&target.run, &struck, said.as_ref(), fenced);
        }
        // Where everything else has taken all of the time, there is still some for a second look.
        let until = until.max(Instant::now() + LAST_LOOK);
        for (uid, ended) in pushes::end(&held, pushing, started, until) {
            books.get_mut(&uid).expect("each held agent has one").take_push(ended);
        }
        receipts.agents = books.into_iter().map(|(uid, book)| book.close(uid, started, latched)).collect();
        receipts.agents.sort_by(|a, b| a.agent.cmp(&b.agent));
        receipts.millis = millis(started, Instant::now());
        receipts
    }

    /// What the request means and was not struck yet.
    fn find(&self, round: &mut Round<'_>) -> Found {
        let request = round.request;
        let found = targets::find(&self.state).map_err(|e| format!("what runs from {} cannot be listed: {e}", self.state.display()));
        let Targets { runs, held, unreadable } = found.unwrap_or_else(|why| {
            round.receipts.unknown.extend((!round.receipts.unknown.contains(&why)).then_some(why));
            Targets::default()
        });
        // Whose it is nobody can read, so it may be one that is meant.
        round.is_unreadable = !unreadable.is_empty();
        let mut hidden = self.without_folder(&runs, &held);
        hidden.extend(self.lost(round, &runs, &held));
        let runs = runs.into_iter().chain(hidden).filter(|target| !round.done.contains(&target.run));
        let runs = runs.filter(|target| (request.all || !target.is_prepared) && is_meant(request, target.uid(), &target.agent));
        let held = held.into_iter().filter(|agent| !round.held.iter().any(|known| known.uid == agent.uid));
        let held = held.filter(|agent| is_meant(request, &agent.uid, &agent.agent));
        // Of everything the halt says enough.
        let asked = self.controller.as_ref().filter(|_| !request.all);
        let known = asked.map_or_else(Vec::new, |controller| (controller.known)(request));
        Found { runs: runs.collect(), held: held.collect(), known }
    }

    /// Runs that live and whose folders are gone.
    fn without_folder(&self, runs: &[Target], held: &[Held]) -> Vec<Target> {
        let alive = self.controller.as_ref().map_or_else(Vec::new, |controller| (controller.alive)());
        let hidden = alive.into_iter().filter(|(run, ..)| !runs.iter().any(|target| target.run == *run));
        let target = |(run, driver, identity): (RunId, Driver, Identity)| {
            let agent = held.iter().find(|agent| agent.uid == run.uid).map_or_else(|| run.uid.to_string(), |agent| agent.agent.clone());
            let folder = RunFolder::of(&self.state, &run);
            Target { run, agent, driver, folder, groups: Vec::new(), remembered: Some(identity), is_prepared: false }
        };
        hidden.map(target).collect()
    }

    /// The same where no controller remembers them: by what the kernel shows.
    fn lost(&self, round: &mut Round<'_>, runs: &[Target], held: &[Held]) -> Vec<Target> {
        if self.controller.is_some() {
            return Vec::new();
        }
        let known = runs.iter().filter_map(|target| target.identity().ok().flatten()).map(|identity| identity.pid_namespace).collect();
        let found = lost::find(&self.state, &known).unwrap_or_else(|e| {
            let why = format!("it could not be looked for sandboxes without a folder: {e}");
            round.receipts.unknown.extend((!round.receipts.unknown.contains(&why)).then_some(why));
            Vec::new()
        });
        found.into_iter().map(|lost| self.target_of(lost, held)).collect()
    }

    fn target_of(&self, lost: Lost, held: &[Held]) -> Target {
        // The name is the kernel's word, whatever somebody has renamed the folder to.
        let digits: String = lost.folder.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let owner = held.iter().find(|agent| lost.mounts.contains(agent.uid.as_str()));
        let uid = owner
            .map_or_else(|| Uid::new(format!("lost-sandbox-{digits}")).expect("letters, digits and dashes"), |agent| agent.uid.clone());
        let agent = owner.map_or_else(|| uid.to_string(), |agent| agent.agent.clone());
        let run_of = |attempt| RunId { uid: uid.clone(), attempt: Attempt(attempt), role: Role::Agent };
        let named = (1..ATTEMPTS_TRIED).map(run_of).find(|run| short(run) == lost.folder);
        // One of a gate cannot be told by its folder's name; any number that nobody else has will do.
        let run = named.unwrap_or_else(|| run_of(u32::from_str_radix(digits.get(..8).unwrap_or_default(), 16).unwrap_or(u32::MAX)));
        let folder = RunFolder::at(self.state.join("runs").join(&lost.folder));
        Target { run, agent, driver: Driver::Process, folder, groups: Vec::new(), remembered: Some(lost.identity), is_prepared: false }
    }

    fn note(&self, notes: &[Note]) {
        if let Ok(latch) = &self.latch {
            latch.note(notes);
        }
    }

    /// Brings notes and tombstones to the disk, beside the strike.
    fn keep(&self, notes: Vec<Note>, folders: Vec<RunFolder>) -> Keeping {
        let latch = self.latch.clone();
        std::thread::Builder::new().name("mosaic-latch".to_owned()).spawn(move || {
            // The latch is what counts; a tombstone tells how the run ended. On a disk that does not move this thread is left behind.
            let (told, buried) = mpsc::channel();
            let burying = std::thread::Builder::new().name("mosaic-tombstones".to_owned()).spawn(move || {
                for folder in folders {
                    let _ = std::fs::File::create_new(folder.path().join(FILE_STOPPED));
                }
                let _ = told.send(());
            });
            let kept = latch.and_then(|latch| latch.keep(&notes));
            if burying.is_ok() {
                let _ = buried.recv_timeout(NOTE_TIME_MAX);
            }
            (kept, Instant::now())
        })
    }

    fn tell_of(&self, runs: &[Target], uids: Vec<Uid>, held: Vec<Held>) {
        let (controller, runs) = (self.controller.clone(), runs.iter().map(|target| target.run.clone()).collect::<Vec<_>>());
        // If no thread can be made, the kernel's paths are all there is, and enough.
        let _ = std::thread::Builder::new().name("mosaic-tell".to_owned()).spawn(move || {
            controller.iter().for_each(|controller| (controller.tell)(&runs, &uids));
            pushes::ask(&held);
        });
    }

    /// The engine's path; only where it may have something of what is meant. The error is why it could not be asked.
    fn ask_engine(&self, round: &mut Round<'_>, found: &[Target]) -> Asking {
        let request = round.request.clone();
        let contained: Vec<Target> = found.iter().filter(|target| target.driver == Driver::Docker).cloned().collect();
        let path = match EnginePath::recall(&self.state) {
            Ok(Some(path)) => path,
            Ok(None) => return Ok(None),
            Err(why) => {
                if !round.receipts.unknown.contains(&why) {
                    round.receipts.unknown.push(why);
                }
                return Ok(None);
            }
        };
        round.containers.extend(contained.iter().map(|target| target.container(&path.installation)));
        let strays = request.all || found.is_empty();
        if !strays && contained.is_empty() {
            return Ok(None);
        }
        let is_meant: engine::IsMeant = Arc::new(move |stray| is_meant(&request, &stray.run.uid, &stray.agent));
        let begun = engine::begin(&path, &contained, &round.containers, strays.then_some(is_meant), round.until);
        begun.map(Some).map_err(|e| format!("no thread could be made to ask the container engine: {e}"))
    }

    /// The cluster's path; only where pods were ever made, and where it may have something of what is meant.
    fn ask_cluster(&self, round: &Round<'_>, found: &[Target]) -> Asking {
        let request = round.request.clone();
        let pods: Vec<Target> = found.iter().filter(|target| target.driver == Driver::Pod).cloned().collect();
        let strays = request.all || found.is_empty() || !pods.is_empty();
        if !strays {
            return Ok(None);
        }
        let Some(path) = ClusterPath::recall(&self.state)? else { return Ok(None) };
        let known = round.done.iter().chain(found.iter().map(|target| &target.run)).cloned().collect();
        let asked = request.clone();
        let is_meant: engine::IsMeant = Arc::new(move |stray| is_meant(&asked, &stray.run.uid, &stray.agent));
        let begun = cluster::begin(&path, &pods, cluster::Strays { known, is_meant }, &request, round.until);
        begun.map(Some).map_err(|e| format!("no thread could be made to ask the cluster: {e}"))
    }

    fn write_down(&self, request: &KillRequest, receipts: &Receipts) {
        let Some(audit) = &self.audit else { return };
        let actor = if request.who.is_empty() { "admin socket" } else { &request.who };
        let append = |draft: Draft| {
            if let Err(error) = audit.append(draft) {
                tracing::error!(%error, "the audit entry of a kill was lost");
            }
        };
        for receipt in &receipts.agents {
            let outcome = match receipt.verdict {
                Verdict::DeadVerified => Outcome::Ok,
                Verdict::RevokedUnverified => Outcome::Unknown,
                Verdict::Failed => Outcome::Failed,
            };
            let (namespace, name) = receipt.agent.split_once('/').unwrap_or(("", &receipt.agent));
            let text = format!("{}: {}", receipt.verdict.as_str(), receipt.message);
            let draft = Draft::request(actor, "Kill", outcome).about(Key::agent(namespace, name), Some(receipt.agent_id.clone()));
            append(draft.with_message(&text));
        }
        if let Some(halt) = &receipts.halt {
            let outcome = if receipts.all_dead() { Outcome::Ok } else { Outcome::Unknown };
            append(Draft::request(actor, "KillAll", outcome).about(Key::halt(halt), None));
        }
    }
}

/// One kill while it is worked on.
struct Round<'a> {
    request: &'a KillRequest,
    started: Instant,
    until: Instant,
    receipts: Receipts,
    /// Something runs whose folder cannot be read.
    is_unreadable: bool,
    books: BTreeMap<Uid, Book>,
    /// Struck already.
    done: BTreeSet<RunId>,
    /// Containers that have a folder, by name.
    containers: BTreeSet<String>,
    /// Agents with a tree.
    held: Vec<Held>,
    /// Of those, who was pushed when it was asked to end.
    pushing: BTreeSet<Uid>,
    /// To be noted and kept with the next strike.
    notes: Vec<Note>,
    keeping: Vec<Keeping>,
    seen: Vec<Seen>,
}

impl<'a> Round<'a> {
    /// A halt counts before anything is looked for: what is being started at this moment meets it at its gate.
    fn begin(killer: &Killer, request: &'a KillRequest) -> Self {
        let started = Instant::now();
        let halt = request.all.then(|| halt_of(request));
        killer.note(halt.as_slice());
        let name = halt.as_ref().and_then(Note::halt_name).map(str::to_owned);
        Self {
            request,
            started,
            until: started + KILL_TIME_MAX,
            receipts: Receipts { halt: name, ..Receipts::default() },
            is_unreadable: false,
            books: BTreeMap::new(),
            done: BTreeSet::new(),
            containers: BTreeSet::new(),
            held: Vec::new(),
            pushing: BTreeSet::new(),
            notes: halt.into_iter().collect(),
            keeping: Vec::new(),
            seen: Vec::new(),
        }
    }
}

/// What one look has found.
struct Found {
    runs: Vec<Target>,
    /// Agents with a tree: they may be between two runs, merged or pushed.
    held: Vec<Held>,
    /// Agents that the controller knows.
    known: Vec<(Uid, String)>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.held.is_empty()
    }
}

fn halt_of(request: &KillRequest) -> Note {
    Note::Halt {
        name: request.halt.clone().unwrap_or_else(new_halt_name),
        namespace: request.namespace.clone(),
        hold: request.hold,
        reason: request.reason.clone().unwrap_or_else(|| "kill-all".to_owned()),
        at_millis: now_millis(),
    }
}

/// Whether a request means an agent; `agent` is its `namespace/name`, or the uid where that is not known.
#[must_use]
pub fn is_meant(request: &KillRequest, uid: &Uid, agent: &str) -> bool {
    let (namespace, name) = agent.split_once('/').unwrap_or(("", agent));
    if request.all {
        return request.namespace.as_deref().is_none_or(|only| only == namespace);
    }
    let here = request.namespace.as_deref().unwrap_or("default");
    request.agents.iter().any(|wanted| uid.as_str() == wanted || agent == wanted || (namespace == here && name == wanted))
}

fn latch_notes<'a>(uids: impl Iterator<Item = &'a Uid>, request: &KillRequest) -> Vec<Note> {
    let by = if request.all { "kill-all" } else { "kill" };
    let at_millis = now_millis();
    let uids: BTreeSet<&Uid> = uids.collect();
    uids.into_iter().map(|uid| Note::Killed { uid: uid.clone(), by: by.to_owned(), at_millis }).collect()
}

/// A name for the halt of one kill-all.
#[must_use]
pub fn new_halt_name() -> String {
    format!("kill-all-{}", uuid::Uuid::now_v7().simple())
}

/// What is being brought to the disk, and when it was.
type Keeping = std::io::Result<JoinHandle<(Result<(), String>, Instant)>>;

/// Waits for the notes, which have a time limit of their own. Returns when the last was kept, in milliseconds; `None`: not all are.
fn settle(keeping: Vec<Keeping>, started: Instant, warnings: &mut Vec<String>) -> Option<u64> {
    let mut last = Some(0);
    for thread in keeping {
        let outcome = thread.map_err(|e| e.to_string()).and_then(|thread| thread.join().map_err(|_| "its thread broke".to_owned()));
        match outcome {
            Ok((Ok(()), at)) => last = last.map(|last: u64| last.max(millis(started, at))),
            Ok((Err(why), _)) | Err(why) => {
                last = None;
                let text =
                    format!("not latched on the disk: {why}; until the record says it, only this process knows that they were killed");
                if !warnings.contains(&text) {
                    warnings.push(text);
                }
            }
        }
    }
    last
}

/// What the engine or the cluster said; that it could not be asked is as good as its silence.
fn answer_of(kind: &str, asking: Asking) -> Answer {
    let broke = |_| "the thread that asks broke".to_owned();
    match asking.and_then(|asking| asking.map(|thread| thread.join().map_err(broke)).transpose()) {
        Ok(answer) => answer.unwrap_or_default(),
        Err(why) => Answer::blind(kind, &why),
    }
}

fn millis(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

fn now_millis() -> i64 {
    Timestamp::now().as_millisecond()
}
