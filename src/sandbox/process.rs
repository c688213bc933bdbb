//! The process driver: a sandbox is a process in namespaces of its own, with `mosaic-init` as its PID 1.
//!
//! `ensure` writes the intent, then starts a launcher that belongs to nobody; `observe` reads the run's folder and the process table;
//! `stop` writes a tombstone, says the word and kills; `remove` takes the folder away. The folder is the only memory: after a restart
//! `open` reads all of them and serves their links again. Blocking work runs on tokio's blocking pool, the link on its own thread.
//!
//! As root a sandbox has a uid of its own. As an ordinary user it has that user's, within a user namespace that the launcher enters first
//! (`SandboxIds`); everything after that is the same. What is enforced is looked at from inside (`inside::confine`) and reported in
//! `isolation`.

pub mod cgroup;
mod create;
mod observe;
pub mod result;
mod stop;
pub mod watchdog;

use crate::api::agent::Driver;
use crate::api::names::{Attempt, Epoch, RunId, Uid};
use crate::api::validate::Limits;
use crate::beneath;
use crate::inside::wire::{FILE_SESSION, FILE_SPEC, FILE_WAIT, Identity, WaitReport};
use crate::kill::latch::Latch;
use crate::plan::observed::{EndCause, RunEnd, SandboxSeen, SandboxState};
use crate::sandbox::folder::{RunFolder, Session, StoredSpec, log_path, short};
use crate::sandbox::limits::{self, Bound, Means};
use crate::sandbox::link::LinkServer;
use crate::sandbox::{RunSpec, Sandbox, SandboxError};
use crate::tools::ToolRoot;
use cgroup::Hierarchies;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// Uid and gid of everything in a sandbox, unless configured. Not 65534: that is what unmapped ids look like.
pub const SANDBOX_UID: u32 = 61357;
/// Name of the file with the highest epoch seen, in `runs/`.
const FILE_EPOCH: &str = "epoch-seen";
/// Name of the file with an agent's highest attempt, in its folder of logs.
const FILE_ATTEMPT: &str = "attempt-seen";
/// Prefix of a run's folder while it is removed.
const REMOVING: &str = ".removing-";
/// How long the lock of a folder without an intent may still be held by what a killed controller was starting.
const HALF_STARTED_PATIENCE: Duration = Duration::from_secs(1);
/// The agent that the driver's own test runs for.
const SELF_TEST_UID: &str = "driver-self-test";

/// Who everything in a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxIds {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether we are an ordinary user, whose sandboxes can have no other ids than that user's own: they are made within a user namespace
    /// of ours then.
    pub unprivileged: bool,
}

impl SandboxIds {
    /// As root the ids that are given; else this program's own.
    #[must_use]
    pub fn of(uid_of_root: u32) -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            Self { uid: uid_of_root, gid: uid_of_root, unprivileged: false }
        } else {
            Self { uid: uid.as_raw(), gid: gid.as_raw(), unprivileged: true }
        }
    }
}

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The state folder.
    pub state: PathBuf,
    /// Id of this installation: runs of another one are left alone.
    pub installation: String,
    /// A static `mosaic-init`, see `find_init`.
    pub init: PathBuf,
    /// Uid and gid of everything inside.
    pub ids: SandboxIds,
    /// Folders of tools that every sandbox sees, read-only (`tools::resolve`).
    pub tool_roots: Vec<ToolRoot>,
    /// Primitives of isolation (`inside::confine`) and limits (`sandbox::limits`) without which sandboxes start all the same.
    pub allow_missing: Vec<String>,
    /// Without a renewal for so long a sandbox ends itself.
    pub lease: Duration,
    /// How long `stop` looks for the end before it says that it could not see it.
    pub stop_timeout: Duration,
    /// How long `ensure` waits for the command to execute.
    pub start_timeout: Duration,
    /// Size of a run's log; older output is dropped.
    pub output_bytes_max: u64,
    /// What was killed or halted outside the store: it is granted no start.
    pub latch: Arc<Latch>,
}

impl ProcessConfig {
    /// The defaults: lease 30 s, stop 5 s, start 20 s, 8 MiB of output.
    pub fn new(state: impl Into<PathBuf>, installation: impl Into<String>, init: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            installation: installation.into(),
            init: init.into(),
            ids: SandboxIds::of(SANDBOX_UID),
            tool_roots: Vec::new(),
            allow_missing: Vec::new(),
            lease: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(5),
            start_timeout: Duration::from_secs(20),
            output_bytes_max: 8 * 1024 * 1024,
            latch: Arc::default(),
        }
    }
}

/// The process driver.
pub struct ProcessSandbox {
    inner: Arc<Inner>,
    verified: Vec<String>,
}

struct Inner {
    config: ProcessConfig,
    link: LinkServer,
    hierarchies: Hierarchies,
    known: Mutex<BTreeMap<RunId, Arc<Run>>>,
    /// A lock of its own: it is held while the disk works, and nobody who stops or looks may wait for that.
    fences: Mutex<Fences>,
}

/// The highest that was seen; what is lower is refused.
#[derive(Default)]
struct Fences {
    epoch: Epoch,
    attempts: BTreeMap<Uid, Attempt>,
}

/// One run that has a folder, or is about to.
struct Run {
    id: RunId,
    folder: RunFolder,
    /// What its folder said of a live sandbox stays known: somebody who empties the folder must not hide what runs.
    identity: OnceLock<Identity>,
    session: OnceLock<Session>,
    /// Held while the run is made, so that it is made once.
    making: Mutex<()>,
    /// Its end never changes once it was seen.
    ended: OnceLock<RunEnd>,
    progress: Mutex<observe::ProgressCursor>,
    watch: Mutex<watchdog::Watch>,
}

impl Run {
    fn identity(&self) -> io::Result<Option<Identity>> {
        Ok(remembered(&self.identity, self.folder.identity()?))
    }

    fn session(&self) -> io::Result<Option<Session>> {
        Ok(remembered(&self.session, self.folder.read(FILE_SESSION)?))
    }
}

fn remembered<T: Clone>(known: &OnceLock<T>, read: Option<T>) -> Option<T> {
    if let Some(read) = read {
        // Neither ever changes once it was written.
        let _ = known.set(read);
    }
    known.get().cloned()
}

impl ProcessSandbox {
    /// Opens the driver: adopts the sandboxes of this state folder and tests itself with a tiny one.
    /// # Errors
    /// `Unsupported` says what the host lacks; others, what failed.
    pub fn open(config: ProcessConfig) -> Result<Self, SandboxError> {
        crate::sandbox::init_binary::check(&config.init).map_err(|e| SandboxError::Unsupported(e.to_string()))?;
        let inner = Inner::open(config).map_err(|e| SandboxError::CannotObserve(format!("failed to open the driver's folders: {e}")))?;
        let refusals = limits::refusals(Driver::Process, &inner.means(), &inner.config.allow_missing);
        if !refusals.is_empty() {
            return Err(SandboxError::Unsupported(refusals.join("; ")));
        }
        let verified = inner.test_itself()?;
        let inner = Arc::new(inner);
        watchdog::start(&inner).map_err(|e| SandboxError::Unsupported(format!("failed to start the thread that watches limits: {e}")))?;
        Ok(Self { inner, verified })
    }

    /// What isolates and bounds a sandbox on this host, as the driver's own test saw it from inside: names of primitives, and limits with
    /// what bounds them (`memory:kernel`).
    #[must_use]
    pub fn verified(&self) -> &[String] {
        &self.verified
    }

    /// Tells of every run that ended, by the agent's uid; of a start the end of `ensure` tells. Messages may be missed; look with `observe`.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Uid> {
        self.inner.link.changes()
    }

    /// Says the word to stop over the link of a run, without waiting for anything.
    pub fn say_stop(&self, run: &RunId) {
        self.inner.link.say_stop(run);
    }

    /// What an ended run used, as its launcher measured it; `None` when it was killed first, or the run still lives.
    /// # Errors
    /// Could not look.
    pub fn usage(&self, run: &RunId) -> io::Result<Option<WaitReport>> {
        RunFolder::of(&self.inner.config.state, run).read(FILE_WAIT)
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

impl Sandbox for ProcessSandbox {
    fn ensure(&self, spec: RunSpec) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.blocking(move |inner| inner.ensure(&spec)))
    }

    fn observe<'a>(&'a self, uid: Option<&'a Uid>) -> BoxFuture<'a, Result<Vec<SandboxSeen>, SandboxError>> {
        let uid = uid.cloned();
        Box::pin(self.blocking(move |inner| inner.observe(uid.as_ref())))
    }

    fn stop<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>> {
        let run = run.clone();
        Box::pin(self.blocking(move |inner| inner.stop(&run)))
    }

    fn remove<'a>(&'a self, run: &'a RunId) -> BoxFuture<'a, Result<(), SandboxError>> {
        let run = run.clone();
        Box::pin(self.blocking(move |inner| inner.remove(&run)))
    }
}

impl Inner {
    fn open(mut config: ProcessConfig) -> io::Result<Self> {
        for name in ["runs", "logs"] {
            DirBuilder::new().recursive(true).mode(0o700).create(config.state.join(name))?;
        }
        config.state = fs::canonicalize(&config.state)?;
        let link = LinkServer::start(config.latch.clone())?;
        let hierarchies = Hierarchies::find(&config.installation, &config.state);
        let inner = Self { config, link, hierarchies, known: Mutex::default(), fences: Mutex::default() };
        inner.read_fences()?;
        for entry in fs::read_dir(inner.config.state.join("runs"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                inner.adopt(entry.path())?;
            }
        }
        inner.link.raise_epoch(inner.fences().epoch);
        let known: BTreeSet<String> = inner.known().keys().map(short).collect();
        inner.hierarchies.sweep(&known);
        Ok(inner)
    }

    /// What bounds sandboxes here.
    fn means(&self) -> Means {
        let has = |controller, else_by| if self.hierarchies.has(controller) { Bound::Kernel } else { else_by };
        // In a user namespace of ours the kernel counts the processes of a sandbox by themselves, and holds RLIMIT_NPROC against that; their
        // memory can at least be looked at.
        let (memory, pids) = if self.config.ids.unprivileged { (Bound::Watchdog, Bound::Kernel) } else { (Bound::None, Bound::None) };
        Means { memory: has("memory", memory), pids: has("pids", pids), cpu: has("cpu", Bound::None) }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<RunId, Arc<Run>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &RunId) -> Option<Arc<Run>> {
        self.known().get(id).cloned()
    }

    fn fences(&self) -> MutexGuard<'_, Fences> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_of(&self, id: &RunId) -> Arc<Run> {
        Arc::new(Run {
            id: id.clone(),
            folder: RunFolder::of(&self.config.state, id),
            identity: OnceLock::new(),
            session: OnceLock::new(),
            making: Mutex::default(),
            ended: OnceLock::new(),
            progress: Mutex::default(),
            watch: Mutex::default(),
        })
    }

    fn read_fences(&self) -> io::Result<()> {
        let number = |path: PathBuf| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let mut fences = self.fences();
        fences.epoch = Epoch(number(self.config.state.join("runs").join(FILE_EPOCH)).unwrap_or(0));
        for entry in fs::read_dir(self.config.state.join("logs"))? {
            let entry = entry?;
            let uid = entry.file_name().to_str().and_then(|name| Uid::new(name).ok());
            let attempt = number(entry.path().join(FILE_ATTEMPT)).and_then(|n| u32::try_from(n).ok());
            if let (Some(uid), Some(attempt)) = (uid, attempt) {
                fences.attempts.insert(uid, Attempt(attempt));
            }
        }
        Ok(())
    }

    /// Refuses what is older than what was seen, and remembers epoch and attempt before anything is made for them. What could start for an
    /// older attempt lives in this boot only.
    fn fence(&self, run: &RunId, epoch: Epoch) -> Result<(), SandboxError> {
        let mut fences = self.fences();
        if epoch < fences.epoch {
            return Err(SandboxError::Fenced(format!("epoch {} of {run} is older than {}", epoch.0, fences.epoch.0)));
        }
        let highest = fences.attempts.get(&run.uid).copied();
        if let Some(highest) = highest.filter(|highest| run.attempt < *highest) {
            return Err(SandboxError::Fenced(format!("attempt {} of {run} is older than {highest}", run.attempt)));
        }
        if epoch > fences.epoch {
            let runs = self.config.state.join("runs");
            crate::durable::replace(&runs.join(FILE_EPOCH), epoch.0.to_string().as_bytes()).map_err(Self::failed(run, "prepare"))?;
            fences.epoch = epoch;
            self.link.raise_epoch(epoch);
        }
        if highest != Some(run.attempt) {
            let logs = self.config.state.join("logs").join(run.uid.as_str());
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&logs);
            made.and_then(|()| crate::durable::replace_for_this_boot(&logs.join(FILE_ATTEMPT), run.attempt.to_string().as_bytes()))
                .map_err(Self::failed(run, "prepare"))?;
            fences.attempts.insert(run.uid.clone(), run.attempt);
        }
        Ok(())
    }

    /// Takes in a folder that was found at the start.
    fn adopt(&self, path: PathBuf) -> io::Result<()> {
        let runs = self.config.state.join("runs");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(REMOVING) {
            return beneath::remove_all(&runs, &name);
        }
        let folder = RunFolder::at(path);
        let Some(spec) = folder.read::<StoredSpec>(FILE_SPEC)? else {
            // A crash came before the intent was written: nothing was started for it. A process that was just being started for another
            // run may hold a copy of the lock for a moment.
            let until = Instant::now() + HALF_STARTED_PATIENCE;
            while folder.is_held()? {
                if Instant::now() >= until {
                    return Ok(());
                }
                std::thread::sleep(create::LOOK_PAUSE);
            }
            return beneath::remove_all(&runs, &name);
        };
        if spec.installation != self.config.installation {
            tracing::warn!(folder = %folder.path().display(), installation = spec.installation, "left alone: a run of another installation");
            return Ok(());
        }
        let run = self.run_of(&spec.run);
        if folder.is_held()? {
            tracing::info!(run = %spec.run, "adopted a sandbox");
            self.link.serve(&spec.run, spec.epoch, spec.launch.lease_millis, &run.folder)?;
        }
        let mut fences = self.fences();
        fences.epoch = fences.epoch.max(spec.epoch);
        let highest = fences.attempts.entry(spec.run.uid.clone()).or_default();
        *highest = spec.run.attempt.max(*highest);
        self.known().insert(spec.run, run);
        Ok(())
    }

    /// Runs `/bin/true` in a sandbox; what isolated it, or what is missing.
    fn test_itself(&self) -> Result<Vec<String>, SandboxError> {
        let uid = Uid::new(SELF_TEST_UID).expect("a valid uid");
        let run = RunId { uid: uid.clone(), attempt: Attempt(1), role: crate::api::names::Role::Agent };
        let tree = self.config.state.join("runs").join("self-test-tree");
        let cannot = |e: io::Error| SandboxError::Unsupported(format!("the sandbox's own test failed: {e}"));
        fs::create_dir_all(&tree).map_err(cannot)?;
        self.stop(&run)?;
        self.remove(&run)?;
        let spec = RunSpec {
            run: run.clone(),
            epoch: self.fences().epoch,
            driver: Driver::Process,
            image: None,
            runtime_class: None,
            agent: SELF_TEST_UID.to_owned(),
            tree: tree.clone(),
            home: None,
            base_objects: None,
            task: None,
            args: vec!["/bin/true".to_owned()],
            env: BTreeMap::new(),
            deadline: Some(self.config.start_timeout),
            limits: Limits { cpu_millis: 1000, memory_bytes: 64 << 20, pids_max: 16, disk_bytes: 1 << 20 },
        };
        self.ensure(&spec)?;
        let (outcome, isolation) = self.wait_ended(&run)?;
        self.stop(&run)?;
        self.remove(&run)?;
        let logs = self.config.state.join("logs").join(SELF_TEST_UID);
        fs::remove_dir_all(&logs).and_then(|()| fs::remove_dir(&tree)).map_err(cannot)?;
        self.fences().attempts.remove(&uid);
        match outcome {
            Some(EndCause::Exited(0)) => Ok(isolation),
            Some(EndCause::NotStarted(text) | EndCause::CannotExecute(text)) => {
                Err(SandboxError::Unsupported(format!("this host cannot make the process sandbox: {text}")))
            }
            other => Err(SandboxError::Unsupported(format!("the sandbox's own test ended with {other:?}"))),
        }
    }

    fn wait_ended(&self, run: &RunId) -> Result<(Option<EndCause>, Vec<String>), SandboxError> {
        let until = Instant::now() + self.config.start_timeout;
        loop {
            for seen in self.observe(Some(&run.uid))? {
                if let SandboxState::Ended(end) = seen.state {
                    return Ok((Some(end.cause), seen.isolation));
                }
            }
            if Instant::now() >= until {
                return Ok((None, Vec::new()));
            }
            std::thread::sleep(create::LOOK_PAUSE);
        }
    }

    fn log_of(&self, run: &RunId) -> PathBuf {
        log_path(&self.config.state, &run.uid, &short(run))
    }

    fn failed(run: &RunId, what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
        let run = run.clone();
        move |source| SandboxError::Failed { what, run, source: Box::new(source) }
    }

    fn state(&self) -> &Path {
        &self.config.state
    }
}
