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
    told: Option<(Instant, String)>,
}

impl Waits {
    fn inner(&self) -> MutexGuard<'_, BTreeMap<Uid, Wait>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said of an agent a moment ago.
    #[must_use]
    pub fn told(&self, uid: &Uid, now: Instant) -> Option<String> {
        let inner = self.inner();
        let (at, text) = inner.get(uid)?.told.as_ref()?;
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
    pub fn looked(&self, uid: &Uid, about: (&str, bool), has_pods: bool, lives: bool, now: Instant) -> (Instant, bool) {
        let about = (about.0.to_owned(), about.1);
        let mut inner = self.inner();
        let begun = Wait { about: about.clone(), since: now, looked: now, had_pods: false, told: None };
        let wait = inner.entry(uid.clone()).or_insert(begun);
        if lives || wait.about != about || now.duration_since(wait.looked) > GAP_MAX {
            wait.since = now;
        }
        (wait.about, wait.looked, wait.had_pods) = (about, now, wait.had_pods || has_pods);
        (wait.since, wait.had_pods)
    }

    /// Forgets an agent whose record is gone.
    pub fn forget(&self, uid: &Uid) {
        self.inner().remove(uid);
    }
}
