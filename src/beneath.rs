//! Files and folders that others may have arranged to hurt us: opened beneath a folder, never through a link, removed without recursion.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::path::Path;

/// Most passes over one folder that is being removed; each takes at least one level off the deepest chain of folders in it.
const PASSES_MAX: usize = 1_000_000;
/// Most tries to open a name while the kernel sees renames elsewhere.
const TRIES_MAX: usize = 100;

/// Opens a folder by a path of ours.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens one name beneath an open folder: no link is followed, no other file system is entered.
pub(crate) fn open_beneath(folder: impl AsFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
    // A rename elsewhere on the system can make the kernel ask for another try.
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(folder.as_fd(), name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Removes `name` in `folder`, whatever it is and whatever is in it; nothing there is fine too.
///
/// A hostile tree can be deeper than any path or stack: folders within are moved up beside their parent and emptied one by one, so
/// that no more than three are ever open. Links are unlinked, never followed; a mount in the tree makes it fail, not spread.
pub(crate) fn remove_all(folder: &Path, name: &str) -> std::io::Result<()> {
    let parent = match open_folder(folder) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let name = std::ffi::CString::new(name)?;
    match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    for pass in 0..PASSES_MAX {
        match rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
        let root = open_writable(&parent, &name)?;
        empty(&root, &root, pass)?;
    }
    Err(std::io::Error::other("it was filled again and again while it was removed"))
}

/// Empties a folder; folders in it that are not empty are moved to `root` and so come in a later pass.
fn empty(root: &OwnedFd, folder: &OwnedFd, pass: usize) -> Result<(), Errno> {
    let mut moved = 0_usize;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let result = match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match result {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {
                let inner = open_writable(folder, name)?;
                flatten(root, &inner, pass, &mut moved)?;
                match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Unlinks what is no folder, and moves what is one up to `root`.
fn flatten(root: &OwnedFd, folder: &OwnedFd, pass: usize, moved: &mut usize) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(_) => lift(root, folder, name, pass, moved)?,
            },
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Moves a folder to the root under a name that is free.
fn lift(root: &OwnedFd, folder: &OwnedFd, name: &CStr, pass: usize, moved: &mut usize) -> Result<(), Errno> {
    // Moving a folder rewrites its `..`, which needs write permission in it when we are not root.
    drop(open_writable(folder, name)?);
    loop {
        *moved += 1;
        let free = format!(".lifted-{pass}-{moved}");
        match rustix::fs::renameat_with(folder, name, root, free, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
    }
}

/// Opens a folder beneath another one, and sees to it that its owner may change it.
fn open_writable(folder: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match open_beneath(folder, name, flags) {
        Ok(inner) => {
            let seen = rustix::fs::fstat(&inner)?;
            if FileType::from_raw_mode(seen.st_mode) == FileType::Directory && seen.st_mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&inner, Mode::RWXU)?;
            }
            Ok(inner)
        }
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(folder, name, Mode::RWXU, AtFlags::empty())?;
            open_beneath(folder, name, flags)
        }
        Err(error) => Err(error),
    }
}
