//! Kills while the store does not answer, of an agent of which nothing runs: it is judged, merged or pushed. What was ready to go must not go.

use crate::harness::{Mosaic, Remote, condition, eventually, gates, program, task};
use crate::valkey::server::{DURABLE, Server};
use mosaic::effect::flight::EFFECTS_PARALLEL_MAX;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

/// A controller on a store that can be stopped, with a victim whose push waits for a place: pushes to a slow remote have all of them.
struct Queued {
    server: Server,
    mosaic: Mosaic,
    remote: Remote,
    victim: String,
    /// The victim's name.
    name: String,
    /// Lets the slow remote go on.
    go: PathBuf,
}

impl Drop for Queued {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.go, "");
        self.server.signal(rustix::process::Signal::CONT);
    }
}

fn hook(remote: &Remote, name: &str, script: &str) {
    let hook = remote.path.join("hooks").join(name);
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Trees in which gates run now.
fn gate_trees(mosaic: &Mosaic) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(mosaic.state().join("gate-trees")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("tree")).collect()
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn queued(test: &str) -> Option<Queued> {
    let server = Server::start(test, &DURABLE)?;
    let flags = ["--valkey-url", &server.url(), "--valkey-durability", "aof", "--running-max", "64", "--starting-max", "16"];
    let mosaic = Mosaic::start(&flags);
    let patient = gates("while [ ! -e go ]; do sleep 0.1; done", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", patient.as_str())]);
    let victim = mosaic.spawn(&task(&remote, "victim", "echo x > x.txt"));
    eventually("the gate of the victim to run", || gate_trees(&mosaic).iter().any(|tree| tree.join("x.txt").exists()));
    let (go, begun) = (mosaic.folder.path().join("go"), mosaic.folder.path().join("begun"));
    let slow = Remote::new(mosaic.folder.path(), "slow", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let script = format!("#!/bin/sh\necho x >> {}\nwhile [ ! -e {} ]; do sleep 0.05; done\n", begun.display(), go.display());
    hook(&slow, "pre-receive", &script);
    for n in 0..EFFECTS_PARALLEL_MAX {
        mosaic.spawn(&task(&slow, &format!("slow-{n}"), &format!("echo x > file-{n}.txt")));
    }
    eventually("every place to be taken", || lines(&begun) == EFFECTS_PARALLEL_MAX);
    let tree = gate_trees(&mosaic).into_iter().find(|tree| tree.join("x.txt").exists()).expect("its gate waits");
    std::fs::write(tree.join("go"), "").unwrap();
    mosaic.wait(&victim, "the victim to have passed", |object| condition(object, "GatesPassed") == "True");
    eventually("its push to be on its way", || {
        let audit = std::fs::read_to_string(mosaic.state().join("audit/up.jsonl")).unwrap_or_default();
        audit.lines().any(|line| line.contains("\"Push\"") && line.contains(&victim))
    });
    let name = mosaic.object(&victim)["metadata"]["name"].as_str().unwrap().to_owned();
    server.signal(rustix::process::Signal::STOP);
    Some(Queued { server, mosaic, remote, victim, name, go })
}

fn kill(mosaic: &Mosaic, args: &[&str]) -> (Output, String) {
    let output = program().arg("--state").arg(mosaic.state()).arg("kill").args(args).stdin(Stdio::null()).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, told)
}

/// After the receipt every place is free again, and nothing goes to the remote, whatever the store does then.
fn nothing_goes_out(case: &Queued, told: &str) {
    assert!(case.remote.agent_refs().is_empty(), "{told}");
    std::fs::write(&case.go, "").unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(case.remote.agent_refs().is_empty(), "it was pushed after its receipt: {told}\n{}", case.mosaic.log());
    case.server.signal(rustix::process::Signal::CONT);
    eventually("the store to answer", || case.mosaic.call("GET", "/agents", None).0 == 200);
    case.mosaic.wait(&case.victim, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    case.mosaic.assert_nothing_left();
    assert!(case.remote.agent_refs().is_empty(), "{told}");
}

#[test]
fn push_that_waits_for_its_turn_is_not_begun_after_a_kill_of_everything() {
    let Some(case) = queued("kill::stuck_store::push_that_waits_for_its_turn_is_not_begun_after_a_kill_of_everything") else { return };
    let (_, told) = kill(&case.mosaic, &["--all"]);
    nothing_goes_out(&case, &told);
}

#[test]
fn agent_of_which_nothing_runs_is_killed_by_its_name_while_the_store_is_stuck() {
    let Some(case) = queued("kill::stuck_store::agent_of_which_nothing_runs_is_killed_by_its_name_while_the_store_is_stuck") else {
        return;
    };
    let (output, told) = kill(&case.mosaic, &[&case.name]);
    assert!(output.status.success() && told.contains("(dead-verified"), "{told}");
    nothing_goes_out(&case, &told);
}
