//! Whole jobs on Kubernetes records and the process driver, seen from the outside, also while the controller is killed.

use super::cluster::cluster_now;
use crate::harness::{Mosaic, Remote, condition, gates, task};
use crate::{jobs, waves};
use std::time::Duration;

#[test]
fn a_job_goes_from_a_refused_round_to_a_verified_push() {
    let Some((cluster, runtime)) = cluster_now("kube::e2e::a_job_goes_from_a_refused_round_to_a_verified_push") else { return };
    let mosaic = Mosaic::start(&["--store", "kube"]);
    assert!(!mosaic.state().join("mosaic.redb").exists(), "no file keeps records beside the cluster");
    let (remote, object) = jobs::refused_then_delivered(&mosaic);
    let status = &object["status"];
    // The API server has the same, under the name of our field manager, and with the spec's generation noted.
    let stored = runtime.block_on(cluster.agent(object["metadata"]["name"].as_str().unwrap())).unwrap();
    assert_eq!(stored["status"], *status);
    assert_eq!(stored["status"]["observedGeneration"], stored["metadata"]["generation"]);
    let conditions = stored["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|condition| condition["observedGeneration"] == stored["metadata"]["generation"]), "{conditions:#?}");
    assert!(stored["metadata"]["managedFields"].as_array().unwrap().iter().all(|entry| entry["manager"] == "mosaic"), "{stored:#}");
    jobs::is_known_after_its_end(&mosaic, &remote, &object);
}

#[test]
fn controller_killed_at_random_instants_doubles_and_loses_nothing() {
    let Some((_cluster, _runtime)) = cluster_now("kube::e2e::controller_killed_at_random_instants_doubles_and_loses_nothing") else {
        return;
    };
    let mut mosaic = Mosaic::start(&["--store", "kube", "--running-max", "5", "--starting-max", "5"]);
    waves::controller_is_killed_at_random(&mut mosaic, 30, Duration::from_millis(900));
}

#[test]
fn ten_agents_at_once_all_deliver() {
    let Some((_cluster, _runtime)) = cluster_now("kube::e2e::ten_agents_at_once_all_deliver") else { return };
    let mosaic = Mosaic::start(&["--store", "kube", "--running-max", "10"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uids: Vec<String> = (0..10).map(|n| mosaic.spawn(&task(&remote, &format!("job-{n}"), &format!("echo {n} > {n}.txt")))).collect();
    for uid in &uids {
        assert_eq!(condition(&mosaic.wait_completed(uid), "Pushed"), "True");
    }
    assert_eq!(remote.agent_refs().len(), 10);
    mosaic.assert_nothing_left();
}
