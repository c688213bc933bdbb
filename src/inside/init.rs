//! PID 1 of a sandbox: start gate, lease, output, reaping, end.
//!
//! ask for the grant -> execute the command -> { output, children, renewals, deadline } -> SIGKILL everything else in the namespace, reap
//! all of it, take what is left of the output -> report. One thread, one loop, one `poll`. The report is made only when nothing else
//! lives, so that an agent which leaves a process behind changes nothing after its end was seen.

use crate::inside::confine::Evidence;
use crate::inside::lease::{Lease, Tick};
use crate::inside::limits::Doors;
use crate::inside::link::{LinkClient, Way};
use crate::inside::output::Ring;
use crate::inside::selftest::Confinement;
use crate::inside::system;
use crate::inside::wire::{
    ENV_PREFIX, ExitCause, ExitReport, GrantAnswer, GrantRequest, HOME, LaunchSpec, PATH_GRANT, PATH_RENEW, RenewAnswer, RenewRequest,
    USER, WORKSPACE, Word, hold_millis,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Most bytes of output taken in one round of the loop, so that a flood delays neither lease nor end.
const OUTPUT_BYTES_PER_ROUND: usize = 64 * 1024;
/// Pause between two rounds of SIGKILL at the end.
const KILL_ROUND_MILLIS: u64 = 20;
/// How much longer than the controller holds a renewal init waits for the answer.
const ANSWER_PATIENCE_MILLIS: u64 = 1_000;
/// How long one request for the grant waits for its answer.
const GRANT_PATIENCE_MILLIS: u64 = 5_000;
const SECRET_BYTES: usize = 32;

/// What init brings from before it was confined.
pub struct Brought {
    /// The host's namespaces.
    pub host: Vec<(String, u64)>,
    /// Where the controller is asked.
    pub way: Way,
    /// Where output goes.
    pub log: Ring,
    /// Doors of the control groups.
    pub doors: Doors,
    /// Whether a policy was seen to close the network of its pod.
    pub closed: bool,
}

/// Runs the command of a confined sandbox to its end. `wait` returns when the grant may be
/// asked for; it is called after all looks from inside, with the session secret.
pub fn run(spec: &LaunchSpec, brought: Brought, wait: impl FnOnce(&str)) -> ExitReport {
    let Brought { host, way, log, doors, closed } = brought;
    let not_started = |text: String| ExitReport { cause: ExitCause::NotStarted(text), duration_millis: 0, counters: None };
    let prepare = || -> Result<(Vec<String>, Confinement, String, OwnedFd), String> {
        let mut confinement = Confinement::prepare(spec.contained, spec.limits.memory_watched);
        let evidence = Evidence::collect(host, spec, &confinement, closed)?;
        let mut isolation = evidence.isolation(&spec.allow_missing)?;
        isolation.extend(spec.limits.enforced.iter().cloned());
        confinement.keep_what_holds(evidence.trial());
        let secret = make_secret().map_err(|e| format!("failed to make a session secret: {e}"))?;
        let children = system::child_signals().map_err(|e| format!("failed to listen for children: {e}"))?;
        wait(&secret);
        Ok((isolation, confinement, secret, children))
    };
    let (isolation, confinement, secret, children) = match prepare() {
        Ok(prepared) => prepared,
        Err(text) => return not_started(text),
    };
    let mut link = LinkClient::new(way);
    let request = GrantRequest { run: spec.run.clone(), epoch: spec.epoch, secret: secret.clone(), isolation };
    let epoch = match ask_for_grant(&mut link, &request, spec.lease_millis) {
        Ok(epoch) => epoch,
        Err(text) => return not_started(text),
    };
    let granted_at = system::boot_millis();
    let report = |cause| ExitReport { cause, duration_millis: system::boot_millis().saturating_sub(granted_at), counters: None };
    match execute(spec, confinement, doors) {
        Ok((child, output)) => {
            let lease = Lease::new(spec.lease_millis, granted_at, system::awake_millis());
            let deadline = spec.deadline_millis.map(|millis| granted_at + millis);
            let mut init = Init { child, output: Some(output), children, log, link, lease, deadline, secret, epoch, exit: None };
            let cause = init.supervise(hold_millis(spec.lease_millis) + ANSWER_PATIENCE_MILLIS);
            init.end_everything();
            report(cause)
        }
        Err(text) => report(ExitCause::CannotExecute(text)),
    }
}

fn make_secret() -> rustix::io::Result<String> {
    let mut bytes = [0; SECRET_BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let mut text = String::with_capacity(2 * SECRET_BYTES);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    Ok(text)
}

/// Asks until there is a word; nobody's word for the lease time is a refusal. Returns the epoch that the controller knows.
fn ask_for_grant(link: &mut LinkClient, request: &GrantRequest, lease_millis: u64) -> Result<u64, String> {
    let give_up_at = system::boot_millis() + lease_millis;
    loop {
        let now = system::boot_millis();
        if now >= give_up_at {
            return Err(format!("nobody answered the request for a start for {} s", lease_millis / 1000));
        }
        if link.is_idle(now) {
            link.send(PATH_GRANT, request, GRANT_PATIENCE_MILLIS);
        }
        let wait = timespec(link.wake_at().min(give_up_at).saturating_sub(now).max(1));
        match link.readable() {
            Some(fd) => rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&wait)),
            None => rustix::event::poll(&mut [], Some(&wait)),
        }
        .ok();
        match link.receive::<GrantAnswer>() {
            Some(answer) if answer.granted && answer.epoch >= request.epoch => return Ok(answer.epoch),
            Some(answer) if answer.granted => return Err(format!("the controller's epoch {} is older than mine", answer.epoch)),
            Some(answer) => return Err(answer.reason),
            None => {}
        }
    }
}

/// Starts the command; its process id and the reading end of its output.
fn execute(spec: &LaunchSpec, confinement: Confinement, doors: Doors) -> Result<(i32, OwnedFd), String> {
    let (program, args) = spec.args.split_first().ok_or("there is no command")?;
    let pipes = || -> std::io::Result<(OwnedFd, OwnedFd, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        let second = write.try_clone()?;
        Ok((read, write, second))
    };
    let (read, stdout, stderr) = pipes().map_err(|e| format!("failed to make a pipe: {e}"))?;
    link_home(spec);
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(environment(spec)).current_dir(WORKSPACE);
    command.stdin(Stdio::null()).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    // SAFETY: setsid, write, setrlimit, sigprocmask, the calls of seccomp and Landlock and close_range are async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            doors.enter()?;
            // SIGCHLD is blocked in init only: a shell that waits needs it.
            system::unblock_signals();
            system::close_on_exec_from(3)?;
            confinement.enter()
        });
    }
    let child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
    Ok((pid, read))
}

/// Makes the links that tools need in HOME. HOME may hold anything that an earlier attempt left there: what fails is the tool's matter.
/// A link of the agent's is never followed: init has descriptors that lead out of the sandbox (`/proc/self/fd`), and as an ordinary user
/// its uid may write there.
fn link_home(spec: &LaunchSpec) {
    for (place, target) in &spec.home_links {
        let _ = link_beneath_home(place, target);
    }
}

fn link_beneath_home(place: &Path, target: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let mut folder = rustix::fs::open(HOME, flags, Mode::empty())?;
    for name in place.parent().into_iter().flat_map(Path::components) {
        // What is there already is opened, if it is a folder.
        let _ = rustix::fs::mkdirat(&folder, name.as_os_str(), Mode::from_raw_mode(0o755));
        folder = rustix::fs::openat2(&folder, name.as_os_str(), flags, Mode::empty(), resolve)?;
    }
    rustix::fs::symlinkat(target, &folder, place.file_name().ok_or(Errno::INVAL)?)
}

/// What the command gets: init's own, then the run's. In a container what the image says comes before both, and its programs after the tools.
fn environment(spec: &LaunchSpec) -> Vec<(String, String)> {
    // What is init's own, and where a cluster is, is nothing to the command.
    let is_hidden = |name: &str| name.starts_with(ENV_PREFIX) || (spec.pod && name.starts_with("KUBERNETES_"));
    let image: Vec<(String, String)> =
        if spec.contained { std::env::vars().filter(|(name, _)| !is_hidden(name)).collect() } else { Vec::new() };
    let of_image = image.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_str());
    let search_path: Vec<&str> =
        [Some(spec.search_path.as_str()), of_image].into_iter().flatten().filter(|path| !path.is_empty()).collect();
    let search_path = search_path.join(":");
    let own = [
        ("HOME", HOME),
        ("PATH", search_path.as_str()),
        ("TMPDIR", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("CI", "1"),
        ("USER", USER),
        ("LOGNAME", USER),
        ("GIT_TERMINAL_PROMPT", "0"),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let spec_own = spec.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let own: Vec<(String, String)> = own.chain(spec_own).collect();
    image.into_iter().chain(own).collect()
}

struct Init {
    child: i32,
    output: Option<OwnedFd>,
    children: OwnedFd,
    log: Ring,
    link: LinkClient,
    lease: Lease,
    deadline: Option<u64>,
    secret: String,
    epoch: u64,
    exit: Option<ExitCause>,
}

impl Init {
    /// Goes on until there is a reason to end.
    fn supervise(&mut self, answer_patience_millis: u64) -> ExitCause {
        loop {
            let now = system::boot_millis();
            if self.link.is_idle(now) {
                self.link.send(PATH_RENEW, &RenewRequest { secret: self.secret.clone() }, answer_patience_millis);
            }
            self.wait(now);
            self.take_output();
            let is_told = self.reap();
            if let Some(cause) = self.exit.take() {
                return cause;
            }
            if is_told {
                return ExitCause::Stopped;
            }
            match self.link.receive::<RenewAnswer>() {
                Some(answer) if answer.epoch < self.epoch => {}
                Some(RenewAnswer { word: Word::Stop, .. }) => return ExitCause::Stopped,
                Some(RenewAnswer { word: Word::Renew, epoch }) => {
                    self.epoch = epoch;
                    self.lease.renew(system::boot_millis());
                }
                None => {}
            }
            let now = system::boot_millis();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                return ExitCause::TimedOut;
            }
            match self.lease.tick(now, system::awake_millis()) {
                Tick::Valid => {}
                Tick::Resumed => self.link.reset(),
                Tick::Expired => return ExitCause::LeaseExpired,
            }
        }
    }

    /// Waits until something can be done.
    fn wait(&self, now: u64) {
        let mut until = self.lease.until().min(self.link.wake_at().max(now + 1));
        until = self.deadline.map_or(until, |deadline| until.min(deadline));
        let mut fds = vec![PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN)];
        fds.extend(self.output.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(self.link.readable().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // An interrupted or failed wait is a wait that ended early.
        let _ = rustix::event::poll(&mut fds, Some(&timespec(until.saturating_sub(now))));
    }

    /// Moves what is there into the log, at most one round; closes the pipe at its end.
    fn take_output(&mut self) {
        let Some(fd) = &self.output else { return };
        let mut bytes = [0; OUTPUT_BYTES_PER_ROUND];
        match rustix::io::read(fd, &mut bytes) {
            Ok(0) => self.output = None,
            // A full disk loses output, never the sandbox.
            Ok(length) => drop(self.log.append(&bytes[..length])),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.output = None,
        }
    }

    /// Takes in every child that has ended; the command's end is remembered. Returns whether somebody outside told us to end.
    fn reap(&mut self) -> bool {
        let is_told = system::take_signals(&self.children);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid.as_raw_nonzero().get() == self.child {
                self.exit = Some(cause_of(status));
            }
        }
        is_told
    }

    /// SIGKILLs everything else in the namespace until nothing is left, then takes the rest of the output.
    fn end_everything(&mut self) {
        loop {
            system::kill_everything_else();
            match rustix::process::wait(WaitOptions::NOHANG) {
                Err(Errno::CHILD) => break,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let fds = &mut [PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN)];
                    let _ = rustix::event::poll(fds, Some(&timespec(KILL_ROUND_MILLIS)));
                    system::take_signals(&self.children);
                }
            }
        }
        // No writer is left, so the pipe ends.
        while self.output.is_some() {
            self.take_output();
        }
    }
}

fn cause_of(status: WaitStatus) -> ExitCause {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitCause::Exited(code),
        (None, signal) => ExitCause::Signaled(signal.unwrap_or_default()),
    }
}

fn timespec(millis: u64) -> Timespec {
    let clamp = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Timespec { tv_sec: clamp(millis / 1000), tv_nsec: clamp(millis % 1000 * 1_000_000) }
}
