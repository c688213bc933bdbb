//! What the object of a pod says: pure. An end is what the kubelet says of the container, or that no kubelet ever had it; never an object
//! that is not there.

use crate::sandbox::Refusal;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

/// Name of the container that brings init.
pub(super) const CONTAINER_INIT: &str = "bring";
/// Name of the container of the run.
pub(super) const CONTAINER_RUN: &str = "run";

/// What is to be said of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// Its container does not run yet: what goes on, and since it is hopeless why.
    Coming { doing: String, hopeless: Option<(Refusal, String)> },
    /// Its container runs.
    Runs,
    /// Nothing of it runs, or ever will.
    Ended(End),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct End {
    /// Exit code of the container; `None`: it never ran, or nobody knows.
    pub(super) code: Option<i32>,
    /// The kernel ended it when all of its memory was used.
    pub(super) oom_killed: bool,
    /// In the cluster's words, where there is more to say than a code.
    pub(super) words: Option<String>,
}

/// Reads a pod.
pub(super) fn of(pod: &Pod) -> Word {
    let status = pod.status.clone().unwrap_or_default();
    let run = status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER_RUN);
    let why = words_of(pod);
    if let Some(ended) = run.and_then(|run| run.state.as_ref()?.terminated.as_ref()) {
        let oom_killed = ended.reason.as_deref() == Some("OOMKilled");
        return Word::Ended(End { code: Some(ended.exit_code), oom_killed, words: why.or_else(|| ended.message.clone()) });
    }
    let bring = status.init_container_statuses.iter().flatten().find(|container| container.name == CONTAINER_INIT);
    let failed = bring.and_then(|bring| bring.state.as_ref()?.terminated.as_ref()).filter(|ended| ended.exit_code != 0);
    if let Some(failed) = failed {
        let text = format!(
            "the container that brings mosaic-init ended with code {}{}",
            failed.exit_code,
            failed.message.as_ref().map(|text| format!(": {text}")).unwrap_or_default()
        );
        return Word::Ended(End { words: Some(text), ..End::default() });
    }
    let is_placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_ref().is_some_and(|node| !node.is_empty()));
    if !is_placed && pod.metadata.deletion_timestamp.is_some() {
        return Word::Ended(End { words: Some("it was deleted before it had a node".to_owned()), ..End::default() });
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return Word::Ended(End { words: why.or_else(|| status.phase.clone()), ..End::default() });
    }
    if run.and_then(|run| run.state.as_ref()?.running.as_ref()).is_some() {
        return Word::Runs;
    }
    coming(pod, run, bring)
}

fn coming(pod: &Pod, run: Option<&ContainerStatus>, bring: Option<&ContainerStatus>) -> Word {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let unplaced = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unplaced {
        let words = condition.message.clone().unwrap_or_default();
        return Word::Coming { doing: format!("no node takes its pod: {words}"), hopeless: Some((Refusal::Unschedulable, words)) };
    }
    let waiting = |container: &ContainerStatus| -> Option<(String, String)> {
        let ContainerState { waiting: Some(waiting), .. } = container.state.clone()? else { return None };
        Some((waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()))
    };
    let hopeless = [bring, run].into_iter().flatten().find_map(|container| {
        let (reason, message) = waiting(container)?;
        Some((refusal_of(&reason, &message)?, format!("image {}: {reason}: {message}", container.image)))
    });
    let reason = [bring, run].into_iter().flatten().find_map(waiting).map_or_else(|| "Pending".to_owned(), |(reason, _)| reason);
    Word::Coming { doing: format!("its pod is being made: {reason}"), hopeless }
}

/// What a container waits for that does not come by waiting.
fn refusal_of(reason: &str, message: &str) -> Option<Refusal> {
    let text = message.to_lowercase();
    match reason {
        "InvalidImageName" | "ErrImageNeverPull" => Some(Refusal::ImageNotFound),
        "ErrImagePull" | "ImagePullBackOff" if text.contains("unauthorized") || text.contains("denied") => Some(Refusal::ImageRefused),
        "ErrImagePull" | "ImagePullBackOff" if text.contains("not found") || text.contains("manifest unknown") => {
            Some(Refusal::ImageNotFound)
        }
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => Some(Refusal::ImagePullFailed),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Some(Refusal::PodRefused),
        _ => None,
    }
}

/// Why the cluster ended it, in its own words; `None`: it did not.
fn words_of(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let disrupted = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    let parts = |reason: Option<&String>, message: Option<&String>| {
        let parts: Vec<&str> = [reason, message].into_iter().flatten().map(String::as_str).filter(|text| !text.is_empty()).collect();
        (!parts.is_empty()).then(|| parts.join(": "))
    };
    let own = parts(status.reason.as_ref(), status.message.as_ref());
    own.or_else(|| disrupted.and_then(|condition| parts(condition.reason.as_ref(), condition.message.as_ref())))
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|_| "its pod was deleted".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn word(status: Value) -> Word {
        of(&serde_json::from_value(json!({ "metadata": {}, "spec": { "containers": [], "nodeName": "n" }, "status": status })).unwrap())
    }

    fn container(state: Value) -> Value {
        json!([{ "name": "run", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state }])
    }

    #[test]
    fn only_a_terminated_container_a_final_phase_or_no_node_is_an_end() {
        let ended = word(
            json!({ "phase": "Running", "containerStatuses": container(json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } })) }),
        );
        assert_eq!(ended, Word::Ended(End { code: Some(137), oom_killed: true, words: None }));
        let evicted = word(json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on memory." }));
        assert_eq!(evicted, Word::Ended(End { words: Some("Evicted: The node was low on memory.".to_owned()), ..End::default() }));
        assert_eq!(word(json!({ "phase": "Running", "containerStatuses": container(json!({ "running": {} })) })), Word::Runs);
        assert!(matches!(word(json!({ "phase": "Pending" })), Word::Coming { hopeless: None, .. }));
        // Deleted, but on a node: only its kubelet can say that it is over.
        let mut pod = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": { "containers": [], "nodeName": "n" } });
        assert!(matches!(of(&serde_json::from_value(pod.clone()).unwrap()), Word::Coming { .. }));
        pod["spec"].as_object_mut().unwrap().remove("nodeName");
        assert!(matches!(of(&serde_json::from_value(pod).unwrap()), Word::Ended(_)));
    }

    #[test]
    fn what_never_comes_is_told_in_the_clusters_words() {
        let hopeless = |status: Value| match word(status) {
            Word::Coming { hopeless, .. } => hopeless,
            other => panic!("{other:?}"),
        };
        let condition =
            json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available" }]);
        let (why, words) = hopeless(json!({ "phase": "Pending", "conditions": condition })).unwrap();
        assert_eq!((why, words.as_str()), (Refusal::Unschedulable, "0/1 nodes are available"));
        for (reason, message, wanted) in [
            ("ErrImageNeverPull", "not present", Refusal::ImageNotFound),
            ("ImagePullBackOff", "i: not found", Refusal::ImageNotFound),
            ("ErrImagePull", "401 Unauthorized", Refusal::ImageRefused),
            ("ErrImagePull", "i/o timeout", Refusal::ImagePullFailed),
            ("CreateContainerError", "no command", Refusal::PodRefused),
        ] {
            let state = json!({ "waiting": { "reason": reason, "message": message } });
            let (why, words) = hopeless(json!({ "phase": "Pending", "containerStatuses": container(state) })).unwrap();
            assert_eq!(why, wanted);
            assert!(words.contains(message), "{words}");
        }
        assert_eq!(
            hopeless(json!({ "phase": "Pending", "containerStatuses": container(json!({ "waiting": { "reason": "PodInitializing" } })) })),
            None
        );
    }
}
