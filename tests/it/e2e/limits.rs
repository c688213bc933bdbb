//! Limits through the whole program: the reason in the record, a neighbour that completes, and a host without control groups.

use super::harness::{Mosaic, Remote, gates, program, task};
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The 99th percentile of the time that the API takes to show all agents, while something holds. Printed, never asserted.
fn api_p99(mosaic: &Mosaic, what: &str, samples: usize) {
    let mut times: Vec<Duration> = (0..samples)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(mosaic.call("GET", "/agents", None).0, 200);
            started.elapsed()
        })
        .collect();
    times.sort();
    println!("GET /agents {what}: median {:?}, p99 {:?} of {samples}", times[samples / 2], times[samples * 99 / 100]);
}

#[test]
fn agent_over_its_limits_fails_with_that_reason_and_its_neighbour_completes() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    api_p99(&mosaic, "without bombs", 2000);
    let bomb = |name: &str, script: &str| {
        let mut body = task(&remote, name, script);
        body["maxRetries"] = json!(0);
        body["sandbox"] = json!({"memory": "256Mi", "pids": 64, "disk": "64Mi", "cpu": "500m"});
        mosaic.spawn(&body)
    };
    let bombs = [
        ("memory", bomb("memory", "sleep 1; exec python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'")),
        ("pids", bomb("pids", "exec python3 -c 'import os\nwhile True:\n try: os.fork()\n except OSError: pass'")),
        ("disk", bomb("disk", "n=0; while :; do head -c 1000000 /dev/zero > f$n; n=$((n+1)); sleep 0.05; done")),
    ];
    let neighbour = mosaic.spawn(&task(&remote, "neighbour", "sleep 1; echo x > x.txt"));
    api_p99(&mosaic, "with a hog, a fork bomb and a full disk", 2000);
    mosaic.wait_completed(&neighbour);
    for (limit, uid) in bombs {
        let object = mosaic.wait_ended(&uid);
        assert_eq!(object["status"]["reason"], "LimitExceeded", "{object:#}");
        let message = object["status"]["message"].as_str().unwrap();
        assert!(message.contains(&format!("{limit} limit")), "{message}");
        let isolation = object["status"]["sandbox"]["isolation"].to_string();
        assert!(isolation.contains("memory:kernel") && isolation.contains("disk:watchdog"), "{isolation}");
    }
    let described = program().args(["describe", "--state"]).arg(mosaic.state()).arg(&neighbour).output().unwrap();
    let text = String::from_utf8_lossy(&described.stdout).into_owned();
    assert!(text.contains("memory:kernel"), "{text}{}", String::from_utf8_lossy(&described.stderr));
    assert_eq!(remote.agent_refs().len(), 1);
    mosaic.assert_nothing_left();
}

#[test]
fn host_without_control_groups_is_refused_with_what_would_help() {
    let folder = tempfile::tempdir().unwrap();
    let covered = |flags: &[&str]| {
        let mosaic = program().get_program().to_owned();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "umount -R -l /sys/fs/cgroup && exec \"$0\" \"$@\""]).arg(mosaic);
        command.args(["up", "--driver", "process", "--listen", "127.0.0.1:0", "--state"]).arg(folder.path().join("state")).args(flags);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let refused = covered(&[]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{text}");
    for word in ["memory of an agent", "pids of an agent", "/sys/fs/cgroup", "--allow-missing memory"] {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    let wrong = covered(&["--allow-missing", "disk"]);
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && text.contains("memory, pids"), "{text}");
}
