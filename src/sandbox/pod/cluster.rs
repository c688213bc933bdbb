//! The calls to the API server that pods need, each sent once; what it refuses is told in its own words.

use super::FINALIZER;
use super::word::End;
use crate::api::names::RunId;
use crate::sandbox::{Refusal, SandboxError};
use crate::store::kube::call::{Api, CallError, Method};
use crate::store::kube::wire::encode;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::ObjectList;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait for an answer while a kill goes on, or an agent waits for its pod.
const STRIKE_TIME_MAX: Duration = Duration::from_secs(4);
/// What selects the pods of all agents.
const SANDBOXES: &str = "app.kubernetes.io/name=mosaic-sandbox";
/// How a refusal by a quota says so.
const OVER_QUOTA: &str = "exceeded quota";
/// Taint by which an operator says that everything on a node is gone.
const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The cluster.
pub(crate) struct Cluster {
    api: Api,
}

/// One kind of object that a run has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Object {
    /// Its token.
    Secret,
    /// What closes its network.
    Policy,
    /// The pod.
    Pod,
}

impl Object {
    fn collection(self, namespace: &str) -> String {
        match self {
            Self::Secret => format!("/api/v1/namespaces/{namespace}/secrets"),
            Self::Policy => format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"),
            Self::Pod => format!("/api/v1/namespaces/{namespace}/pods"),
        }
    }
}

impl Cluster {
    /// The cluster of a client.
    pub(crate) fn new(client: Client) -> Self {
        Self { api: Api::new(client) }
    }

    /// The client.
    pub(crate) fn client(&self) -> Client {
        self.api.client().clone()
    }

    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// Makes an object; that it is there already is success, for its name is the run's alone. Returns the uid of what was made now.
    pub(super) async fn create(&self, object: Object, body: &Value) -> Result<Option<String>, CallError> {
        let namespace = body["metadata"]["namespace"].as_str().unwrap_or_default();
        let path = format!("{}?fieldManager=mosaic", object.collection(namespace));
        match self.api.call::<Value>(Method::POST, &path, Some(body)).await {
            Ok(made) => Ok(made["metadata"]["uid"].as_str().map(str::to_owned)),
            Err(error) if error.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes a pod by a merge patch, which names the uid that it must have.
    pub(super) async fn change_pod(&self, namespace: &str, name: &str, patch: &Value) -> Result<(), CallError> {
        let path = format!("{}/{name}?fieldManager=mosaic", Object::Pod.collection(namespace));
        self.api.call_within::<Value>(STRIKE_TIME_MAX, Method::PATCH, &path, Some(patch)).await.map(drop)
    }

    /// The pod of this name; `None`: there is none.
    pub(crate) async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, CallError> {
        let path = format!("{}/{name}", Object::Pod.collection(namespace));
        match self.api.call_within(STRIKE_TIME_MAX, Method::GET, &path, None).await {
            Ok(pod) => Ok(Some(pod)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pods of agents that labels select, in all namespaces.
    pub(super) async fn pods(&self, selector: &str) -> Result<Vec<Pod>, CallError> {
        let path = format!("/api/v1/pods?labelSelector={}", encode(&format!("{SANDBOXES},{selector}")));
        let list: ObjectList<Pod> = self.api.call_within(STRIKE_TIME_MAX, Method::GET, &path, None).await?;
        Ok(list.items)
    }

    /// Deletes an object, of a pod this very one; that it is gone is success.
    pub(crate) async fn delete(&self, object: Object, namespace: &str, name: &str, uid: Option<&str>) -> Result<(), CallError> {
        let mut options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
        if let Some(uid) = uid {
            options["preconditions"] = json!({ "uid": uid });
        }
        if let Object::Pod = object {
            options["gracePeriodSeconds"] = json!(1);
        }
        let path = format!("{}/{name}", object.collection(namespace));
        match self.api.call_within::<Value>(STRIKE_TIME_MAX, Method::DELETE, &path, Some(&options)).await {
            Err(error) if error.is_absent() || (uid.is_some() && error.is_conflict()) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    /// Takes our finalizer off a pod whose end was seen. Others' stay.
    pub(super) async fn release(&self, namespace: &str, name: &str, uid: &str) -> Result<(), CallError> {
        let Some(pod) = self.pod(namespace, name).await?.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) else { return Ok(()) };
        let all = pod.metadata.finalizers.unwrap_or_default();
        if !all.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        let rest: Vec<String> = all.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
        let patch = json!({ "metadata": { "uid": uid, "resourceVersion": pod.metadata.resource_version, "finalizers": rest } });
        match self.change_pod(namespace, name, &patch).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// The end of a pod that is being deleted, by that of its node; `None`: it has no node, or one that may still run it.
    pub(super) async fn end_of_node(&self, pod: &Pod) -> Result<Option<End>, CallError> {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).filter(|node| !node.is_empty());
        let (Some(node), Some(_)) = (node, &pod.metadata.deletion_timestamp) else { return Ok(None) };
        let is_gone = self.is_node_gone(node).await?;
        Ok(is_gone.then(|| End { words: Some(format!("its node {node} has ended")), ..End::default() }))
    }

    /// Whether a node has ended for good: it is no node any more, or an operator says so by the taint that Kubernetes has for that.
    async fn is_node_gone(&self, name: &str) -> Result<bool, CallError> {
        match self.api.call_within::<Node>(STRIKE_TIME_MAX, Method::GET, &format!("/api/v1/nodes/{name}"), None).await {
            Ok(node) => {
                let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
                Ok(taints.iter().any(|taint| taint.key == TAINT_OUT_OF_SERVICE))
            }
            Err(error) if error.is_absent() => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Whether the namespace's quota is what refuses.
pub(super) fn is_over_quota(error: &CallError) -> bool {
    matches!(error, CallError::Refused(status) if status.code == 403 && status.message.contains(OVER_QUOTA))
}

/// What it means for a run that an object could not be made.
pub(super) fn refusal(run: &RunId, error: CallError) -> SandboxError {
    let refused = |why: Refusal, message: &str| SandboxError::Refused { why, message: format!("the cluster refused its pod: {message}") };
    match error {
        CallError::Refused(status) if matches!(status.code, 400 | 403 | 404 | 422) => {
            let message = status.message.as_str();
            let why = if message.contains(OVER_QUOTA) {
                Refusal::QuotaExceeded
            } else if message.contains("RuntimeClass") {
                Refusal::RuntimeNotFound
            } else {
                Refusal::PodRefused
            };
            refused(why, message)
        }
        error => failed(run, "make", error),
    }
}

/// A call about a run that came to nothing.
pub(super) fn failed(run: &RunId, what: &'static str, error: CallError) -> SandboxError {
    let unknown = !matches!(error, CallError::Refused(_));
    SandboxError::Cluster { what, run: run.clone(), unknown, source: Box::new(error) }
}
