//! The process driver as an ordinary user: the same contract, the same probes and the same bombs, run once more by a user without any
//! privilege. As root this starts the test program again as such a user; started by an ordinary user, the tests themselves are all there is.

use super::process::Host;
use mosaic::plan::observed::{EndCause, Limit};
use mosaic::sandbox::Sandbox;
use mosaic::sandbox::init_binary::find_init;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A user that no distribution gives to anybody.
const ORDINARY_UID: u32 = 64_217;

/// What is run again.
const AGAIN: &[&str] = &[
    "contracts::sandbox::process::process_driver_keeps_the_contract",
    "contracts::sandbox::process::agent_sees_its_sandbox_and_nothing_of_the_host",
    "contracts::sandbox::process::home_base_objects_and_task_are_where_the_contract_says",
    "contracts::sandbox::process::links_that_an_agent_leaves_in_its_home_lead_the_next_start_nowhere",
    #[cfg(target_arch = "x86_64")]
    "contracts::sandbox::probes::every_attempt_from_inside_fails",
    #[cfg(target_arch = "x86_64")]
    "contracts::sandbox::probes::ordinary_work_is_not_refused",
    #[cfg(target_arch = "x86_64")]
    "contracts::sandbox::probes::isolation_names_what_was_tried",
    "contracts::sandbox::masks::each_primitive_masked_refuses_the_start_with_its_reason",
    "contracts::sandbox::limits::memory_hog_ends_for_its_memory",
    "contracts::sandbox::limits::fork_bomb_ends_for_its_processes",
    "contracts::sandbox::limits::full_disk_and_deleted_but_open_files_end_for_the_disk",
    "contracts::sandbox::limits::sparse_giants_and_hard_links_are_no_use_of_the_disk",
    "contracts::sandbox::limits::too_many_files_end_for_the_inodes",
    "contracts::sandbox::limits::spinning_and_printing_hurt_nobody",
    "contracts::sandbox::user::an_ordinary_user_is_bounded_as_well",
    "contracts::sandbox::user::memory_and_files_without_a_name_are_no_way_round_the_watchdog",
    "e2e::neighbours::two_hostile_agents_change_nothing_of_a_third",
    "e2e::rounds::refused_round_pushes_nothing_and_its_feedback_reaches_the_next_round",
    "e2e::rounds::processes_left_writing_after_the_agents_exit_change_nothing_of_what_is_gated",
    "e2e::kills::kill_during_a_push_breaks_it_off_and_nothing_arrives_later",
];

#[test]
fn ordinary_user_has_the_same_contract_and_the_same_probes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &std::path::Path, name: &str| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let program = copy(&std::env::current_exe().unwrap(), "tests");
    let init = copy(&find_init().unwrap(), "mosaic-init");
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for path in [folder.path(), &temporary] {
        chown(path, Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
    }
    let mut command = Command::new(program);
    command.args(AGAIN).args(["--exact", "--test-threads", "2"]);
    command.uid(ORDINARY_UID).gid(ORDINARY_UID).current_dir("/").env("MOSAIC_INIT", init).env("TMPDIR", &temporary).env("HOME", &temporary);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let told = format!("{} passed; 0 failed", AGAIN.len());
    assert!(output.status.success() && text.contains(&told), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_is_bounded_as_well() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    let hog = subject.script(
        "hog-00001",
        1,
        "python3 -c 'import time\nx = bytearray(700 << 20)\nfor n in range(0, len(x), 4096): x[n] = 1\ntime.sleep(60)'",
    );
    let end = subject.run(hog).await;
    assert!(matches!(&end.cause, EndCause::LimitExceeded { limit: Limit::Memory, .. }), "{:?}", end.cause);
    // Each sandbox has its own count, whoever else this user runs.
    let count = "n=0; while sleep 61020.5 & do n=$((n+1)); done 2>/dev/null; exit 0";
    let forks = format!("( {count} ); ls /proc | grep -cE '^[0-9]+$' > /workspace/count; kill -9 -1");
    let spec = subject.script("forks-001", 1, &forks);
    let neighbour = subject.script("forks-002", 1, "sleep 1; for n in 1 2 3 4 5 6 7 8; do (sleep 0.5) & done; wait");
    let (_, calm) = tokio::join!(subject.run(spec.clone()), subject.run(neighbour));
    assert_eq!(calm.cause, EndCause::Exited(0), "{}", calm.output_tail);
    let most: u32 = fs::read_to_string(spec.tree.join("count")).unwrap_or_else(|_| "100".to_owned()).trim().parse().unwrap();
    assert!(most <= spec.limits.pids_max + 3, "{most} processes");
    let mut closed = subject.script("closed-01", 1, "mkdir d; dd if=/dev/zero of=d/f bs=1M count=50 2>/dev/null; chmod 0 d; sleep 60");
    closed.limits.disk_bytes = 20 << 20;
    let end = subject.run(closed.clone()).await;
    assert!(matches!(&end.cause, EndCause::LimitExceeded { limit: Limit::Disk, .. }), "{:?}", end.cause);
    sandbox.stop(&closed.run).await.unwrap();
    sandbox.remove(&closed.run).await.unwrap();
    assert!(!host.folder(&closed.run).path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_files_without_a_name_are_no_way_round_the_watchdog() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    // Memory that is in no process: written to and not mapped, held by a descriptor, on its way through a socket, or by nobody at all.
    let ways = [
        ("files", "k.append(os.memfd_create(\"x\")); os.write(k[-1], bytes(1 << 24))"),
        ("socket", "f = os.memfd_create(\"x\"); os.write(f, bytes(1 << 24)); socket.send_fds(a, [b\"x\"], [f]); os.close(f)"),
        (
            "segments",
            "i = c.shmget(0, 1 << 24, 0o1600); p = c.shmat(i, None, 0); ctypes.memset(p, 1, 1 << 24); c.shmdt(ctypes.c_void_p(p))",
        ),
    ];
    for (name, way) in ways {
        let program = format!(
            "exec python3 -c 'import ctypes, os, socket, sys, time\nc = ctypes.CDLL(None, use_errno=True); c.shmat.restype = ctypes.c_void_p\n\
             if c.memfd_create(b\"x\", 0) < 0 and c.shmget(0, 4096, 0o1600) < 0 and ctypes.get_errno() == 38: sys.exit(38)\n\
             k = []; a, b = socket.socketpair()\nfor n in range(24): {way}; time.sleep(0.05)\ntime.sleep(10)'"
        );
        let mut spec = subject.script(&format!("unseen-{name}"), 1, &program);
        spec.limits.memory_bytes = 128 << 20;
        let end = subject.run(spec).await;
        let is_seen = matches!(&end.cause, EndCause::LimitExceeded { limit: Limit::Memory, .. });
        assert!(is_seen || end.cause == EndCause::Exited(38), "{name}: {:?} {}", end.cause, end.output_tail);
    }
    let program = "exec python3 -c 'import os, time\nk = []\nfor n in range(200):\n f = os.open(\"/workspace/x\", os.O_CREAT | os.O_WRONLY); k.append(f); os.unlink(\"/workspace/x\"); os.write(f, bytes(1 << 20))\ntime.sleep(60)'";
    let mut spec = subject.script("unlinked-1", 1, program);
    spec.limits.disk_bytes = 50 << 20;
    let end = subject.run(spec).await;
    assert!(matches!(&end.cause, EndCause::LimitExceeded { limit: Limit::Disk, .. }), "{:?}", end.cause);
}
