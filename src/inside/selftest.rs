//! What the agent will be confined by, and a look whether it holds: a process is confined just as the agent will be, and tries.
//!
//! init prepares filter and rules once, before it asks for its grant. The agent enters them between fork and exec, so nothing here may
//! allocate in `enter`. init itself stays outside: its own calls are few, and Landlock keeps the agent's signals off whoever is outside.

use crate::inside::{landlock, seccomp, system};
use libc::sock_filter;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

/// Files of init that must be closed to the agent.
const INIT_FILES: [&str; 7] =
    ["/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/1/fd", "/proc/1/root", "/proc/1/exe", "/proc/1/auxv"];
/// Set in the exit code of a trial that came to its end.
const FINISHED: i32 = 1 << 6;
const SECCOMP: i32 = 1;
const LANDLOCK: i32 = 1 << 1;
const SIGNALS: i32 = 1 << 2;
const HIDDEN: i32 = 1 << 3;
const UNTOUCHABLE: i32 = 1 << 4;

/// The filter and the rules that the agent enters.
pub struct Confinement {
    filter: Option<Vec<sock_filter>>,
    rules: Option<OwnedFd>,
    contained: bool,
    /// Why there are no rules.
    pub landlock_missing: Option<String>,
}

impl Confinement {
    /// Prepares; what cannot be had is found by the trial. `memory_watched`: see `seccomp::sandbox_filter`.
    #[must_use]
    pub fn prepare(contained: bool, memory_watched: bool) -> Self {
        let (rules, landlock_missing) = match landlock::prepare(contained) {
            Ok(rules) => (Some(rules), None),
            Err(text) => (None, Some(text)),
        };
        Self { filter: Some(seccomp::sandbox_filter(memory_watched)), rules, contained, landlock_missing }
    }

    /// Leaves out what the trial found missing: what is left is what the operator does not do without.
    pub fn keep_what_holds(&mut self, trial: Trial) {
        self.filter = self.filter.take().filter(|_| trial.seccomp);
        self.rules = self.rules.take().filter(|_| trial.landlock);
    }

    /// Confines this process and all that it starts, for ever; safe between fork and exec.
    /// # Errors
    /// The kernel refuses what it accepted at the trial.
    pub fn enter(&self) -> io::Result<()> {
        if let Some(rules) = &self.rules {
            landlock::restrict(rules)?;
        }
        self.filter.as_deref().map_or(Ok(()), seccomp::install)
    }
}

/// What a trial found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trial {
    /// Forbidden calls are refused.
    pub seccomp: bool,
    /// A forbidden file is closed, an allowed one is not.
    pub landlock: bool,
    /// init cannot be signalled.
    pub signals: bool,
    /// init is not in `/proc`.
    pub hidden: bool,
    /// Nothing of init's can be opened.
    pub untouchable: bool,
}

impl Trial {
    /// Confines a process and lets it try.
    /// # Errors
    /// No process could be made, or it did not come to its end.
    pub fn run(confinement: &Confinement) -> io::Result<Self> {
        let Some(child) = system::fork(0)? else { system::exit_now(FINISHED | attempts(confinement)) };
        let status = system::wait_for(child)?.status;
        let code = libc::WEXITSTATUS(status);
        if !libc::WIFEXITED(status) || code & FINISHED == 0 {
            return Err(io::Error::other(format!("the trial of the sandbox ended with wait status {status}")));
        }
        let has = |bit: i32| code & bit != 0;
        Ok(Self {
            seccomp: has(SECCOMP),
            landlock: has(LANDLOCK),
            signals: has(SIGNALS),
            hidden: has(HIDDEN),
            untouchable: has(UNTOUCHABLE),
        })
    }
}

/// Runs in a process of its own.
fn attempts(confinement: &Confinement) -> i32 {
    let restricted = confinement.rules.as_ref().is_some_and(|rules| landlock::restrict(rules).is_ok());
    let filtered = confinement.filter.as_deref().is_some_and(|filter| seccomp::install(filter).is_ok());
    let mut found = 0;
    let mut note = |bit: i32, holds: bool| found |= if holds { bit } else { 0 };
    note(SECCOMP, filtered && calls_are_refused());
    // An image has no file that everybody may read and the rules do not allow; but one of our own that the rules let nobody write.
    let refused = if confinement.contained { open_to("/proc/self/comm", OFlags::WRONLY) } else { open(landlock::FORBIDDEN_FILE) };
    note(LANDLOCK, restricted && refused == Err(Errno::ACCESS) && open("/etc/hostname").is_ok());
    note(SIGNALS, rustix::process::test_kill_process(rustix::process::Pid::INIT) == Err(Errno::PERM));
    note(HIDDEN, rustix::fs::stat("/proc/1").err() == Some(Errno::NOENT));
    note(UNTOUCHABLE, INIT_FILES.iter().all(|file| open(file).is_err()));
    found
}

fn open(path: &str) -> Result<(), Errno> {
    open_to(path, OFlags::RDONLY)
}

fn open_to(path: &str, how: OFlags) -> Result<(), Errno> {
    rustix::fs::open(path, how | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// Calls that succeed, or fail in another way, where there is no filter.
fn calls_are_refused() -> bool {
    let refused = |result: libc::c_long, errno: i32| result == -1 && io::Error::last_os_error().raw_os_error() == Some(errno);
    let zero: libc::c_long = 0;
    // SAFETY: none of these calls reads or writes memory with these arguments, and none succeeds behind the filter; without it the process
    // becomes traced, gets a namespace or a personality, or fails otherwise, and ends right after.
    unsafe {
        refused(libc::syscall(libc::SYS_ptrace, libc::c_long::from(libc::PTRACE_TRACEME), zero, zero, zero), libc::EPERM)
            && refused(libc::syscall(libc::SYS_unshare, libc::c_long::from(libc::CLONE_NEWUSER)), libc::EPERM)
            && refused(libc::syscall(libc::SYS_clone3, zero, zero), libc::ENOSYS)
            && refused(libc::syscall(libc::SYS_io_uring_setup, zero, zero), libc::EPERM)
            && refused(libc::syscall(libc::SYS_personality, libc::c_long::from(libc::ADDR_NO_RANDOMIZE)), libc::EPERM)
            && refused(libc::syscall(libc::SYS_socket, libc::c_long::from(libc::AF_VSOCK), 1 as libc::c_long, zero), libc::EAFNOSUPPORT)
    }
}
