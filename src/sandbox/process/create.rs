//! Making a sandbox: intent first, then a launcher that outlives us.

use super::{Inner, Run, SandboxIds};
use crate::api::agent::Driver;
use crate::inside::limits::LimitSpec;
use crate::inside::wire::{FILE_SPEC, FILE_TASK, FILE_WAIT, LaunchSpec, ToolMount, WaitReport};
use crate::inside::{output, system};
use crate::sandbox::folder::StoredSpec;
use crate::sandbox::limits::{self, Bound};
use crate::sandbox::process::watchdog::WatchSpec;
use crate::sandbox::{RunSpec, SandboxError};
use crate::tools;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Pause between two looks while something is awaited.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Each tmpfs of a sandbox has at least so much,
const TMP_BYTES_MIN: u64 = 64 << 20;
/// and at most so much: it is memory of the host until limits are enforced.
const TMP_BYTES_MAX: u64 = 2 << 30;

impl Inner {
    pub(super) fn ensure(&self, spec: &RunSpec) -> Result<(), SandboxError> {
        let id = &spec.run;
        self.fence(id, spec.epoch)?;
        let run = self.known().entry(id.clone()).or_insert_with(|| self.run_of(id)).clone();
        {
            let _making = run.making.lock().unwrap_or_else(PoisonError::into_inner);
            let exists = fs::exists(run.folder.path().join(FILE_SPEC)).map_err(Self::failed(id, "look for"))?;
            if !exists {
                self.make(&run, spec)?;
            }
        }
        self.wait_started(&run)
    }

    fn make(&self, run: &Run, spec: &RunSpec) -> Result<(), SandboxError> {
        let written = self.write_intent(run, spec);
        let lock = match written {
            Ok(lock) => lock,
            Err(e) => {
                // No intent, no run: nothing was started, and nothing may be left.
                self.link.forget(&run.id);
                self.known().remove(&run.id);
                let _ = fs::remove_dir_all(run.folder.path());
                return Err(Self::failed(&run.id, "prepare")(e));
            }
        };
        let made = self.hierarchies.make(&run.id, &spec.limits);
        let started = made.and_then(|()| {
            spawn(&self.config.init, run.folder.path(), &lock)
                .map_err(|e| io::Error::new(e.kind(), format!("failed to start {}: {e}", self.config.init.display())))
        });
        started.map_err(|e| {
            let _ = crate::inside::limits::remove(&self.hierarchies.groups_of(&run.id));
            let report = WaitReport { failed: Some(e.to_string()), ..WaitReport::default() };
            let _ = run.folder.write(FILE_WAIT, &report);
            Self::failed(&run.id, "start")(e)
        })
    }

    /// Lays out the folder; the intent stands when it returns. The lock goes to the launcher.
    fn write_intent(&self, run: &Run, spec: &RunSpec) -> io::Result<File> {
        let SandboxIds { uid, gid, .. } = self.config.ids;
        run.folder.make(uid, gid)?;
        let lock = run.folder.open_lock()?;
        system::lock_file(lock.as_fd())?;
        let log = self.log_of(&run.id);
        if let Some(parent) = log.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let file = File::options().write(true).create(true).truncate(true).open(&log)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        output::format(&file, self.config.output_bytes_max, &serde_json::to_vec(&run.id)?)?;
        if let Some(task) = &spec.task {
            fs::write(run.folder.path().join(FILE_TASK), task)?;
            // Read inside by the sandbox's user.
            fs::set_permissions(run.folder.path().join(FILE_TASK), fs::Permissions::from_mode(0o644))?;
        }
        let stored = StoredSpec {
            run: run.id.clone(),
            epoch: spec.epoch,
            installation: self.config.installation.clone(),
            launch: self.launch_spec(spec, &log),
            watch: WatchSpec::of(spec, &run.folder, self.means().memory == Bound::Watchdog),
        };
        self.link.serve(&run.id, spec.epoch, stored.launch.lease_millis, &run.folder)?;
        run.folder.write(FILE_SPEC, &stored)?;
        Ok(lock)
    }

    fn launch_spec(&self, spec: &RunSpec, log: &Path) -> LaunchSpec {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let roots = &self.config.tool_roots;
        let mut env = tools::environment(roots);
        env.extend(spec.env.clone());
        LaunchSpec {
            run: spec.run.to_string(),
            epoch: spec.epoch.0,
            tree: spec.tree.clone(),
            home: spec.home.clone(),
            base_objects: spec.base_objects.clone(),
            tools: tools::mounts(roots).into_iter().map(|mount| ToolMount { host: mount.host, inside: mount.inside }).collect(),
            home_links: roots.iter().flat_map(|root| root.home_links.clone()).collect(),
            search_path: tools::search_path(roots),
            args: spec.args.clone(),
            env,
            deadline_millis: spec.deadline.map(millis),
            uid: self.config.ids.uid,
            gid: self.config.ids.gid,
            unprivileged: self.config.ids.unprivileged,
            lease_millis: millis(self.config.lease),
            tmp_bytes_max: (spec.limits.memory_bytes / 2).clamp(TMP_BYTES_MIN, TMP_BYTES_MAX),
            allow_missing: self.config.allow_missing.clone(),
            limits: LimitSpec {
                groups: self.hierarchies.groups_of(&spec.run),
                enforced: limits::enforced(Driver::Process, &self.means()),
                file_bytes_max: Some(spec.limits.disk_bytes),
                // As root it would count the processes of all sandboxes together: they have one uid.
                processes_max: self.config.ids.unprivileged.then_some(u64::from(spec.limits.pids_max)),
                memory_watched: self.means().memory == Bound::Watchdog,
            },
            log: log.to_owned(),
        }
    }

    /// Waits until the command executes, or everything of the run is gone (then `observe` tells how it ended).
    fn wait_started(&self, run: &Run) -> Result<(), SandboxError> {
        let until = Instant::now() + self.config.start_timeout;
        loop {
            if self.link.wait_started(&run.id, LOOK_PAUSE * 4) {
                return Ok(());
            }
            if run.ended.get().is_some() || !run.folder.is_held().map_err(Self::failed(&run.id, "look at"))? {
                // The link tells of ends only from the grant on.
                self.link.tell_ended(&run.id.uid);
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!("it did not start within {} s", self.config.start_timeout.as_secs());
                return Err(Self::failed(&run.id, "start")(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
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
