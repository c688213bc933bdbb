//! The stream of changes as it comes from the server. Each entry's id is the version of its change, and no version is left out, so that a gap
//! is seen by the ids alone: what is missing was trimmed.

use super::Shared;
use super::link::{ANSWER_WAIT_MAX, LinkError};
use super::stored::decode;
use crate::store::{Kind, Record, WatchEvent};
use fred::bytes::Bytes;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use std::sync::OnceLock;
use std::time::Duration;

/// Most changes that one look reads.
pub(super) const LOOK_CHANGES_MAX: usize = 128;

/// One change. Its record is decoded when somebody wants it, once for all who do.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) kind: Kind,
    is_deleted: bool,
    value: Bytes,
    decoded: OnceLock<Option<Record>>,
}

impl Change {
    /// Bytes that its record takes.
    pub(super) fn bytes(&self) -> usize {
        self.value.len()
    }

    /// What a watch is told.
    pub(super) fn event(&self) -> Result<WatchEvent, Gap> {
        let decode = || {
            decode(&self.value)
                .inspect_err(|why| tracing::error!(version = self.version, why, "the record in a change of the Valkey store"))
                .ok()
        };
        let record = self.decoded.get_or_init(decode).clone();
        let record = record.ok_or_else(|| Gap::Lost(format!("the record in change {} does not decode", self.version)))?;
        Ok(if self.is_deleted { WatchEvent::Deleted(record) } else { WatchEvent::Applied(record) })
    }
}

/// Why changes could not be read.
#[derive(Debug)]
pub(super) enum Gap {
    /// They are not there any more, or belong to another store: list again.
    Lost(String),
    /// The server did not answer.
    Link(LinkError),
}

impl From<LinkError> for Gap {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) id: String,
    /// The last version.
    pub(super) version: u64,
    /// The highest version whose change is not kept any more.
    pub(super) floor: u64,
}

/// Reads the changes behind a version, as many as one look takes; none: there are none yet.
pub(super) async fn read(shared: &Shared, from: u64) -> Result<Vec<Change>, Gap> {
    let (key, slot) = (shared.keys.changes(), shared.keys.slot());
    let command = CustomCommand::new_static("XRANGE", ClusterHash::Custom(slot), false);
    let args: Vec<Value> = vec![key.into(), format!("({from}-0").into(), "+".into(), "COUNT".into(), count()];
    let ask = |client: Client| async move { client.custom::<Value, _>(command, args).await };
    let entries = shared.reads.call(ANSWER_WAIT_MAX, ask).await?;
    in_order(shared, from, entries)
}

/// Waits for changes behind a version, at most so long.
pub(super) async fn wait(shared: &Shared, client: &Client, from: u64, block: Duration) -> Result<Value, Error> {
    let (key, slot) = (shared.keys.changes(), shared.keys.slot());
    let command = CustomCommand::new_static("XREAD", ClusterHash::Custom(slot), true);
    let block = i64::try_from(block.as_millis()).expect("a few seconds");
    let args: Vec<Value> =
        vec!["COUNT".into(), count(), "BLOCK".into(), block.into(), "STREAMS".into(), key.into(), format!("{from}-0").into()];
    let answer: Value = client.custom(command, args).await?;
    // One stream was asked for: its name and its entries.
    let Value::Array(mut streams) = answer else { return Ok(Value::Array(Vec::new())) };
    Ok(match streams.pop() {
        Some(Value::Array(mut stream)) => stream.pop().unwrap_or(Value::Null),
        _ => Value::Array(Vec::new()),
    })
}

/// Takes entries apart and makes sure that none is missing and all are of this store.
pub(super) fn in_order(shared: &Shared, from: u64, entries: Value) -> Result<Vec<Change>, Gap> {
    let Value::Array(entries) = entries else { return Ok(Vec::new()) };
    let id = shared.id();
    let mut changes = Vec::with_capacity(entries.len());
    for entry in entries {
        let change = take_apart(&id, entry).map_err(Gap::Lost)?;
        let expected = from + changes.len() as u64 + 1;
        if change.version != expected {
            return Err(Gap::Lost(format!("change {expected} is not kept any more")));
        }
        changes.push(change);
    }
    Ok(changes)
}

fn take_apart(store: &str, entry: Value) -> Result<Change, String> {
    let odd = || "an entry of the stream of changes is none of mosaic's".to_owned();
    let Value::Array(parts) = entry else { return Err(odd()) };
    let [id, Value::Array(fields)] = &parts[..] else { return Err(odd()) };
    let field =
        |name: &str| fields.chunks_exact(2).find(|pair| pair[0].as_bytes() == Some(name.as_bytes())).and_then(|pair| pair[1].as_bytes());
    let text = |name| field(name).and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or_else(odd);
    if text("i")? != store {
        return Err("the changes belong to another store".to_owned());
    }
    let version = id.as_string().and_then(|id| id.split('-').next()?.parse().ok()).ok_or_else(odd)?;
    let value = Bytes::copy_from_slice(field("v").ok_or_else(odd)?);
    let kind = match text("k")? {
        "Agent" => Kind::Agent,
        "Halt" => Kind::Halt,
        _ => return Err(odd()),
    };
    let is_deleted = match text("c")? {
        "applied" => false,
        "deleted" => true,
        _ => return Err(odd()),
    };
    Ok(Change { version, kind, is_deleted, value, decoded: OnceLock::new() })
}

fn count() -> Value {
    i64::try_from(LOOK_CHANGES_MAX).expect("a small number").into()
}
