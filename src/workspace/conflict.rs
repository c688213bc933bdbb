//! Conflicts as files: standard markers wherever there is text, so that an agent (and the check for what it left) can see them.
//!
//! One side deleted the file: the other side's text stands between markers too, so that somebody must decide. What has no lines
//! (binaries, links, submodules) is laid out as the change has it, and the words say so. A file in the way of a folder goes beside it.

use super::error::WorkspaceError;
use super::layout::Kind;
use super::repository::{Pair, Writer};
use git2::{Index, IndexConflict, IndexEntry, IndexTime, MergeFileInput, MergeFileOptions, ObjectType, Oid, Repository};
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Most bytes of hunks that are told, over all paths.
const HUNKS_BYTES_MAX: usize = 16 << 10;
/// Most bytes of one path's hunks, so that the next paths are seen too.
const HUNKS_PER_PATH_BYTES_MAX: usize = 4 << 10;
/// Larger files are treated as having no lines.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// So many bytes are searched for a NUL, as git does.
const BINARY_LOOK_BYTES: usize = 8000;
/// How the markers name the agent's side.
const CHANGE_LABEL: &str = "this change";

/// What was in conflict.
pub(super) struct Found {
    /// Paths, each once.
    pub(super) paths: Vec<String>,
    /// The places, for people and agents.
    pub(super) hunks: String,
}

/// One side of a conflict.
struct Side {
    kind: Kind,
    id: Oid,
    /// Its content, if it has lines.
    text: Option<Vec<u8>>,
}

/// How one conflict is laid out.
struct Laid {
    kind: Kind,
    id: Oid,
    words: String,
}

/// Replaces every conflict in `index` by something that can be laid out; `branch` names the base's side.
pub(super) fn mark(
    pair: &Pair,
    opened: &Repository,
    writer: &mut Writer<'_>,
    index: &mut Index,
    branch: &str,
) -> Result<Found, WorkspaceError> {
    let conflicts = index.conflicts().map_err(pair.git("read conflicts"))?;
    let conflicts: Vec<IndexConflict> = conflicts.collect::<Result<_, _>>().map_err(pair.git("read conflicts"))?;
    let mut found = Found { paths: Vec::new(), hunks: String::new() };
    let mut laid = Vec::new();
    for conflict in conflicts {
        let Some(path) = [&conflict.our, &conflict.their, &conflict.ancestor].into_iter().flatten().next().map(|entry| entry.path.clone())
        else {
            continue;
        };
        let side = |entry: &Option<IndexEntry>| entry.as_ref().map(|entry| read_side(pair, opened, entry)).transpose();
        let (old, ours, theirs) = (side(&conflict.ancestor)?, side(&conflict.our)?, side(&conflict.their)?);
        if let Some(one) = lay(pair, writer, branch, old.as_ref(), ours, theirs)? {
            laid.push((path, one));
        } else {
            remove(pair, index, &path)?;
        }
    }
    for (path, _) in &laid {
        remove(pair, index, path)?;
    }
    for (path, one) in laid {
        let path = place(index, path);
        let shown = String::from_utf8_lossy(&path).into_owned();
        tell(&mut found.hunks, &shown, &one.words);
        let entry = entry(path, one.kind, one.id);
        index.add(&entry).map_err(pair.git("lay out a conflict"))?;
        found.paths.push(shown);
    }
    Ok(found)
}

fn remove(pair: &Pair, index: &mut Index, path: &[u8]) -> Result<(), WorkspaceError> {
    index.conflict_remove(Path::new(OsStr::from_bytes(path))).map_err(pair.git("lay out a conflict"))
}

fn read_side(pair: &Pair, opened: &Repository, entry: &IndexEntry) -> Result<Side, WorkspaceError> {
    let kind = i32::try_from(entry.mode).ok().and_then(Kind::of_mode).unwrap_or(Kind::File);
    let text = match kind {
        Kind::File | Kind::Executable => {
            let blob = opened.find_blob(entry.id).map_err(pair.git("read a file"))?;
            let bytes = blob.content();
            let has_lines = bytes.len() <= TEXT_BYTES_MAX && !bytes[..bytes.len().min(BINARY_LOOK_BYTES)].contains(&0);
            has_lines.then(|| bytes.to_vec())
        }
        Kind::Link | Kind::Folder | Kind::Submodule => None,
    };
    Ok(Side { kind, id: entry.id, text })
}

/// Decides on one conflict; `None`: both sides dropped it.
fn lay(
    pair: &Pair,
    writer: &mut Writer<'_>,
    branch: &str,
    old: Option<&Side>,
    ours: Option<Side>,
    theirs: Option<Side>,
) -> Result<Option<Laid>, WorkspaceError> {
    let mut text = |bytes: &[u8], kind: Kind| -> Result<Option<Laid>, WorkspaceError> {
        let id = writer.put(ObjectType::Blob, bytes, None)?;
        Ok(Some(Laid { kind, id, words: hunks(bytes) }))
    };
    match (ours, theirs) {
        (None, None) => Ok(None),
        (Some(Side { kind, text: Some(ours), .. }), Some(Side { kind: their_kind, text: Some(theirs), .. })) => {
            let kind = if old.is_some_and(|old| old.kind == kind) { their_kind } else { kind };
            let old = old.and_then(|old| old.text.as_deref()).unwrap_or_default();
            text(&merged(pair, branch, old, &ours, &theirs)?, kind)
        }
        (Some(Side { kind, text: Some(ours), .. }), None) => text(&one_sided(branch, &ours, b"", " (deleted)"), kind),
        (None, Some(Side { kind, text: Some(theirs), .. })) => text(&one_sided(&format!("{branch} (deleted)"), b"", &theirs, ""), kind),
        (Some(_), Some(Side { kind, id, .. })) => {
            let words = format!(
                "no lines to merge (a binary, link or submodule): laid out as {CHANGE_LABEL} has it; {branch} has another version\n"
            );
            Ok(Some(Laid { kind, id, words }))
        }
        (Some(Side { kind, id, .. }), None) => {
            let words =
                format!("{CHANGE_LABEL} deleted it, {branch} changed it: laid out as {branch} has it; delete it again if that is right\n");
            Ok(Some(Laid { kind, id, words }))
        }
        (None, Some(Side { kind, id, .. })) => {
            let words =
                format!("{branch} deleted it, {CHANGE_LABEL} changed it: laid out as {CHANGE_LABEL} has it; delete it if that is right\n");
            Ok(Some(Laid { kind, id, words }))
        }
    }
}

fn merged(pair: &Pair, branch: &str, old: &[u8], ours: &[u8], theirs: &[u8]) -> Result<Vec<u8>, WorkspaceError> {
    let [mut old_input, mut our_input, mut their_input] = [MergeFileInput::new(), MergeFileInput::new(), MergeFileInput::new()];
    let mut options = MergeFileOptions::new();
    options.our_label(branch).their_label(CHANGE_LABEL).style_standard(true);
    let inputs = (old_input.content(old), our_input.content(ours), their_input.content(theirs));
    let result = git2::merge_file(inputs.0, inputs.1, inputs.2, Some(&mut options)).map_err(pair.git("merge a file"))?;
    Ok(result.content().to_vec())
}

/// Markers around one side's text where the other deleted the file.
fn one_sided(branch: &str, ours: &[u8], theirs: &[u8], their_word: &str) -> Vec<u8> {
    let mut out = format!("<<<<<<< {branch}\n").into_bytes();
    for (side, end) in [(ours, "=======\n".to_owned()), (theirs, format!(">>>>>>> {CHANGE_LABEL}{their_word}\n"))] {
        out.extend_from_slice(side);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
        out.extend_from_slice(end.as_bytes());
    }
    out
}

/// The marked places of a text, with the number of the line at which each begins.
fn hunks(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("<<<<<<< ") {
            inside = true;
            let _ = writeln!(out, "line {}:", number + 1);
        }
        if inside {
            let _ = writeln!(out, "{line}");
        }
        if line.starts_with(">>>>>>> ") {
            inside = false;
        }
    }
    out
}

/// A path that nothing in the index stands in the way of: a file where the other side has a folder goes beside it.
fn place(index: &Index, path: Vec<u8>) -> Vec<u8> {
    let below = index.find_prefix([path.as_slice(), b"/"].concat()).is_ok();
    let parents = Path::new(OsStr::from_bytes(&path)).ancestors().skip(1);
    let above = parents.filter(|parent| !parent.as_os_str().is_empty()).any(|parent| index.get_path(parent, 0).is_some());
    if !below && !above {
        return path;
    }
    let mut free = path;
    if above {
        free.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
    }
    free.extend_from_slice(b"~conflict");
    while index.get_path(Path::new(OsStr::from_bytes(&free)), 0).is_some() {
        free.push(b'~');
    }
    free
}

fn tell(hunks: &mut String, path: &str, words: &str) {
    let room = HUNKS_BYTES_MAX.saturating_sub(hunks.len());
    let mut told = format!("{path}\n{words}");
    let limit = room.min(HUNKS_PER_PATH_BYTES_MAX);
    if told.len() > limit {
        let end = (0..=limit).rev().find(|end| told.is_char_boundary(*end)).unwrap_or(0);
        told.truncate(end);
        if end > 0 {
            told.push_str("\n…\n");
        }
    }
    hunks.push_str(&told);
}

fn entry(path: Vec<u8>, kind: Kind, id: Oid) -> IndexEntry {
    let time = IndexTime::new(0, 0);
    let (ctime, mtime) = (time, time);
    IndexEntry { ctime, mtime, dev: 0, ino: 0, mode: kind.mode(), uid: 0, gid: 0, file_size: 0, id, flags: 0, flags_extended: 0, path }
}
