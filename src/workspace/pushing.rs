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
        Some(Note { mark, group: Some(group) }) if !members(group, &mark)?.is_empty() => Push::Lives,
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
    for pid in members(group, &mark)? {
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => continue,
            Err(e) => return Err(e.into()),
        };
        // The handle is fixed to one process now; if the mark is still there, that is the one.
        if is_marked(pid, &mark)? {
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

/// Processes of a group that carry the mark.
fn members(group: i32, mark: &str) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if system::group_of(pid)? == Some(group)
            && let Some(pid) = Pid::from_raw(pid)
            && is_marked(pid, mark)?
        {
            found.push(pid);
        }
    }
    Ok(found)
}

fn is_marked(pid: Pid, mark: &str) -> io::Result<bool> {
    let environment = match fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) {
        // It has ended while we looked.
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        other => other?,
    };
    let wanted = format!("{MARK}={mark}");
    Ok(environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
}
