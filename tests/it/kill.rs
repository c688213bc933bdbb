//! The kill lane, from the outside: the process table says who lives, and the receipts must agree with it.

mod actions;
mod blind;
mod conditions;
mod damaged;
mod latch;

use crate::e2e::harness::{Mosaic, Remote, condition, gates, program, sandbox_pids, task};
use mosaic::kill::matrix::{self, Mode};
use serde_json::Value;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

/// No kill may take longer, whatever is broken.
pub const KILL_MAX: Duration = Duration::from_secs(5);

/// A script that ignores every signal that can be ignored, with a child that has left its session.
pub const STUBBORN: &str = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &) ; while :; do sleep 1; done";

/// A controller with so many stubborn agents that run.
pub fn with_agents(flags: &[&str], count: usize) -> (Mosaic, Remote, Vec<String>) {
    let mosaic = Mosaic::start(flags);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uids: Vec<String> = (0..count).map(|n| mosaic.spawn(&task(&remote, &format!("victim-{n:03}"), STUBBORN))).collect();
    for uid in &uids {
        mosaic.wait(uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    }
    assert_eq!(sandbox_pids(&mosaic.state()).len(), count);
    (mosaic, remote, uids)
}

/// Runs a command of the program on this state folder.
pub fn mosaic_cli(mosaic: &Mosaic, args: &[&str]) -> (Output, Duration) {
    let started = Instant::now();
    let output = program().arg("--state").arg(mosaic.state()).args(args).stdin(Stdio::null()).output().unwrap();
    (output, started.elapsed())
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Kills everything from the command line; asserts that nothing lives the moment it returns, or `KILL_MAX` after it began.
#[track_caller]
pub fn kill_all_and_look(mosaic: &Mosaic, count: usize) -> String {
    let state = mosaic.state();
    let watched = std::thread::spawn({
        let state = state.clone();
        move || {
            let started = Instant::now();
            while !sandbox_pids(&state).is_empty() && started.elapsed() < KILL_MAX * 3 {
                std::thread::sleep(Duration::from_millis(5));
            }
            started.elapsed()
        }
    });
    let (output, _) = mosaic_cli(mosaic, &["kill", "--all", "--reason", "drill"]);
    let all_dead_after = watched.join().unwrap();
    assert!(all_dead_after < KILL_MAX, "the observer saw something live for {all_dead_after:?}: {}", text(&output));
    let told = text(&output);
    assert_eq!(told.matches("dead-verified").count(), count, "{told}");
    println!("{count} agents: the observer saw none live after {all_dead_after:?}");
    told
}

/// The view of an agent.
pub fn view(mosaic: &Mosaic, uid: &str) -> Value {
    let (status, answer) = mosaic.call("GET", &format!("/agents/{uid}"), None);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn kill_answers_with_a_receipt_that_the_process_table_agrees_with() {
    let (mosaic, _remote, uids) = with_agents(&[], 2);
    let (status, answer) = mosaic.call("POST", &format!("/agents/{}/kill", uids[0]), None);
    assert_eq!((status, &answer["receipt"]["verdict"], &answer["verified"]), (200, &"dead-verified".into(), &true.into()), "{answer}");
    let steps = &answer["receipt"]["steps"];
    let step = |name: &str| steps[name].as_u64().unwrap_or(u64::MAX);
    assert!(step("signalled") <= step("dead") && step("dead") < 5000 && step("latched") < 5000, "{answer}");
    assert_eq!(sandbox_pids(&mosaic.state()).len(), 1, "the other one goes on");
    let (output, _) = mosaic_cli(&mosaic, &["kill", view(&mosaic, &uids[1])["name"].as_str().unwrap()]);
    assert!(output.status.success() && text(&output).contains("dead-verified"), "{}", text(&output));
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    for uid in &uids {
        mosaic.wait(uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    }
    mosaic.assert_nothing_left();
    let (output, _) = mosaic_cli(&mosaic, &["audit", "verify"]);
    assert!(output.status.success(), "{}", text(&output));
    let written = std::fs::read_to_string(mosaic.state().join("audit/kill.jsonl")).unwrap();
    assert_eq!(written.matches("dead-verified: SIGKILL").count(), 2, "{written}");
}

#[test]
fn finished_and_unknown_agents_have_nothing_to_kill() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uid = mosaic.spawn(&task(&remote, "done", "echo x > x.txt"));
    mosaic.wait_completed(&uid);
    let name = view(&mosaic, &uid)["name"].as_str().unwrap().to_owned();
    let (output, _) = mosaic_cli(&mosaic, &["kill", &name]);
    assert!(output.status.success() && text(&output).contains("nothing to kill"), "{}", text(&output));
    assert_eq!(view(&mosaic, &uid)["state"], "completed");
    let (output, _) = mosaic_cli(&mosaic, &["kill", "nobody"]);
    assert!(output.status.code() == Some(1) && text(&output).contains("nobody"), "{}", text(&output));
    let (output, _) = mosaic_cli(&mosaic, &["kill", "--all"]);
    assert!(output.status.success() && text(&output).contains("nothing to kill"), "{}", text(&output));
}

#[test]
fn killed_from_outside_the_store_stays_killed_when_an_older_store_comes_back() {
    let (mut mosaic, remote, uids) = with_agents(&[], 1);
    mosaic.sigkill();
    let (store, copy) = (mosaic.state().join("mosaic.redb"), mosaic.folder.path().join("copy.redb"));
    std::fs::copy(&store, &copy).unwrap();
    // Nobody else is there: the command line acts by itself.
    let (output, _) = mosaic_cli(&mosaic, &["kill", &uids[0]]);
    assert!(output.status.success() && text(&output).contains("dead-verified"), "{}", text(&output));
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    mosaic.up();
    mosaic.wait(&uids[0], "the record to say killed", |object| object["status"]["phase"] == "Killed");
    mosaic.assert_nothing_left();
    mosaic.sigkill();
    std::fs::copy(&copy, &store).unwrap();
    mosaic.up();
    mosaic.wait(&uids[0], "the older record to say killed", |object| object["status"]["phase"] == "Killed");
    assert!(sandbox_pids(&mosaic.state()).is_empty() && remote.agent_refs().is_empty());
    mosaic.assert_nothing_left();
}

#[test]
fn kill_all_holds_everything_until_it_is_released_and_restarts_nothing() {
    let (mosaic, remote, uids) = with_agents(&[], 2);
    let (output, _) = mosaic_cli(&mosaic, &["kill", "--all", "--hold", "--reason", "drill"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    let (_, halts) = mosaic.call("GET", "/halts", None);
    let halts = halts["items"].as_array().unwrap().clone();
    assert_eq!(halts.len(), 1, "one kill-all is one halt: {halts:?}");
    let (status, refused) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, "held", "true")));
    assert_eq!(status, 409, "{refused}");
    let (output, _) = mosaic_cli(&mosaic, &["halt", "release", halts[0]["name"].as_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    // The halt goes once everything that it meant is latched.
    crate::e2e::harness::eventually("the halt to go", || mosaic.call("GET", "/halts", None).1["items"] == serde_json::json!([]));
    let later = mosaic.spawn(&task(&remote, "later", "echo x > later.txt"));
    mosaic.wait_completed(&later);
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    for uid in &uids {
        assert_eq!(view(&mosaic, uid)["state"], "killed");
    }
    assert_eq!(remote.agent_refs().len(), 1, "only what was spawned later was pushed");
}

#[test]
fn security_page_has_the_matrix_of_the_code() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    let row = |name: &str, cells: &mut dyn Iterator<Item = String>| format!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    let head = row("Path", &mut Mode::ALL.iter().map(|mode| mode.as_str().to_owned()));
    assert!(page.contains(&head), "{head}");
    for path in matrix::Path::ALL {
        let row = row(path.as_str(), &mut Mode::ALL.iter().map(|mode| matrix::words(matrix::reach(*mode, path))));
        assert!(page.contains(&row), "{row}");
    }
}
