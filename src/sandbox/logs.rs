//! Reading the logs of runs: `logs/<uid>/<short>.log`, each a ring with absolute offsets (`inside::output`).
//!
//! A log is what an agent printed and therefore hostile: `tail` cleans it for terminals and records, `read` gives the bytes. Logs stay
//! when the run's folder goes; `list` finds them by agent. Nothing is written here.

use crate::api::names::{RunId, Uid};
use crate::inside::output;
use crate::sandbox::folder::{RunFolder, log_path, short};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Most bytes that one `read` returns, whatever is asked.
pub const READ_BYTES_MAX: usize = 1024 * 1024;

/// One log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Which run.
    pub run: RunId,
    /// Offset of the oldest byte that is kept; as many were dropped.
    pub first: u64,
    /// Offset after the newest byte.
    pub end: u64,
    /// Last write.
    pub changed_at: SystemTime,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// The bytes as they were printed.
    pub bytes: Vec<u8>,
    /// Absolute offset of the first of them: more than was asked for when older ones were dropped.
    pub from: u64,
    /// Where to go on.
    pub next: u64,
    /// How many bytes of this log were dropped in all.
    pub dropped: u64,
    /// Nothing more will come.
    pub ended: bool,
}

/// All logs of an agent, by run.
/// # Errors
/// Could not look.
pub fn list(state: &Path, uid: &Uid) -> io::Result<Vec<LogFile>> {
    let entries = match fs::read_dir(state.join("logs").join(uid.as_str())) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let file = File::open(&path)?;
        // A log that a crash left without its header belongs to no run that ever started.
        let (Ok(label), Ok(counters)) = (output::label(&file), output::counters(&file)) else { continue };
        if let Ok(run) = serde_json::from_slice::<RunId>(&label) {
            let changed_at = file.metadata()?.modified()?;
            found.push(LogFile { run, first: counters.first(), end: counters.end, changed_at });
        }
    }
    found.sort_by(|a, b| a.run.cmp(&b.run));
    Ok(found)
}

/// Reads from an absolute offset on, or from the oldest byte that is kept.
/// # Errors
/// There is no log of this run (`NotFound`), or the disk fails.
pub fn read(state: &Path, run: &RunId, from: u64, bytes_max: usize) -> io::Result<LogChunk> {
    // Looked at before the bytes: what was printed before the end is then in them.
    let over = !RunFolder::of(state, run).is_held()?;
    let file = File::open(log_path(state, &run.uid, &short(run)))?;
    let (from, bytes) = output::read(&file, from, bytes_max.min(READ_BYTES_MAX))?;
    let counters = output::counters(&file)?;
    let next = from + bytes.len() as u64;
    Ok(LogChunk { bytes, from, next, dropped: counters.first(), ended: over && next >= counters.end })
}

/// The end of a log, cleaned: valid UTF-8 without control characters and escape sequences, at most `bytes_max` bytes.
/// # Errors
/// As `read`.
pub fn tail(state: &Path, run: &RunId, bytes_max: usize) -> io::Result<String> {
    let file = File::open(log_path(state, &run.uid, &short(run)))?;
    let end = output::counters(&file)?.end;
    let (from, bytes) = output::read(&file, end.saturating_sub(bytes_max as u64), bytes_max)?;
    // The cut may be within a character: its rest goes.
    let whole = if from == 0 { 0 } else { bytes.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count() };
    let mut text = clean(&String::from_utf8_lossy(&bytes[whole..]));
    // A replacement character is longer than the byte that it stands for.
    let excess = text.len().saturating_sub(bytes_max);
    let cut = (excess..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Ok(text.split_off(cut))
}

/// Text without escape sequences (CSI, OSC and the like), C0 and C1 controls and bidirectional overrides; newline and tab stay.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let introducer = match c {
            '\u{1b}' => chars.next_if(|next| ('\u{40}'..='\u{5f}').contains(next)).unwrap_or('\u{0}'),
            '\u{9b}' => '[',
            '\u{9d}' => ']',
            '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}' => 'P',
            '\r' if chars.peek() == Some(&'\n') => continue,
            '\r' => {
                out.push('\n');
                continue;
            }
            '\n' | '\t' => {
                out.push(c);
                continue;
            }
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => continue,
            c if c.is_control() => continue,
            c => {
                out.push(c);
                continue;
            }
        };
        match introducer {
            '[' => skip_control_sequence(&mut chars),
            ']' | 'P' | 'X' | '^' | '_' => skip_string(&mut chars),
            _ => {}
        }
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Skips parameters and the final byte of a control sequence. Anything else ends it and stays.
fn skip_control_sequence(chars: &mut Chars<'_>) {
    while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
    chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
}

/// Skips a string up to its terminator (BEL, ST), but never beyond the line: an open one must not swallow the log.
fn skip_string(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next_if(|c| *c != '\n') {
        if c == '\u{7}' || c == '\u{9c}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
            return;
        }
    }
}
