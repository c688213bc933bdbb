//! Looking at processes and ending them, never by a number alone: a pid is only ours while its start time and boot are.

use crate::inside::system;
use crate::inside::wire::Identity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// What a look at an identity says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Alive,
    /// It is gone. Of a PID 1 that means that its whole namespace is: the kernel ends and reaps everything in it first.
    Gone,
    /// The host was booted since.
    Rebooted,
}

/// Looks whether this very process lives.
/// # Errors
/// Could not look.
pub fn look(identity: &Identity) -> io::Result<Life> {
    if system::boot_id()? != identity.boot_id {
        return Ok(Life::Rebooted);
    }
    // In another container's numbers the same pid is somebody else, and a look would find that "it" is gone.
    if identity.seen_from != 0 && system::namespace_of("self", "pid")? != identity.seen_from {
        let pid = identity.pid;
        return Err(io::Error::other(format!("pid {pid} was recorded in another pid namespace and cannot be looked at from here")));
    }
    Ok(match system::state_of(identity.pid)? {
        Some((state, start)) if start == identity.start_ticks && !matches!(state, 'Z' | 'X') => Life::Alive,
        _ => Life::Gone,
    })
}

/// A handle on this very process; `None` when it is gone.
/// # Errors
/// Could not look.
pub fn handle(identity: &Identity) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(None) };
    let handle = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // The handle is fixed to one process now; if the identity still fits, that is the one.
    Ok((look(identity)? == Life::Alive).then_some(handle))
}

/// SIGKILLs the process behind a handle.
/// # Errors
/// No permission. That it is gone already is no error.
pub fn kill(handle: &OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(handle, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Waits until the process behind a handle is gone; false when the time was over first.
/// # Errors
/// Could not look.
pub fn wait_gone(handle: &OwnedFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&wait)) {
            Ok(0) if left > Duration::ZERO => {}
            Ok(found) => return Ok(found > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Holds a pid namespace, so that its inode is not used again while we look for it; `None` when it is gone already, or not ours to hold.
/// # Errors
/// Could not look.
pub fn hold_namespace(identity: &Identity) -> io::Result<Option<File>> {
    match File::open(format!("/proc/{}/ns/pid", identity.pid)) {
        // The pid may be another process by now.
        Ok(file) => Ok((file.metadata()?.ino() == identity.pid_namespace).then_some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        // An ordinary user may not look into its own init, which is not dumpable. That PID 1 is gone is proof enough: the kernel lets it go
        // last.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(e) => Err(e),
    }
}

/// Pid namespaces in which something lives, by looking at every process of the host; our own is not among them.
/// # Errors
/// Could not look.
pub fn namespaces() -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    let own = system::namespace_of("self", "pid")?;
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        // A process that ends while we look is in none any more.
        found.extend(system::namespace_of(pid, "pid").ok().filter(|inode| *inode != own && !is_dead(pid)));
    }
    Ok(found)
}

/// Whether a process has ended, although nobody has reaped it yet: it still has a namespace then.
fn is_dead(pid: &str) -> bool {
    !pid.parse().is_ok_and(|pid| system::is_running(pid).unwrap_or(false))
}

/// Living processes in a pid namespace, by looking at every process of the host. The namespace must be held.
/// # Errors
/// Could not look.
pub fn members(pid_namespace: u64) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ends while we look is none of it any more.
        let name = pid.to_string();
        if system::namespace_of(&name, "pid").is_ok_and(|inode| inode == pid_namespace) && !is_dead(&name) {
            found.push(pid);
        }
    }
    Ok(found)
}
