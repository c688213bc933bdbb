//! Mounting into a container that was started before it was known what for: tree, HOME and base objects of the agent that claims it.
//!
//! The controller copies each mount (`open_tree`), closes it off, and moves the copy into the container's mount namespace, over a place that
//! the engine made for it. Only a thread of its own enters that namespace, and nothing but our init lives in there then. What can be seen at
//! each place afterwards is compared with what was copied. So no mount of the host is shared with a container, and an agent sees what it
//! would see in one that was made for it; set-user-id programs and devices in the tree, which it could not use there either, are shut off
//! as well.
//!
//! It needs root on the engine's host, Linux 5.12, and the container's process in sight.

use crate::inside::system;
use crate::inside::wire::Identity;
use crate::sandbox::kill::{self, Life};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// What is mounted where.
pub(super) struct Graft<'a> {
    /// A folder here, by its real path.
    pub(super) source: &'a Path,
    /// The place in the container.
    pub(super) target: &'static str,
    /// Whether it is only read there.
    pub(super) read_only: bool,
}

/// A copy of a mount that is nowhere yet.
struct Copy {
    mount: OwnedFd,
    seen: Stat,
    target: &'static str,
}

/// Whether this program can copy mounts at all.
/// # Errors
/// In words: what it lacks.
pub(super) fn check(folder: &Path) -> Result<(), String> {
    let copied = copy(&Graft { source: folder, target: "/", read_only: true });
    copied.map(drop).map_err(|e| format!("mounts cannot be copied here ({e}): it needs root on the engine's host and Linux 5.12"))
}

/// Mounts everything into the container of an init that waits.
/// # Errors
/// Something is not as it should be: the container must not be used.
pub(super) fn graft(init: &Identity, grafts: &[Graft<'_>]) -> io::Result<()> {
    let copies = grafts.iter().map(copy).collect::<io::Result<Vec<Copy>>>()?;
    let namespace = File::open(format!("/proc/{}/ns/mnt", init.pid))?;
    // It lived after its namespace was opened, so the namespace is that of this very process.
    if kill::look(init)? != Life::Alive {
        return Err(io::Error::new(io::ErrorKind::NotFound, "its init is gone"));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mosaic-graft".to_owned()).spawn_scoped(scope, || enter(&namespace, &copies))?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts broke")))
    })
}

fn copy(graft: &Graft<'_>) -> io::Result<Copy> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, graft.source, flags)?;
    let read_only = if graft.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    system::close_off_mount(mount.as_fd(), libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only)?;
    Ok(Copy { seen: rustix::fs::fstat(&mount)?, mount, target: graft.target })
}

/// Enters the namespace for the rest of this thread's life. Nothing is read or executed there.
fn enter(namespace: &File, copies: &[Copy]) -> io::Result<()> {
    // SAFETY: only the working directory and root of this thread are parted from the others'; no descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    for copy in copies {
        let place = open_place(copy.target)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&copy.mount, "", &place, "", flags)?;
        let seen = rustix::fs::fstat(open_place(copy.target)?)?;
        if (seen.st_dev, seen.st_ino) != (copy.seen.st_dev, copy.seen.st_ino) {
            return Err(io::Error::other(format!("something else is seen at {}", copy.target)));
        }
    }
    Ok(())
}

/// Through no link: what the image has there must not lead elsewhere.
fn open_place(target: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(CWD, target, flags, Mode::empty(), resolve)?)
}
