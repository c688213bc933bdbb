//! Attempts from inside, each of which must fail. The list is `probes.py`; the baits are laid here, and the results are read from outside.

use super::process::{Host, ids};
use super::{seen, until};
use mosaic::plan::observed::EndCause;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command};

/// Fewer are a broken list.
const PROBES_MIN: usize = 60;
const MARKER: &str = "61010.25";

/// What lies on the host for the agent to find.
struct Baits {
    _sockets: (TcpListener, Option<TcpListener>, UnixListener, UnixListener),
    memory: i32,
    bystander: Child,
    description: Value,
}

impl Baits {
    fn lay(host: &Host) -> Self {
        let state = host.state.path();
        let folders =
            [("another tree", "trees/agent-other/tree"), ("another home", "homes/other")].map(|(name, at)| (name, state.join(at)));
        for (_, folder) in &folders {
            fs::create_dir_all(folder).unwrap();
            std::os::unix::fs::chown(folder, Some(ids().uid), Some(ids().gid)).unwrap();
            fs::write(folder.join("bait"), "bait").unwrap();
        }
        fs::write(state.join("token"), "bait").unwrap();
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let open6 = TcpListener::bind("[::1]:0").ok();
        let name = format!("mosaic-probe-{}", std::process::id());
        let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let path = state.join("bait.sock");
        let named = UnixListener::bind(&path).unwrap();
        let bystander = Command::new("sleep").arg(MARKER).spawn().unwrap();
        let key = i32::try_from(std::process::id()).unwrap();
        // SAFETY: a new segment of a page, readable and writable by all; removed in `drop`.
        let memory = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o666) };
        assert!(memory >= 0);
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let description = json!({
            "files": {"the token": text(&state.join("token")), "a file of another tree": text(&folders[0].1.join("bait")),
                "a file of another home": text(&folders[1].1.join("bait")), "the manifest": concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")},
            "folders": {"the state": text(state), "another tree": text(&folders[0].1), "another home": text(&folders[1].1),
                "the sources": env!("CARGO_MANIFEST_DIR")},
            "port": open.local_addr().unwrap().port(),
            "port6": open6.as_ref().map_or(1, |found| found.local_addr().unwrap().port()),
            "abstract": name, "socket": text(&path), "pid": bystander.id(), "marker": MARKER,
            "environment": env!("CARGO_MANIFEST_DIR"), "memory": memory, "key": key,
        });
        Self { _sockets: (open, open6, hidden, named), memory, bystander, description }
    }
}

impl Drop for Baits {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
        // SAFETY: the segment is ours.
        unsafe { libc::shmctl(self.memory, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_from_inside_fails() {
    let host = Host::new();
    let sandbox = host.open();
    let mut baits = Baits::lay(&host);
    let script = "python3=/usr/bin/python3; $python3 -I probes.py baits.json results.jsonl; code=$?; sleep 0.2; exit $code";
    let mut spec = host.subject(&sandbox).script("probes-001", 1, script);
    spec.task = Some(b"{}".to_vec());
    fs::write(spec.tree.join("probes.py"), include_str!("probes.py")).unwrap();
    fs::write(spec.tree.join("baits.json"), baits.description.to_string()).unwrap();
    let end = host.subject(&sandbox).run(spec.clone()).await;
    // init was killed, stopped and limited in vain: it lived to report the end.
    assert_eq!(end.cause, EndCause::Exited(0), "{}", end.output_tail);
    let results = fs::read_to_string(spec.tree.join("results.jsonl")).unwrap();
    let results: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, probes) = results.split_last().unwrap();
    assert_eq!((&last["name"], &last["seen"]), (&json!("end"), &json!(probes.len().to_string())), "the list came to no end");
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
        let needed = primitive.process != mosaic::inside::confine::Need::WherePossible;
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
