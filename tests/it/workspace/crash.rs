//! SIGKILL at any instant: whoever comes next goes on, and nothing is left over.

use super::fixture::*;
use mosaic::api::names::Attempt;
use mosaic::plan::observed::{Integrated, Pushed};
use mosaic::workspace::*;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const STATE: &str = "MOSAIC_TEST_CRASH_STATE";
const REPOS: &str = "MOSAIC_TEST_CRASH_REPOS";
const MODE: &str = "MOSAIC_TEST_CRASH_MODE";
const KILLS: u64 = 15;

/// One agent from admission to delivery and removal.
fn lifecycle(world: &World, number: u32, target: &str) {
    let base = world.resolve().base;
    let mut spec = world.tree_spec(number, &base);
    spec.attempt = world.ws.observe_tree(&uid(number)).unwrap().map_or(Attempt(1), |_| Attempt(2));
    let paths = world.ws.ensure_tree(&spec).unwrap();
    write(&paths.tree.join("src/main.txt"), &format!("{target}\n"));
    let candidate = world.candidate(number, &base);
    let Integrated::Head { head, base } = world.integrate(&candidate, &base) else { panic!("no head") };
    let gate = GateTreeSpec {
        namespace: namespace(),
        repository: world.remote.clone(),
        uid: uid(number),
        attempt: Attempt(1),
        key: "tests".into(),
        head: head.clone(),
    };
    let gate_tree = world.ws.ensure_gate_tree(&gate).unwrap();
    assert_eq!(std::fs::read_to_string(gate_tree.join("src/main.txt")).unwrap(), format!("{target}\n"));
    assert_eq!(world.push(number, &base, &head, target), Pushed::Verified(head.clone()));
    let rescue = RescueSpec {
        namespace: namespace(),
        repository: world.remote.clone(),
        uid: uid(number),
        base: Some(base),
        commits: &[head],
        date: date(),
    };
    world.ws.rescue(&rescue).unwrap();
    world.ws.remove(&uid(number)).unwrap();
}

/// Runs in a process of its own, which the next test starts and kills.
#[test]
fn the_process_that_is_killed() {
    let Some(state) = std::env::var_os(STATE) else { return };
    let mode = if std::env::var_os(MODE).is_some_and(|mode| mode == "overlay") { TreeModeWish::Overlay } else { TreeModeWish::Checkout };
    let world = World::existing(state.as_ref(), std::env::var_os(REPOS).unwrap().as_ref(), mode);
    for round in 0_u32.. {
        lifecycle(&world, 1, &format!("mosaic/{}-{round}", std::process::id()));
    }
}

#[test]
fn killed_at_any_instant_the_next_one_goes_on_and_nothing_is_left_over() {
    for (mode, name) in [(TreeModeWish::Overlay, "overlay"), (TreeModeWish::Checkout, "checkout")] {
        let mut world = World::new(mode);
        for kill in 0..KILLS {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "workspace::crash::the_process_that_is_killed", "--nocapture"])
                .envs([(STATE, world.state.as_os_str()), (REPOS, world.repos.as_os_str()), (MODE, name.as_ref())])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(10 + kill * 37 % 250));
            victim.kill().unwrap();
            assert_eq!(victim.wait().unwrap().signal(), Some(9), "it ended by itself");
            if kill % 3 == 0 {
                world.commit(&[("README.md", &format!("moved {kill}\n"))]);
            }
            world.reopen(mode);
            lifecycle(&world, 1, &format!("mosaic/after-{kill}"));
            assert_eq!(world.remote_file(&format!("mosaic/after-{kill}"), "src/main.txt"), format!("mosaic/after-{kill}"));
            assert_eq!(world.ws.inventory().unwrap(), TreeInventory::default());
            assert_eq!(mounts_below(&world.state), Vec::<String>::new());
            for folder in ["trees", "gate-trees"] {
                assert_eq!(std::fs::read_dir(world.state.join(folder)).unwrap().count(), 0, "{folder}");
            }
        }
        git_ok(&world.work(), &["fsck", "--strict", "--no-dangling"]);
    }
}
