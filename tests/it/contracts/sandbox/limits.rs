//! Limits that hold: each bomb ends with its own cause, a neighbour goes on meanwhile, and nothing of it is left.
//!
//! `MOSAIC_TEST_BOMBS=20` repeats every bomb and takes the large sizes: 10 GB of output, a million files.

use super::process::Host;
use super::{Subject, ended, seen, until};
use mosaic::api::agent::Driver;
use mosaic::plan::observed::{EndCause, Limit, RunEnd, SandboxState};
use mosaic::sandbox::Drivers;
use mosaic::sandbox::folder::short;
use mosaic::sandbox::limits::{Bound, LIMITS, Means, bound, enforced, refusals};
use mosaic::sandbox::{RunSpec, Sandbox};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often each bomb goes off, and how much larger the large ones are.
fn bombs() -> (u32, u32) {
    let wanted: Option<u32> = std::env::var("MOSAIC_TEST_BOMBS").ok().and_then(|text| text.parse().ok());
    wanted.map_or((1, 1), |rounds| (rounds, 10))
}

/// Whether there are no control groups, which count what the kernel refused and hold files in memory as memory.
fn is_ordinary() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Control groups whose name ends with this, wherever they are.
fn groups_with(end: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().ends_with(end) {
                    found.push(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Process ids in these groups.
fn processes_of(groups: &[PathBuf]) -> String {
    groups.iter().map(|group| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default()).collect()
}

struct Bomb {
    name: &'static str,
    script: String,
    right: fn(&RunEnd) -> bool,
}

fn exceeded(end: &RunEnd, wanted: Limit) -> bool {
    matches!(&end.cause, EndCause::LimitExceeded { limit, .. } if *limit == wanted)
}

/// Runs to the end, however long that takes: each run has a deadline.
async fn run_long(sandbox: &Drivers, spec: RunSpec) -> RunEnd {
    let (run, until) = (spec.run.clone(), Instant::now() + Duration::from_secs(600));
    sandbox.ensure(spec).await.unwrap();
    loop {
        match seen(sandbox, &run).await.map(|seen| seen.state) {
            Some(SandboxState::Ended(end)) => return end,
            state => assert!(Instant::now() < until, "{run} did not end: {state:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Sets off a bomb beside a neighbour, and looks that the right one is hurt and that nothing is left.
async fn go_off(host: &Host, sandbox: &Drivers, bomb: &Bomb, round: u32) {
    let subject: Subject<'_> = host.subject(sandbox);
    let neighbour = subject.script(
        &format!("neighbour-{}", bomb.name),
        round,
        "n=0; while [ $n -lt 20 ]; do echo $n > f$n; cat f$n; n=$((n+1)); sleep 0.05; done",
    );
    let mut spec = subject.script(&format!("bomb-{}", bomb.name), round, &bomb.script);
    // What a fork bomb uses up first is to be its processes.
    spec.limits.memory_bytes = if bomb.name.starts_with("fork") { 512 << 20 } else { 96 << 20 };
    spec.limits.disk_bytes = 64 << 20;
    // What only spins or prints ends by its time.
    spec.deadline = Some(Duration::from_secs(if bombs().1 > 1 { 300 } else { 60 }));
    let (run, started) = (spec.run.clone(), Instant::now());
    let (bomb_end, neighbour_end) = tokio::join!(run_long(sandbox, spec.clone()), run_long(sandbox, neighbour.clone()));
    assert!((bomb.right)(&bomb_end), "{} round {round}: {:?}\n{}", bomb.name, bomb_end.cause, bomb_end.output_tail);
    assert_eq!(neighbour_end.cause, EndCause::Exited(0), "the neighbour of {}: {}", bomb.name, neighbour_end.output_tail);
    let usage = sandbox.usage(&run).unwrap().unwrap();
    println!(
        "{} round {round}: {:?} after {:?}; {} ended for memory, {} processes refused, {} bytes of output dropped",
        bomb.name,
        bomb_end.cause,
        started.elapsed(),
        usage.oom_kills,
        usage.pids_refused,
        usage.output_bytes_dropped
    );
    let groups = groups_with(&short(&run));
    assert_eq!((groups.clone(), processes_of(&groups)), (Vec::new(), String::new()), "{}", bomb.name);
    for spec in [spec, neighbour] {
        sandbox.remove(&spec.run).await.unwrap();
        assert!(!host.folder(&spec.run).path().exists());
        fs::remove_dir_all(&spec.tree).unwrap();
    }
}

async fn all_rounds(bomb: Bomb) {
    let host = Host::new();
    let sandbox = host.open();
    for round in 1..=bombs().0 {
        go_off(&host, &sandbox, &bomb, round).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_hog_ends_for_its_memory() {
    let script = "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'".to_owned();
    all_rounds(Bomb { name: "memory", script, right: |end| exceeded(end, Limit::Memory) }).await;
    let script = "dd if=/dev/zero of=/dev/shm/a bs=1M; dd if=/dev/zero of=/tmp/b bs=1M; exit 7".to_owned();
    // Where these files are nobody's memory, their file systems are full in the end.
    let right = |end: &RunEnd| exceeded(end, Limit::Memory) || (is_ordinary() && end.cause == EndCause::Exited(7));
    all_rounds(Bomb { name: "tmpfs", script, right }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_bomb_ends_for_its_processes() {
    // The kind that gives up, and the kind that never does.
    let script = "b() { b | b & }; b; sleep 1; exit 9".to_owned();
    let right = |end: &RunEnd| exceeded(end, Limit::Pids) || (is_ordinary() && end.cause == EndCause::Exited(9));
    all_rounds(Bomb { name: "fork", script, right }).await;
    let script = "exec python3 -c 'import os\nwhile True:\n try: os.fork()\n except OSError: pass'".to_owned();
    all_rounds(Bomb { name: "fork-endless", script, right: |end| exceeded(end, Limit::Pids) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_and_deleted_but_open_files_end_for_the_disk() {
    let script = "n=0; while :; do head -c 4000000 /dev/zero > f$n || exit 8; n=$((n+1)); sleep 0.05; done".to_owned();
    all_rounds(Bomb { name: "disk", script, right: |end| exceeded(end, Limit::Disk) }).await;
    let script = "exec python3 -c '
import os, time
for n in range(4):
 f = os.open(\"/workspace/x\", os.O_CREAT | os.O_WRONLY); os.unlink(\"/workspace/x\")
 for m in range(30): os.write(f, bytes(1 << 20))
time.sleep(1000)'"
        .to_owned();
    all_rounds(Bomb { name: "unlinked", script, right: |end| exceeded(end, Limit::Disk) }).await;
    let script = "exec python3 -c 'f = open(\"/workspace/x\", \"wb\"); f.truncate(60 << 20); f.seek(65 << 20); import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); f.write(b\"x\"); f.flush()'".to_owned();
    all_rounds(Bomb { name: "file-size", script, right: |end| exceeded(end, Limit::Disk) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_giants_and_hard_links_are_no_use_of_the_disk() {
    let script =
        "truncate -s 60M a b c d; head -c 30000000 /dev/zero > f; for n in 1 2 3 4 5 6 7 8 9; do ln f l$n; done; sleep 1.5".to_owned();
    all_rounds(Bomb { name: "sparse", script, right: |end| end.cause == EndCause::Exited(0) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_files_end_for_the_inodes() {
    let files = 100_000 * bombs().1;
    let script = format!(
        "exec python3 -c 'import os, time\nfor n in range({files}):\n if n % 1000 == 0: os.mkdir(str(n)); os.chdir(str(n)); os.chdir(\"..\")\n open(str(n - n % 1000) + \"/\" + str(n) + \"f\", \"w\")\ntime.sleep(1000)'"
    );
    all_rounds(Bomb { name: "files", script, right: |end| exceeded(end, Limit::Inodes) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempt_that_begins_over_the_limit_of_the_one_before_may_remove_what_is_too_much() {
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    let attempt = |number: u32, script: &str| {
        let mut spec = subject.script("over-00001", number, script);
        spec.tree = host.state.path().join("over-00001-1");
        spec.limits.disk_bytes = 64 << 20;
        spec
    };
    let fill = "mkdir -p full; n=$(ls full | wc -l); while :; do head -c 1000000 /dev/zero > full/$n; n=$((n+1)); sleep 0.02; done";
    let ends = |end: RunEnd| assert!(exceeded(&end, Limit::Disk) && end.output_tail.is_empty(), "{:?} {}", end.cause, end.output_tail);
    ends(subject.run(attempt(1, fill)).await);
    // It may not go on filling what is full, however long a busy machine takes to see that,
    let started = Instant::now();
    ends(subject.run(attempt(2, fill)).await);
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    // but clean up first and go on with its work.
    let clean = "sleep 1.5; rm -r full; sleep 1.5; head -c 30000000 /dev/zero > part; sleep 1.5; echo done";
    let end = subject.run(attempt(3, clean)).await;
    assert_eq!((end.cause, end.output_tail.as_str()), (EndCause::Exited(0), "done\n"));
    ends(subject.run(attempt(4, fill)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn spinning_and_printing_hurt_nobody() {
    let gigabytes = bombs().1;
    let script = "for n in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; sleep 3; exit 0".to_owned();
    all_rounds(Bomb { name: "spin", script, right: |end| end.cause == EndCause::Exited(0) }).await;
    let script = format!("head -c {gigabytes}000000000 /dev/zero; echo; echo the end");
    all_rounds(Bomb { name: "output", script, right: |end| end.cause == EndCause::Exited(0) && end.output_tail.ends_with("the end\n") })
        .await;
    let script =
        "head -c 100000000 /dev/zero | tr '\\0' x; head -c 10000000 /dev/urandom; printf '\\033[31mred\\033[0m \\342\\200\\256bidi\\n'"
            .to_owned();
    let clean = |end: &RunEnd| end.cause == EndCause::Exited(0) && !end.output_tail.contains(['\u{1b}', '\u{202e}', '\0']);
    all_rounds(Bomb { name: "noise", script, right: clean }).await;
    let script =
        "exec python3 -c 'import os, sys\ntry:\n while True: os.dup(0)\nexcept OSError as e: print(e.errno); sys.exit(3)'".to_owned();
    let right = |end: &RunEnd| end.cause == EndCause::Exited(3) && end.output_tail == "24\n";
    all_rounds(Bomb { name: "descriptors", script, right }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_seen_from_inside() {
    if is_ordinary() {
        return;
    }
    let host = Host::new();
    let sandbox = host.open();
    let script = "for r in Hn Hc Hl Hf; do ulimit -$r; done; cat /proc/self/cgroup | grep -c mosaic-; \
        for n in 1 2 3 4 5 6; do head -c 60000000 /dev/zero > /tmp/$n; done 2>/dev/null || echo full; stat -f -c %c /tmp";
    let mut spec = host.subject(&sandbox).command("inside-lim", 1, &["/bin/bash", "-c", script]);
    spec.limits.disk_bytes = 64 << 20;
    let end = host.subject(&sandbox).run(spec).await;
    let lines: Vec<&str> = end.output_tail.lines().collect();
    assert_eq!(lines[..4], ["16384", "0", "8192", "65536"], "{}", end.output_tail);
    // The command is in groups of its own.
    assert!(lines[4].parse::<u32>().unwrap() >= 1, "{}", end.output_tail);
    assert_eq!(lines[5], "full", "{}", end.output_tail);
    assert_eq!(lines[6], (256 * 1024 / 16).to_string(), "{}", end.output_tail);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_a_crashed_controller_are_found_again_and_swept() {
    if is_ordinary() {
        return;
    }
    let host = Host::new();
    let spec = {
        let sandbox = host.open();
        let spec = host.subject(&sandbox).script("adopted-01", 1, "sleep 1000");
        sandbox.ensure(spec.clone()).await.unwrap();
        spec
    };
    let groups = groups_with(&short(&spec.run));
    assert!(!groups.is_empty() && !processes_of(&groups).is_empty());
    // As if the crash had come between making a run's groups and starting it.
    let strays: Vec<PathBuf> = groups.iter().map(|group| stray_beside(group, &short(&spec.run))).collect();
    let sandbox = host.open();
    assert!(strays.iter().all(|stray| !stray.exists()), "{strays:?}");
    assert_eq!(groups_with(&short(&spec.run)), groups);
    sandbox.stop(&spec.run).await.unwrap();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Stopped);
    until("the groups are gone", || groups_with(&short(&spec.run)).is_empty()).await;
    sandbox.remove(&spec.run).await.unwrap();
}

fn stray_beside(group: &Path, short: &str) -> PathBuf {
    let name = group.file_name().unwrap().to_str().unwrap().replace(short, "0123456789abcdef");
    let stray = group.with_file_name(name);
    fs::create_dir(&stray).unwrap();
    stray
}

#[test]
fn table_names_every_limit_once_and_says_what_bounds_it() {
    let names: BTreeSet<&str> = LIMITS.iter().map(|limit| limit.name).collect();
    assert_eq!(names.len(), LIMITS.len());
    let all = Means { memory: Bound::Kernel, pids: Bound::Kernel, cpu: Bound::Kernel };
    let nothing = Means { memory: Bound::None, pids: Bound::None, cpu: Bound::None };
    for limit in LIMITS {
        assert_ne!(bound(limit, Driver::Process, &all), Bound::None, "{}", limit.name);
        assert_ne!(bound(limit, Driver::Docker, &all), Bound::None, "{}", limit.name);
        assert_eq!(bound(limit, Driver::Pod, &all) == Bound::None, limit.name == "inodes", "{}", limit.name);
        for driver in [Driver::Process, Driver::Docker] {
            let is_missing = bound(limit, driver, &nothing) == Bound::None;
            assert_eq!(is_missing, ["memory", "pids", "cpu"].contains(&limit.name), "{} {driver:?}", limit.name);
        }
    }
    assert_eq!(enforced(Driver::Process, &all).len(), LIMITS.len());
    assert!(enforced(Driver::Process, &nothing).contains(&"memory:none".to_owned()));
    for limit in Limit::ALL {
        assert!(names.contains(limit.as_str()));
    }
}

#[test]
fn missing_memory_or_pids_limit_refuses_the_start_unless_it_is_allowed() {
    let means = Means { memory: Bound::None, pids: Bound::None, cpu: Bound::Kernel };
    let texts = refusals(Driver::Process, &means, &[]);
    assert_eq!(texts.len(), 2);
    for (text, name) in texts.iter().zip(["memory", "pids"]) {
        assert!(text.contains(name) && text.contains("/sys/fs/cgroup") && text.contains("--allow-missing"), "{text}");
    }
    assert_eq!(refusals(Driver::Process, &means, &["memory".to_owned()]).len(), 1);
    assert!(refusals(Driver::Process, &means, &["memory".to_owned(), "pids".to_owned()]).is_empty());
    assert!(refusals(Driver::Process, &Means { memory: Bound::Watchdog, pids: Bound::Kernel, cpu: Bound::None }, &[]).is_empty());
}
