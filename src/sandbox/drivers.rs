//! All drivers behind one `Sandbox`: each run goes to the driver that its record asks for, or to this controller's own choice.
//!
//! A driver is tested with a tiny sandbox before its first use. One that cannot make sandboxes here (its test failed, no engine answers)
//! refuses new ones with that reason, and is tried again when it is asked again; the runs that it made before are looked at, stopped and
//! removed all the same. So an engine that is down blinds nobody: what the kernel shows is seen, and the agents of the other driver go on.

mod proof;

use crate::api::agent::Driver;
use crate::api::names::{RunId, Uid};
use crate::inside::wire::{Identity, WaitReport};
use crate::plan::observed::SandboxSeen;
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::docker::{Docker, DockerConfig, warm};
use crate::sandbox::link::{Gate, LinkServer, Standing};
use crate::sandbox::pod::{PodConfig, Pods};
use crate::sandbox::process::Process;
use crate::sandbox::runs::{Maker, Runs, prepare_state, watchdog};
use crate::sandbox::{RunSpec, Sandbox, SandboxError};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// The drivers of one controller.
pub struct Drivers {
    inner: Arc<Inner>,
}

struct Inner {
    runs: Arc<Runs>,
    docker: Arc<Docker>,
    pods: Arc<Pods>,
    /// What runs that ask for nothing are made with.
    default: Mutex<Driver>,
    /// What the own test of each driver saw from inside.
    verified: Mutex<BTreeMap<Driver, Vec<String>>>,
    /// One test of a driver at a time.
    testing: BTreeMap<Driver, Mutex<()>>,
}

impl Drivers {
    /// Opens the drivers without testing them: adopts the sandboxes of this state folder. Runs that ask for nothing are made with `default`.
    /// # Errors
    /// `init` is unusable, or the state folder or the engine's address cannot be used.
    pub fn open(config: SandboxConfig, docker: DockerConfig, default: Driver) -> Result<Self, SandboxError> {
        Self::open_with_pods(config, docker, None, default)
    }

    /// The same; `pods`: pods are made as well.
    /// # Errors
    /// As `open`; or the cluster or the address of the link cannot be used.
    pub fn open_with_pods(
        config: SandboxConfig,
        docker: DockerConfig,
        pods: Option<PodConfig>,
        default: Driver,
    ) -> Result<Self, SandboxError> {
        crate::sandbox::init_binary::check(&config.init).map_err(|e| SandboxError::Unsupported(e.to_string()))?;
        let cannot = |e: io::Error| SandboxError::CannotObserve(format!("failed to open the drivers' folders: {e}"));
        let state = prepare_state(&config.state).map_err(cannot)?;
        for (stray, path) in proof::clear_left(&state) {
            config.cleanups.tell(stray, &path.display().to_string());
        }
        warm::end_left(&state, &config.cleanups).map_err(cannot)?;
        let config = Arc::new(SandboxConfig { state, ..config });
        let docker = Arc::new(Docker::new(config.clone(), docker).map_err(cannot)?);
        let before = if config.is_gated { Standing::Waits } else { Standing::Leads };
        let link = Arc::new(LinkServer::start(config.latch.clone(), before).map_err(cannot)?);
        let pods = Arc::new(Pods::open(config.clone(), pods, link.clone())?);
        let makers: Vec<Arc<dyn Maker>> = vec![Arc::new(Process::new(config.clone())), docker.clone(), pods.clone()];
        let runs = Arc::new(Runs::open(config, makers, link).map_err(cannot)?);
        pods.serve();
        watchdog::start(&runs).map_err(|e| SandboxError::Unsupported(format!("failed to start the thread that watches limits: {e}")))?;
        let testing = [Driver::Process, Driver::Docker].map(|driver| (driver, Mutex::default())).into();
        let inner = Inner { runs, docker, pods, default: Mutex::new(default), verified: Mutex::default(), testing };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Opens the drivers with process as the choice, and tests it.
    /// # Errors
    /// `Unsupported` says what the host lacks; others, what failed.
    pub fn process(config: SandboxConfig) -> Result<Self, SandboxError> {
        let drivers = Self::open(config, DockerConfig::default(), Driver::Process)?;
        drivers.test(Driver::Process)?;
        Ok(drivers)
    }

    /// Lets a driver make a tiny sandbox and look at itself from inside, unless it has done so. The docker driver needs its image for that;
    /// what it can do without is looked at, and the rest waits for the first run.
    /// # Errors
    /// What this host or engine lacks, in a sentence that says what helps.
    pub fn test(&self, driver: Driver) -> Result<(), SandboxError> {
        self.inner.make_ready(driver, None)
    }

    /// Keeps so many sandboxes prepared from now on. Where pods are made: pods, of each shape that was asked for lately; else containers of the
    /// default image, for agents that ask for nothing else. Returns what is kept, in words.
    /// # Errors
    /// In words: why none can be prepared here. Agents are started all the same.
    pub fn keep_warm(&self, count: usize) -> Result<String, String> {
        if self.inner.pods.link().is_some() {
            self.inner.pods.keep_warm(count);
            return Ok(format!("pods are kept prepared: {count} of each kind that was asked for within an hour"));
        }
        self.inner.docker.keep_warm(count).map(|()| format!("containers are kept prepared: {count}"))
    }

    /// Ends and removes what is prepared; blocks.
    pub fn end_prepared(&self) {
        self.inner.docker.end_prepared();
        self.inner.pods.end_prepared();
    }

    /// What runs that ask for nothing are made with from now on.
    pub fn set_default(&self, driver: Driver) {
        *self.inner.default() = driver;
    }

    /// The docker driver.
    #[must_use]
    pub fn docker(&self) -> &Docker {
        &self.inner.docker
    }

    /// Where pods find this controller, for people; `None`: it makes no pods.
    #[must_use]
    pub fn pods(&self) -> Option<String> {
        self.inner.pods.link()
    }

    /// What isolates and bounds a sandbox of a driver on this host, as its own test saw it from inside: names of primitives, and limits with
    /// what bounds them (`memory:kernel`). Empty while the driver was not tested.
    #[must_use]
    pub fn verified(&self, driver: Driver) -> Vec<String> {
        self.inner.verified().get(&driver).cloned().unwrap_or_default()
    }

    /// Tells of every run that ended or that takes long to make, by the agent's uid; of a start the end of `ensure` tells. Messages may be missed; look with `observe`.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Uid> {
        self.inner.runs.link.changes()
    }

    /// Has it asked before each start whether a run of the agent may begin from here now. Set once.
    pub fn ask_before_grants(&self, gate: Gate) {
        self.inner.runs.link.ask_before_grants(gate);
    }

    /// Says the word to stop over the link of a run, without waiting for anything.
    pub fn say_stop(&self, run: &RunId) {
        self.inner.runs.link.say_stop(run);
    }

    /// Runs whose init was seen and whose end was not, whatever has become of their folders.
    #[must_use]
    pub fn alive(&self) -> Vec<(RunId, Driver, Identity)> {
        self.inner.runs.alive()
    }

    /// Answers a run no longer, as if there were no controller: its lease ends it. For drills.
    pub fn forget_link(&self, run: &RunId) {
        self.inner.runs.link.forget(run);
    }

    /// What an ended run used, as its launcher or engine tells; `None` when nobody could, or the run still lives.
    /// # Errors
    /// Could not look.
    pub fn usage(&self, run: &RunId) -> io::Result<Option<WaitReport>> {
        self.inner.runs.usage(run)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SandboxError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|e| Err(SandboxError::CannotObserve(format!("the driver's work was broken off: {e}"))))
    }
}

impl Inner {
    fn default(&self) -> MutexGuard<'_, Driver> {
        self.default.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verified(&self) -> MutexGuard<'_, BTreeMap<Driver, Vec<String>>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver of a new run.
    fn driver_of(&self, wish: Driver, wants_image: bool) -> Driver {
        match wish {
            Driver::Auto => match *self.default() {
                // Processes have no images and runtimes.
                Driver::Process if wants_image => Driver::Docker,
                default => default,
            },
            wanted => wanted,
        }
    }

    fn ensure(&self, spec: &RunSpec) -> Result<(), SandboxError> {
        let driver = self.driver_of(spec.driver, spec.image.is_some() || spec.runtime_class.is_some());
        let image = spec.image.as_deref().unwrap_or(self.docker.default_image());
        self.runs.ensure(spec, driver, &|run| self.make_ready(driver, Some((run, image))))
    }
}

impl Sandbox for Drivers {
    fn driver_of(&self, wish: Driver, wants_image: bool) -> Driver {
        self.inner.driver_of(wish, wants_image)
    }

    fn ensure(&self, spec: RunSpec) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.blocking(move |inner| inner.ensure(&spec)))
    }

    fn observe<'a>(&'a self, uid: Option<&'a Uid>) -> BoxFuture<'a, Result<Vec<SandboxSeen>, SandboxError>> {
        let uid = uid.cloned();
        let look = move |inner: &Inner| {
            if uid.is_none() {
                inner.runs.sweep();
            }
            inner.runs.observe(uid.as_ref())
        };
        Box::pin(self.blocking(look))
    }

    fn observe_elsewhere<'a>(
        &'a self,
        uid: &'a Uid,
        installation: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<SandboxSeen>>, SandboxError>> {
        let (uid, installation) = (uid.clone(), installation.to_owned());
        Box::pin(self.blocking(move |inner| inner.pods.elsewhere(&uid, &installation)))
    }

    fn stop<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>> {
        let run = run.clone();
        Box::pin(
            self.blocking(
                move |inner| if inner.runs.find(&run).is_some() { inner.runs.stop(&run) } else { inner.pods.stop_elsewhere(&run) },
            ),
        )
    }

    fn remove<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>> {
        let run = run.clone();
        Box::pin(self.blocking(
            move |inner| if inner.runs.find(&run).is_some() { inner.runs.remove(&run) } else { inner.pods.remove_elsewhere(&run) },
        ))
    }
}
