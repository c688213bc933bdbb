//! Sandbox: from the wish for a process sandbox to its first sign of life, over the same isolation by `bwrap`.
//!
//! Both sides run the same command, which writes one byte into a named pipe of its tree, and a reader outside takes the time. Floor: the
//! `bwrap` program: all namespaces, no capabilities, a read-only system, fresh `/proc`, `/dev` and `/tmp`, the tree. Ours: `ensure` of
//! the process driver: the same, and what makes a run one of ours: its record and identity on disk before it may start, the
//! grant over the link, limits, seccomp, Landlock, and the look from inside that all of it holds.
//!
//! The end of each sandbox is outside the time taken, and nothing is removed before the end of all: file systems make the next creations
//! slower after a deletion, which only one of the sides would feel.

use crate::table::{Figure, Part};
use mosaic::api::agent::Driver;
use mosaic::api::names::{Attempt, Epoch, Role, RunId, Uid};
use mosaic::api::validate::Limits;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, SANDBOX_UID, SandboxConfig};
use mosaic::sandbox::{RunSpec, Sandbox};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Turns.
const TURNS: usize = 60;
/// What runs: its first sign of life, and its end.
const SCRIPT: &str = "echo > /workspace/sign";

/// Measures the part.
pub fn measure() -> Part {
    let skipped = |why: &str| Part { figures: Vec::new(), foot: vec![format!("sandbox: not measured, {why}")] };
    if !rustix::process::geteuid().is_root() {
        return skipped("it compares what root starts");
    }
    if Command::new("bwrap").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skipped("bwrap is not installed");
    }
    let Ok(init) = find_init() else { return skipped("there is no mosaic-init; run it by `make bench`") };
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("a folder that its user may enter");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let driver = runtime.block_on(async { Drivers::process(SandboxConfig::new(folder.path(), "bench", init)) });
    let driver = driver.expect("process sandboxes work here");
    let (mut ours, mut floor, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each warms up.
    for turn in 0..=TURNS {
        let (run, took) = runtime.block_on(start(&driver, folder.path(), turn));
        runs.push(run);
        let bwrap_took = bwrap(folder.path(), turn);
        if turn > 0 {
            ours.push(took);
            floor.push(bwrap_took);
        }
    }
    for run in runs {
        runtime.block_on(driver.remove(&run)).expect("it goes");
    }
    let figures = vec![Figure::of_seconds("process sandbox to first sign / bwrap", Some(1.5), &ours, &floor)];
    let foot = vec![
        "sandbox: from ensure (run record, grant, limits, seccomp, Landlock, self-test) to the first byte that the command writes; \
         floor = the same command in bwrap with all namespaces, no capabilities, read-only system, no record, no limits, no seccomp."
            .to_owned(),
    ];
    Part { figures, foot }
}

/// The run, and its seconds from the wish to the first sign.
async fn start(driver: &Drivers, folder: &Path, turn: usize) -> (RunId, f64) {
    let tree = tree(folder, &format!("ours-{turn}"));
    let spec = RunSpec {
        run: RunId {
            uid: Uid::new(format!("{turn:08}-0000-4000-8000-000000000000")).expect("a uid"),
            attempt: Attempt(1),
            role: Role::Agent,
        },
        epoch: Epoch(1),
        driver: Driver::Process,
        image: None,
        runtime_class: None,
        agent: String::new(),
        tree: tree.clone(),
        home: None,
        base_objects: None,
        task: None,
        args: ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        deadline: None,
        limits: Limits { cpu_millis: 2000, memory_bytes: 512 << 20, pids_max: 100, disk_bytes: 1 << 30 },
    };
    let run = spec.run.clone();
    let started = Instant::now();
    let sign = sign_of(&tree);
    driver.ensure(spec).await.expect("a sandbox");
    let took = sign.join().expect("a sign").duration_since(started).as_secs_f64();
    driver.stop(&run).await.expect("it stops");
    (run, took)
}

fn bwrap(folder: &Path, turn: usize) -> f64 {
    let tree = tree(folder, &format!("bwrap-{turn}"));
    let id = SANDBOX_UID.to_string();
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--cap-drop", "ALL", "--new-session", "--die-with-parent", "--clearenv", "--uid", &id, "--gid", &id]);
    command.args([
        "--ro-bind",
        "/usr",
        "/usr",
        "--ro-bind",
        "/etc",
        "/etc",
        "--symlink",
        "usr/bin",
        "/bin",
        "--symlink",
        "usr/lib",
        "/lib",
    ]);
    command.args(["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home"]);
    command.arg("--bind").arg(&tree).args(["/workspace", "--chdir", "/workspace", "/bin/sh", "-c", SCRIPT]);
    let started = Instant::now();
    let sign = sign_of(&tree);
    // As the user that ours ends up as.
    let mut child = command.uid(SANDBOX_UID).gid(SANDBOX_UID).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("bwrap starts");
    let took = sign.join().expect("a sign").duration_since(started).as_secs_f64();
    assert!(child.wait().expect("it ends").success(), "bwrap failed");
    took
}

/// A tree with the pipe, owned by the sandbox's user.
fn tree(folder: &Path, name: &str) -> PathBuf {
    let tree = folder.join(name);
    std::fs::create_dir(&tree).expect("a fresh folder");
    let pipe = tree.join("sign");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).expect("a pipe");
    for path in [&tree, &pipe] {
        chown(path, Some(SANDBOX_UID), Some(SANDBOX_UID)).expect("root may");
    }
    tree
}

/// When the first byte comes.
fn sign_of(tree: &Path) -> std::thread::JoinHandle<Instant> {
    let pipe = tree.join("sign");
    std::thread::spawn(move || {
        let mut byte = [0];
        std::fs::File::open(pipe).and_then(|mut pipe| pipe.read_exact(&mut byte)).expect("a byte");
        Instant::now()
    })
}
