//! Controller and parts of the cluster are killed while agents work in pods.

use super::{assert_no_objects_left, with_pods};
use crate::harness::{Remote, gates, task};
use crate::kube::cluster::{Control, kubectl_says};
use crate::{jobs, waves};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn controller_killed_at_random_instants_doubles_and_loses_nothing() {
    let test = "kube::pods::faults::controller_killed_at_random_instants_doubles_and_loses_nothing";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mut mosaic = place.start(&["--running-max", "5", "--starting-max", "5"]);
    waves::controller_is_killed_at_random(&mut mosaic, 6, Duration::from_millis(3000));
    assert_no_objects_left(&cluster, &runtime);
}

/// Each part in its turn, while the pods of all agents are there.
#[test]
fn jobs_are_done_once_while_parts_of_the_cluster_are_killed() {
    let test = "kube::pods::faults::jobs_are_done_once_while_parts_of_the_cluster_are_killed";
    let Some(control) = Control::of(test) else { return };
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mosaic = place.start(&["--running-max", "6", "--starting-max", "6"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let begin = |n: usize| {
        let mut body = task(&remote, &format!("job-{n}"), &format!("sleep 6; echo {n} > note-{n}.txt"));
        body["sandbox"] = json!({ "cpu": "300m", "memory": "256Mi" });
        mosaic.spawn(&body)
    };
    let uids: Vec<String> = (0..6).map(begin).collect();
    for part in ["kubelet", "apiserver", "containerd", "etcd"] {
        std::thread::sleep(Duration::from_millis(1500));
        control.stop(part);
        std::thread::sleep(Duration::from_millis(700));
        control.start(part);
        let started = Instant::now();
        while mosaic.call("GET", "/agents", None).0 != 200 || !kubectl_says(&["get", "--raw", "/readyz"]).0 {
            assert!(started.elapsed() < Duration::from_secs(60), "{part}");
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("{part} killed and started: served again after {:?}", started.elapsed());
    }
    jobs::each_note_is_delivered_once(&mosaic, &remote, &uids);
    assert_no_objects_left(&cluster, &runtime);
}
