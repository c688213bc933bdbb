//! The same attempts from inside as in a process sandbox, in the default image of sandboxes (`MOSAIC_TEST_IMAGE` names another one with git and
//! Python). Each must fail; what differs in a container is in one table, with what is seen instead and why that is no way out.

use super::{Host, clean};
use crate::baits::{Baits, RUN_PROBES, lay_probes, outcomes};
use crate::engine::engine;
use mosaic::plan::observed::EndCause;
use mosaic::sandbox::docker::IMAGE_DEFAULT;
use mosaic::sandbox::{SANDBOX_UID, SandboxIds};
use serde_json::Value;
use std::collections::BTreeMap;

/// Attempts that end otherwise than in a process sandbox, and how.
const DIFFERENT: [(&str, &str); 11] = [
    // Engines show it, read-only.
    ("list /sys", ""),
    // The file is the process driver's own.
    ("read a file that no rule names", "ENOENT"),
    // It is seen, and answers nobody but init (`agent_that_floods_the_sockets_of_init_…`).
    ("find the control socket", "['/mosaic/control/control.sock']"),
    // A folder of Debian's.
    ("find the exit report, identity or spec", "['/var/lib/pam/session']"),
    // It is seen, and closed.
    ("see init in /proc", "['1']"),
    // Counts of keys per user, no keys.
    ("read the keys of the host", "b' '"),
    // Refused before a route is looked for.
    ("reach an IPv6 address", "EADDRNOTAVAIL"),
    // There is such an id, and it cannot be had.
    ("become root", "EPERM"),
    ("become group root", "EPERM"),
    ("give a file to root", "EPERM"),
    // Setuid programs gain nothing without new privileges.
    ("find a mount with setuid programs", "['/', '/usr', '/workspace', '/mosaic/out']"),
];

/// The engine and the image; `None`: one is missing, which was said.
async fn with_image(test: &str) -> Option<(mosaic::sandbox::docker::engine::Engine, Host)> {
    let engine = engine(test).await?;
    let image = std::env::var("MOSAIC_TEST_IMAGE").unwrap_or_else(|_| IMAGE_DEFAULT.to_owned());
    if engine.image(&image).await.unwrap().is_none() {
        crate::skip::skip(test, &format!("the engine has no image {image} (make image)"));
        return None;
    }
    Some((engine, Host { image, ..Host::new() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_from_inside_a_container_fails() {
    let Some((engine, host)) = with_image("docker::probes::every_attempt_from_inside_a_container_fails").await else { return };
    let sandbox = host.open();
    let mut baits = Baits::lay(host.state.path(), SandboxIds::of(SANDBOX_UID));
    let mut spec = host.subject(&sandbox).script("probes-001", 1, RUN_PROBES);
    spec.task = Some(b"{}".to_vec());
    lay_probes(&spec.tree, &baits);
    let end = host.subject(&sandbox).run(spec.clone()).await;
    assert_eq!(end.cause, EndCause::Exited(0), "{}", end.output_tail);
    let probes = outcomes(&spec.tree);
    let different: BTreeMap<&str, &str> = DIFFERENT.into();
    let text = |probe: &Value, field: &str| probe[field].as_str().unwrap().to_owned();
    let failed: Vec<String> = probes
        .iter()
        .filter(|probe| probe["outcome"] != "refused")
        .filter(|probe| different.get(text(probe, "name").as_str()).is_none_or(|seen| !text(probe, "seen").starts_with(seen)))
        .map(|probe| format!("{}: {} {}", text(probe, "name"), text(probe, "outcome"), text(probe, "seen")))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    println!("{} attempts from inside a container, none successful", probes.len());
    assert!(baits.bystander.try_wait().unwrap().is_none(), "the host's process was killed");
    clean(&host, &sandbox, &engine).await;
}

/// What builds and tests of real projects do, so that nothing of it is closed by mistake.
const ORDINARY: [&str; 10] = [
    "mkdir -p a b; echo x > a/f; mv a/f b/f; ln b/f a/g; mv b c; test -e c/f; rm -r a c",
    "mkfifo pipe; echo through > pipe & test \"$(cat pipe)\" = through; wait",
    "echo x > /tmp/t; cp /tmp/t ~/t; mv ~/t /workspace/t; cat < /workspace/t > /dev/null; echo x > /var/tmp/t",
    "echo '#!/bin/sh' > run.sh; chmod +x run.sh; ./run.sh; cp run.sh /tmp/; /tmp/run.sh",
    "echo out > /dev/stdout; echo err > /dev/stderr; ls / /proc/self /dev > /dev/null; cat /proc/meminfo > /dev/null",
    "git init -q r; cd r; git -c user.name=n -c user.email=e commit -q --allow-empty -m m; git log --oneline > /dev/null",
    "test \"$(sh -c 'sleep 5 & kill $!; wait $!; echo $?')\" = 143; test \"$(id -un)\" = agent",
    "python3 -c 'import subprocess, threading; t = threading.Thread(target=print); t.start(); t.join(); subprocess.run([\"true\"], check=True)'",
    "python3 -c 'import multiprocessing as m; p = m.Pool(2); print(p.map(abs, [-1, 2])); p.close(); p.join()'",
    "python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); c = socket.create_connection(s.getsockname()); print(socket.getaddrinfo(\"localhost\", 80), socket.if_nameindex())'",
];

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_work_in_a_container_is_not_refused() {
    let Some((engine, host)) = with_image("docker::probes::ordinary_work_in_a_container_is_not_refused").await else { return };
    let sandbox = host.open();
    for (attempt, script) in (1..).zip(ORDINARY) {
        let end = host.subject(&sandbox).run(host.subject(&sandbox).script("ordinary-1", attempt, &format!("set -e; {script}"))).await;
        assert_eq!(end.cause, EndCause::Exited(0), "{script}\n{}", end.output_tail);
    }
    clean(&host, &sandbox, &engine).await;
}
