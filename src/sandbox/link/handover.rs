//! Giving the init of a container what a launcher would have given it: the spec and the open files of its run.
//!
//! Over a socket of its own, `files.sock`, once. Who asks is known by the kernel: the other end must be PID 1 of the very container that the
//! engine answered to have made; then its identity and control groups are written, before it has anything and long before its grant. Where
//! the kernel does not show it (we are in a container that does not share the host's process ids) there is no identity: that the run
//! lives is then told by its lock alone, which init holds from here on.

use crate::inside::wire::{FILE_CONTAINER, FILE_EXIT, FILE_GROUPS, FILE_IDENTITY, FILE_SPEC, Handover};
use crate::inside::{confine, system};
use crate::sandbox::cgroup;
use crate::sandbox::folder::{MadeContainer, RunFolder, StoredSpec};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long init may take to take it.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// What waits for the init of one container.
#[derive(Default)]
pub(super) struct Door {
    /// The run's lock, while nobody else has it.
    lock: Mutex<Option<File>>,
}

impl Door {
    /// With the lock that its maker took; `None`: it is taken when init comes.
    pub(super) fn new(lock: Option<File>) -> Self {
        Self { lock: Mutex::new(lock) }
    }

    /// Nothing will come: the lock is free again.
    pub(super) fn close(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Hands everything over to who is at the other end, if that is the init of this run.
    pub(super) fn hand_over(&self, folder: &RunFolder, stream: UnixStream, pid: Option<i32>) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
        if folder.is_stopped()? {
            return refused("it was stopped");
        }
        let (Some(made), Some(spec)) = (folder.read::<MadeContainer>(FILE_CONTAINER)?, folder.read::<StoredSpec>(FILE_SPEC)?) else {
            return refused("no container was made for this run");
        };
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            let lock = folder.open_lock()?;
            system::lock_file(lock.as_fd())?;
            *held = Some(lock);
        }
        let Some(lock) = held.as_ref() else { return refused("its lock is gone") };
        if let Some(pid) = pid.filter(|pid| *pid > 0) {
            let identity = prove(pid, &made.id)?;
            match folder.identity()? {
                Some(known) if known == identity => {}
                Some(_) => return refused("another one had it"),
                None => {
                    folder.write(FILE_GROUPS, &cgroup::groups_of_container(pid, &made.id)?)?;
                    folder.write(FILE_IDENTITY, &identity)?;
                }
            }
        }
        let log = File::options().read(true).write(true).open(&spec.launch.log)?;
        let exit = File::options().write(true).create(true).truncate(true).mode(0o600).open(folder.path().join(FILE_EXIT))?;
        let handover = Handover { launch: spec.launch, host_namespaces: confine::host_namespaces().map_err(io::Error::other)? };
        send(stream, &serde_json::to_vec(&handover)?, [lock, &log, &exit])?;
        // In nobody's hands but init's from here on.
        held.take();
        Ok(())
    }
}

/// Looks that a process is PID 1 of a container, by the kernel's word; its identity.
/// # Errors
/// It is not, or could not be looked at.
pub(crate) fn prove(pid: i32, container: &str) -> io::Result<crate::inside::wire::Identity> {
    let identity = system::identity_of(pid)?;
    let groups = system::read_small(format!("/proc/{pid}/cgroup"))?;
    let status = system::read_small(format!("/proc/{pid}/status"))?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = pids.split_whitespace().collect();
    let is_first = pids.len() > 1 && pids.last() == Some(&"1");
    if !is_first || container.len() < 12 || !groups.lines().any(|line| line.contains(container)) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("process {pid} is not PID 1 of container {container}")));
    }
    // All of it was true of one process.
    if system::identity_of(pid)? == identity { Ok(identity) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
}

fn send(mut stream: UnixStream, body: &[u8], files: [&File; 3]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(SEND_PATIENCE))?;
    let fds = files.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for three descriptors"));
    }
    let header = u64::try_from(body.len()).unwrap_or(u64::MAX).to_le_bytes();
    let sent = rustix::net::sendmsg(&stream, &[IoSlice::new(&header)], &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(&header[sent..])?;
    stream.write_all(body)
}
