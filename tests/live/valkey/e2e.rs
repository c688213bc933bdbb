//! A whole job on Valkey and the process driver, seen from the outside, also while the server comes and goes.

use super::server::{DURABLE, Server};
use crate::harness::{Mosaic, Remote, condition, gates, task};
use serde_json::json;
use std::time::Duration;

/// Starts a server, and a `mosaic up` on it.
fn start(test: &str) -> Option<(Server, Mosaic)> {
    let server = Server::start(test, &DURABLE)?;
    let mosaic = Mosaic::start(&["--valkey-url", &server.url(), "--valkey-durability", "aof"]);
    Some((server, mosaic))
}

#[test]
fn a_job_goes_from_a_refused_round_to_a_verified_push() {
    let Some((server, mosaic)) = start("valkey::e2e::a_job_goes_from_a_refused_round_to_a_verified_push") else { return };
    assert!(!mosaic.state().join("mosaic.redb").exists(), "no file keeps records beside the server");
    let gate_file = gates("grep -q right answer.txt || { echo the answer must be right; exit 3; }", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let script = "if grep -q 'the answer must be right' /mosaic/task.json; then echo right > answer.txt; else echo wrong > answer.txt; fi";
    let uid = mosaic.spawn(&task(&remote, "answer", script));
    let object = mosaic.wait_completed(&uid);
    let status = &object["status"];
    assert_eq!(status["attempt"], 2, "{object:#}");
    assert_eq!(status["counts"], json!({"agentFailures": 0, "rejections": 1, "infrastructure": 0}));
    let name = status["push"]["ref"].as_str().unwrap();
    assert_eq!(remote.refs().get(name).map(String::as_str), status["push"]["sha"].as_str());
    assert_eq!(remote.git(&["show", &format!("{name}:answer.txt")]), "right\n");
    assert_eq!(remote.agent_refs().len(), 1);
    // The same task again is the same agent; after a kill it is still known.
    assert_eq!(mosaic.spawn(&task(&remote, "answer", script)), uid);
    let (code, _) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
    assert_eq!(code, 200);
    assert_eq!(mosaic.object(&uid)["status"]["phase"], "Completed");
    let entries = server.ask(&["XRANGE", "{mosaic:default}:events", "-", "+"]);
    let told: Vec<String> = entries.list().iter().map(|entry| entry.list()[1].pairs()["event"].clone()).collect();
    assert_eq!(told, ["spawned", "running", "completed", "cleaned up"]);
    mosaic.assert_nothing_left();
}

#[test]
fn a_running_agent_is_killed_while_the_memory_of_the_server_is_full() {
    let Some((server, mosaic)) = start("valkey::e2e::a_running_agent_is_killed_while_the_memory_of_the_server_is_full") else { return };
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uid = mosaic.spawn(&task(&remote, "long", "sleep 300"));
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    server.ask(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let (code, problem) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, "other", "true")));
    assert_eq!(code, 503, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("its memory is full"), "{problem}");
    let (code, ending) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
    assert_eq!((code, &ending["verified"]), (200, &json!(true)), "{ending}");
    mosaic.assert_nothing_left();
}

#[test]
fn jobs_are_done_once_while_the_server_is_killed_again_and_again() {
    let test = "valkey::e2e::jobs_are_done_once_while_the_server_is_killed_again_and_again";
    let Some((mut server, mosaic)) = start(test) else { return };
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let script = |n: usize| format!("sleep 1; echo {n} >> note-{n}.txt");
    let uids: Vec<String> = (0..6).map(|n| mosaic.spawn(&task(&remote, &format!("job-{n}"), &script(n)))).collect();
    for round in 0..5 {
        std::thread::sleep(Duration::from_millis(600 + 130 * round));
        server.kill();
        std::thread::sleep(Duration::from_millis(200 * round));
        server.begin(&DURABLE);
        server.answers();
    }
    let started = std::time::Instant::now();
    while mosaic.call("GET", "/agents", None).0 != 200 {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    for (n, uid) in uids.iter().enumerate() {
        let object = mosaic.wait_completed(uid);
        assert_eq!(condition(&object, "Pushed"), "True");
        let name = object["status"]["push"]["ref"].as_str().unwrap();
        assert_eq!(remote.git(&["show", &format!("{name}:note-{n}.txt")]), format!("{n}\n"));
        assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each");
    }
    assert_eq!(remote.agent_refs().len(), uids.len());
    mosaic.assert_nothing_left();
}
