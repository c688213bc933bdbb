//! Containers that are made ahead: who takes one, what is seen in it, and what becomes of those that nobody takes.

use super::crash::{alive, settle};
use super::{Host, clean};
use crate::contract::{Subject, ended, seen, until};
use crate::engine::engine;
use crate::harness::unmount;
use mosaic::api::names::{Attempt, CommitId, GateName, Role};
use mosaic::api::validate::LIMITS_DEFAULT;
use mosaic::kill::Killer;
use mosaic::kill::latch::Latch;
use mosaic::kill::receipt::{KillRequest, Verdict};
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::docker::engine::Engine;
use mosaic::sandbox::docker::host::own_container;
use mosaic::sandbox::{Drivers, RunSpec, SANDBOX_UID, Sandbox, SandboxConfig, SandboxIds};
use rustix::mount::MountFlags;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The engine; `None`: nothing can be prepared here, which was said.
async fn ready(test: &str) -> Option<Engine> {
    if !rustix::process::geteuid().is_root() || own_container().is_some() {
        crate::skip::skip(test, "containers are prepared by root on the engine's host");
        return None;
    }
    engine(test).await
}

/// Waits until so many are prepared.
async fn prepared(sandbox: &Drivers, count: usize) {
    until("containers are prepared", || sandbox.docker().prepared().0 == count).await;
}

/// Folders that belong to the sandbox's user.
fn owned(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(SANDBOX_UID), Some(SANDBOX_UID)).unwrap();
    path
}

/// An agent as the controller makes them: with a task, a HOME and base objects, and the usual limits.
fn agent(subject: &Subject<'_>, uid: &str, attempt: u32, script: &str) -> RunSpec {
    let mut spec = subject.script(uid, attempt, script);
    spec.limits = LIMITS_DEFAULT;
    spec.task = Some(format!("the task of {uid}").into_bytes());
    spec.home = Some(owned(subject.trees.join(format!("home-{uid}"))));
    let objects = owned(subject.trees.join("objects"));
    fs::write(objects.join("object"), "an object").unwrap();
    spec.base_objects = Some(objects);
    spec
}

async fn ids(engine: &Engine, host: &Host) -> BTreeSet<String> {
    engine.ours(&host.installation).await.unwrap().into_iter().map(|container| container.id).collect()
}

/// Ids that are shown of a run.
async fn id_of(sandbox: &Drivers, spec: &RunSpec) -> String {
    seen(sandbox, &spec.run).await.unwrap().id.trim_start_matches("container ").to_owned()
}

fn pids(host: &Host) -> Vec<i32> {
    let folders = fs::read_dir(host.state.path().join("prepared")).into_iter().flatten().flatten();
    let identities = folders.filter_map(|entry| mosaic::sandbox::folder::RunFolder::at(entry.path()).identity().unwrap());
    identities.map(|identity| identity.pid).collect()
}

fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What an agent sees of what is mounted for it, of itself, and of what it may.
const LOOK: &str = r#"
    echo "ids $(id -u) $(id -g)"; echo "home $HOME"; echo "cwd $(pwd)"; cat /mosaic/task.json /mosaic/base/objects/object; echo
    cat /workspace/from-host; ls -A /workspace; stat -c '%n %u %a' /workspace "$HOME" /mosaic/out /mosaic/base/objects /mosaic/task.json
    cut -d' ' -f2 /proc/mounts | sort -u
    for place in /workspace "$HOME" /mosaic/base/objects /mosaic/task.json /mosaic/control; do
      grep -c " $place ro" /proc/mounts; done
    for file in /mosaic/base/objects/x /mosaic/task.json /mosaic/control/x /mosaic/link/x /x /etc/x; do
      (: > $file) 2>/dev/null && echo "wrote $file"; done
    for file in /workspace/written "$HOME/written" /tmp/x /mosaic/out/x; do (: > "$file") || echo "cannot write $file"; done
    cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null
    df -k /tmp /dev/shm | tail -n 2 | awk '{print $2}'
    grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status; set -- /proc/[0-9]*; echo "$#""#;

#[tokio::test(flavor = "multi_thread")]
async fn agent_in_a_prepared_container_finds_what_it_would_find_in_a_new_one() {
    let test = "docker::warm::agent_in_a_prepared_container_finds_what_it_would_find_in_a_new_one";
    let Some(engine) = ready(test).await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    let mut looks = Vec::new();
    for (attempt, warm) in [(1, false), (2, true)] {
        if warm {
            sandbox.keep_warm(1).unwrap();
            prepared(&sandbox, 1).await;
        }
        let before = ids(&engine, &host).await;
        let spec = agent(&subject, "alike-0001", attempt, &format!("{LOOK}; : > looked; while [ ! -e go ]; do sleep 0.05; done; rm go"));
        fs::write(spec.tree.join("from-host"), "from the host\n").unwrap();
        let _ = fs::remove_file(spec.home.as_ref().unwrap().join("written"));
        let started = Instant::now();
        sandbox.ensure(spec.clone()).await.unwrap();
        println!("{}: {:?}", if warm { "claimed" } else { "made" }, started.elapsed());
        let now = seen(&sandbox, &spec.run).await.unwrap();
        assert!(matches!(now.state, SandboxState::Running { .. }), "{now:?}");
        assert_eq!(before.iter().any(|id| id.starts_with(&id_of_seen(&now.id))), warm, "{} of {before:?}", now.id);
        until("it has looked", || spec.tree.join("looked").exists()).await;
        fs::write(spec.tree.join("go"), "").unwrap();
        let end = ended(&sandbox, &spec.run).await;
        assert_eq!(end.cause, EndCause::Exited(0), "{}", end.output_tail);
        assert!(spec.tree.join("written").exists() && spec.home.as_ref().unwrap().join("written").exists(), "it is read back here");
        looks.push((now.isolation, end.output_tail));
        sandbox.remove(&spec.run).await.unwrap();
    }
    let (new, claimed) = (&looks[0], &looks[1]);
    assert_eq!(new.0, claimed.0, "isolation");
    assert_eq!(new.1, claimed.1, "what is seen from inside");
    assert!(claimed.1.contains("the task of alike-0001an object\nfrom the host\n"), "{}", claimed.1);
    // Another one has taken its place, and nothing is left of the one that was used.
    prepared(&sandbox, 1).await;
    assert_eq!(ids(&engine, &host).await.len(), 1);
    sandbox.end_prepared();
    assert_eq!(sandbox.docker().prepared().0, 0);
    clean(&host, &sandbox, &engine).await;
    assert_eq!(fs::read_dir(host.state.path().join("prepared")).unwrap().count(), 0);
}

fn id_of_seen(id: &str) -> String {
    id.trim_start_matches("container ").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_tree_is_worked_on_in_a_prepared_container_and_unmounted_after_it() {
    let test = "docker::warm::overlay_tree_is_worked_on_in_a_prepared_container_and_unmounted_after_it";
    let Some(engine) = ready(test).await else { return };
    let host = Host::new();
    let sandbox = host.open();
    sandbox.keep_warm(1).unwrap();
    prepared(&sandbox, 1).await;
    let script = "mv folder renamed && echo changed > renamed/file && cat renamed/file";
    let spec = agent(&host.subject(&sandbox), "overlay-01", 1, script);
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| owned(host.state.path().join(name)));
    owned(lower.join("folder"));
    fs::write(lower.join("folder/file"), "before").unwrap();
    std::os::unix::fs::chown(lower.join("folder/file"), Some(SANDBOX_UID), Some(SANDBOX_UID)).unwrap();
    let options = format!("redirect_dir=on,lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("mosaic", &spec.tree, "overlay", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str())).unwrap();
    let end = host.subject(&sandbox).run(spec.clone()).await;
    assert_eq!((end.cause, end.output_tail.as_str()), (EndCause::Exited(0), "changed\n"));
    assert_eq!(fs::read_to_string(spec.tree.join("renamed/file")).unwrap(), "changed\n");
    assert_eq!(fs::read_to_string(lower.join("folder/file")).unwrap(), "before");
    // Nothing in the container holds it.
    unmount(&spec.tree);
    sandbox.end_prepared();
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_something_else_gets_a_new_container() {
    let Some(engine) = ready("docker::warm::who_asks_for_something_else_gets_a_new_container").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    sandbox.keep_warm(1).unwrap();
    prepared(&sandbox, 1).await;
    let waiting = ids(&engine, &host).await;
    let subject = host.subject(&sandbox);
    type Change = fn(&mut RunSpec);
    let changes: [Change; 5] = [
        |spec| spec.limits.memory_bytes = 256 << 20,
        |spec| spec.limits.cpu_millis = 500,
        |spec| spec.limits.pids_max = 64,
        |spec| spec.home = None,
        |spec| {
            let (name, sha) = (GateName::new("tests").unwrap(), CommitId::new("0".repeat(40)).unwrap());
            spec.run.role = Role::Gate { name, sha, tries: 0 };
        },
    ];
    for (attempt, change) in (1..).zip(changes) {
        let mut spec = agent(&subject, "others-001", attempt, "exit 3");
        change(&mut spec);
        spec.run.attempt = Attempt(attempt);
        assert_eq!(subject.run(spec.clone()).await.cause, EndCause::Exited(3));
        let id = id_of(&sandbox, &spec).await;
        assert!(waiting.iter().all(|waiting| !waiting.starts_with(&id)), "change {attempt}");
        sandbox.remove(&spec.run).await.unwrap();
    }
    assert_eq!(ids(&engine, &host).await, waiting, "it still waits");
    sandbox.end_prepared();
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_controller_ends_what_was_prepared_and_keeps_what_was_claimed() {
    let Some(engine) = ready("docker::warm::next_controller_ends_what_was_prepared_and_keeps_what_was_claimed").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    sandbox.keep_warm(2).unwrap();
    prepared(&sandbox, 2).await;
    let spec = agent(&host.subject(&sandbox), "claimed-01", 1, "while [ ! -e go ]; do sleep 0.05; done; exit 5");
    sandbox.ensure(spec.clone()).await.unwrap();
    prepared(&sandbox, 2).await;
    let waiting = pids(&host);
    assert_eq!((waiting.len(), ids(&engine, &host).await.len()), (2, 3));
    drop(sandbox);
    let sandbox = host.open();
    until("the prepared ones are gone", || waiting.iter().all(|pid| !lives(*pid))).await;
    // A look at everything sweeps what belongs to nobody, and this one's labels name no run.
    assert_eq!(sandbox.observe(None).await.unwrap().len(), 1);
    assert_eq!(ids(&engine, &host).await.len(), 1);
    assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    fs::write(spec.tree.join("go"), "").unwrap();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(5));
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_everything_ends_the_prepared_as_well_and_tells_agents_only() {
    let Some(engine) = ready("docker::warm::kill_of_everything_ends_the_prepared_as_well_and_tells_agents_only").await else { return };
    let host = Host::new();
    let latch = Arc::new(Latch::open(host.state.path()).unwrap());
    let config = SandboxConfig { latch: latch.clone(), ..host.config() };
    let docker = DockerConfig { image: host.image.clone(), ..DockerConfig::default() };
    let sandbox = Drivers::open(config, docker, mosaic::api::agent::Driver::Docker).unwrap();
    sandbox.test(mosaic::api::agent::Driver::Docker).unwrap();
    sandbox.keep_warm(2).unwrap();
    prepared(&sandbox, 2).await;
    let spec = agent(&host.subject(&sandbox), "victim-001", 1, "trap '' TERM; while :; do sleep 1; done");
    sandbox.ensure(spec.clone()).await.unwrap();
    prepared(&sandbox, 2).await;
    let killer = Killer { state: host.state.path().to_owned(), latch: Ok(latch), controller: None, audit: None };
    // One agent: the others are not meant.
    let nobody = killer.kill(&KillRequest { agents: vec!["default/nobody".into()], ..KillRequest::default() });
    assert!(nobody.agents.is_empty(), "{nobody:?}");
    let (waiting, of_agent) = (pids(&host), host.folder(&spec.run).identity().unwrap().unwrap().pid);
    assert!(waiting.len() == 2 && waiting.iter().all(|pid| lives(*pid)));
    let request = KillRequest { all: true, reason: Some("test".into()), ..KillRequest::default() };
    let receipts = tokio::task::spawn_blocking(move || killer.kill(&request)).await.unwrap();
    assert!(waiting.iter().chain([&of_agent]).all(|pid| !lives(*pid)), "{receipts:?}");
    let told: Vec<_> = receipts.agents.iter().map(|receipt| (receipt.agent.as_str(), receipt.verdict, receipt.runs)).collect();
    assert_eq!(told, [("default/victim-001", Verdict::DeadVerified, 1)], "{receipts:?}");
    assert!(receipts.all_dead(), "{receipts:?}");
    // While everything is halted nothing new is prepared, and what was killed is taken away.
    until("the killed ones are removed", || fs::read_dir(host.state.path().join("prepared")).unwrap().count() == 0).await;
    assert_eq!(sandbox.docker().prepared().0, 0);
    clean(&host, &sandbox, &engine).await;
}

const CHILD: &str = "docker::warm::controller_that_prepares";
const STATE: &str = "MOSAIC_TEST_WARM_STATE";
const INSTALLATION: &str = "MOSAIC_TEST_WARM_INSTALLATION";

/// The round of a controller that also claims what it has prepared.
const ROUND: &str = "MOSAIC_TEST_WARM_ROUND";
const ROUNDS: u64 = 24;
/// What it has prepared and claims at once.
const CLAIMS: usize = 3;

/// Not a test by itself: what the two below start and kill.
#[tokio::test(flavor = "multi_thread")]
async fn controller_that_prepares() {
    let (Ok(state), Ok(installation)) = (std::env::var(STATE), std::env::var(INSTALLATION)) else { return };
    let config = SandboxConfig::new(&state, installation, mosaic::sandbox::init_binary::find_init().unwrap());
    let docker = DockerConfig { image: crate::engine::BUSYBOX.to_owned(), ..DockerConfig::default() };
    let sandbox = Drivers::open(config, docker, mosaic::api::agent::Driver::Docker).unwrap();
    sandbox.test(mosaic::api::agent::Driver::Docker).unwrap();
    sandbox.keep_warm(CLAIMS).unwrap();
    prepared(&sandbox, CLAIMS).await;
    if let Ok(round) = std::env::var(ROUND) {
        let subject = Subject { sandbox: &sandbox, trees: Path::new(&state), owner: SandboxIds::of(SANDBOX_UID) };
        let script = "echo started >> /workspace/starts; sleep 0.1; setsid sleep 61031.5 & exit 0";
        let specs: Vec<RunSpec> = (0..CLAIMS).map(|n| agent(&subject, &format!("crash-{round}-{n}"), 1, script)).collect();
        fs::write(Path::new(&state).join("claims"), "").unwrap();
        futures::future::join_all(specs.into_iter().map(|spec| sandbox.ensure(spec))).await;
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
}

fn controller(host: &Host, round: Option<u64>) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([CHILD, "--exact"]).env(STATE, host.state.path()).env(INSTALLATION, &host.installation);
    command.envs(round.map(|round| (ROUND, round.to_string()))).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_killed_at_any_instant_of_a_claim_leaves_nothing_half_done() {
    let Some(engine) = ready("docker::warm::controller_killed_at_any_instant_of_a_claim_leaves_nothing_half_done").await else { return };
    let host = Host::new();
    let (mut exited, mut not_started, mut resumed) = (0, 0, 0);
    for round in 0..ROUNDS {
        let mut controller = controller(&host, Some(round));
        let claims = host.state.path().join("claims");
        until("it claims", || claims.exists()).await;
        // Spread over the time that claims take.
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        controller.kill().unwrap();
        controller.wait().unwrap();
        fs::remove_file(&claims).unwrap();
        let sandbox = host.open();
        let found = settle(&host, &sandbox, round).await;
        (exited, not_started, resumed) = (exited + found.0, not_started + found.1, resumed + found.2);
        clean(&host, &sandbox, &engine).await;
        assert_eq!(fs::read_dir(host.state.path().join("prepared")).unwrap().count(), 0, "round {round}");
        assert_eq!(alive("61031.5"), 0, "round {round}");
    }
    println!("{exited} exited, {not_started} were never started, {resumed} were resumed");
    assert!(exited > 0, "no round was late enough to start anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_containers_end_by_themselves_when_nobody_comes_back() {
    let Some(engine) = ready("docker::warm::prepared_containers_end_by_themselves_when_nobody_comes_back").await else { return };
    let host = Host::new();
    let mut controller = controller(&host, None);
    until("containers are prepared", || pids(&host).len() == CLAIMS).await;
    let waiting = pids(&host);
    // Longer than one renewal of their lines.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(waiting.iter().all(|pid| lives(*pid)), "they live as long as their controller");
    controller.kill().unwrap();
    controller.wait().unwrap();
    let started = Instant::now();
    until("they are gone", || waiting.iter().all(|pid| !lives(*pid))).await;
    println!("prepared containers were gone {:?} after their controller", started.elapsed());
    let sandbox = host.open();
    clean(&host, &sandbox, &engine).await;
}
