//! Overlay mounts: an agent's changes over a checkout that it shares with others. Mounted in the controller's own mount namespace.
//!
//! `redirect_dir=on` lets tracked folders be renamed, `index=off` and `metacopy=off` let the same upper folder be mounted again after a
//! restart. Whether the host and the file system of the state folder can do this is tried, not assumed.

use super::files;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Longest option text that `mount(2)` takes: one page with its final NUL.
const OPTIONS_BYTES_MAX: usize = 4095;

/// The folders of one overlay.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layers<'a> {
    /// Shared, never written.
    pub(super) lower: &'a Path,
    /// What the agent changes.
    pub(super) upper: &'a Path,
    /// The kernel's own.
    pub(super) work: &'a Path,
    /// Where it is seen.
    pub(super) target: &'a Path,
}

/// Mounts an overlay.
pub(super) fn mount(layers: Layers<'_>) -> std::io::Result<()> {
    let mut options = b"redirect_dir=on,index=off,metacopy=off,lowerdir=".to_vec();
    escape(layers.lower, &mut options);
    options.extend_from_slice(b",upperdir=");
    escape(layers.upper, &mut options);
    options.extend_from_slice(b",workdir=");
    escape(layers.work, &mut options);
    if options.len() > OPTIONS_BYTES_MAX {
        return Err(std::io::Error::other("the path of the state folder is too long for an overlay mount"));
    }
    let options = CString::new(options)?;
    rustix::mount::mount("mosaic", layers.target, "overlay", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
    Ok(())
}

/// Takes the mount away; nothing mounted is fine too. Sandboxes that still hold it keep only their own view.
pub(super) fn unmount(target: &Path) -> std::io::Result<()> {
    while is_mounted(target)? {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether something is mounted exactly there: it is on another device than the folder that it is in.
pub(super) fn is_mounted(target: &Path) -> std::io::Result<bool> {
    let seen = match std::fs::symlink_metadata(target) {
        Ok(seen) => seen,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let parent = target.parent().ok_or_else(|| std::io::Error::other("a tree has a folder"))?;
    Ok(seen.dev() != std::fs::symlink_metadata(parent)?.dev())
}

/// Tries all that agents will need, in a folder of its own beneath the state folder.
pub(super) fn probe(state: &Path) -> std::io::Result<()> {
    let name = ".overlay-probe";
    let folder = state.join(name);
    unmount(&folder.join("tree"))?;
    crate::beneath::remove_all(state, name)?;
    let result = attempt(&folder);
    unmount(&folder.join("tree"))?;
    crate::beneath::remove_all(state, name)?;
    result
}

fn attempt(folder: &Path) -> std::io::Result<()> {
    let [lower, upper, work, target] = ["lower", "upper", "work", "tree"].map(|name| folder.join(name));
    for path in [&lower.join("folder"), &upper, &work, &target] {
        files::make_folder(path)?;
    }
    std::fs::write(lower.join("folder/file"), "before")?;
    mount(Layers { lower: &lower, upper: &upper, work: &work, target: &target })?;
    // A rename of a folder from below fails without redirect_dir; a changed file must not show below.
    std::fs::rename(target.join("folder"), target.join("renamed"))?;
    std::fs::write(target.join("renamed/file"), "after")?;
    if std::fs::read(lower.join("folder/file"))? != b"before" || std::fs::read(target.join("renamed/file"))? != b"after" {
        return Err(std::io::Error::other("an overlay mount does not keep its layers apart"));
    }
    Ok(())
}

/// Commas and colons part options and folders; the kernel takes them after a backslash.
fn escape(path: &Path, out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}
