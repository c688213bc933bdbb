//! The latch: what was killed or halted from outside the store, on this machine, for ever.
//!
//! A store that is stuck, lost or restored from an older copy must not bring a killed agent back. So a kill is noted here, beside the
//! SIGKILL: in the memory of this process at once, and in one preallocated file of fixed slots, which takes a note on a full disk as well.
//! The start gate, every pass and every start of an effect look here. A note stays until a newer one needs its slot; that an agent was
//! killed is thus known for the last [`SLOTS`] kills, far longer than any record of it lives.
//!
//! Several processes may write (a controller, and a command line that found it stuck): each looks for a free slot under a lock that it
//! waits for only so long. A slot that holds something unreadable counts as a halt of everything, for it may have been one.

use crate::api::names::Uid;
use crate::sandbox::folder::hash;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Name of the file in the state folder.
pub const FILE_LATCH: &str = "latch";
/// Size of a slot: no write of one can be torn.
const SLOT_BYTES: usize = 512;
/// How many notes are kept.
pub const SLOTS: usize = 8192;
/// Longest wait for another writer, which writes a few lines.
const LOCK_TIME_MAX: Duration = Duration::from_millis(200);
/// Longest wait for a note to be on the disk; the SIGKILL waits for it never, the receipt so long: a busy disk is no broken one.
pub const NOTE_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause between two tries to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Hexadecimal digits of a slot's check.
const CHECK_CHARS: usize = 16;

/// One note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Note {
    /// This agent was killed and never runs again.
    Killed {
        /// Which agent.
        uid: Uid,
        /// Who asked, and how: the end of "ended by …".
        by: String,
        /// When, as Unix time.
        at_millis: i64,
    },
    /// Nothing that matches starts until the store knows of it.
    Halt {
        /// Name that the halt gets in the store.
        name: String,
        /// Only this namespace; `None`: all.
        namespace: Option<String>,
        /// It stays until somebody releases it.
        hold: bool,
        /// Why, cut to what fits.
        reason: String,
        /// When, as Unix time.
        at_millis: i64,
    },
}

impl Note {
    /// Name of the halt that it is.
    #[must_use]
    pub fn halt_name(&self) -> Option<&str> {
        match self {
            Self::Halt { name, .. } => Some(name),
            Self::Killed { .. } => None,
        }
    }

    fn at_millis(&self) -> i64 {
        match self {
            Self::Killed { at_millis, .. } | Self::Halt { at_millis, .. } => *at_millis,
        }
    }

    /// A slot's text: JSON, spaces, check, newline. What is longer than a slot is cut in its reason.
    fn to_slot(&self) -> [u8; SLOT_BYTES] {
        let text_bytes_max = SLOT_BYTES - CHECK_CHARS - 2;
        let mut note = self.clone();
        let mut json = to_json(&note);
        while json.len() > text_bytes_max {
            let (Self::Killed { by: text, .. } | Self::Halt { reason: text, .. }) = &mut note;
            let surplus = json.len() - text_bytes_max;
            let end = text.floor_char_boundary(text.len().saturating_sub(surplus.max(1)));
            text.truncate(end);
            json = to_json(&note);
        }
        let mut slot = [b' '; SLOT_BYTES];
        slot[..json.len()].copy_from_slice(&json);
        let check = hash(&json);
        slot[SLOT_BYTES - 1 - CHECK_CHARS..SLOT_BYTES - 1].copy_from_slice(&check.as_bytes()[..CHECK_CHARS]);
        slot[SLOT_BYTES - 1] = b'\n';
        slot
    }

    /// Reads a slot back: blank, a note, or something that is neither.
    fn of_slot(slot: &[u8]) -> Result<Option<Self>, ()> {
        if slot.iter().all(|byte| matches!(byte, b' ' | b'\n')) {
            return Ok(None);
        }
        let (text, check) = slot.split_at(SLOT_BYTES - 1 - CHECK_CHARS);
        let json = text.trim_ascii_end();
        if hash(json).as_bytes()[..CHECK_CHARS] != check[..CHECK_CHARS] {
            return Err(());
        }
        serde_json::from_slice(json).map(Some).map_err(|_| ())
    }
}

fn to_json(note: &Note) -> Vec<u8> {
    serde_json::to_vec(note).expect("a note is plain data")
}

fn blank() -> [u8; SLOT_BYTES] {
    let mut slot = [b' '; SLOT_BYTES];
    slot[SLOT_BYTES - 1] = b'\n';
    slot
}

/// What is latched, for this process.
#[derive(Debug, Default)]
pub struct Latch {
    /// `None`: kept in memory only (simulations, benches).
    path: Option<PathBuf>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    killed: BTreeMap<Uid, String>,
    halts: BTreeMap<String, Note>,
    /// Those of the halts that this process noted: they count even if the disk did not take them.
    own: BTreeMap<String, Note>,
    unreadable: Option<String>,
    /// Size, inode and time of the last change of the file as it was read.
    seen: Option<(u64, u64, i64, i64)>,
}

impl Latch {
    /// Opens the latch of a state folder; makes and preallocates it if it is absent.
    /// # Errors
    /// The file cannot be made or read: nothing may be started then.
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = state.join(FILE_LATCH);
        if !path.exists() {
            let blank = blank().repeat(SLOTS);
            crate::durable::make_once(&path, &blank)?;
        }
        let latch = Self { path: Some(path), memory: Mutex::default() };
        latch.read_again()?;
        Ok(latch)
    }

    /// Whether an agent was killed; how, for people.
    #[must_use]
    pub fn killed(&self, uid: &Uid) -> Option<String> {
        self.refresh();
        self.memory().killed.get(uid).cloned()
    }

    /// Why nothing in a namespace may start, if so.
    #[must_use]
    pub fn halted(&self, namespace: &str) -> Option<String> {
        self.refresh();
        let memory = self.memory();
        if let Some(why) = &memory.unreadable {
            return Some(why.clone());
        }
        memory.halts.values().find_map(|halt| match halt {
            Note::Halt { namespace: only, reason, name, .. } if only.as_deref().is_none_or(|only| only == namespace) => {
                Some(format!("halt {name}: {reason}"))
            }
            Note::Halt { .. } | Note::Killed { .. } => None,
        })
    }

    /// Why the latch cannot be read, for which everything counts as halted.
    #[must_use]
    pub fn unreadable(&self) -> Option<String> {
        self.refresh();
        self.memory().unreadable.clone()
    }

    /// Halts that the store does not know of yet.
    #[must_use]
    pub fn halts(&self) -> Vec<Note> {
        self.refresh();
        self.memory().halts.values().cloned().collect()
    }

    /// Notes in memory at once: from now on nothing of it starts in this process. `keep` brings it to the disk.
    pub fn note(&self, notes: &[Note]) {
        let mut memory = self.memory();
        for note in notes {
            if let Note::Halt { name, .. } = note {
                memory.own.insert(name.clone(), note.clone());
            }
            memory.take(note.clone());
        }
    }

    /// Brings notes to the disk. Waits for other writers and for the disk at most [`NOTE_TIME_MAX`].
    /// # Errors
    /// They may not be on the disk: what, for a receipt.
    pub fn keep(self: &Arc<Self>, notes: &[Note]) -> Result<(), String> {
        if self.path.is_none() || notes.is_empty() {
            return Ok(());
        }
        let (this, notes) = (self.clone(), notes.to_vec());
        let (told, written) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("mosaic-latch".to_owned()).spawn(move || {
            // Nobody listens any more once it took too long; it may still be written.
            let _ = told.send(this.write(&notes));
        });
        thread.map_err(|e| format!("failed to start a thread: {e}"))?;
        match written.recv_timeout(NOTE_TIME_MAX) {
            Ok(outcome) => outcome.map_err(|e| format!("failed to write the latch: {e}")),
            Err(_) => Err(format!("the latch was not on the disk within {} ms", NOTE_TIME_MAX.as_millis())),
        }
    }

    /// The store knows of a halt: it counts there from now on.
    /// # Errors
    /// The disk refuses; it is still latched then.
    pub fn hand_over(&self, name: &str) -> io::Result<()> {
        if let Some(path) = &self.path {
            let file = open(path)?;
            let _lock = lock(&file)?;
            for (index, slot) in read_slots(&file)?.chunks_exact(SLOT_BYTES).enumerate() {
                if matches!(Note::of_slot(slot), Ok(Some(Note::Halt { name: found, .. })) if found == name) {
                    file.write_all_at(&blank(), (index * SLOT_BYTES) as u64)?;
                }
            }
            file.sync_data()?;
        }
        let mut memory = self.memory();
        memory.halts.remove(name);
        memory.own.remove(name);
        Ok(())
    }

    fn write(&self, notes: &[Note]) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = open(path)?;
        // Without the lock two writers may take the same slot: better one note of two than none.
        let _lock = lock(&file);
        let slots = read_slots(&file)?;
        let mut free = free_slots(&slots);
        for note in notes {
            let Some(index) = free.next() else { return Err(io::Error::other("all slots hold halts")) };
            file.write_all_at(&note.to_slot(), (index * SLOT_BYTES) as u64)?;
        }
        file.sync_data()
    }

    /// Takes in what another process noted.
    fn refresh(&self) {
        let Some(path) = &self.path else { return };
        let stamp = std::fs::metadata(path).map(|found| stamp(&found)).ok();
        if stamp.is_none() || stamp != self.memory().seen {
            // What cannot be read is kept as unreadable, which halts.
            let _ = self.read_again();
        }
    }

    fn read_again(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let read = File::open(path).and_then(|file| Ok((stamp(&file.metadata()?), read_slots(&file)?)));
        let mut memory = self.memory();
        let (stamp, slots) = match read {
            Ok(read) => read,
            Err(e) => {
                memory.unreadable = Some(format!("the latch {} cannot be read, which counts as halted: {e}", path.display()));
                memory.seen = None;
                return Err(e);
            }
        };
        let mut fresh = Memory { seen: Some(stamp), ..Memory::default() };
        for (index, slot) in slots.chunks_exact(SLOT_BYTES).enumerate() {
            match Note::of_slot(slot) {
                Ok(Some(note)) => fresh.take(note),
                Ok(None) => {}
                Err(()) => {
                    fresh.unreadable = Some(format!(
                        "line {} of {} is unreadable and may be a halt, so everything counts as halted; when you are sure that nothing \
                         shall be halted, replace that line by a blank one of the same length, or, while no controller runs, remove the file: which agents \
                         were killed is forgotten with it",
                        index + 1,
                        path.display()
                    ));
                }
            }
        }
        // What this process has noted counts, whether or not the disk took it.
        fresh.killed.append(&mut memory.killed);
        fresh.halts.extend(memory.own.clone());
        fresh.own = std::mem::take(&mut memory.own);
        *memory = fresh;
        Ok(())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn take(&mut self, note: Note) {
        match &note {
            Note::Killed { uid, by, .. } => {
                self.killed.entry(uid.clone()).or_insert_with(|| by.clone());
            }
            Note::Halt { name, .. } => {
                self.halts.insert(name.clone(), note);
            }
        }
    }
}

fn stamp(found: &std::fs::Metadata) -> (u64, u64, i64, i64) {
    (found.size(), found.ino(), found.mtime(), found.mtime_nsec())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Holds off other writers while the guard lives.
fn lock(file: &File) -> io::Result<File> {
    let until = Instant::now() + LOCK_TIME_MAX;
    let held = file.try_clone()?;
    loop {
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(held),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
            Err(e) => return Err(e.into()),
        }
    }
}

fn read_slots(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SLOTS * SLOT_BYTES);
    let mut from_start = file.try_clone()?;
    io::Seek::rewind(&mut from_start)?;
    from_start.take((SLOTS * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
    // A file that was cut short lacks notes; its missing slots are unreadable.
    bytes.resize(SLOTS * SLOT_BYTES, b'?');
    Ok(bytes)
}

/// Blank slots first, then those of the oldest kills. Halts and what is unreadable are never overwritten.
fn free_slots(slots: &[u8]) -> impl Iterator<Item = usize> {
    let mut places: Vec<(i64, usize)> = Vec::new();
    for (index, slot) in slots.chunks_exact(SLOT_BYTES).enumerate() {
        match Note::of_slot(slot) {
            Ok(None) => places.push((i64::MIN, index)),
            Ok(Some(note @ Note::Killed { .. })) => places.push((note.at_millis(), index)),
            Ok(Some(Note::Halt { .. })) | Err(()) => {}
        }
    }
    places.sort_unstable();
    places.into_iter().map(|(_, index)| index)
}
