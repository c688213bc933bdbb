//! A kill through the lane of the real program at every action: when its intent is written, a moment later, when its outcome is. Then nothing, a
//! controller that is killed and started again, or that with the store as it was before the kill. Afterwards nothing of the agent runs, no
//! ref moves, nothing is left, and the record says so.
//!
//! `MOSAIC_TEST_KILL_ACTIONS=all` takes every moment and aftermath of each; otherwise each action is met once.

use crate::e2e::harness::{Mosaic, Remote, condition, eventually, gates, sandbox_pids, task};
use mosaic::kill::admin;
use mosaic::kill::receipt::{KillRequest, Receipts};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// Every action by the name that the audit log has, and a life in which it occurs. A record made over HTTP has its finalizer from the start.
const ACTIONS: [(&str, Life); 13] = [
    ("Resolve", Life::Delivered),
    ("EnsureSandbox", Life::Delivered),
    ("EnsureGate", Life::Delivered),
    ("StopSandbox", Life::Suspended),
    ("RemoveSandbox", Life::Delivered),
    ("TakeSnapshot", Life::Delivered),
    ("Integrate", Life::Moved),
    ("Push", Life::Delivered),
    ("Rescue", Life::Deleted),
    ("RemoveWorkspace", Life::Delivered),
    ("Archive", Life::Deleted),
    ("RemoveFinalizer", Life::Deleted),
    ("DeleteRecord", Life::Expired),
];
const MOMENTS: [Moment; 5] = [Moment::Intent, Moment::Later(3), Moment::Later(20), Moment::Later(80), Moment::Outcome];
const AFTERMATHS: [Aftermath; 3] = [Aftermath::Nothing, Aftermath::Restart, Aftermath::OlderStore];
/// Actions after which an agent may have ended otherwise than by the kill.
const LAST: [&str; 5] = ["Push", "RemoveWorkspace", "Archive", "RemoveFinalizer", "DeleteRecord"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Delivered,
    /// The base moves while its gates judge.
    Moved,
    Suspended,
    Deleted,
    Expired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Intent,
    /// So many milliseconds after the intent.
    Later(u64),
    Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    Nothing,
    Restart,
    OlderStore,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    action: &'static str,
    life: Life,
    moment: Moment,
    aftermath: Aftermath,
}

fn cases() -> Vec<Case> {
    let all = std::env::var("MOSAIC_TEST_KILL_ACTIONS").is_ok_and(|value| value == "all");
    let mut cases = Vec::new();
    for (number, (action, life)) in ACTIONS.into_iter().enumerate() {
        for (m, moment) in MOMENTS.into_iter().enumerate() {
            for (a, aftermath) in AFTERMATHS.into_iter().enumerate() {
                if all || (number % MOMENTS.len() == m && number % AFTERMATHS.len() == a) {
                    cases.push(Case { action, life, moment, aftermath });
                }
            }
        }
    }
    cases
}

/// Waits for an entry of the audit log.
fn await_entry(mosaic: &Mosaic, kind: &str, action: &str, uid: &str) {
    let started = Instant::now();
    let is_it = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap_or_default();
        entry["kind"] == kind && entry["action"] == action && entry["uid"] == uid
    };
    while !std::fs::read_to_string(mosaic.state().join("audit/up.jsonl")).unwrap_or_default().lines().any(is_it) {
        assert!(started.elapsed() < Duration::from_secs(60), "{kind} of {action} was not written: {}", mosaic.log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The agent of a case, on its way to the action.
fn begin(mosaic: &Mosaic, remote: &Remote, life: Life) -> String {
    let script = match life {
        Life::Delivered | Life::Moved | Life::Expired => "echo x > x.txt",
        Life::Suspended | Life::Deleted => "echo x > x.txt; while :; do sleep 1; done",
    };
    let mut body = task(remote, "victim", script);
    if life == Life::Expired {
        body["ttlAfterFinished"] = json!("1s");
    }
    let uid = mosaic.spawn(&body);
    let runs = |object: &Value| condition(object, "SandboxReady") == "True";
    match life {
        Life::Delivered | Life::Expired => {}
        Life::Moved => {
            await_entry(mosaic, "intent", "EnsureGate", &uid);
            remote.commit(&[("moved.txt", "moved")], "moves the base");
        }
        Life::Suspended => {
            mosaic.wait(&uid, "the agent to run", runs);
            mosaic.call("PATCH", &format!("/agents/{uid}"), Some(&json!({"suspend": true})));
        }
        Life::Deleted => {
            mosaic.wait(&uid, "the agent to run", runs);
            let (server, token) = (mosaic.state().join("server"), mosaic.state().join("token"));
            let read = |path| std::fs::read_to_string(path).unwrap().trim().to_owned();
            let (url, token) = (format!("{}/agents/{uid}", read(server)), read(token));
            // The answer waits for the end.
            std::thread::spawn(move || drop(crate::e2e::harness::http("DELETE", &url, Some(&token), None)));
        }
    }
    uid
}

/// What the record or the history says of its end; `None`: it has not ended.
fn ended(mosaic: &Mosaic, uid: &str) -> Option<String> {
    let (status, answer) = mosaic.call("GET", &format!("/agents/{uid}"), None);
    match status {
        404 => Some("gone".to_owned()),
        200 => {
            Some(answer["state"].as_str().unwrap().to_owned()).filter(|state| ["completed", "failed", "killed"].contains(&state.as_str()))
        }
        other => panic!("{other}: {answer}"),
    }
}

fn run(case: Case) {
    let mut mosaic = Mosaic::start(&[]);
    let gate_file = gates(if case.life == Life::Moved { "sleep 0.5" } else { "sleep 0.1" }, "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let hook = remote.path.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\nsleep 0.1\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uid = begin(&mosaic, &remote, case.life);
    match case.moment {
        Moment::Intent => await_entry(&mosaic, "intent", case.action, &uid),
        Moment::Later(millis) => {
            await_entry(&mosaic, "intent", case.action, &uid);
            std::thread::sleep(Duration::from_millis(millis));
        }
        Moment::Outcome => await_entry(&mosaic, "outcome", case.action, &uid),
    }
    let (store, copy) = (mosaic.state().join("mosaic.redb"), mosaic.folder.path().join("copy.redb"));
    if case.aftermath == Aftermath::OlderStore {
        // What a crash at this instant would leave.
        mosaic.signal(rustix::process::Signal::STOP);
        std::fs::copy(&store, &copy).unwrap();
        mosaic.signal(rustix::process::Signal::CONT);
    }
    let request = KillRequest { agents: vec![uid.clone()], who: "test".to_owned(), ..KillRequest::default() };
    let receipts = admin::ask(&mosaic.state(), &request).unwrap();
    let refs = remote.agent_refs();
    check_receipts(case, &receipts);
    if case.aftermath != Aftermath::Nothing {
        mosaic.sigkill();
        if case.aftermath == Aftermath::OlderStore {
            std::fs::copy(&copy, &store).unwrap();
        }
        mosaic.up();
    }
    eventually("its end", || ended(&mosaic, &uid).is_some());
    let end = ended(&mosaic, &uid).unwrap();
    // Of whom the disk took no note, an older store brings back.
    let unnoted = case.aftermath != Aftermath::Nothing && receipts.agents.iter().any(|receipt| receipt.steps.latched.is_none());
    let may_have_ended = LAST.contains(&case.action) || case.life == Life::Deleted || unnoted;
    assert!(end == "killed" || may_have_ended, "{case:?}: {end}, {receipts:?}\n{}", mosaic.log());
    mosaic.assert_nothing_left();
    std::thread::sleep(Duration::from_millis(300));
    assert!(sandbox_pids(&mosaic.state()).is_empty(), "{case:?}");
    assert_eq!(remote.agent_refs(), refs, "{case:?}: a ref moved after the receipt {receipts:?}\n{}", mosaic.log());
}

fn check_receipts(case: Case, receipts: &Receipts) {
    assert!(receipts.all_dead(), "{case:?}: {receipts:?}");
    if !LAST.contains(&case.action) && case.life != Life::Deleted {
        assert_eq!(receipts.agents.len(), 1, "{case:?}: it was alive, and must be latched: {receipts:?}");
    }
}

#[test]
fn kill_at_every_action_of_the_real_program_is_the_end() {
    let cases = cases();
    let mut failed = Vec::new();
    for case in &cases {
        let started = Instant::now();
        if std::panic::catch_unwind(|| run(*case)).is_err() {
            failed.push(*case);
        }
        println!("{case:?}: {:?}", started.elapsed());
    }
    println!("{} kills", cases.len());
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), cases.len());
}
