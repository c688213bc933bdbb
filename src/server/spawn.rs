//! `POST /agents/spawn`: the same task id with the same body gives the same agent, for ever; with another body it is refused.
//!
//! Flow: body -> spec (options folded in, unknown fields refused) -> name from the task id -> store, then history, whether it is known ->
//! courtesy check -> create. The store itself keeps the name unique, so two calls at once make one agent.

use super::agents::{HISTORY_LOOK_MAX, find};
use super::error::Problem;
use super::request::{JsonBody, decode, unknown_fields};
use super::view::{AgentView, Written};
use super::{Ctx, ServerState};
use crate::api::condition::reason;
use crate::api::names::{ANNOTATION_REQUEST_HASH, AgentName, FINALIZER, Namespace, agent_name_of_task};
use crate::api::{schema, validate};
use crate::plan::halts::in_force;
use crate::store::{Key, Kind, Record, StoreError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// `options` of the request.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Options {
    /// False: a local process; true: whatever the controller has. Never no isolation.
    sandbox: Option<bool>,
    /// Seconds, or a duration as text.
    timeout: Option<Value>,
    max_retries: Option<Value>,
}

/// A request that was read.
struct Request {
    namespace: Namespace,
    task_id: String,
    rerun_of: Option<String>,
    spec: Value,
}

impl Request {
    fn read(body: Value, state: &ServerState) -> Result<Self, Problem> {
        let Value::Object(mut fields) = body else { return Err(Problem::invalid(vec!["the body must be one JSON object".to_owned()])) };
        let namespace = match fields.remove("namespace") {
            None | Some(Value::Null) => state.default_namespace.clone(),
            Some(Value::String(text)) => Namespace::new(text)?,
            Some(_) => return Err(Problem::invalid(vec!["namespace: must be a text".to_owned()])),
        };
        let options = fields.remove("options").filter(|o| !o.is_null());
        fold_options(&mut fields, options.map(decode).transpose()?.unwrap_or_default())?;
        for name in ["timeout", "idleTimeout", "ttlAfterFinished"] {
            if let Some(seconds) = fields.get(name).and_then(Value::as_u64) {
                fields.insert(name.to_owned(), json!(seconds.to_string()));
            }
        }
        // The built-in agent is what runs when nothing else is named.
        fields.entry("runtime").or_insert_with(|| json!({ "claude": {} }));
        let given = json!({ "spec": fields });
        let mut object = given.clone();
        schema::prune(Kind::Agent, &mut object);
        let unknown = unknown_fields(&given["spec"], &object["spec"], "spec");
        if !unknown.is_empty() {
            return Err(Problem::invalid(unknown.into_iter().map(|path| format!("{path}: no such field")).collect()));
        }
        if object["spec"]["taskId"].is_null() {
            return Err(Problem::invalid(vec!["spec.taskId: is required; it makes the call safe to repeat".to_owned()]));
        }
        schema::check(Kind::Agent, &object, None).map_err(Problem::invalid)?;
        let text = |name: &str| object["spec"][name].as_str().map(str::to_owned);
        let (task_id, rerun_of) = (text("taskId").unwrap_or_default(), text("rerunOf"));
        Ok(Self { namespace, task_id, rerun_of, spec: object["spec"].take() })
    }

    /// Name of the agent: one per task id, and one more per agent that is run again.
    fn name(&self) -> Result<AgentName, Problem> {
        let name = agent_name_of_task(&self.namespace, &self.task_id);
        let Some(uid) = &self.rerun_of else { return Ok(name) };
        let digest: String = Sha256::digest(uid.as_bytes()).iter().take(4).map(|b| format!("{b:02x}")).collect();
        Ok(AgentName::new(format!("{name}-r{digest}"))?)
    }

    fn hash(&self) -> String {
        hash_of(self.namespace.as_str(), &self.spec)
    }

    fn to_record(&self, name: &AgentName) -> Record {
        let metadata = ObjectMeta {
            name: Some(name.to_string()),
            namespace: Some(self.namespace.to_string()),
            annotations: Some([(ANNOTATION_REQUEST_HASH.to_owned(), self.hash())].into()),
            // From the first moment on, so that a kill before the first pass is seen through and remembered as well.
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        };
        Record { kind: Kind::Agent, metadata, spec: self.spec.clone(), status: Value::Null }
    }
}

fn fold_options(fields: &mut Map<String, Value>, options: Options) -> Result<(), Problem> {
    for (name, value) in [("timeout", options.timeout), ("maxRetries", options.max_retries)] {
        let Some(value) = value.filter(|v| !v.is_null()) else { continue };
        if fields.insert(name.to_owned(), value.clone()).is_some_and(|other| other != value) {
            return Err(Problem::invalid(vec![format!("options.{name}: differs from {name}")]));
        }
    }
    if options.sandbox == Some(false) {
        let sandbox = fields.entry("sandbox").or_insert_with(|| json!({}));
        if !sandbox["driver"].is_null() && sandbox["driver"] != "process" {
            return Err(Problem::invalid(vec!["options.sandbox: false means sandbox.driver process, but another one is given".to_owned()]));
        }
        if let Some(sandbox) = sandbox.as_object_mut() {
            sandbox.insert("driver".to_owned(), json!("process"));
        }
    }
    Ok(())
}

/// SHA-256 over the request with sorted keys.
fn hash_of(namespace: &str, spec: &Value) -> String {
    let text = canonical(&json!({ "namespace": namespace, "spec": spec }));
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().map(|(name, value)| format!("{}:{}", json!(name), canonical(value))).collect();
            fields.sort_unstable();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

/// The handler.
/// # Errors
/// 422 for a request that could never run, 409 for a task id that is bound to another request, or while a halt is engaged.
pub async fn spawn(State(state): Ctx, JsonBody(body): JsonBody) -> Result<Response, Problem> {
    let request = Request::read(body, &state)?;
    let name = request.name()?;
    let key = Key::agent(request.namespace.as_str(), name.as_str());
    if let Some(known) = known(&state, &key).await? {
        return same_or_refused(&request, &known);
    }
    if let Some(uid) = &request.rerun_of {
        check_rerun(&state, &request, uid).await?;
    }
    check_halts(&state, request.namespace.as_str()).await?;
    check_admission(&state, &request, &name).await?;
    match state.store.create(request.to_record(&name)).await {
        Ok(record) => {
            Ok((StatusCode::CREATED, Json(Written { result: "created".to_owned(), agent: AgentView::of(&record) })).into_response())
        }
        Err(StoreError::AlreadyExists(_)) => {
            let record = known(&state, &key).await?.ok_or(StoreError::Conflict(key))?;
            same_or_refused(&request, &record)
        }
        Err(other) => Err(other.into()),
    }
}

/// The agent of that name, live or of the history.
async fn known(state: &ServerState, key: &Key) -> Result<Option<Record>, Problem> {
    if let Some(record) = state.store.get(key).await? {
        return Ok(Some(record));
    }
    let past = state.store.history(Some(&key.name), HISTORY_LOOK_MAX).await?;
    Ok(past.into_iter().find(|r| r.key() == *key))
}

fn same_or_refused(request: &Request, record: &Record) -> Result<Response, Problem> {
    let bound = record.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_REQUEST_HASH).cloned());
    // A record that was applied under this name has no hash of its own.
    let bound = bound.unwrap_or_else(|| hash_of(record.metadata.namespace.as_deref().unwrap_or_default(), &record.spec));
    let agent = AgentView::of(record);
    if bound == request.hash() {
        return Ok((StatusCode::OK, Json(Written { result: "unchanged".to_owned(), agent })).into_response());
    }
    let detail = format!("task id {:?} belongs to agent {}, which was asked for with another body", request.task_id, agent.name);
    let hint = format!(
        "send the first body again to get that agent, use another task id, or, once it has finished, run it again with rerunOf {:?}",
        agent.agent_id
    );
    Err(Problem::new(StatusCode::CONFLICT, "task-id-taken", detail).hint(hint).agent(agent.agent_id))
}

async fn check_rerun(state: &ServerState, request: &Request, uid: &str) -> Result<(), Problem> {
    let missing = |p: Problem| {
        if p.status == 404 { Problem::invalid(vec![format!("rerunOf: there is no agent with the id {uid:?}")]) } else { p }
    };
    let old = AgentView::of(&find(state, uid, &request.namespace).await.map_err(missing)?.record);
    if old.agent_id != uid || old.namespace != request.namespace.as_str() || old.task_id != request.task_id {
        let sentence = format!("rerunOf: must be the id of an agent of the same namespace with task id {:?}", request.task_id);
        return Err(Problem::invalid(vec![sentence]));
    }
    if !old.is_finished() {
        let detail = format!("rerunOf: agent {} has not finished (it is {})", old.name, old.state);
        return Err(Problem::new(StatusCode::CONFLICT, "not-finished", detail).agent(old.agent_id));
    }
    Ok(())
}

/// An agent that is made under a halt is latched as killed, and its task id with it: better to say so before.
pub(super) async fn check_halts(state: &ServerState, namespace: &str) -> Result<(), Problem> {
    // A kill of everything that the store does not know of yet means what is made now, too.
    if let Some(why) = state.latch.halted(namespace) {
        let hint = "spawn again in a moment; `mosaic halt list` shows what holds".to_owned();
        return Err(Problem::new(StatusCode::CONFLICT, "halted", format!("{why}: nothing starts")).hint(hint).reason(reason::HALTED));
    }
    let (records, _) = state.store.list(Kind::Halt).await?;
    for record in records {
        let name = record.metadata.name.clone().unwrap_or_default();
        // A halt that cannot be read counts as one that matches.
        let halt = record.halt().ok().map(|halt| in_force(&name, &halt.spec));
        if halt.as_ref().is_none_or(|halt| halt.matches(namespace, &BTreeMap::new())) {
            let why =
                halt.map(|halt| halt.reason).filter(|reason| !reason.is_empty()).map(|reason| format!(" ({reason})")).unwrap_or_default();
            let detail = format!("the halt {name}{why} is engaged: nothing starts");
            let hint = format!("spawn again once it is gone; `mosaic halt release {name}` releases it if nobody else does");
            return Err(Problem::new(StatusCode::CONFLICT, "halted", detail).hint(hint).reason(reason::HALTED));
        }
    }
    Ok(())
}

async fn check_admission(state: &ServerState, request: &Request, name: &AgentName) -> Result<(), Problem> {
    let mut record = request.to_record(name);
    // The store gives the real one; this one only makes the default branch of the target well-formed.
    record.metadata.uid = Some(uuid::Uuid::now_v7().to_string());
    let agent = validate::validate(&record).map_err(Problem::invalid)?;
    (state.admission)(agent)
        .await
        .map_err(|refusal| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not-admitted", refusal.message).reason(refusal.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_keys() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":[1,2],"d":"x"}}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"b":{"d":"x","c":[1,2]},"a":1}"#).unwrap();
        assert_eq!(hash_of("default", &one), hash_of("default", &two));
        assert_ne!(hash_of("default", &one), hash_of("other", &one));
    }
}
