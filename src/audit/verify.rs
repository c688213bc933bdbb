//! Reading the record again: is the chain whole, and what is in it about one agent?

use super::AuditError;
use super::chain::{Checkpoint, Key};
use super::entry::{Entry, EntryKind, Outcome};
use super::writer::{Files, names, parse_name};
use crate::api::names::Uid;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// How often a chain is looked at when its writer changes files meanwhile.
const LOOKS_MAX: u32 = 3;

/// Where a chain is broken first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Which file.
    pub file: PathBuf,
    /// Which line of it, from 1; 0: the file as a whole.
    pub line: u64,
    /// What is wrong, in a sentence.
    pub what: String,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// What was found of one writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterReport {
    /// Whose chain.
    pub writer_id: String,
    /// How many files it is in.
    pub files: usize,
    /// Entries that were found whole.
    pub entries: u64,
    /// The last of them.
    pub last_seq: u64,
    /// Effects whose outcome nobody saw.
    pub unknown_outcomes: u64,
    /// The last line is incomplete, as after a crash; the writer repairs it when it starts.
    pub is_torn: bool,
    /// The first break; `None`: the chain is whole.
    pub first_break: Option<Break>,
}

/// What was found in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Every writer, by name.
    pub writers: Vec<WriterReport>,
}

impl Report {
    /// Whether no chain is broken.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.writers.iter().all(|w| w.first_break.is_none())
    }
}

/// Checks every chain in an audit folder. Reads only; a running writer is not disturbed.
/// # Errors
/// The folder or the key cannot be read. A broken chain is no error: the report says it.
pub fn verify(folder: &Path) -> Result<Report, AuditError> {
    let names = names(folder)?;
    let of_records = names.iter().filter_map(|name| parse_name(name).map(|(id, _)| id));
    let of_checkpoints = names.iter().filter_map(|name| name.strip_suffix(".checkpoint"));
    let writers: BTreeSet<&str> = of_records.chain(of_checkpoints).collect();
    if writers.is_empty() {
        return Ok(Report { writers: Vec::new() });
    }
    let key = Key::read(folder)?;
    let reports = writers.into_iter().map(|id| verify_writer(&key, &Files { folder: folder.to_owned(), writer_id: id.to_owned() }));
    Ok(Report { writers: reports.collect::<Result<_, _>>()? })
}

/// Every entry about one agent, of all writers, oldest first; at most the newest `limit`.
/// # Errors
/// The folder or a file cannot be read. Lines that are not signed are left out.
pub fn entries_of(folder: &Path, uid: &Uid, limit: usize) -> Result<Vec<Entry>, AuditError> {
    let key = Key::read(folder)?;
    let names = names(folder)?;
    let writers: BTreeSet<&str> = names.iter().filter_map(|name| parse_name(name).map(|(id, _)| id)).collect();
    let mut found = Vec::new();
    for id in writers {
        let files = Files { folder: folder.to_owned(), writer_id: id.to_owned() };
        let mut newest = VecDeque::new();
        for path in files.in_order(0)? {
            for line in lines(&path)? {
                let entry = line.text().filter(|text| text.contains(uid.as_str())).and_then(|text| key.read_line(text));
                newest.extend(entry.filter(|entry| entry.uid.as_ref() == Some(uid)));
                if newest.len() > limit {
                    newest.pop_front();
                }
            }
        }
        found.extend(newest);
    }
    found.sort_by(|a, b| (&a.at, a.seq).cmp(&(&b.at, b.seq)));
    let surplus = found.len().saturating_sub(limit);
    Ok(found.split_off(surplus))
}

/// One line as bytes, with its newline if it has one.
struct Line {
    bytes: Vec<u8>,
}

impl Line {
    fn is_torn(&self) -> bool {
        self.bytes.last() != Some(&b'\n')
    }

    fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()?.strip_suffix('\n')
    }
}

fn lines(path: &Path) -> Result<impl Iterator<Item = Line>, AuditError> {
    let file = File::open(path).map_err(|source| AuditError::File { verb: "read", path: path.to_owned(), source })?;
    let mut reader = BufReader::new(file);
    Ok(std::iter::from_fn(move || {
        let mut bytes = Vec::new();
        // An unreadable rest counts as missing: the checkpoint says that there was more.
        let length = reader.read_until(b'\n', &mut bytes).unwrap_or(0);
        (length > 0).then_some(Line { bytes })
    }))
}

/// Where a chain stands while it is followed.
struct Walk<'k> {
    key: &'k Key,
    report: WriterReport,
    prev: String,
    /// MAC of the entry that the checkpoint names, once passed.
    mac_at_checkpoint: Option<String>,
}

/// A writer may close a file and begin another while we read: then we look again.
fn verify_writer(key: &Key, files: &Files) -> Result<WriterReport, AuditError> {
    for _ in 1..LOOKS_MAX {
        let before = files.in_order(0)?;
        let report = verify_once(key, files);
        if files.in_order(0)? == before {
            return report;
        }
    }
    verify_once(key, files)
}

fn verify_once(key: &Key, files: &Files) -> Result<WriterReport, AuditError> {
    let report = WriterReport {
        writer_id: files.writer_id.clone(),
        files: 0,
        entries: 0,
        last_seq: 0,
        unknown_outcomes: 0,
        is_torn: false,
        first_break: None,
    };
    let whole_file = |file: PathBuf, what: String| Some(Break { file, line: 0, what });
    let checkpoint = match Checkpoint::read(key, &files.checkpoint(), &files.writer_id) {
        Ok(Some(checkpoint)) => checkpoint,
        Ok(None) => {
            let what = "the checkpoint is missing, so nobody can say how far the record once went".to_owned();
            return Ok(WriterReport { first_break: whole_file(files.checkpoint(), what), ..report });
        }
        Err(AuditError::Unusable(what)) => return Ok(WriterReport { first_break: whole_file(files.checkpoint(), what), ..report }),
        Err(other) => return Err(other),
    };
    let prev = checkpoint.first_prev.clone();
    let report = WriterReport { last_seq: checkpoint.first_seq - 1, ..report };
    let mut walk = Walk { key, report, prev, mac_at_checkpoint: (checkpoint.seq < checkpoint.first_seq).then(|| checkpoint.mac.clone()) };
    for path in files.in_order(checkpoint.first_seq)? {
        walk.report.files += 1;
        if walk.file(&path, files, &checkpoint)?.is_none() {
            return Ok(walk.report);
        }
    }
    let mut report = walk.report;
    if report.last_seq < checkpoint.seq {
        let what = format!("ends at entry {}, but entry {} was there: it was cut off", report.last_seq, checkpoint.seq);
        report.first_break = whole_file(files.current(), what);
    } else if walk.mac_at_checkpoint.as_ref() != Some(&checkpoint.mac) {
        report.first_break = whole_file(files.current(), format!("entry {} is not the one of the checkpoint", checkpoint.seq));
    }
    Ok(report)
}

impl Walk<'_> {
    /// Follows one file; `None` at the first break.
    fn file(&mut self, path: &Path, files: &Files, checkpoint: &Checkpoint) -> Result<Option<()>, AuditError> {
        for (line, number) in lines(path)?.zip(1..) {
            if line.is_torn() && path == files.current() {
                self.report.is_torn = true;
                break;
            }
            let expected = self.report.last_seq + 1;
            let entry = match line.text().and_then(|text| self.key.read_line(text)) {
                None => Err("was edited, or was not written with this key".to_owned()),
                Some(entry) if entry.seq > expected => Err(format!("entry {expected} is missing: {} follows", entry.seq)),
                Some(entry) if entry.seq < expected => Err(format!("entry {} is doubled or out of order", entry.seq)),
                Some(entry) if entry.prev != self.prev => Err(format!("entry {} does not follow the one before it", entry.seq)),
                Some(entry) => Ok(entry),
            };
            match entry {
                Ok(entry) => self.take(entry, checkpoint),
                Err(what) => {
                    self.report.first_break = Some(Break { file: path.to_owned(), line: number, what });
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    }

    fn take(&mut self, entry: Entry, checkpoint: &Checkpoint) {
        self.report.entries += 1;
        self.report.last_seq = entry.seq;
        if entry.kind == EntryKind::Outcome && entry.result == Some(Outcome::Unknown) {
            self.report.unknown_outcomes += 1;
        }
        if entry.seq == checkpoint.seq {
            self.mac_at_checkpoint = Some(entry.mac.clone());
        }
        self.prev = entry.mac;
    }
}
