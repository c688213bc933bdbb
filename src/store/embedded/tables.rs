//! What is in the file: records by address, changes by resourceVersion, the history, and a few numbers.
//!
//! `Snapshot` reads, `Tables` writes within one transaction. Records are JSON. The resourceVersion is one counter for both kinds.

use super::file::Failure;
use crate::store::{Key, Kind, Record, WatchEvent};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, TableError, WriteTransaction};
use serde::{Deserialize, Serialize};

/// Version of what the tables hold; a file with a higher one was written by a newer program.
const FORMAT: u64 = 1;

const OBJECTS: TableDefinition<(u8, &str, &str), &[u8]> = TableDefinition::new("objects");
const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");
const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");
const HISTORY_BY_UID: TableDefinition<&str, u64> = TableDefinition::new("history_by_uid");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("meta");
const TEXTS: TableDefinition<&str, &str> = TableDefinition::new("meta_texts");

const NUMBER_FORMAT: &str = "format";
const NUMBER_LAST_VERSION: &str = "last_version";
/// The highest resourceVersion whose change is no longer kept.
const NUMBER_CHANGES_FLOOR: &str = "changes_floor";
const NUMBER_EPOCH: &str = "epoch";
const TEXT_INSTALLATION: &str = "installation";

/// One entry of the table of changes.
#[derive(Debug, Serialize, Deserialize)]
enum StoredChange {
    Applied(Record),
    Deleted(Record),
}

/// A part of the changes of one kind.
#[derive(Debug)]
pub(super) struct Changes {
    /// The events, in order.
    pub(super) events: Vec<WatchEvent>,
    /// Everything up to this version was looked at.
    pub(super) cursor: u64,
}

fn kind_number(kind: Kind) -> u8 {
    match kind {
        Kind::Agent => 1,
        Kind::Halt => 2,
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data")
}

fn decode<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|e| Failure::Unusable(format!("{what} does not decode: {e}")))
}

/// Makes the tables of a new file.
pub(super) fn initialize(transaction: WriteTransaction) -> Result<(), Failure> {
    Tables::open(&transaction)?;
    transaction.open_table(NUMBERS)?.insert(NUMBER_FORMAT, FORMAT)?;
    transaction.open_table(TEXTS)?.insert(TEXT_INSTALLATION, uuid::Uuid::new_v4().to_string().as_str())?;
    Ok(transaction.commit()?)
}

/// Committed data at one moment.
pub(super) struct Snapshot(ReadTransaction);

impl Snapshot {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self(transaction)
    }

    /// Whether this program can read the file at all.
    pub(super) fn check_format(&self) -> Result<(), Failure> {
        let numbers = match self.0.open_table(NUMBERS) {
            Ok(numbers) => numbers,
            Err(TableError::Storage(error)) => return Err(error.into()),
            Err(_) => {
                return Err(Failure::Unusable("is a database of another program. Move it away to start with an empty store".to_owned()));
            }
        };
        let format = numbers.get(NUMBER_FORMAT)?.map_or(0, |n| n.value());
        if format == FORMAT {
            return Ok(());
        }
        Err(Failure::Unusable(format!(
            "was written by another version of mosaic (store format {format}; this one reads {FORMAT}). It was not touched. \
             Use the version that wrote it, or another --state folder"
        )))
    }

    fn number(&self, name: &str) -> Result<u64, Failure> {
        Ok(self.0.open_table(NUMBERS)?.get(name)?.map_or(0, |n| n.value()))
    }

    pub(super) fn last_version(&self) -> Result<u64, Failure> {
        self.number(NUMBER_LAST_VERSION)
    }

    pub(super) fn changes_floor(&self) -> Result<u64, Failure> {
        self.number(NUMBER_CHANGES_FLOOR)
    }

    pub(super) fn epoch(&self) -> Result<u64, Failure> {
        self.number(NUMBER_EPOCH)
    }

    pub(super) fn installation(&self) -> Result<String, Failure> {
        let texts = self.0.open_table(TEXTS)?;
        let text = texts.get(TEXT_INSTALLATION)?.map(|t| t.value().to_owned());
        text.ok_or_else(|| Failure::Unusable("has no installation id".to_owned()))
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Record>, Failure> {
        let objects = self.0.open_table(OBJECTS)?;
        let found = objects.get((kind_number(key.kind), key.namespace.as_str(), key.name.as_str()))?;
        found.map(|bytes| decode("a record", bytes.value())).transpose()
    }

    pub(super) fn list(&self, kind: Kind) -> Result<Vec<Record>, Failure> {
        let mut records = Vec::new();
        self.each(kind, |record| {
            records.push(record);
            true
        })?;
        Ok(records)
    }

    /// Tells the records of a kind in the order of their addresses, as long as `wants_more`.
    pub(super) fn each(&self, kind: Kind, mut wants_more: impl FnMut(Record) -> bool) -> Result<(), Failure> {
        let objects = self.0.open_table(OBJECTS)?;
        let kind = kind_number(kind);
        for entry in objects.range((kind, "", "")..(kind + 1, "", ""))? {
            if !wants_more(decode("a record", entry?.1.value())?) {
                break;
            }
        }
        Ok(())
    }

    /// Changes of a kind after `from`; looks at no more than `count` changes of any kind.
    pub(super) fn changes(&self, kind: Kind, from: u64, count: usize) -> Result<Changes, Failure> {
        let changes = self.0.open_table(CHANGES)?;
        let mut out = Changes { events: Vec::new(), cursor: from };
        for entry in changes.range(from + 1..)?.take(count) {
            let (version, bytes) = entry?;
            let event = match decode("a change", bytes.value())? {
                StoredChange::Applied(record) => WatchEvent::Applied(record),
                StoredChange::Deleted(record) => WatchEvent::Deleted(record),
            };
            out.cursor = version.value();
            if matches!(&event, WatchEvent::Applied(record) | WatchEvent::Deleted(record) if record.kind == kind) {
                out.events.push(event);
            }
        }
        Ok(out)
    }

    /// The history, newest first.
    pub(super) fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Record>, Failure> {
        let history = self.0.open_table(HISTORY)?;
        let mut found = Vec::new();
        for entry in history.iter()?.rev() {
            if found.len() == limit {
                break;
            }
            let record: Record = decode("a record of the history", entry?.1.value())?;
            if filter.is_none_or(|wanted| crate::store::is_about(&record, wanted)) {
                found.push(record);
            }
        }
        Ok(found)
    }
}

/// The tables within a write transaction.
pub(super) struct Tables<'t> {
    objects: Table<'t, (u8, &'static str, &'static str), &'static [u8]>,
    changes: Table<'t, u64, &'static [u8]>,
    history: Table<'t, u64, &'static [u8]>,
    history_by_uid: Table<'t, &'static str, u64>,
    numbers: Table<'t, &'static str, u64>,
    /// Whether anything was written.
    pub(super) is_dirty: bool,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Failure> {
        // Also makes the table of texts in a new file.
        drop(transaction.open_table(TEXTS)?);
        Ok(Self {
            objects: transaction.open_table(OBJECTS)?,
            changes: transaction.open_table(CHANGES)?,
            history: transaction.open_table(HISTORY)?,
            history_by_uid: transaction.open_table(HISTORY_BY_UID)?,
            numbers: transaction.open_table(NUMBERS)?,
            is_dirty: false,
        })
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Record>, Failure> {
        let found = self.objects.get((kind_number(key.kind), key.namespace.as_str(), key.name.as_str()))?;
        found.map(|bytes| decode("a record", bytes.value())).transpose()
    }

    pub(super) fn last_version(&self) -> Result<u64, Failure> {
        Ok(self.numbers.get(NUMBER_LAST_VERSION)?.map_or(0, |n| n.value()))
    }

    /// Stores a record under the next resourceVersion and tells it to watches.
    pub(super) fn put(&mut self, record: Record) -> Result<Record, Failure> {
        let key = record.key();
        let record = self.stamp(record)?;
        self.objects.insert((kind_number(key.kind), key.namespace.as_str(), key.name.as_str()), encode(&record).as_slice())?;
        self.tell(StoredChange::Applied(record))
    }

    /// Removes a record and tells its last state, under the next resourceVersion, to watches.
    pub(super) fn remove(&mut self, record: Record) -> Result<Record, Failure> {
        let key = record.key();
        let record = self.stamp(record)?;
        self.objects.remove((kind_number(key.kind), key.namespace.as_str(), key.name.as_str()))?;
        self.tell(StoredChange::Deleted(record))
    }

    fn stamp(&mut self, mut record: Record) -> Result<Record, Failure> {
        let version = self.last_version()? + 1;
        self.numbers.insert(NUMBER_LAST_VERSION, version)?;
        record.metadata.resource_version = Some(version.to_string());
        self.is_dirty = true;
        Ok(record)
    }

    fn tell(&mut self, change: StoredChange) -> Result<Record, Failure> {
        let version = self.last_version()?;
        self.changes.insert(version, encode(&change).as_slice())?;
        match change {
            StoredChange::Applied(record) | StoredChange::Deleted(record) => Ok(record),
        }
    }

    /// Forgets the oldest changes beyond the cap.
    pub(super) fn cap_changes(&mut self, changes_max: u64) -> Result<(), Failure> {
        while self.changes.len()? > changes_max {
            let Some(version) = self.changes.pop_first()?.map(|(version, _)| version.value()) else { break };
            self.numbers.insert(NUMBER_CHANGES_FLOOR, version)?;
        }
        Ok(())
    }

    /// Keeps the last state of a record; a second time it takes the place of the first.
    pub(super) fn archive(&mut self, uid: &str, record: &Record, history_max: u64) -> Result<(), Failure> {
        let known = self.history_by_uid.get(uid)?.map(|place| place.value());
        let place = match known {
            Some(place) => place,
            None => self.history.last()?.map_or(1, |(place, _)| place.value() + 1),
        };
        self.history.insert(place, encode(record).as_slice())?;
        self.history_by_uid.insert(uid, place)?;
        self.is_dirty = true;
        while self.history.len()? > history_max {
            let oldest: Option<Record> =
                self.history.pop_first()?.map(|(_, bytes)| decode("a record of the history", bytes.value())).transpose()?;
            let Some(uid) = oldest.and_then(|record| record.metadata.uid) else { break };
            self.history_by_uid.remove(uid.as_str())?;
        }
        Ok(())
    }

    pub(super) fn raise_epoch(&mut self, epoch: u64) -> Result<(), Failure> {
        let stored = self.numbers.get(NUMBER_EPOCH)?.map_or(0, |n| n.value());
        if epoch > stored {
            self.numbers.insert(NUMBER_EPOCH, epoch)?;
            self.is_dirty = true;
        }
        Ok(())
    }
}
