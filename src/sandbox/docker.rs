//! The docker driver: a sandbox is a container with `mosaic-init` as its PID 1.
//!
//! The engine makes and starts it; from then on it lives without the engine: init asks the controller for what it needs (`link::handover`),
//! the kernel shows whether it lives, and a kill goes to its PID 1 directly, with the engine beside it. So an engine that is down or hangs
//! keeps new sandboxes from starting, and nothing else. Every step is done again after a crash: the container's name is that of its run, a
//! create that completes late makes a container that nobody starts, a start that completes late meets the start gate.
//!
//! What is asked of the engine is in `body`, and what it made of that is read back before the start. `host` says how the engine's host calls
//! our files, `image` brings images, `facts` what the engine is.
//!
//! Starts at once are capped, so that a wave of them leaves the engine room for a kill; creating, and the work on trees before it, go on beside them.
//! A wave of ten took 2.6 s with one start at a time, 1.8 s with two, 2.0 s with three, 1.6 s with four and 1.7 s with eight, where ten raw
//! creates and starts at once take 1.5 s (means of six rounds, two cores, engine 20.10): half of a start is waiting, so twice the cores is enough.

mod body;

pub mod engine;
pub mod facts;
mod graft;
pub mod host;
pub mod image;
pub mod labels;
mod maker;
pub(crate) mod warm;

use crate::api::names::RunId;
use crate::api::validate::Limits;
use crate::inside::wire::{FILE_CONTAINER, ToolMount};
use crate::sandbox::bridge::Bridge;
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::folder::{ContainerSpec, MadeContainer, RunFolder, StoredSpec, hash};
use crate::sandbox::runs::{Run, failed};
use crate::sandbox::{Refusal, SandboxError};
use crate::tools::{self, ToolRoot};
use bollard::models::ContainerCreateBody;
use engine::{ContainerState, Engine, EngineError, container_name};
use facts::Facts;
use host::HostPaths;
use image::FoundImage;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Image of sandboxes unless configured.
pub const IMAGE_DEFAULT: &str = "mosaic-sandbox:latest";

/// How long an image that was found is not looked for again: a wave of starts looks once.
const IMAGE_FRESH: Duration = Duration::from_secs(5);

/// Settings of the docker driver.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// Address of the engine; `None`: as the `docker` program finds it.
    pub host: Option<String>,
    /// Image of runs that name none.
    pub image: String,
    /// Folders of tools that every container sees, read-only: those that the operator named.
    pub tool_roots: Vec<ToolRoot>,
    /// Most starts at once.
    pub starts_max: usize,
}

impl Default for DockerConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { host: None, image: IMAGE_DEFAULT.to_owned(), tool_roots: Vec::new(), starts_max: 2 * cores }
    }
}

/// What to say of an engine that does not see a path of ours.
#[must_use]
pub fn not_shared(host: &str, path: &Path) -> String {
    format!(
        "the engine at {host} does not see {} as this controller does: it must run on this machine without remapped ids; in a container, mount \
         the state folder at the same path on both sides",
        path.display()
    )
}

/// The docker driver's part of all runs.
pub struct Docker {
    config: Arc<SandboxConfig>,
    docker: DockerConfig,
    /// A client; or why there can be none.
    engine: Result<Engine, String>,
    bridge: Bridge,
    starts: Arc<Semaphore>,
    /// What the engine is, once it was asked.
    known: Mutex<Option<Arc<Known>>>,
    sees_mounts: AtomicBool,
    /// A sandbox of this driver has looked at itself.
    proven: AtomicBool,
    /// Containers that are made ahead.
    warm: Arc<warm::Pool>,
    /// Images that were found a moment ago.
    images: Mutex<BTreeMap<String, (Instant, FoundImage)>>,
}

/// What was found out about the engine, and prepared for it.
struct Known {
    facts: Facts,
    paths: HostPaths,
    /// The copy of init that containers see.
    init: PathBuf,
}

impl Docker {
    /// Opens a client; asks nothing yet.
    pub(crate) fn new(config: Arc<SandboxConfig>, docker: DockerConfig) -> io::Result<Self> {
        let engine = Engine::connect(docker.host.as_deref()).map_err(|e| crate::causes::one_line(&e));
        let starts = Arc::new(Semaphore::new(docker.starts_max));
        let (known, images, warm) = (Mutex::default(), Mutex::default(), Arc::default());
        let (sees_mounts, proven) = (AtomicBool::new(true), AtomicBool::new(false));
        Ok(Self { config, docker, engine, bridge: Bridge::new()?, starts, known, sees_mounts, proven, warm, images })
    }

    /// The client.
    /// # Errors
    /// `EngineUnavailable`: its address cannot be used.
    pub fn engine(&self) -> Result<&Engine, SandboxError> {
        self.engine.as_ref().map_err(|why| SandboxError::Refused { why: Refusal::EngineUnavailable, message: why.clone() })
    }

    /// Where the engine is.
    #[must_use]
    pub fn host(&self) -> &str {
        self.engine.as_ref().map_or("", Engine::host)
    }

    /// Image of runs that name none.
    #[must_use]
    pub fn default_image(&self) -> &str {
        &self.docker.image
    }

    /// Whether containers see what we mount; true until something else was seen.
    #[must_use]
    pub fn sees_mounts(&self) -> bool {
        self.sees_mounts.load(Ordering::SeqCst)
    }

    /// The driver's own test has gone well; whether it saw what we mount.
    pub(crate) fn set_proven(&self, sees_mounts: bool) {
        self.sees_mounts.store(sees_mounts, Ordering::SeqCst);
        self.proven.store(true, Ordering::SeqCst);
    }

    fn is_proven(&self) -> bool {
        self.proven.load(Ordering::SeqCst)
    }

    /// Asks the engine what it is, unless that is known, and prepares for it.
    /// # Errors
    /// It does not answer, or cannot be used; says what helps.
    pub fn look_at_engine(&self) -> Result<Facts, SandboxError> {
        if let Some(known) = self.known().as_ref() {
            return Ok(known.facts.clone());
        }
        let engine = self.engine()?.clone();
        let unavailable = |e: EngineError| SandboxError::Refused { why: Refusal::EngineUnavailable, message: crate::causes::one_line(&e) };
        let asking = engine.clone();
        let (version, info) = self.bridge.wait(async move { asking.about().await }).map_err(unavailable)?;
        let facts = Facts::of(version, info);
        if let Some(message) = facts.refusal(engine.host()) {
            return Err(SandboxError::Refused { why: Refusal::FilesNotShared, message });
        }
        let paths = match host::own_container() {
            Some(id) => {
                let own = self.bridge.wait(async move { engine.inspect(&id).await }).map_err(unavailable)?;
                HostPaths::of_container(own.and_then(|own| own.mounts).unwrap_or_default())
            }
            None => HostPaths::same(),
        };
        let cannot = |e: io::Error| SandboxError::Unsupported(format!("failed to prepare mosaic-init for containers: {e}"));
        let init = self.place_init().map_err(cannot)?;
        if paths.of(&init).is_none() {
            let message = not_shared(self.host(), &self.config.state);
            return Err(SandboxError::Refused { why: Refusal::FilesNotShared, message });
        }
        self.check_tools()?;
        *self.known() = Some(Arc::new(Known { facts: facts.clone(), paths, init }));
        Ok(facts)
    }

    fn known(&self) -> MutexGuard<'_, Option<Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn must_know(&self) -> Result<Arc<Known>, SandboxError> {
        self.look_at_engine()?;
        let known = self.known().clone();
        known.ok_or_else(|| SandboxError::Unsupported("the engine was not looked at".to_owned()))
    }

    /// Copies init to where containers can see it, by digest: a newer mosaic leaves alone what runs.
    fn place_init(&self) -> io::Result<PathBuf> {
        let bytes = fs::read(&self.config.init)?;
        let folder = self.config.state.join("init").join(hash(&bytes));
        DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
        let init = folder.join("mosaic-init");
        let (passwd, group) = (body::passwd(&self.config.ids), body::group(&self.config.ids));
        for (path, content, mode) in [
            (init.clone(), bytes.as_slice(), 0o111),
            (body::passwd_beside(&init, &self.config.ids), passwd.as_bytes(), 0o444),
            (body::group_beside(&init, &self.config.ids), group.as_bytes(), 0o444),
        ] {
            // What is there is in use.
            if !path.exists() {
                crate::durable::replace(&path, content)?;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(init)
    }

    /// The real path of the engine's socket.
    fn socket(&self) -> Option<PathBuf> {
        fs::canonicalize(self.engine.as_ref().ok()?.socket()?).ok()
    }

    /// No tool root may lead to the engine: who reaches its socket owns the host.
    fn check_tools(&self) -> Result<(), SandboxError> {
        let Some(socket) = self.socket() else { return Ok(()) };
        let leads_there = |mount: &tools::ToolMount| fs::canonicalize(&mount.host).is_ok_and(|host| socket.starts_with(host));
        match tools::mounts(&self.docker.tool_roots).iter().find(|mount| leads_there(mount)) {
            None => Ok(()),
            Some(mount) => Err(SandboxError::Unsupported(format!(
                "cannot show {} to containers: the engine's socket {} is in it",
                mount.host.display(),
                socket.display()
            ))),
        }
    }

    /// Whether the image of runs that name none is there.
    /// # Errors
    /// The engine does not answer.
    pub fn has_default_image(&self) -> Result<bool, SandboxError> {
        let (engine, image) = (self.engine()?.clone(), self.docker.image.clone());
        let Ok(name) = image::check_name(&image) else { return Ok(false) };
        let found = self.bridge.wait(async move { engine.image(&name).await });
        found.map(|found| found.is_some()).map_err(|e| image::failure(&image, &e))
    }

    /// Finds the image of a run, pulling it if it is not there: the run says how far that is, and its end breaks it off.
    pub(crate) fn provide_for(&self, run: &Arc<Run>, image: &str) -> Result<FoundImage, SandboxError> {
        let telling = run.clone();
        self.provide(image, &|| run.folder.is_stopped().unwrap_or(false), Box::new(move |text| telling.say(Some(text))))
    }

    fn provide(&self, image: &str, is_over: &dyn Fn() -> bool, tell: image::Tell) -> Result<FoundImage, SandboxError> {
        let images = || self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = images().get(image).filter(|(at, _)| at.elapsed() < IMAGE_FRESH) {
            return Ok(found.clone());
        }
        let machine = self.must_know()?.facts.machine();
        let found = image::provide(&self.bridge, self.engine()?.clone(), image, &machine, is_over, tell)?;
        let mut images = images();
        images.retain(|_, (at, _)| at.elapsed() < IMAGE_FRESH);
        images.insert(image.to_owned(), (Instant::now(), found.clone()));
        Ok(found)
    }

    /// What the engine says of a run's container; `None`: there is none.
    fn look(&self, run: &Run) -> Result<Option<ContainerState>, SandboxError> {
        let (engine, name) = (self.engine()?.clone(), self.name_of(run).map_err(failed(&run.id, "look at"))?);
        self.bridge.wait(async move { engine.state(&name).await }).map_err(engine_failed(&run.id, "look at"))
    }

    /// Name of a run's container: its own, or that of a prepared one which it has claimed.
    fn name_of(&self, run: &Run) -> io::Result<String> {
        let made: Option<MadeContainer> = run.folder.read(FILE_CONTAINER)?;
        Ok(made.map_or_else(|| container_name(&self.config.installation, &run.id), |made| made.name))
    }

    /// Tools that every container sees.
    fn tool_mounts(&self) -> Vec<ToolMount> {
        let mounts = tools::mounts(&self.docker.tool_roots).into_iter();
        mounts.map(|mount| ToolMount { host: mount.host, inside: mount.inside }).collect()
    }

    /// The request for a container.
    #[expect(clippy::too_many_arguments, reason = "all that differs between two containers")]
    fn plan(
        &self,
        known: &Known,
        folder: &RunFolder,
        labels: HashMap<String, String>,
        image: &FoundImage,
        runtime: Option<&str>,
        limits: &Limits,
        tools: &[ToolMount],
        work: body::Work<'_>,
    ) -> Result<ContainerCreateBody, SandboxError> {
        let (config, paths, init) = (&self.config, &known.paths, known.init.as_path());
        let (folder, means, host, socket) = (folder.path(), known.facts.means(), self.host(), self.socket());
        body::Plan { config, paths, init, folder, labels, image, runtime, limits, tools, work, means, host, socket }.body()
    }

    /// Makes the container of a run, unless it is there, and remembers that.
    fn make(&self, run: &Run, spec: &StoredSpec) -> Result<MadeContainer, SandboxError> {
        let known = self.must_know()?;
        let name = container_name(&self.config.installation, &run.id);
        let wish = spec.container.clone().ok_or_else(|| SandboxError::Unsupported("the intent names no image".to_owned()))?;
        let image = self.provide(&wish.image, &|| run.folder.is_stopped().unwrap_or(false), Box::new(|_| ()))?;
        let labels = labels::of(&self.config.installation, &self.config.state, &spec.run, &spec.agent, spec.epoch);
        let (runtime, work) = (wish.runtime.as_deref(), body::Work::Of(&spec.launch));
        let wanted = self.plan(&known, &run.folder, labels, &image, runtime, &spec.limits, &spec.launch.tools, work)?;
        let (engine, body, asked) = (self.engine()?.clone(), wanted.clone(), name.clone());
        let made = self.bridge.wait(async move { engine.create(&asked, body).await });
        let id = match made {
            Ok(id) => id,
            // One of an earlier try, or a late one.
            Err(e) if e.status() == Some(409) => self.look(run)?.map(|state| state.id).ok_or_else(|| engine_failed(&run.id, "make")(e))?,
            Err(e) => return Err(self.refusal_of(run, &wish, e)),
        };
        let made = MadeContainer { id, name };
        run.folder.write(FILE_CONTAINER, &made).map_err(failed(&run.id, "make"))?;
        self.check_made(&run.id, &made, &wanted)?;
        Ok(made)
    }

    /// Compares what the engine made with what it was asked for.
    fn check_made(&self, run: &RunId, made: &MadeContainer, wanted: &ContainerCreateBody) -> Result<(), SandboxError> {
        let (engine, id) = (self.engine()?.clone(), made.id.clone());
        let seen = self.bridge.wait(async move { engine.inspect(&id).await }).map_err(engine_failed(run, "look at"))?;
        let problems = seen.as_ref().map_or_else(|| vec!["it is gone".to_owned()], |seen| body::differences(wanted, seen));
        if problems.is_empty() {
            return Ok(());
        }
        let message = format!("the engine at {} did not make the container as it was asked to: {}", self.host(), problems.join("; "));
        Err(SandboxError::Refused { why: Refusal::NotIsolated, message })
    }

    /// What a refusal to create or start means.
    fn refusal_of(&self, run: &Run, wish: &ContainerSpec, error: EngineError) -> SandboxError {
        let EngineError::Refused { message, .. } = &error else { return engine_failed(&run.id, "make")(error) };
        let text = message.to_lowercase();
        let why = if text.contains("no such image") {
            Refusal::ImageNotFound
        } else if text.contains("runtime") && wish.runtime.is_some() {
            Refusal::RuntimeNotFound
        } else if text.contains("bind source path does not exist") {
            let message = format!("{} ({message})", not_shared(self.host(), &self.config.state));
            return SandboxError::Refused { why: Refusal::FilesNotShared, message };
        } else {
            return engine_failed(&run.id, "make")(error);
        };
        SandboxError::Refused { why, message: crate::causes::one_line(&error) }
    }

    fn start_made(&self, run: &Run, wish: &ContainerSpec, made: &MadeContainer) -> Result<(), SandboxError> {
        self.start_unless_stopped(&run.folder, made).map_err(|e| self.refusal_of(run, wish, e))
    }

    fn start_unless_stopped(&self, folder: &RunFolder, made: &MadeContainer) -> Result<(), EngineError> {
        let engine = self.engine.clone().map_err(|why| EngineError::Address { host: self.host().to_owned(), why })?;
        let (folder, id, starts) = (folder.clone(), made.id.clone(), self.starts.clone());
        self.bridge.wait(async move {
            let _place = starts.acquire().await;
            // Whoever was stopped while it waited for its turn is not started any more.
            if folder.is_stopped().unwrap_or(false) { Ok(()) } else { engine.start(&id).await }
        })
    }
}

fn engine_failed(run: &RunId, what: &'static str) -> impl FnOnce(EngineError) -> SandboxError {
    let run = run.clone();
    move |source| SandboxError::Engine { what, run, source: Box::new(source) }
}
