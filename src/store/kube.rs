//! The Kubernetes keeper: records are custom resources of `crds/`, and the API server keeps them.
//!
//! What the other keepers do themselves (`admission`), the API server does here: schema, CEL rules, generation, finalizers, compare-and-set on
//! the resourceVersion. Records that we create are checked here first and refusals are put into our words afterwards, so that a mistake has one
//! text on every store. Agents of every namespace are followed; what belongs to the installation itself (lease, identity, history) is in the
//! namespace of the client. Every request has a time limit and is sent once (`call`); nothing is read from a cache.
//!
//! Kubernetes has no annotations on a deletion: who asked is written first, in a request of its own.

pub(crate) mod call;
mod check;
mod events;
mod history;
mod installation;
mod lease;
mod listing;
mod rbac;
mod watcher;
pub(crate) mod wire;

pub use call::client;
pub use events::Teller;
pub use lease::{KubeLease, LEASE_TIME};
pub use rbac::{Right, rights, yaml as rbac_yaml};

/// Which of the rights that pods need the API server does not give us, in words.
/// # Errors
/// `Unavailable`.
pub(crate) async fn missing_for_pods(api: &call::Api) -> StoreResult<Vec<String>> {
    rbac::missing(api, true).await
}

use super::{Key, Kind, Listing, Record, Store, StoreError, StoreResult, Watch, admission, on_blocking_thread};
use crate::api::names::Uid;
use call::{Api, CallError, Method};
use futures::future::BoxFuture;
use kube::Client;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use wire::{Address, Object};

/// Whom the API server notes as the writer of each field.
pub const FIELD_MANAGER: &str = "mosaic";

/// Limits of a Kubernetes store.
#[derive(Debug, Clone)]
pub struct KubeOptions {
    /// How many records that are gone are kept in the history.
    pub history_max: usize,
    /// How long one watch request lasts; it goes on with the next one. A connection that died without a word is found after so long.
    pub watch_window: Duration,
}

impl Default for KubeOptions {
    fn default() -> Self {
        Self { history_max: 1000, watch_window: Duration::from_secs(60) }
    }
}

/// The Kubernetes keeper.
pub struct KubeStore {
    api: Arc<Api>,
    options: KubeOptions,
    history: history::History,
}

impl KubeStore {
    /// A store in the cluster of a client. What belongs to the installation itself is in the client's namespace.
    #[must_use]
    pub fn new(client: Client, options: KubeOptions) -> Self {
        let api = Arc::new(Api::new(client));
        let history = history::History::new(api.clone(), options.history_max);
        Self { api, options, history }
    }

    /// Makes sure that the cluster can keep our records: definitions, rights, and that it is no other installation's. Returns what was found,
    /// one line each.
    /// # Errors
    /// `Unusable`, which says what to do; `Unavailable`.
    pub async fn check(&self) -> StoreResult<Vec<String>> {
        check::check(&self.api).await
    }

    /// Starts telling what happens to agents as Kubernetes events.
    #[must_use]
    pub fn teller(&self) -> Teller {
        Teller::start(self.api.clone())
    }

    async fn get(&self, key: &Key) -> StoreResult<Option<Record>> {
        let Some(address) = Address::of(key) else { return Ok(None) };
        match self.api.call::<Object>(Method::GET, &address.path(), None).await {
            Ok(object) => Ok(Some(object.into_record(key.kind))),
            Err(CallError::Refused(status)) if is_absent(&status) => Ok(None),
            Err(error) => Err(error.into_store("read", key)),
        }
    }

    async fn create(&self, mut record: Record) -> StoreResult<Record> {
        let record =
            on_blocking_thread("run the checks of a record", move || admission::check_create(&mut record).map(|()| record)).await?;
        let key = record.key();
        let path = Address::of(&key).map(|address| address.collection_for_writes());
        let path = path.ok_or_else(|| StoreError::Invalid(format!("metadata.name: {:?} is no name of a record", key.name)))?;
        let written = self.api.call::<Object>(Method::POST, &path, Some(&wire::to_create(&record))).await;
        match written {
            Ok(object) => Ok(object.into_record(key.kind)),
            Err(CallError::Refused(status)) if status.is_not_found() && names_kind(&status, "namespaces") => {
                let name = &key.namespace;
                let words = format!("metadata.namespace: there is no namespace {name:?}; make it with `kubectl create namespace {name}`");
                Err(StoreError::Invalid(words))
            }
            Err(error) => Err(error.into_store("create", &key)),
        }
    }

    async fn replace(&self, record: Record) -> StoreResult<Record> {
        let (key, address) = versioned(&record)?;
        let path = address.for_writes();
        let error = match self.api.call::<Object>(Method::PUT, &path, Some(&wire::to_replace(&record))).await {
            Ok(object) => return Ok(object.into_record(key.kind)),
            Err(error) => error.into_store("replace", &key),
        };
        // The same words as on every store, where they are ours to say.
        let (StoreError::Invalid(_), Ok(Some(old))) = (&error, self.get(&key).await) else { return Err(error) };
        let in_our_words = move || {
            let mut record = record;
            admission::check_replace(&mut record, &old)?;
            admission::replace(&old, record).map(drop)
        };
        match on_blocking_thread("run the checks of a record", in_our_words).await {
            Err(ours @ StoreError::Invalid(_)) => Err(ours),
            _ => Err(error),
        }
    }

    async fn replace_status(&self, mut record: Record) -> StoreResult<Record> {
        admission::check_status(&mut record)?;
        let (key, address) = versioned(&record)?;
        let written = self.api.call::<Object>(Method::PUT, &address.status_for_writes(), Some(&wire::to_status(&record))).await;
        written.map(|object| object.into_record(key.kind)).map_err(|error| error.into_store("write the status of", &key))
    }

    async fn delete(&self, key: &Key, uid: Option<&Uid>, annotations: &[(&str, String)]) -> StoreResult<Record> {
        let address = Address::of(key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
        let last = if annotations.is_empty() {
            self.get(key).await?.ok_or_else(|| StoreError::NotFound(key.clone()))?
        } else {
            let annotations: serde_json::Map<String, Value> =
                annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            let mut patch = json!({ "metadata": { "annotations": annotations } });
            if let Some(uid) = uid {
                patch["metadata"]["uid"] = json!(uid);
            }
            let noted = self.api.call::<Object>(Method::PATCH, &address.for_writes(), Some(&patch)).await;
            noted.map_err(|error| error.into_store("say who ends", key))?.into_record(key.kind)
        };
        let mut options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
        if let Some(uid) = uid {
            options["preconditions"] = json!({ "uid": uid });
        }
        let answer: Value = match self.api.call(Method::DELETE, &address.path(), Some(&options)).await {
            Ok(answer) => answer,
            Err(error) => return Err(error.into_store("delete", key)),
        };
        // A record that goes at once is answered with the word that it is gone.
        if answer["kind"] == "Status" {
            return Ok(last);
        }
        let object: Object = serde_json::from_value(answer).map_err(|error| CallError::Odd(error).into_store("delete", key))?;
        Ok(object.into_record(key.kind))
    }
}

/// Where a record is that carries the version that was read.
fn versioned(record: &Record) -> StoreResult<(Key, Address)> {
    if record.metadata.resource_version.is_none() {
        let words = "metadata.resourceVersion: is required; read the record and send back what was read";
        return Err(StoreError::Invalid(words.to_owned()));
    }
    let key = record.key();
    let address = Address::of(&key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
    Ok((key, address))
}

/// Whether a refusal says that the very object is absent, and not that the cluster knows nothing of its kind.
fn is_absent(status: &kube::core::Status) -> bool {
    status.is_not_found() && status.details.as_ref().is_some_and(|details| !details.name.is_empty())
}

fn names_kind(status: &kube::core::Status, kind: &str) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == kind)
}

impl Store for KubeStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, StoreResult<Option<Record>>> {
        Box::pin(self.get(key))
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Vec<Record>, u64)>> {
        Box::pin(listing::list(&self.api, kind))
    }

    fn list_stream(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Listing, u64)>> {
        Box::pin(listing::stream(self.api.clone(), kind))
    }

    fn watch(&self, kind: Kind, from: u64) -> BoxFuture<'_, StoreResult<Watch>> {
        Box::pin(watcher::start(self.api.clone(), self.options.watch_window, kind, from))
    }

    fn create(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.create(record))
    }

    fn replace(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.replace(record))
    }

    fn replace_status(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>> {
        Box::pin(self.replace_status(record))
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        uid: Option<&'a Uid>,
        annotations: &'a [(&'a str, String)],
    ) -> BoxFuture<'a, StoreResult<Record>> {
        Box::pin(self.delete(key, uid, annotations))
    }

    fn archive(&self, record: Record) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.history.archive(record))
    }

    fn history<'a>(&'a self, filter: Option<&'a str>, limit: usize) -> BoxFuture<'a, StoreResult<Vec<Record>>> {
        Box::pin(self.history.read(filter, limit))
    }

    fn identity(&self) -> BoxFuture<'_, StoreResult<Option<String>>> {
        Box::pin(async move { installation::identity(&self.api).await.map(Some) })
    }
}
