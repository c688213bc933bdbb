//! Docker: what the driver and the kill lane add to a real engine, over the least that the same engine can be asked for.
//!
//! Everything is real: containers of the test image (busybox) with the limits of an agent, made by `Drivers` on a state folder of the bench.
//! The other side asks the same engine through its API for containers with the very flags of ours (they are read back from one of ours), runs
//! the same command without an init of ours, and kills by what the kernel or the engine offers. A start is over with the first byte that the
//! command writes, a kill when nothing is left in the process table, a removal when the engine lists nothing.
//!
//! `MOSAIC_BENCH_DOCKER=50:6:3:100` says how often starts, waves and kills are measured, and how many containers are killed at most.

mod kills;
mod raw;

use crate::table::{Figure, Part};
use futures::StreamExt;
use futures::future::join_all;
use mosaic::api::agent::Driver;
use mosaic::api::names::{Attempt, Epoch, Role, RunId, Uid};
use mosaic::api::validate::LIMITS_DEFAULT;
use mosaic::effect::flight::EFFECTS_PARALLEL_MAX;
use mosaic::plan::observed::SandboxState;
use mosaic::sandbox::docker::engine::Engine;
use mosaic::sandbox::docker::{DockerConfig, IMAGE_DEFAULT};
use mosaic::sandbox::folder::RunFolder;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, RunSpec, SANDBOX_UID, Sandbox, SandboxConfig};
use raw::Raw;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Containers that start at once in a wave.
const WAVE: usize = 10;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// What runs: a sign of life, and then it stays.
const SCRIPT: &str = "echo > /workspace/sign; while :; do sleep 1000; done";

/// The bench's own state folder and engine.
struct Bench {
    folder: tempfile::TempDir,
    installation: String,
    engine: Engine,
    image: String,
    runtime: tokio::runtime::Runtime,
}

/// How often starts, waves and kills are measured, and how many are killed at most.
fn sizes() -> [usize; 4] {
    let wanted = std::env::var("MOSAIC_BENCH_DOCKER").unwrap_or_default();
    let numbers: Vec<usize> = wanted.split(':').filter_map(|text| text.parse().ok()).collect();
    numbers.try_into().unwrap_or([50, 6, 3, 100])
}

/// Measures the part.
pub fn measure() -> Part {
    let skipped = |why: &str| Part { figures: Vec::new(), foot: vec![format!("docker: not measured, {why}")] };
    if !rustix::process::geteuid().is_root() {
        return skipped("it looks at processes of another user");
    }
    let Ok(engine) = Engine::connect(None) else { return skipped("no engine") };
    if find_init().is_err() {
        return skipped("there is no mosaic-init; run it by `make bench`");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let image = std::env::var("MOSAIC_BENCH_IMAGE").unwrap_or_else(|_| IMAGE_DEFAULT.to_owned());
    if !matches!(runtime.block_on(engine.image(&image)), Ok(Some(_))) {
        return skipped(&format!("the engine does not answer, or has no image {image} (make image)"));
    }
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("a folder that its user may enter");
    let installation = uuid::Uuid::new_v4().to_string();
    let bench = Bench { folder, installation, engine, image, runtime };
    let [starts, waves, kills, most] = sizes();
    let drivers = bench.open();
    drivers.test(Driver::Docker).expect("docker sandboxes work here");
    let mut part = Part::default();
    bench.starts(&drivers, starts, waves, &mut part);
    bench.claims(&drivers, starts, &mut part);
    bench.repairs(&drivers, starts.min(20), &mut part);
    let drivers = bench.adoptions(drivers, kills, most.min(50), &mut part);
    for count in BTreeSet::from([most.min(50), most]) {
        bench.kills(&drivers, count, kills, &mut part);
    }
    assert_eq!(bench.containers(), 0, "the bench has left containers");
    part.foot.push(
        "docker: ours = Drivers on a real engine, with record, read-back, start gate, limits and the look from inside; floor = the same engine \
         asked through its API with the same flags, running the same command (see benches/ratios/docker.rs)."
            .to_owned(),
    );
    part
}

impl Bench {
    fn open(&self) -> Drivers {
        let config = SandboxConfig::new(self.folder.path(), &self.installation, find_init().expect("an init"));
        let docker = DockerConfig { image: self.image.clone(), ..DockerConfig::default() };
        Drivers::open(config, docker, Driver::Docker).expect("drivers")
    }

    /// Containers of ours that the engine knows.
    fn containers(&self) -> usize {
        self.runtime.block_on(self.engine.ours(&self.installation)).expect("an answer").len()
    }

    /// One start over one raw start, and ten at once over ten at once.
    fn starts(&self, drivers: &Drivers, starts: usize, waves: usize, part: &mut Part) {
        let raw = self.template(drivers);
        for (count, turns, name, goal) in [
            (1, starts, "container to first sign / raw create and start", 1.15),
            (WAVE, waves, "ten containers at once / ten raw at once", 0.95),
        ] {
            let (mut ours, mut floor) = (Vec::new(), Vec::new());
            // The first of each warms up.
            for turn in 0..=turns {
                let specs: Vec<RunSpec> = (0..count).map(|n| self.spec(&format!("start-{count}-{turn}-{n}"), 1)).collect();
                let trees: Vec<PathBuf> = (0..count).map(|n| self.tree(&format!("raw-{count}-{turn}-{n}"))).collect();
                let times = (self.start(drivers, &specs), self.runtime.block_on(raw.start(&trees)));
                if turn > 0 {
                    ours.push(times.0);
                    floor.push(times.1);
                }
                self.clear(drivers, specs.iter().map(|spec| &spec.run));
            }
            part.figures.push(Figure::of_seconds(name, Some(goal), &ours, &floor));
        }
        self.runtime.block_on(raw.end());
    }

    /// A prepared container that is claimed over `docker exec` in a running one.
    fn claims(&self, drivers: &Drivers, turns: usize, part: &mut Part) {
        if let Err(why) = drivers.keep_warm(1) {
            part.foot.push(format!("docker: claims were not measured, {why}"));
            return;
        }
        let raw = self.template(drivers);
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for turn in 0..=turns {
            until("a prepared container", || drivers.docker().prepared().0 == 1);
            let spec = self.spec(&format!("claim-{turn}"), 1);
            let times = (self.start(drivers, std::slice::from_ref(&spec)), self.runtime.block_on(raw.exec()));
            if turn > 0 {
                ours.push(times.0);
                floor.push(times.1);
            }
            self.clear(drivers, [&spec.run].into_iter());
        }
        part.figures.push(Figure::of_seconds("prepared container claimed, to first sign / docker exec", Some(0.5), &ours, &floor));
        self.runtime.block_on(raw.end());
        drivers.end_prepared();
    }

    /// From the SIGKILL of a sandbox's init, which nobody announced, to the first sign of the next attempt, over a raw start.
    fn repairs(&self, drivers: &Drivers, turns: usize, part: &mut Part) {
        let raw = self.template(drivers);
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for turn in 0..=turns {
            let [first, second] = [1, 2].map(|attempt| self.spec(&format!("repair-{turn}"), attempt));
            self.start(drivers, std::slice::from_ref(&first));
            let pid = self.pid(&first.run);
            let mut changes = drivers.changes();
            let killed = Instant::now();
            kill(pid);
            self.runtime.block_on(async {
                loop {
                    let seen = drivers.observe(Some(&first.run.uid)).await.expect("a look");
                    if seen.iter().any(|seen| matches!(seen.state, SandboxState::Ended(_))) {
                        return;
                    }
                    drop(tokio::time::timeout(PATIENCE, changes.recv()).await.expect("its end is told"));
                }
            });
            let noticed = killed.elapsed().as_secs_f64();
            let times = (
                noticed + self.start(drivers, std::slice::from_ref(&second)),
                self.runtime.block_on(raw.start(&[self.tree(&format!("raw-repair-{turn}"))])),
            );
            if turn > 0 {
                ours.push(times.0);
                floor.push(times.1);
            }
            self.clear(drivers, [&first.run, &second.run].into_iter());
        }
        part.figures.push(Figure::of_seconds(
            "SIGKILLed container to the next one's first sign / raw create and start",
            Some(1.3),
            &ours,
            &floor,
        ));
        self.runtime.block_on(raw.end());
    }

    /// The next controller finds fifty running ones, over a list and fifty inspections.
    fn adoptions(&self, drivers: Drivers, turns: usize, count: usize, part: &mut Part) -> Drivers {
        let specs: Vec<RunSpec> = (0..count).map(|n| self.spec(&format!("adopted-{n}"), 1)).collect();
        for wave in specs.chunks(WAVE) {
            self.start(&drivers, wave);
        }
        let (mut ours, mut floor, mut doubled) = (Vec::new(), Vec::new(), 0);
        let mut drivers = drivers;
        for turn in 0..=turns * 3 {
            drop(drivers);
            let started = Instant::now();
            drivers = self.open();
            let seen = self.runtime.block_on(drivers.observe(None)).expect("a look");
            let took = started.elapsed().as_secs_f64();
            let running = seen.iter().filter(|seen| matches!(seen.state, SandboxState::Running { .. })).count();
            assert_eq!(running, count, "all are adopted");
            doubled += self.containers().saturating_sub(count);
            let looked = self.runtime.block_on(self.list_and_inspect(count));
            if turn > 0 {
                ours.push(took);
                floor.push(looked);
            }
        }
        part.figures.push(Figure::of_seconds(
            &format!("{count} containers adopted and looked at / list and inspect of {count}"),
            Some(2.0),
            &ours,
            &floor,
        ));
        part.foot.push(format!(
            "docker: after {} adoptions of {count} containers the engine had {doubled} more than there should be.",
            turns * 3
        ));
        drivers.test(Driver::Docker).expect("docker sandboxes work here");
        self.clear(&drivers, specs.iter().map(|spec| &spec.run));
        drivers
    }

    async fn list_and_inspect(&self, count: usize) -> f64 {
        let started = Instant::now();
        let all = self.engine.ours(&self.installation).await.expect("a list");
        let looks = all.iter().map(|container| self.engine.inspect(&container.id));
        assert_eq!(join_all(looks).await.into_iter().filter(|seen| matches!(seen, Ok(Some(_)))).count(), count);
        started.elapsed().as_secs_f64()
    }

    /// Starts all at once; seconds until the last has written its byte.
    fn start(&self, drivers: &Drivers, specs: &[RunSpec]) -> f64 {
        let started = Instant::now();
        let signs: Vec<_> = specs.iter().map(|spec| sign_of(&spec.tree)).collect();
        let ensured = self.runtime.block_on(join_all(specs.iter().map(|spec| drivers.ensure(spec.clone()))));
        ensured.into_iter().for_each(|outcome| outcome.expect("a sandbox"));
        last_of(signs).duration_since(started).as_secs_f64()
    }

    /// Stops and removes runs, as many at once as the controller does.
    fn clear<'a>(&self, drivers: &Drivers, runs: impl Iterator<Item = &'a RunId>) {
        let gone = runs.map(async |run| {
            // A busy engine does not do everything in its time.
            while drivers.stop(run).await.is_err() || drivers.remove(run).await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        self.runtime.block_on(futures::stream::iter(gone).buffer_unordered(EFFECTS_PARALLEL_MAX).for_each(async |()| ()));
    }

    fn pid(&self, run: &RunId) -> i32 {
        RunFolder::of(self.folder.path(), run).identity().expect("a look").expect("an init").pid
    }

    /// A raw side that has the flags of one of our containers.
    fn template(&self, drivers: &Drivers) -> Raw {
        let spec = self.spec(&format!("template-{}", uuid::Uuid::new_v4().simple()), 1);
        self.start(drivers, std::slice::from_ref(&spec));
        let raw = self.runtime.block_on(Raw::like(&self.engine, &self.installation, &spec, self.tree(&format!("exec-{}", spec.run.uid))));
        self.clear(drivers, [&spec.run].into_iter());
        raw
    }

    /// An agent as the controller makes them.
    fn spec(&self, name: &str, attempt: u32) -> RunSpec {
        let run = RunId { uid: Uid::new(format!("bench-{name}")).expect("a uid"), attempt: Attempt(attempt), role: Role::Agent };
        RunSpec {
            epoch: Epoch(1),
            driver: Driver::Docker,
            image: None,
            runtime_class: None,
            agent: format!("bench/{name}"),
            tree: self.tree(&format!("{name}-{attempt}")),
            home: Some(self.owned(&format!("home-{name}"))),
            base_objects: Some(self.owned("objects")),
            task: Some(b"{}".to_vec()),
            args: ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            deadline: None,
            limits: LIMITS_DEFAULT,
            run,
        }
    }

    fn owned(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join("work").join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        chown(&path, Some(SANDBOX_UID), Some(SANDBOX_UID)).expect("root may");
        path
    }

    /// A tree with the pipe of the sign, owned by the sandbox's user.
    fn tree(&self, name: &str) -> PathBuf {
        let tree = self.owned(name);
        let pipe = tree.join("sign");
        if !pipe.exists() {
            rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).expect("a pipe");
            chown(&pipe, Some(SANDBOX_UID), Some(SANDBOX_UID)).expect("root may");
        }
        tree
    }
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

fn last_of(signs: Vec<std::thread::JoinHandle<Instant>>) -> Instant {
    signs.into_iter().map(|sign| sign.join().expect("a sign")).max().expect("at least one")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
