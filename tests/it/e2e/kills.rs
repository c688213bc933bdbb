//! Kills at awkward moments: nothing runs, nothing is pushed later, and the answer comes in time.

use super::harness::{Mosaic, Remote, condition, gates, program, task};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

#[test]
fn kill_during_a_push_breaks_it_off_and_nothing_arrives_later() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let (begun, done) = (mosaic.folder.path().join("begun"), mosaic.folder.path().join("done"));
    let hook = remote.path.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\nsleep 8\ntouch {}\n", begun.display(), done.display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uid = mosaic.spawn(&task(&remote, "push", "echo x > x.txt"));
    mosaic.wait(&uid, "the push to reach the hook", |_| begun.exists());
    let (status, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), None);
    assert_eq!((status, answer["verified"].as_bool()), (200, Some(true)), "{answer}");
    assert!(remote.agent_refs().is_empty());
    mosaic.assert_nothing_left();
    // The hook's time is over: had it gone on, it would have said so and the ref would be there.
    std::thread::sleep(std::time::Duration::from_secs(9));
    assert!(!done.exists(), "the remote's side was broken off too");
    assert!(remote.agent_refs().is_empty(), "{:?}", remote.agent_refs());
    assert_eq!(mosaic.object(&uid)["status"]["phase"], "Killed");
}

/// What keeps the controller from doing anything about a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Stopped,
    Dead,
}

/// The push is in the remote's hook, which has everything; the controller is away; the command line kills the agent by itself.
fn push_is_ended_without_a_controller(away: Away) {
    let mut mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let (begun, done) = (mosaic.folder.path().join("begun"), mosaic.folder.path().join("done"));
    let hook = remote.path.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\nsleep 4\ntouch {}\n", begun.display(), done.display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uid = mosaic.spawn(&task(&remote, "push", "echo x > x.txt"));
    mosaic.wait(&uid, "the push to reach the hook", |_| begun.exists());
    let signal = |mosaic: &Mosaic, signal| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(mosaic.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    match away {
        Away::Stopped => signal(&mosaic, rustix::process::Signal::STOP),
        Away::Dead => mosaic.sigkill(),
    }
    let (output, told) = command_line_kill(&mosaic, &uid);
    assert!(output.status.success() && told.contains("dead-verified") && told.contains("a push of it was under way"), "{away:?}: {told}");
    // The hook's time is over: had it gone on, the ref would be there.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(!done.exists() && remote.agent_refs().is_empty(), "{away:?}: {:?}", remote.agent_refs());
    match away {
        Away::Stopped => signal(&mosaic, rustix::process::Signal::CONT),
        Away::Dead => mosaic.up(),
    }
    mosaic.wait(&uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    mosaic.assert_nothing_left();
    assert!(remote.agent_refs().is_empty(), "{away:?}: {:?}", remote.agent_refs());
    // Nothing of it stands in the way of others.
    let other = mosaic.spawn(&task(&remote, "other", "echo y > y.txt"));
    mosaic.wait_completed(&other);
}

fn command_line_kill(mosaic: &Mosaic, uid: &str) -> (std::process::Output, String) {
    let output = program().arg("--state").arg(mosaic.state()).args(["kill", uid]).stdin(std::process::Stdio::null()).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, told)
}

#[test]
fn push_of_a_killed_agent_ends_although_the_controller_does_not_move() {
    push_is_ended_without_a_controller(Away::Stopped);
}

#[test]
fn push_of_a_killed_agent_ends_although_the_controller_is_dead() {
    push_is_ended_without_a_controller(Away::Dead);
}

#[test]
fn sandbox_whose_folder_was_deleted_is_neither_doubled_nor_out_of_reach() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uid = mosaic.spawn(&task(&remote, "folder", "echo run >> runs.txt; sleep 613"));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let runs = std::fs::read_dir(mosaic.state().join("runs")).unwrap().flatten();
    let run = runs.map(|entry| entry.path()).find(|path| path.is_dir()).expect("a run");
    std::fs::remove_dir_all(run).unwrap();
    // Something wakes a pass, which looks at what is left.
    let (status, answer) = mosaic.call("PATCH", &format!("/agents/{uid}"), Some(&json!({"priority": 7})));
    assert_eq!(status, 200, "{answer}");
    mosaic.wait(&uid, "the pass", |object| object["status"]["observedGeneration"] == 2);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let sleepers = mosaic.leftovers().into_iter().filter(|left| left.contains("sleep 613") && !left.contains("sh -ec")).count();
    assert_eq!(sleepers, 1, "one sandbox runs, and no other beside it");
    let (status, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), None);
    assert_eq!((status, answer["verified"].as_bool()), (200, Some(true)), "{answer}");
    assert_eq!(answer["receipt"]["message"], "SIGKILL; its process namespace was seen empty", "the lane is not blinded either: {answer}");
    assert_eq!(mosaic.leftovers(), Vec::<String>::new(), "verified means gone");
}

#[test]
fn kill_that_comes_too_late_for_the_push_says_what_the_remote_has() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    // The ref is updated, and the reply to the push is kept back.
    let hook = remote.path.join("hooks/post-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\nsleep 20\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uid = mosaic.spawn(&task(&remote, "late", "echo x > x.txt"));
    mosaic.wait(&uid, "the ref", |_| !remote.agent_refs().is_empty());
    let (status, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), None);
    assert_eq!((status, answer["verified"].as_bool()), (200, Some(true)), "{answer}");
    let object = mosaic.object(&uid);
    assert_eq!(object["status"]["phase"], "Killed");
    let sha = object["status"]["push"]["sha"].as_str().unwrap_or_default();
    assert_eq!(remote.agent_refs().values().collect::<Vec<_>>(), [sha], "{object:#}");
}
