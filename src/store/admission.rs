//! What every keeper that is not Kubernetes runs before a write: the API server's checks and its way of merging, as pure functions.
//!
//! Flow: `check_*` looks at one record (names, metadata, size, schema, CEL rules) and may be slow; it runs before the keeper's
//! transaction. `create`, `replace`, `replace_status` and `delete` say what the write makes of the stored record; they run inside the
//! transaction, where the compare-and-set holds. The keeper stamps the resourceVersion. Other records are deliberately not looked at.

use super::{Key, Kind, Record, StoreError, StoreResult};
use crate::api::names::{AgentName, Namespace, Uid};
use crate::api::schema;
use crate::api::validate::validate;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;

/// Largest record, in bytes of JSON; etcd's limit is of the same size.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Largest sum of all annotations of a record, in bytes, as in Kubernetes.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
/// Most finalizers of a record.
pub const FINALIZERS_MAX: usize = 32;
/// Longest prefix (a DNS name) of a label or annotation key, in bytes, as in Kubernetes.
const KEY_PREFIX_BYTES_MAX: usize = 253;
/// Longest name part of a key and longest label value, in bytes, as in Kubernetes.
const KEY_NAME_BYTES_MAX: usize = 63;

/// What a write makes of the stored record. The resourceVersion of a changed record is still the old one.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Nothing differs: nothing is written, and the stored record is the answer.
    Nothing(Record),
    /// Store this.
    Put(Record),
    /// Remove it; this is its last state.
    Remove(Record),
}

/// Checks a record that shall be created.
/// # Errors
/// `Invalid`, with every mistake in one text.
pub fn check_create(record: &mut Record) -> StoreResult<()> {
    if record.metadata.generate_name.is_some() && record.metadata.name.is_none() {
        return refuse("metadata.generateName: is not supported; give the record a metadata.name");
    }
    if record.metadata.resource_version.is_some() {
        return refuse("metadata.resourceVersion: must not be set on a record to be created");
    }
    check_metadata(record)?;
    check_spec(record, None)?;
    check_meaning(record)?;
    check_size(record)
}

/// Checks a record that shall replace `old`, which the keeper has read; the compare-and-set makes sure that it still stands.
/// # Errors
/// `Invalid`; `Conflict` when `old` is not the record that the caller read.
pub fn check_replace(record: &mut Record, old: &Record) -> StoreResult<()> {
    expect_unchanged(record, old)?;
    check_metadata(record)?;
    if record.spec != old.spec {
        check_spec(record, Some(old))?;
    }
    check_size(record)
}

/// Checks the status of a record.
/// # Errors
/// `Invalid`.
pub fn check_status(record: &mut Record) -> StoreResult<()> {
    let mut object = serde_json::json!({ "status": record.status });
    schema::prune(record.kind, &mut object);
    schema::check_status(record.kind, &object).map_err(|mistakes| StoreError::Invalid(mistakes.join("; ")))?;
    record.status = object["status"].take();
    check_size(record)
}

/// A new record with everything that the store owns.
#[must_use]
pub fn create(mut record: Record, now: Timestamp) -> Record {
    let uid = uuid::Uuid::new_v4().to_string();
    record.status = serde_json::Value::Null;
    record.metadata =
        ObjectMeta { uid: Some(uid), generation: Some(1), creation_timestamp: Some(whole_second(now)), ..client_part(record.metadata) };
    record
}

/// What replacing `old` does.
/// # Errors
/// `Conflict` when `old` is not what the caller read; `Invalid` when a finalizer is added to a record that is being deleted.
pub fn replace(old: &Record, new: Record) -> StoreResult<Change> {
    expect_unchanged(&new, old)?;
    let spec_moved = new.spec != old.spec;
    let metadata = ObjectMeta {
        uid: old.metadata.uid.clone(),
        resource_version: old.metadata.resource_version.clone(),
        generation: old.metadata.generation.map(|g| if spec_moved { g + 1 } else { g }),
        creation_timestamp: old.metadata.creation_timestamp.clone(),
        deletion_timestamp: old.metadata.deletion_timestamp.clone(),
        deletion_grace_period_seconds: old.metadata.deletion_grace_period_seconds,
        ..client_part(new.metadata)
    };
    let merged = Record { kind: old.kind, metadata, spec: new.spec, status: old.status.clone() };
    if old.metadata.deletion_timestamp.is_some() {
        let before = finalizers(&old.metadata);
        if let Some(added) = finalizers(&merged.metadata).iter().find(|f| !before.contains(f)) {
            return refuse(format!("metadata.finalizers: {added} cannot be added while the record is being deleted"));
        }
        if finalizers(&merged.metadata).is_empty() {
            return Ok(Change::Remove(merged));
        }
    }
    Ok(if merged == *old { Change::Nothing(merged) } else { Change::Put(merged) })
}

/// What replacing the status of `old` does.
/// # Errors
/// As [`replace`].
pub fn replace_status(old: &Record, new: Record) -> StoreResult<Change> {
    expect_unchanged(&new, old)?;
    let merged = Record { status: new.status, ..old.clone() };
    Ok(if merged == *old { Change::Nothing(merged) } else { Change::Put(merged) })
}

/// What asking for the deletion of `old` does.
/// # Errors
/// `Conflict` when `old` is not the record of that uid; `Invalid` when an annotation is refused.
pub fn delete(old: &Record, uid: Option<&Uid>, annotations: &[(String, String)], now: Timestamp) -> StoreResult<Change> {
    if uid.is_some_and(|uid| old.metadata.uid.as_deref() != Some(uid.as_str())) {
        return Err(StoreError::Conflict(old.key()));
    }
    let mut merged = old.clone();
    if !annotations.is_empty() {
        merged.metadata.annotations.get_or_insert_default().extend(annotations.iter().cloned());
        check_annotations(merged.metadata.annotations.as_ref())?;
    }
    merged.metadata.deletion_timestamp.get_or_insert(whole_second(now));
    if finalizers(&merged.metadata).is_empty() {
        return Ok(Change::Remove(merged));
    }
    merged.metadata.deletion_grace_period_seconds = Some(0);
    Ok(if merged == *old { Change::Nothing(merged) } else { Change::Put(merged) })
}

/// Compare-and-set: the caller must have read exactly `old`.
fn expect_unchanged(new: &Record, old: &Record) -> StoreResult<()> {
    if new.metadata.resource_version.is_none() {
        return refuse("metadata.resourceVersion: is required; read the record and send back what was read");
    }
    let is_other = new.metadata.uid.is_some() && new.metadata.uid != old.metadata.uid;
    if is_other || new.metadata.resource_version != old.metadata.resource_version {
        return Err(StoreError::Conflict(old.key()));
    }
    Ok(())
}

/// The metadata that a caller decides. Empty lists and maps are the same as absent ones, as they are once stored.
fn client_part(given: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: given.name,
        namespace: given.namespace.filter(|n| !n.is_empty()),
        labels: given.labels.filter(|l| !l.is_empty()),
        annotations: given.annotations.filter(|a| !a.is_empty()),
        finalizers: given.finalizers.filter(|f| !f.is_empty()),
        owner_references: given.owner_references.filter(|o| !o.is_empty()),
        ..ObjectMeta::default()
    }
}

fn finalizers(metadata: &ObjectMeta) -> &[String] {
    metadata.finalizers.as_deref().unwrap_or_default()
}

/// Kubernetes keeps whole seconds; so that what is answered equals what is read later, so do we.
fn whole_second(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).expect("a time of today is in range"))
}

/// Checks an address before anything is looked up by it.
/// # Errors
/// `Invalid`.
pub fn check_key(key: &Key) -> StoreResult<()> {
    if let Err(error) = AgentName::new(key.name.as_str()) {
        return refuse(format!("metadata.name: {error}"));
    }
    match key.kind {
        Kind::Agent => {
            Namespace::new(key.namespace.as_str()).map(|_| ()).map_err(|e| StoreError::Invalid(format!("metadata.namespace: {e}")))
        }
        Kind::Halt if key.namespace.is_empty() => Ok(()),
        Kind::Halt => refuse("metadata.namespace: a Halt is cluster-scoped and has none; use spec.namespace to halt one namespace only"),
    }
}

fn check_metadata(record: &Record) -> StoreResult<()> {
    check_key(&record.key())?;
    for (name, value) in record.metadata.labels.iter().flatten() {
        check_qualified("metadata.labels", name)?;
        if !(value.is_empty() || is_name_part(value)) {
            return refuse(format!("metadata.labels: {value:?} is not a label value: use at most 63 letters, digits, '-', '_' and '.'"));
        }
    }
    check_annotations(record.metadata.annotations.as_ref())?;
    let finalizers = finalizers(&record.metadata);
    if finalizers.len() > FINALIZERS_MAX {
        return refuse(format!("metadata.finalizers: has more than the maximum of {FINALIZERS_MAX} items"));
    }
    for finalizer in finalizers {
        check_qualified("metadata.finalizers", finalizer)?;
    }
    Ok(())
}

fn check_annotations(annotations: Option<&BTreeMap<String, String>>) -> StoreResult<()> {
    let mut bytes: usize = 0;
    for (name, value) in annotations.into_iter().flatten() {
        // Kubernetes compares annotation keys in lower case; upper case in the prefix is let through there.
        check_qualified("metadata.annotations", &name.to_ascii_lowercase())?;
        bytes += name.len() + value.len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        return refuse(format!("metadata.annotations: {bytes} bytes are more than the maximum of {ANNOTATIONS_BYTES_MAX}"));
    }
    Ok(())
}

/// `name` or `dns.prefix/name`.
fn check_qualified(field: &str, key: &str) -> StoreResult<()> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if is_name_part(name) && prefix.is_none_or(is_dns_name) {
        return Ok(());
    }
    refuse(format!("{field}: {key:?} is not a qualified name: use name or prefix.example.org/name"))
}

/// At most 63 letters, digits, `-`, `_`, `.`; first and last are letters or digits.
fn is_name_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    bytes.len() <= KEY_NAME_BYTES_MAX && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

fn is_dns_name(text: &str) -> bool {
    text.len() <= KEY_PREFIX_BYTES_MAX && text.split('.').all(|label| AgentName::new(label).is_ok())
}

fn check_spec(record: &mut Record, old: Option<&Record>) -> StoreResult<()> {
    let mut object = serde_json::json!({ "spec": record.spec });
    schema::prune(record.kind, &mut object);
    let old = old.map(|old| serde_json::json!({ "spec": old.spec }));
    schema::check(record.kind, &object, old.as_ref()).map_err(|mistakes| StoreError::Invalid(mistakes.join("; ")))?;
    record.spec = object["spec"].take();
    Ok(())
}

/// What a schema cannot say of a single record: branch names, quantities, circles of one.
fn check_meaning(record: &Record) -> StoreResult<()> {
    if record.kind != Kind::Agent {
        return Ok(());
    }
    // It gets its own uid only when it is stored; any will do for looking.
    let metadata = ObjectMeta { uid: Some(uuid::Uuid::nil().to_string()), ..record.metadata.clone() };
    let looked_at = Record { metadata, status: serde_json::Value::Null, ..record.clone() };
    validate(&looked_at).map(drop).map_err(|mistakes| StoreError::Invalid(mistakes.join("; ")))
}

fn check_size(record: &Record) -> StoreResult<()> {
    let bytes = serde_json::to_vec(record).expect("a record is plain data").len();
    if bytes > RECORD_BYTES_MAX {
        return refuse(format!("the record has {bytes} bytes, more than the maximum of {RECORD_BYTES_MAX}"));
    }
    Ok(())
}

fn refuse<T>(sentence: impl Into<String>) -> StoreResult<T> {
    Err(StoreError::Invalid(sentence.into()))
}
