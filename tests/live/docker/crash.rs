//! A controller that is killed at any instant: the next one finds every run running, ended or never started, and nothing besides.

use super::{Host, clean};
use crate::contract::{Subject, ended};
use crate::engine::{BUSYBOX, engine};
use mosaic::api::agent::Driver;
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, SANDBOX_UID, Sandbox, SandboxConfig, SandboxIds};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHILD: &str = "docker::crash::controller_of_the_crash_test";
const STATE: &str = "MOSAIC_TEST_CRASH_STATE";
const INSTALLATION: &str = "MOSAIC_TEST_CRASH_INSTALLATION";
const ROUND: &str = "MOSAIC_TEST_CRASH_ROUND";
const ROUNDS: u64 = 16;
const RUNS: usize = 4;

/// Not a test by itself: what `controller_killed_at_any_instant_leaves_nothing_half_done` starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn controller_of_the_crash_test() {
    let variables = (std::env::var(STATE), std::env::var(INSTALLATION), std::env::var(ROUND));
    let (Ok(state), Ok(installation), Ok(round)) = variables else { return };
    let config = SandboxConfig::new(&state, installation, find_init().unwrap());
    let docker = DockerConfig { image: BUSYBOX.to_owned(), ..DockerConfig::default() };
    let sandbox = Drivers::open(config, docker, Driver::Docker).unwrap();
    let subject = Subject { sandbox: &sandbox, trees: Path::new(&state), owner: SandboxIds::of(SANDBOX_UID) };
    let script = "echo started >> /workspace/starts; sleep 0.1; setsid sleep 61030.5 & exit 0";
    let specs = (0..RUNS).map(|n| subject.script(&format!("crash-{round}-{n}"), 1, script));
    futures::future::join_all(specs.map(|spec| sandbox.ensure(spec))).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_killed_at_any_instant_leaves_nothing_half_done() {
    let Some(engine) = engine("docker::crash::controller_killed_at_any_instant_leaves_nothing_half_done").await else { return };
    let host = Host::new();
    drop(host.open());
    let (mut exited, mut not_started, mut resumed) = (0, 0, 0);
    for round in 0..ROUNDS {
        let mut controller = Command::new(std::env::current_exe().unwrap())
            .args([CHILD, "--exact"])
            .env(STATE, host.state.path())
            .env(INSTALLATION, &host.installation)
            .env(ROUND, round.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the time that opening, proving and starting take.
        tokio::time::sleep(Duration::from_millis(40 + round * 110)).await;
        controller.kill().unwrap();
        controller.wait().unwrap();

        let sandbox = host.open();
        let found = settle(&host, &sandbox, round).await;
        (exited, not_started, resumed) = (exited + found.0, not_started + found.1, resumed + found.2);
        clean(&host, &sandbox, &engine).await;
        assert_eq!(alive("61030.5"), 0, "round {round}");
    }
    println!("{exited} exited, {not_started} were never started, {resumed} were resumed");
    assert!(exited > 0, "no round was late enough to start anything");
}

/// Makes whole what a killed controller has left, waits for all ends, and looks that each that ended well was started once. How many exited,
/// were never started, and had to be made whole.
pub async fn settle(host: &Host, sandbox: &Drivers, round: u64) -> (u32, u32, u32) {
    let (mut exited, mut not_started, mut resumed) = (0, 0, 0);
    for seen in sandbox.observe(None).await.unwrap() {
        let run = seen.run;
        let starts = host.state.path().join(format!("{}-1", run.uid)).join("starts");
        // What was made and not started is made whole, as the reconcile loop does.
        if seen.state == SandboxState::Preparing {
            let subject = host.subject(sandbox);
            let mut spec = subject.command(run.uid.as_str(), 1, &["/bin/true"]);
            spec.run = run.clone();
            sandbox.ensure(spec).await.unwrap();
            resumed += 1;
        }
        match ended(sandbox, &run).await.cause {
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
    }
    (exited, not_started, resumed)
}

/// Processes whose command line holds this text, seen for a while: what was just killed goes in a moment.
pub fn alive(marker: &str) -> usize {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
        let count = pids
            .filter(|pid| String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(marker))
            .count();
        if count == 0 || Instant::now() > until {
            return count;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
