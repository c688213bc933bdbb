//! Hostile shapes: whatever an agent has made of itself, a kill ends all of it, in both drivers, and says so truly.
//!
//! `MOSAIC_TEST_KILLS=20` kills each shape twenty times.

use crate::docker::{Host, clean};
use crate::engine::engine;
use crate::harness::wanted;
use mosaic::api::agent::Driver;
use mosaic::inside::wire::Identity;
use mosaic::kill::Killer;
use mosaic::kill::latch::Latch;
use mosaic::kill::receipt::{KillRequest, Receipts, Verdict};
use mosaic::sandbox::docker::engine::{Engine, container_name};
use mosaic::sandbox::kill::{Life, look};
use mosaic::sandbox::{Drivers, RunSpec, Sandbox};
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No kill may take longer.
const KILL_MAX: Duration = Duration::from_secs(5);
/// A thousand processes take their time on a busy machine.
const SHAPED_MAX: Duration = Duration::from_secs(180);

/// What an agent has made of itself, or what was done to its sandbox, when it is killed.
struct Shape {
    name: &'static str,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    /// A script for `sh`, which makes the file `shaped` once it has taken its shape.
    Script(&'static str),
    /// A program in C, which does the same.
    Program(&'static str),
    /// Nobody reaps its init: whoever should is stopped.
    InitStaysZombie,
    /// Everything of it is frozen.
    Paused,
    /// It is just being made or started.
    Starting,
    /// Somebody else starts its container again and again.
    StartedAnew,
}

const SHAPES: [Shape; 15] = [
    script("ignores-signals", "trap '' TERM INT HUP QUIT USR1; touch shaped; while :; do sleep 1; done"),
    script("left-sessions", "(setsid sh -c '(setsid sleep 60042 &) ; sleep 60042' &) ; touch shaped; sleep 60042"),
    script("fork-bomb", "touch shaped; b() { b | b & }; while :; do b; sleep 0.1; done"),
    script("thousand-processes", "n=0; while [ $n -lt 1000 ]; do sleep 60042 & n=$((n+1)); done; touch shaped; wait"),
    script("stopped", "sleep 60042 & kill -STOP $!; touch shaped; kill -STOP $$; sleep 60042"),
    Shape { name: "paused", how: How::Paused },
    Shape { name: "zombie-init", how: How::InitStaysZombie },
    script("zombies", "n=0; while [ $n -lt 50 ]; do (true &) ; sh -c 'exit 1' & n=$((n+1)); done; touch shaped; exec sleep 60042"),
    Shape { name: "ptrace-loop", how: How::Program(TRACER) },
    Shape { name: "files-at-the-limit", how: How::Program(HOARDER) },
    script("full-pipe", "touch shaped; while :; do cat /dev/zero; done"),
    Shape { name: "starting", how: How::Starting },
    script("restart-loop", "touch shaped; while :; do sh -c 'exit 1' & sh -c 'setsid sleep 60042 &'; sleep 0.05; done"),
    Shape { name: "started-anew", how: How::StartedAnew },
    script("busy", "touch shaped; for i in 1 2 3 4; do (while :; do :; done) & done; wait"),
];

const fn script(name: &'static str, script: &'static str) -> Shape {
    Shape { name, how: How::Script(script) }
}

/// Traces its child for ever, and lets itself be traced; where the sandbox refuses that, it asks for ever.
const TRACER: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    pid_t child = fork();
    if (child == 0)
        for (;;)
            if (ptrace(PTRACE_TRACEME, 0, 0, 0) == 0) raise(SIGSTOP);
    creat("shaped", 0644);
    for (;;) {
        int status;
        if (ptrace(PTRACE_ATTACH, child, 0, 0) == 0) waitpid(child, &status, __WALL);
        else waitpid(child, &status, __WALL | WNOHANG);
        ptrace(PTRACE_CONT, child, 0, 0);
    }
}
"#;

/// Six processes that have opened all the files that they may.
const HOARDER: &str = r#"
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    for (int n = 0; n < 6; n++)
        if (fork() == 0) {
            while (open("/dev/null", O_RDONLY) >= 0) {}
            for (;;) pause();
        }
    sleep(1);
    creat("shaped", 0644);
    for (;;) wait(0);
}
"#;

/// Compiles a program for any image.
fn compile(source: &str, to: &Path) {
    let file = to.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let built = std::process::Command::new("cc").args(["-static", "-O1", "-o"]).arg(to).arg(&file).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// Live processes of a pid namespace, by the process table; what nobody has reaped does not live.
fn alive_in(namespace: u64) -> usize {
    let in_it = |entry: &std::fs::DirEntry| {
        let link = std::fs::read_link(entry.path().join("ns/pid")).unwrap_or_default();
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        link.to_string_lossy().contains(&format!("[{namespace}]")) && !stat.contains(") Z ")
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(in_it).count()
}

/// Processes with a word in their command line.
fn alive_with(word: &str) -> usize {
    let has_it = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(has_it).count()
}

pub fn killer(host: &Host) -> Killer {
    let latch = Latch::open(host.state.path()).map(Arc::new).map_err(|e| e.to_string());
    Killer { state: host.state.path().to_owned(), latch, controller: None, audit: None }
}

/// One kill of one shape.
struct Case<'a> {
    host: &'a Host,
    sandbox: &'a Drivers,
    driver: Driver,
    name: &'a str,
    round: usize,
}

impl Case<'_> {
    fn spec(&self, script: &str) -> RunSpec {
        let uid = format!("shape-{}-{}-{}", format!("{:?}", self.driver).to_lowercase(), self.name, self.round);
        let mut spec = self.host.subject(self.sandbox).script(&uid, 1, script);
        spec.driver = self.driver;
        spec.limits.pids_max = 1100;
        spec
    }

    /// Starts it and waits until it has its shape.
    async fn shaped(&self, spec: &RunSpec) {
        self.sandbox.ensure(spec.clone()).await.unwrap();
        let started = Instant::now();
        while !spec.tree.join("shaped").exists() {
            assert!(started.elapsed() < SHAPED_MAX, "{} never had its shape", spec.run);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn receipts(&self, spec: &RunSpec) -> (Receipts, Duration) {
        let (killer, uid) = (killer(self.host), spec.run.uid.to_string());
        let started = Instant::now();
        let kill = move || killer.kill(&KillRequest { agents: vec![uid], who: "test".to_owned(), ..KillRequest::default() });
        (tokio::task::spawn_blocking(kill).await.unwrap(), started.elapsed())
    }

    /// Kills it and looks; returns how long it was until nothing of it lived and that was said.
    async fn killed(&self, spec: &RunSpec) -> Duration {
        let Identity { pid, pid_namespace: namespace, .. } = self.init(spec);
        // Held, or its number is the next sandbox's at once.
        let _held = std::fs::File::open(format!("/proc/{pid}/ns/pid")).unwrap();
        assert!(alive_in(namespace) > 0, "{}: it lives before", spec.run);
        let (receipts, took) = self.receipts(spec).await;
        assert_eq!(alive_in(namespace), 0, "{}: {receipts:?}", spec.run);
        assert_eq!(receipts.agents.iter().map(|r| r.verdict).collect::<Vec<_>>(), [Verdict::DeadVerified], "{}: {receipts:?}", spec.run);
        assert!(took < KILL_MAX, "{}: {took:?}", spec.run);
        took
    }

    fn init(&self, spec: &RunSpec) -> Identity {
        self.host.folder(&spec.run).identity().unwrap().unwrap()
    }

    async fn removed(&self, spec: &RunSpec) {
        self.sandbox.stop(&spec.run).await.unwrap();
        self.sandbox.remove(&spec.run).await.unwrap();
    }

    async fn program(&self, source: &str) -> Duration {
        let mut spec = self.spec("");
        spec.args = vec!["/workspace/program".to_owned()];
        compile(source, &spec.tree.join("program"));
        self.shaped(&spec).await;
        let took = self.killed(&spec).await;
        self.removed(&spec).await;
        took
    }

    async fn init_stays_zombie(&self) -> Duration {
        let spec = self.spec("touch shaped; while :; do sleep 1; done");
        self.shaped(&spec).await;
        let pid = self.init(&spec).pid;
        let reaper = Pid::from_raw(mosaic::inside::system::parent_of(pid).unwrap().unwrap()).unwrap();
        let stopped = Stopped::new(reaper);
        let took = self.killed(&spec).await;
        let (state, _) = mosaic::inside::system::state_of(pid).unwrap().expect("nobody has reaped it");
        assert_eq!(state, 'Z', "{}", spec.run);
        drop(stopped);
        self.removed(&spec).await;
        took
    }

    async fn paused(&self) -> Duration {
        let spec = self.spec("touch shaped; while :; do :; done");
        self.shaped(&spec).await;
        let frozen = match self.driver {
            Driver::Docker => {
                let docker = bollard::Docker::connect_with_defaults().unwrap();
                let name = container_name(&self.host.installation, &spec.run);
                // An engine on a busy machine may not be able to freeze it at once.
                let started = std::time::Instant::now();
                while let Err(error) = docker.pause_container(&name).await {
                    assert!(started.elapsed() < Duration::from_secs(30), "{error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None
            }
            _ => Some(Frozen::new(self.init(&spec).pid_namespace)),
        };
        let took = self.killed(&spec).await;
        drop(frozen);
        self.removed(&spec).await;
        took
    }

    /// The kill comes at another instant each time; whether it has found anything, nothing comes up later.
    async fn starting(&self, engine: &Engine) -> Duration {
        let marked = format!("60042.{}{:03}", u8::from(self.driver == Driver::Docker), self.round);
        let spec = self.spec(&format!("touch ran; sleep {marked}"));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(25 * self.round as u64)).await;
            self.receipts(&spec).await
        };
        let (ensured, (receipts, took)) = tokio::join!(self.sandbox.ensure(spec.clone()), kill);
        let known = receipts.agents.first().map(|receipt| receipt.verdict);
        assert_ne!(known, Some(Verdict::Failed), "{receipts:?}");
        assert!(took < KILL_MAX, "{}: {took:?}", spec.run);
        if known.is_some() {
            // Found and latched: whatever still comes of it is refused its start.
            tokio::time::sleep(Duration::from_millis(300)).await;
            // By its identity and its own words: the number of a namespace that nobody holds may be the next sandbox's by now.
            let identity = self.host.folder(&spec.run).identity().unwrap();
            let life = identity.map_or(Life::Gone, |identity| look(&identity).unwrap());
            assert_eq!(life, Life::Gone, "{}: {ensured:?} {receipts:?}", spec.run);
            assert_eq!(alive_with(&marked), 0, "{}: {ensured:?} {receipts:?}", spec.run);
            let state = engine.state(&container_name(&self.host.installation, &spec.run)).await.unwrap();
            assert!(state.is_none_or(|state| state.pid.is_none()), "{}: {ensured:?}", spec.run);
        }
        self.removed(&spec).await;
        took
    }

    async fn started_anew(&self) -> Option<Duration> {
        // What is no container cannot be started by others.
        if self.driver != Driver::Docker {
            return None;
        }
        let spec = self.spec("echo x >> starts; touch shaped; sleep 60042");
        self.shaped(&spec).await;
        let name = container_name(&self.host.installation, &spec.run);
        let others = tokio::spawn(async move {
            let docker = bollard::Docker::connect_with_defaults().unwrap();
            loop {
                let _ = docker.start_container(&name, None::<bollard::query_parameters::StartContainerOptions>).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let took = self.killed(&spec).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        others.abort();
        assert_eq!(std::fs::read_to_string(spec.tree.join("starts")).unwrap(), "x\n", "its command was executed again");
        self.removed(&spec).await;
        Some(took)
    }

    async fn run(&self, how: How, engine: &Engine) -> Option<Duration> {
        Some(match how {
            How::Script(script) => {
                let spec = self.spec(script);
                self.shaped(&spec).await;
                let took = self.killed(&spec).await;
                self.removed(&spec).await;
                took
            }
            How::Program(source) => self.program(source).await,
            How::InitStaysZombie => self.init_stays_zombie().await,
            How::Paused => self.paused().await,
            How::Starting => self.starting(engine).await,
            How::StartedAnew => return self.started_anew().await,
        })
    }
}

/// A process that does not move while this value lives.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Self {
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::CONT);
    }
}

/// A control group in which everything of a pid namespace is frozen.
struct Frozen(PathBuf);

impl Frozen {
    fn new(namespace: u64) -> Self {
        let first = PathBuf::from("/sys/fs/cgroup/freezer");
        let (parent, state, word) =
            if first.is_dir() { (first, "freezer.state", "FROZEN") } else { ("/sys/fs/cgroup".into(), "cgroup.freeze", "1") };
        let group = parent.join(format!("mosaic-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&group).unwrap();
        for pid in mosaic::sandbox::kill::members(namespace).unwrap() {
            // One that has ended meanwhile cannot be moved.
            let _ = std::fs::write(group.join("cgroup.procs"), pid.to_string());
        }
        std::fs::write(group.join(state), word).unwrap();
        Self(group)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_shape_is_dead_when_the_receipt_says_so() {
    let Some(engine) = engine("kill::shapes::every_hostile_shape_is_dead_when_the_receipt_says_so").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let mut all = Vec::new();
    for driver in [Driver::Process, Driver::Docker] {
        for shape in &SHAPES {
            // It needs several to meet a start at different instants.
            let kills: usize = wanted("MOSAIC_TEST_KILLS", 1);
            let rounds = if matches!(shape.how, How::Starting) { kills.max(12) } else { kills };
            let mut took = Vec::new();
            for round in 0..rounds {
                let case = Case { host: &host, sandbox: &sandbox, driver, name: shape.name, round };
                took.extend(case.run(shape.how, &engine).await);
            }
            println!("{driver:?} {}: {} kills, most {:?}", shape.name, took.len(), took.iter().max());
            all.extend(took);
        }
    }
    all.sort_unstable();
    let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)];
    println!("{} kills of {} shapes in two drivers: p50 {:?}, p99 {:?}, most {:?}", all.len(), SHAPES.len(), at(50), at(99), at(100));
    clean(&host, &sandbox, &engine).await;
}
