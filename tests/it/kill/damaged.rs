//! A kill without a controller, in a state folder that somebody has damaged: what the kernel shows is killed all the same, and what would not
//! last is never called done.

use super::{KILL_MAX, mosaic_cli, text, with_agents};
use crate::e2e::harness::{Mosaic, eventually, task};
use mosaic::inside::system;
use mosaic::kill::admin;
use mosaic::kill::receipt::KillRequest;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn folders(mosaic: &Mosaic) -> Vec<PathBuf> {
    let entries = fs::read_dir(mosaic.state().join("runs")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

/// PID 1 of each sandbox. Who damages run folders hides them from what looks there.
fn living(pids: &[rustix::process::Pid]) -> usize {
    pids.iter().filter(|pid| fs::exists(format!("/proc/{}", pid.as_raw_nonzero())).unwrap() && !is_zombie(**pid)).count()
}

fn is_zombie(pid: rustix::process::Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| stat.contains(") Z "))
}

fn damaged_and_killed(args: &[&str], damage: impl Fn(&Path)) {
    let (mut mosaic, _remote, _) = with_agents(&[], 2);
    let pids = crate::e2e::harness::sandbox_pids(&mosaic.state());
    mosaic.sigkill();
    folders(&mosaic).iter().for_each(|folder| damage(folder));
    assert_eq!(living(&pids), 2);
    let names = names(&mosaic);
    let args: Vec<&str> = args
        .iter()
        .map(|arg| match *arg {
            "FIRST" => names[0].as_str(),
            "SECOND" => names[1].as_str(),
            other => other,
        })
        .collect();
    let (output, took) = mosaic_cli(&mosaic, &args);
    assert_eq!(living(&pids), 0, "{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
    assert!(took < KILL_MAX, "{took:?}");
    mosaic.up();
    mosaic.assert_nothing_left();
}

/// Names of the agents, by their trees.
fn names(mosaic: &Mosaic) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(mosaic.state().join("trees")).unwrap() {
        let meta: serde_json::Value = serde_json::from_slice(&fs::read(entry.unwrap().path().join("meta.json")).unwrap()).unwrap();
        found.push(meta["agent"].as_str().unwrap().trim_start_matches("default/").to_owned());
    }
    found.sort();
    found
}

fn unreadable(folder: &Path) {
    fs::write(folder.join("spec.json"), "{\"a\"").unwrap();
}

fn gone(folder: &Path) {
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn agents_whose_intent_cannot_be_read_are_killed_by_name_and_all_at_once() {
    damaged_and_killed(&["kill", "FIRST", "SECOND"], unreadable);
    damaged_and_killed(&["kill", "--all"], unreadable);
}

#[test]
fn agents_whose_run_folder_is_gone_are_killed_by_name_and_all_at_once() {
    damaged_and_killed(&["kill", "FIRST", "SECOND"], gone);
    damaged_and_killed(&["kill", "--all"], gone);
}

#[test]
fn a_kill_that_nothing_remembers_is_not_called_done() {
    let (mut mosaic, _remote, _) = with_agents(&[], 1);
    let pids = crate::e2e::harness::sandbox_pids(&mosaic.state());
    mosaic.sigkill();
    let latch = mosaic.state().join("latch");
    let before = fs::read(&latch).unwrap();
    fs::remove_file(&latch).unwrap();
    fs::create_dir(&latch).unwrap();
    let (output, _) = mosaic_cli(&mosaic, &["kill", "--all"]);
    assert_eq!(living(&pids), 0);
    let text = text(&output);
    assert!(!output.status.success() && text.contains("may begin anew") && !text.contains("the latch keeps it"), "{text}");
    // Mended and killed again it is done.
    fs::remove_dir(&latch).unwrap();
    fs::write(&latch, before).unwrap();
    let (output, _) = mosaic_cli(&mosaic, &["kill", "--all"]);
    assert!(output.status.success());
    mosaic.up();
    mosaic.assert_nothing_left();
}

#[test]
fn nothing_is_made_under_a_kill_of_everything_that_the_store_does_not_know_yet() {
    let (mut mosaic, remote, _) = with_agents(&[], 1);
    mosaic.sigkill();
    let (output, _) = mosaic_cli(&mosaic, &["kill", "--all"]);
    assert!(output.status.success());
    mosaic.up();
    let (mut n, started) = (0, std::time::Instant::now());
    loop {
        n += 1;
        let (status, answer) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, &format!("after-{n}"), "echo done > done.txt")));
        if status == 201 {
            let uid = answer["agentId"].as_str().unwrap().to_owned();
            mosaic.wait_completed(&uid);
            return;
        }
        assert_eq!((status, answer["reason"].as_str()), (409, Some("Halted")), "{answer}");
        assert!(started.elapsed() < KILL_MAX * 4, "it never ends");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn stray_files_in_the_state_folder_are_nobodys_agents() {
    let mut mosaic = Mosaic::start(&[]);
    mosaic.sigterm();
    for folder in ["trees", "gate-trees", "checkouts", "prepared", "runs", "blank"] {
        fs::create_dir_all(mosaic.state().join(folder)).unwrap();
        fs::write(mosaic.state().join(folder).join("stray"), "x").unwrap();
    }
    mosaic.up();
    eventually("it to serve", || mosaic.is_ready());
    let (output, _) = mosaic_cli(&mosaic, &["kill", "--all"]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_server_that_does_not_move_is_not_waited_for() {
    let (mosaic, _remote, _) = with_agents(&[], 1);
    let pid = rustix::process::Pid::from_raw(i32::try_from(mosaic.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let (output, took) = mosaic_cli(&mosaic, &["health"]);
    assert!(output.status.code() == Some(1) && took < KILL_MAX, "{took:?}: {}", text(&output));
    // The receipts are not held back for the records.
    let (output, took) = mosaic_cli(&mosaic, &["kill", "--all"]);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert!(output.status.success() && took < KILL_MAX, "{took:?}: {}", text(&output));
}

#[test]
fn a_run_whose_intent_is_still_being_written_is_waited_for_and_one_without_any_is_told() {
    let mosaic = Mosaic::start(&[]);
    let folder = mosaic.state().join("runs/0123456789abcdef");
    fs::create_dir_all(&folder).unwrap();
    let lock = fs::File::options().write(true).create_new(true).open(folder.join("lock")).unwrap();
    system::lock_file(lock.as_fd()).unwrap();
    let kill = || admin::ask(&mosaic.state(), &KillRequest { all: true, ..KillRequest::default() }).unwrap();
    let receipts = kill();
    assert!(receipts.unknown.iter().any(|why| why.contains("its intent cannot be read")), "{receipts:?}");
    let maker = std::thread::spawn(move || {
        // A busy disk.
        std::thread::sleep(Duration::from_millis(300));
        drop(lock);
    });
    let receipts = kill();
    assert!(receipts.all_dead() && receipts.unknown.is_empty(), "{receipts:?}");
    maker.join().unwrap();
}
