//! Which watched changes are echoes of this controller's own writes, and so wake nobody.
//!
//! A write is made on a version that its pass has read, so nothing up to the version it got is news. The echo may come before the write
//! has returned: while one is under way changes of its record are held back, and looked at once its version is known. What is no echo then
//! wakes the record. An entry goes with its echo: what is kept does not grow with the number of records.

use crate::controller::reconcile::Context;
use crate::store::{Key, Record};

/// What is known of this controller's writes to one record.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnWrite {
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

impl Context {
    /// Whether a watched change is no news: an echo of an own write, or held back until the one under way has its version.
    #[must_use]
    pub fn is_own_write(&self, record: &Record) -> bool {
        let (key, version) = (record.key(), version_of(record));
        let mut own = self.own_writes();
        let Some(entry) = own.get_mut(&key) else { return false };
        if entry.writing {
            entry.told = entry.told.max(version);
            return true;
        }
        let is_echo = version <= entry.written;
        if version >= entry.written {
            own.remove(&key);
        }
        is_echo
    }

    /// Says that a write of this record begins.
    pub(super) fn begin_own_write(&self, key: Key) -> Writing<'_> {
        self.own_writes().entry(key.clone()).or_default().writing = true;
        Writing { ctx: self, key }
    }

    fn own_writes(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<Key, OwnWrite>> {
        self.own_writes.lock().expect("nobody panics while holding it")
    }
}

impl Writing<'_> {
    /// The write has succeeded: this is what is stored now.
    pub(super) fn done(self, record: &Record) {
        if let Some(entry) = self.ctx.own_writes().get_mut(&self.key) {
            entry.written = version_of(record);
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut own = self.ctx.own_writes();
        // Gone: the record itself is.
        let Some(entry) = own.get_mut(&self.key) else { return };
        let OwnWrite { written, told, .. } = *entry;
        *entry = OwnWrite { written, writing: false, told: 0 };
        if told >= written {
            own.remove(&self.key);
        }
        drop(own);
        if told > written {
            (self.ctx.wake)(self.key.clone());
        }
    }
}

/// The resource version as a number; 0: none.
#[must_use]
pub fn version_of(record: &Record) -> u64 {
    record.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}
