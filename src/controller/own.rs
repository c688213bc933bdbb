//! This controller's own writes to records: which watched changes are their echoes, and what the next pass need not read again.
//!
//! A write is made on a version that its pass has read, so nothing up to the version it got is news. The echo may come before the write
//! has returned: while one is under way changes of its record are held back, and looked at once its version is known. What is no echo then
//! wakes the record. An entry goes with its echo: what is kept does not grow with the number of records.
//!
//! What a write has returned is the record as it is, until the watch tells otherwise. It is kept for a moment, for the pass that follows. A
//! pass of a copy that was overtaken changes nothing: what it decides is stored by compare-and-set, and a plan that stores nothing is made again
//! of a live read (`reconcile`).

use crate::controller::reconcile::Context;
use crate::store::{Key, Record};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// How long a written record is as good as a read one: a watch that is broken is not heard of.
const KEPT_TIME_MAX: SignedDuration = SignedDuration::from_secs(2);
/// Records that are kept at once: as many as there are passes.
const KEPT_MAX: usize = super::PASSES_MAX as usize;

/// What is known of this controller's writes.
#[derive(Debug, Default)]
pub struct OwnWrites {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    echoes: BTreeMap<Key, OwnWrite>,
    /// Oldest first, each record once.
    kept: VecDeque<(Timestamp, Record)>,
}

/// What is known of this controller's writes to one record.
#[derive(Debug, Clone, Copy, Default)]
struct OwnWrite {
    /// The version that the last write got.
    written: u64,
    /// Whether a write is under way.
    writing: bool,
    /// The highest version that was told while one was.
    told: u64,
}

/// A write that is under way. Dropped without its version (refused, or broken off) it holds nothing back any more.
pub(super) struct Writing<'a> {
    ctx: &'a Context,
    key: Key,
}

impl OwnWrites {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding it")
    }

    /// A record as this controller has just written it, if nothing newer was told.
    pub(super) fn kept(&self, key: &Key, now: Timestamp) -> Option<Record> {
        let inner = self.inner();
        let (at, record) = inner.kept.iter().find(|(_, record)| record.key() == *key)?;
        // A clock that was put back makes everything old.
        (SignedDuration::ZERO..=KEPT_TIME_MAX).contains(&now.duration_since(*at)).then(|| record.clone())
    }

    /// The next pass over a record reads it.
    pub(super) fn let_go(&self, key: &Key) {
        self.inner().kept.retain(|(_, record)| record.key() != *key);
    }

    /// The next pass over any record reads it: nobody tells of changes at the moment.
    pub(super) fn let_all_go(&self) {
        self.inner().kept.clear();
    }

    /// Forgets everything of a record that is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.let_go(key);
        self.inner().echoes.remove(key);
    }

    fn keep(&self, record: &Record, now: Timestamp) {
        self.let_go(&record.key());
        let mut inner = self.inner();
        if inner.kept.len() >= KEPT_MAX {
            inner.kept.pop_front();
        }
        inner.kept.push_back((now, record.clone()));
    }
}

impl Inner {
    fn is_own(&mut self, watched: &Record) -> bool {
        let (key, version) = (watched.key(), version_of(watched));
        let Some(entry) = self.echoes.get_mut(&key) else { return false };
        if entry.writing {
            entry.told = entry.told.max(version);
            return true;
        }
        let is_echo = version <= entry.written;
        if version >= entry.written {
            self.echoes.remove(&key);
        }
        is_echo
    }
}

impl Context {
    /// Whether a watched change is no news: an echo of an own write, or held back until the one under way has its version. After news the
    /// record is read again.
    #[must_use]
    pub fn is_own_write(&self, record: &Record) -> bool {
        let is_own = self.own_writes.inner().is_own(record);
        if !is_own {
            self.own_writes.let_go(&record.key());
        }
        is_own
    }

    /// Says that a write of this record begins.
    pub(super) fn begin_own_write(&self, key: Key) -> Writing<'_> {
        self.own_writes.inner().echoes.entry(key.clone()).or_default().writing = true;
        Writing { ctx: self, key }
    }
}

impl Writing<'_> {
    /// The write has succeeded: this is what is stored now.
    pub(super) fn done(self, record: &Record) {
        self.ctx.own_writes.keep(record, (self.ctx.clock)());
        if let Some(entry) = self.ctx.own_writes.inner().echoes.get_mut(&self.key) {
            entry.written = version_of(record);
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut own = self.ctx.own_writes.inner();
        // Gone: the record itself is.
        let Some(entry) = own.echoes.get_mut(&self.key) else { return };
        let OwnWrite { written, told, .. } = *entry;
        *entry = OwnWrite { written, writing: false, told: 0 };
        if told >= written {
            own.echoes.remove(&self.key);
        }
        drop(own);
        if told > written {
            self.ctx.own_writes.let_go(&self.key);
            (self.ctx.wake)(self.key.clone());
        }
    }
}

/// The resource version as a number; 0: none.
#[must_use]
pub fn version_of(record: &Record) -> u64 {
    record.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}
