//! One child process: run to its end or its deadline, with what it prints capped.
//!
//! It leads a process group of its own, which is killed as a whole. It also dies with the controller: the signal for that is bound to
//! the thread that started it, and that thread is here until the child has ended.
//!
//! `stoppable` marks a thread's work as that of one effect: once that is not wanted any more, its child is asked to end (so that `git`
//! takes its locks off the remote), then killed, and no further one is started. `noted` has the kill lane know of a child (`pushing`).

use super::pushing::Pushing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest pause between two looks whether the work is still wanted.
const STOP_LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How long a child that was asked to end may tidy up before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    static STOP: RefCell<Option<Arc<Stop>>> = const { RefCell::new(None) };
    static NOTE: RefCell<Option<Pushing>> = const { RefCell::new(None) };
}

/// Says of one effect whether it is still wanted. Asked before it begins and again and again while it works.
#[derive(Default)]
pub struct Stop {
    raised: AtomicBool,
    /// Whether its agent was killed, as others tell; `None`: the effect goes on all the same.
    is_killed: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Stop {
    /// Not wanted any more once `is_killed` says so, whoever else has heard of it.
    #[must_use]
    pub fn when(is_killed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { raised: AtomicBool::new(false), is_killed: Some(Box::new(is_killed)) }
    }

    /// It is not wanted any more.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
    }

    /// Whether it is not wanted any more.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst) || self.is_killed.as_ref().is_some_and(|is_killed| is_killed())
    }
}

/// Does work on this thread whose child processes end soon after it is not wanted any more.
pub fn stoppable<T>(stop: Arc<Stop>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Arc<Stop>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STOP.set(self.0.take());
        }
    }
    let _restore = Restore(STOP.replace(Some(stop)));
    work()
}

/// Does work on this thread whatever the flag says: a last look at what was broken off.
pub(super) fn unstoppable<T>(work: impl FnOnce() -> T) -> T {
    stoppable(Arc::default(), work)
}

pub(super) fn is_stopped() -> bool {
    STOP.with_borrow(|stop| stop.as_ref().is_some_and(|stop| stop.is_raised()))
}

/// Does work on this thread whose child processes are noted, so that a kill finds them.
pub(super) fn noted<T>(note: Pushing, work: impl FnOnce() -> T) -> T {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            NOTE.take();
        }
    }
    NOTE.set(Some(note));
    let _forget = Forget;
    work()
}

fn stopped() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::Interrupted, "its agent was ended meanwhile, so it was broken off")
}

/// How a child ended.
pub(super) struct Ended {
    /// Its status.
    pub(super) status: ExitStatus,
    /// The first bytes of its output.
    pub(super) stdout: Vec<u8>,
    /// The first bytes of its error output.
    pub(super) stderr: Vec<u8>,
}

/// Runs a command; `None`: the deadline came first, and its whole group was killed.
pub(super) fn run(mut command: Command, output_bytes_max: usize, deadline: Instant) -> std::io::Result<Option<Ended>> {
    if is_stopped() {
        return Err(stopped());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let parent = std::process::id();
    // SAFETY: between fork and exec only two system calls are made, nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // Our parent may have died before that; then nobody would ever tell us.
            if std::os::unix::process::parent_id() == parent { Ok(()) } else { Err(std::io::ErrorKind::Interrupted.into()) }
        });
    }
    NOTE.with_borrow(|note| note.iter().for_each(|note| note.mark(&mut command)));
    let mut child = command.spawn()?;
    let seen = NOTE.with_borrow(|note| note.as_ref().map_or(Ok(()), |note| note.began(child.id())));
    // A child that no kill would find does not go on.
    let waited = seen.and_then(|()| wait(&mut child, output_bytes_max, deadline));
    if !matches!(waited, Ok(Some(_))) {
        // Not reaped yet, so the group still is the one that we made.
        kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
    }
    let status = child.wait()?;
    Ok(waited?.map(|(stdout, stderr)| Ended { status, stdout, stderr }))
}

/// Reads both outputs until the program has ended; `None`: the deadline came first. Does not wait for the end of the outputs, as a
/// daemon that a hook of the remote started may hold them open for ever. Work that is not wanted any more is asked to end, with all of its
/// group: the program's other side holds locks too, and has ended when nobody holds an output.
fn wait(child: &mut Child, output_bytes_max: usize, mut deadline: Instant) -> std::io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut outputs = Vec::new();
    for pipe in [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)] {
        let pipe = pipe.expect("both outputs are pipes");
        rustix::io::ioctl_fionbio(&pipe, true)?;
        outputs.push((Some(File::from(pipe)), Vec::new()));
    }
    let mut asked = false;
    loop {
        if !asked && is_stopped() {
            asked = true;
            deadline = deadline.min(Instant::now() + STOP_PATIENCE);
            kill_process_group(Pid::from_child(child), Signal::TERM).ok();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return if asked { Err(stopped()) } else { Ok(None) };
        }
        let mut watched = vec![PollFd::new(&pidfd, PollFlags::IN)];
        watched.extend(outputs.iter().filter_map(|(pipe, _)| pipe.as_ref()).map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let timeout = Timespec::try_from(left.min(STOP_LOOK_PAUSE)).map_err(|_| std::io::Error::other("deadline out of range"))?;
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = !watched[0].revents().is_empty();
        if ended && !asked && is_stopped() {
            // The kill lane was faster, and the rest of the group may not have heard of it.
            continue;
        }
        for (pipe, bytes) in &mut outputs {
            drain(pipe, bytes, output_bytes_max)?;
        }
        if asked && ended {
            if outputs.iter().all(|(pipe, _)| pipe.is_none()) {
                return Err(stopped());
            }
            std::thread::sleep(STOP_LOOK_PAUSE / 10);
        } else if ended {
            let mut texts = outputs.into_iter().map(|(_, bytes)| bytes);
            return Ok(Some((texts.next().unwrap_or_default(), texts.next().unwrap_or_default())));
        }
    }
}

/// Takes what is there; keeps the first `output_bytes_max` and drops the rest.
fn drain(pipe: &mut Option<File>, bytes: &mut Vec<u8>, output_bytes_max: usize) -> std::io::Result<()> {
    let mut chunk = [0_u8; 16 << 10];
    while let Some(file) = pipe {
        match file.read(&mut chunk) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                let room = output_bytes_max.saturating_sub(bytes.len());
                bytes.extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_together_with_the_kill_of_its_work_leaves_nothing_of_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let (killed, landed) = (folder.path().join("killed"), folder.path().join("landed"));
        // As a push whose client is ended by the lane, while the remote's side on this machine has it in hand.
        let mut command = Command::new("sh");
        command.arg("-c").arg("(trap '' TERM; sleep 2; : > landed) & : > killed; kill -9 $$").current_dir(folder.path());
        let stop = Arc::new(Stop::when(move || killed.exists()));
        let ended = stoppable(stop, || run(command, 1 << 10, Instant::now() + Duration::from_secs(10)));
        assert!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::Interrupted), "it was broken off");
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!landed.exists(), "something of its group went on");
    }
}
