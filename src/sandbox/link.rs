//! The controller's side of the link: one control socket per run, on a thread and a runtime of its own.
//!
//! init asks for its grant, then renews its lease by long polls; an answer may be the word to stop. Renewals never wait for the
//! reconcile pool, the store or a lock of theirs. Only runs that this server was told of are answered; a tombstone in the run's folder
//! is the end of its grant, so that a start which completes late is harmless. Nothing else that comes over the link is believed.
//!
//! A container has its sockets where the agent sees them: there only init is served, by the kernel's word on who is at the other end, and who
//! knocks in vain is kept from filling the line. What the init of a container needs to begin is in `handover`.
//!
//! A pod is on another host: its init comes over TLS with the pod's token (`remote`), and has no socket.
//!
//! It decides nothing about agents: who may run was decided when the intent was written.

mod handover;
pub mod remote;

use crate::api::names::{Epoch, RunId, Secret, Uid};
use crate::inside::wire::{
    FILE_SESSION, FILE_SPEC, FILE_STOPPED, FOLDER_CONTROL, GrantAnswer, GrantRequest, PATH_GRANT, PATH_RENEW, RenewAnswer, RenewRequest,
    SOCKET_CONTROL, SOCKET_FILES, Word, hold_millis,
};
use crate::kill::latch::Latch;
use crate::sandbox::folder::{RunFolder, Session, StoredSpec, hash};
use crate::sandbox::kill::{self, Life};
use handover::Door;
pub(crate) use handover::prove;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use remote::{Remote, Waiting};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, broadcast, oneshot, watch};

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Connections to one control socket at once; init needs one.
const CONNECTIONS_MAX: usize = 4;
/// How long a request may take to arrive.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Changes that a slow listener may lag behind before it is told that it missed some.
const CHANGES_KEPT: usize = 1024;
/// How long a launcher may take to write its last word after init is gone, before the end is told all the same.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks for it.
const LAST_WORD_PAUSE: Duration = Duration::from_millis(1);
/// Pause between two looks at a lock where the kernel shows no process.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Pause after somebody knocked who is not init.
const KNOCK_PAUSE: Duration = Duration::from_millis(1);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What this controller is to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It leads, and the agent is its own: a run may begin.
    Leads,
    /// It does not lead, or does not know the agent yet: no run may begin now.
    Waits,
    /// Another one has taken the agent over, having seen that nothing of it runs here: no run of it begins here ever again.
    Lost,
}

/// Says what this controller is to an agent at the moment; `None`: whether it leads, and not everything is halted.
pub type Gate = Arc<dyn Fn(Option<&Uid>) -> Standing + Send + Sync>;

/// Serves the control sockets of all runs.
pub struct LinkServer {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    epoch: AtomicU64,
    changes: broadcast::Sender<Uid>,
    latch: Arc<Latch>,
    gate: Arc<Mutex<Gate>>,
    runs: Mutex<BTreeMap<RunId, Arc<RunLink>>>,
    /// Pods that wait for a run, by the names that they say.
    waiting: Mutex<BTreeMap<String, Arc<Waiting>>>,
}

/// Whose init it is that asks.
pub enum Origin {
    /// A launcher's, which writes its identity and gives it everything.
    Launched,
    /// A container's, which is handed everything over; with the run's lock, which is kept until it takes it. `None`: it is taken when it comes,
    /// unless it has come already.
    Contained(Option<File>),
    /// A pod's, known by the name that it was given, and its token.
    Remote(String, Secret),
}

/// How the init of a run reaches us.
enum Line {
    Launched,
    /// Its init is handed over what it needs, and nobody else is served.
    Contained(Door),
    Remote(Remote),
}

/// The link of one run.
struct RunLink {
    run: RunId,
    latch: Arc<Latch>,
    gate: Arc<Mutex<Gate>>,
    epoch: Epoch,
    /// How long a renewal is held: by the lease that this run was made with, whatever the configuration says now.
    hold: Duration,
    folder: RunFolder,
    word: watch::Sender<Word>,
    secret_hash: Mutex<Option<String>>,
    /// Process id of the init of a container, once it is known.
    init: OnceLock<i32>,
    line: Line,
    started: Mutex<bool>,
    has_started: Condvar,
    /// Ends the tasks of this run.
    quit: watch::Sender<bool>,
}

impl LinkServer {
    /// Starts the thread. What is latched is granted nothing. `before`: what this controller is to all before there is a gate.
    /// # Errors
    /// No thread or descriptors are left.
    pub fn start(latch: Arc<Latch>, before: Standing) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (quit, quitting) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("mosaic-link".to_owned()).spawn(move || {
            let _ = runtime.block_on(quitting);
            runtime.shutdown_background();
        })?;
        let (epoch, changes) = (AtomicU64::new(0), broadcast::channel(CHANGES_KEPT).0);
        let gate = Arc::new(Mutex::new(Arc::new(move |_: Option<&Uid>| before) as Gate));
        let shared = Shared { epoch, changes, latch, gate, runs: Mutex::default(), waiting: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), runtime: handle, quit: Some(quit), thread: Some(thread) })
    }

    /// Tells of every run that ended, and what goes on while one is made, by the agent's uid. Messages may be missed; they carry no data.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Uid> {
        self.shared.changes.subscribe()
    }

    /// Tells of a run that init itself does not tell of: it was never granted its start, its end was seen late, or it is still being made.
    pub fn tell(&self, uid: &Uid) {
        self.shared.changed(uid);
    }

    /// From now on it asks before it grants a start: who must wait asks again.
    pub fn ask_before_grants(&self, gate: Gate) {
        *self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner) = gate;
    }

    /// What this controller is to an agent; `None`: to all of them, which wait while everything is halted.
    #[must_use]
    pub fn standing(&self, uid: Option<&Uid>) -> Standing {
        standing(&self.shared.gate, uid)
    }

    /// Raises the epoch that answers carry.
    pub fn raise_epoch(&self, epoch: Epoch) {
        self.shared.epoch.fetch_max(epoch.0, Ordering::SeqCst);
    }

    /// Binds the sockets of a run, anew if there were some, and serves them.
    /// # Errors
    /// A socket cannot be bound.
    pub fn serve(&self, run: &RunId, epoch: Epoch, lease_millis: u64, folder: &RunFolder, origin: Origin) -> io::Result<()> {
        let (listener, files, line) = match origin {
            Origin::Launched => (Some(bind(folder, SOCKET_CONTROL)?), None, Line::Launched),
            Origin::Contained(lock) => {
                let listener = bind(folder, SOCKET_CONTROL)?;
                // Who holds the lock already has got everything.
                let waits = lock.is_some() || !folder.is_held()?;
                let files = if waits { Some(bind(folder, SOCKET_FILES)?) } else { None };
                (Some(listener), files, Line::Contained(Door::new(lock)))
            }
            Origin::Remote(name, token) => (None, None, Line::Remote(Remote::new(name, token))),
        };
        let link = Arc::new(RunLink {
            run: run.clone(),
            latch: self.shared.latch.clone(),
            gate: self.shared.gate.clone(),
            epoch,
            hold: Duration::from_millis(hold_millis(lease_millis)),
            folder: folder.clone(),
            init: OnceLock::new(),
            line,
            word: watch::Sender::new(Word::Renew),
            secret_hash: Mutex::default(),
            started: Mutex::new(false),
            has_started: Condvar::new(),
            quit: watch::Sender::new(false),
        });
        let before = self.shared.runs().insert(run.clone(), link.clone());
        if let Some(before) = before {
            before.quit.send_replace(true);
        }
        if let Line::Remote(remote) = &link.line {
            // After the run is known: its next question finds that.
            self.wait_no_more(remote.name());
        }
        if let Some(listener) = listener {
            self.runtime.spawn(accept(self.shared.clone(), link.clone(), listener));
        }
        if let Some(files) = files {
            self.runtime.spawn(accept_files(link.clone(), files));
        }
        if folder.identity()?.is_some() || link.is_hidden().unwrap_or(false) {
            self.runtime.spawn(watch_end(self.shared.clone(), link));
        }
        Ok(())
    }

    /// Waits until the command of a run executes; false when the time was over first.
    #[must_use]
    pub fn wait_started(&self, run: &RunId, timeout: Duration) -> bool {
        let Some(link) = self.shared.runs().get(run).cloned() else { return false };
        let started = link.started.lock().unwrap_or_else(PoisonError::into_inner);
        let result = link.has_started.wait_timeout_while(started, timeout, |started| !*started);
        *result.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sends the word to stop, now or at init's next question.
    pub fn say_stop(&self, run: &RunId) {
        if let Some(link) = self.shared.runs().get(run) {
            link.word.send_replace(Word::Stop);
        }
    }

    /// Nothing came of a run: from now on nothing is granted to it, whatever is still on its way. False: it was granted meanwhile.
    /// # Errors
    /// The disk refuses its tombstone: it may still be granted.
    pub fn bury(&self, run: &RunId, folder: &RunFolder, why: &str) -> io::Result<bool> {
        let link = self.shared.runs().get(run).cloned();
        // Between the gate's look at the tombstone and the note of its grant there is no room for this one.
        let _deciding = link.as_ref().map(|link| link.secret_hash.lock().unwrap_or_else(PoisonError::into_inner));
        if folder.read::<Session>(FILE_SESSION)?.is_some() {
            return Ok(false);
        }
        if !folder.is_stopped()? {
            crate::durable::replace(&folder.path().join(FILE_STOPPED), why.as_bytes())?;
        }
        Ok(true)
    }

    /// Nothing of a container came, and nothing will: its lock is free again.
    pub fn let_go(&self, run: &RunId) {
        if let Some(door) = self.shared.runs().get(run).and_then(|link| link.door()) {
            door.close();
        }
    }

    /// Serves a run no longer.
    pub fn forget(&self, run: &RunId) {
        if let Some(link) = self.shared.runs().remove(run) {
            link.quit.send_replace(true);
            if let Some(door) = link.door() {
                door.close();
            }
        }
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn runs(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, Arc<RunLink>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, uid: &Uid) {
        // Nobody listening is no error.
        let _ = self.changes.send(uid.clone());
    }
}

/// init connects as the sandbox's user; nobody else passes the folders above.
fn bind(folder: &RunFolder, name: &str) -> io::Result<UnixListener> {
    bind_in(&folder.path().join(FOLDER_CONTROL), name, 0o666)
}

/// Binds a socket in a folder, in the place of one that is there, through a descriptor of the folder: the path of a socket may have 108 bytes
/// only. One caller per folder at a time.
/// # Errors
/// The folder is not there, or the file system refuses.
pub(crate) fn bind_in(folder: &Path, name: &str, mode: u32) -> io::Result<UnixListener> {
    let folder = File::open(folder)?;
    let path = |name: &str| format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let temporary = path("new.sock");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&temporary, Permissions::from_mode(mode))?;
    std::fs::rename(&temporary, path(name))?;
    Ok(listener)
}

async fn accept(shared: Arc<Shared>, link: Arc<RunLink>, listener: UnixListener) {
    let Ok(listener) = tokio::net::UnixListener::from_std(listener) else { return };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut quit = link.quit.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = quit.wait_for(|quit| *quit) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let pid = pid_of(&stream);
        if !link.serves(pid) {
            drop(stream);
            tokio::time::sleep(KNOCK_PAUSE).await;
            continue;
        }
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (shared, link) = (shared.clone(), link.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(shared.clone(), link.clone(), pid, request));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).keep_alive(false);
            // A broken connection is the client's matter: it asks again.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

/// Who is at the other end; `None`: nobody whom the kernel shows here.
fn pid_of(stream: &tokio::net::UnixStream) -> Option<i32> {
    stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0)
}

/// Hands the files of a container's run over, one try at a time, until init has them.
async fn accept_files(link: Arc<RunLink>, listener: UnixListener) {
    let Ok(listener) = tokio::net::UnixListener::from_std(listener) else { return };
    let mut quit = link.quit.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = quit.wait_for(|quit| *quit) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (pid, handing) = (pid_of(&stream), link.clone());
        let Ok(stream) = stream.into_std() else { continue };
        let handed = tokio::task::spawn_blocking(move || match handing.door() {
            Some(door) => door.hand_over(&handing.folder, stream, pid),
            None => Ok(()),
        });
        match handed.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::debug!(run = %link.run, %error, "handed nothing over"),
            Err(_) => {}
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Tells of the end of a run's init.
async fn watch_end(shared: Arc<Shared>, link: Arc<RunLink>) {
    let handle = link.folder.identity().ok().flatten().and_then(|identity| kill::handle(&identity).ok().flatten());
    let gone = async |handle: OwnedFd| -> io::Result<()> {
        // SAFETY: the handle owns its descriptor, which stays open until the `AsyncFd` is dropped.
        let handle = unsafe { tokio::io::unix::AsyncFd::register_with_interest(handle, tokio::io::Interest::READABLE) }?;
        handle.readable().await.map(drop)
    };
    let mut quit = link.quit.subscribe();
    if let Some(handle) = handle {
        tokio::select! {
            _ = gone(handle) => {}
            _ = quit.wait_for(|quit| *quit) => return,
        }
    } else {
        while link.is_hidden().unwrap_or(true) {
            tokio::select! {
                () = tokio::time::sleep(LOCK_PAUSE) => {}
                _ = quit.wait_for(|quit| *quit) => return,
            }
        }
    }
    // The launcher's last word belongs to the end; it lets go of the lock after it.
    let give_up_at = tokio::time::Instant::now() + LAST_WORD_PATIENCE;
    while link.folder.is_held().unwrap_or(false) && tokio::time::Instant::now() < give_up_at {
        tokio::time::sleep(LAST_WORD_PAUSE).await;
    }
    shared.changed(&link.run.uid);
}

type Answer = Response<Full<Bytes>>;

async fn answer(shared: Arc<Shared>, link: Arc<RunLink>, pid: Option<i32>, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = tokio::time::timeout(HEADER_PATIENCE, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = body else { return Ok(plain(StatusCode::BAD_REQUEST)) };
    Ok(control(shared, link, pid, &path, &body.to_bytes()).await)
}

/// Grant and renewal, which are those of every driver. `pid`: who asks, where the kernel says.
async fn control(shared: Arc<Shared>, link: Arc<RunLink>, pid: Option<i32>, path: &str, body: &[u8]) -> Answer {
    match path {
        PATH_GRANT => match serde_json::from_slice(body) {
            Ok(request) => grant(shared, link, pid, request).await,
            Err(_) => plain(StatusCode::BAD_REQUEST),
        },
        PATH_RENEW => match serde_json::from_slice(body) {
            Ok(request) => renew(shared, link, request).await,
            Err(_) => plain(StatusCode::BAD_REQUEST),
        },
        _ => plain(StatusCode::NOT_FOUND),
    }
}

fn standing(gate: &Mutex<Gate>, uid: Option<&Uid>) -> Standing {
    let gate = gate.lock().unwrap_or_else(PoisonError::into_inner).clone();
    gate(uid)
}

fn plain(status: StatusCode) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn json(value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).expect("an answer is plain data");
    Response::new(Full::new(bytes.into()))
}

async fn grant(shared: Arc<Shared>, link: Arc<RunLink>, pid: Option<i32>, request: GrantRequest) -> Answer {
    let deciding = link.clone();
    // It writes to the disk, and renewals must not wait for that.
    let decided = tokio::task::spawn_blocking(move || deciding.decide(pid, request)).await;
    let epoch = shared.epoch.load(Ordering::SeqCst).max(link.epoch.0);
    match decided {
        Ok(Ok(None)) => {
            // The end of a pod is told by who watches the cluster.
            if !matches!(link.line, Line::Remote(_)) {
                tokio::spawn(watch_end(shared.clone(), link.clone()));
            }
            json(&GrantAnswer { granted: true, reason: String::new(), epoch })
        }
        Ok(Ok(Some(reason))) => json(&GrantAnswer { granted: false, reason: reason.to_owned(), epoch }),
        Ok(Err(_)) | Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

async fn renew(shared: Arc<Shared>, link: Arc<RunLink>, request: RenewRequest) -> Answer {
    match link.knows(&request.secret) {
        Ok(true) => {}
        Ok(false) => return plain(StatusCode::FORBIDDEN),
        Err(_) => return plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
    link.set_started();
    let stopped = match link.folder.is_stopped() {
        Ok(stopped) => stopped,
        Err(_) => return plain(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let mut word = link.word.subscribe();
    let told = !stopped && tokio::time::timeout(link.hold, word.wait_for(|word| *word == Word::Stop)).await.is_err();
    let epoch = shared.epoch.load(Ordering::SeqCst).max(link.epoch.0);
    json(&RenewAnswer { word: if told { Word::Renew } else { Word::Stop }, epoch })
}

impl RunLink {
    /// Whether a connection is worth an answer.
    fn serves(&self, pid: Option<i32>) -> bool {
        if self.door().is_none() {
            return true;
        }
        let known = self.init.get().copied().or_else(|| {
            let found = self.folder.identity().ok().flatten()?.pid;
            Some(*self.init.get_or_init(|| found))
        });
        // Before init is known nothing of the agent's runs.
        known.is_none() || known == pid
    }

    /// Whether the init of a container lives that the kernel does not show here.
    fn is_hidden(&self) -> io::Result<bool> {
        Ok(self.door().is_some() && self.folder.identity()?.is_none() && self.folder.is_held()?)
    }

    fn door(&self) -> Option<&Door> {
        match &self.line {
            Line::Contained(door) => Some(door),
            Line::Launched | Line::Remote(_) => None,
        }
    }

    /// The start gate. `None` grants; else the reason of the refusal.
    fn decide(&self, pid: Option<i32>, request: GrantRequest) -> io::Result<Option<&'static str>> {
        let mut known = self.secret_hash.lock().unwrap_or_else(PoisonError::into_inner);
        if self.folder.is_stopped()? {
            return Ok(Some("it was stopped before it started"));
        }
        let agent = self.folder.read::<StoredSpec>(FILE_SPEC)?.map(|spec| spec.agent).unwrap_or_default();
        let namespace = agent.split_once('/').map_or("", |(namespace, _)| namespace);
        // A driver's own test is no agent and has no namespace.
        let halted = !namespace.is_empty() && self.latch.halted(namespace).is_some();
        if halted || self.latch.killed(&self.run.uid).is_some() {
            return Ok(Some("its agent was killed, or everything is halted"));
        }
        let standing = if namespace.is_empty() { Standing::Leads } else { standing(&self.gate, Some(&self.run.uid)) };
        match standing {
            Standing::Leads => {}
            Standing::Waits => return Err(io::Error::other("this controller does not lead")),
            Standing::Lost => return Ok(Some("another controller has taken its agent over")),
        }
        if request.run != self.run.to_string() || request.epoch != self.epoch.0 {
            return Ok(Some("this is the link of another run"));
        }
        match self.folder.identity()? {
            Some(identity) if pid == Some(identity.pid) && kill::look(&identity)? == Life::Alive => {}
            Some(_) => return Ok(Some("it is not the init of this run")),
            // Only the init of this run has the lock, and only it and we can ask here.
            None if pid.is_none() && self.is_hidden()? => {}
            // It has the pod's token, which nobody else was given.
            None if matches!(self.line, Line::Remote(_)) => {}
            None => return Ok(Some("its identity is not written")),
        }
        let secret_hash = hash(request.secret.as_bytes());
        if let Some(session) = self.folder.read::<Session>(FILE_SESSION)? {
            // The same init asks again when the answer was lost.
            let same = is_same(&session.secret_hash, &secret_hash);
            return Ok(if same { None } else { Some("the run was granted before") });
        }
        let granted_at_millis = Timestamp::now().as_millisecond();
        let session = Session { secret_hash: secret_hash.clone(), granted_at_millis, isolation: request.isolation };
        self.folder.write(FILE_SESSION, &session)?;
        *known = Some(secret_hash);
        Ok(None)
    }

    /// Whether this is the secret of the init that has the grant.
    fn knows(&self, secret: &str) -> io::Result<bool> {
        let mut known = self.secret_hash.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = self.folder.read::<Session>(FILE_SESSION)?.map(|session| session.secret_hash);
        }
        Ok(known.as_ref().is_some_and(|known| is_same(known, &hash(secret.as_bytes()))))
    }

    fn set_started(&self) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.has_started.notify_all();
    }
}

fn is_same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}
