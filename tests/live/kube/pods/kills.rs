//! Kills of agents in pods, looked at in the process table of the node, which must be this machine for that.

use super::{assert_no_objects_left, pods, processes, until, with_pods};
use crate::harness::{Mosaic, Remote, gates, task};
use crate::kube::cluster::{Control, kubectl, kubectl_says};
use serde_json::json;
use std::time::{Duration, Instant};

/// An agent that ignores TERM and can be found in the process table.
fn stubborn(mark: &str) -> String {
    format!("trap '' TERM INT HUP; while :; do sleep 1; : {mark}; done")
}

/// Starts one and waits until its process runs; never is the phase Running before.
pub fn running(mosaic: &Mosaic, remote: &Remote, name: &str) -> String {
    let mut body = task(remote, name, &stubborn(name));
    body["sandbox"] = json!({ "cpu": "500m", "memory": "256Mi" });
    let uid = mosaic.spawn(&body);
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    assert!(processes(name) > 0, "Running before its process runs");
    uid
}

pub fn repository(mosaic: &Mosaic) -> Remote {
    Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())])
}

#[test]
fn a_kill_over_the_link_is_verified_by_the_kubelet() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::kills::a_kill_over_the_link_is_verified_by_the_kubelet") else { return };
    let mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let rounds = std::env::var("MOSAIC_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let (mut gone, mut verified) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mark = format!("stubborn-{}-{round}-end", std::process::id());
        let uid = running(&mosaic, &remote, &mark);
        let started = Instant::now();
        let (answer, gone_after) = std::thread::scope(|scope| {
            let call = scope.spawn(|| mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({}))));
            let gone_after = until("the process goes", || processes(&mark) == 0);
            (call.join().unwrap(), gone_after)
        });
        assert_eq!((answer.0, &answer.1["verified"]), (200, &json!(true)), "{}", answer.1);
        gone.push(gone_after);
        verified.push(started.elapsed().as_millis());
    }
    gone.sort_unstable();
    verified.sort_unstable();
    println!(
        "{rounds} kills, link up: process gone after {} to {} ms (median {}), verified after {} to {} ms",
        gone[0],
        gone[gone.len() - 1],
        gone[gone.len() / 2],
        verified[0],
        verified[verified.len() - 1]
    );
    assert!(gone[gone.len() - 1] <= 1000, "{gone:?}");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_pod_deleted_by_force_keeps_its_evidence() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::kills::a_pod_deleted_by_force_keeps_its_evidence") else { return };
    let mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let mark = format!("forced-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    let pod = pods(&cluster, &runtime)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    kubectl_says(&["delete", "pod", &pod, "--grace-period=0", "--force", "--wait=false"]);
    // It is the infrastructure's failure: another attempt, once the end of this one was seen; never two at a time.
    let object = mosaic.wait(&uid, "the next attempt", |object| {
        assert!(processes(&mark) <= 2, "one live attempt at a time: a shell, and at moments its copy");
        object["status"]["attempt"] == 2 && object["status"]["phase"] == "Running"
    });
    assert_eq!(object["status"]["counts"]["infrastructure"], 1, "{object:#}");
    let (code, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
    assert_eq!((code, &answer["verified"]), (200, &json!(true)), "{answer}");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn without_a_kubelet_nothing_is_said_to_be_dead() {
    let test = "kube::pods::kills::without_a_kubelet_nothing_is_said_to_be_dead";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let Some(control) = Control::of(test) else { return };
    let mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let mark = format!("blind-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    control.stop("kubelet");
    let started = Instant::now();
    let (code, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
    assert_eq!(code, 202, "{answer}");
    assert_eq!(answer["verified"], json!(false), "{answer}");
    assert!(answer.to_string().contains("kubelet"), "{answer}");
    let gone = until("the process goes", || processes(&mark) == 0);
    println!("kubelet stopped: process gone {gone} ms after the answer, which came after {} ms", started.elapsed().as_millis() - gone);
    // The record stays, and nobody takes its task.
    let (code, answer) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, &mark, &stubborn(&mark))));
    assert_eq!((code, answer["agentId"].as_str()), (409, Some(uid.as_str())), "{answer}");
    for _ in 0..10 {
        std::thread::sleep(Duration::from_secs(1));
        let name = mosaic.object(&uid)["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(runtime.block_on(cluster.agent(&name)).is_some(), "the record stays");
        assert_eq!(processes(&mark), 0);
    }
    control.start("kubelet");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_deleted_record_is_a_kill_whatever_the_propagation() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::kills::a_deleted_record_is_a_kill_whatever_the_propagation") else {
        return;
    };
    let mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    for cascade in ["background", "foreground", "orphan"] {
        let mark = format!("deleted-{cascade}-{}-end", std::process::id());
        let uid = running(&mosaic, &remote, &mark);
        let name = mosaic.object(&uid)["metadata"]["name"].as_str().unwrap().to_owned();
        let started = Instant::now();
        kubectl(&["delete", "agent", &name, &format!("--cascade={cascade}"), "--wait=true", "--timeout=60s"]);
        assert_eq!(processes(&mark), 0, "gone before its record is");
        println!("kubectl delete agent --cascade={cascade}: record gone after {} ms", started.elapsed().as_millis());
    }
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}
