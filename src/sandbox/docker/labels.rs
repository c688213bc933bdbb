//! The labels of our containers: whose they are, for people, for adoption and for the kill lane. Nothing in them is secret.

use crate::api::names::{Epoch, Role, RunId};
use crate::sandbox::folder::hash;
use std::collections::HashMap;
use std::path::Path;

/// Id of the installation: containers of another are never touched.
pub const INSTALLATION: &str = "mosaicstack.dev/installation";
/// The run, as JSON.
pub const RUN: &str = "mosaicstack.dev/run";
/// `namespace/name` of the agent; empty: of none.
pub const AGENT: &str = "mosaicstack.dev/agent";
/// Uid of the agent.
pub const AGENT_UID: &str = "mosaicstack.dev/agent-uid";
/// Attempt of the agent.
pub const ATTEMPT: &str = "mosaicstack.dev/attempt";
/// `agent`, `gate` or `prepared`.
pub const ROLE: &str = "mosaicstack.dev/role";
/// Name of the folder of its run.
pub const RUN_NAME: &str = "mosaicstack.dev/run-name";
/// Name of the pod that an object belongs to.
pub const POD: &str = "mosaicstack.dev/pod";
/// Epoch of the leader that made it.
pub const EPOCH: &str = "mosaicstack.dev/epoch";

/// Mark of the state folder that it was made from: a copied folder has the same installation, but not the same containers.
pub const HOME: &str = "mosaicstack.dev/state";

/// The mark of a state folder.
#[must_use]
pub fn home(state: &Path) -> String {
    hash(state.as_os_str().as_encoded_bytes())[..16].to_owned()
}

/// All labels of a container that is made for a run.
#[must_use]
pub fn of(installation: &str, state: &Path, run: &RunId, agent: &str, epoch: Epoch) -> HashMap<String, String> {
    let role = match &run.role {
        Role::Agent => "agent",
        Role::Gate { .. } => "gate",
    };
    all(installation, state, run, agent, epoch, role)
}

/// All labels of a container that is prepared for whoever comes: of no agent. They stay when it is claimed.
#[must_use]
pub fn of_prepared(installation: &str, state: &Path, run: &RunId) -> HashMap<String, String> {
    all(installation, state, run, "", Epoch(0), "prepared")
}

fn all(installation: &str, state: &Path, run: &RunId, agent: &str, epoch: Epoch, role: &str) -> HashMap<String, String> {
    let labels = [
        ("app.kubernetes.io/name", "mosaic-sandbox".to_owned()),
        ("app.kubernetes.io/instance", installation.to_owned()),
        ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION").to_owned()),
        ("app.kubernetes.io/component", "sandbox".to_owned()),
        ("app.kubernetes.io/part-of", "mosaic".to_owned()),
        ("app.kubernetes.io/managed-by", "mosaic".to_owned()),
        (INSTALLATION, installation.to_owned()),
        (HOME, home(state)),
        (RUN, serde_json::to_string(run).expect("a run is plain data")),
        (AGENT, agent.to_owned()),
        (AGENT_UID, run.uid.to_string()),
        (ATTEMPT, run.attempt.to_string()),
        (ROLE, role.to_owned()),
        (EPOCH, epoch.0.to_string()),
    ];
    labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
