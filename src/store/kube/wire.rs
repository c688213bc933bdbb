//! Records as the API server sends and takes them, and where they are.

use super::FIELD_MANAGER;
use crate::api::names::{GROUP, VERSION};
use crate::store::{Key, Kind, Record};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// A time as a `MicroTime` of the API server's.
pub(super) fn stamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// One custom resource, whatever its spec holds.
#[derive(Deserialize, Debug, Clone)]
pub(super) struct Object {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

impl Object {
    /// The record. Who wrote which field is the API server's own book and takes more room than the rest: it stays there.
    pub(super) fn into_record(self, kind: Kind) -> Record {
        let metadata = ObjectMeta { managed_fields: None, ..self.metadata };
        Record { kind, metadata, spec: self.spec, status: self.status }
    }
}

/// A page of a list.
#[derive(Deserialize, Debug)]
pub(super) struct Page {
    pub(super) metadata: ListMeta,
    pub(super) items: Vec<Object>,
}

/// Name of a kind in paths.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "agents",
        Kind::Halt => "halts",
    }
}

/// Path of all records of a kind, in every namespace.
pub(super) fn everywhere(kind: Kind) -> String {
    format!("/apis/{GROUP}/{VERSION}/{}", plural(kind))
}

/// Path of a record.
pub(super) struct Address {
    collection: String,
    name: String,
}

impl Address {
    /// `None`: no record can have such a name.
    pub(super) fn of(key: &Key) -> Option<Self> {
        let collection = match key.kind {
            Kind::Agent => format!("/apis/{GROUP}/{VERSION}/namespaces/{}/agents", Some(&key.namespace).filter(|name| is_name(name))?),
            Kind::Halt => everywhere(Kind::Halt),
        };
        is_name(&key.name).then(|| Self { collection, name: key.name.clone() })
    }

    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }

    pub(super) fn for_writes(&self) -> String {
        format!("{}/{}?fieldManager={FIELD_MANAGER}", self.collection, self.name)
    }

    pub(super) fn status_for_writes(&self) -> String {
        format!("{}/{}/status?fieldManager={FIELD_MANAGER}", self.collection, self.name)
    }

    pub(super) fn collection_for_writes(&self) -> String {
        format!("{}?fieldManager={FIELD_MANAGER}", self.collection)
    }
}

/// A name as Kubernetes has them, of which no path can be made that leads elsewhere.
fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    !name.is_empty() && name.len() <= 253 && name.bytes().all(fits) && !name.starts_with('.') && !name.ends_with('.')
}

/// The body that creates a record.
pub(super) fn to_create(record: &Record) -> Value {
    object(record, client_part(&record.metadata), Some(&record.spec), None)
}

/// The body that replaces everything but the status, if the version still stands.
pub(super) fn to_replace(record: &Record) -> Value {
    object(record, read_part(&record.metadata, client_part(&record.metadata)), Some(&record.spec), None)
}

/// The body that replaces the status, if the version still stands.
pub(super) fn to_status(record: &Record) -> Value {
    let named = ObjectMeta { name: record.metadata.name.clone(), namespace: record.metadata.namespace.clone(), ..ObjectMeta::default() };
    object(record, read_part(&record.metadata, named), None, Some(&record.status))
}

fn object(record: &Record, metadata: ObjectMeta, spec: Option<&Value>, status: Option<&Value>) -> Value {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": format!("{:?}", record.kind),
        "metadata": metadata,
    });
    if let Some(spec) = spec {
        object["spec"] = spec.clone();
    }
    if let Some(status) = status {
        object["status"] = status.clone();
    }
    object
}

/// The metadata that a caller decides.
fn client_part(given: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: given.name.clone(),
        namespace: given.namespace.clone(),
        labels: given.labels.clone(),
        annotations: given.annotations.clone(),
        finalizers: given.finalizers.clone(),
        owner_references: given.owner_references.clone(),
        ..ObjectMeta::default()
    }
}

/// With what the compare-and-set goes by.
fn read_part(read: &ObjectMeta, metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta { uid: read.uid.clone(), resource_version: read.resource_version.clone(), ..metadata }
}

/// A text as part of a query.
pub(crate) fn encode(text: &str) -> String {
    let keeps = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if keeps(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
