//! Controller and parts of the cluster are killed while agents work in pods.

use super::{assert_no_objects_left, init_of, with_pods};
use crate::harness::{Remote, eventually, gates, task};
use crate::kube::cluster::{Control, kubectl_says};
use crate::{jobs, waves};
use serde_json::json;
use std::path::Path;
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

#[test]
fn what_a_pod_had_sent_that_ends_without_a_word_is_kept_and_its_age_is_told() {
    let test = "kube::pods::faults::what_a_pod_had_sent_that_ends_without_a_word_is_kept_and_its_age_is_told";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mosaic = place.start(&[]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let mark = format!("wordless-{}-end", std::process::id());
    let script = format!("if [ -e one.txt ]; then echo two > two.txt; exit; fi; echo one > one.txt; while :; do sleep 1; : {mark}; done");
    let uid = mosaic.spawn(&task(&remote, "wordless", &script));
    eventually("its files to come", || holds(&mosaic.state().join("trees"), "one.txt"));
    let init = init_of(&mark).expect("an init above the agent");
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    let told = mosaic.wait(&uid, "what is kept", |object| object.to_string().contains("its files are kept as they were at 20"));
    assert_eq!(told["status"]["counts"]["infrastructure"], 1, "{:#}", told["status"]);
    let object = mosaic.wait_completed(&uid);
    let name = object["status"]["push"]["ref"].as_str().unwrap();
    assert_eq!(remote.git(&["show", &format!("{name}:one.txt")]), "one\n", "the first attempt's work");
    assert_eq!(object["status"]["attempt"], 2);
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

/// Whether there is a file of that name beneath a folder.
fn holds(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name() == name || entry.file_type().is_ok_and(|kind| kind.is_dir()) && holds(&entry.path(), name))
}
