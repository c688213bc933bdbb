//! From a commit to files: raw blobs, no filters, no line-end conversion; modes 644, 755 and links; submodules as empty folders.
//!
//! The names in a commit are somebody else's. Each is checked, and each file is made anew in a folder that was made here, so nothing
//! is ever followed or overwritten. All files get one time just before the layout began: `git status` then trusts its index, and any
//! later change has another time.

use super::error::WorkspaceError;
use super::files::Owner;
use super::names::refusal;
use super::repository::Pair;
use crate::api::names::CommitId;
use git2::{ObjectType, Odb, Oid, Repository};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;

/// Folders within folders; no sound project comes near.
const DEPTH_MAX: usize = 256;

/// One file that was laid out, as an index needs it.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// From the root of the tree.
    pub(super) path: Vec<u8>,
    /// The blob (or the submodule's commit).
    pub(super) id: Oid,
    /// Git's mode.
    pub(super) mode: u32,
    /// Size in bytes.
    pub(super) size: u32,
}

/// Kinds of entries in a tree object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A plain file.
    File,
    /// A file that can be executed.
    Executable,
    /// A symbolic link.
    Link,
    /// A folder.
    Folder,
    /// A submodule.
    Submodule,
}

impl Kind {
    /// What a mode in a tree object means; old histories have odd permission bits.
    pub(super) fn of_mode(mode: i32) -> Option<Self> {
        match mode & 0o170_000 {
            0o040_000 => Some(Self::Folder),
            0o100_000 if mode & 0o100 != 0 => Some(Self::Executable),
            0o100_000 => Some(Self::File),
            0o120_000 => Some(Self::Link),
            0o160_000 => Some(Self::Submodule),
            _ => None,
        }
    }

    /// The mode that git writes today.
    pub(super) fn mode(self) -> u32 {
        match self {
            Self::File => 0o100_644,
            Self::Executable => 0o100_755,
            Self::Link => 0o120_000,
            Self::Folder => 0o040_000,
            Self::Submodule => 0o160_000,
        }
    }
}

/// What a layout needs to know.
pub(super) struct Layout<'a> {
    /// Which repositories.
    pub(super) pair: &'a Pair,
    /// The open work repository.
    pub(super) opened: &'a Repository,
    /// Whose files they are.
    pub(super) owner: Owner,
    /// Our umask, which takes bits off what we ask for.
    pub(super) umask: u32,
    /// Time of all files, in seconds.
    pub(super) time: i64,
}

impl Layout<'_> {
    /// Lays `commit` out in `root`, which is empty and ours alone.
    pub(super) fn commit(&self, commit: &CommitId, root: &OwnedFd) -> Result<Vec<Placed>, WorkspaceError> {
        let tree = self.pair.commit(self.opened, commit)?.tree_id();
        let odb = self.opened.odb().map_err(self.pair.git("open the objects"))?;
        let mut placed = Vec::new();
        self.folder(commit, &odb, tree, root, &mut Vec::new(), 0, &mut placed)?;
        Ok(placed)
    }

    #[expect(clippy::too_many_arguments, reason = "one recursion, whose state is clearer in the open")]
    fn folder(
        &self,
        commit: &CommitId,
        odb: &Odb<'_>,
        tree: Oid,
        folder: &OwnedFd,
        path: &mut Vec<u8>,
        depth: usize,
        placed: &mut Vec<Placed>,
    ) -> Result<(), WorkspaceError> {
        let tree = self.opened.find_tree(tree).map_err(self.pair.git("read a tree"))?;
        for entry in &tree {
            let name = entry.name_bytes();
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let bad = |why: &str| self.bad(commit, path, why);
            if let Some(why) = refusal(name) {
                return Err(bad(why));
            }
            let kind = Kind::of_mode(entry.filemode_raw()).ok_or_else(|| bad("its mode is unknown"))?;
            let c_name = CString::new(name).map_err(|_| bad("its name has a NUL"))?;
            let failed = |error: Errno| bad(&format!("it could not be made: {error}"));
            match kind {
                Kind::Folder if depth >= DEPTH_MAX => return Err(bad("it is too deep")),
                Kind::Folder => {
                    let inner = self.make_folder(folder, &c_name).map_err(failed)?;
                    self.folder(commit, odb, entry.id(), &inner, path, depth + 1, placed)?;
                }
                Kind::Submodule => {
                    self.make_folder(folder, &c_name).map_err(failed)?;
                    placed.push(Placed { path: path.clone(), id: entry.id(), mode: kind.mode(), size: 0 });
                }
                Kind::File | Kind::Executable | Kind::Link => {
                    let blob = odb.read(entry.id()).map_err(self.pair.git("read a file"))?;
                    if blob.kind() != ObjectType::Blob {
                        return Err(bad("it is no file"));
                    }
                    self.make_file(folder, &c_name, kind, blob.data()).map_err(failed)?;
                    let size = u32::try_from(blob.len()).unwrap_or(u32::MAX);
                    placed.push(Placed { path: path.clone(), id: entry.id(), mode: kind.mode(), size });
                }
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn bad(&self, commit: &CommitId, path: &[u8], why: &str) -> WorkspaceError {
        let why = format!("{:?}: {why}", String::from_utf8_lossy(path));
        WorkspaceError::BadTree { repository: self.pair.repository.clone(), commit: commit.clone(), why }
    }

    fn make_folder(&self, folder: &OwnedFd, name: &CString) -> Result<OwnedFd, Errno> {
        rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        self.finish(&made, 0o755)?;
        Ok(made)
    }

    fn make_file(&self, folder: &OwnedFd, name: &CString, kind: Kind, bytes: &[u8]) -> Result<(), Errno> {
        if kind == Kind::Link {
            let target = CString::new(bytes).map_err(|_| Errno::INVAL)?;
            rustix::fs::symlinkat(&target, folder, name)?;
            rustix::fs::utimensat(folder, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?;
            return self.owner.take_link(folder, name);
        }
        let mode = if kind == Kind::Executable { 0o755 } else { 0o644 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(mode))?);
        file.write_all(bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.finish(&file, mode)?;
        rustix::fs::futimens(&file, &self.times())
    }

    fn finish(&self, file: impl rustix::fd::AsFd, mode: u32) -> Result<(), Errno> {
        if mode & self.umask != 0 {
            rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
        }
        self.owner.take(file)
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.time, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}
