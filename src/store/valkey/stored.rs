//! How a record is kept on the server: a few lines that scripts take apart without reading JSON (`scripts/head.lua` names them).
//!
//! Metadata and spec are one JSON text, the status another, the version a line of its own: so a script can replace one part and leave the
//! others byte for byte as they were. Decoding is lenient where that is safe: a record whose JSON somebody else has damaged is still told by
//! its address and uid, so that nobody takes it for absent; it is then reported on itself, as any spec that does not decode.

use crate::api::condition;
use crate::store::{Kind, Record};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Metadata (without the version) and spec.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: Kind,
    metadata: ObjectMeta,
    spec: Value,
}

/// The text of metadata and spec.
pub(super) fn head_of(record: &Record) -> String {
    let metadata = ObjectMeta { resource_version: None, ..record.metadata.clone() };
    serde_json::to_string(&Head { kind: record.kind, metadata, spec: record.spec.clone() }).expect("a record is plain data")
}

/// The text of the status.
pub(super) fn status_of(record: &Record) -> String {
    record.status.to_string()
}

/// Reads a record.
/// # Errors
/// It is not even known whose it is.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no text".to_owned())?;
    let mut lines = text.splitn(7, '\n');
    let mut line = || lines.next().ok_or_else(|| "has too few lines".to_owned());
    let (version, uid) = (line()?, line()?);
    let (_state, _task, _cleaned) = (line()?, line()?, line()?);
    let (head, status) = (line()?, line()?);
    version.parse::<u64>().map_err(|_| format!("has {version:?} in place of a version"))?;
    let head: Head = serde_json::from_str(head).map_err(|error| format!("of uid {uid} does not decode: {error}"))?;
    let status = serde_json::from_str(status).map_err(|error| format!("of uid {uid} has a status that does not decode: {error}"))?;
    let metadata = ObjectMeta { resource_version: Some(version.to_owned()), ..head.metadata };
    Ok(Record { kind: head.kind, metadata, spec: head.spec, status })
}

/// As [`decode`], and what does not decode becomes a record without a spec: it has an address and a uid, and nothing else can be said of it.
/// # Errors
/// Not even that.
pub(super) fn decode_leniently(kind: Kind, field: &str, bytes: &[u8]) -> Result<Record, String> {
    let why = match decode(bytes) {
        Ok(record) => return Ok(record),
        Err(why) => why,
    };
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let version = lines.next().filter(|version| version.parse::<u64>().is_ok());
    let (Some(version), Some(uid)) = (version, lines.next().filter(|uid| !uid.is_empty())) else {
        return Err(format!("{kind:?} {field} {why}"));
    };
    tracing::error!(?kind, field, why, "a record in the Valkey server does not decode; it is left alone");
    let (namespace, name) = field.split_once('/').map_or((None, field), |(namespace, name)| (Some(namespace.to_owned()), name));
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace,
        uid: Some(uid.to_owned()),
        resource_version: Some(version.to_owned()),
        ..ObjectMeta::default()
    };
    Ok(Record { kind, metadata, spec: Value::Null, status: Value::Null })
}

/// A status in the words that scripts compare and tell: state of the agent, state of the task, whether everything of it is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) state: String,
    pub(super) task: String,
    pub(super) cleaned: &'static str,
}

impl Summary {
    /// Sums up a record; kinds without tasks have no states.
    pub(super) fn of(record: &Record) -> Self {
        let word = |name: &str| record.status[name].as_str().map_or_else(|| "pending".to_owned(), str::to_lowercase);
        let conditions = record.status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_clean = conditions.iter().any(|c| c["type"] == condition::CLEANED_UP && c["status"] == "True");
        match record.kind {
            Kind::Agent => Self { state: word("phase"), task: word("taskState"), cleaned: if is_clean { "yes" } else { "no" } },
            Kind::Halt => Self { state: String::new(), task: String::new(), cleaned: "no" },
        }
    }
}

/// Names and values of an event about a record, beyond those that the script adds.
pub(super) fn event_fields(record: &Record) -> Vec<(&'static str, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    vec![
        ("namespace", record.metadata.namespace.clone().unwrap_or_default()),
        ("name", record.metadata.name.clone().unwrap_or_default()),
        ("task", task_id(record)),
        ("attempt", record.status["attempt"].as_u64().unwrap_or_default().to_string()),
        ("reason", text(&record.status["reason"])),
    ]
}

/// The caller's id of the task; an agent that has none is its own task.
fn task_id(record: &Record) -> String {
    record.spec["taskId"].as_str().map_or_else(|| record.metadata.name.clone().unwrap_or_default(), str::to_owned)
}

/// Under what the state of a record's task is kept; empty for kinds without tasks.
pub(super) fn task_field(record: &Record) -> String {
    match record.kind {
        Kind::Agent => format!("{}/{}", record.metadata.namespace.as_deref().unwrap_or_default(), task_id(record)),
        Kind::Halt => String::new(),
    }
}
