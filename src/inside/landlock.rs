//! Landlock: which paths the agent may read, execute and write, beside what mounts and modes say.
//!
//! One table of places; everything that is not in it is closed, even if a mount were there by mistake. Renames and links between folders
//! of one place work. Abstract sockets and signals stay within the agent's own domain where the kernel can do that, so that init is out of
//! reach by both. TCP is left alone: the net namespace has nothing but its own loopback interface, which tests need.

use crate::inside::wire::{HOME, WORKSPACE};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The oldest version that is enough: it can allow renames between folders.
pub const ABI_MIN: u32 = 2;
/// A file that everybody could read, in no place of the table: the self-test must not get at it.
pub const FORBIDDEN_FILE: &str = "/.forbidden";

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// All rights of the versions: 2, 3 and 4, from 5 on.
const RIGHTS: [u64; 3] = [(1 << 14) - 1, (1 << 15) - 1, (1 << 16) - 1];
/// Abstract sockets and signals, from version 6 on.
const SCOPES: u64 = 0b11;
const VERSION_WITH_SCOPES: u32 = 6;

const READ: u64 = READ_FILE | READ_DIR;
const RUN: u64 = READ | EXECUTE;
/// Everything but devices.
const OWN: u64 = RIGHTS[1] & !(MAKE_CHAR | MAKE_BLOCK);

/// Beside `PLACES` in a container: an image may have its programs anywhere, and nothing of the host is in it.
const PLACES_OF_IMAGE: &[(&str, u64)] = &[("/", RUN), ("/var/tmp", OWN), ("/run", OWN)];

/// Places and what is allowed beneath them; those that are absent in a sandbox are passed over.
pub const PLACES: &[(&str, u64)] = &[
    // Names only: what lies directly in the root is no secret.
    ("/", READ_DIR),
    ("/usr", RUN),
    ("/bin", RUN),
    ("/sbin", RUN),
    ("/lib", RUN),
    ("/lib32", RUN),
    ("/lib64", RUN),
    ("/libx32", RUN),
    ("/mosaic", RUN),
    ("/etc", READ),
    ("/proc", READ),
    ("/dev", READ | WRITE_FILE | TRUNCATE | IOCTL_DEV),
    ("/dev/shm", OWN),
    ("/tmp", OWN),
    (WORKSPACE, OWN),
    (HOME, OWN),
    ("/mosaic/out", OWN),
];

#[repr(C)]
struct RulesetAttributes {
    file_rights: u64,
    network_rights: u64,
    scopes: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    folder: RawFd,
}

/// The version that this kernel has.
/// # Errors
/// None, or it is switched off.
pub fn version() -> io::Result<u32> {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel reads no memory.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0 as libc::size_t, CREATE_RULESET_VERSION)
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether signals stay within the domain with this version.
#[must_use]
pub fn has_scopes(version: u32) -> bool {
    version >= VERSION_WITH_SCOPES
}

/// Makes the set of rules from the table; the places must be mounted.
/// # Errors
/// Says what the kernel lacks or refused.
pub fn prepare(contained: bool) -> Result<OwnedFd, String> {
    let version = version().map_err(|e| format!("this kernel has no Landlock: {e}"))?;
    if version < ABI_MIN {
        return Err(format!("this kernel has Landlock version {version}, and {ABI_MIN} is needed"));
    }
    let rights = RIGHTS[match version {
        ..3 => 0,
        3..5 => 1,
        5.. => 2,
    }];
    let scopes = if has_scopes(version) { SCOPES } else { 0 };
    let attributes = RulesetAttributes { file_rights: rights, network_rights: 0, scopes };
    let size = std::mem::size_of::<RulesetAttributes>();
    // SAFETY: the attributes live across the call and have `size` bytes; a success is a new descriptor of ours.
    let rules = unsafe {
        let fd = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0 as libc::c_uint);
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
        OwnedFd::from_raw_fd(fd.ok_or_else(|| format!("failed to make Landlock rules: {}", io::Error::last_os_error()))?)
    };
    for (place, allowed) in PLACES.iter().chain(PLACES_OF_IMAGE.iter().filter(|_| contained)) {
        allow(&rules, place, allowed & rights).map_err(|e| format!("failed to allow {place} by Landlock: {e}"))?;
    }
    Ok(rules)
}

fn allow(rules: &OwnedFd, place: &str, allowed: u64) -> io::Result<()> {
    const RULE_PATH_BENEATH: libc::c_uint = 1;
    let folder = match rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(folder) => folder,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let rule = PathBeneath { allowed, folder: folder.as_raw_fd() };
    // SAFETY: the rule lives across the call and is the type that this kind of rule has.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, rules.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0 as libc::c_uint) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts this thread and all that it starts under the rules, for ever; safe between fork and exec.
/// # Errors
/// `no_new_privs` is not set, or too many domains are nested.
pub fn restrict(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0 as libc::c_uint) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
