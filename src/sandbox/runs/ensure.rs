//! Making a run: intent first, then whatever the driver starts, which outlives us.

use super::{Claimed, LOOK_PAUSE, Maker, Run, Runs, failed};
use crate::api::agent::Driver;
use crate::api::names::RunId;
use crate::inside::limits::LimitSpec;
use crate::inside::wire::{FILE_SPEC, FILE_TASK, FILE_WAIT, LaunchSpec, WaitReport};
use crate::inside::{output, system};
use crate::sandbox::folder::{FILE_LOG, StoredSpec};
use crate::sandbox::limits::{self, Bound};
use crate::sandbox::runs::watchdog::WatchSpec;
use crate::sandbox::{RunSpec, SandboxError};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Pause between two questions to a driver whether something may still come.
const COMING_PAUSE: Duration = Duration::from_millis(500);

impl Runs {
    /// Makes a run with a driver, unless it exists; a run that exists stays with its own. `ready` makes sure of the driver before that.
    pub(crate) fn ensure(
        &self,
        spec: &RunSpec,
        driver: Driver,
        ready: &dyn Fn(&Arc<Run>) -> Result<(), SandboxError>,
    ) -> Result<(), SandboxError> {
        let id = &spec.run;
        self.fence(id, spec.epoch)?;
        let run = self.known().entry(id.clone()).or_insert_with(|| Run::new(id, driver, self.state())).clone();
        let maker = self.maker(run.driver).map_err(failed(id, "make"))?;
        {
            let _making = run.making.lock().unwrap_or_else(PoisonError::into_inner);
            let stored = run.folder.read::<StoredSpec>(FILE_SPEC).map_err(failed(id, "look for"))?;
            match stored {
                None => self.make(maker, &run, spec, ready)?,
                Some(stored) if run.ended.get().is_none() && maker.is_unfinished(&run).map_err(failed(id, "look for"))? => {
                    ready(&run)?;
                    self.resume(maker, &run, &stored)?;
                }
                Some(_) => {}
            }
        }
        let started = self.wait_started(maker, &run);
        self.blanks.fill();
        started
    }

    fn make(
        &self,
        maker: &dyn Maker,
        run: &Arc<Run>,
        spec: &RunSpec,
        ready: &dyn Fn(&Arc<Run>) -> Result<(), SandboxError>,
    ) -> Result<(), SandboxError> {
        let checked = ready(run).and_then(|()| maker.check(run, spec));
        run.say(None);
        let written = checked.and_then(|claimed| {
            let made_for = claimed.as_deref().map(Claimed::made_for);
            let (stored, lock) = self.write_intent(maker, run, spec, made_for).map_err(failed(&run.id, "prepare"))?;
            Ok((stored, lock, claimed))
        });
        match written {
            Ok((_, lock, Some(claimed))) => {
                claimed.hand_over(run, lock);
                Ok(())
            }
            Ok((stored, lock, None)) => self.start(maker, run, &stored, lock),
            Err(e) => {
                // No intent, no run: nothing was started, and nothing may be left.
                self.link.forget(&run.id);
                self.known().remove(&run.id);
                let _ = fs::remove_dir_all(run.folder.path());
                Err(e)
            }
        }
    }

    fn resume(&self, maker: &dyn Maker, run: &Run, stored: &StoredSpec) -> Result<(), SandboxError> {
        let lock = run.folder.open_lock().map_err(failed(&run.id, "start"))?;
        match system::lock_file(lock.as_fd()) {
            Ok(()) => {
                let served = lock.try_clone().and_then(|lock| self.serve(stored, &run.folder, Some(lock)));
                served.map_err(failed(&run.id, "start"))?;
                self.start(maker, run, stored, lock)
            }
            // Somebody lives in it already.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(failed(&run.id, "start")(e)),
        }
    }

    fn start(&self, maker: &dyn Maker, run: &Run, stored: &StoredSpec, lock: File) -> Result<(), SandboxError> {
        let started = maker.start(run, stored, lock);
        let Err(error) = &started else { return Ok(()) };
        self.link.let_go(&run.id);
        // Where the outcome is unknown nothing has failed for good: it is looked at, and tried again.
        if !error.is_unknown() {
            let _ = run.folder.write(FILE_WAIT, &WaitReport { failed: Some(crate::causes::one_line(error)), ..WaitReport::default() });
        }
        started.map_err(|error| self.take_back(maker, run, error))
    }

    /// Nothing came of a run that was refused: what was made for it goes once nothing can come of that any more, so that the refusal is all
    /// that there is to tell. What could not be seen to go stays a run, and is looked at.
    fn take_back(&self, maker: &dyn Maker, run: &Run, error: SandboxError) -> SandboxError {
        if !maker.takes_back() || !matches!(error, SandboxError::Refused { .. }) {
            return error;
        }
        let until = Instant::now() + self.config.stop_timeout;
        run.refuse(true);
        while run.folder.is_held().unwrap_or(true) || maker.may_come(run).unwrap_or(true) {
            if Instant::now() >= until {
                run.refuse(false);
                return error;
            }
            std::thread::sleep(LOOK_PAUSE * 4);
        }
        if run.session().is_ok_and(|session| session.is_none()) && maker.clear(run).is_ok() {
            self.link.forget(&run.id);
            self.known().remove(&run.id);
            let _ = fs::remove_dir_all(run.folder.path());
        }
        run.refuse(false);
        error
    }

    /// Lays out the folder; the intent stands when it returns.
    fn write_intent(&self, maker: &dyn Maker, run: &Run, spec: &RunSpec, claimed: Option<&RunId>) -> io::Result<(StoredSpec, File)> {
        // What was prepared has its folder already.
        if run.folder.path().exists() || !self.blanks.claim(&run.folder) {
            run.folder.make(self.config.ids.uid, self.config.ids.gid)?;
        }
        let lock = run.folder.open_lock()?;
        system::lock_file(lock.as_fd())?;
        let log = self.log_of(&run.id);
        if let Some(parent) = log.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        match fs::rename(run.folder.path().join(FILE_LOG), &log) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = File::options().write(true).create(true).truncate(true).open(&log)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        output::format(&file, self.config.output_bytes_max, &serde_json::to_vec(&run.id)?)?;
        if let Some(task) = &spec.task {
            fs::write(run.folder.path().join(FILE_TASK), task)?;
            // Read inside by the sandbox's user.
            fs::set_permissions(run.folder.path().join(FILE_TASK), fs::Permissions::from_mode(0o644))?;
        }
        let mut launch = self.launch_spec(maker, spec, &log);
        let container = maker.complete(spec, &mut launch, claimed);
        let stored = StoredSpec {
            run: run.id.clone(),
            epoch: spec.epoch,
            installation: self.config.installation.clone(),
            driver: run.driver,
            agent: spec.agent.clone(),
            watch: WatchSpec::of(spec, &run.folder, maker.means().memory == Bound::Watchdog),
            limits: spec.limits.clone(),
            container,
            launch,
        };
        if stored.launch.pod {
            // First, for one that waits asks at once.
            run.folder.write_durably(FILE_SPEC, &stored)?;
            self.serve(&stored, &run.folder, None)?;
        } else {
            self.serve(&stored, &run.folder, Some(lock.try_clone()?))?;
            run.folder.write(FILE_SPEC, &stored)?;
        }
        Ok((stored, lock))
    }

    /// What every driver tells init alike.
    fn launch_spec(&self, maker: &dyn Maker, spec: &RunSpec, log: &Path) -> LaunchSpec {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        LaunchSpec {
            run: spec.run.to_string(),
            epoch: spec.epoch.0,
            tree: spec.tree.clone(),
            home: spec.home.clone(),
            base_objects: spec.base_objects.clone(),
            tools: Vec::new(),
            home_links: Vec::new(),
            search_path: String::new(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            deadline_millis: spec.deadline.map(millis),
            uid: self.config.ids.uid,
            gid: self.config.ids.gid,
            unprivileged: false,
            contained: false,
            pod: false,
            lease_millis: millis(self.config.lease),
            tmp_bytes_max: limits::tmp_bytes_max(&spec.limits),
            allow_missing: self.config.allow_missing.clone(),
            limits: LimitSpec {
                groups: Vec::new(),
                enforced: limits::enforced(maker.driver(), &maker.means()),
                file_bytes_max: Some(spec.limits.disk_bytes),
                processes_max: None,
                memory_bytes_max: None,
                pids_max: None,
                memory_watched: maker.means().memory == Bound::Watchdog,
            },
            log: log.to_owned(),
        }
    }

    /// Waits until the command executes, or everything of the run is gone (then `observe` tells how it ended).
    fn wait_started(&self, maker: &dyn Maker, run: &Run) -> Result<(), SandboxError> {
        let since = Instant::now();
        let patience = self.config.start_timeout + maker.start_patience();
        let until = since + patience;
        let mut asked_at = since;
        loop {
            if self.link.wait_started(&run.id, LOOK_PAUSE * 4) {
                run.say(None);
                return Ok(());
            }
            let held = run.folder.is_held().map_err(failed(&run.id, "look at"))?;
            let mut gone = !held || run.ended.get().is_some();
            if !gone && asked_at.elapsed() >= COMING_PAUSE && run.folder.identity().map_err(failed(&run.id, "look at"))?.is_none() {
                asked_at = Instant::now();
                // What cannot be looked at may still come.
                gone = !maker.may_come(run).unwrap_or(true);
            }
            if gone {
                self.link.let_go(&run.id);
                // The link tells of ends only from the grant on.
                self.link.tell(&run.id.uid);
                return Ok(());
            }
            let coming = maker.coming(run, since);
            run.say(coming.doing);
            if let Some(refused) = coming.refused {
                run.refuse(true);
                // Before it is taken away: a change of the cluster's mind comes too late.
                if self.link.bury(&run.id, &run.folder, &crate::causes::one_line(&refused)).map_err(failed(&run.id, "give up"))? {
                    maker.strike(run);
                    return Err(self.take_back(maker, run, refused));
                }
                // It was granted its start meanwhile.
                run.refuse(false);
            }
            if Instant::now() >= until {
                let text = format!("it did not start within {} s", patience.as_secs());
                return Err(failed(&run.id, "start")(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}
