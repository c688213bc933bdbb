//! All of it together: the wiring of `mosaic up`.
//!
//! Order of a start: state folder -> store -> lease (one controller acts per state folder) -> sandboxes of the last run are adopted ->
//! workspaces -> controller -> HTTP. Order of a clean end: HTTP stops accepting -> passes that run finish -> lease released. Sandboxes are
//! never stopped by an end of the controller: the next start adopts them, and if none comes their lease ends them.

mod keep;
mod lane;

use crate::api::agent::Driver;
use crate::api::names::{Secret, Uid};
use crate::api::validate::ValidAgent;
use crate::audit::{Audit, AuditOptions};
use crate::cleanups::Cleanups;
use crate::config::Config;
use crate::controller::leadership::Business;
use crate::controller::orphans::{self, Memory};
use crate::controller::own::OwnWrites;
use crate::controller::reconcile::{Context, Journal, Transition};
use crate::controller::trigger::Trigger;
use crate::controller::{Controller, Progress};
use crate::effect::flight::{Ended, Flights};
use crate::effect::real::{RealWorld, Takeover, resolve};
use crate::journal::Ledger;
use crate::kill;
use crate::kill::lane::Lane;
use crate::kill::latch::Latch;
use crate::plan::action::Effect;
use crate::plan::fleet::{Fleet, FleetLimits, Member, Place};
use crate::sandbox::Sandbox;
use crate::sandbox::docker::DockerConfig;
use crate::sandbox::init_binary::find_init;
use crate::sandbox::link::{Gate, Standing};
use crate::sandbox::{Drivers, SandboxConfig, SandboxIds};
use crate::server::auth::{Door, ensure_token};
use crate::server::{LogPiece, Refusal, ServerState, serve};
use crate::store::{Key, Kind, Record, Store};
use crate::telemetry::Metrics;
use crate::tools;
use crate::workspace::{SnapshotLimits, TreeModeWish, WorkspaceConfig, Workspaces};
use futures::{FutureExt, TryStreamExt};
use k8s_openapi::jiff::{Timestamp, Unit};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long passes that run may go on after a shutdown began.
const CONTROLLER_SHUTDOWN_MAX: Duration = Duration::from_secs(10);
/// How often readiness and the count of passes are brought up to date.
const TELL_INTERVAL: Duration = Duration::from_millis(200);

/// Why `mosaic up` could not start. Every text says what was tried and what to do.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The state folder cannot be used.
    #[error("cannot use the state folder {path}: {why}")]
    State {
        /// Which folder.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another mosaic works on this state folder.
    #[error("another mosaic works on {path} ({by}); stop it, or choose another folder with --state")]
    Busy {
        /// Which folder.
        path: PathBuf,
        /// Who.
        by: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: {source}; another program may use the port: choose another with --listen 127.0.0.1:PORT")]
    Listen {
        /// Which address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A part could not start.
    #[error("cannot start {part}: {why}")]
    Part {
        /// Which part.
        part: &'static str,
        /// Why, with causes.
        why: String,
    },
}

fn part<E: std::error::Error + 'static>(part: &'static str) -> impl Fn(E) -> UpError {
    move |error| UpError::Part { part, why: crate::causes::one_line(&error) }
}

/// A started `mosaic up`.
pub struct Running {
    /// Where HTTP is served.
    pub addr: SocketAddr,
    /// The bearer token.
    pub token: Secret,
    /// The records.
    pub store: Arc<dyn Store>,
    /// How far the controller is.
    pub progress: Progress,
    /// What was found and chosen at start, one line each.
    pub notes: Vec<String>,
    state: PathBuf,
    closing: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
    sandbox: Arc<Drivers>,
    kept: keep::Kept,
}

impl Running {
    /// Ends cleanly: no new requests, passes that run finish, the lease is released. Sandboxes run on.
    pub async fn shutdown(self) {
        self.closing.cancel();
        for task in self.tasks {
            if tokio::time::timeout(CONTROLLER_SHUTDOWN_MAX, task).await.is_err() {
                tracing::warn!("a part did not end in time; leaving it");
            }
        }
        self.background.iter().for_each(JoinHandle::abort);
        let sandbox = self.sandbox;
        let ending = tokio::task::spawn_blocking(move || sandbox.end_prepared());
        if tokio::time::timeout(CONTROLLER_SHUTDOWN_MAX, ending).await.is_err() {
            tracing::warn!("not all that was prepared was removed in time; the next start does");
        }
        let _ = std::fs::remove_file(self.state.join("server"));
        self.kept.leadership.resign().await;
    }
}

/// Starts everything and returns once requests are served.
/// # Errors
/// `UpError`; nothing is left behind but the state folder.
pub async fn start(config: &Config) -> Result<Running, UpError> {
    crate::heap::limit_arenas();
    prepare_state(&config.state)?;
    let listener = TcpListener::bind(config.listen).await.map_err(|source| UpError::Listen { listen: config.listen, source })?;
    let addr = listener.local_addr().map_err(|source| UpError::Listen { listen: config.listen, source })?;
    // On the heap: with a client's futures in it, that of the whole program would be nested too deeply for the compiler.
    let kept = Box::pin(keep::open(config)).await?;
    let latch = Arc::new(Latch::open(&config.state).map_err(part("the latch of the kill lane"))?);
    if let Some(why) = latch.unreadable() {
        tracing::warn!("nothing will start: {why}");
    }
    let audit = Arc::new(Audit::open(&config.state.join("audit"), "up", AuditOptions::default()).map_err(part("the audit log"))?);
    let mut parts = open_parts(config, kept.installation.clone(), latch.clone(), crate::journal::cleanups(&audit)).await?;
    parts.notes.extend(kept.notes.iter().cloned());
    let token = ensure_token(&config.state).map_err(|why| UpError::Part { part: "the HTTP server", why })?;
    let store = kept.store.clone();
    let metrics = Arc::new(Metrics::default());
    if let Some(teller) = &kept.teller {
        let about = "Kubernetes events that were not told: too many at once, or not taken";
        metrics.register(|registry| registry.register("mosaic_events_dropped", about, teller.dropped()));
    }

    let wired = wire(config, &kept, &parts, &audit, &latch);
    let lane = Arc::new(lane::start(config, &parts, &wired.ctx)?);
    let progress = wired.controller.progress();
    let closing = CancellationToken::new();
    let (ready_sender, ready) = watch::channel(false);
    let state = server_state(config, &kept, &audit, &parts, &wired, &lane, &token, addr, ready, metrics.clone(), &closing);
    let (leadership, business) = (kept.leadership.clone(), business(&wired.ctx, config.pods.is_some()));
    let background = vec![
        tokio::spawn(crate::heap::give_back_regularly()),
        tokio::spawn(async move { leadership.run(&business).await }),
        tokio::spawn(orphans::run(wired.ctx.clone(), Memory::new(&config.state))),
        tokio::spawn(forward_changes(parts.sandbox.changes(), wired.ctx.clone())),
        tokio::spawn(resync(wired.ctx.clone(), config.resync)),
        tokio::spawn(kill::record::run(wired.ctx.clone())),
        tokio::spawn(tell(progress.clone(), ready_sender, metrics, config.state.clone())),
    ];
    let stop = closing.clone();
    let tasks = vec![
        tokio::spawn(serve(state, listener, closing.clone().cancelled_owned())),
        tokio::spawn(wired.controller.run(async move { stop.cancelled().await })),
    ];
    write_server_file(&config.state, addr)?;
    let state = config.state.clone();
    let Parts { sandbox, notes, .. } = parts;
    Ok(Running { addr, token, store, progress, notes, state, closing, tasks, background, sandbox, kept })
}

fn prepare_state(path: &Path) -> Result<(), UpError> {
    let refuse = |why: String| UpError::State { path: path.to_owned(), why };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| refuse(e.to_string()))?;
    let mode = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(refuse(format!("others may look into it (mode {mode:o}); run: chmod 700 {}", path.display())));
    }
    Ok(())
}

/// Where the local client finds the server; gone after a clean end.
fn write_server_file(state: &Path, addr: SocketAddr) -> Result<(), UpError> {
    let path = state.join("server");
    crate::durable::replace(&path, format!("http://{addr}\n").as_bytes()).map_err(|e| UpError::State { path, why: e.to_string() })
}

/// What looks and does.
struct Parts {
    sandbox: Arc<Drivers>,
    workspaces: Arc<Workspaces>,
    notes: Vec<String>,
}

async fn open_parts(config: &Config, installation: String, latch: Arc<Latch>, cleanups: Cleanups) -> Result<Parts, UpError> {
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let sandboxes = SandboxConfig { latch, is_gated: true, cleanups: cleanups.clone(), ..sandbox_config(&config, installation)? };
        if !sandboxes.allow_missing.is_empty() {
            let missing = sandboxes.allow_missing.join(", ");
            tracing::warn!(missing, "sandboxes may start without these primitives of isolation and limits");
        }
        let tools = tools::report(&sandboxes.tool_roots);
        let opened = Drivers::open_with_pods(sandboxes, docker_config(&config)?, config.pods.clone(), Driver::Process);
        let sandbox = opened.map_err(part("the sandboxes"))?;
        let (driver, why) = choose_driver(&sandbox, config.driver, &config.sandbox_image)?;
        sandbox.set_default(driver);
        let tree_mode = if sandbox.docker().sees_mounts() { TreeModeWish::Auto } else { TreeModeWish::Checkout };
        let workspaces = WorkspaceConfig { tree_mode, cleanups, ..workspace_config(&config) };
        let workspaces = Arc::new(Workspaces::open(workspaces).map_err(part("the workspaces"))?);
        let chosen = format!("sandboxes: {driver:?}; trees: {:?}", workspaces.tree_mode()).to_lowercase();
        let warm =
            (config.warm > 0).then(|| sandbox.keep_warm(config.warm).unwrap_or_else(|why| format!("no containers are prepared: {why}")));
        let notes = [chosen].into_iter().chain(why).chain(warm).chain(tools).collect();
        Ok(Parts { sandbox: Arc::new(sandbox), workspaces, notes })
    });
    opened.await.map_err(part("the sandboxes"))?
}

/// Where agents run that ask for nothing, and what to say about that: what was asked for must work; auto takes pods where this controller
/// makes some, else containers where an engine has the image, else processes.
fn choose_driver(drivers: &Drivers, wish: Driver, image: &str) -> Result<(Driver, Vec<String>), UpError> {
    let test = |driver: Driver| drivers.test(driver).map_err(|e| crate::causes::one_line(&e));
    let has_image = || drivers.docker().has_default_image().map_err(|e| crate::causes::one_line(&e));
    let engine = || format!("containers: engine at {}, image {image}", drivers.docker().host());
    let fail = |part: &'static str| move |why: String| UpError::Part { part, why };
    if wish == Driver::Pod || wish == Driver::Auto {
        match drivers.pods() {
            Some(link) => return Ok((Driver::Pod, vec![format!("pods: {link}")])),
            None if wish == Driver::Pod => {
                let why = "pods need an address at which they reach this controller: give it with --link-address HOST:PORT";
                return Err(fail("the pod sandbox")(why.to_owned()));
            }
            None => {}
        }
    }
    if wish == Driver::Docker {
        test(Driver::Docker).map_err(fail("the docker sandbox"))?;
        let missing = !has_image().map_err(fail("the docker sandbox"))?;
        let note = if missing { format!("{}, which is not there yet: it is pulled for the first agent", engine()) } else { engine() };
        return Ok((Driver::Docker, vec![note]));
    }
    let mut notes = Vec::new();
    if wish == Driver::Auto {
        let usable = drivers.docker().look_at_engine().map_err(|e| crate::causes::one_line(&e)).and_then(|_| has_image());
        match usable.and_then(|has| if has { test(Driver::Docker).map(|()| true) } else { Ok(false) }) {
            Ok(true) => return Ok((Driver::Docker, vec![engine()])),
            Ok(false) => notes.push(format!("no containers by default: the engine has no image {image}; `make image` builds it")),
            Err(why) => notes.push(format!("no containers: {why}")),
        }
    }
    test(Driver::Process).map_err(fail("the process sandbox"))?;
    Ok((Driver::Process, notes))
}

/// Settings of the docker driver.
/// # Errors
/// The tool roots cannot be used.
pub(crate) fn docker_config(config: &Config) -> Result<DockerConfig, UpError> {
    let tool_roots = tools::named(&config.tool_roots).map_err(part("the tool roots"))?;
    Ok(DockerConfig { image: config.sandbox_image.clone(), tool_roots, ..DockerConfig::default() })
}

/// Settings of all drivers.
/// # Errors
/// The tool roots or `mosaic-init` cannot be used.
pub(crate) fn sandbox_config(config: &Config, installation: String) -> Result<SandboxConfig, UpError> {
    let tool_roots = tools::resolve(&config.tool_roots).map_err(part("the tool roots"))?;
    let init = match &config.init {
        Some(path) => path.clone(),
        None => find_init().map_err(part("mosaic-init"))?,
    };
    Ok(SandboxConfig {
        ids: SandboxIds::of(config.sandbox_uid),
        allow_missing: config.allow_missing.clone(),
        tool_roots,
        lease: config.lease,
        ..SandboxConfig::new(&config.state, installation, init)
    })
}

/// Settings of the workspaces.
pub(crate) fn workspace_config(config: &Config) -> WorkspaceConfig {
    let ids = SandboxIds::of(config.sandbox_uid);
    WorkspaceConfig {
        state: config.state.clone(),
        sandbox_uid: ids.uid,
        sandbox_gid: ids.gid,
        local_repos: config.local_repos.clone(),
        author_name: config.author_name.clone(),
        author_email: config.author_email.clone(),
        trusted_branches: Vec::new(),
        tree_mode: TreeModeWish::Auto,
        remote_timeout: config.remote_timeout,
        remote_silence: config.remote_silence,
        remotes: config.remotes.clone(),
        askpass: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
        limits: SnapshotLimits::default(),
        cleanups: Cleanups::default(),
    }
}

/// Context and controller, connected.
struct Wired {
    ctx: Arc<Context>,
    controller: Controller,
}

fn wire(config: &Config, kept: &keep::Kept, parts: &Parts, audit: &Arc<Audit>, latch: &Arc<Latch>) -> Wired {
    let (trigger, queue) = Trigger::new();
    let ledger = Arc::new(Ledger::new(audit.clone()));
    let wake = {
        let trigger = trigger.clone();
        Arc::new(move |key: Key| trigger.wake(key))
    };
    let ended = {
        let (ledger, wake) = (ledger.clone(), wake.clone());
        Arc::new(move |effect: &Effect, result: &Ended, wakes: bool| {
            ledger.outcome(effect, result.as_ref().map(|_| ()).map_err(|failure| failure.message.clone()));
            if wakes {
                wake(effect.key.clone());
            }
        })
    };
    let sandbox: Arc<dyn Sandbox> = parts.sandbox.clone();
    let (store, leadership) = (&kept.store, kept.leadership.clone());
    let (installation, others) = (kept.installation.clone(), kept.leadership.clone());
    let takeover = Takeover { after: config.takeover_after, is_present: Box::new(move |other| others.is_present(other)) };
    let flights = Flights::new(ended);
    let world = RealWorld::new(store.clone(), sandbox, parts.workspaces.clone(), flights, latch.clone(), installation, takeover);
    let limits = FleetLimits { running_max: config.running_max, starting_max: config.starting_max };
    let ctx = Arc::new(Context {
        store: store.clone(),
        world: Arc::new(world),
        fleet: Mutex::new(Fleet::new(limits)),
        epoch: Arc::new(move || leadership.epoch()),
        latch: latch.clone(),
        clock: Arc::new(now),
        journal: journal(&ledger, kept),
        wake,
        own_writes: OwnWrites::default(),
        seen_in: Mutex::default(),
        waiting: <_>::default(),
    });
    parts.sandbox.ask_before_grants(start_gate(Arc::downgrade(&ctx)));
    Wired { controller: Controller::new(ctx.clone(), trigger, queue), ctx }
}

/// Only who leads lets a run begin, and only one of an agent that no other place has taken over, as the store has said since then: however late its
/// start is.
fn start_gate(ctx: Weak<Context>) -> Gate {
    Arc::new(move |uid| {
        let Some(ctx) = ctx.upgrade() else { return Standing::Waits };
        let Some(uid) = uid else {
            let is_halted = ctx.fleet().halt_on("", &BTreeMap::new()).is_some();
            return if (ctx.epoch)().is_some() && !is_halted { Standing::Leads } else { Standing::Waits };
        };
        // Of what was cleaned up somebody has seen that nothing runs, and nothing of it runs ever again.
        let is_over = |member: &Member| member.is_elsewhere || matches!(member.place, Place::Completed | Place::Failed);
        let is_lost = ctx.fleet().member(uid).map(is_over);
        match is_lost {
            Some(true) => Standing::Lost,
            Some(false) if ctx.has_seen(uid) => Standing::Leads,
            Some(false) | None => Standing::Waits,
        }
    })
}

/// Where passes tell what they do: the audit log, and whoever tells people beside the records.
fn journal(ledger: &Arc<Ledger>, kept: &keep::Kept) -> Journal {
    let journal = ledger.journal();
    let Some(teller) = kept.teller.clone() else { return journal };
    let audit = journal.transition.clone();
    let transition = move |transition: Transition| {
        teller.tell(&transition.key, &transition.uid, &transition.before, &transition.after);
        audit(transition);
    };
    Journal { transition: Arc::new(transition), ..journal }
}

/// The time, to the microsecond: records keep no more, and a status must equal itself after a round trip.
fn now() -> Timestamp {
    Timestamp::now().round(Unit::Microsecond).expect("the present is far from the ends of time")
}

/// A sandbox that started or ended wakes its agent.
async fn forward_changes(mut changes: broadcast::Receiver<Uid>, ctx: Arc<Context>) {
    loop {
        match changes.recv().await {
            Ok(uid) => ctx.wake_all([uid]),
            // Some were missed: look at everybody.
            Err(broadcast::error::RecvError::Lagged(_)) => wake_everybody(&ctx).await,
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Everybody is looked at now and then even if nothing seems to have happened.
async fn resync(ctx: Arc<Context>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        wake_everybody(&ctx).await;
    }
}

/// What leading has to do with the rest.
fn business(ctx: &Arc<Context>, serves_pods: bool) -> Business {
    let (waiting, busy, woken) = (ctx.clone(), ctx.clone(), ctx.clone());
    Business {
        waiting: Box::new(move || waiting.waiting.count(|uid| waiting.fleet().member(uid).is_some())),
        is_busy: Box::new(move || busy.world.is_busy()),
        serves_pods,
        changed: Box::new(move || drop(tokio::spawn(wake_all(woken.clone())))),
    }
}

/// Nothing was done while nobody here led; and what waits for this controller to lead is found once it does not.
async fn wake_all(ctx: Arc<Context>) {
    match ctx.store.list(Kind::Halt).await {
        Ok((halts, _)) => halts.iter().for_each(|halt| (ctx.wake)(halt.key())),
        Err(error) => tracing::warn!(%error, "could not list the halts"),
    }
    wake_everybody(&ctx).await;
}

/// What people should know about this server now.
fn remarks(config: &Config, kept: &keep::Kept) -> crate::server::Remarks {
    let (store, leadership, memory) = (kept.store.clone(), kept.leadership.clone(), Memory::new(&config.state));
    Arc::new(move || {
        let forgot = memory
            .forgot()
            .map(|why| format!("{why}: sandboxes without a record are left alone until {} is removed", memory.path().display()));
        std::iter::once(leadership.describe()).chain(store.caveat()).chain(forgot).collect()
    })
}

async fn wake_everybody(ctx: &Context) {
    let wake = async |record: Record| {
        (ctx.wake)(record.key());
        Ok(())
    };
    let woken = async { ctx.store.list_stream(Kind::Agent).await?.0.try_for_each(wake).await };
    if let Err(error) = woken.await {
        tracing::warn!(%error, "could not list the agents");
    }
}

/// Tells readiness and counts passes.
async fn tell(progress: Progress, ready: watch::Sender<bool>, metrics: Arc<Metrics>, state: PathBuf) {
    let passes = Arc::new(AtomicU64::new(0));
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    metrics.register(|registry| registry.register("mosaic_reconcile", "Passes over records", counter.clone()));
    let drilled = prometheus_client::metrics::gauge::Gauge::<i64>::default();
    let about = "Seconds since every path of a kill was last tried and killed in time (mosaic doctor --drill); -1: never";
    metrics.register(|registry| registry.register("mosaic_kill_drill_age_seconds", about, drilled.clone()));
    loop {
        ready.send_if_modified(|ready| std::mem::replace(ready, progress.is_synced()) != *ready);
        let done = progress.passes();
        counter.inc_by(done - passes.swap(done, Ordering::Relaxed));
        drilled.set(kill::drill::age(&state).and_then(|age| i64::try_from(age.as_secs()).ok()).unwrap_or(-1));
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}

#[allow(clippy::too_many_arguments, reason = "everything the routes need, gathered in one place")]
fn server_state(
    config: &Config,
    kept: &keep::Kept,
    audit: &Arc<Audit>,
    parts: &Parts,
    wired: &Wired,
    lane: &Arc<Lane>,
    token: &Secret,
    addr: SocketAddr,
    ready: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    closing: &CancellationToken,
) -> ServerState {
    let (lister, reader) = (config.state.clone(), config.state.clone());
    let ctx = wired.ctx.clone();
    let queue = move || {
        let queue: Vec<Uid> = ctx.fleet().queue(crate::server::queue::POSITIONS_MAX).map(|member| member.uid.clone()).collect();
        async move { queue }.boxed()
    };
    ServerState {
        store: kept.store.clone(),
        door: Arc::new(Door::new(token, addr.port())),
        default_namespace: config.default_namespace.clone(),
        diff: diff_source(parts.workspaces.clone()),
        admission: courtesy_check(parts.workspaces.clone()),
        queue: Arc::new(queue),
        log_list: Arc::new(move |uid| Ok(crate::sandbox::logs::list(&lister, uid)?.into_iter().map(|log| log.run).collect())),
        log_read: Arc::new(move |run, from, bytes_max| {
            let chunk = crate::sandbox::logs::read(&reader, run, from, bytes_max)?;
            Ok(LogPiece { bytes: chunk.bytes, next: chunk.next, dropped: chunk.dropped, ended: chunk.ended })
        }),
        lane: lane.clone(),
        latch: wired.ctx.latch.clone(),
        audit: audit.clone(),
        metrics,
        ready,
        remarks: remarks(config, kept),
        started: Instant::now(),
        closing: closing.clone(),
        follows: Arc::new(tokio::sync::Semaphore::new(crate::server::FOLLOWS_MAX)),
    }
}

/// Longest diff that is shown, in bytes.
const DIFF_BYTES_MAX: usize = 1024 * 1024;

/// The change of an agent: from the base to the commit that is gated, as far as there is one.
fn diff_source(workspaces: Arc<Workspaces>) -> crate::server::DiffSource {
    Arc::new(move |record: Record| {
        let workspaces = workspaces.clone();
        async move {
            let agent = crate::api::validate::validate(&record).map_err(|errors| errors.join("; "))?;
            let joined = tokio::task::spawn_blocking(move || diff(&workspaces, &agent)).await;
            joined.map_err(|error| format!("the diff broke: {error}"))?
        }
        .boxed()
    })
}

fn diff(workspaces: &Workspaces, agent: &ValidAgent) -> Result<Option<String>, String> {
    let workspace = agent.status.workspace.clone().unwrap_or_default();
    let commit = |sha: Option<String>| sha.and_then(|sha| crate::api::names::CommitId::new(sha).ok());
    let to = commit(workspace.head_sha).or_else(|| commit(workspace.candidate_sha));
    let (Some(to), Some(from)) = (to, commit(workspace.head_base_sha).or_else(|| commit(workspace.base_sha))) else { return Ok(None) };
    workspaces
        .diff(&agent.namespace, &agent.repository, &from, &to, DIFF_BYTES_MAX)
        .map(Some)
        .map_err(|error| crate::causes::one_line(&error))
}

/// What admission will say, before the record exists: the same code and the same words.
fn courtesy_check(workspaces: Arc<Workspaces>) -> crate::server::CourtesyCheck {
    Arc::new(move |agent: ValidAgent| {
        let workspaces = workspaces.clone();
        async move {
            let refusal = |reason: &str, message: String| Err(Refusal { reason: reason.to_owned(), message });
            if let Some(text) = crate::plan::lifecycle::not_built(&agent) {
                return refusal(crate::api::condition::reason::NOT_SUPPORTED, text);
            }
            let joined = tokio::task::spawn_blocking(move || resolve(&workspaces, &agent)).await;
            match joined {
                Ok(Err(failure)) if failure.class == crate::plan::observed::FailureClass::Invalid => {
                    refusal(&failure.reason, failure.message)
                }
                // What the infrastructure failed to tell now, admission will.
                Ok(_) | Err(_) => Ok(()),
            }
        }
        .boxed()
    })
}
