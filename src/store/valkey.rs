//! The Valkey keeper: records in a Valkey server (7.2 or later), for several programs.
//!
//! Flow of a write: admission checks here, then one server-side script that compares the version, writes the record under the next version of
//! the one counter, and tells the change, the agent's and task's state and the event on streams, all in one step (`scripts/`). What must be
//! decided from the stored record is read first and decided by the same pure functions as everywhere (`admission`); the script's comparison
//! makes sure that it still stood. A write is never sent twice: when its outcome is unknown that is the answer, and whoever asked reads again.
//! Where durability is promised it is waited for (`writes`). Reads have a connection of their own, and so has the one feed of changes from
//! which all watches are served (`feed`, `watcher`). Nothing here waits without a limit (`link`). fred is used in this module only.

mod address;
mod changes;
mod feed;
mod keys;
mod lease;
mod link;
mod listing;
mod open;
mod script;
mod stored;
mod watcher;
mod writes;

pub use address::ValkeyUrl;
pub use lease::ValkeyLease;
pub use open::{Durability, ValkeyOptions};

use super::{Key, Kind, Listing, Record, Store, StoreError, StoreResult, Watch, admission, on_blocking_thread};
use crate::api::names::Uid;
use admission::Change;
use changes::Position;
use fred::clients::Client;
use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::Value;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use keys::{Keys, field};
use link::{ANSWER_WAIT_MAX, Link, LinkError};
use script::{ARCHIVE, CREATE, Call, PUT_HEAD, PUT_HEAD_OF_ENDING, PUT_STATUS, PUT_STATUS_OF_ENDING, REMOVE, Reply, Script};
use std::sync::{Arc, PoisonError, RwLock};
use stored::{Summary, decode, event_fields, head_of, status_of, task_field};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How often a delete is decided anew because the record changed meanwhile.
const DELETE_TRIES_MAX: usize = 16;
/// How many records of the history are read at once.
const HISTORY_PAGE: usize = 64;

/// What everything of one store shares.
struct Shared {
    url: ValkeyUrl,
    options: ValkeyOptions,
    keys: Keys,
    /// Made by the server's first user; another one means another store.
    id: RwLock<String>,
    reads: Link,
    writes: writes::Writes,
    ring: feed::Ring,
}

impl Shared {
    fn id(&self) -> String {
        self.id.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what was tried, where, and what came of it.
    fn failed(&self, what: &str, error: LinkError) -> StoreError {
        let unknown = if error.is_outcome_unknown() { "; whether something was written is unknown" } else { "" };
        StoreError::Unavailable { what: format!("failed to {what} in {}{unknown}", self.url), source: Some(Box::new(error)) }
    }

    fn unusable(&self, why: &str) -> StoreError {
        StoreError::Unusable(format!("{}: {why}", self.url))
    }

    /// How far the store is, now.
    async fn position(&self) -> Result<Position, LinkError> {
        let call = Call { script: &script::POSITION, keys: vec![self.keys.meta(), self.keys.changes()], args: Vec::new() };
        let value = self.reads.call(ANSWER_WAIT_MAX, |client| async move { call.run(&client).await }).await?;
        let odd = || LinkError::Broken("the server answered something that is no position".to_owned());
        let reply = Reply::read(value).ok_or_else(odd)?;
        if reply.word != self.id() {
            return Err(open::replaced(self, &reply.word).await);
        }
        let number = |at: usize| reply.more.get(at).and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok()).ok_or_else(odd);
        let (version, kept) = (number(0)?, number(1)?);
        Ok(Position { id: reply.word.clone(), version, floor: version.saturating_sub(kept) })
    }

    /// Runs a script that writes.
    async fn write(&self, what: &str, script: &'static Script, keys: Vec<String>, args: Vec<Value>) -> StoreResult<Reply> {
        let args = std::iter::once(Value::from(self.id())).chain(args).collect();
        let reply = self.writes.run(Call { script, keys, args }).await.map_err(|error| self.failed(what, error))?;
        if reply.word == "foreign" {
            let error = open::replaced(self, "").await;
            return Err(self.failed(what, error));
        }
        Ok(reply)
    }

    /// Runs a script that writes a record, and reads what it answers about it.
    async fn write_record(&self, what: &str, script: &'static Script, key: &Key, args: Vec<Value>) -> StoreResult<Record> {
        let changes_max = i64::try_from(self.options.changes_max).unwrap_or(i64::MAX);
        let mut all: Vec<Value> = vec![changes_max.into(), format!("{:?}", key.kind).into(), field(key).into()];
        all.extend(args);
        let reply = self.write(what, script, self.keys.of_write(key.kind), all).await?;
        match reply.word.as_str() {
            "done" => decode(reply.first()).map_err(|why| self.unusable(&format!("{key:?} {why}"))),
            "missing" => Err(StoreError::NotFound(key.clone())),
            "exists" => Err(StoreError::AlreadyExists(key.clone())),
            "conflict" => Err(StoreError::Conflict(key.clone())),
            other => Err(self.unusable(&format!("a script answered {other:?}"))),
        }
    }

    async fn get(&self, key: &Key) -> StoreResult<Option<Record>> {
        let (records, field) = (self.keys.records(key.kind), field(key));
        let ask = |client: Client| async move { client.hget::<Value, _, _>(records, field).await };
        let value = self.reads.call(ANSWER_WAIT_MAX, ask).await.map_err(|error| self.failed("read a record", error))?;
        let stored = value.into_bytes();
        stored.map(|bytes| decode(&bytes)).transpose().map_err(|why| self.unusable(&format!("{key:?} {why}")))
    }

    async fn must_get(&self, key: &Key) -> StoreResult<Record> {
        self.get(key).await?.ok_or_else(|| StoreError::NotFound(key.clone()))
    }

    /// Writes what was decided from `old`, if that still stands.
    async fn apply(&self, what: &str, old: &Record, change: Change) -> StoreResult<Record> {
        let version = Value::from(old.metadata.resource_version.clone().unwrap_or_default());
        let (script, record, more) = match change {
            Change::Nothing(record) => return Ok(record),
            Change::Put(record) if is_ending(&record) => (&PUT_HEAD_OF_ENDING, record, None),
            Change::Put(record) => (&PUT_HEAD, record, None),
            Change::Remove(record) => (&REMOVE, record, Some(Value::from(task_field(old)))),
        };
        let args = [version, head_of(&record).into()].into_iter().chain(more).collect();
        self.write_record(what, script, &old.key(), args).await
    }

    async fn create(&self, mut record: Record) -> StoreResult<Record> {
        let record =
            on_blocking_thread("run the checks of a record", move || admission::check_create(&mut record).map(|()| record)).await?;
        let record = admission::create(record, Timestamp::now());
        let uid = record.metadata.uid.clone().unwrap_or_default();
        let args = vec![uid.into(), head_of(&record).into(), task_field(&record).into()];
        self.write_record("create a record", &CREATE, &record.key(), args).await
    }

    async fn replace(&self, mut record: Record) -> StoreResult<Record> {
        let old = self.must_get(&record.key()).await?;
        let looked_at = old.clone();
        let record =
            on_blocking_thread("run the checks of a record", move || admission::check_replace(&mut record, &looked_at).map(|()| record))
                .await?;
        let change = admission::replace(&old, record)?;
        self.apply("replace a record", &old, change).await
    }

    /// One round trip: the script compares the version and keeps everything but the status as it is stored.
    async fn replace_status(&self, mut record: Record) -> StoreResult<Record> {
        admission::check_status(&mut record)?;
        let Some(version) = record.metadata.resource_version.clone() else {
            // The same refusal, or the same absence, as of any keeper.
            let old = self.must_get(&record.key()).await?;
            return admission::replace_status(&old, record).and(Err(StoreError::Conflict(old.key())));
        };
        let Summary { state, task, cleaned } = Summary::of(&record);
        let uid = record.metadata.uid.clone().unwrap_or_default();
        let events_max = i64::try_from(self.options.events_max).unwrap_or(i64::MAX);
        let mut args: Vec<Value> = vec![version.into(), uid.into(), status_of(&record).into(), state.into(), task.into(), cleaned.into()];
        args.extend([task_field(&record).into(), events_max.into()]);
        args.extend(event_fields(&record).into_iter().flat_map(|(name, value)| [Value::from(name), Value::from(value)]));
        let script = if is_ending(&record) { &PUT_STATUS_OF_ENDING } else { &PUT_STATUS };
        self.write_record("write a status", script, &record.key(), args).await
    }

    async fn delete(&self, key: &Key, uid: Option<&Uid>, annotations: &[(String, String)]) -> StoreResult<Record> {
        for _ in 0..DELETE_TRIES_MAX {
            let old = self.must_get(key).await?;
            let change = admission::delete(&old, uid, annotations, Timestamp::now())?;
            match self.apply("delete a record", &old, change).await {
                // Decided on what is not there any more: nothing was written.
                Err(StoreError::Conflict(_)) => {}
                other => return other,
            }
        }
        Err(StoreError::Unavailable { what: format!("{key:?} changed {DELETE_TRIES_MAX} times while it was to be deleted"), source: None })
    }

    async fn archive(&self, record: Record) -> StoreResult<()> {
        let Some(uid) = record.metadata.uid.clone() else {
            return Err(StoreError::Invalid("metadata.uid: is required of a record for the history".to_owned()));
        };
        let text = serde_json::to_string(&record).expect("a record is plain data");
        let history_max = i64::try_from(self.options.history_max).unwrap_or(i64::MAX);
        let keys = vec![self.keys.meta(), self.keys.history(), self.keys.history_order()];
        self.write("archive a record", &ARCHIVE, keys, vec![history_max.into(), uid.into(), text.into()]).await.map(drop)
    }

    /// Page by page, newest first.
    async fn history(&self, filter: Option<&str>, limit: usize) -> StoreResult<Vec<Record>> {
        let mut found = Vec::new();
        for page in 0.. {
            let records = self.history_page(page).await?;
            let is_last = records.is_empty();
            found.extend(records.into_iter().flatten().filter(|record| filter.is_none_or(|wanted| super::is_about(record, wanted))));
            if is_last || found.len() >= limit {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Empty behind the last page; an item is `None` if it went meanwhile or does not decode.
    async fn history_page(&self, page: usize) -> StoreResult<Vec<Option<Record>>> {
        let (order, history) = (self.keys.history_order(), self.keys.history());
        let from = i64::try_from(page * HISTORY_PAGE).unwrap_or(i64::MAX);
        let ask = |client: Client| async move {
            let to = from.saturating_add(i64::try_from(HISTORY_PAGE).expect("small") - 1);
            let uids: Vec<String> = client.zrevrange(order, from, to, false).await?;
            if uids.is_empty() { Ok(Vec::new()) } else { client.hmget::<Vec<Option<String>>, _, _>(history, uids).await }
        };
        let texts = self.reads.call(ANSWER_WAIT_MAX, ask).await.map_err(|error| self.failed("read the history", error))?;
        let decode = |text: Option<String>| {
            serde_json::from_str(&text?).inspect_err(|error| tracing::error!(%error, "a record of the history does not decode")).ok()
        };
        Ok(texts.into_iter().map(decode).collect())
    }
}

/// Whether a record is being deleted: a full memory must not keep an agent alive.
fn is_ending(record: &Record) -> bool {
    record.metadata.deletion_timestamp.is_some()
}

/// The Valkey keeper.
pub struct ValkeyStore {
    shared: Arc<Shared>,
    feed: watch::Receiver<feed::State>,
    feeding: AbortHandle,
    notes: Vec<String>,
    durable: Result<(), String>,
}

impl Drop for ValkeyStore {
    fn drop(&mut self) {
        self.feeding.abort();
    }
}

impl ValkeyStore {
    /// What was found out about the server at start, one line each; what it cannot promise comes first.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl Store for ValkeyStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, StoreResult<Option<Record>>> {
        Box::pin(self.shared.get(key))
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Vec<Record>, u64)>> {
        Box::pin(listing::list(&self.shared, kind))
    }

    fn list_stream(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Listing, u64)>> {
        Box::pin(listing::stream(self.shared.clone(), kind))
    }

    fn watch(&self, kind: Kind, from: u64) -> BoxFuture<'_, StoreResult<Watch>> {
        Box::pin(async move {
            // Before the look: a doubt during it ends the watch.
            let generation = self.feed.borrow().generation;
            let position = self.shared.position().await.map_err(|error| self.shared.failed("start a watch", error))?;
            // A version from the future comes from another store: whoever asks knows records that are not here.
            if from < position.floor || from > position.version {
                return Err(StoreError::TooOld(from));
            }
            Ok(watcher::stream(self.shared.clone(), self.feed.clone(), generation, kind, from))
        })
    }

    fn create(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.shared.create(record))
    }

    fn replace(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.shared.replace(record))
    }

    fn replace_status(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.shared.replace_status(record))
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        uid: Option<&'a Uid>,
        annotations: &'a [(&'a str, String)],
    ) -> BoxFuture<'a, StoreResult<Record>> {
        let annotations: Vec<_> = annotations.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Box::pin(async move { self.shared.delete(key, uid, &annotations).await })
    }

    fn archive(&self, record: Record) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.shared.archive(record))
    }

    fn history<'a>(&'a self, filter: Option<&'a str>, limit: usize) -> BoxFuture<'a, StoreResult<Vec<Record>>> {
        Box::pin(self.shared.history(filter, limit))
    }

    fn identity(&self) -> BoxFuture<'_, StoreResult<Option<String>>> {
        Box::pin(async move {
            let position = self.shared.position().await.map_err(|error| self.shared.failed("read the id", error))?;
            Ok(Some(position.id))
        })
    }

    fn caveat(&self) -> Option<String> {
        self.durable.clone().err()
    }
}
