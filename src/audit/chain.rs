//! The keyed hash chain: signing a line, checking a line, and the checkpoint that says how far the chain once was.
//!
//! A line is the entry as JSON with `,"mac":"<hex>"}` at its end; the MAC is over the very bytes before it, so that nothing depends on how a
//! reader would write the same JSON. Every entry holds the MAC of the one before.

use super::entry::Entry;
use super::{AuditError, Draft, writer};
use crate::api::names::Secret;
use crate::durable;
use hmac::{Hmac, Mac};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io;
use std::path::Path;

/// `prev` of the first entry of a writer.
pub(super) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Length of a MAC in hexadecimal digits.
const MAC_DIGITS: usize = 64;
/// Name of the key's file.
const KEY_FILE: &str = "key";
/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// The key of a folder's chains.
#[derive(Debug, Clone)]
pub(super) struct Key(Secret);

impl Key {
    /// Reads the key; makes one where nothing was ever written.
    pub(super) fn open_or_make(folder: &Path) -> Result<Self, AuditError> {
        let path = folder.join(KEY_FILE);
        if !path.exists() {
            let has_records = writer::has_records(folder)?;
            if has_records {
                return Err(AuditError::Unusable(format!(
                    "{} is gone, but there are audit records that were signed with it. Put it back, or move {} away",
                    path.display(),
                    folder.display()
                )));
            }
            let mut bytes = [0; KEY_BYTES];
            rand::fill(&mut bytes);
            let made = durable::make_once(&path, hex(&bytes).as_bytes());
            made.map_err(|source| AuditError::File { verb: "write", path: path.clone(), source })?;
        }
        Self::read(folder)
    }

    /// Reads the key.
    pub(super) fn read(folder: &Path) -> Result<Self, AuditError> {
        let path = folder.join(KEY_FILE);
        let text = std::fs::read_to_string(&path).map_err(|source| AuditError::File { verb: "read", path: path.clone(), source })?;
        if text.len() != 2 * KEY_BYTES {
            return Err(AuditError::Unusable(format!("{} is no key: put the right one back", path.display())));
        }
        Ok(Self(Secret::new(text)))
    }

    fn mac(&self, purpose: &str, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose().as_bytes()).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(bytes);
        mac
    }

    fn sign(&self, purpose: &str, bytes: &[u8]) -> String {
        hex(&self.mac(purpose, bytes).finalize().into_bytes())
    }

    fn is_signed(&self, purpose: &str, bytes: &[u8], mac: &str) -> bool {
        unhex(mac).is_some_and(|mac| self.mac(purpose, bytes).verify_slice(&mac).is_ok())
    }

    /// Makes the line of an entry, with its newline, and the entry as a reader sees it.
    pub(super) fn line(&self, seq: u64, at: Timestamp, draft: Draft, prev: &str) -> (String, Entry) {
        let Draft { kind, actor, request_id, key, uid, attempt, epoch, action, intent, before, after, result, message } = draft;
        let at = at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let (prev, mac) = (prev.to_owned(), String::new());
        let mut entry =
            Entry { seq, at, kind, actor, request_id, key, uid, attempt, epoch, action, intent, before, after, result, message, prev, mac };
        let mut line = serde_json::to_string(&entry).expect("an entry is plain data");
        entry.mac = self.sign("entry", line.as_bytes());
        line.truncate(line.len() - 1);
        line.push_str(&format!(",\"mac\":\"{}\"}}\n", entry.mac));
        (line, entry)
    }

    /// Reads a line (without its newline) that this key signed; `None` when it did not.
    pub(super) fn read_line(&self, line: &str) -> Option<Entry> {
        let (head, tail) = line.rsplit_once(",\"mac\":\"")?;
        let mac = tail.strip_suffix("\"}").filter(|mac| mac.len() == MAC_DIGITS)?;
        if !self.is_signed("entry", format!("{head}}}").as_bytes(), mac) {
            return None;
        }
        serde_json::from_str(line).ok()
    }
}

/// How far a writer's chain was at least, and where it begins since old files went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Checkpoint {
    /// First entry that is kept.
    pub(super) first_seq: u64,
    /// Its `prev`.
    pub(super) first_prev: String,
    /// The last entry that was safely written.
    pub(super) seq: u64,
    /// Its MAC.
    pub(super) mac: String,
}

impl Checkpoint {
    /// Of a writer that has written nothing.
    pub(super) fn empty() -> Self {
        Self { first_seq: 1, first_prev: GENESIS.to_owned(), seq: 0, mac: GENESIS.to_owned() }
    }

    /// Writes the checkpoint, signed and with the writer's name in the signature.
    pub(super) fn write(&self, key: &Key, path: &Path, writer_id: &str) -> io::Result<()> {
        let body = serde_json::to_string(self).expect("a checkpoint is plain data");
        let mac = key.sign(&format!("checkpoint {writer_id}"), body.as_bytes());
        durable::replace(path, format!("{body}\n{mac}\n").as_bytes())
    }

    /// Reads a checkpoint; `Ok(None)` when there is none, `Err` when it is not what the key signed.
    pub(super) fn read(key: &Key, path: &Path, writer_id: &str) -> Result<Option<Self>, AuditError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AuditError::File { verb: "read", path: path.to_owned(), source }),
        };
        let signed =
            text.split_once('\n').filter(|(body, mac)| key.is_signed(&format!("checkpoint {writer_id}"), body.as_bytes(), mac.trim_end()));
        let checkpoint = signed.and_then(|(body, _)| serde_json::from_str(body).ok());
        checkpoint.map(Some).ok_or_else(|| AuditError::Unusable(format!("{} was edited or belongs to another key", path.display())))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}
