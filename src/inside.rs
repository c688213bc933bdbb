//! What runs inside a sandbox and the launcher that makes it: the program `mosaic-init`.
//!
//! `launch` (host side, root) clones a process into new namespaces, which lays out its mounts (`mounts`), gives up every privilege
//! (`confine`) and becomes PID 1 (`init`): it tries what is forbidden (`selftest`, with `seccomp` and `landlock`), asks the controller over
//! the `link` whether it may start, executes the command behind the same, writes its `output` into a capped log, keeps the lease and reports the end. `wire` has what both sides of the link share.
//!
//! In a container an engine has made namespaces and mounts; `contained` begins there and goes on as `init` does. In a pod nothing is shared
//! with the controller: `pod` has its files travel (`archive`) over a network (`dial`).
//!
//! It is built alone, static and without the controller's dependencies, and never reads configuration: everything comes in the launch
//! spec. It makes no decision about agents; it only refuses to start or to go on.

pub mod archive;
pub mod confine;
mod contained;
pub mod dial;
pub mod init;
pub mod landlock;
pub mod launch;
pub mod lease;
pub mod limits;
pub mod link;
pub mod mounts;
pub mod output;
mod pod;
pub mod seccomp;
pub mod selftest;
pub mod system;
pub mod wire;

use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;

/// Exit code for a wrong command line.
const EXIT_USAGE: i32 = 64;
/// Exit code when the launcher could not make the sandbox; the reason is in the run's folder.
const EXIT_FAILED: i32 = 70;
/// Descriptors that are kept start here, above the standard streams.
const DESCRIPTOR_MIN: i32 = 10;

/// Runs `mosaic-init` with its arguments and returns the exit code.
pub fn run() -> i32 {
    let arguments: Vec<String> = std::env::args().skip(1).take(4).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["launch"] => {}
        ["contained"] => return contained::run(),
        ["pod"] => return pod::run(),
        ["place", target, volume] => return pod::place(target, volume),
        ["prove"] => return contained::prove(),
        _ => {
            eprintln!(
                "mosaic-init is started by mosaic itself: mosaic-init launch, with a run's folder as standard input and its lock as output, or \
                 mosaic-init contained or pod, as PID 1 of a container"
            );
            return EXIT_USAGE;
        }
    }
    match take_descriptors().map_err(|e| e.to_string()).and_then(|(folder, lock)| launch::run(folder, lock)) {
        Ok(()) => 0,
        Err(_) => EXIT_FAILED,
    }
}

/// The folder and the lock came as standard streams, so that the controller can start us without a fork of its own memory (and of all that
/// it has open). They are moved away, and the streams become empty ones.
fn take_descriptors() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let folder = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), DESCRIPTOR_MIN)?;
    let lock = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), DESCRIPTOR_MIN)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok((folder, lock))
}
