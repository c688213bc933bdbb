//! The controller is killed at any instant, stays away, comes back. What counts is what is seen outside afterwards.

use super::harness::{Mosaic, Remote, condition, gates, sandbox_pids, task};
use super::waves;
use std::time::{Duration, Instant};

#[test]
fn controller_killed_at_random_instants_with_five_agents_in_flight_converges() {
    let mut mosaic = Mosaic::start(&["--running-max", "5", "--starting-max", "5"]);
    // From right after the ready answer to well into gates and pushes.
    waves::controller_is_killed_at_random(&mut mosaic, 100, Duration::from_millis(900));
}

#[test]
fn restart_shorter_than_the_lease_kills_no_healthy_agent() {
    let mut mosaic = Mosaic::start(&["--lease", "10s"]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uid = mosaic.spawn(&task(&remote, "survivor", "echo start; sleep 4; echo $$ > file.txt"));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let before = sandbox_pids(&mosaic.state());
    assert_eq!(before.len(), 1);
    mosaic.sigkill();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(sandbox_pids(&mosaic.state()), before, "the agent lives on without a controller");
    mosaic.up();
    assert_eq!(sandbox_pids(&mosaic.state()), before, "the same process was adopted");
    let object = mosaic.wait_completed(&uid);
    assert_eq!(object["status"]["attempt"], 1, "{object:#}");
    // A clean end leaves sandboxes running as well.
    let second = mosaic.spawn(&task(&remote, "second", "echo start; sleep 3; echo x > second.txt"));
    mosaic.wait(&second, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let before = sandbox_pids(&mosaic.state());
    mosaic.sigterm();
    assert_eq!(sandbox_pids(&mosaic.state()), before);
    mosaic.up();
    assert_eq!(mosaic.wait_completed(&second)["status"]["attempt"], 1);
    mosaic.assert_nothing_left();
}

#[test]
fn controller_that_stays_away_has_all_agents_dead_within_the_lease() {
    let lease = Duration::from_secs(5);
    let mut mosaic = Mosaic::start(&["--lease", "5s"]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let script = "trap '' TERM INT HUP; (setsid sleep 600 &) ; while :; do sleep 1; done";
    let uids: Vec<String> = (0..3).map(|n| mosaic.spawn(&task(&remote, &format!("forever-{n}"), script))).collect();
    for uid in &uids {
        mosaic.wait(uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    }
    assert_eq!(sandbox_pids(&mosaic.state()).len(), 3);
    mosaic.sigkill();
    let started = Instant::now();
    while !sandbox_pids(&mosaic.state()).is_empty() {
        assert!(started.elapsed() < lease + Duration::from_secs(5), "an agent outlived its lease");
        std::thread::sleep(Duration::from_millis(50));
    }
    mosaic.up();
    for uid in &uids {
        let (status, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), None);
        assert!(status == 200 || status == 202, "{status}: {answer}");
    }
    mosaic.assert_nothing_left();
}

#[test]
fn killed_agent_is_gone_within_seconds_and_stays_killed_over_a_restart() {
    let mut mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let script = "trap '' TERM INT HUP; echo work > unpushed.txt; (setsid sh -c 'while :; do sleep 1; done' &) ; while :; do sleep 1; done";
    let uid = mosaic.spawn(&task(&remote, "victim", script));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let (status, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), None);
    assert_eq!(status, 200, "{answer}\n{}", mosaic.log());
    assert_eq!(answer["verified"], true, "{answer}");
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    mosaic.assert_nothing_left();
    let killed = |mosaic: &Mosaic| {
        let (status, answer) = mosaic.call("GET", &format!("/agents/{uid}"), None);
        assert_eq!((status, answer["state"].as_str()), (200, Some("killed")), "{answer}");
    };
    killed(&mosaic);
    mosaic.sigkill();
    mosaic.up();
    killed(&mosaic);
    // The same request again gives the same, killed agent, and nothing starts.
    let (status, answer) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, "victim", script)));
    assert_eq!((status, answer["agentId"].as_str()), (200, Some(uid.as_str())), "{answer}");
    mosaic.assert_nothing_left();
    assert!(remote.agent_refs().is_empty());
}

#[test]
fn kill_all_ends_every_agent_and_nothing_starts_while_held() {
    let mosaic = Mosaic::start(&["--running-max", "3"]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uids: Vec<String> = (0..5).map(|n| mosaic.spawn(&task(&remote, &format!("t-{n}"), "while :; do sleep 1; done"))).collect();
    let started = Instant::now();
    while sandbox_pids(&mosaic.state()).len() < 3 {
        assert!(started.elapsed() < super::harness::PATIENCE, "three run: {}", mosaic.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let (status, answer) = mosaic.call("POST", "/agents/kill-all", Some(&serde_json::json!({"reason": "drill", "hold": true})));
    assert!(status == 200 || status == 202, "{status}: {answer}");
    mosaic.assert_nothing_left();
    for uid in &uids {
        let (_, answer) = mosaic.call("GET", &format!("/agents/{uid}"), None);
        assert_eq!(answer["state"], "killed", "{answer}");
    }
    // The front door refuses what would only be killed; what gets into the store another way is killed.
    let (status, answer) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, "late", "echo x > x.txt")));
    assert_eq!(status, 409, "{answer}");
    assert!(answer.to_string().contains("halt"), "{answer}");
    assert!(remote.agent_refs().is_empty());
}

#[test]
fn what_a_crash_has_left_is_removed_and_each_removal_is_told_once() {
    let mut mosaic = Mosaic::start(&[]);
    mosaic.sigkill();
    let left =
        ["runs/.removing-0123456789abcdef", "runs/fedcba9876543210", "trees/agent-nobody", "self-test-tree", "prepared/0123456789abcdef"];
    for path in left {
        std::fs::create_dir_all(mosaic.state().join(path)).unwrap();
    }
    mosaic.up();
    mosaic.sigterm();
    mosaic.up();
    assert!(left.iter().all(|path| !mosaic.state().join(path).exists()));
    let audit = std::fs::read_to_string(mosaic.state().join("audit/up.jsonl")).unwrap();
    for path in left {
        let told: Vec<&str> = audit.lines().filter(|line| line.contains(path) && line.contains("\"StrayFolderRemoved\"")).collect();
        assert_eq!(told.len(), 1, "{path}: {audit}");
        assert!(told[0].contains("\"event\""), "{}", told[0]);
    }
}
