//! What runs inside a sandbox and the launcher that makes it: the program `mosaic-init`.
//!
//! `launch` (host side, root) clones a process into new namespaces, which lays out its mounts (`mounts`), gives up every privilege
//! (`confine`) and becomes PID 1 (`init`): it asks the controller over the `link` whether it may start, executes the command, writes its
//! `output` into a capped log, keeps the lease and reports the end. `wire` has what both sides of the link share.
//!
//! It is built alone, static and without the controller's dependencies, and never reads configuration: everything comes in the launch
//! spec. It makes no decision about agents; it only refuses to start or to go on.

pub mod confine;
pub mod init;
pub mod launch;
pub mod lease;
pub mod link;
pub mod mounts;
pub mod output;
pub mod system;
pub mod wire;

use std::os::fd::{FromRawFd, OwnedFd};

/// Exit code for a wrong command line.
const EXIT_USAGE: i32 = 64;
/// Exit code when the launcher could not make the sandbox; the reason is in the run's folder.
const EXIT_FAILED: i32 = 70;

/// Runs `mosaic-init` with its arguments and returns the exit code.
pub fn run() -> i32 {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<i32> = args.iter().skip(1).filter_map(|a| a.parse().ok()).filter(|n| *n > 2).collect();
    match (args.first().map(String::as_str), numbers.as_slice()) {
        (Some("launch"), &[folder, lock]) if args.len() == 3 && folder != lock => {
            // SAFETY: the controller passes exactly these two descriptors to this process; nothing else in it owns them.
            let (folder, lock) = unsafe { (OwnedFd::from_raw_fd(folder), OwnedFd::from_raw_fd(lock)) };
            match launch::run(folder, lock) {
                Ok(()) => 0,
                Err(_) => EXIT_FAILED,
            }
        }
        _ => {
            eprintln!("mosaic-init is started by mosaic itself: mosaic-init launch <folder fd> <lock fd>");
            EXIT_USAGE
        }
    }
}
