//! How long agents of another controller are waited for: since when nothing of them was seen alive, while this controller looked.
//!
//! Who looks is who leads, and that looks every few seconds: after a gap it begins anew, for another one may have led, and done all it had to.

use crate::api::names::Uid;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A look that is older was another term's.
const GAP_MAX: Duration = Duration::from_secs(30);
/// How long what was said of an agent that nobody wants to end stands: the API server is not asked for the pods of each of them every second.
const TOLD_TIME: Duration = Duration::from_secs(5);

/// What is known of all of them.
#[derive(Default)]
pub(super) struct Waits {
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
    pub(super) fn told(&self, uid: &Uid) -> Option<String> {
        let inner = self.inner();
        let (at, text) = inner.get(uid)?.told.as_ref()?;
        (at.elapsed() < TOLD_TIME).then(|| text.clone())
    }

    /// Says it.
    pub(super) fn tell(&self, uid: &Uid, text: &str) {
        if let Some(wait) = self.inner().get_mut(uid) {
            wait.told = Some((Instant::now(), text.to_owned()));
        }
    }

    /// Notes what a look has shown: since when nothing was seen alive, and whether any look has shown pods.
    pub(super) fn looked(&self, uid: &Uid, about: (&str, bool), has_pods: bool, lives: bool) -> (Instant, bool) {
        let (about, now) = ((about.0.to_owned(), about.1), Instant::now());
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
    pub(super) fn forget(&self, uid: &Uid) {
        self.inner().remove(uid);
    }
}
