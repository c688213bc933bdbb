//! Halts: while one matches, nothing that matches starts and everything that matches is killed.

use super::Ctx;
use super::error::Problem;
use super::request::{InPath, JsonBody, unknown_fields};
use super::view::HaltView;
use crate::api::names::FINALIZER;
use crate::api::schema;
use crate::store::{Key, Kind, Record};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// `GET /halts`.
/// # Errors
/// The store does not answer.
pub async fn list(State(state): Ctx) -> Result<Json<Value>, Problem> {
    let (mut records, _) = state.store.list(Kind::Halt).await?;
    records.sort_by_cached_key(Record::key);
    let items: Vec<HaltView> = records.iter().map(HaltView::of).collect();
    Ok(Json(json!({ "items": items, "unreadable": state.latch.unreadable() })))
}

/// `POST /halts`: the fields of the spec, each under its own name. It stays until it is released unless `release` says otherwise.
/// # Errors
/// A field that is unknown or refused.
pub async fn create(State(state): Ctx, JsonBody(body): JsonBody) -> Result<(StatusCode, Json<HaltView>), Problem> {
    let given = json!({ "spec": body });
    let mut object = given.clone();
    schema::prune(Kind::Halt, &mut object);
    let unknown = unknown_fields(&given["spec"], &object["spec"], "");
    if !unknown.is_empty() {
        return Err(Problem::invalid(unknown.into_iter().map(|path| format!("{path}: no such field")).collect()));
    }
    let mut spec = object["spec"].take();
    let Some(fields) = spec.as_object_mut() else { return Err(Problem::invalid(vec!["the body must be one JSON object".to_owned()])) };
    fields.entry("release").or_insert_with(|| json!("manual"));
    fields.entry("who").or_insert_with(|| json!("http"));
    let metadata = ObjectMeta {
        name: Some(format!("halt-{}", uuid::Uuid::now_v7().simple())),
        finalizers: Some(vec![FINALIZER.to_owned()]),
        ..ObjectMeta::default()
    };
    let record = state.store.create(Record { kind: Kind::Halt, metadata, spec, status: Value::Null }).await?;
    Ok((StatusCode::CREATED, Json(HaltView::of(&record))))
}

/// `DELETE /halts/{name}`: releases it. Restarts nothing.
/// # Errors
/// There is no such halt.
pub async fn release(State(state): Ctx, InPath(name): InPath) -> Result<Json<HaltView>, Problem> {
    let record = state.store.delete(&Key::halt(name), None, &[]).await?;
    Ok(Json(HaltView::of(&record)))
}
