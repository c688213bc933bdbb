//! What wakes a pass: watch, finished effects, sandbox events, resync. A trigger carries an id, never data.
//!
//! `follow` lists and watches one kind for ever: it feeds the slim cache, the fleet and the queue. A watch that ends is resumed from
//! the last version seen; one that is too old is listed again, and what the list lacks is treated as deleted.

use crate::api::names::Uid;
use crate::api::validate::validate;
use crate::controller::cache::Slim;
use crate::controller::own::version_of;
use crate::controller::reconcile::Context;
use crate::store::{Key, Kind, Record, StoreError, WatchEvent};
use futures::StreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Wait before a list or watch that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Sends keys to the queue from anywhere, without waiting.
#[derive(Clone)]
pub struct Trigger(mpsc::UnboundedSender<Key>);

impl Trigger {
    /// The two ends: unbounded, because what is sent is one small key per change of the world, and the queue behind merges doubles.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Key>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Wakes a record. After shutdown nothing listens, and nothing is lost by that: the next start looks at every record.
    pub fn wake(&self, key: Key) {
        let _ = self.0.send(key);
    }
}

/// The cache's one writer, for both kinds.
pub type CacheWriter = Arc<std::sync::Mutex<Writer<Slim>>>;

/// What one kind's watch feeds.
pub struct Follower {
    /// Which kind.
    pub kind: Kind,
    /// Store, fleet, own writes.
    pub ctx: Arc<Context>,
    /// The slim cache.
    pub cache: CacheWriter,
    /// The queue.
    pub trigger: Trigger,
    /// Set to true after the first list.
    pub synced: watch::Sender<bool>,
}

impl Follower {
    /// Lists and watches for ever.
    pub async fn run(self) {
        let mut known: BTreeMap<Key, Uid> = BTreeMap::new();
        let mut from = None;
        loop {
            let result = match from {
                None => self.list(&mut known).await,
                Some(version) => self.watch(&mut known, version).await,
            };
            from = match result {
                Ok(version) => Some(version),
                Err(StoreError::TooOld(_)) => None,
                Err(error) => {
                    tracing::warn!(kind = ?self.kind, error = %error, "the watch ended; trying again");
                    if self.kind == Kind::Halt {
                        self.halts_unreadable();
                    }
                    tokio::time::sleep(RETRY).await;
                    None
                }
            };
        }
    }

    async fn list(&self, known: &mut BTreeMap<Key, Uid>) -> Result<u64, StoreError> {
        let (mut records, version) = self.ctx.store.list_stream(self.kind).await?;
        let mut listed = BTreeSet::new();
        // The whole fleet first: a pass that knew only a part of it would give places away that are taken.
        while let Some(record) = records.next().await {
            let record = record?;
            if self.kind == Kind::Agent {
                self.ctx.fill_fleet(&record, validate(&record).as_ref().ok());
            }
            listed.insert(self.know(known, &record));
        }
        let gone: Vec<Key> = known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.deleted(known, &key);
        }
        if self.kind == Kind::Halt {
            self.reload_halts().await?;
        }
        for key in listed {
            self.trigger.wake(key);
        }
        self.synced.send_replace(true);
        Ok(version)
    }

    /// Follows until the watch ends; returns the version to resume from.
    async fn watch(&self, known: &mut BTreeMap<Key, Uid>, from: u64) -> Result<u64, StoreError> {
        let mut stream = self.ctx.store.watch(self.kind, from).await?;
        let mut seen = from;
        while let Some(event) = stream.next().await {
            match event? {
                WatchEvent::Bookmark(version) => seen = version,
                WatchEvent::Applied(record) => {
                    seen = version_of(&record).max(seen);
                    if self.kind == Kind::Halt {
                        self.reload_halts().await?;
                    }
                    self.applied(known, &record);
                }
                WatchEvent::Deleted(record) => {
                    seen = version_of(&record).max(seen);
                    if self.kind == Kind::Halt {
                        self.reload_halts().await?;
                    }
                    self.deleted(known, &record.key());
                }
            }
        }
        Ok(seen)
    }

    fn applied(&self, known: &mut BTreeMap<Key, Uid>, record: &Record) {
        let key = self.know(known, record);
        if self.ctx.is_own_write(record) {
            return;
        }
        if self.kind == Kind::Agent {
            self.ctx.take_watched(record, validate(record).as_ref().ok());
        }
        self.trigger.wake(key);
    }

    /// Takes a record into what is known and into the cache.
    fn know(&self, known: &mut BTreeMap<Key, Uid>, record: &Record) -> Key {
        let key = record.key();
        if let Ok(uid) = Uid::new(record.metadata.uid.clone().unwrap_or_default()) {
            if known.get(&key).is_some_and(|old| *old != uid) {
                self.deleted(known, &key);
            }
            known.insert(key.clone(), uid);
        }
        self.write(&watcher::Event::Apply(Slim::of(record)));
        key
    }

    fn deleted(&self, known: &mut BTreeMap<Key, Uid>, key: &Key) {
        if let Some(uid) = known.remove(key)
            && self.kind == Kind::Agent
        {
            self.ctx.drop_from_fleet(&uid);
            self.ctx.forget(key, &uid);
        }
        self.write(&watcher::Event::Delete(Slim::named(key)));
    }

    fn write(&self, event: &watcher::Event<Slim>) {
        self.cache.lock().expect("nobody panics while holding it").apply_watcher_event(event);
    }

    /// All halts are read anew at each change: there are few, and a half-known set could stop too little.
    async fn reload_halts(&self) -> Result<(), StoreError> {
        let (records, _) = self.ctx.store.list(Kind::Halt).await?;
        let halts: Result<Vec<_>, _> = records.iter().map(|record| record.halt()).collect();
        let in_force = halts.ok().map(|halts| {
            let name = |halt: &crate::api::halt::Halt| halt.metadata.name.clone().unwrap_or_default();
            halts.iter().map(|halt| crate::plan::halts::in_force(&name(halt), &halt.spec)).collect()
        });
        let woken = self.ctx.fleet().set_halts(in_force);
        self.ctx.wake_all(woken);
        Ok(())
    }

    /// Halts that cannot be read count as halted.
    fn halts_unreadable(&self) {
        let woken = self.ctx.fleet().set_halts(None);
        self.ctx.wake_all(woken);
    }
}
