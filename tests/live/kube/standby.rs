//! Several controllers on one cluster, each with a state folder of its own.

use super::cluster::{Cluster, cluster_now};
use crate::controllers;
use crate::harness::Mosaic;
use serde_json::Value;
use tokio::runtime::Runtime;

#[test]
fn one_leads_and_the_other_stands_by_serves_and_takes_over() {
    let test = "kube::standby::one_leads_and_the_other_stands_by_serves_and_takes_over";
    let Some((_cluster, _runtime)) = cluster_now(test) else { return };
    let shared = tempfile::tempdir().unwrap();
    let flags = ["--store", "kube", "--local-repos", shared.path().to_str().unwrap()];
    controllers::one_leads_and_the_other_takes_over(&flags, shared.path());
}

#[test]
fn a_stopped_leader_doubles_nothing_when_it_goes_on() {
    let Some((cluster, runtime)) = cluster_now("kube::standby::a_stopped_leader_doubles_nothing_when_it_goes_on") else { return };
    let shared = tempfile::tempdir().unwrap();
    let flags = ["--store", "kube", "--local-repos", shared.path().to_str().unwrap()];
    let controllers = [(); 3].map(|()| Mosaic::start(&flags));
    controllers::stopped_leader_doubles_nothing(controllers, shared.path(), || ended_versions(&cluster, &runtime));
}

/// The versions of all agents that have ended.
pub fn ended_versions(cluster: &Cluster, runtime: &Runtime) -> Vec<(Value, Value)> {
    let list = runtime.block_on(cluster.ask("GET", "/apis/mosaicstack.dev/v1alpha1/agents", None)).unwrap();
    let ended = list["items"].as_array().unwrap().iter().filter(|item| item["status"]["phase"] == "Completed").cloned();
    ended.map(|item| (item["metadata"]["uid"].clone(), item["metadata"]["resourceVersion"].clone())).collect()
}
