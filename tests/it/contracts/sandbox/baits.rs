//! What lies on the host for an agent to find, and the list of attempts from inside (`probes.py`) that tries to.

use mosaic::sandbox::SandboxIds;
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command};

const MARKER: &str = "61010.25";

/// What lies on the host for the agent to find.
pub struct Baits {
    _sockets: (TcpListener, Option<TcpListener>, UnixListener, UnixListener),
    memory: i32,
    pub bystander: Child,
    description: Value,
}

impl Baits {
    /// Lays them out in a state folder and beside it.
    pub fn lay(state: &Path, owner: SandboxIds) -> Self {
        let folders =
            [("another tree", "trees/agent-other/tree"), ("another home", "homes/other")].map(|(name, at)| (name, state.join(at)));
        for (_, folder) in &folders {
            fs::create_dir_all(folder).unwrap();
            std::os::unix::fs::chown(folder, Some(owner.uid), Some(owner.gid)).unwrap();
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

/// Puts attempts and baits into the tree of a run, and says how they are run.
pub fn lay_probes(tree: &Path, baits: &Baits) {
    fs::write(tree.join("probes.py"), include_str!("probes.py")).unwrap();
    fs::write(tree.join("baits.json"), baits.description.to_string()).unwrap();
}

/// Runs the attempts; the pause lets a process of the host die that was hit.
pub const RUN_PROBES: &str = "python3=/usr/bin/python3; $python3 -I probes.py baits.json results.jsonl; code=$?; sleep 0.2; exit $code";

/// The outcomes, whose list must have come to its end.
pub fn outcomes(tree: &Path) -> Vec<Value> {
    let results = fs::read_to_string(tree.join("results.jsonl")).unwrap();
    let mut results: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = results.pop().unwrap();
    assert_eq!((&last["name"], &last["seen"]), (&json!("end"), &json!(results.len().to_string())), "the list came to no end");
    results
}
