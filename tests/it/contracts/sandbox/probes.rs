//! Attempts from inside, each of which must fail. The list is `probes.py`; the baits are laid here, and the results are read from outside.

use super::baits::{Baits, RUN_PROBES, lay_probes, outcomes};
use super::process::{Host, ids};
use super::{seen, until};
use mosaic::plan::observed::EndCause;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// Fewer are a broken list.
const PROBES_MIN: usize = 60;
#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_from_inside_fails() {
    let host = Host::new();
    let sandbox = host.open();
    let mut baits = Baits::lay(host.state.path(), ids());
    let mut spec = host.subject(&sandbox).script("probes-001", 1, RUN_PROBES);
    spec.task = Some(b"{}".to_vec());
    lay_probes(&spec.tree, &baits);
    let end = host.subject(&sandbox).run(spec.clone()).await;
    // init was killed, stopped and limited in vain: it lived to report the end.
    assert_eq!(end.cause, EndCause::Exited(0), "{}", end.output_tail);
    let probes = outcomes(&spec.tree);
    let failed: Vec<&Value> = probes.iter().filter(|probe| probe["outcome"] != "refused").collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let names: BTreeSet<&str> = probes.iter().map(|probe| probe["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), probes.len(), "two probes have one name");
    assert!(names.len() >= PROBES_MIN, "{} probes", names.len());
    println!("{} attempts from inside, none successful", names.len());
    assert!(baits.bystander.try_wait().unwrap().is_none(), "the host's process was killed");
}

/// What builds and tests of real projects do, so that nothing of it is closed by mistake.
const ORDINARY: [&str; 14] = [
    "mkdir -p a b; echo x > a/f; mv a/f b/f; ln b/f a/g; mv b c; test -e c/f; rm -r a c",
    "mkfifo pipe; echo through > pipe & test \"$(cat pipe)\" = through; wait",
    "echo x > /tmp/t; cp /tmp/t ~/t; mv ~/t /workspace/t; cat < /workspace/t > /dev/null",
    "echo '#!/bin/sh' > run.sh; chmod +x run.sh; ./run.sh; cp run.sh /tmp/; /tmp/run.sh",
    "echo out > /dev/stdout; echo err > /dev/stderr; ls / /proc/self /dev > /dev/null; cat /proc/meminfo > /dev/null",
    "git init -q r; cd r; git -c user.name=n -c user.email=e commit -q --allow-empty -m m; git log --oneline > /dev/null",
    "test \"$(sh -c 'sleep 5 & kill $!; wait $!; echo $?')\" = 143",
    "/usr/bin/python3 -c 'import subprocess, threading; t = threading.Thread(target=print); t.start(); t.join(); subprocess.run([\"true\"], check=True)'",
    "/usr/bin/python3 -c 'import multiprocessing as m; p = m.Pool(2); print(p.map(abs, [-1, 2])); p.close(); p.join()'",
    "/usr/bin/python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); c = socket.create_connection(s.getsockname()); print(socket.getaddrinfo(\"localhost\", 80), socket.if_nameindex())'",
    "/usr/bin/python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind(\"/tmp/s\"); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect(\"/tmp/s\"); a = socket.socket(socket.AF_UNIX); a.bind(\"\\0own\")'",
    "/usr/bin/python3 -c 'import pty; pty.spawn([\"true\"])' < /dev/null",
    "printf 'int main(void){return 0;}' > m.c; if command -v cc > /dev/null; then cc m.c -o m && ./m; fi",
    "if command -v node > /dev/null; then node -e 'require(\"os\").networkInterfaces(); new (require(\"worker_threads\").Worker)(\"1\", {eval: true})'; fi",
];

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_work_is_not_refused() {
    let host = Host::new();
    let sandbox = host.open();
    for (attempt, script) in (1..).zip(ORDINARY) {
        let end = host.subject(&sandbox).run(host.subject(&sandbox).script("ordinary-1", attempt, &format!("set -e; {script}"))).await;
        assert_eq!(end.cause, EndCause::Exited(0), "{script}\n{}", end.output_tail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn isolation_names_what_was_tried() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("isolation-1", 1, "while [ ! -e go ]; do sleep 0.02; done");
    mosaic::sandbox::Sandbox::ensure(&sandbox, spec.clone()).await.unwrap();
    let isolation = seen(&sandbox, &spec.run).await.unwrap().isolation;
    for primitive in mosaic::inside::confine::PRIMITIVES {
        use mosaic::inside::confine::Need;
        let needed = !matches!(primitive.process, Need::WherePossible | Need::Never);
        assert!(!needed || isolation.iter().any(|name| name == primitive.name), "{} is not in {isolation:?}", primitive.name);
    }
    fs::write(spec.tree.join("go"), "").unwrap();
    until("it has ended", || !host.folder(&spec.run).is_held().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn report_that_the_wait_status_contradicts_is_not_believed() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("forged-0001", 1, "sleep 61011.5; true");
    mosaic::sandbox::Sandbox::ensure(&sandbox, spec.clone()).await.unwrap();
    let folder = host.folder(&spec.run);
    fs::write(folder.path().join("exit.json"), r#"{"cause": {"exited": 0}, "durationMillis": 1}"#).unwrap();
    super::process::kill(folder.identity().unwrap().unwrap().pid);
    let end = super::ended(&sandbox, &spec.run).await;
    assert!(matches!(&end.cause, EndCause::Lost(text) if text.contains("signal 9")), "{:?}", end.cause);
}
