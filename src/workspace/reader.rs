//! From a hostile tree to git objects: every entry is opened beneath its folder without following links, looked at, and read once.
//!
//! Files, links and folders become blobs and trees in the work repository; anything else is refused by name. The top-level `.git` is
//! never opened. Submodules of the base stay as they are. Memory holds one file and the listings of the folders that lead to it.
//! `lenient` leaves out what is refused instead of refusing the whole: for rescues, where much is better than nothing.

use super::error::{WorkspaceError, io};
use super::ignored::Ignored;
use super::layout::Kind;
use super::names;
use super::repository::{Pair, Writer};
use super::types::SnapshotLimits;
use crate::beneath::open_beneath;
use git2::{ObjectType, Oid, Repository, Tree};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;

/// Refusals that are told; the rest is only counted.
const REFUSALS_TOLD_MAX: usize = 50;
/// Entries looked at, for each file that a tree may have: ignored files and empty folders cost time too.
const ENTRIES_PER_FILE_MAX: usize = 4;

/// Reads one tree.
pub(super) struct Reader<'a, 'r> {
    pair: &'a Pair,
    opened: &'r Repository,
    writer: &'a mut Writer<'r>,
    limits: &'a SnapshotLimits,
    lenient: bool,
    ignored: Ignored,
    files: usize,
    entries: usize,
    bytes: u64,
    refused: Vec<String>,
    refused_more: usize,
    full: bool,
}

/// Why one entry is not taken, or why the reading itself failed.
enum Trouble {
    Refused(String),
    Failed(WorkspaceError),
}

impl From<WorkspaceError> for Trouble {
    fn from(error: WorkspaceError) -> Self {
        Self::Failed(error)
    }
}

struct Found<'t> {
    name: CString,
    stat: Stat,
    base: Option<(Kind, Oid)>,
    path: &'t str,
}

impl<'a, 'r> Reader<'a, 'r> {
    /// A reader that writes what it reads through `writer`.
    pub(super) fn new(
        pair: &'a Pair,
        opened: &'r Repository,
        writer: &'a mut Writer<'r>,
        limits: &'a SnapshotLimits,
        lenient: bool,
    ) -> Self {
        let (ignored, refused) = (Ignored::default(), Vec::new());
        Self { pair, opened, writer, limits, lenient, ignored, files: 0, entries: 0, bytes: 0, refused, refused_more: 0, full: false }
    }

    /// Reads everything beneath `root`; the id of the tree, and what was refused, one line each.
    pub(super) fn read(mut self, root: &OwnedFd, base: &Tree<'_>) -> Result<(Oid, Vec<String>), WorkspaceError> {
        let tree = match self.folder(root, Some(base), "", 0, false)? {
            Some(tree) => tree,
            None => self.writer.put(ObjectType::Tree, &[], None)?,
        };
        if self.refused_more > 0 {
            self.refused.push(format!("and {} more", self.refused_more));
        }
        Ok((tree, self.refused))
    }

    /// Reads one folder; `None`: there is nothing in it that git would keep. `tracked_only`: it is ignored, so only what the base has counts.
    fn folder(
        &mut self,
        folder: &OwnedFd,
        base: Option<&Tree<'_>>,
        path: &str,
        depth: usize,
        tracked_only: bool,
    ) -> Result<Option<Oid>, WorkspaceError> {
        self.ignored.enter(path.len(), self.ignore_file(base)?.as_deref());
        let mut kept: Vec<(Vec<u8>, Kind, Oid)> = Vec::new();
        for name in self.list(folder, path)? {
            let bytes = name.as_bytes();
            if depth == 0 && bytes == b".git" {
                continue;
            }
            let found = base.and_then(|base| base.get_name_bytes(bytes));
            let found = found.and_then(|entry| Some((Kind::of_mode(entry.filemode_raw())?, entry.id())));
            match self.entry(folder, &name, found, path, depth, tracked_only) {
                Ok(Some((kind, id))) => kept.push((bytes.to_vec(), kind, id)),
                Ok(None) => {}
                Err(Trouble::Refused(why)) => {
                    if let Some(tracked) = found.filter(|_| self.lenient) {
                        kept.push((bytes.to_vec(), tracked.0, tracked.1));
                    }
                    self.refuse(format!("{}: {why}", shown(path, bytes)));
                }
                Err(Trouble::Failed(error)) => return Err(error),
            }
            if self.full {
                break;
            }
        }
        self.ignored.leave();
        self.keep_submodules(base, &mut kept)?;
        self.write_tree(kept, base.map(Tree::id))
    }

    fn ignore_file(&self, base: Option<&Tree<'_>>) -> Result<Option<Vec<u8>>, WorkspaceError> {
        let entry = base.and_then(|base| base.get_name(".gitignore"));
        let Some(entry) = entry.filter(|entry| matches!(Kind::of_mode(entry.filemode_raw()), Some(Kind::File | Kind::Executable))) else {
            return Ok(None);
        };
        let blob = self.opened.find_blob(entry.id()).map_err(self.pair.git("read an ignore file"))?;
        Ok(Some(blob.content().to_vec()))
    }

    /// Names in a folder, in one order whatever the file system's is.
    fn list(&mut self, folder: &OwnedFd, path: &str) -> Result<Vec<CString>, WorkspaceError> {
        let mut names = Vec::new();
        let entries_max = self.limits.files_max.saturating_mul(ENTRIES_PER_FILE_MAX);
        for entry in Dir::read_from(folder).map_err(io("read", path))? {
            let entry = entry.map_err(io("read", path))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > entries_max {
                self.stop(format!("the tree has more than {entries_max} entries"));
                break;
            }
            names.push(entry.file_name().to_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn entry(
        &mut self,
        folder: &OwnedFd,
        name: &CString,
        base: Option<(Kind, Oid)>,
        parent: &str,
        depth: usize,
        tracked_only: bool,
    ) -> Result<Option<(Kind, Oid)>, Trouble> {
        if tracked_only && base.is_none() {
            return Ok(None);
        }
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| refused_io(&error))?;
        let type_ = FileType::from_raw_mode(stat.st_mode);
        // What the base has already is not the agent's doing.
        if base.is_none() && !names::is_readable(name.as_bytes()) {
            return Err(Trouble::Refused("the name is not readable text; rename or remove it".to_owned()));
        }
        let path = format!("{parent}{}", String::from_utf8_lossy(name.as_bytes()));
        let is_folder = type_ == FileType::Directory;
        let ignored = base.is_none() && self.ignored.matches(&path, is_folder);
        if ignored {
            return Ok(None);
        }
        if let Some(why) = names::refusal(name.as_bytes()) {
            return Err(Trouble::Refused(why.to_owned()));
        }
        if path.len() > self.limits.path_bytes_max {
            return Err(Trouble::Refused(format!("the path is longer than {} bytes", self.limits.path_bytes_max)));
        }
        let found = Found { name: name.clone(), stat, base, path: &path };
        if let Some((Kind::Submodule, id)) = base {
            return self.submodule(folder, &found, id).map(Some);
        }
        match type_ {
            FileType::Directory => self.inner_folder(folder, &found, depth, tracked_only),
            FileType::RegularFile => self.file(folder, &found).map(Some),
            FileType::Symlink => self.link(folder, &found).map(Some),
            FileType::Fifo => Err(Trouble::Refused("a named pipe cannot be part of a commit; remove it".to_owned())),
            FileType::Socket => Err(Trouble::Refused("a socket cannot be part of a commit; remove it".to_owned())),
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                Err(Trouble::Refused("a device cannot be part of a commit; remove it".to_owned()))
            }
        }
    }

    fn inner_folder(
        &mut self,
        folder: &OwnedFd,
        found: &Found<'_>,
        depth: usize,
        tracked_only: bool,
    ) -> Result<Option<(Kind, Oid)>, Trouble> {
        if depth >= self.limits.depth_max {
            return Err(Trouble::Refused(format!("folders are nested deeper than {}", self.limits.depth_max)));
        }
        let base = match found.base {
            Some((Kind::Folder, id)) => Some(self.opened.find_tree(id).map_err(self.pair.git("read a tree"))?),
            _ => None,
        };
        // An ignored folder with tracked files in it: git ignores everything else there.
        let ignored = tracked_only || self.ignored.matches(found.path, true);
        let inner = open_beneath(folder, &found.name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|error| refused_io(&error))?;
        let id = self.folder(&inner, base.as_ref(), &format!("{}/", found.path), depth + 1, ignored)?;
        Ok(id.map(|id| (Kind::Folder, id)))
    }

    fn file(&mut self, folder: &OwnedFd, found: &Found<'_>) -> Result<(Kind, Oid), Trouble> {
        let size = u64::try_from(found.stat.st_size).unwrap_or(u64::MAX);
        self.count(size)?;
        let opened = open_beneath(folder, &found.name, OFlags::RDONLY).map_err(|error| refused_io(&error))?;
        let seen = rustix::fs::fstat(&opened).map_err(|error| refused_io(&error))?;
        if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile || seen.st_size != found.stat.st_size {
            return Err(Trouble::Refused("it changed while it was read".to_owned()));
        }
        let mut bytes = Vec::new();
        let read = File::from(opened).take(size + 1).read_to_end(&mut bytes).map_err(|error| Trouble::Refused(error.to_string()))?;
        if read as u64 != size {
            return Err(Trouble::Refused("it changed while it was read".to_owned()));
        }
        let kind = if seen.st_mode & 0o100 != 0 { Kind::Executable } else { Kind::File };
        let id = self.writer.put(ObjectType::Blob, &bytes, found.base.map(|(_, id)| id))?;
        Ok((kind, id))
    }

    fn link(&mut self, folder: &OwnedFd, found: &Found<'_>) -> Result<(Kind, Oid), Trouble> {
        if found.name.as_bytes().eq_ignore_ascii_case(b".gitmodules") {
            return Err(Trouble::Refused(".gitmodules must be a plain file".to_owned()));
        }
        let target = rustix::fs::readlinkat(folder, &found.name, Vec::new()).map_err(|error| refused_io(&error))?;
        self.count(target.as_bytes().len() as u64)?;
        let id = self.writer.put(ObjectType::Blob, target.as_bytes(), found.base.map(|(_, id)| id))?;
        Ok((Kind::Link, id))
    }

    /// A submodule of the base stays what it was; files in it belong to another repository.
    fn submodule(&mut self, folder: &OwnedFd, found: &Found<'_>, id: Oid) -> Result<(Kind, Oid), Trouble> {
        let inside = || Trouble::Refused("it is a submodule: files there cannot be part of the commit; leave it empty".to_owned());
        let inner = open_beneath(folder, &found.name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|_| inside())?;
        if self.list(&inner, found.path)?.is_empty() { Ok((Kind::Submodule, id)) } else { Err(inside()) }
    }

    fn count(&mut self, size: u64) -> Result<(), Trouble> {
        if size > self.limits.file_bytes_max {
            return Err(Trouble::Refused(format!("it has {size} bytes, and {} is the most for one file", self.limits.file_bytes_max)));
        }
        let advice = "add what is not meant to be committed to .gitignore of the base branch, or remove it";
        if self.files >= self.limits.files_max {
            self.stop(format!("the tree has more than {} files; {advice}", self.limits.files_max));
        } else if self.bytes + size > self.limits.bytes_max {
            self.stop(format!("the tree has more than {} bytes; {advice}", self.limits.bytes_max));
        }
        if self.full {
            return Err(Trouble::Refused("beyond the limits of the tree".to_owned()));
        }
        self.files += 1;
        self.bytes += size;
        Ok(())
    }

    fn stop(&mut self, why: String) {
        if !self.full {
            self.refuse(why);
        }
        self.full = true;
    }

    fn refuse(&mut self, line: String) {
        if self.refused.len() < REFUSALS_TOLD_MAX {
            self.refused.push(line);
        } else {
            self.refused_more += 1;
        }
    }

    /// Submodules whose folder is gone (an empty folder is nothing to a build tool) stay too.
    fn keep_submodules(&mut self, base: Option<&Tree<'_>>, kept: &mut Vec<(Vec<u8>, Kind, Oid)>) -> Result<(), WorkspaceError> {
        let Some(base) = base else { return Ok(()) };
        for entry in base {
            if kept.iter().any(|(name, _, _)| name == entry.name_bytes()) {
                continue;
            }
            match Kind::of_mode(entry.filemode_raw()) {
                // What a lenient reading did not come to is taken as it was.
                Some(kind) if self.lenient && self.full => kept.push((entry.name_bytes().to_vec(), kind, entry.id())),
                Some(Kind::Submodule) => kept.push((entry.name_bytes().to_vec(), Kind::Submodule, entry.id())),
                Some(Kind::Folder) => {
                    let inner = self.opened.find_tree(entry.id()).map_err(self.pair.git("read a tree"))?;
                    let mut left = Vec::new();
                    self.keep_submodules(Some(&inner), &mut left)?;
                    if let Some(id) = self.write_tree(left, None)? {
                        kept.push((entry.name_bytes().to_vec(), Kind::Folder, id));
                    }
                }
                Some(Kind::File | Kind::Executable | Kind::Link) | None => {}
            }
        }
        Ok(())
    }

    /// Writes a tree object; an empty one does not exist in git.
    fn write_tree(&mut self, mut kept: Vec<(Vec<u8>, Kind, Oid)>, base: Option<Oid>) -> Result<Option<Oid>, WorkspaceError> {
        if kept.is_empty() {
            return Ok(None);
        }
        // Git orders names as if folders ended with a slash.
        let order = |(name, kind, _): &(Vec<u8>, Kind, Oid)| {
            let mut key = name.clone();
            if *kind == Kind::Folder {
                key.push(b'/');
            }
            key
        };
        kept.sort_by_cached_key(order);
        let mut bytes = Vec::new();
        for (name, kind, id) in kept {
            bytes.extend_from_slice(format!("{:o} ", kind.mode()).as_bytes());
            bytes.extend_from_slice(&name);
            bytes.push(0);
            bytes.extend_from_slice(id.as_bytes());
        }
        self.writer.put(ObjectType::Tree, &bytes, base).map(Some)
    }
}

fn refused_io(error: &Errno) -> Trouble {
    Trouble::Refused(format!("it could not be read: {error}"))
}

/// A path for people, even if its last name is not readable.
fn shown(parent: &str, name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{parent}{name}")
}
