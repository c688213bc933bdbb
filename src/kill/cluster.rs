//! The cluster's path of a kill, on a thread and connections of its own: each pod is deleted with a second of grace, and looked at until its
//! container has terminated by the kubelet's word. The word over the link, which is said beside it, ends what lives within milliseconds; this
//! path is for the proof, and for where nobody speaks. Pods that carry our labels and have no folder any more are killed as well. That a pod is
//! not there proves nothing where a folder remembers it; where none does, our finalizer is the proof: it comes off once an end was seen.

use crate::api::names::RunId;
use crate::inside::wire::{FILE_CONTAINER, FILE_WAIT};
use crate::kill::engine::{Answer, IsMeant, Saw, Stray};
use crate::kill::receipt::KillRequest;
use crate::kill::targets::Target;
use crate::sandbox::docker::engine::container_name;
use crate::sandbox::docker::labels;
use crate::sandbox::folder::MadeContainer;
use crate::sandbox::pod::cluster::{Cluster, Object};
use crate::sandbox::pod::{FILE_NODE_GONE, has_ended, place_of, run_of};
use crate::store::kube::call::CallError;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Calls at once.
const CALLS_MAX: usize = 16;
/// Pause between two looks at a pod.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for the list of our pods: what has a folder does not wait for it.
const LIST_TIME_MAX: Duration = Duration::from_secs(2);
/// Time that is left for words after the last look.
const LAST_LOOK: Duration = Duration::from_millis(300);
/// What strays are called here.
pub const PODS: &str = "pods";
/// Name of the file in the state folder that says that pods were ever made from it, and by which installation.
const FILE_CLUSTER: &str = "cluster.json";

/// Notes that pods are made from this state folder: who kills without a controller looks for a cluster then.
/// # Errors
/// The disk refuses.
pub fn remember(state: &Path, installation: &str) -> io::Result<()> {
    let bytes = serde_json::to_vec(installation)?;
    let path = state.join(FILE_CLUSTER);
    if std::fs::read(&path).is_ok_and(|known| known == bytes) { Ok(()) } else { crate::durable::replace(&path, &bytes) }
}

/// Whose pods are ours.
#[derive(Debug, Clone)]
pub struct ClusterPath {
    installation: String,
    /// Mark of the state folder.
    home: String,
}

impl ClusterPath {
    /// The pods of this state folder; `None`: none were ever made.
    /// # Errors
    /// In words: there may be some, and it cannot be told which.
    pub fn recall(state: &Path) -> Result<Option<Self>, String> {
        let bytes = match std::fs::read(state.join(FILE_CLUSTER)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| format!("{FILE_CLUSTER} cannot be read: {e}"))?,
        };
        let installation = serde_json::from_slice(&bytes).map_err(|e| format!("{FILE_CLUSTER} cannot be read: {e}"))?;
        Ok(Some(Self { installation, home: labels::home(state) }))
    }
}

/// Whose pods without a folder are looked for.
pub struct Strays {
    /// Runs that have a folder.
    pub known: BTreeSet<RunId>,
    /// Which of the others are meant.
    pub is_meant: IsMeant,
}

/// Begins.
/// # Errors
/// No thread could be made.
pub fn begin(
    path: &ClusterPath,
    targets: &[Target],
    strays: Strays,
    request: &KillRequest,
    until: Instant,
) -> io::Result<JoinHandle<Answer>> {
    let (path, targets) = (path.clone(), targets.to_vec());
    let said_gone = request.node_is_gone.then(|| request.who.clone());
    let work = move || -> Answer {
        if let Some(who) = said_gone {
            let saw = targets.iter().map(|target| (target.run.clone(), (note_gone(target, &who), Instant::now()))).collect();
            return Answer { saw, ..Answer::default() };
        }
        let unknown = |why: String| -> Answer {
            let saw = targets.iter().map(|target| (target.run.clone(), (Saw::Unknown(why.clone()), Instant::now()))).collect();
            Answer { saw, ..Answer::blind(PODS, &why) }
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
            strike(&Cluster::new(client), &path, &targets, &strays, until).await
        });
        runtime.shutdown_background();
        answer
    };
    std::thread::Builder::new().name("mosaic-kill-cluster".to_owned()).spawn(work)
}

async fn strike(cluster: &Cluster, path: &ClusterPath, targets: &[Target], strays: &Strays, until: Instant) -> Answer {
    let ends = targets.iter().map(|target| async { (target.run.clone(), end(cluster, path, target, until).await) });
    let known = async { futures::stream::iter(ends).buffer_unordered(CALLS_MAX).collect::<BTreeMap<_, _>>().await };
    match tokio::join!(known, end_strays(cluster, path, strays, until)) {
        (saw, Ok(strays)) => Answer { saw, strays, blind: None },
        (saw, Err(why)) => Answer { saw, ..Answer::blind(PODS, &why) },
    }
}

/// Ends pods of ours that have no folder. The error is why nobody can tell whether there are any.
async fn end_strays(cluster: &Cluster, path: &ClusterPath, strays: &Strays, until: Instant) -> Result<Vec<(Stray, Saw, Instant)>, String> {
    let listed = tokio::time::timeout_at((Instant::now() + LIST_TIME_MAX).min(until).into(), cluster.pods(&path.installation, &path.home));
    let found = listed.await.map_err(|_| "the API server did not answer in time".to_owned())?.map_err(|e| words(&e))?;
    let mut calls = Vec::new();
    for pod in found {
        let Some((run, agent)) = run_of(&pod) else { continue };
        let place = pod.metadata.namespace.clone().unwrap_or_default();
        let stray = Stray { run, agent, name: format!("pod {place}/{}", pod.metadata.name.as_deref().unwrap_or_default()) };
        if !strays.known.contains(&stray.run) && (strays.is_meant)(&stray) {
            calls.push(async move {
                let (saw, at) = end_stray(cluster, &pod, until).await;
                (stray, saw, at)
            });
        }
    }
    Ok(futures::stream::iter(calls).buffer_unordered(CALLS_MAX).collect().await)
}

async fn end_stray(cluster: &Cluster, pod: &Pod, until: Instant) -> (Saw, Instant) {
    let place = (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let saw = tokio::time::timeout_at(until.into(), follow(cluster, place, pod.metadata.uid.as_deref(), || true, until)).await;
    (saw.unwrap_or_else(|_| Saw::Unknown(silent(&node))), Instant::now())
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

async fn end(cluster: &Cluster, path: &ClusterPath, target: &Target, until: Instant) -> (Saw, Instant) {
    // Written when its end was seen, by whoever follows the pods.
    let is_concluded = || target.folder.path().join(FILE_WAIT).exists();
    let is_there = || target.folder.path().exists();
    let work = async {
        let (place, uid) = loop {
            if is_concluded() {
                return Saw::Terminated;
            }
            match target.folder.read::<MadeContainer>(FILE_CONTAINER) {
                Ok(Some(made)) => {
                    let (namespace, name) = place_of(&made);
                    break ((namespace.to_owned(), name.to_owned()), Some(made.id.clone()));
                }
                // Somebody took its folder: it is known by its name alone. The start gate knows no such run any more.
                Ok(None) if !is_there() => {
                    let Some((namespace, _)) = target.agent.split_once('/') else {
                        return Saw::Unknown("its folder is gone, and nothing tells the namespace of its pod".to_owned());
                    };
                    break ((namespace.to_owned(), container_name(&path.installation, &target.run)), None);
                }
                Ok(None) if Instant::now() + LAST_LOOK >= until => return Saw::Coming,
                Ok(None) => tokio::time::sleep(LOOK_PAUSE).await,
                Err(e) => return Saw::Unknown(e.to_string()),
            }
        };
        let is_over = || is_concluded() || !is_there();
        tokio::select! {
            saw = follow(cluster, (&place.0, &place.1), uid.as_deref(), is_over, until) => saw,
            () = async { while !is_concluded() { tokio::time::sleep(LOOK_PAUSE).await } } => Saw::Terminated,
        }
    };
    let saw = tokio::time::timeout_at(until.into(), work).await;
    (saw.unwrap_or_else(|_| Saw::Unknown(silent(&None))), Instant::now())
}

/// Deletes a pod, and looks until it has ended. `is_over`: whether a pod that is not there any more has ended, for our finalizer is on it until
/// an end was seen, and nobody remembers it otherwise.
async fn follow(cluster: &Cluster, (namespace, name): (&str, &str), uid: Option<&str>, is_over: impl Fn() -> bool, until: Instant) -> Saw {
    if let Err(e) = cluster.delete(Object::Pod, namespace, name, uid).await {
        return Saw::Unknown(words(&e));
    }
    loop {
        match cluster.pod(namespace, name).await {
            Ok(Some(pod)) if uid.is_none() || pod.metadata.uid.as_deref() == uid => match has_ended(&pod) {
                true => return Saw::Terminated,
                false if Instant::now() + LAST_LOOK >= until => return Saw::Unknown(silent(&pod.spec.and_then(|spec| spec.node_name))),
                false => {}
            },
            Ok(_) if is_over() => return Saw::Terminated,
            Ok(_) => return Saw::Unknown("its pod is not in the cluster any more, which is no proof of its end".to_owned()),
            Err(e) => return Saw::Unknown(words(&e)),
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn silent(node: &Option<String>) -> String {
    let node = node.as_ref().map(|node| format!(" of node {node}")).unwrap_or_default();
    format!("the kubelet{node} has not said yet that its container ended")
}

fn words(error: &CallError) -> String {
    crate::causes::one_line(error)
}
