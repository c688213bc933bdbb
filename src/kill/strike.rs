//! SIGKILL by the kernel's own paths, for many runs at once, and a look that nothing is left.
//!
//! First every init is caught by a handle, then all get their signal in one sweep of microseconds each: the dying keep every processor busy, and
//! a look between two signals would wait behind them. Then the control groups, then frozen ones are thawed, for a frozen process of a version
//! 1 group dies only when it runs again. A dead PID 1 is a dead namespace: the kernel reaps everything in it first;
//! one look through the process table confirms that. A pid is only ours while its start time and boot are, so nobody else is hit.

use crate::api::agent::Driver;
use crate::inside::system;
use crate::inside::wire::Identity;
use crate::kill::targets::Target;
use crate::sandbox::cgroup;
use crate::sandbox::kill::{self as process, Life};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pause between two rounds of looking.
const ROUND_PAUSE: Duration = Duration::from_millis(2);
/// Where the groups of a process are listed, and the folders they are in.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What the kernel showed of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing of it lives.
    Dead,
    /// Something lived until the time was over: what.
    Lives(String),
    /// The kernel cannot show it from here: why.
    Hidden(String),
}

/// How it went for one run.
#[derive(Debug, Clone)]
pub struct Struck {
    /// What was seen in the end.
    pub seen: Seen,
    /// When the signal was sent; `None`: there was nothing to signal.
    pub signalled: Option<Instant>,
    /// When it was seen dead.
    pub dead: Option<Instant>,
}

/// One run while it is worked on.
struct Hunt<'a> {
    target: &'a Target,
    init: Option<Caught>,
    launcher: Option<OwnedFd>,
    signalled: Option<Instant>,
    dead: Option<Instant>,
    trouble: Option<String>,
}

/// An init that lives, held so that neither its pid nor its namespace can become somebody else's.
struct Caught {
    identity: Identity,
    handle: OwnedFd,
    namespace: Option<File>,
}

/// Kills all runs and looks until all are seen dead or the time is over. `others` begins the other paths, once every init has its signal.
#[must_use]
pub fn strike(targets: &[Target], until: Instant, others: impl FnOnce()) -> Vec<Struck> {
    let mut hunts: Vec<Hunt<'_>> = targets.iter().map(Hunt::new).collect();
    let hurry = system::hurry();
    hunts.iter_mut().for_each(Hunt::find);
    hunts.iter_mut().for_each(Hunt::signal);
    drop(hurry);
    others();
    for hunt in &hunts {
        cgroup::kill(&hunt.target.groups);
        hunt.thaw();
    }
    loop {
        let mut open = false;
        let mut left: Option<BTreeSet<u64>> = None;
        for hunt in hunts.iter_mut().filter(|hunt| hunt.dead.is_none() && hunt.trouble.is_none()) {
            hunt.look(&mut left);
            open |= hunt.dead.is_none() && hunt.trouble.is_none();
        }
        if !open || Instant::now() >= until {
            return hunts.into_iter().map(Hunt::finish).collect();
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

impl<'a> Hunt<'a> {
    fn new(target: &'a Target) -> Self {
        Self { target, init: None, launcher: None, signalled: None, dead: None, trouble: None }
    }

    /// Catches what lives of it.
    fn find(&mut self) {
        if let Err(e) = self.try_find() {
            self.trouble = Some(e.to_string());
        }
    }

    fn try_find(&mut self) -> io::Result<()> {
        if let Some(identity) = self.target.identity()? {
            // A handle first: from here on it is this process and no other.
            if let Some(handle) = process::handle(&identity)? {
                let namespace = process::hold_namespace(&identity)?;
                self.init = Some(Caught { identity, handle, namespace });
            }
        } else if self.target.driver == Driver::Pod {
            return Err(io::Error::other("it is in a pod, and only its kubelet can tell"));
        } else if self.target.driver == Driver::Docker {
            // Its pid was never seen: only the engine can tell whether there is anything. What is refused its start ends by itself.
            return Err(io::Error::other("the kernel has not shown its process here"));
        } else if self.target.folder.is_held()?
            && let Some(launcher) = self.target.launcher()?
        {
            // It prepares: init waits for its word and goes with it.
            self.launcher = process::handle(&launcher)?;
        }
        Ok(())
    }

    /// SIGKILL for what was caught.
    fn signal(&mut self) {
        for handle in self.init.as_ref().map(|init| &init.handle).into_iter().chain(&self.launcher) {
            match process::kill(handle) {
                Ok(()) => drop(self.signalled.get_or_insert_with(Instant::now)),
                Err(e) => self.trouble = Some(e.to_string()),
            }
        }
    }

    /// It came while we looked.
    fn strike(&mut self) -> io::Result<()> {
        self.try_find()?;
        self.signal();
        Ok(())
    }

    /// Lets a frozen group of version 1 run again: its processes have their SIGKILL already.
    fn thaw(&self) {
        let Some(init) = &self.init else { return };
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", init.identity.pid)).unwrap_or_default();
        let freezer = groups.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path.trim_start_matches('/').to_owned()));
        if let Some(path) = freezer {
            let state = PathBuf::from(CGROUPS).join("freezer").join(path).join("freezer.state");
            // Where it is not frozen this changes nothing, and where it cannot be written nobody froze it.
            let _ = fs::write(state, "THAWED");
        }
    }

    /// Looks once. `left` are the pid namespaces in which something lives, read at most once in a round.
    fn look(&mut self, left: &mut Option<BTreeSet<u64>>) {
        let looked = self.try_look(left);
        match looked {
            Ok(true) => self.dead = Some(Instant::now()),
            Ok(false) => {}
            Err(e) => self.trouble = Some(e.to_string()),
        }
    }

    fn try_look(&mut self, left: &mut Option<BTreeSet<u64>>) -> io::Result<bool> {
        if let Some(init) = &self.init {
            if !process::wait_gone(&init.handle, Instant::now())? {
                return Ok(false);
            }
            let Some(_held) = &init.namespace else { return Ok(true) };
            let left = match left {
                Some(left) => left,
                None => left.insert(process::namespaces()?),
            };
            return Ok(!left.contains(&init.identity.pid_namespace));
        }
        if let Some(launcher) = &self.launcher
            && !process::wait_gone(launcher, Instant::now())?
        {
            return Ok(false);
        }
        match self.target.identity()? {
            Some(identity) if process::look(&identity)? == Life::Alive => {
                self.strike()?;
                Ok(false)
            }
            Some(_) => Ok(true),
            None if self.target.folder.is_held()? => {
                self.strike()?;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    fn finish(self) -> Struck {
        let seen = match (&self.dead, &self.trouble) {
            (Some(_), _) => Seen::Dead,
            (None, Some(why)) => Seen::Hidden(why.clone()),
            (None, None) => Seen::Lives(self.words()),
        };
        Struck { seen, signalled: self.signalled, dead: self.dead }
    }

    /// What still lives, and in which state the kernel has it.
    fn words(&self) -> String {
        let Some(init) = &self.init else { return "what prepares it still lives".to_owned() };
        let pid = init.identity.pid;
        match system::state_of(pid) {
            Ok(Some((state, _))) => format!("its init, pid {pid}, still lives (state {state})"),
            Ok(None) | Err(_) => format!("processes of its namespace {} still live", init.identity.pid_namespace),
        }
    }
}
