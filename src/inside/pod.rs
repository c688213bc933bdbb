//! `mosaic-init pod`: PID 1 of a pod's container. What an engine and the host's files are for the other drivers is here the link alone.
//!
//! make itself untouchable -> ask how to begin, for as long as nobody has a use for it -> fetch tree, HOME and base objects, checked as a
//! whole -> `init::run`: look from inside, ask for the grant, execute, report. Beside it a thread carries output away, and now and then what has changed in tree and HOME. When the
//! command has ended the rest follows, then the last word; only when the controller has all of it does this process end, and with it the pod.
//!
//! The agent has the same files and the same user, but neither the token (init's environment is not its own, and init is not dumpable) nor
//! the session secret: nothing that it says over the network is heard.
//!
//! `mosaic-init place`: the pod's first container, which brings this program and makes the folders.

use crate::inside::archive::{self, Bounds, Manifest, Root};
use crate::inside::dial::{About, Dialer, Line, to_hex};
use crate::inside::init::Brought;
use crate::inside::limits::Doors;
use crate::inside::link::Way;
use crate::inside::output::{self, Ring};
use crate::inside::wire::{
    Beginning, ExitCause, ExitNotice, ExitReport, HOME, PATH_BEGIN, PATH_EXIT, PATH_FETCH, PATH_OUTPUT, PATH_TAKE, PATH_TREE,
    PIECE_BYTES_MAX, Parcel, Take, WORKSPACE,
};
use crate::inside::{EXIT_FAILED, confine, init, limits, system};
use rustix::fs::{MemfdFlags, Mode};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long nobody's answer is waited for before there is anything to lose.
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long what the agent made is held for a controller that does not answer.
const HOLD_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Longest wait for one answer: laying out a large tree takes longest. A new pod's network may swallow what was sent while its policy came.
const TAKE_PATIENCE: Duration = Duration::from_secs(60);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Output that waits to be carried away; the oldest goes when the link is too slow.
const RING_BYTES: u64 = 4 << 20;
/// Pause between two looks for output.
const OUTPUT_PAUSE: Duration = Duration::from_millis(50);
/// How often a tree is begun anew whose pieces did not arrive.
const TAKES_MAX: u32 = 3;
/// How long a network policy may take to close a new pod's network.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);
/// Connections of which none stands by then are not let through: within one cluster each takes a millisecond, to an API server elsewhere more.
const CLOSED_AFTER: Duration = Duration::from_millis(250);
/// How many are tried at once: one packet may be lost.
const CLOSED_TRIES: usize = 4;
/// How often a pod that waits for its run looks again whether its network is closed.
const CLOSED_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before it is tried again: the policy may be on its way.
const CLOSING_PAUSE: Duration = Duration::from_millis(20);
/// Folders of the pod's volume, as they are seen at their own places later.
const VOLUME_FOLDERS: [&str; 3] = ["workspace", "home", "mosaic"];
/// Exit code of one that was told to stop.
const EXIT_STOPPED: i32 = 143;

/// Copies this program to where the other container executes it, and makes the folders of its volume, so that they are its user's.
pub(super) fn place(target: &str, volume: &str) -> i32 {
    let work = || -> io::Result<()> {
        for name in VOLUME_FOLDERS {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(Path::new(volume).join(name))?;
        }
        fs::copy("/proc/self/exe", target)?;
        fs::set_permissions(target, fs::Permissions::from_mode(0o555))
    };
    match work() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("failed to bring mosaic-init to {target}: {e}");
            EXIT_FAILED
        }
    }
}

/// Runs as PID 1; returns the exit code. 0: the controller has everything.
pub(super) fn run() -> i32 {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let hidden = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let unprivileged = rustix::thread::set_no_new_privs(true);
    let no_dumps = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if hidden.is_err() || unprivileged.is_err() || no_dumps.is_err() || system::close_on_exec_from(3).is_err() {
        return EXIT_FAILED;
    }
    let said = Dialer::new(|name| std::env::var(name).ok()).and_then(|dialer| begin(&Arc::new(dialer)));
    said.unwrap_or_else(|text| {
        // The kubelet's log of this container is where people look when there is no link.
        eprintln!("mosaic-init: {text}");
        EXIT_FAILED
    })
}

fn begin(dialer: &Arc<Dialer>) -> Result<i32, String> {
    let look = || std::thread::Builder::new().spawn(is_closed).map_err(|e| e.to_string());
    let (mut policy, mut looked_at) = (look()?, Instant::now());
    let mut line = Line::new(dialer.clone());
    let answer = loop {
        let answer = persist(&mut line, PATH_BEGIN, About::default(), b"", BEGIN_PATIENCE).map_err(|e| format!("failed to begin: {e}"))?;
        if !answer.is_empty() {
            break answer;
        }
        // It was made ahead. Whatever takes the policy away meanwhile, what is claimed later has a closed network.
        if looked_at.elapsed() >= CLOSED_INTERVAL {
            let before = std::mem::replace(&mut policy, look()?);
            looked_at = Instant::now();
            if !before.join().unwrap_or(false) {
                return Err("its network is not closed".to_owned());
            }
        }
    };
    let beginning: Beginning = serde_json::from_slice(&answer).map_err(|e| format!("failed to begin: {e}"))?;
    let report = match prepare(&mut line, &beginning, policy) {
        Ok(prepared) => return Ok(live(dialer, line, &beginning, prepared)),
        Err(text) => ExitReport { cause: ExitCause::NotStarted(text), duration_millis: 0, counters: None },
    };
    Ok(tell_end(&mut line, "", report, None))
}

/// What must be there before the looks from inside, which need a process of one thread.
struct Prepared {
    ring: File,
    log: Ring,
    doors: Doors,
    taking: Option<Taking>,
    closed: bool,
}

fn prepare(line: &mut Line, beginning: &Beginning, policy: JoinHandle<bool>) -> Result<Prepared, String> {
    let fetched = fetch(line, beginning);
    // Whatever came of it: nothing may run beside the looks.
    let closed = policy.join().unwrap_or(false);
    let taking = fetched.map_err(|e| format!("failed to bring the files: {e}"))?;
    let ring = || -> io::Result<(File, Ring)> {
        let ring = File::from(rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)?);
        output::format(&ring, RING_BYTES, b"")?;
        Ok((ring.try_clone()?, Ring::open(ring)?))
    };
    let (ring, log) = ring().map_err(|e| format!("failed to make the log: {e}"))?;
    limits::check_from_inside(&beginning.launch.limits)?;
    Ok(Prepared { ring, log, doors: Doors::open(&beginning.launch.limits)?, taking, closed })
}

/// Runs the command, and carries everything away.
fn live(dialer: &Arc<Dialer>, mut line: Line, beginning: &Beginning, prepared: Prepared) -> i32 {
    let Prepared { ring, log, doors, taking, closed } = prepared;
    let groups = limits::GROUPS_INSIDE.map(PathBuf::from);
    let before = limits::count(&groups);
    let mut porter = None;
    let mut session = String::new();
    let brought = Brought { host: confine::first_namespaces(), way: Way::Tls(dialer.clone()), log, doors, closed };
    let mut report = init::run(&beginning.launch, brought, |secret| {
        secret.clone_into(&mut session);
        let every = Duration::from_millis(beginning.snapshot_millis);
        let load = Load { line: Line::new(dialer.clone()), secret: secret.to_owned(), ring, next: 0, taking };
        porter = Porter::start(load, every);
    });
    report.counters = Some(limits::count(&groups).since(&before));
    if report.cause == ExitCause::Stopped {
        // Nobody takes anything of it any more.
        return EXIT_STOPPED;
    }
    let Some(mut load) = porter.and_then(Porter::stop) else { return tell_end(&mut line, &session, report, None) };
    if matches!(report.cause, ExitCause::NotStarted(_)) {
        return tell_end(&mut line, &session, report, None);
    }
    let until = Instant::now() + HOLD_PATIENCE;
    let sent = load.send_output(until).and_then(|()| load.send_tree(until));
    let untaken = match sent {
        Err(Failed::Refused) => return EXIT_STOPPED,
        Err(Failed::Silent(text) | Failed::Odd(text)) => Some(text),
        Ok(()) => None,
    };
    tell_end(&mut load.line, &session, report, untaken)
}

fn tell_end(line: &mut Line, secret: &str, report: ExitReport, untaken: Option<String>) -> i32 {
    let notice = serde_json::to_vec(&ExitNotice { report, untaken }).expect("a report is plain data");
    let told = persist(line, PATH_EXIT, About { secret, ..About::default() }, &notice, HOLD_PATIENCE);
    if told.is_ok() { 0 } else { EXIT_FAILED }
}

/// Why something was not done.
enum Failed {
    /// The controller will never take it.
    Refused,
    /// Nobody answered for too long.
    Silent(String),
    /// It cannot be sent.
    Odd(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("the controller refuses"),
            Self::Silent(text) | Self::Odd(text) => f.write_str(text),
        }
    }
}

/// Asks until there is an answer; one without content to the question how to begin: not yet. What was heard twice is done once.
fn persist(line: &mut Line, path: &str, about: About<'_>, body: &[u8], patience: Duration) -> Result<Vec<u8>, Failed> {
    let until = Instant::now() + patience;
    let answer_patience = match path {
        PATH_TAKE => TAKE_PATIENCE,
        PATH_BEGIN | PATH_FETCH => FIRST_PATIENCE,
        _ => ANSWER_PATIENCE,
    };
    loop {
        let why = match line.ask_once(path, about, body, answer_patience) {
            Ok((200 | 202, answer)) => return Ok(answer),
            Ok((403 | 404 | 410, _)) => return Err(Failed::Refused),
            Ok((409 | 422, answer)) => return Err(Failed::Odd(String::from_utf8_lossy(&answer).into_owned())),
            Ok((status, _)) => format!("the controller answers {status}"),
            Err(e) => format!("the controller does not answer: {e}"),
        };
        if Instant::now() >= until {
            return Err(Failed::Silent(why));
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Whether nothing lets this pod through to the API server, which every cluster has: then a policy is in force.
fn is_closed() -> bool {
    let read = |name: &str| std::env::var(name).ok();
    let address = read("KUBERNETES_SERVICE_HOST").zip(read("KUBERNETES_SERVICE_PORT"));
    let Some(address) = address.and_then(|(host, port)| Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))) else {
        return false;
    };
    let until = Instant::now() + CLOSING_PATIENCE;
    while Instant::now() < until {
        let is_through = std::thread::scope(|scope| {
            let stands = || TcpStream::connect_timeout(&address, CLOSED_AFTER).is_ok();
            let tries = [(); CLOSED_TRIES].map(|()| std::thread::Builder::new().spawn_scoped(scope, stands));
            // What could not be tried proves nothing.
            tries.map(|tried| tried.map_or(true, |tried| tried.join().unwrap_or(true))).contains(&true)
        });
        if !is_through {
            return true;
        }
        std::thread::sleep(CLOSING_PAUSE);
    }
    false
}

/// Brings the files; what will be taken back is noted as it is now.
fn fetch(line: &mut Line, beginning: &Beginning) -> io::Result<Option<Taking>> {
    for folder in ["/mosaic/base/objects", "/mosaic/out"] {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    if let Some(task) = &beginning.task {
        fs::write("/mosaic/task.json", task)?;
    }
    let open = |path: &str| archive::open_root(Path::new(path));
    let (workspace, home, base) = (open(WORKSPACE)?, open(HOME)?, open("/mosaic/base/objects")?);
    let roots = [(Root::Workspace, &workspace), (Root::Home, &home), (Root::Base, &base)];
    let mut pieces = Pieces { line, hash: Sha256::new(), left: beginning.files.bytes, offset: 0, piece: io::Cursor::default() };
    archive::lay_out(&mut pieces, &roots, Bounds { bytes_max: u64::MAX, entries_max: u64::MAX })?;
    io::copy(&mut pieces, &mut io::sink())?;
    if to_hex(&pieces.hash.finalize()) != beginning.files.sha256 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what arrived is not what was sent"));
    }
    let mut manifest = Manifest::default();
    let mut roots = vec![(Root::Out, open("/mosaic/out")?)];
    if beginning.is_taken_back {
        manifest.note(Root::Workspace, &workspace)?;
        manifest.note(Root::Home, &home)?;
        roots.extend([(Root::Workspace, workspace), (Root::Home, home)]);
    }
    let bounds = Bounds { bytes_max: beginning.bytes_max, entries_max: beginning.entries_max };
    Ok(Some(Taking { manifest, number: 1, roots, bounds }))
}

/// Reads an archive piece by piece.
struct Pieces<'a> {
    line: &'a mut Line,
    hash: Sha256,
    left: u64,
    offset: u64,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.piece.position() == self.piece.get_ref().len() as u64 && self.left > 0 {
            let about = About { offset: self.offset, ..About::default() };
            let piece = persist(self.line, PATH_FETCH, about, b"", BEGIN_PATIENCE).map_err(|e| io::Error::other(e.to_string()))?;
            if piece.is_empty() || piece.len() as u64 > self.left {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a piece of another size"));
            }
            self.hash.update(&piece);
            (self.left, self.offset) = (self.left - piece.len() as u64, self.offset + piece.len() as u64);
            self.piece = io::Cursor::new(piece);
        }
        self.piece.read(bytes)
    }
}

/// What of the files the controller has, and the rest.
struct Taking {
    manifest: Manifest,
    number: u64,
    roots: Vec<(Root, OwnedFd)>,
    bounds: Bounds,
}

/// What is carried away.
struct Load {
    line: Line,
    secret: String,
    ring: File,
    /// Where in the output the next piece begins.
    next: u64,
    taking: Option<Taking>,
}

impl Load {
    fn send_output(&mut self, until: Instant) -> Result<(), Failed> {
        loop {
            let odd = |e: io::Error| Failed::Odd(format!("failed to read the output: {e}"));
            let (from, bytes) = output::read(&self.ring, self.next, PIECE_BYTES_MAX).map_err(odd)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let about = About { secret: &self.secret, offset: from, number: 0 };
            persist(&mut self.line, PATH_OUTPUT, about, &bytes, until.saturating_duration_since(Instant::now()))?;
            self.next = from + bytes.len() as u64;
        }
    }

    /// Sends what has changed since the last time that it was taken.
    fn send_tree(&mut self, until: Instant) -> Result<(), Failed> {
        let Self { line, secret, taking: Some(taking), .. } = self else { return Ok(()) };
        for left in (0..TAKES_MAX).rev() {
            match taking.send(line, secret, until) {
                Err(Failed::Odd(_)) if left > 0 => {}
                other => return other,
            }
        }
        Ok(())
    }
}

impl Taking {
    fn send(&mut self, line: &mut Line, secret: &str, until: Instant) -> Result<(), Failed> {
        let number = self.number;
        // Whatever becomes of this one, the next has another number.
        self.number += 1;
        let roots: Vec<(Root, &OwnedFd)> = self.roots.iter().map(|(root, folder)| (*root, folder)).collect();
        let mut sender = Sender { line, secret, number, until, piece: Vec::new(), offset: 0, hash: Sha256::new(), failed: None };
        let written = self.manifest.write_changes(&roots, self.bounds, &mut sender).and_then(|after| sender.flush().map(|()| after));
        let Sender { line, offset, hash, failed, .. } = sender;
        let after = written.map_err(|e| failed.unwrap_or_else(|| Failed::Odd(format!("failed to send the files: {e}"))))?;
        let take = Take { number, parcel: Parcel { bytes: offset, sha256: to_hex(&hash.finalize()) } };
        let take = serde_json::to_vec(&take).expect("plain data");
        let about = About { secret, number, offset };
        persist(line, PATH_TAKE, about, &take, until.saturating_duration_since(Instant::now()))?;
        self.manifest = after;
        Ok(())
    }
}

/// Sends an archive piece by piece; each is kept until it was taken.
struct Sender<'a> {
    line: &'a mut Line,
    secret: &'a str,
    number: u64,
    until: Instant,
    piece: Vec<u8>,
    offset: u64,
    hash: Sha256,
    failed: Option<Failed>,
}

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE_BYTES_MAX {
            self.flush()?;
        }
        let taken = bytes.len().min(PIECE_BYTES_MAX - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let about = About { secret: self.secret, number: self.number, offset: self.offset };
        let patience = self.until.saturating_duration_since(Instant::now());
        if let Err(failed) = persist(self.line, PATH_TREE, about, &self.piece, patience) {
            let text = failed.to_string();
            self.failed = Some(failed);
            return Err(io::Error::other(text));
        }
        self.hash.update(&self.piece);
        self.offset += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}

/// The thread that carries away what there is while the command runs.
struct Porter {
    thread: JoinHandle<Load>,
    ends: Arc<AtomicBool>,
}

impl Porter {
    /// Without a thread everything follows at the end.
    fn start(mut load: Load, every: Duration) -> Option<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let asked = ends.clone();
        let work = move || {
            let mut due = Instant::now() + every;
            while !asked.load(Ordering::SeqCst) {
                std::thread::sleep(OUTPUT_PAUSE);
                // What was not taken now is taken the next time.
                let _ = load.send_output(Instant::now());
                if Instant::now() >= due {
                    let _ = load.send_tree(Instant::now());
                    due = Instant::now() + every;
                }
            }
            load
        };
        let thread = std::thread::Builder::new().name("mosaic-porter".to_owned()).spawn(work).ok()?;
        Some(Self { thread, ends })
    }

    fn stop(self) -> Option<Load> {
        self.ends.store(true, Ordering::SeqCst);
        self.thread.join().ok()
    }
}
