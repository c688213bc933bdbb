//! Pods that another controller of the same cluster has made, from a state folder of its own: looked at, ended and taken away by the API server
//! alone, for whoever leads when that one is gone for good. Only where records and pods are in one cluster: whoever leads there speaks for all.
//!
//! They are never adopted: the link, the token's use and the tree of such a run are in the other state folder.

use super::cluster::{Cluster, Object, failed as call_failed};
use super::word::{self, Word};
use super::{Pods, Served, key_of, run_of};
use crate::api::agent::Driver;
use crate::api::names::{RunId, Uid};
use crate::plan::observed::{EndCause, RunEnd, SandboxSeen, SandboxState};
use crate::sandbox::SandboxError;
use crate::sandbox::docker::labels;
use crate::sandbox::folder::short;
use crate::sandbox::runs::failed;
use crate::store::kube::call::CallError;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::io;
use std::time::{Duration, Instant};

/// Pause between two looks whether a pod has ended: many may be looked at, and an API server elsewhere has enough to do with their ends.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// A pod, and what is to be said of it.
type Told = (Pod, Word);

impl Pods {
    /// Pods of an agent that another installation has made; `None`: those cannot be told from here.
    pub(crate) fn elsewhere(&self, uid: &Uid, installation: &str) -> Result<Option<Vec<SandboxSeen>>, SandboxError> {
        let Some(served) = self.sharing() else { return Ok(None) };
        let selector = format!("{}={uid},{}={installation}", labels::AGENT_UID, labels::INSTALLATION);
        let told = self.told(served, selector).map_err(|e| SandboxError::CannotObserve(words(&e)))?;
        told.iter().map(seen).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// Ends the pod of a run that another installation has made; none is success.
    pub(crate) fn stop_elsewhere(&self, id: &RunId) -> Result<(), SandboxError> {
        let Some(served) = self.sharing() else { return Ok(()) };
        let unverified = |why: String| SandboxError::Unverified { run: id.clone(), why };
        let until = Instant::now() + self.config.stop_timeout;
        let told = self.told(served, self.of_others(id)).map_err(|e| unverified(words(&e)))?;
        for (pod, _) in told.into_iter().filter(|(_, word)| !matches!(word, Word::Ended(_))) {
            self.delete(served, Object::Pod, &pod).map_err(|e| unverified(words(&e)))?;
            while !self.has_ended(served, &pod).map_err(|e| unverified(words(&e)))? {
                if Instant::now() >= until {
                    let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
                    return Err(unverified(format!("the kubelet of node {node} has not said yet that its container ended")));
                }
                std::thread::sleep(LOOK_PAUSE);
            }
        }
        Ok(())
    }

    /// Takes away what was made in the cluster for an ended run that another installation has made.
    pub(crate) fn remove_elsewhere(&self, id: &RunId) -> Result<(), SandboxError> {
        let Some(served) = self.sharing() else { return Ok(()) };
        let cannot = |e: CallError| call_failed(id, "remove", e);
        for (pod, word) in self.told(served, self.of_others(id)).map_err(cannot)? {
            if !matches!(word, Word::Ended(_)) {
                return Err(failed(id, "remove")(io::Error::other("it still runs: stop it first")));
            }
            for object in [Object::Secret, Object::Policy, Object::Pod] {
                self.delete(served, object, &pod).map_err(cannot)?;
            }
            let (namespace, name) = key_of(&pod);
            let (cluster, uid) = (served.cluster.clone(), pod.metadata.uid.unwrap_or_default());
            self.bridge.wait(async move { cluster.release(&namespace, &name, &uid).await }).map_err(cannot)?;
        }
        Ok(())
    }

    /// The cluster, where its records are ours as well.
    fn sharing(&self) -> Option<&Served> {
        self.served.as_ref().filter(|served| served.pod.is_owned)
    }

    /// By the installation, for two state folders may have the same path on two hosts.
    fn of_others(&self, id: &RunId) -> String {
        let own = &self.config.installation;
        format!("{}={},{}={},{}!={own}", labels::AGENT_UID, id.uid, labels::RUN_NAME, short(id), labels::INSTALLATION)
    }

    fn told(&self, served: &Served, selector: String) -> Result<Vec<Told>, CallError> {
        let cluster = served.cluster.clone();
        self.bridge.wait(async move {
            let mut told = Vec::new();
            for pod in cluster.pods(&selector).await? {
                let word = word_of(&cluster, &pod).await?;
                told.push((pod, word));
            }
            Ok(told)
        })
    }

    /// Whether this very pod has ended. Our finalizer keeps its object until somebody of us has seen that.
    fn has_ended(&self, served: &Served, pod: &Pod) -> Result<bool, CallError> {
        let ((namespace, name), uid, cluster) = (key_of(pod), pod.metadata.uid.clone(), served.cluster.clone());
        self.bridge.wait(async move {
            match cluster.pod(&namespace, &name).await?.filter(|pod| pod.metadata.uid == uid) {
                Some(pod) => Ok(matches!(word_of(&cluster, &pod).await?, Word::Ended(_))),
                None => Ok(true),
            }
        })
    }

    fn delete(&self, served: &Served, object: Object, pod: &Pod) -> Result<(), CallError> {
        let ((namespace, name), cluster) = (key_of(pod), served.cluster.clone());
        let uid = pod.metadata.uid.clone().filter(|_| matches!(object, Object::Pod));
        self.bridge.wait(async move { cluster.delete(object, &namespace, &name, uid.as_deref()).await })
    }
}

/// What a pod says, or for one that is being deleted the end of its node.
async fn word_of(cluster: &Cluster, pod: &Pod) -> Result<Word, CallError> {
    Ok(match word::of(pod) {
        Word::Ended(end) => Word::Ended(end),
        word => cluster.end_of_node(pod).await?.map_or(word, Word::Ended),
    })
}

fn words(error: &CallError) -> String {
    format!("its pods could not be looked at: {}", crate::causes::one_line(error))
}

/// A pod as what is seen of it.
fn seen((pod, word): &Told) -> Result<SandboxSeen, SandboxError> {
    let Some((run, _)) = run_of(pod) else {
        let (namespace, name) = key_of(pod);
        return Err(SandboxError::CannotObserve(format!("pod {namespace}/{name} does not say which run it is; remove it by hand")));
    };
    let state = match word {
        Word::Coming { .. } => SandboxState::Preparing,
        Word::Runs => {
            let since = pod.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
            SandboxState::Running { since, last_sign_at: since, progress: None }
        }
        Word::Ended(end) => {
            let cause =
                EndCause::Lost(end.words.clone().unwrap_or_else(|| "its container ended, and its controller is not here".to_owned()));
            SandboxState::Ended(RunEnd { cause, duration_millis: 0, output_tail: String::new(), result: None })
        }
    };
    let id = pod.metadata.uid.clone().unwrap_or_default();
    Ok(SandboxSeen { run, driver: Driver::Pod, id, isolation: Vec::new(), state, doing: None })
}
