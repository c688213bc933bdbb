//! Containers that were made and started ahead (`--warm`): each waits at the start gate for the agent that takes it.
//!
//! ```text
//! prepare: folder -> create -> read back -> start -> init asks for its files: its line is held -> ready
//! claim:   mount tree, HOME and objects into it (`graft`) -> its folder becomes the run's -> intent -> the line is let go
//! ```
//!
//! From there on everything is as in a container that was made for the run: init asks again, and now the run's own link answers. What was
//! prepared is taken once and never again. It is taken only by an agent whose container would be the very same: the request for it is made
//! anew and compared. An agent with other limits, another image or a runtime of its own, and every gate, gets a new one.
//!
//! Nothing of an agent is in a prepared container, and it executes nothing: its init ends by itself when its line is not renewed. Its
//! folder is in `prepared/`, not in `runs/`, so that nobody takes it for an agent's; the kill lane ends it with everything else
//! (`kill::targets`). Its labels name a run that never was; who claims it is told by the name in the run's `container.json`. What a controller
//! leaves behind the next one ends and removes.

use super::engine::container_name;
use super::graft::{self, Graft};
use super::image::{FoundImage, check_name};
use super::{Docker, Known, body, engine_failed, labels};
use crate::api::names::{Attempt, Role, RunId, Uid};
use crate::api::validate::{LIMITS_DEFAULT, Limits};
use crate::beneath;
use crate::cleanups::{Cleanups, Stray};
use crate::inside::wire::{
    BASE_OBJECTS_INSIDE, FILE_CONTAINER, FILE_GROUPS, FILE_IDENTITY, FILE_TASK, FOLDER_CONTROL, HOME, Identity, SOCKET_FILES, WORKSPACE,
    hold_millis,
};
use crate::sandbox::folder::{FILE_PREPARED, FOLDER_PREPARED, MadeContainer, PreparedContainer, RunFolder, short};
use crate::sandbox::link::{bind_in, prove};
use crate::sandbox::runs::{Claimed, Run, failed};
use crate::sandbox::{RunSpec, SandboxError, cgroup, kill};
use bollard::models::ContainerCreateBody;
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

/// How often it is looked whether all prepared ones still live.
const ROUND_PAUSE: Duration = Duration::from_secs(1);
/// Pause while agents are being started: they go first.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How long nothing is prepared after one was taken: the agent that took it begins first.
const CLAIM_PAUSE: Duration = Duration::from_millis(300);
/// Pause after one could not be prepared.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// What is prepared.
#[derive(Default)]
pub(super) struct Pool {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    /// How many there should be; 0: none any more.
    wanted: usize,
    ready: VecDeque<Ready>,
    /// What is not used, but is still there.
    waste: Vec<Place>,
    /// Folder names of all that are there in any of these ways, or are being made.
    names: BTreeSet<String>,
    /// When one was taken last.
    taken_at: Option<Instant>,
    trouble: Option<String>,
}

/// Where a prepared container is kept.
struct Place {
    run: RunId,
    folder: RunFolder,
}

/// One that waits.
struct Ready {
    place: Place,
    wanted: ContainerCreateBody,
    identity: Identity,
    waiting: Waiting,
}

/// An init that waits for its files; ended with this value, unless they are handed over to it.
struct Waiting {
    /// As what it was made.
    run: RunId,
    init: OwnedFd,
    /// Its line is held until this goes.
    line: Option<oneshot::Sender<()>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.line.is_some() {
            // Without permission it goes when nobody renews its line.
            let _ = kill::kill(&self.init);
        }
    }
}

impl Claimed for Waiting {
    fn made_for(&self) -> &RunId {
        &self.run
    }

    fn hand_over(mut self: Box<Self>, _run: &Run, _lock: File) {
        // The link has the lock as well, and hands it over with the files.
        self.line.take();
    }
}

impl Pool {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folder names of everything that is prepared. To be read before the runs: what is claimed meanwhile is found there.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.inside().names.clone()
    }

    fn take(&self) -> Option<Ready> {
        self.inside().ready.pop_front()
    }

    /// It is not used; ended at once, taken away later.
    fn throw_away(&self, ready: Ready) {
        let Ready { place, waiting, .. } = ready;
        drop(waiting);
        self.inside().waste.push(place);
        self.changed.notify_all();
    }

    fn pause(&self, pause: Duration) {
        let inside = self.inside();
        if inside.wanted > 0 {
            drop(self.changed.wait_timeout(inside, pause).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Ends what an earlier controller of this state folder has prepared, and removes the folders; the containers belong to nobody then, and are
/// swept.
/// # Errors
/// The folder cannot be read.
pub(crate) fn end_left(state: &Path, cleanups: &Cleanups) -> io::Result<()> {
    let folder = state.join(FOLDER_PREPARED);
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let left = RunFolder::at(entry.path());
        let prepared: Option<PreparedContainer> = left.read(FILE_PREPARED)?;
        // In a copy of the folder they are another's.
        let is_ours = prepared.is_some_and(|prepared| prepared.home == labels::home(state));
        if is_ours
            && let Some(identity) = left.identity()?
            && let Some(init) = kill::handle(&identity)?
        {
            kill::kill(&init)?;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        beneath::remove_all(&folder, &name)?;
        cleanups.tell(Stray::Folder, &format!("the folder of a prepared container, {FOLDER_PREPARED}/{name}"));
    }
    Ok(())
}

impl Docker {
    /// Keeps so many containers of the default image prepared from now on.
    /// # Errors
    /// In words: why none can be prepared here.
    pub(crate) fn keep_warm(self: &Arc<Self>, count: usize) -> Result<(), String> {
        if count == 0 {
            return Ok(());
        }
        graft::check(&self.config.state)?;
        self.warm.inside().wanted = count;
        let (pool, docker) = (self.warm.clone(), Arc::downgrade(self));
        let keep = move || keep(&pool, &docker);
        std::thread::Builder::new().name("mosaic-warm".to_owned()).spawn(keep).map(drop).map_err(|e| e.to_string())
    }

    /// How many containers wait for an agent, and why there are not more, if something is in the way.
    #[must_use]
    pub fn prepared(&self) -> (usize, Option<String>) {
        let inside = self.warm.inside();
        (inside.ready.len(), inside.trouble.clone())
    }

    /// Ends and removes what is prepared, and prepares nothing more. What the engine does not remove in time the next controller does.
    pub(crate) fn end_prepared(&self) {
        let ready = {
            let mut inside = self.warm.inside();
            inside.wanted = 0;
            std::mem::take(&mut inside.ready)
        };
        ready.into_iter().for_each(|ready| self.warm.throw_away(ready));
        // One may just be being made; it is thrown away then.
        let until = Instant::now() + self.config.start_timeout;
        loop {
            self.remove_waste();
            let inside = self.warm.inside();
            if inside.names.is_empty() || Instant::now() >= until {
                return;
            }
            drop(self.warm.changed.wait_timeout(inside, BUSY_PAUSE).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Takes a prepared container for a run, if there is one that is what the run would get.
    pub(super) fn claim(&self, run: &Run, spec: &RunSpec, image: &FoundImage) -> Option<Box<dyn Claimed>> {
        let (Role::Agent, Some(home), Some(objects), Some(_)) = (&run.id.role, &spec.home, &spec.base_objects, &spec.task) else {
            return None;
        };
        let known = self.must_know().ok()?;
        while let Some(ready) = self.warm.take() {
            let place = &ready.place;
            let would_be = self.body_of(&known, &place.folder, &place.run, image, spec.runtime_class.as_deref(), &spec.limits);
            if would_be.ok().as_ref() != Some(&ready.wanted) {
                // The image's name may mean another one by now.
                let is_default = check_name(self.default_image()).as_ref() == Ok(&image.name);
                if is_default && ready.wanted.image.as_deref() != Some(&image.id) {
                    self.warm.throw_away(ready);
                    continue;
                }
                self.warm.inside().ready.push_front(ready);
                return None;
            }
            match self.give(run, &ready, [&spec.tree, home, objects]) {
                Ok(()) => {
                    let mut inside = self.warm.inside();
                    inside.names.remove(&short(&ready.place.run));
                    inside.taken_at = Some(Instant::now());
                    drop(inside);
                    self.warm.changed.notify_all();
                    return Some(Box::new(ready.waiting));
                }
                Err(error) => {
                    tracing::warn!(run = %run.id, %error, "a prepared container cannot be used; making a new one");
                    self.warm.inside().trouble = Some(error.to_string());
                    self.warm.throw_away(ready);
                }
            }
        }
        None
    }

    fn give(&self, run: &Run, ready: &Ready, [tree, home, objects]: [&Path; 3]) -> io::Result<()> {
        if ready.place.folder.is_stopped()? {
            return Err(io::Error::other("it was killed"));
        }
        let socket = self.socket();
        let real = |path: &Path| body::shown(path, socket.as_deref()).map_err(io::Error::other);
        let (tree, home, objects) = (real(tree)?, real(home)?, real(objects)?);
        graft::graft(
            &ready.identity,
            &[
                Graft { source: &tree, target: WORKSPACE, read_only: false },
                Graft { source: &home, target: HOME, read_only: false },
                Graft { source: &objects, target: BASE_OBJECTS_INSIDE, read_only: true },
            ],
        )?;
        // Whatever of this folder is mounted in the container stays so.
        fs::rename(ready.place.folder.path(), run.folder.path())
    }

    fn body_of(
        &self,
        known: &Known,
        folder: &RunFolder,
        run: &RunId,
        image: &FoundImage,
        runtime: Option<&str>,
        limits: &Limits,
    ) -> Result<ContainerCreateBody, SandboxError> {
        let labels = labels::of_prepared(&self.config.installation, &self.config.state, run);
        let work = body::Work::Later;
        self.plan(known, folder, labels, image, runtime, limits, &self.tool_mounts(), work)
    }

    /// One round of keeping; how long to pause after it.
    fn refill(&self) -> Duration {
        self.remove_waste();
        let (dead, missing) = {
            let mut inside = self.warm.inside();
            let all = std::mem::take(&mut inside.ready);
            let (live, dead): (VecDeque<Ready>, VecDeque<Ready>) = all.into_iter().partition(Ready::is_alive);
            inside.ready = live;
            (dead, inside.wanted.saturating_sub(inside.ready.len()))
        };
        dead.into_iter().for_each(|ready| self.warm.throw_away(ready));
        if missing == 0 {
            return ROUND_PAUSE;
        }
        if !self.may_prepare() {
            return BUSY_PAUSE;
        }
        let outcome = self.prepare();
        let mut inside = self.warm.inside();
        inside.trouble = outcome.as_ref().err().map(|error| crate::causes::one_line(error));
        match (outcome, inside.wanted) {
            (Ok(ready), 1..) => {
                inside.ready.push_back(ready);
                Duration::ZERO
            }
            // It is not wanted any more.
            (Ok(ready), 0) => {
                drop(inside);
                self.warm.throw_away(ready);
                Duration::ZERO
            }
            (Err(error), _) => {
                tracing::debug!(error = crate::causes::one_line(&error), "could not prepare a container; trying again");
                RETRY_PAUSE
            }
        }
    }

    /// Whether the driver has proven itself, nothing is halted, and nobody waits for the engine.
    fn may_prepare(&self) -> bool {
        let just_taken = self.warm.inside().taken_at.is_some_and(|at| at.elapsed() < CLAIM_PAUSE);
        !just_taken && self.is_proven() && self.config.latch.halts().is_empty() && self.starts.available_permits() == self.docker.starts_max
    }

    fn prepare(&self) -> Result<Ready, SandboxError> {
        let uid = Uid::new(format!("prepared-{}", uuid::Uuid::new_v4().simple())).expect("letters, digits and a dash");
        let run = RunId { uid, attempt: Attempt(1), role: Role::Agent };
        let folder = RunFolder::at(self.config.state.join(FOLDER_PREPARED).join(short(&run)));
        self.warm.inside().names.insert(short(&run));
        let place = Place { run, folder };
        let prepared = self.prepare_in(&place);
        match prepared {
            Ok((wanted, identity, waiting)) => Ok(Ready { place, wanted, identity, waiting }),
            Err(error) => {
                self.warm.inside().waste.push(place);
                Err(error)
            }
        }
    }

    fn prepare_in(&self, place: &Place) -> Result<(ContainerCreateBody, Identity, Waiting), SandboxError> {
        let Place { run, folder } = place;
        let known = self.must_know()?;
        if !self.has_default_image()? {
            return Err(SandboxError::Unsupported(format!("the image {} is not there yet", self.default_image())));
        }
        let image = self.provide(self.default_image(), &|| false, Box::new(|_| ()))?;
        let listener = self.lay_out(place).map_err(failed(run, "prepare"))?;
        let wanted = self.body_of(&known, folder, run, &image, None, &LIMITS_DEFAULT)?;
        let name = container_name(&self.config.installation, run);
        let (engine, body, asked) = (self.engine()?.clone(), wanted.clone(), name.clone());
        let id = self.bridge.wait(async move { engine.create(&asked, body).await }).map_err(engine_failed(run, "prepare"))?;
        let made = MadeContainer { id, name };
        folder.write(FILE_CONTAINER, &made).map_err(failed(run, "prepare"))?;
        self.check_made(run, &made, &wanted)?;
        self.start_unless_stopped(folder, &made).map_err(engine_failed(run, "start"))?;
        let (identity, waiting) = self.wait_for_init(place, &made, listener).map_err(failed(run, "prepare"))?;
        Ok((wanted, identity, waiting))
    }

    /// Lays out the folder, which is the intent; where its init will ask.
    fn lay_out(&self, place: &Place) -> io::Result<std::os::unix::net::UnixListener> {
        let Place { run, folder } = place;
        crate::kill::engine::remember(&self.config.state, self.host(), &self.config.installation)?;
        folder.make(self.config.ids.uid, self.config.ids.gid)?;
        folder.write(FILE_PREPARED, &PreparedContainer { run: run.clone(), home: labels::home(&self.config.state) })?;
        // Mounted as it is; the task is written into it.
        let task = folder.path().join(FILE_TASK);
        fs::write(&task, b"")?;
        fs::set_permissions(&task, Permissions::from_mode(0o644))?;
        bind_in(&folder.path().join(FOLDER_CONTROL), SOCKET_FILES, 0o666)
    }

    /// Waits until init asks, looks who it is, and holds its line from then on.
    fn wait_for_init(
        &self,
        place: &Place,
        made: &MadeContainer,
        listener: std::os::unix::net::UnixListener,
    ) -> io::Result<(Identity, Waiting)> {
        let Place { run, folder } = place;
        let patience = self.config.start_timeout;
        let (listener, line) = self.bridge.wait(async move {
            let listener = UnixListener::from_std(listener)?;
            let accepted = tokio::time::timeout(patience, listener.accept()).await;
            let (line, _) = accepted.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "its init did not ask"))??;
            io::Result::Ok((listener, line))
        })?;
        let pid =
            pid_of(&line).ok_or_else(|| io::Error::other("its process cannot be seen from here: mosaic must run on the engine's host"))?;
        let identity = prove(pid, &made.id)?;
        folder.write(FILE_GROUPS, &cgroup::groups_of_container(pid, &made.id)?)?;
        folder.write(FILE_IDENTITY, &identity)?;
        let init = kill::handle(&identity)?.ok_or_else(|| io::Error::other("its init is gone"))?;
        let (let_go, gone) = oneshot::channel();
        let lease_millis = u64::try_from(self.config.lease.as_millis()).unwrap_or(u64::MAX);
        let waiting = Waiting { run: run.clone(), init, line: Some(let_go) };
        self.bridge.begin(hold(listener, line, pid, Duration::from_millis(hold_millis(lease_millis)), gone));
        // A kill that looked before its identity was written did not see it.
        if folder.is_stopped()? { Err(io::Error::other("it was killed")) } else { Ok((identity, waiting)) }
    }

    /// Takes away what is not used any more. What the engine does not take away now is tried again.
    fn remove_waste(&self) {
        let waste = std::mem::take(&mut self.warm.inside().waste);
        for place in waste {
            match self.remove_place(&place) {
                Ok(()) => drop(self.warm.inside().names.remove(&short(&place.run))),
                Err(error) => {
                    tracing::debug!(run = %place.run, error = crate::causes::one_line(&error), "could not remove a prepared container");
                    self.warm.inside().waste.push(place);
                }
            }
        }
    }

    fn remove_place(&self, place: &Place) -> Result<(), SandboxError> {
        let (engine, name) = (self.engine()?.clone(), container_name(&self.config.installation, &place.run));
        self.bridge.wait(async move { engine.remove(&name).await }).map_err(engine_failed(&place.run, "remove"))?;
        beneath::remove_all(&self.config.state.join(FOLDER_PREPARED), &short(&place.run)).map_err(failed(&place.run, "remove"))
    }
}

impl Ready {
    fn is_alive(&self) -> bool {
        !self.place.folder.is_stopped().unwrap_or(true) && kill::handle(&self.identity).is_ok_and(|handle| handle.is_some())
    }
}

/// Keeps the pool full until it is ended, or the driver is gone.
fn keep(pool: &Pool, docker: &Weak<Docker>) {
    while pool.inside().wanted > 0 {
        let Some(docker) = docker.upgrade() else { return };
        let pause = docker.refill();
        drop(docker);
        pool.pause(pause);
    }
}

/// Holds the line of an init that waits, one connection after another, so that a controller which is stuck renews nothing.
async fn hold(listener: UnixListener, mut line: UnixStream, pid: i32, renewal: Duration, mut let_go: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            _ = &mut let_go => return,
            () = tokio::time::sleep(renewal) => {}
        }
        drop(line);
        line = loop {
            let accepted = tokio::select! {
                _ = &mut let_go => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((line, _)) if pid_of(&line) == Some(pid) => break line,
                Ok(_) | Err(_) => tokio::time::sleep(BUSY_PAUSE).await,
            }
        };
    }
}

fn pid_of(line: &UnixStream) -> Option<i32> {
    line.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}
