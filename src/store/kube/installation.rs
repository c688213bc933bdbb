//! Which installation this is: one ConfigMap per namespace, whose uid the API server made.
//!
//! A cluster that was emptied has another one, and so tells itself from the one before. Agents of every namespace belong to one installation:
//! a second one, in another namespace, would act on the same agents under a lease of its own, so it is refused.

use super::call::{Api, CallError, Method};
use super::lease;
use crate::store::{StoreError, StoreResult};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

/// Name of the ConfigMap.
const NAME: &str = "mosaic-installation";

/// The id of the installation in our namespace, made where there is none.
pub(super) async fn identity(api: &Api) -> StoreResult<String> {
    let collection = format!("/api/v1/namespaces/{}/configmaps", api.namespace);
    let path = format!("{collection}/{NAME}");
    let read = match api.call::<ConfigMap>(Method::GET, &path, None).await {
        Err(error) if error.is_absent() => match api.call::<ConfigMap>(Method::POST, &collection, Some(&config_map())).await {
            // Another controller was faster.
            Err(error) if error.is_conflict() => api.call::<ConfigMap>(Method::GET, &path, None).await,
            made => made,
        },
        read => read,
    };
    let uid = read.map_err(|error| error.into_trouble(&format!("read the installation's id in namespace {}", api.namespace)))?.metadata.uid;
    uid.ok_or_else(|| StoreError::Unusable(format!("the ConfigMap {NAME} in namespace {} has no uid", api.namespace)))
}

fn config_map() -> Value {
    let about =
        "The uid of this object names an installation of mosaic. While it is the same, the cluster is the one that was seen before.";
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": { "app.kubernetes.io/managed-by": "mosaic" } },
        "data": { "about": about },
    })
}

/// Refuses where another namespace has an installation too.
pub(super) async fn expect_alone(api: &Api) -> StoreResult<()> {
    let others = others(api).await.map_err(|error| error.into_trouble("look for other installations"))?;
    let Some(other) = others.first() else { return Ok(()) };
    Err(StoreError::Unusable(format!(
        "another mosaic is installed in namespace {other}, and agents of all namespaces are its; run this one there too (kubectl config \
         set-context --current --namespace {other}), or, once that one is removed: kubectl -n {other} delete lease {}",
        lease::NAME
    )))
}

/// Other namespaces that have a leader lease of mosaic.
async fn others(api: &Api) -> Result<Vec<String>, CallError> {
    let path = format!("/apis/coordination.k8s.io/v1/leases?fieldSelector=metadata.name%3D{}", lease::NAME);
    let list: Value = api.call(Method::GET, &path, None).await?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let namespaces = items.iter().filter_map(|item| item["metadata"]["namespace"].as_str());
    Ok(namespaces.filter(|namespace| **namespace != api.namespace).map(str::to_owned).collect())
}
