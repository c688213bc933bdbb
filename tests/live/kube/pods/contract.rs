//! The contract of `Sandbox`, unchanged, on pods.

use super::with_pods;
use crate::contract::{Subject, contract};
use mosaic::api::agent::Driver;
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::pod::{INIT_PATH_DEFAULT, PodConfig};
use mosaic::sandbox::{Drivers, Sandbox, SandboxConfig};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn contract_holds_on_pods() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::contract::contract_holds_on_pods") else { return };
    for (place, warm) in [(place.with_own_init(), 0), (place.with_own_init(), 2), (place, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let trees = folder.path().join("trees");
        std::fs::create_dir(&trees).unwrap();
        let config = SandboxConfig::new(folder.path().join("state"), uuid::Uuid::new_v4().to_string(), find_init().unwrap());
        let pods = PodConfig {
            listen: "0.0.0.0:0".parse().unwrap(),
            address: format!("{}:0", place.link_host),
            link_pods: None,
            image: place.image.clone(),
            init_image: place.init_image.clone(),
            init_path: INIT_PATH_DEFAULT.to_owned(),
            pull_policy: Some("Never".to_owned()),
            pull_secrets: Vec::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            pending_max: Duration::from_secs(60),
            // No records are in this cluster.
            is_owned: false,
        };
        let owner = config.ids;
        let sandbox = Drivers::open_with_pods(config, DockerConfig::default(), Some(pods), Driver::Pod).unwrap();
        sandbox.keep_warm(warm).unwrap();
        runtime.block_on(async {
            contract(&Subject { sandbox: &sandbox, trees: &trees, owner }).await;
            for seen in sandbox.observe(None).await.unwrap() {
                sandbox.stop(&seen.run).await.unwrap();
                sandbox.remove(&seen.run).await.unwrap();
            }
        });
        sandbox.end_prepared();
        super::assert_no_objects_left(&cluster, &runtime);
    }
}
