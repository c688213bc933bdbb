//! The log of a run: one file that is a ring, so that it never grows beyond its capacity, with absolute offsets.
//!
//! A page of header, then `capacity` bytes of data; the byte at absolute offset `n` is at `n % capacity`. The writer raises `reserved`,
//! writes the data, then raises `end`; so `max(0, reserved - capacity) .. end` is intact at every instant, even with the writer killed
//! between two of its writes. What was overwritten is what was dropped. The header also holds the run, so that a log needs no other
//! file. init writes through a descriptor it was given (it cannot open the file), the controller reads (`sandbox::logs`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// First bytes of every log.
const MAGIC: [u8; 8] = *b"MOSAICL1";
/// Size of the header.
pub const HEADER_BYTES: u64 = 4096;
/// Longest label in the header.
pub const LABEL_BYTES_MAX: usize = 3072;
const AT_CAPACITY: u64 = 8;
const AT_RESERVED: u64 = 16;
const AT_END: u64 = 24;
const AT_LABEL_LENGTH: u64 = 32;
const AT_LABEL: u64 = 64;

/// Lays out an empty log in a new file.
/// # Errors
/// The label is too long, or the disk refuses.
pub fn format(file: &File, capacity: u64, label: &[u8]) -> io::Result<()> {
    if label.len() > LABEL_BYTES_MAX || capacity == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a log needs a capacity and a short label"));
    }
    let mut header = vec![0; usize::try_from(HEADER_BYTES).expect("a page")];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&capacity.to_le_bytes());
    header[32..40].copy_from_slice(&(label.len() as u64).to_le_bytes());
    header[64..64 + label.len()].copy_from_slice(label);
    file.write_all_at(&header, 0)
}

/// Counters of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Size of the ring.
    pub capacity: u64,
    /// Offset after the last byte that is written or being written.
    pub reserved: u64,
    /// Offset after the last byte that is there.
    pub end: u64,
}

impl Counters {
    /// Offset of the oldest byte that is still there; as many bytes were dropped.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.reserved.saturating_sub(self.capacity).min(self.end)
    }
}

fn number_at(file: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Reads the counters.
/// # Errors
/// It is no log.
pub fn counters(file: &File) -> io::Result<Counters> {
    let mut magic = [0; 8];
    file.read_exact_at(&mut magic, 0)?;
    let capacity = number_at(file, AT_CAPACITY)?;
    if magic != MAGIC || capacity == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a log of ours"));
    }
    // `end` first: a writer may move on in between, and `reserved` must not be older than `end`.
    let end = number_at(file, AT_END)?;
    Ok(Counters { capacity, reserved: number_at(file, AT_RESERVED)?.max(end), end })
}

/// Reads the label.
/// # Errors
/// It is no log.
pub fn label(file: &File) -> io::Result<Vec<u8>> {
    counters(file)?;
    let length = usize::try_from(number_at(file, AT_LABEL_LENGTH)?).unwrap_or(usize::MAX).min(LABEL_BYTES_MAX);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, AT_LABEL)?;
    Ok(bytes)
}

/// Reads at most `bytes_max` from an absolute offset on, or from the oldest byte that is left. Returns them with their offset.
/// # Errors
/// It is no log, or the disk fails.
pub fn read(file: &File, from: u64, bytes_max: usize) -> io::Result<(u64, Vec<u8>)> {
    let before = counters(file)?;
    let from = from.clamp(before.first(), before.end);
    let length = usize::try_from(before.end - from).unwrap_or(usize::MAX).min(bytes_max);
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        let at = (from + done as u64) % before.capacity;
        let part = usize::try_from(before.capacity - at).unwrap_or(usize::MAX).min(length - done);
        file.read_exact_at(&mut bytes[done..done + part], HEADER_BYTES + at)?;
        done += part;
    }
    // What the writer has overwritten meanwhile is not what it was.
    let overwritten = usize::try_from(counters(file)?.first().saturating_sub(from)).unwrap_or(usize::MAX).min(length);
    Ok((from + overwritten as u64, bytes.split_off(overwritten)))
}

/// Writes into a log.
pub struct Ring {
    file: File,
    counters: Counters,
}

impl Ring {
    /// Continues a log.
    /// # Errors
    /// It is no log.
    pub fn open(file: File) -> io::Result<Self> {
        let counters = counters(&file)?;
        Ok(Self { file, counters })
    }

    /// Offset after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.counters.end
    }

    /// Size of the ring.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.counters.capacity
    }

    /// Appends; the oldest bytes go when there is no room.
    /// # Errors
    /// The disk refuses; the bytes are lost, later ones may succeed.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let at = self.counters.end % self.counters.capacity;
            let room = usize::try_from(self.counters.capacity - at).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            self.counters.reserved = self.counters.end + part.len() as u64;
            self.file.write_all_at(&self.counters.reserved.to_le_bytes(), AT_RESERVED)?;
            self.file.write_all_at(part, HEADER_BYTES + at)?;
            self.counters.end = self.counters.reserved;
            self.file.write_all_at(&self.counters.end.to_le_bytes(), AT_END)?;
            bytes = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(capacity: u64) -> (File, Ring) {
        let file = tempfile::tempfile().unwrap();
        format(&file, capacity, b"label").unwrap();
        let ring = Ring::open(file.try_clone().unwrap()).unwrap();
        (file, ring)
    }

    #[test]
    fn ring_keeps_the_newest_bytes_at_their_offsets() {
        let (file, mut ring) = log(10);
        let text: Vec<u8> = (b'a'..=b'z').collect();
        for (written, part) in text.chunks(3).enumerate() {
            ring.append(part).unwrap();
            let end = written * 3 + part.len();
            let first = end.saturating_sub(10);
            assert_eq!(read(&file, 0, 100).unwrap(), (first as u64, text[first..end].to_vec()));
        }
        assert_eq!(read(&file, 20, 2).unwrap(), (20, b"uv".to_vec()));
        assert_eq!(read(&file, 99, 2).unwrap(), (26, Vec::new()));
        assert_eq!(label(&file).unwrap(), b"label");
        // A writer that is restarted goes on where the log ends.
        Ring::open(file.try_clone().unwrap()).unwrap().append(b"!").unwrap();
        assert_eq!(read(&file, 25, 9).unwrap(), (25, b"z!".to_vec()));
    }

    #[test]
    fn bytes_that_a_killed_writer_was_overwriting_are_not_shown() {
        let (file, mut ring) = log(10);
        ring.append(b"0123456789").unwrap();
        file.write_all_at(&14_u64.to_le_bytes(), AT_RESERVED).unwrap();
        file.write_all_at(b"xx", HEADER_BYTES).unwrap();
        assert_eq!(read(&file, 0, 100).unwrap(), (4, b"456789".to_vec()));
    }
}
