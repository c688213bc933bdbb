//! Fake `Store`: the Kubernetes contract over a map. Every call yields before and after it acts, so that the scheduler can put anything
//! in between, drop the caller there, or lose the reply.

use super::oracle;
use super::plants::Plant;
use super::truth::{Shared, Truth};
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use mosaic::api::names::Uid;
use mosaic::plan::status::{Ending, ending};
use mosaic::store::{Key, Kind, Record, Store, StoreError, StoreResult, Watch};
use std::collections::BTreeMap;
use std::task::Poll;

/// Gives the scheduler a turn.
pub async fn pause() {
    let mut asked = false;
    std::future::poll_fn(|_| if std::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Gives the scheduler many turns: a look or a list that takes its time.
pub async fn slowly() {
    for _ in 0..60 {
        pause().await;
    }
}

/// One change, for the watches.
#[derive(Debug, Clone)]
pub enum Change {
    Applied(Record),
    Deleted(Record),
}

/// All records.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub map: BTreeMap<Key, Record>,
    pub version: u64,
    pub created: u64,
    pub archive: BTreeMap<Uid, Record>,
    /// Changes that the scheduler has not handed to the watches yet.
    pub changes: Vec<Change>,
    /// Status before the last write of each record (for a store that forgets acknowledged writes).
    pub previous: BTreeMap<Key, Record>,
}

/// The uid of a record.
pub fn uid_of(record: &Record) -> Uid {
    Uid::new(record.metadata.uid.clone().unwrap_or_default()).expect("the store sets uids")
}

impl Records {
    pub fn by_uid(&self, uid: &Uid) -> Option<Key> {
        self.map.iter().find(|(_, record)| record.metadata.uid.as_deref() == Some(uid.as_str())).map(|(key, _)| key.clone())
    }

    pub fn record(&self, uid: &Uid) -> Option<&Record> {
        self.map.values().find(|record| record.metadata.uid.as_deref() == Some(uid.as_str()))
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn current(&self, record: &Record) -> StoreResult<&Record> {
        let key = record.key();
        let current = self.map.get(&key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
        let same_uid = record.metadata.uid.is_none() || record.metadata.uid == current.metadata.uid;
        if !same_uid || record.metadata.resource_version != current.metadata.resource_version {
            return Err(StoreError::Conflict(key));
        }
        Ok(current)
    }
}

/// Writes of the truth: what everybody may do to the records, users included.
impl Truth {
    pub fn create_record(&mut self, mut record: Record) -> StoreResult<Record> {
        let key = record.key();
        if self.records.map.contains_key(&key) {
            return Err(StoreError::AlreadyExists(key));
        }
        self.records.created += 1;
        let number = self.records.created;
        let meta = &mut record.metadata;
        meta.uid = Some(format!("{:08x}-{number:04}", self.rng.next() as u32));
        meta.resource_version = Some(self.records.next_version());
        meta.generation = Some(1);
        // Whole seconds, as Kubernetes has it.
        let created = Timestamp::from_second(self.wall.div_euclid(1000)).expect("a simulated time");
        meta.creation_timestamp = Some(Time(created));
        record.status = serde_json::Value::Null;
        self.put_record(record.clone(), None);
        Ok(record)
    }

    pub fn replace_record(&mut self, record: Record, by: Option<u32>) -> StoreResult<Record> {
        let current = self.records.current(&record)?.clone();
        let mut next = Record { status: current.status.clone(), ..record };
        next.metadata.resource_version = Some(self.records.next_version());
        next.metadata.deletion_timestamp = current.metadata.deletion_timestamp.clone();
        next.metadata.generation = current.metadata.generation.map(|g| g + i64::from(next.spec != current.spec));
        let gone = next.metadata.deletion_timestamp.is_some() && next.metadata.finalizers.iter().flatten().count() == 0;
        if gone {
            self.remove_record(&next)
        } else {
            self.put_record(next.clone(), by)
        }
        Ok(next)
    }

    pub fn replace_record_status(&mut self, record: Record, by: Option<u32>) -> StoreResult<Record> {
        let current = match self.records.current(&record) {
            Err(StoreError::Conflict(key)) if self.planted(Plant::CompareAndSetIgnored) => self.records.map[&key].clone(),
            other => other?.clone(),
        };
        let mut next = Record { status: record.status, ..current };
        next.metadata.resource_version = Some(self.records.next_version());
        self.put_record(next.clone(), by);
        Ok(next)
    }

    pub fn delete_record(&mut self, key: &Key, uid: Option<&Uid>, annotations: &[(&str, String)]) -> StoreResult<Record> {
        let mut record = self.records.map.get(key).cloned().ok_or_else(|| StoreError::NotFound(key.clone()))?;
        if uid.is_some_and(|uid| uid_of(&record) != *uid) {
            return Err(StoreError::Conflict(key.clone()));
        }
        let notes = record.metadata.annotations.get_or_insert_default();
        notes.extend(annotations.iter().map(|(name, text)| ((*name).to_owned(), text.clone())));
        let now = self.now();
        record.metadata.deletion_timestamp.get_or_insert(Time(now));
        record.metadata.resource_version = Some(self.records.next_version());
        if record.metadata.finalizers.iter().flatten().count() == 0 {
            self.remove_record(&record);
        } else {
            self.put_record(record.clone(), None);
        }
        Ok(record)
    }

    /// Whether an older copy of a record may come back: its name is free, and nobody has relied on its good end.
    pub fn may_come_back(&self, uid: &Uid) -> bool {
        let completed = |record: &Record| ending(&oracle::status_of(record)) == Some(Ending::Completed);
        let Some(older) = self.lane.older.get(uid) else { return false };
        let current = self.records.map.get(&older.key());
        let taken = current.is_some_and(|record| uid_of(record) != *uid);
        !taken && !current.is_some_and(completed) && !self.records.archive.get(uid).is_some_and(completed)
    }

    /// The store has an older copy of a record, as if nothing had been.
    pub fn restore_record(&mut self, uid: &Uid) {
        let mut record = self.lane.older[uid].clone();
        record.metadata.resource_version = Some(self.records.next_version());
        self.note(format!("an older copy of {uid} comes back"));
        self.oracle.failed.remove(uid);
        self.lane.restored.insert(uid.clone());
        self.records.map.insert(record.key(), record.clone());
        self.records.changes.push(Change::Applied(record));
    }

    fn put_record(&mut self, record: Record, by: Option<u32>) {
        let key = record.key();
        let before = self.records.map.insert(key.clone(), record.clone());
        if let Some(before) = before.clone() {
            self.records.previous.insert(key, before);
        }
        self.records.changes.push(Change::Applied(record.clone()));
        oracle::on_write(self, before.as_ref(), &record, by);
    }

    fn remove_record(&mut self, record: &Record) {
        self.records.map.remove(&record.key());
        if self.planted(Plant::NoteGoesWithRecord) {
            self.lane.forgotten.insert(uid_of(record));
        }
        self.records.changes.push(Change::Deleted(record.clone()));
        oracle::on_gone(self, record);
    }
}

/// The store as one controller reaches it.
pub struct FakeStore {
    pub shared: Shared,
    pub controller: u32,
}

impl FakeStore {
    fn with<T>(&self, act: impl FnOnce(&mut Truth) -> StoreResult<T>) -> StoreResult<T> {
        act(&mut self.shared.lock().unwrap())
    }

    /// One write: refused before, done, or done with its reply lost.
    async fn write<T>(&self, what: &str, act: impl FnOnce(&mut Truth) -> StoreResult<T>) -> StoreResult<T> {
        pause().await;
        let result = self.with(|truth| {
            if truth.rng.hits(truth.faults.store_down) {
                truth.note(format!("store down for {what} by {}", self.controller));
                return Err(down(what));
            }
            let result = act(truth)?;
            if truth.rng.hits(truth.faults.store_reply_lost) {
                truth.note(format!("reply of {what} lost for {}", self.controller));
                return Err(down(what));
            }
            Ok(result)
        });
        pause().await;
        result
    }
}

fn down(what: &str) -> StoreError {
    StoreError::Unavailable { what: what.to_owned(), source: None }
}

impl Store for FakeStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, StoreResult<Option<Record>>> {
        Box::pin(async move {
            pause().await;
            let read = self.with(|truth| {
                if truth.rng.hits(truth.faults.store_down) {
                    return Err(down("get"));
                }
                truth.reads_and_writes.0 += 1;
                Ok(truth.records.map.get(key).cloned())
            });
            pause().await;
            read
        })
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Vec<Record>, u64)>> {
        Box::pin(async move {
            pause().await;
            self.with(|truth| {
                let all = truth.records.map.values().filter(|record| record.kind == kind).cloned().collect();
                Ok((all, truth.records.version))
            })
        })
    }

    fn watch(&self, _kind: Kind, from: u64) -> BoxFuture<'_, StoreResult<Watch>> {
        // The scheduler hands changes to controllers itself, late, twice or never.
        Box::pin(async move { Err(StoreError::TooOld(from)) })
    }

    fn create(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.write("create", move |truth| truth.create_record(record)))
    }

    fn replace(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        let by = Some(self.controller);
        Box::pin(self.write("replace", move |truth| truth.replace_record(record, by)))
    }

    fn replace_status(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        let by = Some(self.controller);
        Box::pin(self.write("replace_status", move |truth| {
            truth.reads_and_writes.1 += 1;
            let record = super::plants::perturb_status(truth, record);
            match record {
                Ok(record) => truth.replace_record_status(record, by),
                Err(pretended) => Ok(*pretended),
            }
        }))
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        uid: Option<&'a Uid>,
        annotations: &'a [(&'a str, String)],
    ) -> BoxFuture<'a, StoreResult<Record>> {
        Box::pin(self.write("delete", move |truth| truth.delete_record(key, uid, annotations)))
    }

    fn archive(&self, record: Record) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.write("archive", move |truth| {
            truth.records.archive.insert(uid_of(&record), record);
            Ok(())
        }))
    }

    fn history<'a>(&'a self, filter: Option<&'a str>, limit: usize) -> BoxFuture<'a, StoreResult<Vec<Record>>> {
        Box::pin(async move {
            pause().await;
            self.with(|truth| {
                let all = truth.records.archive.values().rev();
                let matching = all.filter(|record| filter.is_none_or(|f| record.metadata.uid.as_deref() == Some(f)));
                Ok(matching.take(limit).cloned().collect())
            })
        })
    }
}
