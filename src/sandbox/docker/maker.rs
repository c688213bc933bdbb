//! What the docker driver does for all runs: `runs::Maker` for containers. The steps themselves are in `docker`.

use super::engine::{Container, EngineError, Status, container_name};
use super::{Docker, body, engine_failed, facts, labels};
use crate::api::agent::Driver;
use crate::api::names::RunId;
use crate::cleanups::Stray;
use crate::inside::wire::{ExitReport, FILE_CONTAINER, FILE_WAIT, LaunchSpec, WaitReport};
use crate::sandbox::cgroup;
use crate::sandbox::folder::{ContainerSpec, MadeContainer, RunFolder, StoredSpec, short};
use crate::sandbox::kill::{self, Life};
use crate::sandbox::limits::{Bound, Means};
use crate::sandbox::runs::{Claimed, LOOK_PAUSE, Maker, Run, failed, status_of};
use crate::sandbox::{RunSpec, SandboxError};
use crate::tools;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an engine may lag behind the kernel with a container's end.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(2);
/// Containers that are swept at once, in one pass.
const SWEPT_MAX: usize = 256;

impl Maker for Docker {
    fn driver(&self) -> Driver {
        Driver::Docker
    }

    fn means(&self) -> Means {
        self.known().as_ref().map_or(facts::MEANS_UNKNOWN, |known| known.facts.means())
    }

    fn check(&self, run: &Arc<Run>, spec: &RunSpec) -> Result<Option<Box<dyn Claimed>>, SandboxError> {
        let facts = self.look_at_engine()?;
        facts.check_runtime(spec.runtime_class.as_deref(), self.host())?;
        let image = spec.image.as_deref().unwrap_or(&self.docker.image);
        let image = self.provide_for(run, image)?;
        Ok(self.claim(run, spec, &image))
    }

    fn complete(&self, spec: &RunSpec, launch: &mut LaunchSpec, _claimed: Option<&RunId>) -> Option<ContainerSpec> {
        let roots = &self.docker.tool_roots;
        launch.contained = true;
        launch.tools = self.tool_mounts();
        launch.home_links = roots.iter().flat_map(|root| root.home_links.clone()).collect();
        launch.search_path = tools::programs(roots);
        launch.env = tools::environment(roots);
        launch.env.extend(spec.env.clone());
        let means = self.means();
        launch.limits.memory_bytes_max = (means.memory == Bound::Kernel).then_some(spec.limits.memory_bytes);
        launch.limits.pids_max = (means.pids == Bound::Kernel).then_some(u64::from(spec.limits.pids_max) + body::PIDS_OF_INIT);
        let image = spec.image.clone().unwrap_or_else(|| self.docker.image.clone());
        Some(ContainerSpec { image, runtime: spec.runtime_class.clone() })
    }

    fn start(&self, run: &Run, spec: &StoredSpec, lock: File) -> Result<(), SandboxError> {
        // The link has it as well, and hands it over.
        drop(lock);
        let stopped = || run.folder.is_stopped().map_err(failed(&run.id, "look at"));
        // Where its init has come nothing is left to make.
        if stopped()? || run.identity().map_err(failed(&run.id, "look at"))?.is_some() {
            return Ok(());
        }
        let remembered = crate::kill::engine::remember(&self.config.state, self.host(), &self.config.installation);
        remembered.map_err(failed(&run.id, "note the engine of"))?;
        let made = self.make(run, spec)?;
        let wish = spec.container.clone().unwrap_or_else(|| ContainerSpec { image: self.docker.image.clone(), runtime: None });
        if stopped()? { Ok(()) } else { self.start_made(run, &wish, &made) }
    }

    fn is_unfinished(&self, run: &Run) -> io::Result<bool> {
        // An init that has come and was not handed its files waits for them.
        let waits = match run.identity()? {
            Some(identity) => kill::look(&identity)? == Life::Alive,
            None => true,
        };
        Ok(waits
            && run.session()?.is_none()
            && run.folder.read::<WaitReport>(FILE_WAIT)?.is_none()
            && !run.folder.is_stopped()?
            && !run.folder.is_held()?)
    }

    fn may_come(&self, run: &Run) -> io::Result<bool> {
        if run.folder.read::<WaitReport>(FILE_WAIT)?.is_some() {
            return Ok(false);
        }
        if run.is_being_made() {
            return Ok(true);
        }
        let state = self.look(run).map_err(|e| io::Error::other(crate::causes::one_line(&e)))?;
        let stopped = run.folder.is_stopped()?;
        Ok(match state.map(|state| state.status) {
            None | Some(Status::Exited | Status::Removing) => false,
            // Nobody starts it any more.
            Some(Status::Created) => !stopped,
            Some(Status::Running | Status::Paused) => true,
        })
    }

    fn last_word(&self, run: &Run, report: Option<&ExitReport>) -> io::Result<Option<WaitReport>> {
        if let Some(known) = run.folder.read::<WaitReport>(FILE_WAIT)? {
            return Ok(Some(known));
        }
        // Whom we ended has no other cause, whatever the engine says.
        if run.folder.is_stopped()? {
            return Ok(None);
        }
        let until = Instant::now() + LAST_WORD_PATIENCE;
        loop {
            // An engine that does not answer has no word; the kernel has shown the end.
            let state = match self.look(run) {
                Ok(Some(state)) => state,
                Ok(None) | Err(_) => return Ok(None),
            };
            if let Some(code) = state.exit_code {
                let word = WaitReport {
                    failed: (!state.error.is_empty()).then_some(state.error),
                    status: Some(status_of(code)),
                    oom_kills: u64::from(state.oom_killed),
                    ..WaitReport::default()
                };
                run.folder.write(FILE_WAIT, &word)?;
                return Ok(Some(word));
            }
            // init's own word is good enough to go on with; without it the engine's is waited for.
            if report.is_some() || state.status == Status::Created || Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(LOOK_PAUSE * 4);
        }
    }

    fn strike(&self, run: &Run) {
        let Ok(engine) = self.engine() else { return };
        let name = self.name_of(run).unwrap_or_else(|_| container_name(&self.config.installation, &run.id));
        let engine = engine.clone();
        self.bridge.begin(async move {
            if let Err(error) = engine.kill(&name).await {
                tracing::debug!(name, error = %crate::causes::one_line(&error), "the engine did not kill");
            }
        });
    }

    fn kill_starter(&self, _run: &Run, _init_gone_for: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn clear(&self, run: &Run) -> io::Result<()> {
        let failed = |e: SandboxError| io::Error::other(crate::causes::one_line(&e));
        let (engine, name) = (self.engine().map_err(failed)?.clone(), self.name_of(run)?);
        self.bridge.wait(async move { engine.remove(&name).await }).map_err(engine_failed(&run.id, "remove")).map_err(failed)?;
        // An engine that died while it started the container has forgotten the process that waits to become its init.
        match run.folder.read::<MadeContainer>(FILE_CONTAINER)? {
            Some(made) if run.identity()?.is_none() => cgroup::end_members_of_container(&made.id),
            _ => Ok(()),
        }
    }

    fn sweep(&self, known: &dyn Fn() -> BTreeSet<String>) -> io::Result<()> {
        // Asked of an engine that was never used, it would only make every controller without one wait.
        let Ok(engine) = self.engine() else { return Ok(()) };
        if engine.socket().is_some_and(|socket| !Path::new(socket).exists()) {
            return Ok(());
        }
        let failed = |e: EngineError| io::Error::other(crate::causes::one_line(&e));
        let (asked, installation) = (engine.clone(), self.config.installation.clone());
        let home = labels::home(&self.config.state);
        let found = self.bridge.wait(async move { asked.ours(&installation).await }).map_err(failed)?;
        let mut ours = found.into_iter().filter(|container| container.home == home).peekable();
        if ours.peek().is_none() {
            return Ok(());
        }
        // After the look: who makes a container is known before. What is prepared first: it becomes a run's.
        let mut names = self.warm.names();
        names.extend(known());
        let mut strays: Vec<Container> = ours.filter(|c| !names.contains(&short(&c.run))).collect();
        if !strays.is_empty() {
            // Claimed ones have the name that they were prepared with.
            let folder_of = |name: &String| RunFolder::at(self.config.state.join("runs").join(name));
            let made = names.iter().map(|name| folder_of(name).read::<MadeContainer>(FILE_CONTAINER));
            let claimed = made.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().map(|made| made.name).collect::<BTreeSet<_>>();
            strays.retain(|stray| !claimed.contains(&stray.name));
            strays.truncate(SWEPT_MAX);
        }
        for stray in strays {
            tracing::info!(name = stray.name, agent = stray.agent, run = %stray.run, "removing a container that belongs to no run");
            let engine = engine.clone();
            let text = format!("container {} of {}, which belongs to no run", stray.name, stray.run);
            self.bridge.wait(async move { engine.remove(&stray.id).await }).map_err(failed)?;
            self.config.cleanups.tell(Stray::Container, &text);
        }
        Ok(())
    }
}
