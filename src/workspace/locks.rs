//! Locks by name: at most one thread of this process works on one tree, checkout or repository.
//!
//! Order, where several are held: tree, then checkout, then repository. Other processes are kept out by the lock of the state folder.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Locks by name.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<BTreeMap<String, Arc<Mutex<()>>>>);

impl Locks {
    /// Runs `work` while nobody else runs under the same name.
    pub(super) fn with<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let lock = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default());
        // What a lock guards is on disk, and is looked at again by whoever comes next: a panic poisons nothing.
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work();
        drop(guard);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&lock) == 2 {
            all.remove(name);
        }
        result
    }
}
