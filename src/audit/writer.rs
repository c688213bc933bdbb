//! The one thread that writes: signs what waits, appends it in one go, brings it to the disk when somebody waits for that, tells followers.
//!
//! An entry that was given a number is never dropped while the process lives: when the disk refuses, the same bytes are tried again, the
//! queue fills, and callers are told `Behind`. At start the last lines are read: a torn one is cut off, and that is an entry itself.

use super::chain::{Checkpoint, Key};
use super::entry::{Draft, Entry, EntryKind};
use super::{AuditError, AuditOptions, Stream};
use k8s_openapi::jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Most entries that are written in one go.
const BATCH_MAX: usize = 512;
/// How long to wait before a refused write is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(200);
/// A file that is given up when the disk is full, so that the audit entry of a kill still finds room.
const FILE_RESERVE: &str = "reserve";
/// Its size: some thousand entries.
const RESERVE_BYTES: usize = 1 << 20;
/// Longest writer id.
const WRITER_ID_BYTES_MAX: usize = 63;

/// One entry that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) seq: u64,
    pub(super) at: Timestamp,
    pub(super) draft: Draft,
    /// Told once the entry is safely on the disk.
    pub(super) durable: Option<oneshot::Sender<()>>,
}

/// The files of one writer.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) folder: PathBuf,
    pub(super) writer_id: String,
}

impl Files {
    /// The file that is written to.
    pub(super) fn current(&self) -> PathBuf {
        self.folder.join(format!("{}.jsonl", self.writer_id))
    }

    /// The signed checkpoint.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.folder.join(format!("{}.checkpoint", self.writer_id))
    }

    /// A closed file, by its first entry.
    fn closed(&self, first_seq: u64) -> PathBuf {
        self.folder.join(format!("{}.{first_seq:020}.jsonl", self.writer_id))
    }

    /// All files in the order of their entries; the current one last. Closed ones below `first_seq` are left-overs of a removal.
    pub(super) fn in_order(&self, first_seq: u64) -> Result<Vec<PathBuf>, AuditError> {
        let mut closed: Vec<u64> = names(&self.folder)?
            .iter()
            .filter_map(|name| parse_name(name))
            .filter(|(id, _)| *id == self.writer_id)
            .filter_map(|(_, seq)| seq)
            .collect();
        closed.sort_unstable();
        let mut files: Vec<_> = closed.into_iter().filter(|seq| *seq >= first_seq).map(|seq| self.closed(seq)).collect();
        if self.current().exists() {
            files.push(self.current());
        }
        Ok(files)
    }
}

/// Names in a folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, AuditError> {
    let failed = |source| AuditError::File { verb: "list", path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(failed)).collect()
}

/// `<writer>.jsonl` or `<writer>.<first seq>.jsonl` -> writer and first entry.
pub(super) fn parse_name(name: &str) -> Option<(&str, Option<u64>)> {
    let stem = name.strip_suffix(".jsonl")?;
    match stem.split_once('.') {
        Some((id, seq)) => Some((id, Some(seq.parse().ok()?))),
        None => Some((stem, None)),
    }
}

/// Whether anybody ever wrote there.
pub(super) fn has_records(folder: &Path) -> Result<bool, AuditError> {
    Ok(names(folder)?.iter().any(|name| parse_name(name).is_some() || name.ends_with(".checkpoint")))
}

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Writer {
    files: Files,
    options: AuditOptions,
    key: Key,
    stream: Arc<Stream>,
    file: File,
    /// Bytes of `file` that are whole lines.
    file_bytes: u64,
    /// First entry of `file`.
    file_first_seq: u64,
    last_seq: u64,
    last_mac: String,
    checkpoint: Checkpoint,
    /// Held as long as this writer lives.
    _lock: File,
}

impl Writer {
    /// Opens or makes the files of a writer, and repairs what a crash left.
    pub(super) fn open(folder: &Path, writer_id: &str, options: AuditOptions, stream: Arc<Stream>) -> Result<Self, AuditError> {
        check_writer_id(writer_id)?;
        let failed = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| AuditError::File { verb, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("create", folder))?;
        let files = Files { folder: folder.to_owned(), writer_id: writer_id.to_owned() };
        let lock = lock(&folder.join(format!("{writer_id}.lock")))?;
        let key = Key::open_or_make(folder)?;
        let known = Checkpoint::read(&key, &files.checkpoint(), writer_id)?;
        let checkpoint = known.unwrap_or_else(Checkpoint::empty);
        let current = files.current();
        let mut open = OpenOptions::new();
        let file = open.read(true).append(true).create(true).mode(0o600).open(&current).map_err(failed("open", &current))?;
        let mut writer = Self {
            file_first_seq: checkpoint.first_seq,
            last_seq: checkpoint.first_seq - 1,
            last_mac: checkpoint.first_prev.clone(),
            file_bytes: 0,
            files,
            options,
            key,
            stream,
            file,
            checkpoint,
            _lock: lock,
        };
        writer.recover()?;
        writer.make_reserve();
        Ok(writer)
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.last_seq + 1
    }

    /// Reads the newest lines, cuts off a torn one, marks lost outcomes, and writes a checkpoint of what stands.
    fn recover(&mut self) -> Result<(), AuditError> {
        let all = self.files.in_order(self.checkpoint.first_seq)?;
        // The file before the current one may hold intents whose outcomes are in the current one.
        let newest = &all[all.len().saturating_sub(2)..];
        let mut open_intents: BTreeMap<u64, Entry> = BTreeMap::new();
        let mut torn_bytes = 0;
        let mut is_first = true;
        for path in newest {
            let is_current = *path == self.files.current();
            let bytes = std::fs::read(path).map_err(|source| AuditError::File { verb: "read", path: path.clone(), source })?;
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let mut first_seq = None;
            for line in bytes[..whole].split_inclusive(|b| *b == b'\n') {
                let entry = self.read_own_line(path, line)?;
                first_seq.get_or_insert(entry.seq);
                if std::mem::take(&mut is_first) {
                    self.stream.begin_after(entry.seq - 1);
                }
                match (entry.kind, entry.intent) {
                    (EntryKind::Intent, _) => drop(open_intents.insert(entry.seq, entry.clone())),
                    (EntryKind::Outcome, Some(intent)) => drop(open_intents.remove(&intent)),
                    _ => {}
                }
                (self.last_seq, self.last_mac) = (entry.seq, entry.mac.clone());
                self.stream.tell(&Arc::new(entry));
            }
            if is_current {
                self.file_bytes = whole as u64;
                self.file_first_seq = first_seq.unwrap_or(self.last_seq + 1);
                torn_bytes = bytes.len() - whole;
            }
        }
        self.refuse_cut_off()?;
        self.after_crash(torn_bytes, open_intents).map_err(|source| AuditError::File { verb: "repair", path: self.files.current(), source })
    }

    /// Sets room aside, as far as there is some.
    fn make_reserve(&self) {
        let path = self.files.folder.join(FILE_RESERVE);
        if !path.exists()
            && let Err(error) = std::fs::write(&path, vec![b' '; RESERVE_BYTES])
        {
            tracing::warn!(%error, "no room could be set aside for the audit log");
            let _ = std::fs::remove_file(path);
        }
    }

    /// Going on from a chain that is shorter than it was would hide that.
    fn refuse_cut_off(&self) -> Result<(), AuditError> {
        if self.last_seq >= self.checkpoint.seq {
            return Ok(());
        }
        Err(AuditError::Unusable(format!(
            "{} ends at entry {}, but it once had {}. Keep the folder as evidence, move it away and start again",
            self.files.current().display(),
            self.last_seq,
            self.checkpoint.seq
        )))
    }

    fn after_crash(&mut self, torn_bytes: usize, open_intents: BTreeMap<u64, Entry>) -> io::Result<()> {
        let mut drafts = Vec::new();
        if torn_bytes > 0 {
            self.file.set_len(self.file_bytes)?;
            drafts.push(Draft::event("AuditRepaired", &format!("a torn last line of {torn_bytes} bytes was cut off after a crash")));
        }
        drafts.extend(open_intents.values().map(Draft::lost));
        let now = Timestamp::now();
        let jobs = drafts.into_iter().zip(self.next_seq()..).map(|(draft, seq)| Job { seq, at: now, draft, durable: None });
        let (text, entries) = self.sign(jobs.collect::<Vec<_>>().as_slice());
        self.append(&text)?;
        self.take_in(entries);
        self.write_checkpoint()
    }

    fn read_own_line(&self, path: &Path, line: &[u8]) -> Result<Entry, AuditError> {
        let text = std::str::from_utf8(line).ok().map(str::trim_end);
        text.and_then(|text| self.key.read_line(text)).ok_or_else(|| {
            AuditError::Unusable(format!(
                "{} holds a line that was not signed with the key beside it (`mosaic audit verify` says which). Keep the folder as evidence, \
                 move it away and start again",
                path.display()
            ))
        })
    }

    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch: Vec<Job> = Vec::with_capacity(BATCH_MAX);
        while let Some(job) = queue.blocking_recv() {
            batch.push(job);
            while batch.len() < BATCH_MAX {
                let Ok(job) = queue.try_recv() else { break };
                batch.push(job);
            }
            if !self.write_batch(&mut batch, &queue) {
                return;
            }
        }
        if let Err(error) = self.write_checkpoint() {
            tracing::warn!(%error, "the last audit checkpoint could not be written");
        }
    }

    /// Writes a batch, again and again if need be; gives up only when nobody can append any more.
    fn write_batch(&mut self, batch: &mut Vec<Job>, queue: &mpsc::Receiver<Job>) -> bool {
        let (text, entries) = self.sign(batch);
        let wants_disk = batch.iter().any(|job| job.durable.is_some());
        while let Err(error) = self.append(&text).and_then(|()| if wants_disk { self.file.sync_data() } else { Ok(()) }) {
            tracing::error!(%error, entries = entries.len(), "audit entries could not be written; trying again");
            self.forget_partial_write();
            if error.kind() == io::ErrorKind::StorageFull && std::fs::remove_file(self.files.folder.join(FILE_RESERVE)).is_ok() {
                continue;
            }
            if queue.is_closed() {
                return false;
            }
            std::thread::sleep(RETRY_WAIT);
        }
        for durable in batch.drain(..).filter_map(|job| job.durable) {
            // Who no longer waits need not be told.
            let _ = durable.send(());
        }
        self.take_in(entries);
        if self.last_seq >= self.checkpoint.seq + self.options.checkpoint_entries || self.file_bytes >= self.options.file_bytes_max {
            let done = self.write_checkpoint().and_then(|()| self.rotate_if_full());
            if let Err(error) = done {
                tracing::error!(%error, "the audit checkpoint or a new audit file could not be written; trying again with the next entries");
            }
        }
        true
    }

    fn sign(&self, jobs: &[Job]) -> (String, Vec<Entry>) {
        let mut prev = self.last_mac.clone();
        let mut text = String::new();
        let mut entries = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (line, entry) = self.key.line(job.seq, job.at, job.draft.clone(), &prev);
            prev.clone_from(&entry.mac);
            text.push_str(&line);
            entries.push(entry);
        }
        (text, entries)
    }

    /// Appends bytes; `file_bytes` moves only when all are written. A second call with the same bytes after a failed sync writes nothing twice.
    fn append(&mut self, text: &str) -> io::Result<()> {
        let end = self.file.seek(SeekFrom::End(0))?;
        if end != self.file_bytes {
            self.file.set_len(self.file_bytes)?;
        }
        self.file.write_all(text.as_bytes())
    }

    /// What a failed write left behind its end goes, so that the next try begins at a whole line.
    fn forget_partial_write(&mut self) {
        if let Err(error) = self.file.set_len(self.file_bytes) {
            tracing::error!(%error, "a partly written audit line could not be cut off yet");
        }
    }

    /// Takes written entries as the new end of the chain and tells them.
    fn take_in(&mut self, entries: Vec<Entry>) {
        self.file_bytes = self.file.metadata().map_or(self.file_bytes, |m| m.len());
        for entry in entries {
            (self.last_seq, self.last_mac) = (entry.seq, entry.mac.clone());
            self.stream.tell(&Arc::new(entry));
        }
    }

    fn write_checkpoint(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.checkpoint = Checkpoint { seq: self.last_seq, mac: self.last_mac.clone(), ..self.checkpoint.clone() };
        self.checkpoint.write(&self.key, &self.files.checkpoint(), &self.files.writer_id)?;
        self.make_reserve();
        Ok(())
    }

    /// Closes a full file under the name of its first entry, begins a new one, and lets the oldest go when there are too many.
    fn rotate_if_full(&mut self) -> io::Result<()> {
        if self.file_bytes < self.options.file_bytes_max {
            return Ok(());
        }
        std::fs::rename(self.files.current(), self.files.closed(self.file_first_seq))?;
        self.file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(self.files.current())?;
        (self.file_bytes, self.file_first_seq) = (0, self.last_seq + 1);
        File::open(&self.files.folder)?.sync_all()?;
        self.remove_oldest()
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let files = self.files.in_order(self.checkpoint.first_seq).map_err(io::Error::other)?;
        let surplus = files.len().saturating_sub(self.options.files_max);
        let Some(kept) = files.get(surplus).filter(|_| surplus > 0) else { return Ok(()) };
        let text = std::fs::read_to_string(kept)?;
        let first = text.lines().next().and_then(|line| self.key.read_line(line));
        let Some(first) = first else { return Ok(()) };
        // First the word that the chain begins later, then the removal: a crash in between leaves a file too many, not a hole.
        self.checkpoint = Checkpoint { first_seq: first.seq, first_prev: first.prev, ..self.checkpoint.clone() };
        self.checkpoint.write(&self.key, &self.files.checkpoint(), &self.files.writer_id)?;
        files[..surplus].iter().try_for_each(std::fs::remove_file)
    }
}

fn check_writer_id(writer_id: &str) -> Result<(), AuditError> {
    let fits = !writer_id.is_empty() && writer_id.len() <= WRITER_ID_BYTES_MAX;
    if fits && writer_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Ok(());
    }
    Err(AuditError::Unusable(format!(
        "{writer_id:?} cannot name an audit writer: use 1 to {WRITER_ID_BYTES_MAX} letters, digits, '-' and '_'"
    )))
}

/// Makes sure that one process writes a chain.
fn lock(path: &Path) -> Result<File, AuditError> {
    let failed = |source| AuditError::File { verb: "lock", path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(AuditError::Unusable(format!("{} is held: another process writes this audit record", path.display())))
        }
        Err(errno) => Err(failed(errno.into())),
    }
}
