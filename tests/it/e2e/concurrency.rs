//! Ten agents at once, on one repository and on ten: every ref holds exactly its agent's change.

use super::harness::{Mosaic, Remote, gates, task};
use std::time::Instant;

fn script(number: usize) -> String {
    format!(
        "echo change-{number} > file-{number}.txt; echo done-{number}; printf '{{\"summary\":\"wrote {number}\"}}' > /mosaic/out/result.json"
    )
}

fn assert_exact_change(remote: &Remote, uid_ref: &str, number: usize) {
    let changed = remote.git(&["diff", "--name-status", "main", uid_ref]);
    assert_eq!(changed.trim(), format!("A\tfile-{number}.txt"), "{uid_ref}");
    assert_eq!(remote.git(&["show", &format!("{uid_ref}:file-{number}.txt")]), format!("change-{number}\n"));
    assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{uid_ref}")]).trim(), "1");
}

#[test]
fn ten_agents_at_once_on_one_repository_each_deliver_exactly_their_change() {
    let mosaic = Mosaic::start(&["--running-max", "10"]);
    let gate_file = gates("ls file-*.txt", "true");
    let remote = Remote::new(mosaic.folder.path(), "one", &[(".mosaic/gates.toml", gate_file.as_str()), ("README", "hello\n")]);
    let started = Instant::now();
    let uids: Vec<String> = (0..10).map(|n| mosaic.spawn(&task(&remote, &format!("task-{n}"), &script(n)))).collect();
    for (number, uid) in uids.iter().enumerate() {
        let object = mosaic.wait_completed(uid);
        let push = &object["status"]["push"];
        let name = push["ref"].as_str().unwrap();
        assert_eq!(remote.refs().get(name).map(String::as_str), push["sha"].as_str(), "{object:#}");
        assert_exact_change(&remote, name, number);
    }
    assert_eq!(remote.agent_refs().len(), 10);
    report("ten agents on one repository", &mosaic, started);
    mosaic.assert_nothing_left();
}

#[test]
fn ten_agents_on_ten_repositories_all_complete() {
    let mosaic = Mosaic::start(&["--running-max", "10"]);
    let gate_file = gates("ls file-*.txt", "true");
    let files = [(".mosaic/gates.toml", gate_file.as_str())];
    let remotes: Vec<Remote> = (0..10).map(|n| Remote::new(mosaic.folder.path(), &format!("r{n}"), &files)).collect();
    let started = Instant::now();
    let spawn = |(n, remote): (usize, &Remote)| mosaic.spawn(&task(remote, &format!("task-{n}"), &script(n)));
    let uids: Vec<String> = remotes.iter().enumerate().map(spawn).collect();
    for (number, uid) in uids.iter().enumerate() {
        let object = mosaic.wait_completed(uid);
        let refs = remotes[number].agent_refs();
        assert_eq!(refs.len(), 1, "{refs:?}");
        assert_exact_change(&remotes[number], object["status"]["push"]["ref"].as_str().unwrap(), number);
    }
    report("ten agents on ten repositories", &mosaic, started);
    mosaic.assert_nothing_left();
}

/// Prints what the controller used: for people, never asserted on a shared machine.
fn report(what: &str, mosaic: &Mosaic, started: Instant) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mosaic.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", mosaic.pid())).unwrap();
    let fields: Vec<u64> = stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // utime and stime are the 14th and 15th fields of the line; the state letter does not parse.
    let ticks = fields[10] + fields[11];
    let seconds = started.elapsed().as_secs_f64();
    let load = ticks as f64 / 100.0 / seconds * 100.0;
    println!(
        "{what}: {seconds:.1} s, controller's processor {load:.0} % of one core, {}",
        peak.split_whitespace().collect::<Vec<_>>().join(" ")
    );
}
