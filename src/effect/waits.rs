//! How long agents of another controller are waited for: since when nothing of them was seen alive, while this controller looked.
//!
//! Who looks is who leads, and that looks every few seconds: after a gap it begins anew, for another one may have led, and done all it had to.

use crate::api::names::Uid;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A look that is older was another term's: shorter than the shortest one (`controller::handover::TERM_MIN`).
const GAP_MAX: Duration = Duration::from_secs(12);
/// How long what was said of an agent that nobody wants to end stands: the API server is not asked for the pods of each of them every second.
const TOLD_TIME: Duration = Duration::from_secs(5);

/// What is known of all of them. The time is an argument.
#[derive(Default)]
pub struct Waits {
    inner: Mutex<BTreeMap<Uid, Wait>>,
}

struct Wait {
    /// Whose it is, and whether it is being deleted: of another one, and for another end, it begins anew.
    about: (String, bool),
    since: Instant,
    looked: Instant,
    had_pods: bool,
    /// The last look has shown something alive.
    lives: bool,
    told: Option<(Instant, String)>,
}

/// What a look has shown of an agent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// There are pods of it.
    pub has_pods: bool,
    /// Of those something lives, or may.
    pub lives: bool,
    /// Its controller is there.
    pub is_attended: bool,
}

impl Waits {
    fn inner(&self) -> MutexGuard<'_, BTreeMap<Uid, Wait>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said of an agent a moment ago; of one that has ended, and of which something lives, it is looked at once what came of that.
    #[must_use]
    pub fn told(&self, uid: &Uid, has_ended: bool, now: Instant) -> Option<String> {
        let inner = self.inner();
        let wait = inner.get(uid).filter(|wait| !(has_ended && wait.lives))?;
        let (at, text) = wait.told.as_ref()?;
        (now.duration_since(*at) < TOLD_TIME).then(|| text.clone())
    }

    /// Says it.
    pub fn tell(&self, uid: &Uid, text: &str, now: Instant) {
        if let Some(wait) = self.inner().get_mut(uid) {
            wait.told = Some((now, text.to_owned()));
        }
    }

    /// Notes what a look has shown of an agent (`about`: whose it is, whether it is being deleted): since when nothing was seen alive, and whether
    /// any look has shown pods.
    pub fn looked(&self, uid: &Uid, about: (&str, bool), seen: &Seen, now: Instant) -> (Instant, bool) {
        let about = (about.0.to_owned(), about.1);
        let mut inner = self.inner();
        let begun = Wait { about: about.clone(), since: now, looked: now, had_pods: false, lives: false, told: None };
        let wait = inner.entry(uid.clone()).or_insert(begun);
        // A deletion does not wait for a controller that is there.
        if seen.lives || seen.is_attended && !about.1 || wait.about != about || now.duration_since(wait.looked) > GAP_MAX {
            wait.since = now;
        }
        (wait.about, wait.looked, wait.had_pods, wait.lives) = (about, now, wait.had_pods || seen.has_pods, seen.lives);
        (wait.since, wait.had_pods)
    }

    /// Forgets an agent whose record is gone.
    pub fn forget(&self, uid: &Uid) {
        self.inner().remove(uid);
    }
}
