//! Limits of containers, proven from inside: what exceeds one ends for it, and the share of the CPU is what was given.

use super::{Host, clean};
use crate::engine::engine;
use mosaic::plan::observed::{EndCause, Limit, RunEnd};
use std::time::Duration;

async fn run(host: &Host, sandbox: &mosaic::sandbox::Drivers, name: &str, script: &str) -> RunEnd {
    let subject = host.subject(sandbox);
    let mut spec = subject.script(name, 1, script);
    spec.limits.memory_bytes = 64 << 20;
    spec.limits.disk_bytes = 32 << 20;
    spec.limits.pids_max = 50;
    spec.deadline = Some(Duration::from_secs(25));
    subject.run(spec).await
}

fn exceeded(end: &RunEnd, wanted: Limit) -> bool {
    matches!(&end.cause, EndCause::LimitExceeded { limit, .. } if *limit == wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bomb_ends_for_its_limit() {
    let Some(engine) = engine("docker::limits::each_bomb_ends_for_its_limit").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    for (name, limit, script) in [
        ("memory-bomb", Limit::Memory, "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"),
        ("tmpfs-bomb", Limit::Memory, "dd if=/dev/zero of=/tmp/a bs=1M; dd if=/dev/zero of=/dev/shm/b bs=1M; exit 7"),
        ("fork-bomb0", Limit::Pids, "b() { b | b & }; b; sleep 1; exit 9"),
        ("disk-bomb0", Limit::Disk, "n=0; while :; do head -c 2000000 /dev/zero > f$n || exit 8; n=$((n+1)); sleep 0.05; done"),
        ("home-bomb0", Limit::Disk, "n=0; while :; do head -c 2000000 /dev/zero > /mosaic/out/f$n || exit 8; n=$((n+1)); sleep 0.05; done"),
        ("file-bomb0", Limit::Disk, "exec head -c 100000000 /dev/zero > f"),
    ] {
        let end = run(&host, &sandbox, name, script).await;
        assert!(exceeded(&end, limit), "{name}: {:?}\n{}", end.cause, end.output_tail);
        println!("{name}: {:?}", end.cause);
    }
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn share_of_the_cpu_is_what_was_given() {
    let Some(engine) = engine("docker::limits::share_of_the_cpu_is_what_was_given").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    // Two busy loops on a quarter of a core, for three seconds.
    let script = "(while :; do :; done) & (while :; do :; done) & sleep 3; cat /sys/fs/cgroup/cpuacct/cpuacct.usage 2>/dev/null || \
        awk '/usage_usec/ {print $2 \"000\"}' /sys/fs/cgroup/cpu.stat; exit 0";
    let mut spec = subject.script("cpu-share1", 1, script);
    spec.limits.cpu_millis = 250;
    let end = subject.run(spec).await;
    let nanos: u64 = end.output_tail.trim().parse().unwrap_or_else(|_| panic!("{}", end.output_tail));
    println!("a quarter of a core for 3 s: {} ms", nanos / 1_000_000);
    assert!((300_000_000..1_100_000_000).contains(&nanos), "{nanos}");
    clean(&host, &sandbox, &engine).await;
}
