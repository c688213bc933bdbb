//! Whole jobs on Kubernetes records and the process driver, seen from the outside, also while the controller is killed.

use super::cluster::cluster_now;
use crate::harness::{Mosaic, Random, Remote, condition, gates, task};
use crate::jobs;
use std::time::Duration;

/// Kills of the controller; fewer for a quick look.
fn kills_wanted() -> usize {
    std::env::var("MOSAIC_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

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
    let seed = std::env::var("MOSAIC_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_126);
    let mut random = Random(seed);
    let mut mosaic = Mosaic::start(&["--store", "kube", "--running-max", "5", "--starting-max", "5"]);
    let gate_file = gates("sleep 0.1; ls file-*.txt", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let (mut kills, mut wave, mut delivered) = (0, 0, 0);
    while kills < kills_wanted() {
        let uids: Vec<String> = (0..5)
            .map(|n| {
                let script = format!("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; echo {wave} > file-{wave}-{n}.txt");
                mosaic.spawn(&task(&remote, &format!("wave-{wave}-{n}"), &script))
            })
            .collect();
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(random.below(900)));
            mosaic.sigkill();
            kills += 1;
            mosaic.up();
        }
        for (n, uid) in uids.iter().enumerate() {
            let object = mosaic.wait_completed(uid);
            let push = &object["status"]["push"];
            let name = push["ref"].as_str().unwrap();
            assert_eq!(remote.refs().get(name).map(String::as_str), push["sha"].as_str(), "seed {seed}: {object:#}");
            assert_eq!(remote.git(&["diff", "--name-only", "main", name]).trim(), format!("file-{wave}-{n}.txt"), "seed {seed}");
            assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each, seed {seed}");
            delivered += 1;
        }
        assert_eq!(remote.agent_refs().len(), delivered, "one ref each, none doubled, seed {seed}");
        mosaic.assert_nothing_left();
        wave += 1;
    }
    println!("{kills} kills of the controller, {delivered} agents delivered once each (seed {seed})");
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
