//! A controller that is killed at any instant: the next one finds every run running, ended or never started, and nothing besides.

use super::process::{Host, kill, processes_with};
use super::{PATIENCE, Subject, ended, seen};
use mosaic::inside::wire::Identity;
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::Sandbox;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, SANDBOX_UID, SandboxConfig, SandboxIds};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "contracts::sandbox::crash::controller_of_the_crash_test";
const STATE: &str = "MOSAIC_TEST_CRASH_STATE";
const ROUND: &str = "MOSAIC_TEST_CRASH_ROUND";
const ROUNDS: u64 = 25;
const RUNS: usize = 6;

/// Not a test by itself: what `controller_killed_at_any_instant_leaves_nothing_half_done` starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn controller_of_the_crash_test() {
    let (Ok(state), Ok(round)) = (std::env::var(STATE), std::env::var(ROUND)) else { return };
    let sandbox = Drivers::process(SandboxConfig::new(&state, "installation-1", find_init().unwrap())).unwrap();
    let subject = Subject { sandbox: &sandbox, trees: Path::new(&state), owner: SandboxIds::of(SANDBOX_UID) };
    let script = "echo started >> /workspace/starts; sleep 0.1; setsid sleep 61020.5 & exit 0";
    let specs = (0..RUNS).map(|n| subject.script(&format!("crash-{round}-{n}"), 1, script));
    futures::future::join_all(specs.map(|spec| sandbox.ensure(spec))).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_killed_at_any_instant_leaves_nothing_half_done() {
    let host = Host::new();
    drop(host.open());
    let (mut exited, mut not_started) = (0, 0);
    for round in 0..ROUNDS {
        let mut controller = Command::new(std::env::current_exe().unwrap())
            .args([CHILD, "--exact"])
            .env(STATE, host.state.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the time that opening and starting take.
        tokio::time::sleep(Duration::from_millis(20 + round * 9)).await;
        kill(i32::try_from(controller.id()).unwrap());
        controller.wait().unwrap();

        let sandbox = host.open();
        let runs: Vec<_> = sandbox.observe(None).await.unwrap().into_iter().map(|seen| seen.run).collect();
        for run in runs {
            let starts = host.state.path().join(format!("{}-1", run.uid)).join("starts");
            match ended(&sandbox, &run).await.cause {
                EndCause::Exited(0) => {
                    assert_eq!(fs::read_to_string(&starts).unwrap(), "started\n", "round {round}");
                    exited += 1;
                }
                EndCause::NotStarted(_) => {
                    assert!(!starts.exists(), "round {round}");
                    not_started += 1;
                }
                other => panic!("round {round}: {run} ended with {other:?}"),
            }
            sandbox.remove(&run).await.unwrap();
        }
        assert_eq!(processes_with("61020.5"), Vec::<i32>::new(), "round {round}");
        assert_eq!(launchers_of(host.state.path()), Vec::<i32>::new(), "round {round}");
        let folders = fs::read_dir(host.state.path().join("runs")).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(folders.filter(|path| path.is_dir()).collect::<Vec<_>>(), Vec::<PathBuf>::new(), "round {round}");
    }
    println!("{exited} exited, {not_started} were never started");
    assert!(exited > 0, "no round was late enough to start anything");
}

/// Launchers whose working directory is a run's folder of this state folder.
fn launchers_of(state: &Path) -> Vec<i32> {
    let state = fs::canonicalize(state).unwrap();
    let is_ours = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(state.join("runs")));
    processes_with("mosaic-init").into_iter().filter(is_ours).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn end_whose_last_word_comes_late_is_told_again() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("late-00001", 1, "while [ ! -e /workspace/go ]; do sleep 0.02; done");
    sandbox.ensure(spec.clone()).await.unwrap();
    let launcher = host.folder(&spec.run).read::<Identity>("launcher.json").unwrap().unwrap().pid;
    let launcher = rustix::process::Pid::from_raw(launcher).unwrap();
    // Slow as on a host that is short of processors: longer than a look waits for it.
    rustix::process::kill_process(launcher, rustix::process::Signal::STOP).unwrap();
    let mut changes = sandbox.changes();
    fs::write(spec.tree.join("go"), "").unwrap();
    let told = tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    assert_eq!(told, spec.run.uid);
    let state = seen(&sandbox, &spec.run).await.unwrap().state;
    assert!(matches!(state, SandboxState::Running { .. }), "it has no last word yet: {state:?}");
    while changes.try_recv().is_ok() {}
    rustix::process::kill_process(launcher, rustix::process::Signal::CONT).unwrap();
    let told = tokio::time::timeout(PATIENCE, changes.recv()).await.expect("nobody tells that it has ended after all");
    assert_eq!(told.unwrap(), spec.run.uid);
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(0));
}
