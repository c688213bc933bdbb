//! Deleting the declaration is the kill switch, whoever deletes it and however.

use super::cluster::{Cluster, cluster_now, has_kubectl, kubectl};
use crate::harness::{Mosaic, Remote, eventually, gates, sandbox_pids, task};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// An agent that listens to no signal and makes further processes.
const HOSTILE: &str =
    "trap '' TERM INT HUP; echo work > unpushed.txt; (setsid sh -c 'while :; do sleep 1; done' &) ; while :; do sleep 1; done";
/// Within which a kill is done.
const DEAD_WITHIN: Duration = Duration::from_secs(5);

fn start(test: &str) -> Option<(Cluster, Runtime, Mosaic, Remote)> {
    let (cluster, runtime) = cluster_now(test)?;
    if !has_kubectl(test) {
        return None;
    }
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    Some((cluster, runtime, mosaic, remote))
}

/// Starts a hostile agent; its uid and name.
fn hostile(mosaic: &Mosaic, remote: &Remote, task_id: &str) -> (String, String) {
    let uid = mosaic.spawn(&task(remote, task_id, HOSTILE));
    let object = mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    (uid, object["metadata"]["name"].as_str().unwrap().to_owned())
}

/// What is known of an agent, live or gone.
fn state(mosaic: &Mosaic, uid: &str) -> Value {
    mosaic.call("GET", &format!("/agents/{uid}"), None).1["state"].clone()
}

#[test]
fn kubectl_delete_is_a_kill_whatever_propagation_is_asked() {
    let test = "kube::kills::kubectl_delete_is_a_kill_whatever_propagation_is_asked";
    let Some((cluster, runtime, mosaic, remote)) = start(test) else { return };
    for cascade in ["background", "foreground", "orphan"] {
        let (uid, name) = hostile(&mosaic, &remote, cascade);
        let living = sandbox_pids(&mosaic.state());
        assert_eq!(living.len(), 1);
        kubectl(&["delete", "agent", &name, &format!("--cascade={cascade}"), "--wait=false"]);
        let deleted = Instant::now();
        while !sandbox_pids(&mosaic.state()).is_empty() {
            // The finalizer holds the record as long as anything lives.
            assert!(deleted.elapsed() < DEAD_WITHIN, "{cascade}");
            std::thread::sleep(Duration::from_millis(2));
        }
        println!("{cascade}: dead {:?} after kubectl returned", deleted.elapsed());
        eventually("the record to go", || runtime.block_on(cluster.agent(&name)).is_none());
        assert_eq!(state(&mosaic, &uid), "killed");
        assert_eq!(mosaic.object(&uid)["status"]["phase"], "Killed", "{cascade}: the history knows it");
    }
    assert!(remote.agent_refs().is_empty());
    mosaic.assert_nothing_left();
}

#[test]
fn the_record_stays_until_death_was_seen() {
    let Some((cluster, runtime, mosaic, remote)) = start("kube::kills::the_record_stays_until_death_was_seen") else { return };
    for round in 0..5 {
        let (_, name) = hostile(&mosaic, &remote, &format!("round-{round}"));
        kubectl(&["delete", "agent", &name, "--wait=false"]);
        let started = Instant::now();
        loop {
            let living = sandbox_pids(&mosaic.state());
            // Looked at after the processes: had it been gone before them, it would be now.
            let is_there = runtime.block_on(cluster.agent(&name)).is_some();
            assert!(is_there || living.is_empty() || sandbox_pids(&mosaic.state()).is_empty(), "gone before its death");
            if !is_there {
                break;
            }
            assert!(started.elapsed() < DEAD_WITHIN);
        }
        assert!(sandbox_pids(&mosaic.state()).is_empty());
    }
}

#[test]
fn deleting_all_agents_everywhere_kills_them_all() {
    let Some((cluster, runtime, mosaic, remote)) = start("kube::kills::deleting_all_agents_everywhere_kills_them_all") else { return };
    let uids: Vec<String> = (0..5)
        .map(|n| {
            let mut body = task(&remote, &format!("job-{n}"), HOSTILE);
            body["namespace"] = json!(if n % 2 == 0 { "default" } else { "other" });
            mosaic.spawn(&body)
        })
        .collect();
    eventually("all run", || sandbox_pids(&mosaic.state()).len() == 5);
    kubectl(&["delete", "agents", "--all", "-A", "--wait=false"]);
    let started = Instant::now();
    while !sandbox_pids(&mosaic.state()).is_empty() {
        assert!(started.elapsed() < DEAD_WITHIN);
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("five agents in two namespaces: all dead {:?} after kubectl returned", started.elapsed());
    for uid in &uids {
        eventually("it is killed", || state(&mosaic, uid) == "killed");
    }
    let left = "/apis/mosaicstack.dev/v1alpha1/agents";
    eventually("no record is left", || runtime.block_on(cluster.ask("GET", left, None)).unwrap()["items"] == json!([]));
    mosaic.assert_nothing_left();
}

#[test]
fn an_agent_deleted_while_the_controller_is_away_is_killed_by_the_next_one() {
    let test = "kube::kills::an_agent_deleted_while_the_controller_is_away_is_killed_by_the_next_one";
    let Some((cluster, runtime, mut mosaic, remote)) = start(test) else { return };
    let (uid, name) = hostile(&mosaic, &remote, "away");
    mosaic.sigkill();
    kubectl(&["delete", "agent", &name, "--wait=false"]);
    assert_eq!(sandbox_pids(&mosaic.state()).len(), 1, "it lives on");
    assert!(runtime.block_on(cluster.agent(&name)).is_some(), "and its record with it");
    mosaic.up();
    let started = Instant::now();
    while !sandbox_pids(&mosaic.state()).is_empty() {
        assert!(started.elapsed() < DEAD_WITHIN);
        std::thread::sleep(Duration::from_millis(5));
    }
    eventually("the record to go", || runtime.block_on(cluster.agent(&name)).is_none());
    assert_eq!(state(&mosaic, &uid), "killed");
    mosaic.assert_nothing_left();
}

#[test]
fn foreign_finalizers_are_never_stripped_and_hold_only_the_record() {
    let test = "kube::kills::foreign_finalizers_are_never_stripped_and_hold_only_the_record";
    let Some((cluster, runtime, mosaic, remote)) = start(test) else { return };
    let (uid, name) = hostile(&mosaic, &remote, "foreign");
    let path = format!("/apis/mosaicstack.dev/v1alpha1/namespaces/default/agents/{name}");
    let held = json!({ "metadata": { "finalizers": ["mosaicstack.dev/cleanup", "example.org/theirs"] } });
    runtime.block_on(cluster.ask("PATCH", &path, Some(&held))).unwrap();
    kubectl(&["delete", "agent", &name, "--wait=false"]);
    let finalizers = || runtime.block_on(cluster.agent(&name)).unwrap()["metadata"]["finalizers"].clone();
    eventually("ours goes", || finalizers() == json!(["example.org/theirs"]));
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    mosaic.assert_nothing_left();
    // It is at rest: nothing is written again and again while somebody else holds it.
    let version = || runtime.block_on(cluster.agent(&name)).unwrap()["metadata"]["resourceVersion"].clone();
    std::thread::sleep(Duration::from_secs(1));
    let before = version();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(version(), before);
    assert_eq!(finalizers(), json!(["example.org/theirs"]));
    assert_eq!(state(&mosaic, &uid), "killed");
    runtime.block_on(cluster.ask("PATCH", &path, Some(&json!({ "metadata": { "finalizers": null } })))).unwrap();
    eventually("the record to go", || runtime.block_on(cluster.agent(&name)).is_none());
    assert_eq!(state(&mosaic, &uid), "killed");
}

#[test]
fn a_halt_by_kubectl_kills_what_matches_and_releasing_it_restarts_nothing() {
    let test = "kube::kills::a_halt_by_kubectl_kills_what_matches_and_releasing_it_restarts_nothing";
    let Some((cluster, runtime, mosaic, remote)) = start(test) else { return };
    let (uid, _) = hostile(&mosaic, &remote, "halted");
    let halt = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Halt",
        "metadata": { "name": "fire" },
        "spec": { "reason": "fire", "release": "manual" },
    });
    let started = Instant::now();
    runtime.block_on(cluster.ask("POST", "/apis/mosaicstack.dev/v1alpha1/halts", Some(&halt))).unwrap();
    while !sandbox_pids(&mosaic.state()).is_empty() {
        assert!(started.elapsed() < DEAD_WITHIN);
        std::thread::sleep(Duration::from_millis(5));
    }
    eventually("it is killed", || state(&mosaic, &uid) == "killed");
    kubectl(&["delete", "halt", "fire", "--timeout=20s"]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    assert_eq!(state(&mosaic, &uid), "killed");
}
