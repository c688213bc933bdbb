//! Hostile shapes: whatever an agent has made of itself, a kill ends all of it, in both drivers, and says so truly.
//!
//! `MOSAIC_TEST_KILLS=20` kills each shape twenty times.

use crate::contract::Subject;
use crate::docker::{Host, clean};
use crate::engine::engine;
use mosaic::api::agent::Driver;
use mosaic::kill::Killer;
use mosaic::kill::latch::Latch;
use mosaic::kill::receipt::{KillRequest, Verdict};
use mosaic::sandbox::docker::engine::container_name;
use mosaic::sandbox::{RunSpec, Sandbox};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No kill may take longer.
const KILL_MAX: Duration = Duration::from_secs(5);

/// A shape: a script for `sh`, and when it has taken its shape it makes the file `shaped`.
struct Shape {
    name: &'static str,
    script: &'static str,
}

const SHAPES: [Shape; 10] = [
    Shape { name: "ignores-signals", script: "trap '' TERM INT HUP QUIT USR1; touch shaped; while :; do sleep 1; done" },
    Shape { name: "left-sessions", script: "(setsid sh -c '(setsid sleep 60042 &) ; sleep 60042' &) ; touch shaped; sleep 60042" },
    Shape { name: "fork-bomb", script: "touch shaped; b() { b | b & }; while :; do b; sleep 0.1; done" },
    Shape { name: "many-processes", script: "n=0; while [ $n -lt 900 ]; do sleep 60042 & n=$((n+1)); done; touch shaped; wait" },
    Shape { name: "stopped", script: "sleep 60042 & kill -STOP $!; touch shaped; kill -STOP $$; sleep 60042" },
    Shape {
        name: "zombies",
        script: "n=0; while [ $n -lt 50 ]; do (true &) ; sh -c 'exit 1' & n=$((n+1)); done; touch shaped; exec sleep 60042",
    },
    Shape {
        name: "files-at-the-limit",
        script: "h() { n=3; while [ $n -lt 900 ]; do eval \"exec $n</dev/null\" || break; n=$((n+1)); done; sleep 60042; }; \
            for i in 1 2 3 4 5 6; do h & done; touch shaped; wait",
    },
    Shape { name: "full-pipe", script: "touch shaped; while :; do cat /dev/zero; done" },
    Shape { name: "restart-loop", script: "touch shaped; while :; do sh -c 'exit 1' & sh -c 'setsid sleep 60042 &'; sleep 0.05; done" },
    Shape { name: "busy", script: "touch shaped; for i in 1 2 3 4; do (while :; do :; done) & done; wait" },
];

fn kills() -> usize {
    std::env::var("MOSAIC_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Live processes of a pid namespace, by the process table.
fn alive_in(namespace: u64) -> usize {
    let in_it = |entry: &std::fs::DirEntry| {
        let link = std::fs::read_link(entry.path().join("ns/pid")).unwrap_or_default();
        link.to_string_lossy().contains(&format!("[{namespace}]"))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(in_it).count()
}

fn killer(host: &Host) -> Killer {
    let latch = Latch::open(host.state.path()).map(Arc::new).map_err(|e| e.to_string());
    Killer { state: host.state.path().to_owned(), latch, tell: Arc::new(|_| ()), audit: None }
}

fn spec_of(subject: &Subject<'_>, driver: Driver, name: &str, round: usize, script: &str) -> RunSpec {
    let uid = format!("shape-{}-{name}-{round}", format!("{driver:?}").to_lowercase());
    let mut spec = subject.script(&uid, 1, script);
    spec.driver = driver;
    spec.limits.pids_max = 1100;
    spec
}

/// Kills one run and looks; returns how long it was until nothing of it lived.
async fn kill_and_look(host: &Host, spec: &RunSpec) -> Duration {
    let namespace = host.folder(&spec.run).identity().unwrap().unwrap().pid_namespace;
    assert!(alive_in(namespace) > 0);
    let (killer, uid) = (killer(host), spec.run.uid.to_string());
    let started = Instant::now();
    let kill = move || killer.kill(&KillRequest { agents: vec![uid], who: "test".to_owned(), ..KillRequest::default() });
    let receipts = tokio::task::spawn_blocking(kill).await.unwrap();
    let took = started.elapsed();
    assert_eq!(alive_in(namespace), 0, "{}: {receipts:?}", spec.run);
    assert_eq!(receipts.agents.iter().map(|r| r.verdict).collect::<Vec<_>>(), [Verdict::DeadVerified], "{}: {receipts:?}", spec.run);
    assert!(took < KILL_MAX, "{}: {took:?}", spec.run);
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_shape_is_dead_when_the_receipt_says_so() {
    let Some(engine) = engine("kill::shapes::every_hostile_shape_is_dead_when_the_receipt_says_so").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let mut all = Vec::new();
    for driver in [Driver::Process, Driver::Docker] {
        for shape in &SHAPES {
            for round in 0..kills() {
                let subject = host.subject(&sandbox);
                let spec = spec_of(&subject, driver, shape.name, round, shape.script);
                sandbox.ensure(spec.clone()).await.unwrap();
                crate::contract::until(shape.name, || spec.tree.join("shaped").exists()).await;
                all.push(kill_and_look(&host, &spec).await);
                sandbox.stop(&spec.run).await.unwrap();
                sandbox.remove(&spec.run).await.unwrap();
            }
        }
    }
    all.sort_unstable();
    let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)];
    println!("{} kills of {} shapes in two drivers: p50 {:?}, p99 {:?}, most {:?}", all.len(), SHAPES.len(), at(50), at(99), at(100));
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_container_dies_frozen_or_not() {
    let Some(engine) = engine("kill::shapes::frozen_container_dies_frozen_or_not").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    for round in 0..kills() {
        let subject = host.subject(&sandbox);
        let spec = spec_of(&subject, Driver::Docker, "paused", round, "touch shaped; while :; do :; done");
        sandbox.ensure(spec.clone()).await.unwrap();
        let name = container_name(&host.installation, &spec.run);
        let docker = bollard::Docker::connect_with_defaults().unwrap();
        docker.pause_container(&name).await.unwrap();
        let took = kill_and_look(&host, &spec).await;
        println!("a frozen container was dead after {took:?}");
        sandbox.stop(&spec.run).await.unwrap();
        sandbox.remove(&spec.run).await.unwrap();
    }
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_at_any_instant_of_a_start_leaves_nothing_that_comes_up_later() {
    let Some(engine) = engine("kill::shapes::kill_at_any_instant_of_a_start_leaves_nothing_that_comes_up_later").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    for round in 0..kills().max(12) {
        let subject = host.subject(&sandbox);
        let spec = spec_of(&subject, Driver::Docker, "starting", round, "touch ran; sleep 60042");
        let (killer, uid) = (killer(&host), spec.run.uid.to_string());
        let kill = async {
            tokio::time::sleep(Duration::from_millis(25 * round as u64)).await;
            let request = KillRequest { agents: vec![uid], who: "test".to_owned(), ..KillRequest::default() };
            tokio::task::spawn_blocking(move || killer.kill(&request)).await.unwrap()
        };
        let (ensured, receipts) = tokio::join!(sandbox.ensure(spec.clone()), kill);
        let known = receipts.agents.first().map(|receipt| receipt.verdict);
        assert_ne!(known, Some(Verdict::Failed), "{receipts:?}");
        if known.is_some() {
            // Found and latched: whatever still comes of the create is refused its start.
            sandbox.stop(&spec.run).await.unwrap();
            let name = container_name(&host.installation, &spec.run);
            let state = engine.state(&name).await.unwrap();
            assert!(state.is_none_or(|state| state.pid.is_none()), "round {round}: {ensured:?}");
        }
        sandbox.stop(&spec.run).await.unwrap();
        sandbox.remove(&spec.run).await.unwrap();
    }
    clean(&host, &sandbox, &engine).await;
}
