//! The history: the last states of agents that are gone, a ConfigMap each, in the installation's namespace.
//!
//! A record is found by its uid, name or task id through labels whose keys are made of these, so that one request answers for all three. The
//! oldest go when there are too many; how many there are is counted on the server now and then and kept in between.

use super::call::{Api, CallError, Method};
use super::wire::{encode, stamp};
use crate::store::{Record, StoreError, StoreResult, is_about};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Mutex;

/// On every ConfigMap of the history.
const LABEL: &str = "mosaicstack.dev/history";
/// Beginning of the keys of labels that say what a record is about.
const ABOUT: &str = "about.mosaicstack.dev/";
/// Annotation: when the record was archived.
const ARCHIVED_AT: &str = "mosaicstack.dev/archived-at";
/// Where the record stands in its ConfigMap.
const FIELD: &str = "record";
/// Most records of one page; each may be large.
const PAGE_RECORDS: usize = 100;
/// Largest record that is kept whole, in bytes of JSON; a ConfigMap takes a mebibyte.
const WHOLE_BYTES_MAX: usize = 900 << 10;
/// After so many archived records they are counted again: other controllers archive as well.
const COUNT_EVERY: usize = 200;

/// The history of one installation.
pub(super) struct History {
    api: Arc<Api>,
    max: usize,
    kept: Mutex<Option<Kept>>,
}

/// What there is, as far as this controller knows.
struct Kept {
    /// When archived, and name; oldest first.
    order: VecDeque<(String, String)>,
    archived_since: usize,
}

/// A ConfigMap, or its metadata alone.
#[derive(Deserialize)]
struct ConfigMap {
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    items: Vec<ConfigMap>,
}

impl History {
    pub(super) fn new(api: Arc<Api>, max: usize) -> Self {
        Self { api, max, kept: Mutex::default() }
    }

    pub(super) async fn archive(&self, record: Record) -> StoreResult<()> {
        let Some(uid) = record.metadata.uid.clone() else {
            return Err(StoreError::Invalid("metadata.uid: is required of a record for the history".to_owned()));
        };
        let key = record.key();
        let name = format!("mosaic-history-{}", uid.to_lowercase());
        let text = as_text(record.clone());
        let at = stamp(Timestamp::now());
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "labels": labels(&record), "annotations": { ARCHIVED_AT: at } },
            "data": { FIELD: text },
        });
        let made = self.api.call::<Value>(Method::POST, &self.path(""), Some(&map)).await;
        match made {
            Ok(_) => self.trim(at, name).await,
            // Archived before: it keeps its place.
            Err(error) if error.is_conflict() => {
                let patch = json!({ "data": { FIELD: text } });
                let patched = self.api.call::<Value>(Method::PATCH, &self.path(&format!("/{name}")), Some(&patch)).await;
                patched.map(drop).map_err(|error| error.into_store("archive", &key))
            }
            Err(error) => Err(error.into_store("archive", &key)),
        }
    }

    /// Newest first, at most `limit`.
    pub(super) async fn read(&self, filter: Option<&str>, limit: usize) -> StoreResult<Vec<Record>> {
        let selector = filter.map_or_else(|| LABEL.to_owned(), about);
        let maps = self.all(&selector, WHOLE).await.map_err(|error| error.into_trouble("read the history"))?;
        let mut found: Vec<(String, Record)> = maps.into_iter().filter_map(decode).collect();
        found.retain(|(_, record)| filter.is_none_or(|wanted| is_about(record, wanted)));
        found.sort_by(|a, b| b.0.cmp(&a.0));
        found.truncate(limit);
        Ok(found.into_iter().map(|(_, record)| record).collect())
    }

    /// Removes the oldest beyond the limit. One at a time: two would count each other's.
    async fn trim(&self, at: String, name: String) -> StoreResult<()> {
        let mut kept = self.kept.lock().await;
        let known = match kept.take() {
            Some(mut known) if known.archived_since < COUNT_EVERY => {
                known.order.push_back((at, name));
                known.archived_since += 1;
                known
            }
            // The new one is among them.
            Some(_) | None => Kept { order: self.count().await?, archived_since: 0 },
        };
        let known = kept.insert(known);
        while known.order.len() > self.max {
            let Some((_, oldest)) = known.order.front() else { break };
            let gone = self.api.call::<Value>(Method::DELETE, &self.path(&format!("/{oldest}")), None).await;
            if let Err(error) = gone
                && !error.is_absent()
            {
                return Err(error.into_trouble("shorten the history"));
            }
            known.order.pop_front();
        }
        Ok(())
    }

    async fn count(&self) -> StoreResult<VecDeque<(String, String)>> {
        let maps = self.all(LABEL, NAMES_ONLY).await.map_err(|error| error.into_trouble("count the history"))?;
        let name = |map: ConfigMap| (archived_at(&map), map.metadata.name.unwrap_or_default());
        let mut order: Vec<_> = maps.into_iter().map(name).collect();
        order.sort();
        Ok(order.into())
    }

    async fn all(&self, selector: &str, form: &'static str) -> Result<Vec<ConfigMap>, CallError> {
        let mut all = Vec::new();
        let mut next = None;
        loop {
            let more = next.map(|token: String| format!("&continue={}", encode(&token))).unwrap_or_default();
            let path = self.path(&format!("?labelSelector={}&limit={PAGE_RECORDS}{more}", encode(selector)));
            let page: Page = self.api.read_as(form, &path).await?;
            all.extend(page.items);
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/configmaps{rest}", self.api.namespace)
    }
}

/// Asks for whole objects.
const WHOLE: &str = "application/json";
/// Asks for their metadata alone.
const NAMES_ONLY: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

fn labels(record: &Record) -> BTreeMap<String, &'static str> {
    let metadata = &record.metadata;
    let words = [metadata.uid.as_deref(), metadata.name.as_deref(), record.spec["taskId"].as_str()];
    let fixed = [("app.kubernetes.io/managed-by".to_owned(), "mosaic"), (LABEL.to_owned(), "agent")];
    words.into_iter().flatten().map(|word| (about(word), "")).chain(fixed).collect()
}

/// The key of the label that says that a record has this uid, name or task id.
fn about(word: &str) -> String {
    let digest = Sha256::digest(word.as_bytes());
    ABOUT.to_owned() + &digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>()
}

fn archived_at(map: &ConfigMap) -> String {
    map.metadata.annotations.as_ref().and_then(|all| all.get(ARCHIVED_AT)).cloned().unwrap_or_default()
}

fn decode(mut map: ConfigMap) -> Option<(String, Record)> {
    let text = map.data.remove(FIELD)?;
    let at = archived_at(&map);
    let name = map.metadata.name;
    let decoded = serde_json::from_str(&text);
    decoded.inspect_err(|error| tracing::error!(%error, name, "a record of the history does not decode")).ok().map(|record| (at, record))
}

/// The record as text. Of one that no ConfigMap takes, what was to be done goes, and what came of it stays.
fn as_text(mut record: Record) -> String {
    let text = |record: &Record| serde_json::to_string(record).expect("a record is plain data");
    let whole = text(&record);
    if whole.len() <= WHOLE_BYTES_MAX {
        return whole;
    }
    record.spec["runtime"] = json!({ "command": { "args": ["(left out: too large for the history)"] } });
    if let Some(context) = record.spec["context"].as_object_mut() {
        context.remove("workItems");
        context.remove("instructions");
    }
    text(&record)
}
