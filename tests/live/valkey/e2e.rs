//! A whole job on Valkey and the process driver, seen from the outside, also while the server comes and goes.

use super::server::{DURABLE, Server};
use crate::engine::{BUSYBOX, engine};
use crate::harness::{Mosaic, Remote, gates, task};
use crate::jobs;
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
    let (remote, object) = jobs::refused_then_delivered(&mosaic);
    jobs::is_known_after_its_end(&mosaic, &remote, &object);
    let entries = server.ask(&["XRANGE", "{mosaic:default}:events", "-", "+"]);
    let told: Vec<String> = entries.list().iter().map(|entry| entry.list()[1].pairs()["event"].clone()).collect();
    assert_eq!(told, ["spawned", "running", "completed", "cleaned up"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_is_done_in_containers() {
    let test = "valkey::e2e::the_same_job_is_done_in_containers";
    let Some(_) = engine(test).await else { return };
    let work = || {
        let Some(server) = Server::start(test, &DURABLE) else { return };
        let mosaic = Mosaic::start(&["--valkey-url", &server.url(), "--driver", "docker", "--sandbox-image", BUSYBOX]);
        let (remote, object) = jobs::refused_then_delivered(&mosaic);
        assert_eq!(object["status"]["sandbox"]["driver"], "docker", "{object:#}");
        jobs::is_known_after_its_end(&mosaic, &remote, &object);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
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
    jobs::each_note_is_delivered_once(&mosaic, &remote, &uids);
}
