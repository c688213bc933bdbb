//! Files and folders of ours, and who owns what is laid out. What others filled is opened and removed by `crate::beneath`.

use rustix::fd::AsFd;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::ffi::CStr;
use std::path::Path;

/// Who owns what is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    /// User.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
    /// False when we are that user ourselves.
    pub(super) change: bool,
}

impl Owner {
    /// Gives an open file or folder to the owner.
    pub(super) fn take(self, file: impl AsFd) -> Result<(), Errno> {
        if !self.change {
            return Ok(());
        }
        rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(self.uid)), Some(rustix::fs::Gid::from_raw(self.gid)))
    }

    /// Gives a link itself to the owner.
    pub(super) fn take_link(self, folder: impl AsFd, name: &CStr) -> Result<(), Errno> {
        if !self.change {
            return Ok(());
        }
        let (uid, gid) = (rustix::fs::Uid::from_raw(self.uid), rustix::fs::Gid::from_raw(self.gid));
        rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Makes a folder of ours with all its parents, mode 0700.
pub(super) fn make_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Folders directly in one of ours; none when it is absent.
pub(super) fn names_in(path: &Path) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        // A stray file in the place of a folder holds nothing.
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}
