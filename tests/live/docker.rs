//! The docker driver: the contract, and what only it promises.

mod contained;
mod crash;
mod images;
mod inside;
mod limits;
mod outages;
#[cfg(target_arch = "x86_64")]
mod probes;
mod shared;
mod survive;
mod user;
mod warm;

use crate::contract::{Subject, contract, ended, seen};
use crate::engine::{BUSYBOX, engine};
use mosaic::api::agent::Driver;
use mosaic::api::names::RunId;
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::docker::engine::Engine;
use mosaic::sandbox::folder::RunFolder;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, SANDBOX_UID, Sandbox, SandboxConfig, SandboxIds};
use tempfile::TempDir;

/// A state folder with an installation of its own, and drivers opened on it one after another.
pub struct Host {
    pub state: TempDir,
    pub installation: String,
    pub image: String,
}

impl Host {
    pub fn new() -> Self {
        let installation = uuid::Uuid::new_v4().to_string();
        Self { state: TempDir::new().unwrap(), installation, image: BUSYBOX.to_owned() }
    }

    pub fn config(&self) -> SandboxConfig {
        let mut config = SandboxConfig::new(self.state.path(), &self.installation, find_init().unwrap());
        config.output_bytes_max = 1 << 20;
        config
    }

    /// The drivers, with docker as the choice, tested.
    pub fn open(&self) -> Drivers {
        let drivers = self.open_untested(DockerConfig { image: self.image.clone(), ..DockerConfig::default() });
        drivers.test(Driver::Docker).unwrap();
        drivers
    }

    pub fn open_untested(&self, docker: DockerConfig) -> Drivers {
        Drivers::open(self.config(), docker, Driver::Docker).unwrap()
    }

    pub fn subject<'a>(&'a self, sandbox: &'a Drivers) -> Subject<'a> {
        Subject { sandbox, trees: self.state.path(), owner: SandboxIds::of(SANDBOX_UID) }
    }

    pub fn folder(&self, run: &RunId) -> RunFolder {
        RunFolder::of(self.state.path(), run)
    }
}

/// Stops and removes everything of these drivers, and looks that the engine has nothing of the installation left.
pub async fn clean(host: &Host, sandbox: &Drivers, engine: &Engine) {
    for seen in sandbox.observe(None).await.unwrap() {
        sandbox.stop(&seen.run).await.unwrap();
        sandbox.remove(&seen.run).await.unwrap();
    }
    assert_eq!(engine.ours(&host.installation).await.unwrap(), Vec::new());
    let folders = std::fs::read_dir(host.state.path().join("runs")).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(folders.filter(|path| path.is_dir()).collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_driver_keeps_the_contract() {
    let Some(engine) = engine("docker::docker_driver_keeps_the_contract").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    contract(&host.subject(&sandbox)).await;
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_controller_serves_processes_and_containers_at_once() {
    let Some(engine) = engine("docker::one_controller_serves_processes_and_containers_at_once").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    let mut specs = Vec::new();
    for (attempt, driver) in [(1, Driver::Process), (2, Driver::Docker)] {
        let mut spec = subject.script("both-00001", attempt, "sleep 1000");
        spec.driver = driver;
        sandbox.ensure(spec.clone()).await.unwrap();
        specs.push(spec);
    }
    let all = sandbox.observe(None).await.unwrap();
    assert_eq!(all.iter().map(|seen| seen.driver).collect::<Vec<_>>(), [Driver::Process, Driver::Docker]);
    assert_eq!(engine.ours(&host.installation).await.unwrap().len(), 1);
    drop(sandbox);
    // The next controller has another choice: what runs stays with what made it.
    let sandbox = Drivers::process(host.config()).unwrap();
    for (spec, id) in specs.iter().zip(["pid", "container"]) {
        let found = seen(&sandbox, &spec.run).await.unwrap();
        assert!(found.id.starts_with(id) && matches!(found.state, SandboxState::Running { .. }), "{found:?}");
        sandbox.stop(&spec.run).await.unwrap();
        assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Stopped);
    }
    clean(&host, &sandbox, &engine).await;
}
