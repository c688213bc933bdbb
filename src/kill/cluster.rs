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
use crate::sandbox::pod::{FILE_NODE_GONE, has_ended, key_of, place_of, run_of, selector};
use crate::store::kube::call::CallError;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Deletions at once.
const CALLS_MAX: usize = 16;
/// Pause between two looks.
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

/// Our pods as the API server shows them, for all who look: one list and one watch for many, instead of calls for each.
#[derive(Default)]
struct View {
    pods: BTreeMap<Place, Pod>,
    /// All were shown since this began.
    is_synced: bool,
    /// Why it was not heard last.
    trouble: Option<String>,
}

/// Namespace and name of a pod.
type Place = (String, String);

/// What all ends of pods have in common.
struct Strike<'a> {
    cluster: &'a Cluster,
    path: &'a ClusterPath,
    view: watch::Sender<View>,
    calls: Semaphore,
    until: Instant,
}

async fn strike(cluster: &Cluster, path: &ClusterPath, targets: &[Target], strays: &Strays, until: Instant) -> Answer {
    let strike = Strike { cluster, path, view: watch::Sender::default(), calls: Semaphore::new(CALLS_MAX), until };
    let known = targets.iter().map(|target| async { (target.run.clone(), strike.end(target).await) });
    let all = async { tokio::join!(futures::future::join_all(known), strike.end_strays(strays)) };
    let (saw, strays) = tokio::select! {
        ended = all => ended,
        never = strike.watch() => match never {},
    };
    let saw = saw.into_iter().collect();
    match strays {
        Ok(strays) => Answer { saw, strays, blind: None },
        Err(why) => Answer { saw, ..Answer::blind(PODS, &why) },
    }
}

impl Strike<'_> {
    /// Follows our pods.
    async fn watch(&self) -> Infallible {
        let settings = watcher::Config::default().labels(&selector(&self.path.installation, &self.path.home));
        let mut events = pin!(watcher::watcher(Api::<Pod>::all(self.cluster.client()), settings).default_backoff());
        while let Some(event) = events.next().await {
            self.view.send_modify(|view| match event {
                Ok(event) => view.take(event),
                Err(error) => view.trouble = Some(crate::causes::one_line(&error)),
            });
        }
        std::future::pending().await
    }

    /// Waits until all our pods were shown. The error is why they were not.
    async fn shown(&self) -> Result<watch::Ref<'_, View>, String> {
        let mut views = self.view.subscribe();
        let known = views.wait_for(|view| view.is_synced || view.trouble.is_some());
        let known = tokio::time::timeout_at(self.until.min(Instant::now() + LIST_TIME_MAX).into(), known).await;
        drop(known.map_err(|_| "the API server did not answer in time".to_owned())?.map_err(|_| "nobody lists".to_owned())?);
        let view = self.view.borrow();
        match (&view.trouble, view.is_synced) {
            (Some(why), false) => Err(why.clone()),
            _ => Ok(view),
        }
    }

    /// Ends pods of ours that have no folder. The error is why nobody can tell whether there are any.
    async fn end_strays(&self, strays: &Strays) -> Result<Vec<(Stray, Saw, Instant)>, String> {
        let found = self.shown().await?.pods.clone();
        let mut ends = Vec::new();
        for (place, pod) in &found {
            let Some((run, agent)) = run_of(pod) else { continue };
            let stray = Stray { run, agent, name: format!("pod {}/{}", place.0, place.1) };
            if !strays.known.contains(&stray.run) && (strays.is_meant)(&stray) {
                ends.push(async move {
                    let saw = tokio::time::timeout_at(self.until.into(), self.follow(place, pod.metadata.uid.as_deref(), || true)).await;
                    (stray, saw.unwrap_or_else(|_| Saw::Unknown(silent(pod))), Instant::now())
                });
            }
        }
        Ok(futures::future::join_all(ends).await)
    }

    async fn end(&self, target: &Target) -> (Saw, Instant) {
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
                        // One that was made ahead has another name than one that was made for the run.
                        let is_its = |pod: &&Pod| run_of(pod).is_some_and(|(run, _)| run == target.run);
                        let shown = self.shown().await.ok().and_then(|view| view.pods.values().find(is_its).map(key_of));
                        let Some((namespace, _)) = target.agent.split_once('/') else {
                            return Saw::Unknown("its folder is gone, and nothing tells the namespace of its pod".to_owned());
                        };
                        let by_name = || (namespace.to_owned(), container_name(&self.path.installation, &target.run));
                        break (shown.unwrap_or_else(by_name), None);
                    }
                    Ok(None) if Instant::now() + LAST_LOOK >= self.until => return Saw::Coming,
                    Ok(None) => tokio::time::sleep(LOOK_PAUSE).await,
                    Err(e) => return Saw::Unknown(e.to_string()),
                }
            };
            tokio::select! {
                saw = self.follow(&place, uid.as_deref(), || is_concluded() || !is_there()) => saw,
                () = async { while !is_concluded() { tokio::time::sleep(LOOK_PAUSE).await } } => Saw::Terminated,
            }
        };
        let saw = tokio::time::timeout_at(self.until.into(), work).await;
        (saw.unwrap_or_else(|_| Saw::Unknown(silent(&Pod::default()))), Instant::now())
    }

    /// Deletes a pod, and looks until it has ended. `is_over`: whether a pod that is not there any more has ended, for our finalizer is on it
    /// until an end was seen, and nobody remembers it otherwise.
    async fn follow(&self, place: &Place, uid: Option<&str>, is_over: impl Fn() -> bool) -> Saw {
        {
            let _place = self.calls.acquire().await;
            if let Err(e) = self.cluster.delete(Object::Pod, &place.0, &place.1, uid).await {
                return Saw::Unknown(words(&e));
            }
        }
        let is_it = |pod: &&Pod| uid.is_none() || pod.metadata.uid.as_deref() == uid;
        let mut views = self.view.subscribe();
        if let Err(why) = self.shown().await.map(drop) {
            return Saw::Unknown(why);
        }
        let give_up_at = self.until.checked_sub(LAST_LOOK).unwrap_or(self.until);
        loop {
            let seen = views.borrow_and_update().pods.get(place).filter(is_it).map(has_ended);
            let ended = match seen {
                Some(ended) => ended,
                // Of a state folder that was moved: its pods have the mark of where it was.
                None => match self.cluster.pod(&place.0, &place.1).await {
                    Ok(pod) => match pod.as_ref().filter(is_it) {
                        Some(pod) => has_ended(pod),
                        None if is_over() => true,
                        None => return Saw::Unknown("its pod is not in the cluster any more, which is no proof of its end".to_owned()),
                    },
                    Err(e) => return Saw::Unknown(words(&e)),
                },
            };
            if ended {
                return Saw::Terminated;
            }
            if Instant::now() >= give_up_at {
                let view = views.borrow();
                return Saw::Unknown(view.trouble.clone().unwrap_or_else(|| silent(view.pods.get(place).unwrap_or(&Pod::default()))));
            }
            // What the watch does not show is asked for again.
            let pause = if seen.is_some() { give_up_at } else { give_up_at.min(Instant::now() + LOOK_PAUSE) };
            tokio::select! {
                _ = views.changed() => {}
                () = tokio::time::sleep_until(pause.into()) => {}
            }
        }
    }
}

impl View {
    fn take(&mut self, event: Event<Pod>) {
        self.trouble = None;
        match event {
            Event::Init => self.pods.clear(),
            Event::InitApply(pod) | Event::Apply(pod) => drop(self.pods.insert(key_of(&pod), pod)),
            Event::InitDone => self.is_synced = true,
            Event::Delete(pod) => drop(self.pods.remove(&key_of(&pod))),
        }
    }
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

fn silent(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).map(|node| format!(" of node {node}")).unwrap_or_default();
    format!("the kubelet{node} has not said yet that its container ended")
}

fn words(error: &CallError) -> String {
    crate::causes::one_line(error)
}
