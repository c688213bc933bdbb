//! The runs of this state folder: what every driver shares. Each driver (`Maker`) adds how a run is made, found, killed and taken away.
//!
//! `ensure` writes the intent, then lets the driver make and start; `observe` reads the run's folder and the process table; `stop` writes a
//! tombstone, says the word and kills; `remove` takes the folder away. The folder is the only memory: after a restart `open` reads all of
//! them and serves their links again. A run stays with the driver that made it, whatever the configuration says now. All of it blocks: the
//! callers use tokio's blocking pool, the link has its own thread.

mod blank;
mod ensure;
mod fences;
mod observe;
pub mod result;
pub(crate) mod stop;
pub mod watchdog;

use crate::api::agent::Driver;
use crate::api::names::{RunId, Uid};
use crate::beneath;
use crate::cleanups::Stray;
use crate::inside::wire::{ExitReport, FILE_SESSION, FILE_SPEC, FILE_WAIT, Identity, LaunchSpec, WaitReport};
use crate::plan::observed::RunEnd;
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::folder::{ContainerSpec, FILE_PREPARED, PreparedContainer, RunFolder, Session, StoredSpec, log_path, short};
use crate::sandbox::limits::Means;
use crate::sandbox::link::{LinkServer, Origin};
use crate::sandbox::pod::token_of;
use crate::sandbox::{RunSpec, SandboxError};
use blank::Blanks;
use fences::Fences;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Pause between two looks while something is awaited.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Prefix of a run's folder while it is removed.
const REMOVING: &str = ".removing-";
/// Pause between two tellings of what goes on while a run is made.
const NEWS_PAUSE: Duration = Duration::from_secs(2);
/// How long the lock of a folder without an intent may still be held by what a killed controller was starting.
const HALF_STARTED_PATIENCE: Duration = Duration::from_secs(1);

/// What one driver does for its runs. Everything may block, and everything is asked again after a crash.
pub(crate) trait Maker: Send + Sync {
    /// Which driver.
    fn driver(&self) -> Driver;

    /// What bounds its sandboxes here.
    fn means(&self) -> Means;

    /// Makes sure that a run can be made at all (an image is there, …), before its intent is written; takes what was prepared for such
    /// runs, if there is anything: its folder is the run's then.
    fn check(&self, run: &Arc<Run>, spec: &RunSpec) -> Result<Option<Box<dyn Claimed>>, SandboxError>;

    /// Completes what init is told; what the engine is told, where there is one. `claimed`: what was prepared for it.
    fn complete(&self, spec: &RunSpec, launch: &mut LaunchSpec, claimed: Option<&RunId>) -> Option<ContainerSpec>;

    /// Takes in a run that was found at the start, whose making is over.
    fn adopt(&self, _run: &Run, _spec: &StoredSpec) -> io::Result<()> {
        Ok(())
    }

    /// Makes and starts what the intent says; `lock` says to everybody that something of this run may live. The caller makes each run once
    /// at a time. Asked again after a try whose outcome is unknown, it goes on where that one stopped.
    fn start(&self, run: &Run, spec: &StoredSpec, lock: File) -> Result<(), SandboxError>;

    /// Whether a run may be started again that has an intent, but nothing of which was ever seen to live.
    fn is_unfinished(&self, run: &Run) -> io::Result<bool>;

    /// Whether something of a run may live or come to live that holds no lock and has no identity.
    /// # Errors
    /// Could not look.
    fn may_come(&self, run: &Run) -> io::Result<bool>;

    /// What there is to say of an ended run beside init's own word.
    fn last_word(&self, run: &Run, report: Option<&ExitReport>) -> io::Result<Option<WaitReport>>;

    /// Begins a kill by the driver's own path, beside those by the kernel; waits for nothing.
    fn strike(&self, run: &Run);

    /// Ends what starts a run, or what waits for its end, when it holds on for too long after init has gone (`None`: it has not).
    fn kill_starter(&self, run: &Run, init_gone_for: Option<Duration>) -> io::Result<()>;

    /// Takes away what the driver made for an ended run, but its folder.
    fn clear(&self, run: &Run) -> io::Result<()>;

    /// Takes away what carries this installation's mark, but belongs to no run that is known (by the names of their folders).
    /// # Errors
    /// Could not look; nothing was taken away for that.
    fn sweep(&self, known: &dyn Fn() -> BTreeSet<String>) -> io::Result<()>;

    /// Whether a run that was refused after its intent stood shall leave nothing behind, as one that was refused before.
    fn takes_back(&self) -> bool {
        false
    }

    /// How much longer than usual what was started may take until it runs.
    fn start_patience(&self) -> Duration {
        Duration::ZERO
    }

    /// What goes on with a run that was started and does not run yet; since when it is waited for.
    fn coming(&self, _run: &Run, _since: Instant) -> Coming {
        Coming::default()
    }

    /// Why a run that counts as running may not run any more, for people.
    fn doubt(&self, _run: &Run) -> Option<String> {
        None
    }

    /// What is still there of a run that was killed and not seen to end.
    fn still(&self, _run: &Run) -> String {
        "what starts it still lives, or has not answered".to_owned()
    }
}

/// What goes on with a run that was started and does not run yet.
#[derive(Default)]
pub(crate) struct Coming {
    /// For people.
    pub(crate) doing: Option<String>,
    /// It never will; why.
    pub(crate) refused: Option<SandboxError>,
}

/// What was made and started ahead and is a run's now. Dropped without being handed over it is ended.
pub(crate) trait Claimed {
    /// The run that it was made for, which never was one.
    fn made_for(&self) -> &RunId;

    /// The intent stands, and the link serves: init asks there. `lock` says to everybody that something of this run may live.
    fn hand_over(self: Box<Self>, run: &Run, lock: File);
}

/// All runs of a state folder.
pub(crate) struct Runs {
    pub(crate) config: Arc<SandboxConfig>,
    pub(crate) link: Arc<LinkServer>,
    makers: Vec<Arc<dyn Maker>>,
    blanks: Arc<Blanks>,
    known: Mutex<BTreeMap<RunId, Arc<Run>>>,
    /// A lock of its own: it is held while the disk works, and nobody who stops or looks may wait for that.
    fences: Mutex<Fences>,
}

/// One run that has a folder, or is about to.
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) driver: Driver,
    pub(crate) folder: RunFolder,
    /// What its folder said of a live sandbox stays known: somebody who empties the folder must not hide what runs.
    identity: OnceLock<Identity>,
    session: OnceLock<Session>,
    /// Held while the run is made, so that it is made once.
    making: Mutex<()>,
    /// It was refused after its intent stood and is being taken back: until then it is told as being made.
    is_refused: AtomicBool,
    /// Its end never changes once it was seen.
    ended: OnceLock<RunEnd>,
    progress: Mutex<observe::ProgressCursor>,
    watch: Mutex<watchdog::Watch>,
    news: Mutex<News>,
}

/// What goes on while a run is made, and whether somebody was told of it.
#[derive(Default)]
struct News {
    text: Option<String>,
    is_new: bool,
    told_at: Option<Instant>,
}

impl Run {
    fn new(id: &RunId, driver: Driver, state: &Path) -> Arc<Self> {
        Arc::new(Self {
            id: id.clone(),
            driver,
            folder: RunFolder::of(state, id),
            identity: OnceLock::new(),
            session: OnceLock::new(),
            making: Mutex::default(),
            is_refused: AtomicBool::new(false),
            ended: OnceLock::new(),
            progress: Mutex::default(),
            watch: Mutex::default(),
            news: Mutex::default(),
        })
    }

    /// Identity of init, once it is known.
    pub(crate) fn identity(&self) -> io::Result<Option<Identity>> {
        Ok(remembered(&self.identity, self.folder.identity()?))
    }

    /// The note of the grant.
    pub(crate) fn session(&self) -> io::Result<Option<Session>> {
        Ok(remembered(&self.session, self.folder.read(FILE_SESSION)?))
    }

    /// Says what goes on while it is made; `None`: nothing that takes long any more.
    pub(crate) fn say(&self, text: Option<String>) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.is_new |= news.text != text;
        news.text = text;
    }

    fn doing(&self) -> Option<String> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
    }

    /// Whether there is something new to tell, and the last was not just told: each is a write of the record.
    fn has_news(&self) -> bool {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = news.is_new && news.told_at.is_none_or(|at| at.elapsed() >= NEWS_PAUSE);
        if is_due {
            (news.is_new, news.told_at) = (false, Some(Instant::now()));
        }
        is_due
    }

    /// Says whether it is being taken back.
    pub(crate) fn refuse(&self, is_refused: bool) {
        self.is_refused.store(is_refused, Ordering::SeqCst);
    }

    fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::SeqCst)
    }

    /// Whether somebody is making it at this moment.
    pub(crate) fn is_being_made(&self) -> bool {
        self.making.try_lock().is_err()
    }
}

fn remembered<T: Clone>(known: &OnceLock<T>, read: Option<T>) -> Option<T> {
    if let Some(read) = read {
        // Neither ever changes once it was written.
        let _ = known.set(read);
    }
    known.get().cloned()
}

/// Prepares the state folder for runs; its canonical path.
pub(crate) fn prepare_state(state: &Path) -> io::Result<PathBuf> {
    for name in ["runs", "logs"] {
        DirBuilder::new().recursive(true).mode(0o700).create(state.join(name))?;
    }
    fs::canonicalize(state)
}

impl Runs {
    /// Reads what is there and serves the links of what lives.
    pub(crate) fn open(config: Arc<SandboxConfig>, makers: Vec<Arc<dyn Maker>>, link: Arc<LinkServer>) -> io::Result<Self> {
        let fences = Fences::read(&config.state)?;
        let blanks = Blanks::open(&config.state, config.ids)?;
        let runs = Self { config, link, makers, blanks, known: Mutex::default(), fences: Mutex::new(fences) };
        for entry in fs::read_dir(runs.state().join("runs"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                runs.adopt(entry.path())?;
            }
        }
        runs.link.raise_epoch(runs.fences().epoch());
        runs.sweep();
        runs.blanks.fill();
        Ok(runs)
    }

    /// Takes away what belongs to no run that is known.
    pub(crate) fn sweep(&self) {
        for maker in &self.makers {
            if let Err(e) = maker.sweep(&|| self.known().keys().map(short).collect()) {
                tracing::debug!(driver = ?maker.driver(), error = %e, "could not look for what belongs to no run; nothing was removed");
            }
        }
    }

    /// Runs whose init was seen and whose end was not.
    pub(crate) fn alive(&self) -> Vec<(RunId, Driver, Identity)> {
        let open = self.known().values().filter(|run| run.ended.get().is_none()).cloned().collect::<Vec<_>>();
        open.iter().filter_map(|run| Some((run.id.clone(), run.driver, run.identity.get()?.clone()))).collect()
    }

    /// The driver of a run.
    pub(crate) fn maker(&self, driver: Driver) -> io::Result<&dyn Maker> {
        let found = self.makers.iter().find(|maker| maker.driver() == driver);
        found.map(|maker| &**maker).ok_or_else(|| io::Error::other(format!("this controller has no driver {driver:?}").to_lowercase()))
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, BTreeMap<RunId, Arc<Run>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, id: &RunId) -> Option<Arc<Run>> {
        self.known().get(id).cloned()
    }

    pub(crate) fn fences(&self) -> MutexGuard<'_, Fences> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an ended run used; `None` when it was killed first, or the run still lives.
    pub(crate) fn usage(&self, run: &RunId) -> io::Result<Option<WaitReport>> {
        RunFolder::of(self.state(), run).read(FILE_WAIT)
    }

    /// Takes in a folder that was found at the start.
    fn adopt(&self, path: PathBuf) -> io::Result<()> {
        let runs = self.state().join("runs");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let remove = || {
            beneath::remove_all(&runs, &name)?;
            self.config.cleanups.tell(Stray::Folder, &format!("the folder of a run, runs/{name}"));
            Ok(())
        };
        if name.starts_with(REMOVING) {
            return remove();
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
                std::thread::sleep(LOOK_PAUSE);
            }
            return remove();
        };
        if spec.installation != self.config.installation {
            tracing::warn!(folder = %folder.path().display(), installation = spec.installation, "left alone: a run of another installation");
            return Ok(());
        }
        let run = Run::new(&spec.run, spec.driver, self.state());
        self.maker(spec.driver)?.adopt(&run, &spec)?;
        if folder.is_held()? || self.maker(spec.driver)?.is_unfinished(&run)? {
            tracing::info!(run = %spec.run, "adopted a sandbox");
            self.serve(&spec, &run.folder, None)?;
        }
        self.fences().adopt(&spec.run, spec.epoch);
        self.known().insert(spec.run, run);
        Ok(())
    }

    /// Serves the link of a run; of a container the lock is kept until its init takes it.
    fn serve(&self, spec: &StoredSpec, folder: &RunFolder, lock: Option<File>) -> io::Result<()> {
        let origin = match (spec.launch.pod, spec.launch.contained) {
            (true, _) => {
                // One that was made ahead says what it was made as.
                let claimed: Option<PreparedContainer> = folder.read(FILE_PREPARED)?;
                let name = short(claimed.as_ref().map_or(&spec.run, |claimed| &claimed.run));
                Origin::Remote(name, token_of(folder)?)
            }
            (false, true) => Origin::Contained(lock),
            (false, false) => Origin::Launched,
        };
        self.link.serve(&spec.run, spec.epoch, spec.launch.lease_millis, folder, origin)
    }

    fn log_of(&self, run: &RunId) -> PathBuf {
        log_path(self.state(), &run.uid, &short(run))
    }

    pub(crate) fn state(&self) -> &Path {
        &self.config.state
    }
}

/// A wait status from the exit code that an engine or a kubelet tells: 128 and more are signals.
pub(crate) fn status_of(code: i32) -> i32 {
    if code > 128 { code - 128 } else { code << 8 }
}

/// Says what was tried on which run.
pub(crate) fn failed(run: &RunId, what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    let run = run.clone();
    move |source| SandboxError::Failed { what, run, source: Box::new(source) }
}

/// Runs of one agent without a range over roles: the least of all its runs.
fn first_of(uid: &Uid) -> RunId {
    RunId { uid: uid.clone(), attempt: crate::api::names::Attempt(0), role: crate::api::names::Role::Agent }
}
