//! What the agent left for us: `/mosaic/out/result.json` and its progress lines. Both are hostile and decoded leniently.

use crate::inside::wire::FOLDER_OUT;
use crate::plan::observed::AgentResult;
use crate::sandbox::folder::RunFolder;
use crate::sandbox::logs::clean;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde_json::Value;
use std::fs::File;
use std::io::Read;

/// Largest result file that is read.
pub const RESULT_BYTES_MAX: u64 = 64 * 1024;
/// Longest text taken out of it.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Longest progress message.
const MESSAGE_BYTES_MAX: usize = 200;

/// Reads the result file, beneath its folder and through no link; `None` when there is no valid one.
#[must_use]
pub fn read(folder: &RunFolder) -> Option<AgentResult> {
    let out = File::open(folder.path().join(FOLDER_OUT)).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(&out, "result.json", flags, Mode::empty(), resolve).ok()?;
    let found = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_size > i64::try_from(RESULT_BYTES_MAX).ok()? {
        return None;
    }
    let mut bytes = Vec::new();
    File::from(file).take(RESULT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(|text| cut(clean(text).trim(), TEXT_BYTES_MAX));
    let some = |name: &str| text(name).filter(|text| !text.is_empty());
    value.is_object().then(|| AgentResult { summary: some("summary"), commit_message: some("commitMessage") })
}

/// The agent's own word: fraction and one line.
pub type Progress = (Option<f64>, Option<String>);

/// The last progress line among complete lines; see `inside::wire` for its form.
#[must_use]
pub fn last_progress(bytes: &[u8]) -> Option<Progress> {
    let whole = &bytes[..bytes.iter().rposition(|byte| *byte == b'\n')?];
    whole.rsplit(|byte| *byte == b'\n').find_map(progress_of)
}

fn progress_of(line: &[u8]) -> Option<Progress> {
    let line = line.trim_ascii();
    if !line.starts_with(b"{") || !line.windows(10).any(|window| window == b"\"progress\"") {
        return None;
    }
    let value: Value = serde_json::from_slice(line).ok()?;
    let progress = value.get("progress")?.as_object()?;
    let fraction = progress.get("fraction").and_then(Value::as_f64).filter(|f| f.is_finite()).map(|f| f.clamp(0.0, 1.0));
    let message = progress.get("message").and_then(Value::as_str).map(|text| clean(text).replace(['\n', '\t'], " "));
    let message = message.map(|text| cut(text.trim(), MESSAGE_BYTES_MAX)).filter(|text| !text.is_empty());
    (fraction.is_some() || message.is_some()).then_some((fraction, message))
}

/// The beginning of a text, cut between two characters.
fn cut(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}
