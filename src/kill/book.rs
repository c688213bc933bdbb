//! What was seen of each agent, and what is to be said of it.

use super::engine::{Saw, Stray};
use super::millis;
use super::receipt::{Receipt, Steps, Verdict};
use super::strike::{Seen, Struck};
use super::targets::Target;
use crate::api::names::{RunId, Uid};
use std::time::Instant;

/// What is said of an agent of which nothing lived.
const NOTHING_RAN: &str = "nothing of it ran any more";

/// What was seen of one agent's runs.
pub(super) struct Book {
    agent: String,
    runs: usize,
    verdict: Verdict,
    message: String,
    signalled: Option<Instant>,
    engine: Option<Instant>,
    dead: Option<Instant>,
}

impl Book {
    pub(super) fn new(agent: &str) -> Self {
        let message = NOTHING_RAN.to_owned();
        let (signalled, engine, dead) = (None, None, None);
        Self { agent: agent.to_owned(), runs: 0, verdict: Verdict::DeadVerified, message, signalled, engine, dead }
    }

    pub(super) fn take(&mut self, run: &RunId, struck: &Struck, said: Option<&(Saw, Instant)>, fenced: bool) {
        self.signalled = self.signalled.max(struck.signalled);
        self.dead = self.dead.max(struck.dead);
        self.engine = self.engine.max(said.map(|(_, at)| *at));
        let (verdict, message) = judge(run, &struck.seen, struck.signalled.is_some(), said.map(|(saw, _)| saw), fenced);
        if struck.dead.is_none() && verdict == Verdict::DeadVerified {
            self.dead = self.dead.max(said.map(|(_, at)| *at));
        }
        self.runs += 1;
        self.judged(verdict, message, struck.signalled.is_some() || said.is_some());
    }

    pub(super) fn take_stray(&mut self, stray: (Stray, Saw, Instant)) {
        let at = stray.2;
        self.engine = self.engine.max(Some(at));
        let (verdict, message) = judge_stray(stray);
        if verdict == Verdict::DeadVerified {
            self.dead = self.dead.max(Some(at));
        }
        self.runs += 1;
        self.judged(verdict, message, true);
    }

    /// Its push was under way: it was ended, or why that was not seen.
    pub(super) fn take_push(&mut self, ended: Result<Instant, String>) {
        match ended {
            Ok(at) => {
                self.dead = self.dead.max(Some(at));
                self.judged(
                    Verdict::DeadVerified,
                    "a push of it was under way and is ended here; what the remote had received it may still take".to_owned(),
                    true,
                );
            }
            Err(why) => self.judged(Verdict::RevokedUnverified, format!("its push was not seen to end: {why}"), true),
        }
    }

    /// The worst of an agent's runs is the agent's.
    fn judged(&mut self, verdict: Verdict, message: String, did_something: bool) {
        if verdict > self.verdict || (verdict == self.verdict && did_something) {
            (self.verdict, self.message) = (verdict, message);
        }
    }

    pub(super) fn close(self, uid: Uid, started: Instant, latched: Option<u64>) -> Receipt {
        let after = |at: Option<Instant>| at.map(|at| millis(started, at));
        let dead = after(self.dead).filter(|_| self.verdict == Verdict::DeadVerified);
        let steps = Steps { latched, signalled: after(self.signalled), engine: after(self.engine), dead };
        Receipt { agent_id: uid, agent: self.agent, verdict: self.verdict, runs: self.runs, steps, message: self.message }
    }
}

/// What is to be said of a container or pod without a folder: the engine's or the cluster's word is all there is.
pub(super) fn judge_stray((stray, saw, _): (Stray, Saw, Instant)) -> (Verdict, String) {
    let name = stray.name;
    match saw {
        Saw::None | Saw::Dead | Saw::SaidGone(_) => {
            (Verdict::DeadVerified, format!("{name} had no folder; the engine says that it is dead"))
        }
        Saw::Terminated => (Verdict::DeadVerified, format!("{name} had no folder; its container has terminated")),
        Saw::Runs => (Verdict::Failed, format!("{name} still runs")),
        Saw::Coming => (Verdict::RevokedUnverified, format!("{name} may still come")),
        Saw::Unknown(why) => (Verdict::RevokedUnverified, format!("{name}: {why}")),
    }
}

/// What is open of a container that was prepared for an agent; it is in no agent's book. `None`: it was seen dead.
pub(super) fn open_of_prepared(target: &Target, struck: &Struck, said: Option<&(Saw, Instant)>) -> Option<String> {
    // Whatever still comes of it executes nothing: it has no agent.
    let (verdict, message) = judge(&target.run, &struck.seen, struck.signalled.is_some(), said.map(|(saw, _)| saw), true);
    (verdict != Verdict::DeadVerified).then(|| format!("a container that waited for an agent: {message}"))
}

/// What is to be said of one run: the kernel's word where it has one, else the engine's; what nobody could look at is unknown, never gone.
/// `signalled`: SIGKILL was sent to something of it. `fenced`: its tombstone or the latch is on the disk, so that whatever still comes of it is
/// refused its start; only then is the engine's word final.
#[must_use]
pub fn judge(run: &RunId, seen: &Seen, signalled: bool, said: Option<&Saw>, fenced: bool) -> (Verdict, String) {
    let why = match seen {
        Seen::Dead if signalled => {
            return (Verdict::DeadVerified, "SIGKILL; its process namespace was seen empty".to_owned());
        }
        Seen::Dead => return (Verdict::DeadVerified, NOTHING_RAN.to_owned()),
        Seen::Lives(what) => return (Verdict::Failed, format!("{run}: {what}")),
        Seen::Hidden(why) => why,
    };
    let text = match said {
        Some(Saw::SaidGone(who)) => {
            return (Verdict::DeadVerified, format!("{who} said that the node of its pod is gone; nobody could look"));
        }
        Some(Saw::Terminated) => {
            return (Verdict::DeadVerified, "its container has terminated, by the word of its kubelet or the end of its node".to_owned());
        }
        Some(Saw::None | Saw::Dead) if fenced => {
            let text =
                "the engine says that its container is gone or dead; a start that comes late is refused by its tombstone or the latch";
            return (Verdict::DeadVerified, text.to_owned());
        }
        Some(Saw::None | Saw::Dead) => {
            "the engine says that its container is dead, but a start that comes late would not be refused".to_owned()
        }
        Some(Saw::Runs) => return (Verdict::Failed, format!("{run}: its container still runs, by the engine's word")),
        Some(Saw::Coming) => {
            "its container was asked for and the engine has not answered; whatever still comes of it is refused its start".to_owned()
        }
        Some(Saw::Unknown(engine)) => format!("could not look: {why}; {engine}"),
        None => format!("could not look: {why}"),
    };
    (Verdict::RevokedUnverified, format!("{run}: {text}"))
}
