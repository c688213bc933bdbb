//! Reading agents, applying them by name, and changing what may be changed.

use super::error::Problem;
use super::request::{InPath, JsonBody, Query, decode, unknown_fields};
use super::spawn::check_halts;
use super::view::{AgentList, AgentView, STATES, Written};
use super::{Ctx, ServerState, watch};
use crate::api::names::{ANNOTATION_APPROVE_TAMPER, AgentName, FINALIZER, GROUP, Namespace, Uid, VERSION};
use crate::api::schema;
use crate::store::{Key, Kind, Record, StoreError};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Agents per page unless told otherwise.
pub const PAGE_DEFAULT: usize = 500;
/// Most agents per page.
pub const PAGE_MAX: usize = 1000;
/// How often a write is tried again because somebody else wrote in between.
pub const CONFLICTS_MAX: usize = 16;
/// How many entries of the history one look takes.
pub const HISTORY_LOOK_MAX: usize = 100;

/// Which agents `GET /agents` shows.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListQuery {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this name.
    pub name: Option<String>,
    /// Only this state or phase.
    pub phase: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Where the page before ended.
    #[serde(rename = "continue")]
    pub continue_: Option<String>,
    /// True: go on with every change, one JSON object per line.
    pub watch: Option<bool>,
    /// Watch from here instead of from the present state.
    pub resource_version: Option<String>,
}

/// `?namespace=`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct NamespaceQuery {
    /// Namespace of a name; ids need none.
    pub namespace: Option<String>,
}

/// `GET /agents`.
/// # Errors
/// A query that says nothing sensible; a store that does not answer.
pub async fn list(State(state): Ctx, headers: HeaderMap, Query(query): Query<ListQuery>) -> Result<Response, Problem> {
    if query.watch == Some(true) {
        return watch::agents(state, query).await;
    }
    query.namespace.clone().map(Namespace::new).transpose()?;
    let phase = query.phase.as_deref().map(known_state).transpose()?;
    let after = query.continue_.as_deref().map(decode_token).transpose()?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(bad_query(format!("limit must be from 1 to {PAGE_MAX}")));
    }
    let (mut records, version) = state.store.list(Kind::Agent).await?;
    records.sort_by_cached_key(Record::key);
    let wanted = |record: &Record| {
        let key = record.key();
        query.namespace.as_ref().is_none_or(|n| *n == key.namespace)
            && query.name.as_ref().is_none_or(|n| *n == key.name)
            && after.as_ref().is_none_or(|(namespace, name)| (&key.namespace, &key.name) > (namespace, name))
    };
    let mut views = records.iter().filter(|r| wanted(r)).map(AgentView::of).filter(|v| phase.as_ref().is_none_or(|p| *p == v.state));
    let items: Vec<AgentView> = views.by_ref().take(limit).collect();
    let continue_ = match (views.next(), items.last()) {
        (Some(_), Some(last)) => Some(URL_SAFE_NO_PAD.encode(format!("{}/{}", last.namespace, last.name))),
        _ => None,
    };
    with_etag(&headers, &AgentList { items, resource_version: version.to_string(), continue_ })
}

fn known_state(given: &str) -> Result<String, Problem> {
    let state = given.to_lowercase();
    if STATES.contains(&state.as_str()) {
        return Ok(state);
    }
    Err(bad_query(format!("phase {given:?} is not one of {}", STATES.join(", "))))
}

fn decode_token(token: &str) -> Result<(String, String), Problem> {
    let text = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|t| t.split_once('/')).map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    pair.ok_or_else(|| bad_query("continue: this is no token of an earlier page"))
}

fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-query", detail)
}

/// The body as JSON with its ETag; 304 when the client has it already.
fn with_etag(headers: &HeaderMap, body: &impl serde::Serialize) -> Result<Response, Problem> {
    let bytes = serde_json::to_vec(body).map_err(|_| Problem::internal())?;
    let digest: String = Sha256::digest(&bytes).iter().take(16).map(|b| format!("{b:02x}")).collect();
    let etag = HeaderValue::from_str(&format!("\"{digest}\"")).map_err(|_| Problem::internal())?;
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    let is_known = known.flat_map(|v| v.split(',')).any(|tag| tag.trim().trim_start_matches("W/").as_bytes() == etag.as_bytes());
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
    };
    response.headers_mut().insert(header::ETAG, etag);
    Ok(response)
}

/// A record that was found, and whether it is still in the store.
pub struct Found {
    /// The record; of the history, its last state.
    pub record: Record,
    /// False: only the history knows it.
    pub is_live: bool,
}

impl Found {
    /// The agent's uid.
    /// # Errors
    /// The record has none: a fault of the store.
    pub fn uid(&self) -> Result<Uid, Problem> {
        Uid::new(self.record.metadata.uid.clone().unwrap_or_default()).map_err(|_| Problem::internal())
    }
}

/// The agent of that name or uid: live, else of the history (the newest of that name).
/// # Errors
/// There is none.
pub async fn find(state: &ServerState, id: &str, namespace: &Namespace) -> Result<Found, Problem> {
    if AgentName::new(id).is_ok()
        && let Some(record) = state.store.get(&Key::agent(namespace.as_str(), id)).await?
    {
        return Ok(Found { record, is_live: true });
    }
    if Uid::new(id).is_ok() {
        let (records, _) = state.store.list(Kind::Agent).await?;
        if let Some(record) = records.into_iter().find(|r| r.metadata.uid.as_deref() == Some(id)) {
            return Ok(Found { record, is_live: true });
        }
    }
    let past = state.store.history(Some(id), HISTORY_LOOK_MAX).await?;
    let is_it = |r: &Record| r.metadata.uid.as_deref() == Some(id) || r.key() == Key::agent(namespace.as_str(), id);
    past.into_iter().find(is_it).map(|record| Found { record, is_live: false }).ok_or_else(|| Problem::no_agent(id, namespace.as_str()))
}

/// `GET /agents/{id}`, also of agents that only the history knows.
/// # Errors
/// No such agent.
pub async fn show(
    State(state): Ctx,
    headers: HeaderMap,
    InPath(id): InPath,
    Query(query): Query<NamespaceQuery>,
) -> Result<Response, Problem> {
    let found = find(&state, &id, &state.namespace(query.namespace)?).await?;
    with_etag(&headers, &AgentView::of(&found.record))
}

/// `GET /agents/{id}/diff`: the change so far, as a patch.
/// # Errors
/// No such agent, or there is no change to show.
pub async fn diff(State(state): Ctx, InPath(id): InPath, Query(query): Query<NamespaceQuery>) -> Result<Response, Problem> {
    let found = find(&state, &id, &state.namespace(query.namespace)?).await?;
    let none = || {
        Problem::new(StatusCode::NOT_FOUND, "no-diff", format!("agent {id:?} has no change to show"))
            .hint("a change is there once an attempt of the agent has ended")
    };
    let patch = (state.diff)(found.record).await.map_err(|why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "diff-failed", why))?;
    let patch = patch.ok_or_else(none)?;
    Ok(([(header::CONTENT_TYPE, "text/x-diff; charset=utf-8")], patch).into_response())
}

/// An `Agent` as people write it. What the server owns (uid, status, …) is read over, so that what `get -o yaml` prints can be applied.
struct Manifest {
    namespace: Namespace,
    name: AgentName,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
}

impl Manifest {
    fn read(body: Value, path_name: &str, namespace: Option<String>, state: &ServerState) -> Result<Self, Problem> {
        let api_version = format!("{GROUP}/{VERSION}");
        for (field, wanted) in [("apiVersion", api_version.as_str()), ("kind", "Agent")] {
            if body[field] != wanted {
                return Err(Problem::invalid(vec![format!("{field}: must be {wanted}")]));
            }
        }
        let mut pruned = body.clone();
        schema::prune(Kind::Agent, &mut pruned);
        let mut unknown = unknown_fields(&body, &pruned, "");
        // What the server owns may come from a newer version of it.
        unknown.retain(|path| !path.starts_with("status"));
        if !unknown.is_empty() {
            return Err(Problem::invalid(unknown.into_iter().map(|path| format!("{path}: no such field")).collect()));
        }
        let meta: ObjectMeta = decode(body["metadata"].clone())?;
        let name = AgentName::new(path_name)?;
        if meta.name.as_deref().is_some_and(|n| n != name.as_str()) {
            return Err(Problem::invalid(vec!["metadata.name: differs from the name in the path".to_owned()]));
        }
        if let (Some(query), Some(own)) = (&namespace, &meta.namespace)
            && query != own
        {
            return Err(Problem::invalid(vec![format!("metadata.namespace: is {own:?}, but the request is for {query:?}")]));
        }
        Ok(Self {
            namespace: state.namespace(namespace.or(meta.namespace))?,
            name,
            labels: meta.labels.unwrap_or_default(),
            // Ours say who asked for what; nobody else writes them. A person's approval is the one that a person writes.
            annotations: meta
                .annotations
                .unwrap_or_default()
                .into_iter()
                .filter(|(k, _)| !k.starts_with(GROUP) || k == ANNOTATION_APPROVE_TAMPER)
                .collect(),
            spec: pruned["spec"].take(),
        })
    }

    fn key(&self) -> Key {
        Key::agent(self.namespace.as_str(), self.name.as_str())
    }

    fn to_record(&self) -> Record {
        let metadata = ObjectMeta {
            name: Some(self.name.to_string()),
            namespace: Some(self.namespace.to_string()),
            labels: some(self.labels.clone()),
            annotations: some(self.annotations.clone()),
            // From the first moment on, so that a kill before the first pass is seen through and remembered as well.
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        };
        Record { kind: Kind::Agent, metadata, spec: self.spec.clone(), status: Value::Null }
    }

    /// The existing record as this manifest wants it.
    fn onto(&self, mut existing: Record) -> Record {
        existing.spec = self.spec.clone();
        let meta = &mut existing.metadata;
        for (present, wanted) in [(&mut meta.labels, &self.labels), (&mut meta.annotations, &self.annotations)] {
            if !wanted.is_empty() {
                present.get_or_insert_default().extend(wanted.clone());
            }
        }
        existing
    }
}

fn some(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then_some(map)
}

/// `PUT /agents/{name}`: makes the agent, or changes priority, suspend, labels and annotations of the one that is there.
/// # Errors
/// The object is refused, or another part of the spec would change.
pub async fn apply(
    State(state): Ctx,
    InPath(name): InPath,
    Query(query): Query<NamespaceQuery>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let manifest = Manifest::read(body, &name, query.namespace, &state)?;
    for _ in 0..CONFLICTS_MAX {
        let written = match state.store.get(&manifest.key()).await? {
            None => {
                check_halts(&state, &manifest.key().namespace).await?;
                state.store.create(manifest.to_record()).await.map(|r| ("created", r))
            }
            Some(existing) if existing.metadata.deletion_timestamp.is_some() => {
                return Err(Problem::new(StatusCode::CONFLICT, "deleting", format!("agent {name:?} is being deleted"))
                    .hint("apply it again once it is gone"));
            }
            Some(existing) => {
                let wanted = manifest.onto(existing.clone());
                if wanted == existing { Ok(("unchanged", existing)) } else { state.store.replace(wanted).await.map(|r| ("configured", r)) }
            }
        };
        match written {
            Ok((result, record)) => {
                let status = if result == "created" { StatusCode::CREATED } else { StatusCode::OK };
                return Ok((status, Json(Written { result: result.to_owned(), agent: AgentView::of(&record) })).into_response());
            }
            Err(StoreError::Conflict(_) | StoreError::AlreadyExists(_) | StoreError::NotFound(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(StoreError::Conflict(manifest.key()).into())
}

/// Body of `PATCH /agents/{id}`: all that may change.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    priority: Option<i32>,
    suspend: Option<bool>,
}

/// `PATCH /agents/{id}`.
/// # Errors
/// No such live agent, or another field than priority and suspend.
pub async fn patch(
    State(state): Ctx,
    InPath(id): InPath,
    Query(query): Query<NamespaceQuery>,
    JsonBody(body): JsonBody,
) -> Result<Json<AgentView>, Problem> {
    let change: Change = decode(body).map_err(|p| p.hint("only priority and suspend can be changed"))?;
    let namespace = state.namespace(query.namespace)?;
    for _ in 0..CONFLICTS_MAX {
        let found = find(&state, &id, &namespace).await?;
        if !found.is_live {
            return Err(Problem::new(StatusCode::CONFLICT, "gone", format!("agent {id:?} is gone; only the history knows it")));
        }
        let mut record = found.record;
        if let Some(priority) = change.priority {
            record.spec["priority"] = json!(priority);
        }
        if let Some(suspend) = change.suspend {
            record.spec["suspend"] = json!(suspend);
        }
        match state.store.replace(record).await {
            Ok(record) => return Ok(Json(AgentView::of(&record))),
            Err(StoreError::Conflict(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(StoreError::Conflict(Key::agent(namespace.as_str(), id)).into())
}
