//! Pods whose run folder somebody took away: the cluster is all that still knows them.

use super::kills::{repository, running};
use super::{assert_no_objects_left, processes, with_pods};
use crate::harness::{Mosaic, program};
use serde_json::json;
use std::process::{Output, Stdio};

pub fn take_run_folders(mosaic: &Mosaic) {
    for entry in std::fs::read_dir(mosaic.state().join("runs")).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

fn kill(mosaic: &Mosaic, whom: &str) -> Output {
    program().arg("--state").arg(mosaic.state()).args(["kill", whom]).stdin(Stdio::null()).output().unwrap()
}

fn killed_without_a_controller(test: &str, all: bool) {
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mut mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let mark = format!("lost-{all}-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    let name = mosaic.object(&uid)["metadata"]["name"].as_str().unwrap().to_owned();
    mosaic.sigkill();
    take_run_folders(&mosaic);
    let output = kill(&mosaic, if all { "--all" } else { &name });
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(processes(&mark), 0, "{text}");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("pod "), "it says what it was that lived: {text}");
    mosaic.up();
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn without_a_controller_one_is_killed_by_name() {
    killed_without_a_controller("kube::pods::lost::without_a_controller_one_is_killed_by_name", false);
}

#[test]
fn without_a_controller_all_are_killed() {
    killed_without_a_controller("kube::pods::lost::without_a_controller_all_are_killed", true);
}

#[test]
fn under_a_controller_a_kill_finds_them_and_leaves_nothing() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::lost::under_a_controller_a_kill_finds_them_and_leaves_nothing") else {
        return;
    };
    let mosaic = place.start(&[]);
    let remote = repository(&mosaic);
    let mark = format!("lost-live-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    take_run_folders(&mosaic);
    let (code, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
    assert_eq!((code, &answer["verified"]), (200, &json!(true)), "{answer}\n{}", mosaic.log());
    assert_eq!(processes(&mark), 0, "{answer}");
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}
