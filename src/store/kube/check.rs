//! What is looked at before anything is kept in a cluster. Each failure says what to do.

use super::call::{Api, CallError, Method};
use super::{installation, rbac, wire};
use crate::api::names::{GROUP, VERSION};
use crate::api::schema;
use crate::store::{Kind, StoreError, StoreResult};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// Most missing fields that one answer names.
const FIELDS_MAX: usize = 5;

/// Looks at rights, definitions and neighbours; returns what was found, one line each.
pub(super) async fn check(api: &Api) -> StoreResult<Vec<String>> {
    let namespace = &api.namespace;
    let missing = rbac::missing(api, false).await?;
    if !missing.is_empty() {
        let who = whoami(api).await;
        return Err(StoreError::Unusable(format!(
            "{who} may not {}; `mosaic crd --rbac -n {namespace} | kubectl apply -f -` makes a service account `mosaic` that may exactly what \
             is needed",
            missing.join(", ")
        )));
    }
    for kind in [Kind::Agent, Kind::Halt] {
        definition(api, kind).await?;
    }
    installation::expect_alone(api).await?;
    let id = installation::identity(api).await?;
    Ok(vec![format!("store: Kubernetes, agents of all namespaces; installed in namespace {namespace} (id {id}), as {}", whoami(api).await)])
}

/// The definition of a kind is there, established, and knows every field and rule of ours.
async fn definition(api: &Api, kind: Kind) -> StoreResult<()> {
    let name = format!("{}.{GROUP}", wire::plural(kind));
    let unusable = |why: String| {
        Err(StoreError::Unusable(format!("the definition {name} in the cluster {why}; run `mosaic crd | kubectl apply -f -`")))
    };
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    let found = match api.call::<CustomResourceDefinition>(Method::GET, &path, None).await {
        Ok(found) => found,
        Err(error) if error.is_absent() => return unusable("is missing".to_owned()),
        Err(error) => return Err(error.into_trouble(&format!("read the definition {name}"))),
    };
    let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if !conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
        return unusable("is not served (yet)".to_owned());
    }
    let served = found.spec.versions.iter().find(|version| version.name == VERSION && version.served);
    let Some(served) = served else { return unusable(format!("does not serve version {VERSION}")) };
    if served.subresources.as_ref().is_none_or(|subresources| subresources.status.is_none()) {
        return unusable("has no status subresource".to_owned());
    }
    let [agent, halt] = schema::crds();
    let ours = match kind {
        Kind::Agent => agent,
        Kind::Halt => halt,
    };
    let theirs = served.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let theirs =
        serde_json::to_value(theirs).map_err(|error| CallError::Odd(error).into_trouble(&format!("read the definition {name}")))?;
    let mut lacks = Vec::new();
    compare("", &schema::open_api_schema(&ours), &theirs, &mut lacks);
    if lacks.is_empty() {
        return Ok(());
    }
    let more = lacks.len().saturating_sub(FIELDS_MAX);
    lacks.truncate(FIELDS_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    unusable(format!("is of another version: it lacks {}{more}", lacks.join(", ")))
}

/// Names fields and rules of ours that the other schema lacks. What it has beyond, from a newer version, harms nothing.
fn compare(path: &str, ours: &Value, theirs: &Value, lacks: &mut Vec<String>) {
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match theirs["properties"].get(name) {
            None => lacks.push(path),
            Some(other) => compare(&path, field, other, lacks),
        }
    }
    for inner in ["items", "additionalProperties"] {
        if ours[inner].is_object() {
            compare(path, &ours[inner], &theirs[inner], lacks);
        }
    }
    let rules = |schema: &Value| -> Vec<String> {
        let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
        rules.filter_map(|rule| rule["rule"].as_str().map(str::to_owned)).collect()
    };
    let known = rules(theirs);
    if rules(ours).iter().any(|rule| !known.contains(rule)) {
        lacks.push(format!("a rule on {}", if path.is_empty() { "the object" } else { path }));
    }
}

/// Who we are to the API server. Older ones do not say.
async fn whoami(api: &Api) -> String {
    let review = serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let answer = api.call::<Value>(Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", Some(&review)).await;
    let name = answer.ok().and_then(|answer| answer["status"]["userInfo"]["username"].as_str().map(str::to_owned));
    name.unwrap_or_else(|| "this user".to_owned())
}
