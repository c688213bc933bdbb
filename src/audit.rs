//! The append-only record of what was intended and what came of it, and the stream of events made from it.
//!
//! Flow: a caller's `Draft` gets its sequence number at once and waits in a bounded queue; one thread (`audit/writer.rs`) signs it, appends
//! it to `<state>/audit/<writer>.jsonl` and tells it to followers. An intent is on the disk before its effect begins (`append_durable`).
//! Every line carries the MAC of the line before and its own (`audit/chain.rs`), so that `verify` finds what was edited, dropped,
//! reordered, doubled or cut off; a signed checkpoint beside the file says how far it once was. The key lies in the same folder: the chain
//! proves something to whoever keeps a copy of the key elsewhere, and finds accidents for everybody.
//!
//! Entries are typed and short: no spec, no environment, no output of an agent goes in here.

mod chain;
mod entry;
mod verify;
mod writer;

pub use entry::{ACTOR_CONTROLLER, Draft, Entry, EntryKind, Outcome};
pub use verify::{Break, Report, WriterReport, entries_of, verify};

use crate::api::names::Uid;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::jiff::Timestamp;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Most entries that wait for the writer thread.
pub const QUEUE_MAX: usize = 8192;
/// Longest wait for an intent to be on the disk.
pub const DURABLE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Most events that one follower may be behind before it is dropped with `Frame::Lagged`.
pub const FOLLOWER_EVENTS_MAX: usize = 1024;

/// Limits of the audit record.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// A file that has reached this size is closed and a new one begun, in bytes.
    pub file_bytes_max: u64,
    /// How many files of one writer are kept; the oldest goes, and the checkpoint says where the chain begins since.
    pub files_max: usize,
    /// How many recent events are kept in memory for followers that resume.
    pub recent_max: usize,
    /// After how many entries a checkpoint is written.
    pub checkpoint_entries: u64,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self { file_bytes_max: 16 << 20, files_max: 64, recent_max: 4096, checkpoint_entries: 256 }
    }
}

/// What the audit record could not do.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The queue is full: the disk is slower than what is to be written, or full.
    #[error("the audit queue is full: is the disk of the state folder full or slow?")]
    Behind,
    /// The entry was not seen on the disk in time. It may be written later.
    #[error("the audit entry {0} could not be brought to the disk in time")]
    NotDurable(u64),
    /// The record is closed.
    #[error("the audit record is closed")]
    Closed,
    /// Something is there that must not be guessed at; the text says what to do.
    #[error("{0}")]
    Unusable(String),
    /// A file could not be read or written.
    #[error("failed to {verb} {}", path.display())]
    File {
        /// Verb.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a follower is told.
#[derive(Debug, Clone)]
pub enum Frame {
    /// An event or a transition.
    Entry(Arc<Entry>),
    /// Events after the asked one are not in memory any more; the next entry is the oldest that is.
    Gap,
    /// The follower was too slow and missed that many; the stream ends here.
    Lagged(u64),
}

/// The audit record of one writer.
#[derive(Debug)]
pub struct Audit {
    writer_id: String,
    /// Sequence numbers are given in the order of the queue.
    inbox: Mutex<Inbox>,
    stream: Arc<Stream>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inbox {
    next_seq: u64,
    /// `None` once closed.
    queue: Option<mpsc::Sender<writer::Job>>,
}

/// Recent events, and who listens.
#[derive(Debug)]
struct Stream {
    recent: Mutex<Recent>,
    live: broadcast::Sender<Arc<Entry>>,
}

#[derive(Debug)]
struct Recent {
    entries: VecDeque<Arc<Entry>>,
    entries_max: usize,
    /// Events up to this sequence number are not in memory.
    floor: u64,
}

impl Audit {
    /// Opens the record of one writer in `<state>/audit`: repairs a torn last line, and marks intents of an earlier process that have no
    /// outcome as `unknown`. Blocks; call it at start.
    /// # Errors
    /// `Unusable` when another process writes there, the key is gone or the last lines do not belong to the chain.
    pub fn open(folder: &Path, writer_id: &str, options: AuditOptions) -> Result<Self, AuditError> {
        let stream = Arc::new(Stream {
            recent: Mutex::new(Recent { entries: VecDeque::new(), entries_max: options.recent_max, floor: 0 }),
            live: broadcast::Sender::new(FOLLOWER_EVENTS_MAX),
        });
        let writer = writer::Writer::open(folder, writer_id, options, Arc::clone(&stream))?;
        let next_seq = writer.next_seq();
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(jobs))
            .map_err(|source| AuditError::File { verb: "start the thread for", path: folder.to_owned(), source })?;
        let inbox = Mutex::new(Inbox { next_seq, queue: Some(queue) });
        Ok(Self { writer_id: writer_id.to_owned(), inbox, stream, thread: Mutex::new(Some(thread)) })
    }

    /// Name of this stream of events; with a sequence number it makes a resume token.
    #[must_use]
    pub fn stream_id(&self) -> &str {
        &self.writer_id
    }

    /// The sequence number that was given last; 0 when there is none.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        lock(&self.inbox).next_seq - 1
    }

    /// Appends an entry and returns its sequence number. Never waits; the entry is written soon.
    /// # Errors
    /// `Behind` or `Closed`: the entry was not taken.
    pub fn append(&self, draft: Draft) -> Result<u64, AuditError> {
        let mut inbox = lock(&self.inbox);
        let seq = inbox.next_seq;
        let queue = inbox.queue.as_ref().ok_or(AuditError::Closed)?;
        let job = writer::Job { seq, at: Timestamp::now(), draft, durable: None };
        queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AuditError::Behind,
            mpsc::error::TrySendError::Closed(_) => AuditError::Closed,
        })?;
        inbox.next_seq += 1;
        Ok(seq)
    }

    /// Appends an entry and returns once it is safely on the disk: for intents, before their effect.
    /// # Errors
    /// `NotDurable` after [`DURABLE_WAIT_MAX`]: the effect must not begin. `Behind` or `Closed`: the entry was not taken.
    pub async fn append_durable(&self, draft: Draft) -> Result<u64, AuditError> {
        let queue = lock(&self.inbox).queue.clone().ok_or(AuditError::Closed)?;
        let place = tokio::time::timeout(DURABLE_WAIT_MAX, queue.reserve()).await;
        let place = place.map_err(|_| AuditError::Behind)?.map_err(|_| AuditError::Closed)?;
        let (durable, written) = oneshot::channel();
        let seq = {
            let mut inbox = lock(&self.inbox);
            let seq = inbox.next_seq;
            inbox.next_seq += 1;
            place.send(writer::Job { seq, at: Timestamp::now(), draft, durable: Some(durable) });
            seq
        };
        match tokio::time::timeout(DURABLE_WAIT_MAX, written).await {
            Ok(Ok(())) => Ok(seq),
            Ok(Err(_)) | Err(_) => Err(AuditError::NotDurable(seq)),
        }
    }

    /// Events and transitions after `seq` that are still in memory, oldest first, and whether some between are gone.
    #[must_use]
    pub fn events_since(&self, seq: u64, uid: Option<&Uid>) -> (Vec<Arc<Entry>>, bool) {
        let recent = lock(&self.stream.recent);
        let entries = recent.entries.iter().filter(|e| e.seq > seq && uid.is_none_or(|uid| e.uid.as_ref() == Some(uid)));
        (entries.cloned().collect(), seq < recent.floor)
    }

    /// Follows events and transitions: those after `since` (`None`: only new ones), then live, without loss or doubles. Ends with
    /// `Lagged` when the follower is too slow; nobody waits for it.
    #[must_use]
    pub fn follow(&self, since: Option<u64>, uid: Option<Uid>) -> BoxStream<'static, Frame> {
        let (past, gap, live) = {
            // New events are told under the same lock: none falls between the past and the live ones.
            let recent = lock(&self.stream.recent);
            let live = self.stream.live.subscribe();
            let past: Vec<_> = recent.entries.iter().filter(|e| since.is_some_and(|since| e.seq > since)).cloned().collect();
            (past, since.is_some_and(|since| since < recent.floor), live)
        };
        let live = futures::stream::unfold(Some(live), |live| async {
            let mut live = live?;
            match live.recv().await {
                Ok(entry) => Some((Frame::Entry(entry), Some(live))),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some((Frame::Lagged(missed), None)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        let is_wanted = move |frame: &Frame| match (frame, &uid) {
            (Frame::Entry(entry), Some(uid)) => entry.uid.as_ref() == Some(uid),
            (Frame::Entry(_), None) | (Frame::Gap | Frame::Lagged(_), _) => true,
        };
        let past = gap.then_some(Frame::Gap).into_iter().chain(past.into_iter().map(Frame::Entry));
        futures::stream::iter(past).chain(live).filter(move |frame| std::future::ready(is_wanted(frame))).boxed()
    }

    /// Writes what waits, with a last checkpoint, and lets go of the files. Later appends are refused.
    pub fn close(&self) {
        lock(&self.inbox).queue = None;
        if let Some(thread) = lock(&self.thread).take() {
            // A thread that panicked has nothing left to write; the next start repairs and says so.
            let _ = thread.join();
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.close();
    }
}

impl Stream {
    /// Events up to `seq` are in files that were not read.
    fn begin_after(&self, seq: u64) {
        lock(&self.recent).floor = seq;
    }

    /// Keeps an event and tells it to followers; other entries pass by.
    fn tell(&self, entry: &Arc<Entry>) {
        if !entry.kind.is_event() {
            return;
        }
        let mut recent = lock(&self.recent);
        recent.entries.push_back(Arc::clone(entry));
        while recent.entries.len() > recent.entries_max {
            recent.floor = recent.entries.pop_front().map_or(recent.floor, |e| e.seq);
        }
        // Without followers there is nobody to tell.
        let _ = self.live.send(Arc::clone(entry));
    }
}

/// A poisoned lock only says that another thread panicked; the data under ours are whole after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
