//! Twenty agents, processes and containers, whose controller is killed, whose engine is killed, and both at once: each goes on as the same run, is
//! delivered once, and nothing is left on the engine or the disk.

use crate::engine::{BUSYBOX, OwnEngine, engine};
use crate::harness::{Mosaic, Remote, condition, eventually, gates, task};
use serde_json::json;
use std::time::{Duration, Instant};

/// How many agents; half of them are containers.
const AGENTS: usize = 20;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Controller,
    Engine,
    Both,
}

fn strike(own: &mut OwnEngine, mosaic: &mut Mosaic, runtime: &tokio::runtime::Handle, killed: Killed) {
    if killed != Killed::Engine {
        mosaic.sigkill();
    }
    if killed != Killed::Controller {
        own.kill();
        runtime.block_on(own.up()).unwrap();
    }
    if killed != Killed::Engine {
        mosaic.up();
    }
}

fn all_are_delivered_once(own: &mut OwnEngine, runtime: &tokio::runtime::Handle, killed: Killed) {
    let mut mosaic = Mosaic::prepare(&["--driver", "process", "--sandbox-image", BUSYBOX, "--running-max", "30", "--starting-max", "8"]);
    mosaic.environment = vec![("DOCKER_HOST".to_owned(), own.host())];
    mosaic.up();
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let body = |n: usize| {
        // Ten of them end while nobody is there, ten are told to.
        let wait = if n.is_multiple_of(2) { "while [ ! -e go ]; do sleep 0.1; done; rm go" } else { "sleep 3" };
        let mut body = task(&remote, &format!("job-{n:02}"), &format!("echo run >> runs-{n}.txt; {wait}"));
        body["sandbox"] = json!({ "driver": if n < AGENTS / 2 { "process" } else { "docker" } });
        body
    };
    let uids: Vec<String> = (0..AGENTS).map(|n| mosaic.spawn(&body(n))).collect();
    for (n, uid) in uids.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
        mosaic.wait(uid, &format!("agent {n} to run"), |object| condition(object, "SandboxReady") == "True");
    }
    let started = Instant::now();
    strike(own, &mut mosaic, runtime, killed);
    println!("{killed:?}: back after {:?}", started.elapsed());
    let waiting = |object: &serde_json::Value| {
        let tree = mosaic.state().join("trees").join(object["status"]["workspace"]["worktree"].as_str().unwrap()).join("tree");
        std::fs::write(tree.join("go"), "").unwrap();
    };
    uids.iter().step_by(2).for_each(|uid| waiting(&mosaic.object(uid)));
    for (n, uid) in uids.iter().enumerate() {
        let object = mosaic.wait_completed(uid);
        let status = &object["status"];
        // What ran is adopted; what was only being started may have failed for want of an engine, and says so.
        let failed_starts = if n.is_multiple_of(2) { 0 } else { status["counts"]["infrastructure"].as_u64().unwrap() };
        let attempt = status["attempt"].as_u64().unwrap();
        assert!(attempt <= 1 + failed_starts, "{killed:?}: agent {n} was adopted, not begun anew: {object:#}");
        let name = status["push"]["ref"].as_str().unwrap();
        assert_eq!(remote.git(&["show", &format!("{name}:runs-{n}.txt")]), "run\n", "{killed:?}: agent {n}");
        assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "{killed:?}: agent {n}");
    }
    assert_eq!(remote.agent_refs().len(), AGENTS, "{killed:?}: none doubled, none lost");
    mosaic.assert_nothing_left();
    // Nobody else uses this engine: `docker ps -a` is empty.
    let engine = own.client();
    eventually("the engine to have no container", || runtime.block_on(engine.about()).is_ok_and(|(_, info)| info.containers == Some(0)));
    println!("{killed:?}: {AGENTS} agents delivered once each, {:?}", started.elapsed());
}

async fn survives(test: &str, killed: Killed) {
    if engine(test).await.is_none() {
        return;
    }
    let mut own = match OwnEngine::start(true).await {
        Ok(own) => own,
        Err(why) => return crate::skip::skip(test, &why),
    };
    let runtime = tokio::runtime::Handle::current();
    let work = move || all_are_delivered_once(&mut own, &runtime, killed);
    tokio::time::timeout(Duration::from_secs(400), tokio::task::spawn_blocking(work)).await.expect("in time").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_agents_outlive_their_controller_and_are_delivered_once() {
    survives("docker::survive::twenty_agents_outlive_their_controller_and_are_delivered_once", Killed::Controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_agents_outlive_their_engine_and_are_delivered_once() {
    survives("docker::survive::twenty_agents_outlive_their_engine_and_are_delivered_once", Killed::Engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_agents_outlive_controller_and_engine_at_once_and_are_delivered_once() {
    survives("docker::survive::twenty_agents_outlive_controller_and_engine_at_once_and_are_delivered_once", Killed::Both).await;
}
