//! The cluster's path of a kill, on a thread and connections of its own: each pod is deleted with a second of grace, and looked at until its
//! container has terminated by the kubelet's word. The word over the link, which is said beside it, ends what lives within milliseconds; this
//! path is for the proof, and for where nobody speaks. A pod that is not there proves nothing.

use crate::api::names::RunId;
use crate::inside::wire::{FILE_CONTAINER, FILE_WAIT};
use crate::kill::engine::Saw;
use crate::kill::receipt::KillRequest;
use crate::kill::targets::Target;
use crate::sandbox::folder::MadeContainer;
use crate::sandbox::pod::cluster::{Cluster, Object};
use crate::sandbox::pod::{FILE_NODE_GONE, has_ended, place_of};
use crate::store::kube::call::CallError;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Calls at once.
const CALLS_MAX: usize = 16;
/// Pause between two looks at a pod.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Time that is left for words after the last look.
const LAST_LOOK: Duration = Duration::from_millis(300);
/// Name of the file in the state folder that says that pods were ever made from it.
const FILE_CLUSTER: &str = "cluster";

/// Notes that pods are made from this state folder: who kills without a controller looks for a cluster then.
/// # Errors
/// The disk refuses.
pub fn remember(state: &Path) -> io::Result<()> {
    crate::durable::make_once(&state.join(FILE_CLUSTER), b"pods")
}

/// What the cluster says of each run, and when.
pub type Answer = BTreeMap<RunId, (Saw, Instant)>;

/// Begins; `None`: no pods are meant.
/// # Errors
/// No thread could be made.
pub fn begin(targets: &[Target], request: &KillRequest, until: Instant) -> io::Result<Option<JoinHandle<Answer>>> {
    if targets.is_empty() {
        return Ok(None);
    }
    let targets = targets.to_vec();
    let said_gone = request.node_is_gone.then(|| request.who.clone());
    let work = move || -> Answer {
        if let Some(who) = said_gone {
            return targets.iter().map(|target| (target.run.clone(), (note_gone(target, &who), Instant::now()))).collect();
        }
        let unknown = |why: String| -> Answer {
            targets.iter().map(|target| (target.run.clone(), (Saw::Unknown(why.clone()), Instant::now()))).collect()
        };
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return unknown(format!("the cluster could not be asked: {e}")),
        };
        let answer = runtime.block_on(async {
            let client = match crate::store::kube::client().await {
                Ok(client) => client,
                Err(e) => return unknown(format!("the cluster could not be asked: {}", crate::causes::one_line(&e))),
            };
            let cluster = Cluster::new(client);
            let ends = targets.iter().map(|target| async { (target.run.clone(), end(&cluster, target, until).await) });
            futures::stream::iter(ends).buffer_unordered(CALLS_MAX).collect().await
        });
        runtime.shutdown_background();
        answer
    };
    std::thread::Builder::new().name("mosaic-kill-cluster".to_owned()).spawn(work).map(Some)
}

/// Writes an operator's word down, for whoever follows the pods.
fn note_gone(target: &Target, who: &str) -> Saw {
    let path = target.folder.path().join(FILE_NODE_GONE);
    let text = serde_json::to_vec(who).expect("text is plain data");
    match crate::durable::replace(&path, &text) {
        Ok(()) => Saw::SaidGone(who.to_owned()),
        Err(e) => Saw::Unknown(format!("that its node is gone could not be written down: {e}")),
    }
}

async fn end(cluster: &Cluster, target: &Target, until: Instant) -> (Saw, Instant) {
    let work = async {
        let mut struck = false;
        let mut known: Option<MadeContainer> = None;
        // Written when its end was seen, by whoever follows the pods.
        let is_concluded = || target.folder.path().join(FILE_WAIT).exists();
        loop {
            if is_concluded() {
                return Saw::Terminated;
            }
            match target.folder.read::<MadeContainer>(FILE_CONTAINER) {
                Ok(Some(made)) => known = Some(made),
                Ok(None) => {}
                Err(e) => return Saw::Unknown(e.to_string()),
            }
            let Some(made) = known.clone() else {
                // What is being removed had been seen to end, or never came; the start gate knows no such run any more.
                if !target.folder.path().exists() {
                    return Saw::Terminated;
                }
                if Instant::now() + LAST_LOOK >= until {
                    return Saw::Coming;
                }
                tokio::time::sleep(LOOK_PAUSE).await;
                continue;
            };
            let (namespace, name) = place_of(&made);
            if !struck {
                if let Err(e) = cluster.delete(Object::Pod, namespace, name, Some(&made.id)).await {
                    return Saw::Unknown(words(&e));
                }
                struck = true;
            }
            match cluster.pod(namespace, name).await {
                Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(&made.id) => match has_ended(&pod) {
                    true => return Saw::Terminated,
                    false if Instant::now() + LAST_LOOK >= until => return Saw::Unknown(silent(&pod.spec.and_then(|spec| spec.node_name))),
                    false => {}
                },
                // The controller takes both away, once it has seen the end; nobody else takes our finalizer off and the folder.
                Ok(_) if is_concluded() || !target.folder.path().exists() => return Saw::Terminated,
                Ok(_) => return Saw::Unknown("its pod is not in the cluster any more, which is no proof of its end".to_owned()),
                Err(e) => return Saw::Unknown(words(&e)),
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    let saw = tokio::time::timeout_at(until.into(), work).await;
    (saw.unwrap_or_else(|_| Saw::Unknown(silent(&None))), Instant::now())
}

fn silent(node: &Option<String>) -> String {
    let node = node.as_ref().map(|node| format!(" of node {node}")).unwrap_or_default();
    format!("the kubelet{node} has not said yet that its container ended")
}

fn words(error: &CallError) -> String {
    crate::causes::one_line(error)
}
