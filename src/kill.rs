//! The kill lane: latch, SIGKILL by every path at once, a look, a receipt. It depends on as little as possible.
//!
//! ```text
//!  HTTP kill ──────┐                        ┌─> latch       memory at once, disk beside the SIGKILL
//!  admin socket ───┼─> Killer::kill ────────┼─> strike      every init by its handle, control groups, frozen ones thawed
//!  mosaic kill ────┘   (a thread of its own)├─> link        the word to stop, and the records are woken
//!  (no controller)                          ├─> engine      what the kernel does not show, and containers without a folder
//!                                           └─> look ──> receipts: dead-verified | revoked-unverified | failed
//! ```
//!
//! No store, queue, lock or limit of the rest is in the way: what can be killed is read from the state folder (`targets`), and the command
//! line does the same by itself when no controller answers. What comes after the death (keeping unpushed work, removing the tree, the
//! record) is the controller's, which finds the latch; it is no condition of a kill. `record` brings what was latched to the store.

pub mod admin;
pub mod drill;
pub mod engine;
pub mod lane;
pub mod latch;
pub mod matrix;
pub mod receipt;
pub mod record;
pub mod strike;
pub mod targets;

use crate::api::agent::Driver;
use crate::api::names::{RunId, Uid};
use crate::audit::{Audit, Draft, Outcome};
use crate::inside::wire::FILE_STOPPED;
use crate::sandbox::docker::engine::Container;
use crate::store::Key;
use engine::{Answer, EnginePath, Saw};
use k8s_openapi::jiff::Timestamp;
use latch::{Latch, Note};
use receipt::{KillRequest, Receipt, Receipts, Steps, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strike::{Seen, Struck, strike};
use targets::{Target, Targets};

/// How long a kill looks for the end of what it has signalled.
pub const KILL_TIME_MAX: Duration = Duration::from_millis(4_500);
/// How often a kill of everything looks again for what came up meanwhile.
const SWEEPS_MAX: u32 = 8;

/// Told what is being killed: says the word over the links and wakes the records. On a thread of its own; nothing waits for it.
pub type Tell = Arc<dyn Fn(&[RunId]) + Send + Sync>;

/// Kills what a state folder knows.
pub struct Killer {
    /// The state folder.
    pub state: PathBuf,
    /// The latch; the error is why there is none, for receipts.
    pub latch: Result<Arc<Latch>, String>,
    /// Links and records, where there is a controller.
    pub tell: Tell,
    /// Where kills are written down.
    pub audit: Option<Arc<Audit>>,
}

impl Killer {
    /// Kills, looks, and says what was seen. Blocks for at most [`KILL_TIME_MAX`] and a little.
    #[must_use]
    pub fn kill(&self, request: &KillRequest) -> Receipts {
        let started = Instant::now();
        let until = started + KILL_TIME_MAX;
        let mut receipts = Receipts::default();
        let mut notes = Vec::new();
        if request.all {
            let halt = self.halt_of(request);
            if let Note::Halt { name, .. } = &halt {
                receipts.halt = Some(name.clone());
            }
            // What is being started at this moment meets it at its gate.
            self.note(std::slice::from_ref(&halt));
            notes.push(halt);
        }
        let mut books: BTreeMap<Uid, Book> = BTreeMap::new();
        let mut done: BTreeSet<RunId> = BTreeSet::new();
        let mut containers: BTreeSet<String> = BTreeSet::new();
        let mut keeping = Vec::new();
        for _ in 0..SWEEPS_MAX {
            let found = self.find(request, &done, &mut receipts);
            let agents = found.iter().filter(|target| !target.is_prepared).map(Target::uid);
            notes.extend(latch_notes(agents.filter(|uid| !books.contains_key(uid)), request));
            let is_first = done.is_empty() && keeping.is_empty();
            if found.is_empty() && notes.is_empty() && !is_first {
                break;
            }
            self.note(&notes);
            keeping.push(self.keep(std::mem::take(&mut notes), found.iter().map(|t| t.folder.clone()).collect()));
            self.tell_of(&found);
            let asking = self.ask_engine(request, &found, &mut containers, until, &mut receipts);
            let struck = strike(&found, until);
            let answer = answer_of(asking, &mut receipts.warnings);
            for (target, struck) in found.into_iter().zip(struck) {
                done.insert(target.run.clone());
                let said = answer.saw.get(&target.run);
                if target.is_prepared {
                    receipts.unknown.extend(open_of_prepared(&target, &struck, said));
                    continue;
                }
                books.entry(target.run.uid.clone()).or_insert_with(|| Book::new(&target.agent)).take(&target, &struck, said);
            }
            let (prepared, strays): (Vec<_>, Vec<_>) = answer.strays.into_iter().partition(|(container, ..)| container.agent.is_empty());
            let open = prepared.into_iter().map(judge_stray).filter(|(verdict, _)| *verdict != Verdict::DeadVerified);
            receipts.unknown.extend(open.map(|(_, message)| message));
            notes = latch_notes(strays.iter().map(|(container, ..)| &container.run.uid), request);
            for stray in strays {
                done.insert(stray.0.run.clone());
                books.entry(stray.0.run.uid.clone()).or_insert_with(|| Book::new(&stray.0.agent)).take_stray(stray);
            }
            receipts
                .unknown
                .extend(answer.blind.filter(|_| request.all && is_first).map(|why| format!("containers without a folder: {why}")));
            if !request.all || Instant::now() >= until {
                break;
            }
        }
        self.note(&notes);
        keeping.push(self.keep(notes, Vec::new()));
        let latched = settle(keeping, started, &mut receipts.warnings);
        receipts.agents = books.into_iter().map(|(uid, book)| book.close(uid, started, latched)).collect();
        receipts.agents.sort_by(|a, b| a.agent.cmp(&b.agent));
        self.write_down(request, &receipts);
        receipts.millis = millis(started, Instant::now());
        receipts
    }

    fn halt_of(&self, request: &KillRequest) -> Note {
        Note::Halt {
            name: request.halt.clone().unwrap_or_else(new_halt_name),
            namespace: request.namespace.clone(),
            hold: request.hold,
            reason: request.reason.clone().unwrap_or_else(|| "kill-all".to_owned()),
            at_millis: now_millis(),
        }
    }

    /// What the request means and was not struck yet.
    fn find(&self, request: &KillRequest, done: &BTreeSet<RunId>, receipts: &mut Receipts) -> Vec<Target> {
        let Targets { runs, unreadable } = match targets::find(&self.state) {
            Ok(found) => found,
            Err(e) => {
                receipts.unknown.push(format!("the runs in {} cannot be listed: {e}", self.state.display()));
                return Vec::new();
            }
        };
        if request.all {
            let news: Vec<String> = unreadable.into_iter().filter(|what| !receipts.unknown.contains(what)).collect();
            receipts.unknown.extend(news);
        }
        let namespace = request.namespace.as_deref();
        let is_meant = |target: &Target| {
            if request.all {
                namespace.is_none_or(|namespace| target.namespace() == namespace)
            } else {
                request.agents.iter().any(|name| target.is_called(name, namespace.unwrap_or("default")))
            }
        };
        runs.into_iter().filter(|target| !done.contains(&target.run) && is_meant(target)).collect()
    }

    fn note(&self, notes: &[Note]) {
        if let Ok(latch) = &self.latch {
            latch.note(notes);
        }
    }

    /// Brings notes and tombstones to the disk, beside the strike.
    fn keep(&self, notes: Vec<Note>, folders: Vec<crate::sandbox::folder::RunFolder>) -> Keeping {
        let latch = self.latch.clone();
        std::thread::Builder::new().name("mosaic-latch".to_owned()).spawn(move || {
            // The latch is what counts; a tombstone tells how the run ended. On a disk that does not move this thread is left behind.
            let _ = std::thread::Builder::new().name("mosaic-tombstones".to_owned()).spawn(move || {
                for folder in folders {
                    let _ = std::fs::File::create_new(folder.path().join(FILE_STOPPED));
                }
            });
            (latch.and_then(|latch| latch.keep(&notes)), Instant::now())
        })
    }

    fn tell_of(&self, found: &[Target]) {
        let (tell, runs) = (self.tell.clone(), found.iter().map(|target| target.run.clone()).collect::<Vec<_>>());
        // If no thread can be made, the kernel's paths are all there is, and enough.
        let _ = std::thread::Builder::new().name("mosaic-tell".to_owned()).spawn(move || tell(&runs));
    }

    /// The engine's path; only where it may have something of what is meant. `known` are the containers that have a folder.
    fn ask_engine(
        &self,
        request: &KillRequest,
        found: &[Target],
        known: &mut BTreeSet<String>,
        until: Instant,
        receipts: &mut Receipts,
    ) -> Option<std::thread::JoinHandle<Answer>> {
        let contained: Vec<Target> = found.iter().filter(|target| target.driver == Driver::Docker).cloned().collect();
        let path = match EnginePath::recall(&self.state) {
            Ok(path) => path?,
            Err(why) => {
                receipts.unknown.extend((!receipts.unknown.contains(&why)).then_some(why));
                return None;
            }
        };
        known.extend(contained.iter().map(|target| target.container(&path.installation)));
        let asked = request.clone();
        let is_meant: engine::IsMeant = Arc::new(move |container| {
            let namespace = container.agent.split_once('/').map_or("", |(namespace, _)| namespace);
            if asked.all {
                asked.namespace.as_deref().is_none_or(|only| only == namespace)
            } else {
                asked.agents.iter().any(|name| container.run.uid.as_str() == name || container.agent == *name)
            }
        });
        let strays = request.all || found.is_empty();
        (strays || !contained.is_empty()).then(|| engine::begin(&path, &contained, known, strays.then_some(is_meant), until).ok()).flatten()
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
type Keeping = std::io::Result<std::thread::JoinHandle<(Result<(), String>, Instant)>>;

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

/// What the engine said; that its thread broke is as good as its silence.
fn answer_of(asking: Option<std::thread::JoinHandle<Answer>>, warnings: &mut Vec<String>) -> Answer {
    let Some(asking) = asking else { return Answer::default() };
    asking.join().unwrap_or_else(|_| {
        warnings.push("the thread that asks the container engine broke".to_owned());
        Answer::default()
    })
}

/// What was seen of one agent's runs.
struct Book {
    agent: String,
    runs: usize,
    verdict: Verdict,
    message: String,
    signalled: Option<Instant>,
    engine: Option<Instant>,
    dead: Option<Instant>,
}

impl Book {
    fn new(agent: &str) -> Self {
        let message = NOTHING_RAN.to_owned();
        let (signalled, engine, dead) = (None, None, None);
        Self { agent: agent.to_owned(), runs: 0, verdict: Verdict::DeadVerified, message, signalled, engine, dead }
    }

    fn take(&mut self, target: &Target, struck: &Struck, said: Option<&(Saw, Instant)>) {
        self.signalled = self.signalled.max(struck.signalled);
        self.dead = self.dead.max(struck.dead);
        self.engine = self.engine.max(said.map(|(_, at)| *at));
        // Asked after the engine has spoken: a create that is answered meanwhile has its word by now.
        let open = target.is_unanswered().unwrap_or(true);
        let (verdict, message) = judge(&target.run, &struck.seen, struck.signalled.is_some(), said.map(|(saw, _)| saw), open);
        if struck.dead.is_none() && verdict == Verdict::DeadVerified {
            self.dead = self.dead.max(said.map(|(_, at)| *at));
        }
        self.judged(verdict, message, struck.signalled.is_some() || said.is_some());
    }

    fn take_stray(&mut self, stray: (Container, Saw, Instant)) {
        let at = stray.2;
        self.engine = self.engine.max(Some(at));
        let (verdict, message) = judge_stray(stray);
        if verdict == Verdict::DeadVerified {
            self.dead = self.dead.max(Some(at));
        }
        self.judged(verdict, message, true);
    }

    /// The worst of an agent's runs is the agent's.
    fn judged(&mut self, verdict: Verdict, message: String, did_something: bool) {
        self.runs += 1;
        if verdict > self.verdict || (verdict == self.verdict && did_something) {
            (self.verdict, self.message) = (verdict, message);
        }
    }

    fn close(self, uid: Uid, started: Instant, latched: Option<u64>) -> Receipt {
        let after = |at: Option<Instant>| at.map(|at| millis(started, at));
        let dead = after(self.dead).filter(|_| self.verdict == Verdict::DeadVerified);
        let steps = Steps { latched, signalled: after(self.signalled), engine: after(self.engine), dead };
        Receipt { agent_id: uid, agent: self.agent, verdict: self.verdict, runs: self.runs, steps, message: self.message }
    }
}

/// What is to be said of a container without a folder: the engine's word is all there is.
fn judge_stray((container, saw, _): (Container, Saw, Instant)) -> (Verdict, String) {
    let name = container.name;
    match saw {
        Saw::None | Saw::Dead => (Verdict::DeadVerified, format!("container {name} had no folder; the engine says that it is dead")),
        Saw::Runs => (Verdict::Failed, format!("container {name} still runs")),
        Saw::Unknown(why) => (Verdict::RevokedUnverified, format!("container {name}: {why}")),
    }
}

/// What is open of a container that was prepared for an agent; it is in no agent's book. `None`: it was seen dead.
fn open_of_prepared(target: &Target, struck: &Struck, said: Option<&(Saw, Instant)>) -> Option<String> {
    // Whatever still comes of an unanswered create executes nothing: it has no agent.
    let (verdict, message) = judge(&target.run, &struck.seen, struck.signalled.is_some(), said.map(|(saw, _)| saw), false);
    (verdict != Verdict::DeadVerified).then(|| format!("a container that waited for an agent: {message}"))
}

/// What is said of an agent of which nothing lived.
const NOTHING_RAN: &str = "nothing of it ran";

/// What is to be said of one run: the kernel's word where it has one, else the engine's; what nobody could look at is unknown, never gone.
/// `signalled`: SIGKILL was sent to something of it. `open`: its create was asked for and never answered, so that something may still come.
#[must_use]
pub fn judge(run: &RunId, seen: &Seen, signalled: bool, said: Option<&Saw>, open: bool) -> (Verdict, String) {
    let why = match seen {
        Seen::Dead if signalled => {
            return (Verdict::DeadVerified, "SIGKILL; its process namespace was seen empty".to_owned());
        }
        Seen::Dead => return (Verdict::DeadVerified, NOTHING_RAN.to_owned()),
        Seen::Lives(what) => return (Verdict::Failed, format!("{run}: {what}")),
        Seen::Hidden(why) => why,
    };
    match said {
        Some(Saw::None | Saw::Dead) if !open => (Verdict::DeadVerified, "the engine says that its container is dead".to_owned()),
        Some(Saw::None | Saw::Dead) => {
            let text = "its container was asked for and the engine has not answered; whatever still comes of it is refused its start";
            (Verdict::RevokedUnverified, format!("{run}: {text}"))
        }
        Some(Saw::Runs) => (Verdict::Failed, format!("{run}: its container still runs, by the engine's word")),
        Some(Saw::Unknown(engine)) => (Verdict::RevokedUnverified, format!("{run}: could not look: {why}; {engine}")),
        None => (Verdict::RevokedUnverified, format!("{run}: could not look: {why}")),
    }
}

fn millis(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

fn now_millis() -> i64 {
    Timestamp::now().as_millisecond()
}
