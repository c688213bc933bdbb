//! What wakes a pass: watch, finished effects, sandbox events, resync. A trigger carries an id, never data.
//!
//! `follow` lists and watches one kind for ever: it feeds the fleet and the queue. A watch that ends is resumed from
//! the last version seen; one that is too old is listed again, and what the list lacks is treated as deleted.

use crate::api::names::Uid;
use crate::api::validate::validate;
use crate::controller::cache::Queued;
use crate::controller::own::version_of;
use crate::controller::reconcile::Context;
use crate::store::{Key, Kind, Record, StoreError, WatchEvent};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Wait before a list or watch that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Sends keys to the queue from anywhere, without waiting.
#[derive(Clone)]
pub struct Trigger {
    sender: mpsc::UnboundedSender<Key>,
    queued: Arc<Mutex<Queued>>,
}

impl Trigger {
    /// The two ends: unbounded, because what is sent is one small key per change of the world, and the queue behind merges doubles.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Key>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, queued: Arc::default() }, receiver)
    }

    /// Wakes a record. After shutdown nothing listens, and nothing is lost by that: the next start looks at every record.
    pub fn wake(&self, key: Key) {
        self.queued().wake(&key);
        let _ = self.sender.send(key);
    }

    /// What is queued; held for moments only.
    pub fn queued(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().expect("nobody panics while holding it")
    }
}

/// What one kind's watch feeds.
pub struct Follower {
    /// Which kind.
    pub kind: Kind,
    /// Store, fleet, own writes.
    pub ctx: Arc<Context>,
    /// The queue.
    pub trigger: Trigger,
    /// Set to true after the first list.
    pub synced: watch::Sender<bool>,
}

impl Follower {
    /// Lists and watches for ever.
    pub async fn run(self) {
        // Records that the fleet does not hold: halts, and agents that do not decode.
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
                    self.ctx.own_writes.let_all_go();
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
            self.replaced(known, &record);
            if self.kind == Kind::Agent {
                self.ctx.fill_fleet(&record, validate(&record).as_ref().ok());
            }
            listed.insert(self.know(known, &record));
        }
        for key in self.all_known(known).difference(&listed) {
            let uid = self.known_uid(known, key);
            self.deleted(known, key, uid.as_ref());
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
                    self.deleted(known, &record.key(), uid_of(&record).as_ref());
                }
            }
        }
        Ok(seen)
    }

    fn applied(&self, known: &mut BTreeMap<Key, Uid>, record: &Record) {
        self.replaced(known, record);
        let is_news = !self.ctx.is_own_write(record);
        if is_news && self.kind == Kind::Agent {
            self.ctx.take_watched(record, validate(record).as_ref().ok());
        }
        let key = self.know(known, record);
        if is_news {
            self.trigger.wake(key);
        }
    }

    /// A record that took the place of another of its name: that one is gone.
    fn replaced(&self, known: &mut BTreeMap<Key, Uid>, record: &Record) {
        let key = record.key();
        let Some(before) = self.known_uid(known, &key).filter(|before| Some(before) != uid_of(record).as_ref()) else { return };
        // Unless it is the other way round, and a pass has seen the later one already.
        let is_later = self.ctx.fleet().is_news(&before, version_of(record));
        if is_later {
            self.deleted(known, &key, Some(&before));
        }
    }

    /// Remembers a record, unless the fleet does.
    fn know(&self, known: &mut BTreeMap<Key, Uid>, record: &Record) -> Key {
        let key = record.key();
        match uid_of(record) {
            Some(uid) if self.ctx.fleet().member(&uid).is_none() => known.insert(key.clone(), uid),
            Some(_) | None => known.remove(&key),
        };
        key
    }

    fn known_uid(&self, known: &BTreeMap<Key, Uid>, key: &Key) -> Option<Uid> {
        let in_fleet = || self.ctx.fleet().uid_named(&key.namespace, &key.name).cloned();
        known.get(key).cloned().or_else(|| if self.kind == Kind::Agent { in_fleet() } else { None })
    }

    fn all_known(&self, known: &BTreeMap<Key, Uid>) -> BTreeSet<Key> {
        let mut all: BTreeSet<Key> = known.keys().cloned().collect();
        if self.kind == Kind::Agent {
            all.extend(self.ctx.fleet().members().map(|member| Key::agent(&member.namespace, &member.name)));
        }
        all
    }

    fn deleted(&self, known: &mut BTreeMap<Key, Uid>, key: &Key, uid: Option<&Uid>) {
        known.remove(key);
        if let Some(uid) = uid.filter(|_| self.kind == Kind::Agent) {
            self.ctx.drop_from_fleet(uid);
            self.ctx.forget(key, uid);
        }
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

fn uid_of(record: &Record) -> Option<Uid> {
    Uid::new(record.metadata.uid.clone()?).ok()
}
