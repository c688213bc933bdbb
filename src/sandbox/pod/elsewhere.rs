//! Pods that another controller of the same cluster has made, from a state folder of its own: looked at, ended and taken away by the API server
//! alone, for whoever leads when that one is gone for good. Only where records and pods are in one cluster: whoever leads there speaks for all.
//!
//! They are never adopted: the link, the token's use and the tree of such a run are in the other state folder.

use super::cluster::{Object, failed as call_failed};
use super::word::{self, Word};
use super::{Pods, Served, key_of, run_of};
use crate::api::agent::Driver;
use crate::api::names::{RunId, Uid};
use crate::plan::observed::{EndCause, RunEnd, SandboxSeen, SandboxState};
use crate::sandbox::docker::labels;
use crate::sandbox::folder::short;
use crate::sandbox::runs::failed;
use crate::sandbox::{SandboxError, runs::LOOK_PAUSE};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::io;
use std::sync::Arc;
use std::time::Instant;

impl Pods {
    /// Pods of an agent that another state folder has made; `None`: those cannot be told from here.
    pub(crate) fn elsewhere(&self, uid: &Uid) -> Result<Option<Vec<SandboxSeen>>, SandboxError> {
        let Some(served) = self.sharing() else { return Ok(None) };
        let pods = self.others(served, &format!("{}={uid}", labels::AGENT_UID));
        pods.map(|pods| Some(pods.iter().filter_map(seen).collect())).map_err(SandboxError::CannotObserve)
    }

    /// Ends the pod of a run that another state folder has made; none is success.
    pub(crate) fn stop_elsewhere(&self, id: &RunId) -> Result<(), SandboxError> {
        let Some(served) = self.sharing() else { return Ok(()) };
        let unverified = |why: String| SandboxError::Unverified { run: id.clone(), why };
        let until = Instant::now() + self.config.stop_timeout;
        let mut is_asked = false;
        loop {
            let pods = self.others_of(served, id).map_err(unverified)?;
            let Some(living) = pods.iter().find(|pod| !super::has_ended(pod)) else { return Ok(()) };
            if !is_asked {
                self.delete(served, Object::Pod, living).map_err(unverified)?;
                is_asked = true;
            }
            if Instant::now() >= until {
                let node = living.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                return Err(unverified(format!("the kubelet of node {node} has not said yet that its container ended")));
            }
            std::thread::sleep(LOOK_PAUSE * 20);
        }
    }

    /// Takes away what was made in the cluster for an ended run that another state folder has made.
    pub(crate) fn remove_elsewhere(&self, id: &RunId) -> Result<(), SandboxError> {
        let Some(served) = self.sharing() else { return Ok(()) };
        let cannot = |why: String| failed(id, "remove what was made for")(io::Error::other(why));
        for pod in self.others_of(served, id).map_err(cannot)? {
            if !super::has_ended(&pod) {
                return Err(cannot("it still runs: stop it first".to_owned()));
            }
            for object in [Object::Secret, Object::Policy, Object::Pod] {
                self.delete(served, object, &pod).map_err(cannot)?;
            }
            let (namespace, name) = key_of(&pod);
            let (cluster, uid) = (served.cluster.clone(), pod.metadata.uid.unwrap_or_default());
            let released = self.bridge.wait(async move { cluster.release(&namespace, &name, &uid).await });
            released.map_err(|e| call_failed(id, "remove", e))?;
        }
        Ok(())
    }

    /// The cluster, where its records are ours as well.
    fn sharing(&self) -> Option<&Served> {
        self.served.as_ref().filter(|served| served.pod.is_owned)
    }

    fn others_of(&self, served: &Served, id: &RunId) -> Result<Vec<Pod>, String> {
        self.others(served, &format!("{}={},{}={}", labels::AGENT_UID, id.uid, labels::RUN_NAME, short(id)))
    }

    /// Pods of ours that were not made from this state folder.
    fn others(&self, served: &Served, selector: &str) -> Result<Vec<Pod>, String> {
        let selector = format!("{selector},{}!={}", labels::HOME, labels::home(&self.config.state));
        let cluster: Arc<_> = served.cluster.clone();
        let found = self.bridge.wait(async move { cluster.pods(&selector).await });
        found.map_err(|e| format!("the pods could not be listed: {}", crate::causes::one_line(&e)))
    }

    fn delete(&self, served: &Served, object: Object, pod: &Pod) -> Result<(), String> {
        let ((namespace, name), cluster) = (key_of(pod), served.cluster.clone());
        let uid = pod.metadata.uid.clone().filter(|_| matches!(object, Object::Pod));
        let deleted = self.bridge.wait(async move { cluster.delete(object, &namespace, &name, uid.as_deref()).await });
        deleted.map_err(|e| crate::causes::one_line(&e))
    }
}

/// A pod as what is seen of it; `None`: it is no run's.
fn seen(pod: &Pod) -> Option<SandboxSeen> {
    let (run, _) = run_of(pod)?;
    let state = match word::of(pod) {
        Word::Coming { .. } => SandboxState::Preparing,
        Word::Runs => {
            let since = pod.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
            SandboxState::Running { since, last_sign_at: since, progress: None }
        }
        Word::Ended(end) => {
            let cause = EndCause::Lost(end.words.unwrap_or_else(|| "its container ended, and its controller is gone".to_owned()));
            SandboxState::Ended(RunEnd { cause, duration_millis: 0, output_tail: String::new(), result: None })
        }
    };
    let id = pod.metadata.uid.clone().unwrap_or_default();
    Some(SandboxSeen { run, driver: Driver::Pod, id, isolation: Vec::new(), state, doing: None })
}
