//! Pushes of what is killed: nothing of an agent is pushed after its receipt. `git` is asked to end first, so that it takes its locks off the
//! remote, and killed a moment later; then it is looked whether anything of the push lives on this machine.

use crate::api::names::Uid;
use crate::workspace::{Held, Push, look_for_push, signal_push};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a push may tidy up before it is killed.
const TIDY_TIME: Duration = Duration::from_secs(1);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Asks the pushes of these agents to end; waits for nothing.
pub(super) fn ask(held: &[Held]) {
    for agent in held {
        // Whoever cannot be asked is seen below.
        let _ = signal_push(&agent.folder, Signal::TERM);
    }
}

/// Ends the pushes of these agents and looks that they have; of whom there was none nothing is said. `pushing` had one when they were asked. The
/// error is why it was not seen. A kill must have been noted where whoever pushes looks.
pub(super) fn end(held: &[Held], pushing: BTreeSet<Uid>, asked: Instant, until: Instant) -> BTreeMap<Uid, Result<Instant, String>> {
    let mut seen: BTreeMap<Uid, Result<Instant, String>> = pushing.into_iter().map(|uid| (uid, Ok(asked))).collect();
    let mut open: Vec<&Held> = held.iter().collect();
    loop {
        open.retain(|agent| {
            let outcome = match look_for_push(&agent.folder) {
                // Gone since the last look.
                Ok(Push::None) if seen.contains_key(&agent.uid) => Ok(Instant::now()),
                Ok(Push::None) => return false,
                Ok(Push::Announced) => Err("it was about to begin, and who begins it does not move".to_owned()),
                Ok(Push::Lives) => Err("its processes still live".to_owned()),
                Err(why) => Err(why.to_string()),
            };
            let is_open = outcome.is_err();
            seen.insert(agent.uid.clone(), outcome);
            if is_open {
                let signal = if asked.elapsed() < TIDY_TIME { Signal::TERM } else { Signal::KILL };
                let _ = signal_push(&agent.folder, signal);
            }
            is_open
        });
        if open.is_empty() || Instant::now() >= until {
            return seen;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}
