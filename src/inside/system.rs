//! System calls that rustix does not have, and small facts from `/proc`. All `unsafe` of `inside` is here and beside fork.

use crate::inside::wire::Identity;
use rustix::process::Pid;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Longest file of `/proc` that is read.
const PROC_BYTES_MAX: u64 = 64 * 1024;
/// `clone3`: the child is born in the control group given (`linux/sched.h`; libc has it as a type that it does not fit).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks, with new namespaces when `flags` has any; `None` in the child. The process must have one thread only.
/// # Errors
/// The kernel refuses (no permission, no memory).
pub fn fork(flags: libc::c_int) -> io::Result<Option<Pid>> {
    let arguments = libc::c_long::from(flags | libc::SIGCHLD);
    let zero: libc::c_long = 0;
    // SAFETY: clone without a stack is fork; one thread, so the child's memory is consistent.
    let result = unsafe { libc::syscall(libc::SYS_clone, arguments, zero, zero, zero, zero) };
    child_of(result)
}

/// Forks with new namespaces into a control group of version 2; `None` in the child. The process must have one thread only.
/// # Errors
/// The kernel refuses: besides the reasons of `fork`, it is older than 5.7, or a seccomp profile does not know `clone3`.
pub fn fork_into(flags: libc::c_int, group: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    let bits = |flags: libc::c_int| u64::from(flags.cast_unsigned());
    // SAFETY: clone_args is plain data; zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = bits(flags) | CLONE_INTO_CGROUP;
    arguments.exit_signal = bits(libc::SIGCHLD);
    arguments.cgroup = bits(group.as_raw_fd());
    // SAFETY: clone3 without a stack is fork; one thread, so the child's memory is consistent. The struct is valid, and its size is given.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    child_of(result)
}

fn child_of(result: libc::c_long) -> io::Result<Option<Pid>> {
    match i32::try_from(result) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, without running anything registered for the exit.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// What `wait4` tells of one child.
pub struct Waited {
    /// Wait status.
    pub status: i32,
    /// CPU time in user mode.
    pub user_micros: u64,
    /// CPU time in kernel mode.
    pub system_micros: u64,
    /// Largest resident set.
    pub rss_max_kibibytes: u64,
}

/// Waits for one child.
/// # Errors
/// It is no child of ours.
pub fn wait_for(pid: Pid) -> io::Result<Waited> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are valid for writes of their types.
        let result = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, usage.as_mut_ptr()) };
        if result > 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed is a valid rusage, and the kernel has filled it.
    let usage = unsafe { usage.assume_init() };
    let micros = |t: libc::timeval| u64::try_from(t.tv_sec * 1_000_000 + t.tv_usec).unwrap_or(0);
    Ok(Waited {
        status,
        user_micros: micros(usage.ru_utime),
        system_micros: micros(usage.ru_stime),
        rss_max_kibibytes: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    })
}

/// Sets attributes of a mount and of all mounts below it.
/// # Errors
/// The path is no mount point, or the kernel is older than 5.12.
pub fn set_mount_attributes(path: &Path, attributes: u64) -> io::Result<()> {
    change_mount(libc::AT_FDCWD, path, attributes, 0, libc::AT_RECURSIVE)
}

/// Sets attributes of the mount at the working directory alone.
/// # Errors
/// As `set_mount_attributes`.
pub fn set_mount_attributes_here(attributes: u64) -> io::Result<()> {
    change_mount(libc::AT_FDCWD, Path::new("."), attributes, 0, 0)
}

/// Sets attributes of a mount that is held open, and parts it from whatever it was copied from: nothing that is mounted there comes here.
/// # Errors
/// As `set_mount_attributes`.
pub fn close_off_mount(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    change_mount(mount.as_raw_fd(), Path::new(""), attributes, libc::MS_PRIVATE, libc::AT_EMPTY_PATH)
}

fn change_mount(folder: RawFd, path: &Path, attributes: u64, propagation: u64, flags: libc::c_int) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path ends with NUL, the struct is valid, and its size is given.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, folder, path.as_ptr(), flags, &raw const attributes, size_of::<libc::mount_attr>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks SIGCHLD and SIGTERM and returns a descriptor that is readable when a child has ended, or somebody told us to end.
/// # Errors
/// No descriptor is left.
pub fn child_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is initialised by sigemptyset before it is used; the descriptor is new and ours.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Reads all signals that wait at a descriptor of `child_signals`. Returns whether one of them was SIGTERM from outside our pid namespace:
/// there the sender has no number here. From within anybody could send it.
pub fn take_signals(signals: &OwnedFd) -> bool {
    let mut is_told = false;
    loop {
        // SAFETY: signalfd_siginfo is plain data; zero is valid.
        let mut found: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer is valid for writes of that size.
        let length = unsafe { libc::read(signals.as_raw_fd(), (&raw mut found).cast(), size) };
        if usize::try_from(length) != Ok(size) {
            return is_told;
        }
        is_told |= found.ssi_signo == libc::SIGTERM.cast_unsigned() && found.ssi_pid == 0;
    }
}

/// Unblocks all signals; safe between fork and exec.
pub fn unblock_signals() {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is initialised by sigemptyset before it is used; both calls are async-signal-safe.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// SIGKILLs every process that this one may signal: as PID 1, everything else in the namespace.
pub fn kill_everything_else() {
    // SAFETY: no memory is involved. The pid is checked by the caller.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Brings the loopback interface of this net namespace up.
/// # Errors
/// No permission in this namespace.
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data; zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).expect("ASCII");
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("two low bits");
    // SAFETY: the request lives across the call and is the type that this ioctl reads.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Leaves the session keyring of the host for an empty one.
/// # Errors
/// The kernel has no keyrings.
pub fn join_empty_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on as closed on exec.
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no memory is involved; descriptors stay open in this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An OFD lock: it belongs to the open file, so that it lasts until the last process which inherited the descriptor has gone.
fn lock_of(kind: libc::c_int) -> libc::flock {
    // SAFETY: flock is plain data; zero means "the whole file" and, as OFD locks ask, no pid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).expect("a small constant");
    lock
}

/// Takes the lock of an open file if it is free.
/// # Errors
/// `WouldBlock` when somebody holds it.
pub fn lock_file(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = lock_of(libc::F_WRLCK);
    // SAFETY: the lock lives across the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether somebody else holds the lock of a file; takes nothing.
/// # Errors
/// The file system has no locks.
pub fn is_locked(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = lock_of(libc::F_WRLCK);
    // SAFETY: the lock lives across the call, and the kernel writes no more than it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result == 0 { Ok(i32::from(lock.l_type) != libc::F_UNLCK) } else { Err(io::Error::last_os_error()) }
}

/// While it lives, this thread runs before all that has no such wish, where we may ask for that (`CAP_SYS_NICE`).
pub struct Hurry(());

/// Lets this thread run first for an instant: what it does must be short, and never wait for another thread.
#[must_use]
pub fn hurry() -> Option<Hurry> {
    schedule(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1).then_some(Hurry(()))
}

impl Drop for Hurry {
    fn drop(&mut self) {
        let _ = schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> bool {
    // SAFETY: zero bytes are a valid value, and it lives across the call.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: as above; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) == 0 }
}

/// Milliseconds since boot, suspended time included.
#[must_use]
pub fn boot_millis() -> u64 {
    millis_of(rustix::time::ClockId::Boottime)
}

/// Milliseconds since boot, suspended time not included.
#[must_use]
pub fn awake_millis() -> u64 {
    millis_of(rustix::time::ClockId::Monotonic)
}

fn millis_of(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Reads a small file.
/// # Errors
/// As for any file.
pub fn read_small(path: impl AsRef<Path>) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(PROC_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// This boot of the host.
/// # Errors
/// `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(read_small("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Fields of `/proc/<pid>/stat` from the state on; `None`: no such process.
fn stat_fields(pid: i32) -> io::Result<Option<Vec<String>>> {
    match read_small(format!("/proc/{pid}/stat")) {
        // The name is in parentheses and may hold anything, so fields are counted from the last one.
        Ok(text) => {
            let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().map(str::to_owned).collect());
            Ok(Some(fields.unwrap_or_default()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// State letter and start time of a process; `None`: no such process.
/// # Errors
/// `/proc` cannot be read.
pub fn state_of(pid: i32) -> io::Result<Option<(char, u64)>> {
    let Some(fields) = stat_fields(pid)? else { return Ok(None) };
    let state = fields.first().and_then(|f| f.chars().next());
    let start = fields.get(19).and_then(|f| f.parse().ok());
    match (state, start) {
        (Some(state), Some(start)) => Ok(Some((state, start))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as documented"))),
    }
}

/// Whether a process lives; one that is dead and not yet waited for does not.
/// # Errors
/// `/proc` cannot be read.
pub fn is_running(pid: i32) -> io::Result<bool> {
    Ok(state_of(pid)?.is_some_and(|(state, _)| !matches!(state, 'Z' | 'X')))
}

/// Parent of a process; `None`: no such process.
/// # Errors
/// `/proc` cannot be read.
pub fn parent_of(pid: i32) -> io::Result<Option<i32>> {
    Ok(stat_fields(pid)?.and_then(|fields| fields.get(1)?.parse().ok()))
}

/// Process group of a process; `None`: no such process.
/// # Errors
/// `/proc` cannot be read.
pub fn group_of(pid: i32) -> io::Result<Option<i32>> {
    Ok(stat_fields(pid)?.and_then(|fields| fields.get(2)?.parse().ok()))
}

/// Inode of a namespace of a process (`pid`, `net`, …).
/// # Errors
/// No such process, or no permission.
pub fn namespace_of(pid: &str, kind: &str) -> io::Result<u64> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
    let text = link.to_string_lossy();
    let inode = text.rsplit_once('[').and_then(|(_, rest)| rest.trim_end_matches(']').parse().ok());
    inode.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("namespace {text} has no inode")))
}

/// Identity of a living process. An ordinary user may not look into the namespaces of one that is not dumpable: 0 stands for that.
/// # Errors
/// It is gone, or `/proc` cannot be read.
pub fn identity_of(pid: i32) -> io::Result<Identity> {
    let (_, start_ticks) = state_of(pid)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let pid_namespace = match namespace_of(&pid.to_string(), "pid") {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => 0,
        looked => looked?,
    };
    Ok(Identity { pid, start_ticks, boot_id: boot_id()?, pid_namespace, seen_from: namespace_of("self", "pid")? })
}
