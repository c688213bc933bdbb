//! The kill lane over containers and processes at once, with an engine that is well, dead or frozen. The process table is the judge.

mod late;
mod liar;
mod shapes;
mod stuck_store;

use crate::engine::{BUSYBOX, OwnEngine, engine};
use crate::harness::{Mosaic, Remote, condition, eventually, gates, program, sandbox_pids, task};
use mosaic::sandbox::docker::engine::Engine;
use serde_json::json;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// No kill may take longer, whatever is broken.
const KILL_MAX: Duration = Duration::from_secs(5);
/// A script that ignores every signal that can be ignored, with a child that has left its session.
const STUBBORN: &str = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &) ; while :; do sleep 1; done";

/// How often each condition, with how many processes and containers: `MOSAIC_TEST_KILL_ALL=5:200:50`.
fn size() -> (usize, usize, usize) {
    let wanted = std::env::var("MOSAIC_TEST_KILL_ALL").ok();
    let numbers: Vec<usize> = wanted.iter().flat_map(|text| text.split(':')).filter_map(|text| text.parse().ok()).collect();
    match numbers[..] {
        [rounds, processes, containers] => (rounds, processes, containers),
        _ => (1, 8, 4),
    }
}

/// What is broken while everything is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    EngineDead,
    EngineFrozen,
    ControllerDead,
    ControllerFrozen,
    FrontDoorFull,
    /// Every place for effects is taken by one that does not end.
    WorkersBusy,
}

const CONDITIONS: [Broken; 7] = [
    Broken::Nothing,
    Broken::EngineDead,
    Broken::EngineFrozen,
    Broken::ControllerDead,
    Broken::ControllerFrozen,
    Broken::FrontDoorFull,
    Broken::WorkersBusy,
];

fn start(host: &str, count: usize) -> Mosaic {
    let flags = ["--driver", "process", "--sandbox-image", BUSYBOX, "--running-max", "600", "--starting-max", "16"];
    let mut mosaic = Mosaic::prepare(&flags);
    mosaic.environment = vec![("DOCKER_HOST".to_owned(), host.to_owned())];
    assert!(count < 550);
    mosaic.up();
    mosaic
}

fn spawn_all(mosaic: &Mosaic, remote: &Remote, processes: usize, containers: usize) -> Vec<String> {
    let body = |n: usize| {
        let mut body = task(remote, &format!("victim-{n:03}"), STUBBORN);
        body["sandbox"] = json!({ "driver": if n < processes { "process" } else { "docker" } });
        body
    };
    let uids: Vec<String> = (0..processes + containers).map(|n| mosaic.spawn(&body(n))).collect();
    for uid in &uids {
        mosaic.wait(uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    }
    assert_eq!(sandbox_pids(&mosaic.state()).len(), uids.len());
    uids
}

/// Kills everything from the command line and watches the process table meanwhile.
fn kill_all(mosaic: &Mosaic, broken: Broken, count: usize) -> Duration {
    let state = mosaic.state();
    let watched = std::thread::spawn(move || {
        let started = Instant::now();
        while !sandbox_pids(&state).is_empty() && started.elapsed() < KILL_MAX * 3 {
            // Each look reads the whole process table, which the dying need as well.
            std::thread::sleep(Duration::from_millis(25));
        }
        started.elapsed()
    });
    let mut command = program();
    command.arg("--state").arg(mosaic.state()).args(["kill", "--all", "--reason", "drill"]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let dead_after = watched.join().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(dead_after < KILL_MAX, "{broken:?}: the observer saw something live for {dead_after:?}: {told}");
    assert_eq!(told.matches("(dead-verified").count(), count, "{broken:?}: {told}");
    // An engine that cannot be asked may have a container that nobody knows of: that is said, not guessed.
    let blind = matches!(broken, Broken::EngineDead | Broken::EngineFrozen);
    assert_eq!(told.contains("UNKNOWN: containers without a folder"), blind, "{broken:?}: {told}");
    assert_eq!(output.status.success(), !blind, "{broken:?}: {told}");
    println!("{broken:?}: {count} agents, nothing lived after {dead_after:?}");
    dead_after
}

async fn in_condition(broken: Broken) {
    let test = format!("kill::kill_all {broken:?}");
    if engine(&test).await.is_none() {
        return;
    }
    let mut own = match OwnEngine::start(true).await {
        Ok(own) => own,
        Err(why) => return crate::skip::skip(&test, &why),
    };
    let (rounds, processes, containers) = size();
    let handle = tokio::runtime::Handle::current();
    let work = move || {
        for _ in 0..rounds {
            one_round(&mut own, &handle, broken, processes, containers);
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

fn one_round(own: &mut OwnEngine, runtime: &tokio::runtime::Handle, broken: Broken, processes: usize, containers: usize) {
    let host = own.host();
    let mut mosaic = start(&host, processes + containers);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uids = spawn_all(&mosaic, &remote, processes, containers);
    let mut taken: Vec<TcpStream> = Vec::new();
    match broken {
        Broken::Nothing => {}
        Broken::EngineDead => own.kill(),
        Broken::EngineFrozen => own.freeze(),
        Broken::ControllerDead => mosaic.sigkill(),
        Broken::ControllerFrozen => mosaic.signal(rustix::process::Signal::STOP),
        Broken::FrontDoorFull => {
            let server = std::fs::read_to_string(mosaic.state().join("server")).unwrap();
            let address = server.trim().trim_start_matches("http://").to_owned();
            taken.extend((0..400).filter_map(|_| TcpStream::connect(&address).ok()));
        }
        Broken::WorkersBusy => occupy_workers(&mosaic),
    }
    kill_all(&mosaic, broken, uids.len());
    drop(taken);
    match broken {
        Broken::EngineDead => runtime.block_on(own.up()).unwrap(),
        Broken::EngineFrozen => own.thaw(),
        Broken::ControllerDead => mosaic.up(),
        Broken::ControllerFrozen => mosaic.signal(rustix::process::Signal::CONT),
        Broken::Nothing | Broken::FrontDoorFull | Broken::WorkersBusy => {}
    }
    eventually("the front door to have room", || mosaic.is_ready());
    for uid in &uids {
        mosaic.wait(uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    }
    mosaic.assert_nothing_left();
    let engine = own.client();
    eventually("the engine to have nothing of it", || runtime.block_on(containers_of(&engine)) == 0);
    assert!(sandbox_pids(&mosaic.state()).is_empty() && remote.agent_refs().is_empty());
}

/// Containers of any installation on an engine of our own.
async fn containers_of(engine: &Engine) -> usize {
    engine.about().await.map_or(usize::MAX, |(_, info)| usize::try_from(info.containers.unwrap_or_default()).unwrap())
}

/// Agents on remotes whose fetch never comes back: sixteen of them hold every place that effects have.
fn occupy_workers(mosaic: &Mosaic) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It takes connections and says nothing, until the test ends.
    std::thread::spawn(move || listener.incoming().flatten().for_each(std::mem::forget));
    for n in 0..24 {
        let body = json!({
            "taskId": format!("silent-{n}"),
            "agentType": "worker",
            "context": {"repository": format!("https://127.0.0.1:{port}/{n}.git"), "workItems": ["x"]},
            "runtime": {"command": {"args": ["true"]}},
        });
        // The courtesy check waits for the remote as well, so nobody waits for the answer.
        let (server, token) = (mosaic.state().join("server"), mosaic.state().join("token"));
        let read = |path| std::fs::read_to_string(path).unwrap().trim().to_owned();
        let (url, token) = (format!("{}/agents/spawn", read(server)), read(token));
        std::thread::spawn(move || drop(crate::harness::http("POST", &url, Some(&token), Some(&body))));
    }
    std::thread::sleep(Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_ends_processes_and_containers_as_usual() {
    in_condition(CONDITIONS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_needs_no_engine() {
    in_condition(Broken::EngineDead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_waits_for_no_engine_that_hangs() {
    in_condition(Broken::EngineFrozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_needs_no_controller() {
    in_condition(Broken::ControllerDead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_waits_for_no_controller_that_hangs() {
    in_condition(Broken::ControllerFrozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_needs_no_place_at_the_front_door() {
    in_condition(Broken::FrontDoorFull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_needs_no_worker() {
    in_condition(Broken::WorkersBusy).await;
}
