//! Limits as they are put in force: the command enters its control groups and binds its own resources just before it executes.
//!
//! The controller makes the groups (`sandbox::process::cgroup`), the launcher opens their doors while it is still root, and the child that
//! becomes the command walks through them by itself. So init and the launcher are in no group that limits anything: memory that runs out, a
//! pids limit that is reached or a spent quota never hits them, and what they write for the agent is not its memory. A group of version 2
//! beside the hierarchies of version 1 limits nothing and serves to kill; init is born in it, and all of the sandbox after it. In the end
//! the launcher reads the counters and removes the groups, with or without a controller.
//!
//! A process that writes itself into `cgroup.procs` waits until every processor has seen it (5 to 15 ms, measured); a thread that enters
//! alone, and a child that is born inside, do not.
//!
//! It decides nothing: what is limited, and to what, comes in the launch spec.

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Descriptors that one process may have open: enough for any build, and far from what the host has.
pub const OPEN_FILES_MAX: u64 = 16 * 1024;
/// Memory that one process may lock: what an ordinary user of today's distributions has.
const LOCKED_BYTES_MAX: u64 = 8 << 20;
/// Bytes in POSIX message queues: the kernel's default for users.
const QUEUED_BYTES_MAX: u64 = 800 << 10;
/// Signals that wait for one process.
const PENDING_SIGNALS_MAX: u64 = 4096;
/// File of a control group through which a process enters.
const DOOR: &str = "cgroup.procs";
/// The same for one thread, in version 1 only. The command has one thread when it enters.
const DOOR_OF_THREADS: &str = "tasks";
/// Names the controllers of a group of version 2; a group of version 1 has no such file.
const CONTROLLERS: &str = "cgroup.controllers";

/// What bounds a command. Paths are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitSpec {
    /// Control groups that the command enters; the launcher removes them when all is over.
    pub groups: Vec<PathBuf>,
    /// What bounds each limit, for the record: `memory:kernel`.
    pub enforced: Vec<String>,
    /// Largest file that can be written.
    pub file_bytes_max: Option<u64>,
    /// Memory that the control group of a container must have as its limit.
    pub memory_bytes_max: Option<u64>,
    /// Processes that the control group of a container must have as its limit.
    pub pids_max: Option<u64>,
    /// Most processes and threads of the sandbox's user in its user namespace (kernels before 5.14 count them outside as well).
    pub processes_max: Option<u64>,
    /// Memory is held by a look at the processes alone: what they could hide from it is refused.
    pub memory_watched: bool,
}

/// The open doors of a command's control groups.
pub struct Doors {
    doors: Vec<OwnedFd>,
    cradle: Option<Cradle>,
    file_bytes_max: Option<u64>,
    processes_max: Option<u64>,
}

/// A group that limits nothing, in which a sandbox can be born.
struct Cradle {
    group: OwnedFd,
    /// For a sandbox that was not.
    door: OwnedFd,
}

impl Doors {
    /// Opens the doors; the right to enter is that of the one who opened.
    /// # Errors
    /// A group is not there: nothing may start.
    pub fn open(spec: &LimitSpec) -> Result<Self, String> {
        let mut doors = Self { doors: Vec::new(), cradle: None, file_bytes_max: spec.file_bytes_max, processes_max: spec.processes_max };
        for group in &spec.groups {
            doors.add(group).map_err(|e| format!("failed to open the control group {}: {e}", group.display()))?;
        }
        Ok(doors)
    }

    fn add(&mut self, group: &Path) -> io::Result<()> {
        let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        match fs::read_to_string(group.join(CONTROLLERS)) {
            Ok(controllers) if controllers.trim().is_empty() => {
                let door = open(&group.join(DOOR), OFlags::WRONLY)?;
                self.cradle = Some(Cradle { group: open(group, OFlags::PATH | OFlags::DIRECTORY)?, door });
            }
            Ok(_) => self.doors.push(open(&group.join(DOOR), OFlags::WRONLY)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.doors.push(open(&group.join(DOOR_OF_THREADS), OFlags::WRONLY)?),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The group in which init can be born.
    #[must_use]
    pub fn cradle(&self) -> Option<BorrowedFd<'_>> {
        self.cradle.as_ref().map(|cradle| cradle.group.as_fd())
    }

    /// What was born inside has no door to walk through any more.
    pub fn leave_cradle(&mut self, is_born_inside: bool) {
        self.doors.extend(self.cradle.take().filter(|_| !is_born_inside).map(|cradle| cradle.door));
    }

    /// Enters all groups and binds the resources of this process. Safe between fork and exec: nothing is allocated.
    /// # Errors
    /// The kernel refuses; the command must not execute then.
    pub fn enter(&self) -> io::Result<()> {
        for door in &self.doors {
            rustix::io::write(door, b"0")?;
        }
        let bounds = [
            (Resource::Nofile, OPEN_FILES_MAX),
            (Resource::Fsize, self.file_bytes_max.unwrap_or(u64::MAX)),
            (Resource::Nproc, self.processes_max.unwrap_or(u64::MAX)),
            (Resource::Memlock, LOCKED_BYTES_MAX),
            (Resource::Msgqueue, QUEUED_BYTES_MAX),
            (Resource::Sigpending, PENDING_SIGNALS_MAX),
            (Resource::Nice, 0),
            (Resource::Rtprio, 0),
        ];
        for (resource, wanted) in bounds {
            // Never above what the host allows already.
            let maximum = rustix::process::getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
            let value = Some(maximum).filter(|maximum| *maximum != u64::MAX);
            rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })?;
        }
        Ok(())
    }
}

/// Files of a container's own control group as it sees it, of version 1 and of version 2, and what each limit is called.
const LIMIT_FILES: [(&str, [&str; 2]); 2] = [
    ("memory", ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"]),
    ("pids", ["/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"]),
];

/// Control groups of this container as it sees them: version 1 has a place for each controller.
pub const GROUPS_INSIDE: [&str; 3] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"];

/// Looks from inside whether the limits of a container are in force. Where its control group is not shown, the engine's word has to do.
/// # Errors
/// A limit is not in force, or higher than it should be.
pub fn check_from_inside(spec: &LimitSpec) -> Result<(), String> {
    let wanted = [spec.memory_bytes_max, spec.pids_max];
    for ((name, files), wanted) in LIMIT_FILES.into_iter().zip(wanted) {
        let found = files.into_iter().find_map(|file| crate::inside::system::read_small(file).ok());
        let (Some(found), Some(wanted)) = (found, wanted) else { continue };
        // What is no number is no limit.
        if found.trim().parse::<u64>().is_ok_and(|found| found <= wanted) {
            continue;
        }
        return Err(format!("the limit on {name} is not in force: it is {} instead of {wanted}", found.trim()));
    }
    Ok(())
}

/// What the kernel counted in the control groups of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Processes that the kernel ended because the memory was used up.
    pub oom_kills: u64,
    /// Processes and threads that the kernel refused to make.
    pub pids_refused: u64,
}

impl Counters {
    /// What was counted since an earlier look.
    #[must_use]
    pub fn since(self, before: &Self) -> Self {
        Self {
            oom_kills: self.oom_kills.saturating_sub(before.oom_kills),
            pids_refused: self.pids_refused.saturating_sub(before.pids_refused),
        }
    }
}

/// Reads the counters; what is not there counts as nothing.
#[must_use]
pub fn count(groups: &[PathBuf]) -> Counters {
    let mut counters = Counters::default();
    for group in groups {
        let field = |file: &str, name: &str| field_of(&group.join(file), name);
        // The names of version 1, then of version 2.
        counters.oom_kills = counters.oom_kills.max(field("memory.oom_control", "oom_kill")).max(field("memory.events", "oom_kill"));
        counters.pids_refused = counters.pids_refused.max(field("pids.events", "max"));
    }
    counters
}

fn field_of(path: &Path, name: &str) -> u64 {
    let text = crate::inside::system::read_small(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Removes control groups in which nothing lives any more. That they are gone already is no error.
/// # Errors
/// Something still lives in one; the others are gone.
pub fn remove(groups: &[PathBuf]) -> io::Result<()> {
    let mut outcome = Ok(());
    for group in groups {
        match fs::remove_dir(group) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => outcome = Err(e),
            _ => {}
        }
    }
    outcome
}
