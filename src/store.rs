//! WHERE IT IS KEPT: `trait Store`, the Kubernetes API contract in small.
//!
//! A `Record` is kind, metadata and raw JSON; the typed façade (`Record::agent`, `Record::halt`) decodes leniently, so that one
//! record that does not decode is reported on itself. All keepers give: compare-and-set on `resourceVersion`, `generation` that
//! moves only with the spec, finalizers, `deletionTimestamp`, watch with resume, bookmark and "too old", validation by the same
//! schema and CEL rules with the same words, and a capped history of records that are gone. An acknowledged write is durable.
//! One conformance suite (`tests/it/contracts/store.rs`) runs on every keeper.

pub mod admission;
pub mod embedded;
pub mod kube;
pub mod lease;
pub mod valkey;

use crate::api::agent::Agent;
use crate::api::halt::Halt;
use crate::api::names::Uid;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The two kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A task on a repository; namespaced.
    Agent,
    /// A stop order; cluster-scoped: its namespace is "".
    Halt,
}

/// Address of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Which kind.
    pub kind: Kind,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// Address of an agent.
    pub fn agent(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: Kind::Agent, namespace: namespace.into(), name: name.into() }
    }
    /// Address of a halt.
    pub fn halt(name: impl Into<String>) -> Self {
        Self { kind: Kind::Halt, namespace: String::new(), name: name.into() }
    }
}

/// One record as every keeper holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which kind.
    pub kind: Kind,
    /// Kubernetes metadata; the store owns uid, resourceVersion, generation, creationTimestamp and deletionTimestamp.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: Value,
    /// What was seen; `Null` until the first status.
    #[serde(default)]
    pub status: Value,
}

impl Record {
    /// Address of this record.
    #[must_use]
    pub fn key(&self) -> Key {
        Key {
            kind: self.kind,
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The whole object as Kubernetes writes it (`apiVersion`, `kind`, `metadata`, `spec`, `status`).
    #[must_use]
    pub fn to_object(&self) -> Value {
        let mut object = serde_json::json!({
            "apiVersion": format!("{}/{}", crate::api::names::GROUP, crate::api::names::VERSION),
            "kind": format!("{:?}", self.kind),
            "metadata": self.metadata,
            "spec": self.spec,
        });
        if !self.status.is_null() {
            object["status"] = self.status.clone();
        }
        object
    }

    /// Decodes an agent.
    /// # Errors
    /// The record is of another kind or does not decode; the text names the field.
    pub fn agent(&self) -> Result<Agent, serde_json::Error> {
        serde_json::from_value(self.to_object())
    }

    /// Decodes a halt.
    /// # Errors
    /// As [`Record::agent`].
    pub fn halt(&self) -> Result<Halt, serde_json::Error> {
        serde_json::from_value(self.to_object())
    }
}

impl From<&Agent> for Record {
    fn from(agent: &Agent) -> Self {
        Self {
            kind: Kind::Agent,
            metadata: agent.metadata.clone(),
            spec: serde_json::to_value(&agent.spec).expect("a spec is plain data"),
            status: agent.status.as_ref().map_or(Value::Null, |s| serde_json::to_value(s).expect("a status is plain data")),
        }
    }
}

impl From<&Halt> for Record {
    fn from(halt: &Halt) -> Self {
        Self {
            kind: Kind::Halt,
            metadata: halt.metadata.clone(),
            spec: serde_json::to_value(&halt.spec).expect("a spec is plain data"),
            status: halt.status.as_ref().map_or(Value::Null, |s| serde_json::to_value(s).expect("a status is plain data")),
        }
    }
}

/// One change, in the order of resource versions.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// The record is new or changed.
    Applied(Record),
    /// The record is gone; its last state.
    Deleted(Record),
    /// Nothing to tell, but everything up to this resource version was told.
    Bookmark(u64),
}

/// What a keeper could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such record.
    #[error("{0:?} not found")]
    NotFound(Key),
    /// A record of that name exists.
    #[error("{0:?} already exists")]
    AlreadyExists(Key),
    /// The record changed since it was read (resourceVersion), or is another one (uid): read again and decide again.
    #[error("{0:?} was changed by somebody else: read it again")]
    Conflict(Key),
    /// Schema, CEL rules or typed names refuse the record; the text says what to do.
    #[error("{0}")]
    Invalid(String),
    /// The watch cannot resume from there: list again.
    #[error("resource version {0} is too old: list again")]
    TooOld(u64),
    /// The store holds something that this program cannot read (newer schema, corruption).
    #[error("the store cannot be used: {0}")]
    Unusable(String),
    /// The store did not answer; trying again later may help.
    #[error("the store is unavailable: {what}")]
    Unavailable {
        /// What we tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// Result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// A live watch. Ends with an error; `TooOld` means that the caller must list again.
pub type Watch = BoxStream<'static, StoreResult<WatchEvent>>;

/// Records of one moment, one after the other. Ends after an error.
pub type Listing = BoxStream<'static, StoreResult<Record>>;

/// The Kubernetes API contract in small.
pub trait Store: Send + Sync {
    /// Reads one record, live (never from a cache).
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, StoreResult<Option<Record>>>;

    /// Reads all records of a kind, with the resource version from which a watch sees everything later.
    fn list(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Vec<Record>, u64)>>;

    /// As `list`, but record by record: ten thousand at once take a hundred times the memory of a few. Every record is told that was there at
    /// the version and is still there at the end; one that changes meanwhile may be told as it was before or after, more than once, or (created
    /// or deleted) not at all, and a watch from the version tells that change.
    fn list_stream(&self, kind: Kind) -> BoxFuture<'_, StoreResult<(Listing, u64)>> {
        Box::pin(async move {
            let (records, version) = self.list(kind).await?;
            let listing: Listing = Box::pin(futures::stream::iter(records.into_iter().map(Ok)));
            Ok((listing, version))
        })
    }

    /// Follows a kind from a resource version (exclusive).
    fn watch(&self, kind: Kind, from: u64) -> BoxFuture<'_, StoreResult<Watch>>;

    /// Creates a record. The store sets uid, resourceVersion, generation 1 and creationTimestamp; a given status is dropped.
    fn create(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>>;

    /// Replaces metadata (labels, annotations, finalizers, owner references) and spec; status is not touched. Compare-and-set on
    /// `resourceVersion` (required) and on uid if given. The generation moves with the spec. Without finalizers left, a record with a
    /// deletionTimestamp is gone and the returned record is its last state.
    fn replace(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>>;

    /// Replaces the status only. Compare-and-set on `resourceVersion` (required).
    fn replace_status(&self, record: Record) -> BoxFuture<'_, StoreResult<Record>>;

    /// Asks for deletion: sets deletionTimestamp while finalizers remain, else removes. Idempotent while it lasts. With `uid`, only that
    /// very record. `annotations` are added in the same write (who asked, and how).
    fn delete<'a>(&'a self, key: &'a Key, uid: Option<&'a Uid>, annotations: &'a [(&'a str, String)])
    -> BoxFuture<'a, StoreResult<Record>>;

    /// Keeps the last state of a finished or killed agent in the capped history. Idempotent by uid.
    fn archive(&self, record: Record) -> BoxFuture<'_, StoreResult<()>>;

    /// The history, newest first, at most `limit`; `filter` matches uid, name or task id.
    fn history<'a>(&'a self, filter: Option<&'a str>, limit: usize) -> BoxFuture<'a, StoreResult<Vec<Record>>>;

    /// What tells this very store from another one in its place, one that was emptied included; `None`: its versions alone must do.
    fn identity(&self) -> BoxFuture<'_, StoreResult<Option<String>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// What this store cannot promise as it is set up, as a sentence for people.
    fn caveat(&self) -> Option<String> {
        None
    }
}

/// Whether a record has that uid, name or task id.
fn is_about(record: &Record, wanted: &str) -> bool {
    let metadata = &record.metadata;
    [metadata.uid.as_deref(), metadata.name.as_deref(), record.spec["taskId"].as_str()].contains(&Some(wanted))
}

/// Runs what blocks for a keeper; `what` is told when its thread breaks.
pub(crate) async fn on_blocking_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> StoreResult<T> + Send + 'static,
) -> StoreResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(source) => Err(StoreError::Unavailable { what: what.to_owned(), source: Some(Box::new(source)) }),
    }
}
