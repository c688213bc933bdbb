//! Kill-all while something is broken. Each condition: everything dead within five seconds by the process table, and honest receipts.
//!
//! `MOSAIC_TEST_KILL=5:200` repeats each five times with 200 agents.

use super::{KILL_MAX, kill_all_and_look, mosaic_cli, text, with_agents};
use crate::e2e::harness::{Mosaic, Remote, condition, gates, sandbox_pids, task};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How often, and how many agents.
fn size() -> (usize, usize) {
    let wanted = std::env::var("MOSAIC_TEST_KILL").ok();
    let parsed = wanted.as_deref().and_then(|text| text.split_once(':')).and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parsed.unwrap_or((1, 6))
}

fn flags(count: usize) -> [String; 4] {
    ["--running-max".to_owned(), count.to_string(), "--starting-max".to_owned(), "16".to_owned()]
}

/// Runs a kill-all in a condition, as often as wanted; what is broken is mended by `mend`, and then the records say killed.
fn in_condition<T>(name: &str, breaks: impl Fn(&mut Mosaic) -> T, mends: impl Fn(&mut Mosaic, T)) {
    let (rounds, count) = size();
    for round in 0..rounds {
        let flags = flags(count);
        let (mut mosaic, remote, uids) = with_agents(&flags.each_ref().map(String::as_str), count);
        let broken = breaks(&mut mosaic);
        println!("{name}, round {round}");
        kill_all_and_look(&mosaic, count);
        mends(&mut mosaic, broken);
        crate::e2e::harness::eventually("the front door to have room", || mosaic.is_ready());
        for uid in &uids {
            mosaic.wait(uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
        }
        assert!(sandbox_pids(&mosaic.state()).is_empty() && remote.agent_refs().is_empty());
        mosaic.assert_nothing_left();
    }
}

#[test]
fn kill_all_as_usual() {
    in_condition("as usual", |_| (), |_, ()| ());
}

#[test]
fn kill_all_without_a_controller() {
    in_condition("controller dead", Mosaic::sigkill, |mosaic, ()| mosaic.up());
}

#[test]
fn kill_all_while_the_controller_does_not_move() {
    in_condition(
        "controller stopped: store, API, workers and lane stuck",
        |mosaic| mosaic.signal(rustix::process::Signal::STOP),
        |mosaic, ()| mosaic.signal(rustix::process::Signal::CONT),
    );
}

#[test]
fn kill_all_while_every_connection_of_the_server_is_taken() {
    let flood = |mosaic: &mut Mosaic| -> Vec<TcpStream> {
        let server = std::fs::read_to_string(mosaic.state().join("server")).unwrap();
        let address = server.trim().trim_start_matches("http://").to_owned();
        (0..400).filter_map(|_| TcpStream::connect(&address).ok()).collect()
    };
    in_condition("API flooded", flood, |_, connections| drop(connections));
}

/// A file system of its own under the state folder, which can be filled or lost for writing.
struct Disk(std::path::PathBuf);

impl Disk {
    /// Mounts a fresh one at `place`; `None`: this machine cannot.
    fn mount(image: &Path, place: &Path) -> Option<Self> {
        let run = |program: &str, args: &[&str]| Command::new(program).args(args).output().is_ok_and(|out| out.status.success());
        let file = std::fs::File::create(image).unwrap();
        file.set_len(256 << 20).unwrap();
        std::fs::create_dir_all(place).unwrap();
        let (image, target) = (image.to_str().unwrap(), place.to_str().unwrap());
        (run("mkfs.ext4", &["-q", "-F", image]) && run("mount", &["-o", "loop", image, target])).then(|| Self(place.to_owned()))
    }

    /// Takes every further write back, as the kernel does after an error of the device.
    fn make_read_only(&self) {
        let out = Command::new("mount").args(["-o", "remount,abort"]).arg(&self.0).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(std::fs::write(self.0.join("probe"), b"x").is_err(), "nothing can be written");
    }
}

/// Nobody writes to a frozen file system: who tries cannot even be killed. Thawed with this value, or by its own clock.
struct Freeze {
    thawed: std::sync::Arc<std::sync::Mutex<bool>>,
    place: std::path::PathBuf,
}

impl Freeze {
    /// Longest time that anything is frozen, whatever becomes of the test.
    const TIME_MAX: Duration = Duration::from_secs(40);

    /// `None`: this machine cannot.
    fn of(disk: &Disk) -> Option<Self> {
        let frozen = Command::new("fsfreeze").arg("--freeze").arg(&disk.0).output().is_ok_and(|out| out.status.success());
        let freeze = Self { thawed: std::sync::Arc::default(), place: disk.0.clone() };
        let late = Self { thawed: freeze.thawed.clone(), place: freeze.place.clone() };
        std::thread::spawn(move || {
            std::thread::sleep(Self::TIME_MAX);
            drop(late);
        });
        frozen.then_some(freeze)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        let mut thawed = self.thawed.lock().unwrap();
        if !std::mem::replace(&mut *thawed, true) {
            let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.place).output();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A controller whose state folder is a file system of its own.
/// `check` sees what the command said; where the disk can be written to after `mends`, the records must say killed.
fn on_its_own_disk(test: &str, breaks: impl Fn(&Disk, &Mosaic), mends: impl Fn(&Disk, &Mosaic), check: impl Fn(&str)) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    let Some(disk) = Disk::mount(&folder.path().join("image"), &place) else {
        return crate::skip::skip(test, "no file system can be mounted from a file here");
    };
    let (_, count) = size();
    let state = place.join("state");
    let flags = flags(count);
    let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
    all.extend(["--state", state.to_str().unwrap()]);
    let (mosaic, _remote, uids) = with_agents(&all, count);
    breaks(&disk, &mosaic);
    check(&kill_all_and_look(&mosaic, count));
    mends(&disk, &mosaic);
    if std::fs::write(disk.0.join("probe"), b"x").is_ok() {
        for uid in &uids {
            mosaic.wait(uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
        }
        mosaic.assert_nothing_left();
    }
    drop(mosaic);
}

#[test]
fn kill_all_on_a_full_disk() {
    let fill = |disk: &Disk, _: &Mosaic| {
        let mut block = vec![0_u8; 1 << 20];
        let mut file = std::fs::File::create(disk.0.join("filler")).unwrap();
        while !block.is_empty() {
            if std::io::Write::write_all(&mut file, &block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
    };
    let free = |disk: &Disk, _: &Mosaic| std::fs::remove_file(disk.0.join("filler")).unwrap();
    on_its_own_disk("kill::conditions::kill_all_on_a_full_disk", fill, free, |_| ());
}

#[test]
fn kill_all_while_store_and_latch_can_only_be_read() {
    let test = "kill::conditions::kill_all_while_store_and_latch_can_only_be_read";
    let never = |_: &Disk, _: &Mosaic| {};
    on_its_own_disk(
        test,
        |disk, _| disk.make_read_only(),
        never,
        |told| {
            assert!(told.contains("not latched on the disk") && told.contains("not told yet"), "{told}");
        },
    );
}

#[test]
fn agent_that_waits_for_a_frozen_file_system_is_said_to_live_until_it_is_seen_dead() {
    let test = "kill::conditions::agent_that_waits_for_a_frozen_file_system_is_said_to_live_until_it_is_seen_dead";
    let mut mosaic = Mosaic::prepare(&[]);
    let trees = mosaic.state().join("trees");
    std::fs::create_dir_all(&trees).unwrap();
    std::fs::set_permissions(mosaic.state(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let Some(disk) = Disk::mount(&mosaic.folder.path().join("image"), &trees) else {
        return crate::skip::skip(test, "no file system can be mounted from a file here");
    };
    mosaic.up();
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uid = mosaic.spawn(&task(&remote, "writer", "while :; do echo x > x.txt; sleep 0.1; done"));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let Some(freeze) = Freeze::of(&disk) else { return crate::skip::skip(test, "fsfreeze does not work here") };
    crate::e2e::harness::eventually("the agent to wait for the disk", || mosaic.leftovers().iter().any(|left| waits_for_disk(left)));
    let (output, took) = mosaic_cli(&mosaic, &["kill", &uid]);
    let told = text(&output);
    assert!(took < KILL_MAX * 3, "{took:?}: {told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("(failed") && told.contains("still live"), "{told}");
    assert_eq!(sandbox_pids(&mosaic.state()).len(), 1, "it was said to live, and does: {told}");
    drop(freeze);
    crate::e2e::harness::eventually("nothing to live", || sandbox_pids(&mosaic.state()).is_empty());
    let (output, _) = mosaic_cli(&mosaic, &["kill", &uid]);
    assert!(output.status.success(), "{}", text(&output));
    mosaic.wait(&uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    drop(mosaic);
}

/// Whether a line of `Mosaic::leftovers` names a process that waits for a disk and cannot be interrupted.
fn waits_for_disk(left: &str) -> bool {
    let folder = left.strip_prefix("process ").and_then(|rest| rest.split_once(':')).map(|(folder, _)| folder);
    let stat = folder.and_then(|folder| std::fs::read_to_string(format!("{folder}/stat")).ok()).unwrap_or_default();
    stat.contains(") D ")
}

#[test]
fn kill_all_meets_what_is_being_started() {
    let (_, count) = size();
    let flags = flags(count * 4);
    let (mosaic, remote, _) = with_agents(&flags.each_ref().map(String::as_str), 1);
    for n in 0..count * 2 {
        mosaic.spawn(&crate::e2e::harness::task(&remote, &format!("late-{n}"), super::STUBBORN));
    }
    let (output, took) = mosaic_cli(&mosaic, &["kill", "--all"]);
    assert!(took < KILL_MAX * 3, "{took:?}: {}", text(&output));
    crate::e2e::harness::eventually("nothing to live", || sandbox_pids(&mosaic.state()).is_empty());
    mosaic.assert_nothing_left();
    let (_, all) = mosaic.call("GET", "/agents", None);
    let alive = all["items"].as_array().unwrap().iter().filter(|agent| agent["state"] != "killed").count();
    assert_eq!(alive, 0, "{all}");
    assert!(remote.agent_refs().is_empty());
}
