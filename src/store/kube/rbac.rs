//! The rights that the keeper needs, each with its reason: printed by `mosaic crd --rbac`, and asked for one by one at start.

use super::call::{Api, CallError, Method};
use crate::api::names::GROUP;
use crate::store::StoreResult;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::fmt::Write;

/// Where a right is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In every namespace, or of what has none.
    Cluster,
    /// In the installation's namespace.
    Installation,
}

/// What may be done with one resource.
#[derive(Debug)]
pub struct Right {
    /// Where.
    pub scope: Scope,
    /// API group; empty: the core one.
    pub group: &'static str,
    /// Resource, with its subresource behind a slash.
    pub resource: &'static str,
    /// Only objects of these names; empty: all.
    pub names: &'static [&'static str],
    /// What is done.
    pub verbs: &'static [&'static str],
    /// Only needed where agents run in pods.
    pub for_pods: bool,
    /// Why.
    pub why: &'static str,
}

impl Right {
    const fn for_pods(mut self) -> Self {
        self.for_pods = true;
        self
    }
}

/// Questions that are asked at once.
const QUESTIONS_MAX: usize = 8;

const fn right(
    scope: Scope,
    group: &'static str,
    resource: &'static str,
    names: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Right {
    Right { scope, group, resource, names, verbs, for_pods: false, why }
}

use Scope::{Cluster, Installation};

const COORDINATION: &str = "coordination.k8s.io";
/// See [`rights`].
const RIGHTS: &[Right] = &[
    right(
        Cluster,
        GROUP,
        "agents",
        &[],
        &["get", "list", "watch", "create", "update", "patch", "delete"],
        "agents are followed in every namespace; the HTTP API makes, changes and ends them; update holds the finalizer, patch says who ends one",
    ),
    right(Cluster, GROUP, "agents/status", &[], &["update"], "what was seen of an agent; nobody else needs to write it"),
    right(
        Cluster,
        GROUP,
        "halts",
        &[],
        &["get", "list", "watch", "create", "update", "delete"],
        "stop orders are followed, engaged by kill-all, held by our finalizer and released when done",
    ),
    right(Cluster, GROUP, "halts/status", &[], &["update"], "how far a stop order is"),
    right(Cluster, "events.k8s.io", "events", &[], &["create"], "what happens to an agent is told in its namespace"),
    right(
        Cluster,
        COORDINATION,
        "leases",
        &["mosaic"],
        &["list"],
        "a second installation in another namespace would act on the same agents: it is looked for at start",
    ),
    right(
        Cluster,
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        &["agents.mosaicstack.dev", "halts.mosaicstack.dev"],
        &["get"],
        "definitions that lack a field would drop what is written there: they are compared at start, and never changed",
    ),
    right(Installation, COORDINATION, "leases", &[], &["create"], "the leader lease is made once; a name cannot limit that"),
    right(Installation, COORDINATION, "leases", &["mosaic"], &["get", "update"], "who leads, with which epoch, who asks to lead next, and who else is there"),
    right(
        Installation,
        "",
        "configmaps",
        &[],
        &["get", "list", "create", "patch", "delete"],
        "the history of agents that are gone, one object each, and the installation's id",
    ),
    right(
        Cluster,
        "",
        "pods",
        &[],
        &["get", "list", "watch", "create", "patch", "delete"],
        "an agent runs in a pod of its namespace, which is followed to its end; patch makes one that was prepared an agent's, and takes our finalizer off once its end was seen",
    )
    .for_pods(),
    right(
        Cluster,
        "",
        "secrets",
        &[],
        &["create", "delete"],
        "the token of a pod; it is written once and never read, and goes with the pod",
    )
    .for_pods(),
    right(
        Cluster,
        "networking.k8s.io",
        "networkpolicies",
        &[],
        &["create", "delete"],
        "a pod reaches this controller's link and nothing else",
    )
    .for_pods(),
    right(Cluster, "", "nodes", &[], &["get"], "that a node has ended is the only other proof of a pod's death").for_pods(),
];

/// Every right that is needed, and none beyond.
#[must_use]
pub fn rights() -> &'static [Right] {
    RIGHTS
}

/// A service account with exactly these rights, as YAML.
#[must_use]
pub fn yaml(namespace: &str) -> String {
    let mut text = format!(
        "# Printed by `mosaic crd --rbac`: the least that mosaic needs with --store kube. Namespace of the installation: {namespace}\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: mosaic, namespace: {namespace}}}\n"
    );
    for (scope, kind, place) in
        [(Scope::Cluster, "ClusterRole", String::new()), (Scope::Installation, "Role", format!(", namespace: {namespace}"))]
    {
        write!(text, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {{name: mosaic{place}}}\nrules:\n")
            .expect("a String takes everything");
        rights().iter().filter(|right| right.scope == scope).for_each(|right| text.push_str(&rule(right)));
        write!(
            text,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata: {{name: mosaic{place}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: mosaic}}\n\
             subjects: [{{kind: ServiceAccount, name: mosaic, namespace: {namespace}}}]\n"
        )
        .expect("a String takes everything");
    }
    text
}

fn rule(right: &Right) -> String {
    let names = if right.names.is_empty() { String::new() } else { format!("    resourceNames: [{}]\n", right.names.join(", ")) };
    format!(
        "  # {}\n  - apiGroups: [{:?}]\n    resources: [{}]\n{names}    verbs: [{}]\n",
        right.why,
        right.group,
        right.resource,
        right.verbs.join(", ")
    )
}

/// Asks the API server which of the rights it does not give us, in words: of those that the keeper needs, or pods.
pub(super) async fn missing(api: &Api, for_pods: bool) -> StoreResult<Vec<String>> {
    let mut asked = Vec::new();
    for right in rights().iter().filter(|right| right.for_pods == for_pods) {
        for verb in right.verbs {
            asked.push(refused(api, right, verb));
        }
    }
    let answers: Result<Vec<_>, CallError> = futures::stream::iter(asked).buffered(QUESTIONS_MAX).try_collect().await;
    Ok(answers.map_err(|error| error.into_trouble("ask for our rights"))?.into_iter().flatten().collect())
}

/// Asks for one; in words if it is not given.
async fn refused(api: &Api, right: &'static Right, verb: &'static str) -> Result<Option<String>, CallError> {
    let review = review(right, verb, &api.namespace);
    let answer: Value = api.call(Method::POST, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", Some(&review)).await?;
    let place = match right.scope {
        Scope::Cluster => String::new(),
        Scope::Installation => format!(" in namespace {}", api.namespace),
    };
    Ok((answer["status"]["allowed"] != true).then(|| format!("{verb} {}{place}", right.resource)))
}

fn review(right: &Right, verb: &str, namespace: &str) -> Value {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let namespace = match right.scope {
        Scope::Cluster => "",
        Scope::Installation => namespace,
    };
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "namespace": namespace,
            "name": right.names.first().copied().unwrap_or_default(),
            "verb": verb,
        } },
    })
}
