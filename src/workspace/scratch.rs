//! The agent's own `.git`: to use as it likes for status, diff and commits. The controller writes it once and never reads it.
//!
//! It borrows the base repository's objects, which the sandbox mounts read-only, so that it costs nothing and `git status` is clean and
//! quick from the start. Commits that are not in the base (a gate's head) come along as a small pack.

use super::error::{WorkspaceError, io};
use super::files::Owner;
use super::layout::{Kind, Placed};
use super::repository::{Pair, oid};
use crate::api::names::{Branch, CommitId};
use git2::{Index, IndexEntry, IndexTime, Oid, Repository};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

/// Where the base repository's objects are inside a sandbox.
const BASE_OBJECTS_INSIDE: &str = "/mosaic/base/objects\n";
/// Most commits that a gate's head may have beyond the base; there are at most a few per round.
const COMMITS_MAX: usize = 1000;

/// Whose `.git` it will be.
pub(super) struct Scratch<'a> {
    /// Which repositories.
    pub(super) pair: &'a Pair,
    /// The open work repository.
    pub(super) opened: &'a Repository,
    /// Whose files they are.
    pub(super) owner: Owner,
    /// Name and address for the agent's own commits.
    pub(super) author: (&'a str, &'a str),
    /// What HEAD is.
    pub(super) head: &'a CommitId,
    /// What was laid out.
    pub(super) shown: &'a CommitId,
    /// Time of all files, in seconds.
    pub(super) time: i64,
}

impl Scratch<'_> {
    /// Writes `.git` into `root`, with an index of `head` that trusts those of `placed` that are the same there.
    pub(super) fn write(&self, root: &Path, placed: &[Placed]) -> Result<(), WorkspaceError> {
        let folder = root.join(".git");
        for inner in ["", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags", "info"] {
            let path = folder.join(inner);
            std::fs::create_dir(&path).map_err(io("make", &path))?;
        }
        let (name, address) = self.author;
        let config = format!(
            "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\tcheckStat = minimal\n\
             \ttrustctime = false\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[user]\n\tname = {}\n\temail = {}\n",
            quoted(name),
            quoted(address)
        );
        write(&folder.join("config"), &config)?;
        write(&folder.join("HEAD"), &format!("{}\n", self.head))?;
        write(&folder.join("objects/info/alternates"), BASE_OBJECTS_INSIDE)?;
        match std::fs::read_to_string(self.pair.base.join("shallow")) {
            Ok(ends) => write(&folder.join("shallow"), &ends)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("read the end of history in", &self.pair.base)(error)),
        }
        self.pack(&folder.join("objects/pack"))?;
        self.index(&folder.join("index"), placed)?;
        give(&folder, self.owner)
    }

    /// Packs the commits of `head` that the base does not have.
    fn pack(&self, folder: &Path) -> Result<(), WorkspaceError> {
        let base = self.pair.open_base()?;
        let mut walk = self.opened.revwalk().map_err(self.pair.git("walk commits"))?;
        let (mut queue, mut seen) = (VecDeque::from([oid(self.head)]), BTreeSet::new());
        let mut missing = false;
        while let Some(id) = queue.pop_front() {
            if !seen.insert(id) || seen.len() > COMMITS_MAX {
                continue;
            }
            if base.find_commit(id).is_ok() {
                walk.hide(id).map_err(self.pair.git("walk commits"))?;
                continue;
            }
            missing = true;
            walk.push(id).map_err(self.pair.git("walk commits"))?;
            queue.extend(self.opened.find_commit(id).map_err(self.pair.git("walk commits"))?.parent_ids());
        }
        if !missing {
            return Ok(());
        }
        let mut builder = self.opened.packbuilder().map_err(self.pair.git("pack commits"))?;
        builder.insert_walk(&mut walk).map_err(self.pair.git("pack commits"))?;
        builder.write(folder, 0o444).map_err(self.pair.git("pack commits"))
    }

    fn index(&self, path: &Path, placed: &[Placed]) -> Result<(), WorkspaceError> {
        let mut index = Index::open(path).map_err(self.pair.git("write an index"))?;
        let time = i32::try_from(self.time).unwrap_or(0);
        if self.head == self.shown {
            for file in placed {
                self.add(&mut index, file.path.clone(), file.id, file.mode, (time, file.size))?;
            }
        } else {
            let laid: BTreeMap<&[u8], &Placed> = placed.iter().map(|file| (file.path.as_slice(), file)).collect();
            for (path, id, mode) in self.entries()? {
                // What was laid out otherwise gets no size and no time: git then looks at the file itself.
                let same = laid.get(path.as_slice()).filter(|file| file.id == id && file.mode == mode);
                self.add(&mut index, path, id, mode, same.map_or((0, 0), |file| (time, file.size)))?;
            }
        }
        index.write().map_err(self.pair.git("write an index"))
    }

    fn add(&self, index: &mut Index, path: Vec<u8>, id: Oid, mode: u32, (seconds, size): (i32, u32)) -> Result<(), WorkspaceError> {
        let time = IndexTime::new(seconds, 0);
        let (ctime, mtime) = (time, time);
        let entry =
            IndexEntry { ctime, mtime, dev: 0, ino: 0, mode, uid: 0, gid: 0, file_size: size, id, flags: 0, flags_extended: 0, path };
        index.add(&entry).map_err(self.pair.git("write an index"))
    }

    /// Everything in `head`: path, object, mode.
    fn entries(&self) -> Result<Vec<(Vec<u8>, Oid, u32)>, WorkspaceError> {
        let tree = self.pair.commit(self.opened, self.head)?.tree().map_err(self.pair.git("read a tree"))?;
        let mut entries = Vec::new();
        tree.walk(git2::TreeWalkMode::PreOrder, |parent, entry| {
            if let Some(kind) = Kind::of_mode(entry.filemode_raw()).filter(|kind| *kind != Kind::Folder) {
                entries.push(([parent.as_bytes(), entry.name_bytes()].concat(), entry.id(), kind.mode()));
            }
            git2::TreeWalkResult::Ok
        })
        .map_err(self.pair.git("read a tree"))?;
        Ok(entries)
    }
}

/// Puts the agent's branch into the upper folder of an overlay, before it is mounted: two small files shadow the shared ones.
pub(super) fn write_branch(root: &Path, branch: &Branch, commit: &CommitId, owner: Owner) -> Result<(), WorkspaceError> {
    let folder = root.join(".git");
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(io("make", &folder)(error)),
        _ => {}
    }
    write(&folder.join("HEAD"), &format!("ref: {}\n", branch.full_ref()))?;
    // Packed, so that a branch with slashes needs no folders.
    write(&folder.join("packed-refs"), &format!("# pack-refs with: peeled fully-peeled sorted \n{commit} {}\n", branch.full_ref()))?;
    give(&folder, owner)
}

fn write(path: &Path, text: &str) -> Result<(), WorkspaceError> {
    std::fs::write(path, text).map_err(io("write", path))
}

/// A value in git's configuration syntax.
fn quoted(value: &str) -> String {
    let plain: String = value.chars().filter(|c| !c.is_control()).collect();
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Gives a small folder of ours, that nobody else has touched yet, to its owner, and makes it readable.
fn give(folder: &Path, owner: Owner) -> Result<(), WorkspaceError> {
    use rustix::fs::Mode;
    let opened = crate::beneath::open_folder(folder).map_err(io("open", folder))?;
    rustix::fs::fchmod(&opened, Mode::from_raw_mode(0o755)).map_err(io("open up", folder))?;
    owner.take(&opened).map_err(io("give away", folder))?;
    for entry in std::fs::read_dir(folder).map_err(io("read", folder))? {
        let entry = entry.map_err(io("read", folder))?;
        let path = entry.path();
        if entry.file_type().map_err(io("read", &path))?.is_dir() {
            give(&path, owner)?;
            continue;
        }
        let file = std::fs::File::open(&path).map_err(io("open", &path))?;
        let mode = if path.extension().is_some_and(|e| e == "pack" || e == "idx") { 0o444 } else { 0o644 };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(io("open up", &path))?;
        owner.take(&file).map_err(io("give away", &path))?;
    }
    Ok(())
}
