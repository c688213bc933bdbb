//! The drill: a canary that ignores every signal is killed by each path in turn, and then by the lane; how long each took until it was seen
//! dead. What was never tried cannot be trusted: the age of the last good drill is a metric.
//!
//! It works in a state folder of its own; nothing of a running controller is touched.

use super::latch::Latch;
use super::matrix::Path;
use super::receipt::{KillRequest, Verdict};
use super::{Killer, targets};
use crate::api::agent::Driver;
use crate::api::names::{Attempt, Role, RunId, Uid};
use crate::api::validate::Limits;
use crate::causes;
use crate::sandbox::docker::engine::container_name;
use crate::sandbox::kill::{self as process, Life};
use crate::sandbox::{Drivers, RunSpec, Sandbox, SandboxConfig, cgroup};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// File of the state folder whose time is that of the last good drill.
const FILE_DRILL: &str = "drilled";
/// No path may take longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lease of the canary that is left alone; the others have the usual one.
const LEASE: Duration = Duration::from_secs(2);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// What the canary does: nothing but stay.
const CANARY: &str = "trap '' TERM INT HUP QUIT; while :; do sleep 1; done";

/// What came of one canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drilled {
    /// Where it ran.
    pub driver: String,
    /// By which path it was killed; `lane`: by all of them.
    pub path: String,
    /// From the kill to the look that saw it dead.
    pub millis: Option<u64>,
    /// What was seen, or why the path could not be tried.
    pub seen: String,
    /// True when it was tried and did not kill in time.
    pub failed: bool,
}

/// Kills a canary by each path with each driver that works here. `config` and `docker` have an empty state folder.
#[must_use]
pub fn drill(config: &SandboxConfig, open: &dyn Fn(SandboxConfig) -> Result<Drivers, String>) -> Vec<Drilled> {
    let mut all = Vec::new();
    for lease in [config.lease, LEASE] {
        let latch = Arc::new(Latch::default());
        let drivers = match open(SandboxConfig { lease, latch: latch.clone(), ..config.clone() }) {
            Ok(drivers) => drivers,
            Err(why) => return vec![Drilled { driver: "any".into(), path: "any".into(), millis: None, seen: why, failed: true }],
        };
        let drill = Drill { drivers, config, latch };
        for driver in [Driver::Process, Driver::Docker] {
            if drill.drivers.test(driver).is_err() || drill.drivers.verified(driver).is_empty() {
                continue;
            }
            let short = lease == LEASE;
            let paths = Path::ALL.into_iter().filter(|path| (*path == Path::Lease) == short);
            all.extend(paths.filter_map(|path| drill.one(driver, Some(path))));
            all.extend((!short).then(|| drill.one(driver, None)).flatten());
        }
    }
    all
}

/// Notes that a drill went well.
/// # Errors
/// The disk refuses.
pub fn remember(state: &std::path::Path) -> std::io::Result<()> {
    crate::durable::replace(&state.join(FILE_DRILL), b"the last drill in which every path killed its canary in time\n")
}

/// How long ago the last good drill was; `None`: there was none.
#[must_use]
pub fn age(state: &std::path::Path) -> Option<Duration> {
    let at = std::fs::metadata(state.join(FILE_DRILL)).and_then(|found| found.modified()).ok()?;
    SystemTime::now().duration_since(at).ok()
}

struct Drill<'a> {
    drivers: Drivers,
    config: &'a SandboxConfig,
    latch: Arc<Latch>,
}

impl Drill<'_> {
    /// `None`: the path has nothing to do with this driver here. `path` absent: the lane.
    fn one(&self, driver: Driver, path: Option<Path>) -> Option<Drilled> {
        let name = path.map_or("lane", Path::as_str);
        let done = |millis, seen: String, failed| {
            Some(Drilled { driver: format!("{driver:?}").to_lowercase(), path: name.to_owned(), millis, seen, failed })
        };
        let run = RunId {
            uid: Uid::new(format!("kill-drill-{driver:?}-{}", name.replace(' ', "-"))).expect("letters and dashes"),
            attempt: Attempt(1),
            role: Role::Agent,
        };
        let target = match self.start(driver, &run) {
            Ok(target) => target,
            Err(why) => return done(None, why, true),
        };
        let started = Instant::now();
        let tried = self.strike(path, driver, &run, &target);
        let outcome = match tried {
            Ok(false) => None,
            Ok(true) => {
                let patience = if path == Some(Path::Lease) { PATIENCE + LEASE } else { PATIENCE };
                match wait_dead(&target, started + patience) {
                    Ok(true) => {
                        done(u64::try_from(started.elapsed().as_millis()).ok(), "dead, seen in the process table".to_owned(), false)
                    }
                    Ok(false) => done(None, format!("it still lived after {} s", patience.as_secs()), true),
                    Err(why) => done(None, format!("could not look: {why}"), true),
                }
            }
            Err(why) => done(None, why, true),
        };
        let tidy = |what: Result<(), crate::sandbox::SandboxError>| what.map_err(|e| causes::one_line(&e));
        let tidied = block(async { tidy(self.drivers.stop(&run).await).and(tidy(self.drivers.remove(&run).await)) });
        match (outcome, tidied) {
            (Some(drilled), Err(why)) => Some(Drilled { seen: format!("{}; not taken away: {why}", drilled.seen), ..drilled }),
            (outcome, _) => outcome,
        }
    }

    fn start(&self, driver: Driver, run: &RunId) -> Result<targets::Target, String> {
        let tree = self.config.state.join("drill-tree");
        let ids = self.config.ids;
        std::fs::create_dir_all(&tree)
            .and_then(|()| std::os::unix::fs::chown(&tree, Some(ids.uid), Some(ids.gid)))
            .map_err(|e| format!("no tree for a canary: {e}"))?;
        let spec = RunSpec {
            run: run.clone(),
            epoch: crate::api::names::Epoch(1),
            driver,
            image: None,
            runtime_class: None,
            agent: format!("drill/{}", run.uid),
            tree,
            home: None,
            base_objects: None,
            task: None,
            args: vec!["/bin/sh".to_owned(), "-c".to_owned(), CANARY.to_owned()],
            env: BTreeMap::new(),
            deadline: None,
            limits: Limits { cpu_millis: 1000, memory_bytes: 64 << 20, pids_max: 16, disk_bytes: 1 << 20 },
        };
        block(self.drivers.ensure(spec)).map_err(|e| format!("no canary could be started: {}", causes::one_line(&e)))?;
        let found = targets::find(&self.config.state).map_err(|e| format!("its folder cannot be read: {e}"))?;
        found.runs.into_iter().find(|target| target.run == *run).ok_or_else(|| "the canary has no folder".to_owned())
    }

    /// Kills by one path only; false: that path has nothing to do with it.
    fn strike(&self, path: Option<Path>, driver: Driver, run: &RunId, target: &targets::Target) -> Result<bool, String> {
        let words = |e: std::io::Error| e.to_string();
        match path {
            None => {
                let killer = Killer { state: self.config.state.clone(), latch: Ok(self.latch.clone()), controller: None, audit: None };
                let request = KillRequest { agents: vec![run.uid.to_string()], who: "drill".to_owned(), ..KillRequest::default() };
                let receipts = killer.kill(&request);
                let verdicts: Vec<Verdict> = receipts.agents.iter().map(|receipt| receipt.verdict).collect();
                if verdicts == [Verdict::DeadVerified] { Ok(true) } else { Err(format!("the receipt says {verdicts:?}")) }
            }
            Some(Path::Process) => {
                let identity = target.identity().map_err(words)?.ok_or("its process was never seen")?;
                let handle = process::handle(&identity).map_err(words)?.ok_or("it was dead before the kill")?;
                process::kill(&handle).map(|()| true).map_err(words)
            }
            Some(Path::Groups) => {
                let with_kill = target.groups.iter().any(|group| group.join("cgroup.kill").exists());
                cgroup::kill(&target.groups);
                Ok(with_kill)
            }
            Some(Path::Link) => {
                self.drivers.say_stop(run);
                Ok(true)
            }
            Some(Path::Engine) if driver == Driver::Docker => {
                let engine = self.drivers.docker().engine().map_err(|e| causes::one_line(&e))?;
                block(engine.kill(&container_name(&self.config.installation, run))).map(|()| true).map_err(|e| causes::one_line(&e))
            }
            Some(Path::Engine) => Ok(false),
            Some(Path::Lease) => {
                // Nobody answers any more, as if there were no controller.
                self.drivers.forget_link(run);
                Ok(true)
            }
        }
    }
}

fn wait_dead(target: &targets::Target, until: Instant) -> Result<bool, String> {
    let identity = target.identity().map_err(|e| e.to_string())?.ok_or("its process was never seen")?;
    while process::look(&identity).map_err(|e| e.to_string())? == Life::Alive {
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Ok(true)
}

/// The drivers wait on tokio; the drill is no part of a runtime.
fn block<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a thread and a few descriptors");
    runtime.block_on(work)
}
