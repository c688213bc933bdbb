//! The launcher: makes the sandbox from outside, as root or as what passes for it in a user namespace, and waits for its end.
//!
//! detach from the controller -> read the spec -> clone into new namespaces -> (inside: mounts, then the user namespace) -> map the ids ->
//! write init's identity (inside, meanwhile: drop privileges, look around) -> let init go -> wait -> write how it ended. When the launcher
//! dies before it let init go, init ends by itself: the pair of sockets between them closes. Nothing of the agent's runs before the grant,
//! for which init asks only then.

use crate::inside::init::Brought;
use crate::inside::limits::{self, Doors};
use crate::inside::link::Way;
use crate::inside::wire::{
    DRAFT, ExitCause, ExitReport, FILE_EXIT, FILE_IDENTITY, FILE_LAUNCHER, FILE_SPEC, FILE_STOPPED, FILE_WAIT, FOLDER_CONTROL, LaunchSpec,
    SpecFile, WaitReport,
};
use crate::inside::{confine, init, mounts, output, system};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::Pid;
use serde::Serialize;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Largest spec.
const SPEC_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest text of a failure inside.
const FAILURE_BYTES_MAX: u64 = 4096;
/// First byte from inside: the mounts and the user namespace are made.
const READY: u8 = b'R';
/// Byte to inside: the ids are mapped.
const MAPPED: u8 = b'M';
/// Byte to inside: the identity is written.
const GO: u8 = b'G';
/// How much sooner than others everything in a sandbox is ended when memory runs out (-1000 to 1000).
const OOM_SCORE: &str = "500";
/// Exit code of what ends before it was init.
const EXIT_UNPREPARED: i32 = 70;

/// Launches the sandbox of the run in this folder; returns in the process that the controller waits for as soon as the launcher proper
/// has gone its own way. `_lock` is held and stays so until launcher and init are gone: both have it open to their end.
/// # Errors
/// What failed; it is in the run's folder as well.
pub fn run(folder: OwnedFd, _lock: OwnedFd) -> Result<(), String> {
    let texts = |e: &dyn std::fmt::Display| e.to_string();
    system::close_on_exec_from(3).map_err(|e| texts(&e))?;
    system::unblock_signals();
    rustix::process::setsid().map_err(|e| texts(&e))?;
    if system::fork(0).map_err(|e| texts(&e))?.is_some() {
        return Ok(());
    }
    let report = match launch(&folder) {
        Ok(report) => report,
        Err(text) => WaitReport { failed: Some(text), ..WaitReport::default() },
    };
    let code = i32::from(write_whole(folder.as_fd(), FILE_WAIT, &report).is_err());
    system::exit_now(code)
}

fn launch(folder: &OwnedFd) -> Result<WaitReport, String> {
    rustix::process::fchdir(folder).map_err(|e| format!("failed to enter the folder of the run: {e}"))?;
    let own = system::identity_of(rustix::process::getpid().as_raw_nonzero().get()).map_err(|e| format!("failed to find myself: {e}"))?;
    write_whole(folder.as_fd(), FILE_LAUNCHER, &own)?;
    let spec = read_spec(folder.as_fd())?;
    refuse_stopped(folder.as_fd())?;
    let mut prepared = Some(Prepared::open(folder.as_fd(), &spec)?);
    if spec.unprivileged {
        confine::enter_outer_user_namespace(spec.uid, spec.gid)?;
    }
    let (mut outside, inside) = UnixStream::pair().map_err(|e| format!("failed to make a pair of sockets: {e}"))?;
    let cradle = prepared.as_ref().and_then(|prepared| prepared.brought.doors.cradle());
    let Born { child, namespaces, is_in_cradle } = fork_into_namespaces(&spec.allow_missing, cradle)?;
    let Some(child) = child else {
        drop(outside);
        let mut prepared = prepared.take().expect("opened above");
        prepared.brought.doors.leave_cradle(is_in_cradle);
        become_init(spec, prepared, namespaces, inside);
    };
    drop((inside, prepared));
    let outcome = prepare(folder.as_fd(), &spec, child, &mut outside);
    drop(outside);
    // Whatever happened: the child ends by itself now, or is init and ends when it must.
    let waited = system::wait_for(child).map_err(|e| format!("failed to wait for init: {e}"))?;
    // Nothing lives in the groups now, and whether a controller does is unknown: what they counted is kept, and they go. What cannot be
    // removed here is the controller's to sweep.
    let counters = limits::count(&spec.limits.groups);
    let _ = limits::remove(&spec.limits.groups);
    outcome?;
    let output_bytes_dropped = File::open(&spec.log).and_then(|log| output::counters(&log)).map_or(0, |log| log.first());
    Ok(WaitReport {
        failed: None,
        status: Some(waited.status),
        user_micros: waited.user_micros,
        system_micros: waited.system_micros,
        rss_max_kibibytes: waited.rss_max_kibibytes,
        oom_kills: counters.oom_kills,
        pids_refused: counters.pids_refused,
        output_bytes_dropped,
    })
}

/// How init came to be.
struct Born {
    /// `None` in init itself.
    child: Option<Pid>,
    namespaces: libc::c_int,
    is_in_cradle: bool,
}

/// Clones into new namespaces, and into the group that is there for it; where that is refused, without those that the operator can do
/// without.
fn fork_into_namespaces(allow_missing: &[String], cradle: Option<BorrowedFd<'_>>) -> Result<Born, String> {
    let all = confine::CLONED.iter().fold(0, |flags, (_, flag)| flags | flag);
    if let Some(Ok(child)) = cradle.map(|group| system::fork_into(all, group)) {
        return Ok(Born { child, namespaces: all, is_in_cradle: true });
    }
    let born = |child, namespaces| Born { child, namespaces, is_in_cradle: false };
    let failure = match system::fork(all) {
        Ok(child) => return Ok(born(child, all)),
        Err(e) => e,
    };
    let mut made = all;
    for (name, flag) in confine::CLONED {
        // One at a time, each in a process that ends at once, to name the one that is refused.
        let refused = match system::fork(flag) {
            Ok(None) => system::exit_now(0),
            Ok(Some(child)) => system::wait_for(child).err(),
            Err(e) => Some(e),
        };
        match refused {
            Some(_) if confine::may_miss(name, allow_missing) => made &= !flag,
            Some(e) => return Err(no_namespace(name, &e)),
            None => {}
        }
    }
    if made == all {
        return Err(format!("failed to make namespaces: {failure}"));
    }
    system::fork(made).map(|child| born(child, made)).map_err(|e| format!("failed to make namespaces: {e}"))
}

fn no_namespace(name: &str, error: &std::io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => ": it needs CAP_SYS_ADMIN, and a container's seccomp profile must allow clone: start it with --privileged",
        Some(libc::ENOSPC) => ": raise the sysctls user.max_*_namespaces",
        Some(libc::EINVAL) => ": the kernel is built without it (CONFIG_NAMESPACES)",
        _ => "",
    };
    format!("failed to make a {name}: {error}{hint}")
}

/// The launcher's half of the preparation.
fn prepare(folder: BorrowedFd<'_>, spec: &LaunchSpec, child: Pid, outside: &mut UnixStream) -> Result<(), String> {
    let mut first = [0];
    match outside.read(&mut first) {
        Ok(1) if first[0] == READY => {}
        Ok(1) => {
            let mut text = Vec::new();
            let _ = outside.take(FAILURE_BYTES_MAX).read_to_end(&mut text);
            return Err(format!("{}{}", char::from(first[0]), String::from_utf8_lossy(&text)));
        }
        _ => return Err("the sandbox ended while it was prepared".to_owned()),
    }
    let pid = child.as_raw_nonzero().get();
    // When memory runs out it is a sandbox that goes, not the controller.
    write_proc(pid, "oom_score_adj", OOM_SCORE)?;
    for (file, id) in [("uid_map", spec.uid), ("gid_map", spec.gid)] {
        if file == "gid_map" {
            write_proc(pid, "setgroups", "deny")?;
        }
        write_proc(pid, file, &format!("{id} {id} 1"))?;
    }
    let mut tell = |word: u8| outside.write_all(&[word]).map_err(|e| format!("failed to let init go: {e}"));
    tell(MAPPED)?;
    let identity = system::identity_of(pid).map_err(|e| format!("failed to find init: {e}"))?;
    write_whole(folder, FILE_IDENTITY, &identity)?;
    refuse_stopped(folder)?;
    tell(GO)
}

fn write_proc(pid: i32, file: &str, text: &str) -> Result<(), String> {
    std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(|e| format!("failed to write {file} of init: {e}"))
}

/// The child's half: prepares from inside, and becomes init. Never returns.
fn become_init(spec: LaunchSpec, prepared: Prepared, namespaces: libc::c_int, mut inside: UnixStream) -> ! {
    // What is made from here on is for the sandbox's user, whatever the controller was started with.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let from_inside = mounts::enter_new_root(&spec)
        .and_then(|()| name_things(namespaces))
        .and_then(|()| confine::enter_user_namespace(spec.unprivileged));
    let told = match &from_inside {
        Ok(()) => inside.write_all(&[READY]),
        Err(text) => inside.write_all(text.as_bytes()),
    };
    if from_inside.is_err() || told.is_err() {
        system::exit_now(EXIT_UNPREPARED);
    }
    await_word(&mut inside, MAPPED);
    let Prepared { brought, exit } = prepared;
    let report = match confine::drop_privileges(&spec) {
        Ok(()) => init::run(&spec, brought, move |_| await_word(&mut inside, GO)),
        Err(text) => ExitReport { cause: ExitCause::NotStarted(text), duration_millis: 0, counters: None },
    };
    let bytes = serde_json::to_vec(&report).expect("a report is plain data");
    let written = (&exit).write_all(&bytes).and_then(|()| exit.sync_all());
    system::exit_now(i32::from(written.is_err()))
}

/// Ends this process if it is anything else that comes, or nothing any more.
fn await_word(inside: &mut UnixStream, word: u8) {
    let mut told = [0];
    if inside.read_exact(&mut told).is_err() || told[0] != word {
        system::exit_now(EXIT_UNPREPARED);
    }
}

/// Sets up what its own namespaces have; what is the host's is left as it is.
fn name_things(namespaces: libc::c_int) -> Result<(), String> {
    if namespaces & libc::CLONE_NEWNET != 0 {
        system::bring_loopback_up().map_err(|e| format!("failed to bring the loopback interface up: {e}"))?;
    }
    if namespaces & libc::CLONE_NEWUTS != 0 {
        rustix::system::sethostname(b"mosaic").map_err(|e| format!("failed to set the host name: {e}"))?;
    }
    Ok(())
}

/// What init could not open any more once it is confined.
struct Prepared {
    brought: Brought,
    exit: File,
}

impl Prepared {
    fn open(folder: BorrowedFd<'_>, spec: &LaunchSpec) -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let control =
            rustix::fs::openat(folder, FOLDER_CONTROL, flags, Mode::empty()).map_err(|e| format!("failed to open the link: {e}"))?;
        let log = File::options().read(true).write(true).open(&spec.log).and_then(output::Ring::open);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let exit = rustix::fs::openat(folder, FILE_EXIT, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| format!("failed to make {FILE_EXIT}: {e}"))?;
        let brought = Brought {
            host: confine::host_namespaces()?,
            way: Way::Socket(control),
            log: log.map_err(|e| format!("failed to open the log: {e}"))?,
            doors: Doors::open(&spec.limits)?,
            closed: false,
        };
        Ok(Self { brought, exit: File::from(exit) })
    }
}

fn read_spec(folder: BorrowedFd<'_>) -> Result<LaunchSpec, String> {
    let file = rustix::fs::openat(folder, FILE_SPEC, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("failed to open {FILE_SPEC}: {e}"))?;
    let mut bytes = Vec::new();
    File::from(file).take(SPEC_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| format!("failed to read {FILE_SPEC}: {e}"))?;
    let spec: SpecFile = serde_json::from_slice(&bytes).map_err(|e| format!("failed to decode {FILE_SPEC}: {e}"))?;
    Ok(spec.launch)
}

fn refuse_stopped(folder: BorrowedFd<'_>) -> Result<(), String> {
    match rustix::fs::statat(folder, FILE_STOPPED, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Ok(_) => Err("it was stopped before it started".to_owned()),
        Err(e) => Err(format!("failed to look for {FILE_STOPPED}: {e}")),
    }
}

/// Writes a file so that it is there whole or not at all. It is not synced: after a loss of power nothing of this run lives.
fn write_whole(folder: BorrowedFd<'_>, name: &str, value: &impl Serialize) -> Result<(), String> {
    let bytes = serde_json::to_vec(value).map_err(|e| format!("failed to encode {name}: {e}"))?;
    let temporary = format!("{name}{DRAFT}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let write = || -> std::io::Result<()> {
        let mut file = File::from(rustix::fs::openat(folder, &temporary, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(&bytes)?;
        Ok(rustix::fs::renameat(folder, &temporary, folder, name)?)
    };
    write().map_err(|e| format!("failed to write {name}: {e}"))
}
