//! Whole jobs on Kubernetes records and pods.

use super::{Place, assert_no_objects_left, with_pods};
use crate::harness::{Remote, condition, gates, task};
use crate::jobs;
use crate::kube::cluster::Cluster;
use serde_json::json;
use std::time::Duration;
use tokio::runtime::Runtime;

#[test]
fn a_job_goes_from_a_refused_round_to_a_verified_push() {
    let Some(pods) = with_pods("kube::pods::jobs::a_job_goes_from_a_refused_round_to_a_verified_push") else { return };
    goes_from_a_refused_round_to_a_verified_push(pods);
}

#[test]
fn a_job_in_an_image_with_init_of_its_own_goes_the_same_way() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::jobs::a_job_in_an_image_with_init_of_its_own_goes_the_same_way") else {
        return;
    };
    goes_from_a_refused_round_to_a_verified_push((cluster, runtime, place.with_own_init()));
}

fn goes_from_a_refused_round_to_a_verified_push((cluster, runtime, place): (Cluster, Runtime, Place)) {
    let mosaic = place.start(&[]);
    assert!(mosaic.log().contains("sandboxes: pod"), "{}", mosaic.log());
    let (remote, object) = jobs::refused_then_delivered(&mosaic);
    let sandbox = &object["status"]["sandbox"];
    assert_eq!((&sandbox["driver"], &object["status"]["driver"]), (&json!("pod"), &json!("pod")), "{sandbox}");
    let isolation = sandbox["isolation"].as_array().unwrap();
    for name in ["network-policy", "seccomp", "no-capabilities", "init-untouchable", "memory:kernel", "pids:kernel"] {
        assert!(isolation.contains(&json!(name)), "{name}: {isolation:?}");
    }
    jobs::is_known_after_its_end(&mosaic, &remote, &object);
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn what_an_agent_does_to_its_tree_arrives_as_it_is() {
    let Some(pods) = with_pods("kube::pods::jobs::what_an_agent_does_to_its_tree_arrives_as_it_is") else { return };
    a_tree_arrives_as_it_is(pods);
}

#[test]
fn a_tree_arrives_as_it_is_from_an_image_with_init_of_its_own() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::jobs::a_tree_arrives_as_it_is_from_an_image_with_init_of_its_own") else {
        return;
    };
    a_tree_arrives_as_it_is((cluster, runtime, place.with_own_init()));
}

fn a_tree_arrives_as_it_is((cluster, runtime, place): (Cluster, Runtime, Place)) {
    let mosaic = place.start(&[]);
    let remote = Remote::new(
        mosaic.folder.path(),
        "repo",
        &[(".mosaic/gates.toml", gates("true", "true").as_str()), ("old/a.txt", "a\n"), ("old/b.txt", "b\n"), ("kept.txt", "kept\n")],
    );
    let script = "rm -r old; mkdir -p new/deep; head -c 5000000 /dev/urandom > new/deep/big; cp new/deep/big copy; \
        printf '#!/bin/sh\\n' > run; chmod 755 run; ln -s kept.txt link; echo more >> kept.txt";
    let object = mosaic.wait_completed(&mosaic.spawn(&task(&remote, "tree", script)));
    let name = object["status"]["push"]["ref"].as_str().unwrap();
    let listing = remote.git(&["ls-tree", "-r", name]);
    let modes: Vec<(&str, &str)> = listing.lines().map(|line| (&line[..6], line.split('\t').nth(1).unwrap())).collect();
    let wanted = [
        ("100644", ".mosaic/gates.toml"),
        ("100644", "copy"),
        ("100644", "kept.txt"),
        ("120000", "link"),
        ("100644", "new/deep/big"),
        ("100755", "run"),
    ];
    assert_eq!(modes, wanted);
    assert_eq!(remote.git(&["show", &format!("{name}:kept.txt")]), "kept\nmore\n");
    assert_eq!(remote.git(&["cat-file", "-s", &format!("{name}:copy")]).trim(), "5000000");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn ten_agents_at_once_all_deliver() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::jobs::ten_agents_at_once_all_deliver") else { return };
    let mosaic = place.start(&["--running-max", "10", "--starting-max", "10"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let small = |n: usize| {
        let mut body = task(&remote, &format!("job-{n}"), &format!("echo {n} > {n}.txt"));
        body["sandbox"] = json!({ "cpu": "500m", "memory": "256Mi" });
        body
    };
    let uids: Vec<String> = (0..10).map(|n| mosaic.spawn(&small(n))).collect();
    for uid in &uids {
        assert_eq!(condition(&mosaic.wait_completed(uid), "Pushed"), "True");
    }
    assert_eq!(remote.agent_refs().len(), 10);
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_controller_that_is_killed_finds_its_pods_again() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::jobs::a_controller_that_is_killed_finds_its_pods_again") else { return };
    let mut mosaic = place.start(&[]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i; sleep 1; done; echo done > done.txt";
    let uid = mosaic.spawn(&task(&remote, "long", script));
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        mosaic.sigkill();
        mosaic.up();
    }
    let object = mosaic.wait_completed(&uid);
    assert_eq!(object["status"]["attempt"], 1, "nothing was done again: {object:#}");
    let (_, log) = mosaic.call("GET", &format!("/agents/{uid}/logs"), None);
    let log = log.as_str().map_or_else(|| log.to_string(), str::to_owned);
    for n in 1..=12 {
        assert_eq!(log.lines().filter(|line| line.trim() == n.to_string()).count(), 1, "line {n}: {log}");
    }
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}
