//! The one writer: takes what waits in the queue, applies it in one transaction, commits, and answers each.
//!
//! Nobody is answered before the commit, not even who is refused: a refusal may rest on a write of the same batch.

use super::Shared;
use super::file::Failure;
use super::tables::Tables;
use crate::api::names::Uid;
use crate::store::{Key, Record, StoreError, StoreResult, admission};
use admission::Change;
use k8s_openapi::jiff::Timestamp;
use redb::WriteTransaction;
use tokio::sync::{mpsc, oneshot};

/// Most writes that share one commit.
const BATCH_MAX: usize = 256;

/// Answer to one write; writes of records answer with the record.
type Answer = StoreResult<Option<Record>>;

/// One write.
#[derive(Debug)]
pub(super) enum Op {
    Create(Record),
    Replace(Record),
    ReplaceStatus(Record),
    Delete { key: Key, uid: Option<Uid>, annotations: Vec<(String, String)> },
    Archive(Record),
    RaiseEpoch(u64),
}

/// One write and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) op: Op,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// Runs until the queue is closed and empty.
pub(super) fn run(shared: &Shared, mut queue: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.blocking_recv().map(|job| batch.push(job)).is_some() {
        while batch.len() < BATCH_MAX {
            let Ok(job) = queue.try_recv() else { break };
            batch.push(job);
        }
        let (ops, replies): (Vec<Op>, Vec<_>) = batch.drain(..).map(|job| (job.op, job.reply)).unzip();
        let committed = shared
            .file
            .write("write a record", |transaction| apply_batch(shared, &transaction, ops).and_then(|done| done.end(transaction)));
        match committed {
            Ok((results, last)) => {
                shared.committed.send_if_modified(|known| last > std::mem::replace(known, last.max(*known)));
                // Who no longer waits has nothing to be told.
                replies.into_iter().zip(results).for_each(|(reply, result)| drop(reply.send(result)));
            }
            Err(error) => refuse_all(replies, &error),
        }
    }
}

/// The answers of a batch that is applied but not committed.
struct Applied {
    results: Vec<Answer>,
    last: u64,
    is_dirty: bool,
}

impl Applied {
    fn end(self, transaction: WriteTransaction) -> Result<(Vec<Answer>, u64), Failure> {
        if self.is_dirty {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        Ok((self.results, self.last))
    }
}

fn apply_batch(shared: &Shared, transaction: &WriteTransaction, ops: Vec<Op>) -> Result<Applied, Failure> {
    let mut tables = Tables::open(transaction)?;
    let now = Timestamp::now();
    let results = ops.into_iter().map(|op| apply(shared, &mut tables, op, now)).collect::<Result<Vec<_>, Failure>>()?;
    tables.cap_changes(shared.options.changes_max)?;
    Ok(Applied { results, last: tables.last_version()?, is_dirty: tables.is_dirty })
}

/// Applies one write. The inner result is the caller's; a `Failure` fails the whole batch.
fn apply(shared: &Shared, tables: &mut Tables<'_>, op: Op, now: Timestamp) -> Result<Answer, Failure> {
    match op {
        Op::Create(record) => {
            let key = record.key();
            if tables.get(&key)?.is_some() {
                return Ok(Err(StoreError::AlreadyExists(key)));
            }
            tables.put(admission::create(record, now)).map(|record| Ok(Some(record)))
        }
        Op::Replace(record) => change(tables, &record.key(), |old| admission::replace(old, record)),
        Op::ReplaceStatus(record) => change(tables, &record.key(), |old| admission::replace_status(old, record)),
        Op::Delete { key, uid, annotations } => change(tables, &key, |old| admission::delete(old, uid.as_ref(), &annotations, now)),
        Op::Archive(record) => {
            let Some(uid) = record.metadata.uid.clone() else {
                return Ok(Err(StoreError::Invalid("metadata.uid: is required of a record for the history".to_owned())));
            };
            tables.archive(&uid, &record, shared.options.history_max).map(|()| Ok(None))
        }
        Op::RaiseEpoch(epoch) => tables.raise_epoch(epoch).map(|()| Ok(None)),
    }
}

fn change(tables: &mut Tables<'_>, key: &Key, decide: impl FnOnce(&Record) -> StoreResult<Change>) -> Result<Answer, Failure> {
    let Some(old) = tables.get(key)? else { return Ok(Err(StoreError::NotFound(key.clone()))) };
    let record = match decide(&old) {
        Ok(Change::Nothing(record)) => record,
        Ok(Change::Put(record)) => tables.put(record)?,
        Ok(Change::Remove(record)) => tables.remove(record)?,
        Err(refused) => return Ok(Err(refused)),
    };
    Ok(Ok(Some(record)))
}

/// Tells everybody of a batch that it failed as a whole. Whether an I/O error came before or after the data was safe is unknown.
fn refuse_all(replies: Vec<oneshot::Sender<Answer>>, error: &StoreError) {
    let text = crate::causes::one_line(error);
    tracing::error!(error = text, writes = replies.len(), "a commit failed");
    for reply in replies {
        let copy = match error {
            StoreError::Unusable(why) => StoreError::Unusable(why.clone()),
            _ => StoreError::Unavailable { what: text.clone(), source: None },
        };
        drop(reply.send(Err(copy)));
    }
}
