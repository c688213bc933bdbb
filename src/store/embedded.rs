//! The embedded keeper: records in one redb file, for one process.
//!
//! Flow of a write: admission checks on the caller's side, then a bounded queue to the one writer thread, which applies whatever waits
//! in one transaction (`embedded/writer.rs`), so that concurrent writers share an fsync; each is answered after the commit. Reads and
//! watches look at committed data in their own snapshots, on blocking threads. A watch is a cursor in the table of changes: it can be
//! slow without holding anybody up, and is told `TooOld` once the changes that it has not seen are gone (`embedded/watcher.rs`).
//! After an I/O error the file is opened again before the next call (`embedded/file.rs`). A file that cannot be used is never written.

mod file;
mod listing;
mod tables;
mod watcher;
mod writer;

use super::{Key, Kind, Listing, Record, Store, StoreError, StoreResult, Watch, admission, on_blocking_thread};
use crate::api::names::{Epoch, Uid};
use file::{Failure, File};
use futures::future::BoxFuture;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tables::Snapshot;
use tokio::sync::{mpsc, oneshot, watch};
use writer::{Job, Op};

/// What is told of a call whose thread broke.
const BLOCKING_CALL: &str = "run a blocking store call";

/// Most writes that wait for the writer thread; further ones wait before the queue, at most [`ANSWER_WAIT_MAX`].
pub const WRITE_QUEUE_MAX: usize = 1024;
/// Longest wait for a place in the queue, and for the answer, before a write is reported as `Unavailable` (its outcome is unknown).
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// Limits of an embedded store.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// How many changes are kept for watches that resume; who is further behind lists again.
    pub changes_max: u64,
    /// How many records that are gone are kept in the history.
    pub history_max: u64,
    /// How often a watch without news is told how far it is.
    pub bookmark_interval: Duration,
    /// Memory for pages of the file, in bytes. The kernel caches the file as well, so that a page that is not here costs a read of some
    /// microseconds: this holds the upper pages of the trees and what is worked on, not the records of idle agents.
    pub cache_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { changes_max: 4096, history_max: 1000, bookmark_interval: Duration::from_secs(10), cache_bytes: 4 << 20 }
    }
}

/// What reads, watches and the writer share.
#[derive(Debug)]
struct Shared {
    file: File,
    options: EmbeddedOptions,
    /// The last committed resourceVersion; watches wait on it.
    committed: watch::Sender<u64>,
}

/// The embedded keeper.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store, or makes a new one where there is no file. Blocks (it verifies the whole file): call it at start.
    /// # Errors
    /// `Unusable` when another process has it, or when the file is no store, is damaged or was written by a newer version; the text says
    /// what to do. `Unavailable` when the file system refuses.
    pub fn open(path: &Path, options: EmbeddedOptions) -> StoreResult<Self> {
        let file = File::open(path, options.cache_bytes)?;
        let last = file.read("read the last resource version", |snapshot| snapshot.last_version())?;
        let shared = Arc::new(Shared { file, options, committed: watch::Sender::new(last) });
        let (jobs, queue) = mpsc::channel(WRITE_QUEUE_MAX);
        let for_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer::run(&for_writer, queue)).map_err(
            |source| StoreError::Unavailable { what: "start the store's writer thread".to_owned(), source: Some(Box::new(source)) },
        )?;
        Ok(Self { shared, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Id that this store got when it was made; it never changes.
    /// # Errors
    /// `Unavailable`.
    pub fn installation(&self) -> StoreResult<String> {
        self.shared.file.read("read the installation id", Snapshot::installation)
    }

    /// The highest leader epoch that was stored.
    /// # Errors
    /// `Unavailable`.
    pub fn epoch(&self) -> StoreResult<Epoch> {
        self.shared.file.read("read the leader epoch", Snapshot::epoch).map(Epoch)
    }

    /// Stores a leader epoch; a lower one than stored changes nothing.
    pub async fn raise_epoch(&self, epoch: Epoch) -> StoreResult<()> {
        self.write(Op::RaiseEpoch(epoch.0)).await.map(|_| ())
    }

    /// Hands a write to the writer thread and waits for its commit.
    async fn write(&self, op: Op) -> StoreResult<Option<Record>> {
        let unavailable = |what: &str| StoreError::Unavailable { what: what.to_owned(), source: None };
        let jobs = self.jobs.as_ref().expect("the queue is there until drop");
        let (reply, answer) = oneshot::channel();
        let sent = jobs.send_timeout(Job { op, reply }, ANSWER_WAIT_MAX).await;
        sent.map_err(|_| unavailable("the queue of writes is full or closed"))?;
        match tokio::time::timeout(ANSWER_WAIT_MAX, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("the writer ended")),
            Err(_) => Err(unavailable("a commit did not end in time; whether it will be kept is unknown")),
        }
    }

    async fn write_record(&self, op: Op) -> StoreResult<Record> {
        self.write(op).await.map(|record| record.expect("writes of records answer with the record"))
    }

    /// Reads in a snapshot of its own on a blocking thread.
    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        look: impl FnOnce(&Snapshot) -> Result<T, Failure> + Send + 'static,
    ) -> StoreResult<T> {
        let shared = Arc::clone(&self.shared);
        on_blocking_thread(BLOCKING_CALL, move || shared.file.read(what, look)).await
    }

    /// Runs the slow checks of a write off the async threads, with the stored record that it is about.
    async fn checked(&self, mut record: Record, check: fn(&mut Record, &Record) -> StoreResult<()>) -> StoreResult<Record> {
        let shared = Arc::clone(&self.shared);
        on_blocking_thread(BLOCKING_CALL, move || {
            let key = record.key();
            admission::check_key(&key)?;
            let old = shared.file.read("read a record", |snapshot| snapshot.get(&key))?;
            check(&mut record, &old.ok_or(StoreError::NotFound(key))?)?;
            Ok(record)
        })
        .await
    }
}

impl Drop for EmbeddedStore {
    /// Lets go of the file before it returns, so that it can be opened again; what waits in the queue is still written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
        self.shared.file.close();
        self.shared.committed.send_modify(|_| ());
    }
}

impl Store for EmbeddedStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, StoreResult<Option<Record>>> {
        let key = key.clone();
        Box::pin(self.read("read a record", move |snapshot| snapshot.get(&key)))
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Vec<Record>, u64)>> {
        Box::pin(self.read("list records", move |snapshot| Ok((snapshot.list(kind)?, snapshot.last_version()?))))
    }

    fn list_stream(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Listing, u64)>> {
        Box::pin(listing::stream(Arc::clone(&self.shared), kind))
    }

    fn watch(&self, kind: Kind, from: u64) -> BoxFuture<'_, StoreResult<Watch>> {
        Box::pin(async move {
            let (floor, last) = self.read("start a watch", |snapshot| Ok((snapshot.changes_floor()?, snapshot.last_version()?))).await?;
            // A version from the future comes from another store: whoever asks knows records that are not here.
            if from < floor || from > last {
                return Err(StoreError::TooOld(from));
            }
            Ok(watcher::stream(Arc::clone(&self.shared), kind, from))
        })
    }

    fn create(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(async move {
            let mut record = record;
            let record = on_blocking_thread(BLOCKING_CALL, move || admission::check_create(&mut record).map(|()| record)).await?;
            self.write_record(Op::Create(record)).await
        })
    }

    fn replace(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(async move {
            let record = self.checked(record, admission::check_replace).await?;
            self.write_record(Op::Replace(record)).await
        })
    }

    fn replace_status(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(async move {
            let record = self.checked(record, |record, _| admission::check_status(record)).await?;
            self.write_record(Op::ReplaceStatus(record)).await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        uid: Option<&'a Uid>,
        annotations: &'a [(&'a str, String)],
    ) -> BoxFuture<'a, StoreResult<Record>> {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Box::pin(self.write_record(Op::Delete { key: key.clone(), uid: uid.cloned(), annotations }))
    }

    fn archive(&self, record: Record) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async move { self.write(Op::Archive(record)).await.map(|_| ()) })
    }

    fn history<'a>(&'a self, filter: Option<&'a str>, limit: usize) -> BoxFuture<'a, StoreResult<Vec<Record>>> {
        let filter = filter.map(str::to_owned);
        Box::pin(self.read("read the history", move |snapshot| snapshot.history(filter.as_deref(), limit)))
    }

    fn identity(&self) -> BoxFuture<'_, StoreResult<Option<String>>> {
        Box::pin(async move { self.installation().map(Some) })
    }
}
