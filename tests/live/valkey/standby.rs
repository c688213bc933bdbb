//! Several controllers on one server, each with a state folder of its own; and a server that has forgotten what lives.

use super::server::{DURABLE, Server};
use crate::harness::{Mosaic, Remote, gates, sandbox_pids, task};
use serde_json::json;
use std::time::{Duration, Instant};

fn says(mosaic: &Mosaic, words: &str) -> bool {
    let (code, text) = mosaic.call("GET", "/readyz?verbose", None);
    code == 200 && text.as_str().is_some_and(|text| text.contains(words))
}

fn wait_until(what: &str, longest: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < longest, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

const LEADS: &str = "this controller leads";

#[test]
fn one_leads_and_the_others_stand_by_and_take_over() {
    let Some(server) = Server::start("valkey::standby::one_leads_and_the_others_stand_by_and_take_over", &DURABLE) else { return };
    let shared = tempfile::tempdir().unwrap();
    let url = server.url();
    let flags = ["--valkey-url", &url, "--local-repos", shared.path().to_str().unwrap()];
    let (mut first, mut second) = (Mosaic::start(&flags), Mosaic::start(&flags));
    assert!(says(&first, LEADS) && !says(&second, LEADS), "one leads");
    let remote = Remote::new(shared.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);

    // Declared to the one that stands by, done by the one that leads, and read at either.
    let early = second.spawn(&task(&remote, "early", "echo early > early.txt"));
    first.wait_completed(&early);
    assert_eq!(second.object(&early)["status"], first.object(&early)["status"]);

    let doomed = first.spawn(&task(&remote, "doomed", "sleep 600"));
    let held = first.spawn(&task(&remote, "held", "sleep 20; echo held > held.txt"));
    for uid in [&held, &doomed] {
        first.wait(uid, "the run", |object| object["status"]["phase"] == "Running");
    }
    first.sigkill();
    let replaced = wait_until("the other one takes over", Duration::from_secs(10), || says(&second, LEADS));
    println!("a killed leader was replaced after {replaced:?}");
    assert!(replaced < Duration::from_secs(6), "{replaced:?}");
    let later = second.spawn(&task(&remote, "later", "echo later > later.txt"));
    second.wait_completed(&later);
    // What runs elsewhere cannot be looked at: it is neither begun again nor taken for dead.
    let object = second.wait(&held, "the unknown", |object| object["status"]["reason"] == "CannotObserve");
    assert_eq!((&object["status"]["phase"], &object["status"]["attempt"]), (&json!("Running"), &json!(1)));
    assert!(sandbox_pids(&second.state()).is_empty(), "nothing of it was started here");
    assert_eq!(sandbox_pids(&first.state()).len(), 2, "and it lives on there");

    first.up();
    assert!(!says(&first, LEADS), "who comes back stands by");
    // A kill reaches what the one that stands by holds: nobody else can.
    let (code, ending) = second.call("POST", &format!("/agents/{doomed}/kill"), Some(&json!({})));
    assert_eq!((code, &ending["verified"]), (200, &json!(true)), "{ending}");
    assert_eq!(sandbox_pids(&first.state()).len(), 1, "the other one lives on");
    assert!(says(&second, LEADS) && !says(&first, LEADS));
    let ended = Instant::now();
    second.sigterm();
    wait_until("a clean end hands over", Duration::from_secs(10), || says(&first, LEADS));
    println!("a clean end handed over after {:?}, the end itself included", ended.elapsed());
    let object = first.wait_completed(&held);
    assert_eq!(object["status"]["attempt"], 1, "it was run once");
    assert_eq!(remote.agent_refs().len(), 3, "one ref each");
    first.assert_nothing_left();
    second.up();
    second.assert_nothing_left();
}

#[test]
fn a_stopped_leader_doubles_nothing_when_it_goes_on() {
    let Some(server) = Server::start("valkey::standby::a_stopped_leader_doubles_nothing_when_it_goes_on", &DURABLE) else { return };
    let shared = tempfile::tempdir().unwrap();
    let url = server.url();
    let flags = ["--valkey-url", &url, "--local-repos", shared.path().to_str().unwrap()];
    let controllers = [Mosaic::start(&flags), Mosaic::start(&flags), Mosaic::start(&flags)];
    let remote = Remote::new(shared.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let jobs = |from: usize| -> Vec<String> {
        (from..from + 4).map(|n| controllers[1].spawn(&task(&remote, &format!("job-{n}"), &format!("echo {n} > note-{n}.txt")))).collect()
    };
    let mut uids = jobs(0);
    std::thread::sleep(Duration::from_millis(700));
    let pid = rustix::process::Pid::from_raw(i32::try_from(controllers[0].pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let stopped = Instant::now();
    wait_until("another leads", Duration::from_secs(10), || controllers[1..].iter().any(|controller| says(controller, LEADS)));
    uids.extend(jobs(4));
    for uid in &uids[4..] {
        controllers[1].wait_completed(uid);
    }
    let seconds = std::env::var("MOSAIC_TEST_STOP_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(stopped.elapsed()));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    wait_until("it finds itself replaced", Duration::from_secs(10), || says(&controllers[0], "stands by"));
    // What it had begun before goes on once it leads again.
    let [first, second, third] = controllers;
    let (mut second, mut third) = (second, third);
    second.sigterm();
    third.sigterm();
    for uid in &uids {
        let object = first.wait_completed(uid);
        let name = object["status"]["push"]["ref"].as_str().unwrap();
        assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each");
        assert_eq!(object["status"]["push"]["sha"].as_str(), remote.refs().get(name).map(String::as_str));
    }
    assert_eq!(remote.agent_refs().len(), uids.len(), "one ref each");
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
