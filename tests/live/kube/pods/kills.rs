//! Kills of agents in pods, looked at in the process table of the node, which must be this machine for that.

use super::{Cut, assert_no_objects_left, pods, processes, until, with_pods};
use crate::harness::{Mosaic, Remote, eventually, gates, program, task, wanted};
use crate::kube::cluster::{Control, kubectl, kubectl_says};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// An agent that ignores TERM and can be found in the process table.
pub fn stubborn(mark: &str) -> String {
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

/// Kills one and watches the process table meanwhile: the answer, and after how many milliseconds the process was gone.
pub fn kill(mosaic: &Mosaic, uid: &str, mark: &str) -> ((u16, Value), u128) {
    std::thread::scope(|scope| {
        let call = scope.spawn(|| mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({}))));
        let gone_after = until("the process goes", || processes(mark) == 0);
        (call.join().unwrap(), gone_after)
    })
}

/// Kills `MOSAIC_TEST_KILLS` agents, one after another, and prints how long that took; the slowest, in milliseconds.
fn kill_again_and_again(mosaic: &Mosaic, cut: Option<&Cut>) -> u128 {
    let remote = repository(mosaic);
    let rounds = wanted("MOSAIC_TEST_KILLS", 5);
    let (mut gone, mut verified) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mark = format!("stubborn-{}-{round}-end", std::process::id());
        let uid = running(mosaic, &remote, &mark);
        let closed = cut.map(Cut::close);
        let started = Instant::now();
        let (answer, gone_after) = kill(mosaic, &uid, &mark);
        assert_eq!((answer.0, &answer.1["verified"]), (200, &json!(true)), "{}", answer.1);
        gone.push(gone_after);
        verified.push(started.elapsed().as_millis());
        drop(closed);
    }
    gone.sort_unstable();
    verified.sort_unstable();
    let (link, last) = (if cut.is_some() { "cut" } else { "up" }, rounds - 1);
    println!(
        "{rounds} kills, link {link}: process gone after {} to {} ms (median {}), verified after {} to {} ms",
        gone[0],
        gone[last],
        gone[rounds / 2],
        verified[0],
        verified[last]
    );
    mosaic.assert_nothing_left();
    gone[last]
}

pub fn repository(mosaic: &Mosaic) -> Remote {
    Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())])
}

#[test]
fn a_kill_over_the_link_is_verified_by_the_kubelet() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::kills::a_kill_over_the_link_is_verified_by_the_kubelet") else { return };
    let mosaic = place.start(&[]);
    let slowest = kill_again_and_again(&mosaic, None);
    assert!(slowest <= 1000, "{slowest} ms");
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_kill_needs_no_link() {
    let test = "kube::pods::kills::a_kill_needs_no_link";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mosaic = place.start(&[]);
    let Some(cut) = Cut::of(test, &mosaic) else { return };
    let slowest = kill_again_and_again(&mosaic, Some(&cut));
    assert!(slowest <= 3000, "{slowest} ms");
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn everything_is_killed_at_once() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::kills::everything_is_killed_at_once") else { return };
    let count = wanted("MOSAIC_TEST_POD_KILL_ALL", 6);
    let number = count.to_string();
    let mosaic = place.start(&["--running-max", &number, "--starting-max", "8"]);
    let remote = repository(&mosaic);
    let mark = format!("everything-{}-end", std::process::id());
    let uids: Vec<String> = (0..count)
        .map(|n| {
            let mut body = task(&remote, &format!("{mark}-{n}"), &stubborn(&mark));
            body["sandbox"] = json!({ "cpu": "100m", "memory": "64Mi" });
            mosaic.spawn(&body)
        })
        .collect();
    for uid in &uids {
        mosaic.wait(uid, "the run", |object| object["status"]["phase"] == "Running");
    }
    let started = Instant::now();
    let (output, gone_after) = std::thread::scope(|scope| {
        let state = mosaic.state();
        let call = scope
            .spawn(move || program().args(["kill", "--all", "--wait", "60s", "--state"]).arg(state).stdin(Stdio::null()).output().unwrap());
        let gone_after = until("the processes go", || processes(&mark) == 0);
        (call.join().unwrap(), gone_after)
    });
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("kill-all of {count} pods: processes gone after {gone_after} ms, answered after {} ms: {told}", started.elapsed().as_millis());
    assert!(gone_after <= 5000, "{gone_after} ms");
    // A kubelet may need longer than a kill looks by itself to say so of very many.
    assert!(output.status.success(), "{told}");
    assert_eq!(told.lines().filter(|line| line.starts_with("agent/")).count(), count, "{told}");
    assert!(!told.contains("UNVERIFIED") && !told.contains("unverified"), "{told}");
    for uid in &uids {
        mosaic.wait(uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    }
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
    assert!(remote.agent_refs().is_empty());
}

#[test]
fn a_record_that_is_deleted_while_nobody_is_there_is_killed_once_somebody_is() {
    let test = "kube::pods::kills::a_record_that_is_deleted_while_nobody_is_there_is_killed_once_somebody_is";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mut mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let mark = format!("absent-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    let name = mosaic.object(&uid)["metadata"]["name"].as_str().unwrap().to_owned();
    mosaic.sigkill();
    kubectl(&["delete", "agent", &name, "--wait=false"]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(runtime.block_on(cluster.agent(&name)).is_some(), "the record stays until somebody has seen its death");
    mosaic.up();
    let gone = until("the process goes", || processes(&mark) == 0);
    println!("deleted without a controller: process gone {gone} ms after one was ready");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
    eventually("the record goes", || runtime.block_on(cluster.agent(&name)).is_none());
    assert!(remote.agent_refs().is_empty());
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
fn of_a_pod_whose_evidence_was_taken_away_nobody_says_that_it_runs() {
    let test = "kube::pods::kills::of_a_pod_whose_evidence_was_taken_away_nobody_says_that_it_runs";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let mark = format!("taken-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    let pod = pods(&cluster, &runtime)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    kubectl_says(&["patch", "pod", &pod, "--type=merge", "--patch", r#"{"metadata":{"finalizers":null}}"#]);
    kubectl_says(&["delete", "pod", &pod, "--grace-period=0", "--force", "--wait=false"]);
    until("the process goes", || processes(&mark) == 0);
    let object = mosaic.wait(&uid, "the doubt", |object| object["status"]["reason"] == "CannotObserve");
    let said = object["status"]["message"].as_str().unwrap();
    assert!(said.contains("its pod is not in the cluster") && said.contains("`mosaic kill NAME --node-is-gone`"), "{said}");
    assert_eq!((&object["status"]["attempt"], &object["status"]["completedAt"]), (&json!(1), &json!(null)), "nothing is begun on a doubt");
    let name = object["metadata"]["name"].as_str().unwrap();
    let said = program().args(["kill", name, "--node-is-gone", "--state"]).arg(mosaic.state()).output().unwrap();
    assert!(said.status.success(), "{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
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
    for _ in 0..wanted("MOSAIC_TEST_BLIND_SECONDS", 10) {
        std::thread::sleep(Duration::from_secs(1));
        let name = mosaic.object(&uid)["metadata"]["name"].as_str().unwrap().to_owned();
        let record = runtime.block_on(cluster.agent(&name)).expect("the record stays");
        assert_eq!(cleaned_up(&record), Some("RevokedUnverified"), "and says why: {:#}", record["status"]["conditions"]);
        assert_eq!(processes(&mark), 0);
    }
    control.start("kubelet");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

/// Why not everything of an agent was seen gone.
pub fn cleaned_up(record: &Value) -> Option<&str> {
    let conditions = record["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "CleanedUp" && condition["status"] == "False")?["reason"].as_str()
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
