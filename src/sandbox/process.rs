//! The process driver: a sandbox is a process in namespaces of its own, with `mosaic-init` as its PID 1.
//!
//! A launcher that belongs to nobody makes it (`inside::launch`) and waits for its end; both hold the run's lock. What is looked at is the
//! process table. As root a sandbox has a uid of its own. As an ordinary user it has that user's, within a user namespace that the launcher
//! enters first (`SandboxIds`); everything after that is the same. What is enforced is looked at from inside (`inside::confine`) and
//! reported in `isolation`.

use crate::api::agent::Driver;
use crate::api::names::RunId;
use crate::inside::wire::{ExitReport, FILE_LAUNCHER, FILE_WAIT, Identity, LaunchSpec, ToolMount, WaitReport};
use crate::sandbox::cgroup::{self, Hierarchies};
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::folder::{ContainerSpec, StoredSpec};
use crate::sandbox::limits::{Bound, Means};
use crate::sandbox::runs::stop::{LAUNCHER_PATIENCE, groups_of};
use crate::sandbox::runs::{Claimed, Maker, Run, failed};
use crate::sandbox::{RunSpec, SandboxError, kill};
use crate::tools;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The process driver's part of all runs.
pub(crate) struct Process {
    config: Arc<SandboxConfig>,
    hierarchies: Hierarchies,
}

impl Process {
    /// Looks where control groups can be made.
    pub(crate) fn new(config: Arc<SandboxConfig>) -> Self {
        let hierarchies = Hierarchies::find(&config.installation, &config.state);
        Self { config, hierarchies }
    }
}

impl Maker for Process {
    fn driver(&self) -> Driver {
        Driver::Process
    }

    fn means(&self) -> Means {
        let has = |controller, else_by| if self.hierarchies.has(controller) { Bound::Kernel } else { else_by };
        // In a user namespace of ours the kernel counts the processes of a sandbox by themselves, and holds RLIMIT_NPROC against that; their
        // memory can at least be looked at.
        let (memory, pids) = if self.config.ids.unprivileged { (Bound::Watchdog, Bound::Kernel) } else { (Bound::None, Bound::None) };
        Means { memory: has("memory", memory), pids: has("pids", pids), cpu: has("cpu", Bound::None) }
    }

    fn check(&self, _run: &Arc<Run>, _spec: &RunSpec) -> Result<Option<Box<dyn Claimed>>, SandboxError> {
        Ok(None)
    }

    fn complete(&self, spec: &RunSpec, launch: &mut LaunchSpec, _claimed: Option<&RunId>) -> Option<ContainerSpec> {
        let roots = &self.config.tool_roots;
        launch.tools = tools::mounts(roots).into_iter().map(|mount| ToolMount { host: mount.host, inside: mount.inside }).collect();
        launch.home_links = roots.iter().flat_map(|root| root.home_links.clone()).collect();
        launch.search_path = tools::search_path(roots);
        launch.env = tools::environment(roots);
        launch.env.extend(spec.env.clone());
        launch.unprivileged = self.config.ids.unprivileged;
        launch.limits.groups = self.hierarchies.groups_of(&spec.run);
        // As root it would count the processes of all sandboxes together: they have one uid.
        launch.limits.processes_max = self.config.ids.unprivileged.then_some(u64::from(spec.limits.pids_max));
        None
    }

    fn start(&self, run: &Run, spec: &StoredSpec, lock: File) -> Result<(), SandboxError> {
        let made = self.hierarchies.make(&spec.run, &spec.limits);
        let started = made.and_then(|()| {
            spawn(&self.config.init, run.folder.path(), &lock)
                .map_err(|e| io::Error::new(e.kind(), format!("failed to start {}: {e}", self.config.init.display())))
        });
        started.map_err(|e| {
            let _ = crate::inside::limits::remove(&self.hierarchies.groups_of(&run.id));
            failed(&run.id, "start")(e)
        })
    }

    fn is_unfinished(&self, _run: &Run) -> io::Result<bool> {
        Ok(false)
    }

    fn may_come(&self, run: &Run) -> io::Result<bool> {
        run.folder.is_held()
    }

    fn last_word(&self, run: &Run, _report: Option<&ExitReport>) -> io::Result<Option<WaitReport>> {
        run.folder.read(FILE_WAIT)
    }

    fn strike(&self, _run: &Run) {}

    fn kill_starter(&self, run: &Run, init_gone_for: Option<Duration>) -> io::Result<()> {
        // A launcher that prepares is ended; one whose init has just gone may write how first.
        if init_gone_for.is_none_or(|time| time > LAUNCHER_PATIENCE)
            && let Some(launcher) = run.folder.read::<Identity>(FILE_LAUNCHER)?
            && let Some(handle) = kill::handle(&launcher)?
        {
            kill::kill(&handle)?;
        }
        Ok(())
    }

    fn clear(&self, run: &Run) -> io::Result<()> {
        cgroup::remove(&groups_of(run)?, LAUNCHER_PATIENCE)
    }

    fn sweep(&self, known: &dyn Fn() -> BTreeSet<String>) -> io::Result<()> {
        self.hierarchies.sweep(known, &self.config.cleanups);
        Ok(())
    }
}

/// Starts the launcher; it detaches itself, and what we wait for ends at once. Without anything to do between fork and exec this is a
/// `posix_spawn`: no copy of our memory, and hardly an instant in which another process has our locks and sockets open.
fn spawn(init: &Path, folder: &Path, lock: &File) -> io::Result<()> {
    let mut command = Command::new(init);
    command.arg("launch").env_clear().stdin(File::open(folder)?).stdout(lock.try_clone()?).stderr(Stdio::null());
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("the launcher ended with {status}"))) }
}
