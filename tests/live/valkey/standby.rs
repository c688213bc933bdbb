//! Several controllers on one server, each with a state folder of its own; and a server that has forgotten what lives.

use super::server::{DURABLE, Server};
use crate::controllers::{self, says, wait_until};
use crate::harness::{Mosaic, Remote, gates, sandbox_pids, task};
use serde_json::json;
use std::time::Duration;

#[test]
fn one_leads_and_the_others_stand_by_and_take_over() {
    let Some(server) = Server::start("valkey::standby::one_leads_and_the_others_stand_by_and_take_over", &DURABLE) else { return };
    let shared = tempfile::tempdir().unwrap();
    let url = server.url();
    let flags = ["--valkey-url", &url, "--local-repos", shared.path().to_str().unwrap()];
    controllers::one_leads_and_the_other_takes_over(&flags, shared.path());
}

#[test]
fn a_stopped_leader_doubles_nothing_when_it_goes_on() {
    let Some(server) = Server::start("valkey::standby::a_stopped_leader_doubles_nothing_when_it_goes_on", &DURABLE) else { return };
    let shared = tempfile::tempdir().unwrap();
    let url = server.url();
    let flags = ["--valkey-url", &url, "--local-repos", shared.path().to_str().unwrap()];
    // The versions of records are the store's own here, and the suite of contracts looks at those.
    controllers::stopped_leader_doubles_nothing([(); 3].map(|()| Mosaic::start(&flags)), shared.path(), Vec::<()>::new);
}

#[test]
fn the_lease_is_handed_to_who_has_to_finish() {
    let Some(server) = Server::start("valkey::standby::the_lease_is_handed_to_who_has_to_finish", &DURABLE) else { return };
    let shared = tempfile::tempdir().unwrap();
    let url = server.url();
    let flags = ["--valkey-url", &url, "--local-repos", shared.path().to_str().unwrap()];
    let controllers = [(); 2].map(|()| Mosaic::start(&flags));
    controllers::the_lease_is_handed_to_who_has_to_finish(controllers, shared.path(), Duration::from_secs(10));
}

#[test]
fn a_kill_that_is_stored_is_answered_although_the_store_falls_silent_then() {
    let test = "valkey::standby::a_kill_that_is_stored_is_answered_although_the_store_falls_silent_then";
    let Some(server) = Server::start(test, &DURABLE) else { return };
    let shared = tempfile::tempdir().unwrap();
    let url = server.url();
    let flags = ["--valkey-url", &url, "--local-repos", shared.path().to_str().unwrap()];
    let (mut first, second) = (Mosaic::start(&flags), Mosaic::start(&flags));
    let remote = Remote::new(shared.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let held = first.spawn(&task(&remote, "held", "sleep 600"));
    first.wait(&held, "the run", |object| object["status"]["phase"] == "Running");
    first.sigkill();
    wait_until("the other one takes over", Duration::from_secs(10), || says(&second, "this controller leads"));
    // It cannot look at what the first one holds, and so waits for the proof until its time is over.
    let killing = std::thread::scope(|scope| {
        let killing = scope.spawn(|| second.call("POST", &format!("/agents/{held}/kill"), Some(&json!({}))));
        wait_until("the kill is stored", Duration::from_secs(3), || !second.object(&held)["metadata"]["deletionTimestamp"].is_null());
        server.signal(rustix::process::Signal::STOP);
        let answer = killing.join().unwrap();
        server.signal(rustix::process::Signal::CONT);
        answer
    });
    assert_eq!((killing.0, &killing.1["verified"]), (202, &json!(false)), "{}", killing.1);
    first.up();
    first.assert_nothing_left();
}

/// Two looks for orphans, and some.
const TWO_LOOKS: Duration = Duration::from_secs(23);

#[test]
fn a_server_that_has_forgotten_kills_nothing_and_starts_nothing_again() {
    let test = "valkey::standby::a_server_that_has_forgotten_kills_nothing_and_starts_nothing_again";
    let Some(mut server) = Server::start(test, &DURABLE) else { return };
    let mut mosaic = Mosaic::start(&["--valkey-url", &server.url()]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uid = mosaic.spawn(&task(&remote, "long", "sleep 600"));
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    let living = sandbox_pids(&mosaic.state());
    assert_eq!(living.len(), 1);
    wait_until("the version is remembered", TWO_LOOKS, || mosaic.state().join("last-version").exists());

    server.kill();
    server.forget();
    server.begin(&DURABLE);
    server.answers();
    wait_until("it is noticed", TWO_LOOKS, || says(&mosaic, "is another one than before"));
    std::thread::sleep(TWO_LOOKS);
    assert_eq!(sandbox_pids(&mosaic.state()), living, "what lives is left alone: {}", mosaic.log());

    // Neither a restart nor what is declared since makes it forget that.
    let other = mosaic.spawn(&task(&remote, "other", "echo other > other.txt"));
    mosaic.wait_completed(&other);
    mosaic.sigterm();
    mosaic.up();
    assert!(says(&mosaic, "is another one than before"));
    std::thread::sleep(TWO_LOOKS);
    assert_eq!(sandbox_pids(&mosaic.state()), living, "after a restart as well: {}", mosaic.log());

    // An operator confirms: what has no record goes.
    std::fs::remove_file(mosaic.state().join("last-version")).unwrap();
    wait_until("the orphan goes", TWO_LOOKS, || sandbox_pids(&mosaic.state()).is_empty());
    mosaic.assert_nothing_left();
}

#[test]
fn a_server_restored_from_an_older_copy_kills_nothing_and_starts_nothing_again() {
    let test = "valkey::standby::a_server_restored_from_an_older_copy_kills_nothing_and_starts_nothing_again";
    let Some(mut server) = Server::start(test, &DURABLE) else { return };
    let mut mosaic = Mosaic::start(&["--valkey-url", &server.url()]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let backup = tempfile::tempdir().unwrap();
    // In the copy: an agent that has not begun. In the world: the same one, running.
    mosaic.call("POST", "/halts", Some(&json!({"name": "wait", "reason": "copy", "release": "manual", "namespace": "elsewhere"})));
    server.copy_disk(backup.path());
    let uid = mosaic.spawn(&task(&remote, "long", "sleep 600"));
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    let living = sandbox_pids(&mosaic.state());
    wait_until("the version is remembered", TWO_LOOKS, || {
        std::fs::read_to_string(mosaic.state().join("last-version")).is_ok_and(|text| !text.contains("\"version\":0"))
    });
    mosaic.sigterm();
    server.kill();
    server.restore_disk(backup.path());
    server.begin(&DURABLE);
    server.answers();
    mosaic.up();
    wait_until("it is noticed", TWO_LOOKS, || says(&mosaic, "went back to version"));
    for n in 0..3 {
        let other = mosaic.spawn(&task(&remote, &format!("other-{n}"), "echo other > other.txt"));
        mosaic.wait_completed(&other);
    }
    std::thread::sleep(TWO_LOOKS);
    assert_eq!(sandbox_pids(&mosaic.state()), living, "{}", mosaic.log());
    for pid in living {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}
