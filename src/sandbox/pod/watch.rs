//! Following our pods: one watch over all namespaces, and a slow look at what it cannot tell (a node that ended, an object that vanished).

use super::cluster::Cluster;
use super::word::{self, End, Word};
use super::{Entry, Shared, key_of};
use crate::sandbox::bridge::Bridge;
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::docker::labels;
use crate::sandbox::link::Standing;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for what the watch cannot tell.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after the watch broke off.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Begins; it ends with the bridge.
pub(super) fn start(bridge: &Bridge, cluster: &Arc<Cluster>, shared: &Arc<Shared>, config: &Arc<SandboxConfig>) {
    let selector = super::selector(&config.installation, &labels::home(&config.state));
    let (following, pods) = (shared.clone(), Api::<Pod>::all(cluster.client()));
    bridge.begin(async move {
        loop {
            let settings = watcher::Config::default().labels(&selector);
            let events = watcher::watcher(pods.clone(), settings).default_backoff();
            let follow = |event| {
                match event {
                    Ok(event) => follow(&following, event),
                    // It goes on by itself.
                    Err(error) => {
                        let error: watcher::Error = error;
                        tracing::debug!(error = crate::causes::one_line(&error), "the watch of pods broke off");
                    }
                }
                futures::future::ready(())
            };
            events.for_each(follow).await;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    });
    let (looking, cluster) = (shared.clone(), cluster.clone());
    bridge.begin(async move {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let entries: Vec<Arc<Entry>> = looking.state().runs.values().cloned().collect();
            for entry in entries {
                look(&looking, &cluster, &entry).await;
            }
        }
    });
}

fn follow(shared: &Arc<Shared>, event: Event<Pod>) {
    match event {
        Event::Init => shared.state().listed = Some(BTreeSet::new()),
        Event::InitApply(pod) | Event::Apply(pod) => {
            let mut state = shared.state();
            if let Some(listed) = &mut state.listed {
                listed.insert(key_of(&pod));
            }
            state.pods.insert(key_of(&pod), pod.clone());
            drop(state);
            judge(shared, &pod);
        }
        Event::InitDone => {
            let mut state = shared.state();
            let listed = state.listed.take().unwrap_or_default();
            state.pods.retain(|key, _| listed.contains(key));
            state.is_synced = true;
        }
        Event::Delete(pod) => {
            // The last state that it had is judged; that it is not there any more says nothing.
            judge(shared, &pod);
            shared.state().pods.remove(&key_of(&pod));
        }
    }
}

fn judge(shared: &Arc<Shared>, pod: &Pod) {
    let (namespace, name) = key_of(pod);
    let entry = shared.state().runs.values().find(|entry| entry.namespace == namespace && entry.name == name).cloned();
    let Some(entry) = entry else { return };
    // Another one of this name would be none of ours.
    if entry.uid().is_some_and(|uid| pod.metadata.uid.as_deref() != Some(&uid)) {
        return;
    }
    match word::of(pod) {
        Word::Ended(end) => conclude(shared, &entry, end),
        Word::Coming { .. } | Word::Runs => {}
    }
}

/// What is being taken of the run is waited for, so nothing else may wait here.
fn conclude(shared: &Arc<Shared>, entry: &Arc<Entry>, end: End) {
    let (shared, entry) = (shared.clone(), entry.clone());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = shared.conclude(&entry, &end) {
            tracing::warn!(run = %entry.run, %error, "the end of a pod could not be written down; tried again");
        }
    });
}

/// Looks at one run by itself: what was seen and could not be written down, a node that has ended, an operator's word, a vanished object.
async fn look(shared: &Arc<Shared>, cluster: &Cluster, entry: &Arc<Entry>) {
    if entry.is_node_said_gone() {
        return conclude(shared, entry, End { words: Some("an operator said that its node is gone".to_owned()), ..End::default() });
    }
    let Some(pod) = shared.pod(&entry.namespace, &entry.name) else {
        let is_made = entry.uid().is_some();
        // The object is gone without its end: then only init's own last word says that nothing lives, or who has seen the end instead of us.
        let words = match shared.link.standing(Some(&entry.run.uid)) {
            _ if entry.has_last_word() => "its pod was removed by force",
            Standing::Lost => "another controller has seen its end",
            Standing::Leads | Standing::Waits => return,
        };
        if is_made && shared.state().is_synced {
            conclude(shared, entry, End { words: Some(words.to_owned()), ..End::default() });
        }
        return;
    };
    judge(shared, &pod);
    if let Ok(Some(end)) = cluster.end_of_node(&pod).await {
        conclude(shared, entry, end);
    }
}

/// Pods of ours as the watch has shown them; `None`: not all of them yet.
pub(super) fn shown(shared: &Shared) -> Option<BTreeMap<(String, String), Pod>> {
    let state = shared.state();
    state.is_synced.then(|| state.pods.clone())
}
