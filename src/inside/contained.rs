//! `mosaic-init contained`: PID 1 of a container that an engine made. What the launcher does for a process sandbox the engine has done here;
//! what it would have handed over comes over a socket, from the controller alone.
//!
//! make itself untouchable -> ask for the spec and the open files (lock, log, exit report) -> `init::run`: look from inside, ask for the
//! grant, execute, report. Nothing of the image is read or executed before the grant but what the engine itself did. The controller knows
//! who asks by the kernel's word on the other end of the socket; nobody but PID 1 of this very container gets anything.

use crate::inside::init::Brought;
use crate::inside::limits::{Doors, GROUPS_INSIDE};
use crate::inside::link::Way;
use crate::inside::wire::{CONTROL_INSIDE, ExitCause, ExitReport, Handover, SOCKET_FILES};
use crate::inside::{EXIT_FAILED, init, output, system};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::DumpableBehavior;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long it is asked for the spec where nobody answers: a controller that restarts takes less. Also how long one connection is waited on.
const PATIENCE_MILLIS: u64 = 30_000;
/// Pause between two tries: the first, doubled up to the longest.
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// A connection that stood so long was no refusal: what comes next is asked at once.
const STOOD_MILLIS: u64 = 5;
/// How long an answer that has begun may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest proof.
const PROOF_BYTES_MAX: u64 = 4096;

/// Runs as PID 1; returns the exit code. 0: the report is written.
pub(super) fn run() -> i32 {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let hidden = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let unprivileged = rustix::thread::set_no_new_privs(true);
    if hidden.is_err() || unprivileged.is_err() || system::close_on_exec_from(3).is_err() {
        return EXIT_FAILED;
    }
    let Some((handover, files)) = ask() else { return EXIT_FAILED };
    let report = prepare(handover, &files).unwrap_or_else(|text| ExitReport {
        cause: ExitCause::NotStarted(text),
        duration_millis: 0,
        counters: None,
    });
    let bytes = serde_json::to_vec(&report).expect("a report is plain data");
    let written = (&files.exit).write_all(&bytes).and_then(|()| files.exit.sync_all());
    i32::from(written.is_err())
}

/// What the launcher would have opened.
struct Files {
    /// Held to the end: that it is locked says that this sandbox lives.
    _lock: OwnedFd,
    log: OwnedFd,
    exit: File,
}

fn prepare(handover: Handover, files: &Files) -> Result<ExitReport, String> {
    let Handover { launch, host_namespaces } = handover;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let control = rustix::fs::open(CONTROL_INSIDE, flags, Mode::empty()).map_err(|e| format!("failed to open the link: {e}"))?;
    let log = files.log.try_clone().map(File::from).and_then(output::Ring::open).map_err(|e| format!("failed to open the log: {e}"))?;
    crate::inside::limits::check_from_inside(&launch.limits)?;
    let doors = Doors::open(&launch.limits)?;
    let groups = GROUPS_INSIDE.map(std::path::PathBuf::from);
    let before = crate::inside::limits::count(&groups);
    let mut report = init::run(&launch, Brought { host: host_namespaces, way: Way::Socket(control), log, doors, closed: false }, |_| {});
    let after = crate::inside::limits::count(&groups);
    report.counters = Some(after.since(&before));
    Ok(report)
}

/// Asks until there is an answer; nobody's answer for `PATIENCE_MILLIS` is the end. While a connection stands, somebody will answer: who has
/// prepared this container ahead holds it, and renews it by closing it for another one.
fn ask() -> Option<(Handover, Files)> {
    let mut give_up_at = system::boot_millis() + PATIENCE_MILLIS;
    let mut pause = RETRY_PAUSE_FIRST;
    while system::boot_millis() < give_up_at {
        if let Ok(mut stream) = UnixStream::connect(format!("{CONTROL_INSIDE}/{SOCKET_FILES}")) {
            let asked_at = system::boot_millis();
            match receive(&mut stream) {
                Ok(Some(answer)) => return Some(answer),
                // Whoever was there has gone: the next one gets time, and may be there already.
                Ok(None) => {
                    let now = system::boot_millis();
                    give_up_at = give_up_at.max(now + PATIENCE_MILLIS / 2);
                    if now > asked_at + STOOD_MILLIS {
                        pause = RETRY_PAUSE_FIRST;
                        continue;
                    }
                }
                Err(_) => {}
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
    None
}

/// The header comes with the descriptors, then the spec. `None`: the other end closed without a word.
fn receive(stream: &mut UnixStream) -> io::Result<Option<(Handover, Files)>> {
    let mut header = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    stream.set_read_timeout(Some(Duration::from_millis(PATIENCE_MILLIS)))?;
    let received = rustix::net::recvmsg(&*stream, &mut [IoSliceMut::new(&mut header)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    let (Some(lock), Some(log), Some(exit)) = (fds.next(), fds.next(), fds.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing"));
    };
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.read_exact(&mut header[received.bytes..])?;
    let length = u64::from_le_bytes(header);
    let mut body = Vec::new();
    stream.take(length.min(ANSWER_BYTES_MAX)).read_to_end(&mut body)?;
    let handover = serde_json::from_slice(&body).map_err(io::Error::from)?;
    Ok(Some((handover, Files { _lock: lock, log, exit: File::from(exit) })))
}

/// `mosaic-init prove`: prints the number in the tree, so that the controller sees that its files are the ones that are seen here.
pub(super) fn prove() -> i32 {
    let mut text = Vec::new();
    let read = File::open("/workspace/nonce").and_then(|file| file.take(PROOF_BYTES_MAX).read_to_end(&mut text));
    i32::from(read.and_then(|_| io::stdout().write_all(&text)).is_err())
}
