//! The docker driver: the contract, and what only it promises.

use crate::contract::{self, Subject, contract};
use crate::engine::{BUSYBOX, engine};
use mosaic::api::agent::Driver;
use mosaic::api::names::RunId;
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::folder::RunFolder;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, SANDBOX_UID, SandboxConfig, SandboxIds};
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

#[tokio::test(flavor = "multi_thread")]
async fn docker_driver_keeps_the_contract() {
    let Some(engine) = engine("docker::docker_driver_keeps_the_contract").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    println!("{:?}", sandbox.verified(Driver::Docker));
    contract(&host.subject(&sandbox)).await;
    for seen in mosaic::sandbox::Sandbox::observe(&sandbox, None).await.unwrap() {
        mosaic::sandbox::Sandbox::stop(&sandbox, &seen.run).await.unwrap();
        mosaic::sandbox::Sandbox::remove(&sandbox, &seen.run).await.unwrap();
    }
    assert_eq!(engine.ours(&host.installation).await.unwrap(), Vec::new());
    let _ = contract::PATIENCE;
}
