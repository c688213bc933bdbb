//! A push under way, as the kill lane sees it: a file in the folder of the agent's tree, which stands from before the push may begin until it
//! has ended.
//!
//! Who pushes holds the file's lock, writes the mark that it gives to the processes of the push, looks whether the agent was killed, and only
//! then begins. Who kills notes the kill first and looks for the file after that. So one of the two sees the other, whatever else is stuck:
//! a push that was not ended was not begun. The mark is in the environment of `git` and of everything that it starts on this machine, the
//! remote's own side and hooks included, so that a process group whose number came back is never hit.

use crate::inside::system;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the file.
const FILE_PUSHING: &str = "pushing";
/// Name of the mark in the environment.
const MARK: &str = "MOSAIC_PUSH";
/// Length of the file, filled up with spaces: whoever reads finds one content or the other, never a mixture.
const FILE_BYTES: usize = 96;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    mark: String,
    /// The process group; `None`: it has not begun.
    group: Option<i32>,
}

/// The file while its push is under way; gone with this value.
#[derive(Debug)]
pub(super) struct Pushing {
    path: PathBuf,
    file: File,
    mark: String,
}

impl Pushing {
    /// Says that a push may begin soon.
    pub(super) fn announce(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE_PUSHING);
        // One that was left by a crash may be read at this moment: it is not written over.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        system::lock_file(file.as_fd())?;
        let this = Self { path, file, mark: uuid::Uuid::new_v4().simple().to_string() };
        this.write(None)?;
        Ok(this)
    }

    /// Gives a command the mark.
    pub(super) fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.mark);
    }

    /// Says that it has begun, as leader of a process group of its own.
    pub(super) fn began(&self, pid: u32) -> io::Result<()> {
        self.write(i32::try_from(pid).ok())
    }

    fn write(&self, group: Option<i32>) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(&Note { mark: self.mark.clone(), group })?;
        bytes.resize(FILE_BYTES, b' ');
        self.file.write_all_at(&bytes, 0)
    }
}

impl Drop for Pushing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// How far the push is that a tree's folder tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// There is none.
    None,
    /// It was announced, and nothing of it lives: it may begin, unless who announced it sees the kill.
    Announced,
    /// Something of it lives on this machine.
    Lives,
}

/// Whether a push of one tree was announced and is not over: a glance, of which nothing follows.
#[must_use]
pub fn is_noted(folder: &Path) -> bool {
    folder.join(FILE_PUSHING).exists()
}

/// Looks for the push of one tree.
/// # Errors
/// Could not look.
pub fn look(folder: &Path) -> io::Result<Push> {
    let Some((note, held)) = read(folder)? else { return Ok(Push::None) };
    Ok(match note {
        Some(Note { mark, group: Some(group) }) if members(group)?.into_iter().any(|pid| mark_of(pid, &mark) != Mark::Other) => Push::Lives,
        // Its processes have ended, and who waits for them reads what the remote has.
        Some(Note { group: Some(_), .. }) => Push::None,
        Some(Note { group: None, .. }) | None if held => Push::Announced,
        Some(Note { group: None, .. }) | None => Push::None,
    })
}

/// Sends a signal to everything of the push of one tree that lives on this machine.
/// # Errors
/// Could not look, or may not.
pub fn signal(folder: &Path, signal: Signal) -> io::Result<()> {
    let Some((Some(Note { mark, group: Some(group) }), _)) = read(folder)? else { return Ok(()) };
    for pid in members(group)? {
        if mark_of(pid, &mark) != Mark::Ours {
            continue;
        }
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => continue,
            Err(e) => return Err(e.into()),
        };
        // The handle is fixed to one process now; if the mark is still there, that is the one.
        if mark_of(pid, &mark) == Mark::Ours {
            match pidfd_send_signal(&handle, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// What the file says, and whether somebody works on it; `None`: there is no file.
fn read(folder: &Path) -> io::Result<Option<(Option<Note>, bool)>> {
    let file = match File::open(folder.join(FILE_PUSHING)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let held = system::is_locked(file.as_fd())?;
    Ok(Some((serde_json::from_reader(&file).ok(), held)))
}

/// Living processes of a group.
fn members(group: i32) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if system::group_of(pid)? == Some(group) && system::is_running(pid)? {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Whose a process of the group is, by its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Of this push.
    Ours,
    /// Of something else, or gone.
    Other,
    /// There is no environment to read: it is just executing another program, was started without one, or may not be looked at. It counts as
    /// living and is never signalled.
    Unknown,
}

fn mark_of(pid: Pid, mark: &str) -> Mark {
    let wanted = format!("{MARK}={mark}");
    match fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) {
        // It has ended while we looked.
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Mark::Other,
        Ok(environment) if environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()) => Mark::Ours,
        Ok(environment) if !environment.is_empty() => Mark::Other,
        // What ended since has none either.
        Ok(_) if !system::is_running(pid.as_raw_nonzero().get()).unwrap_or(true) => Mark::Other,
        Ok(_) | Err(_) => Mark::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Stdio;

    fn announced(folder: &Path, program: &mut Command) -> (Pushing, std::process::Child) {
        let pushing = Pushing::announce(folder).unwrap();
        let child = program.process_group(0).stdin(Stdio::null()).spawn().unwrap();
        pushing.began(child.id()).unwrap();
        (pushing, child)
    }

    /// So looks a process of a push also in the moment in which it executes another program.
    #[test]
    fn a_process_without_an_environment_counts_as_living_and_is_not_signalled() {
        let folder = tempfile::tempdir().unwrap();
        let (_pushing, mut child) = announced(folder.path(), Command::new("sleep").arg("60").env_clear());
        assert_eq!(look(folder.path()).unwrap(), Push::Lives);
        signal(folder.path(), Signal::KILL).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none(), "it may be anybody's");
        child.kill().unwrap();
        // Dead and not yet waited for is dead.
        while system::is_running(i32::try_from(child.id()).unwrap()).unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(look(folder.path()).unwrap(), Push::None);
        child.wait().unwrap();
    }

    #[test]
    fn a_group_whose_number_came_back_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (_pushing, mut child) = announced(folder.path(), Command::new("sleep").arg("60").env(MARK, "another"));
        assert_eq!(look(folder.path()).unwrap(), Push::None);
        signal(folder.path(), Signal::KILL).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
