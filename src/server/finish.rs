//! Ends: kill one, kill all, delete.
//!
//! A kill is the deletion of the record, which the controller carries out; then this waits, for a bounded time, until the record shows
//! `Killed` and everything cleaned up, or is gone. The answer says what was seen: not seen in time is `verified: false`, never a guess.

use super::agents::{Found, NamespaceQuery, find};
use super::error::Problem;
use super::request::{InPath, OptionalJsonBody, Query, decode, millis_since};
use super::view::{AgentView, Ending, KillAll};
use super::{Ctx, ServerState};
use crate::api::condition;
use crate::api::halt::{Halt, HaltRelease, HaltSpec};
use crate::api::names::{ANNOTATION_ENDED_BY, FINALIZER, Namespace, Uid};
use crate::store::{Key, Kind, Record, StoreError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How long a kill or delete waits for the proof.
pub const END_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks at the store while waiting.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How many deletions of a kill-all are written at once.
const DELETIONS_AT_ONCE: usize = 32;

/// Body of kill-all; all of it may be left out.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KillAllRequest {
    /// Why.
    reason: Option<String>,
    /// True: nothing starts again until the halt is released.
    #[serde(default)]
    hold: bool,
    /// Only this namespace.
    namespace: Option<String>,
}

/// `POST /agents/{id}/kill`: 200 once it is seen gone, 202 if that is not known yet. A finished agent has nothing to kill.
/// # Errors
/// No such agent.
pub async fn kill(State(state): Ctx, InPath(id): InPath, Query(query): Query<NamespaceQuery>) -> Result<Response, Problem> {
    let started = Instant::now();
    let found = find(&state, &id, &state.namespace(query.namespace)?).await?;
    let view = AgentView::of(&found.record);
    let is_settled = !found.is_live || (view.is_finished() && !view.deleting);
    if is_settled {
        let message = format!("nothing to kill: the agent {}", if view.state == "killed" { "was killed before" } else { "has finished" });
        return Ok(answer(ending(&view, true, started, message)));
    }
    Ok(answer(end(&state, &found, "kill", started).await?))
}

/// `DELETE /agents/{id}`: ends it if it runs, and removes the record. The history keeps its last state.
/// # Errors
/// No such live agent.
pub async fn delete(State(state): Ctx, InPath(id): InPath, Query(query): Query<NamespaceQuery>) -> Result<Response, Problem> {
    let started = Instant::now();
    let namespace = state.namespace(query.namespace)?;
    let found = find(&state, &id, &namespace).await?;
    if !found.is_live {
        return Err(Problem::new(StatusCode::NOT_FOUND, "gone", format!("agent {id:?} is deleted already; only the history knows it")));
    }
    Ok(answer(end(&state, &found, "delete", started).await?))
}

fn answer(ending: Ending) -> Response {
    let status = if ending.verified { StatusCode::OK } else { StatusCode::ACCEPTED };
    (status, Json(ending)).into_response()
}

fn ending(view: &AgentView, verified: bool, started: Instant, message: String) -> Ending {
    Ending {
        agent_id: view.agent_id.clone(),
        name: view.name.clone(),
        namespace: view.namespace.clone(),
        state: view.state.clone(),
        verified,
        millis: millis_since(started),
        message,
    }
}

async fn end(state: &ServerState, found: &Found, how: &str, started: Instant) -> Result<Ending, Problem> {
    let (key, uid) = (found.record.key(), found.uid()?);
    ask(state, &key, &uid, how).await?;
    await_end(state, &found.record, &uid, started).await
}

/// Writes the deletion. A record that is gone or another one by now needs none.
async fn ask(state: &ServerState, key: &Key, uid: &Uid, how: &str) -> Result<(), Problem> {
    match state.store.delete(key, Some(uid), &[(ANNOTATION_ENDED_BY, how.to_owned())]).await {
        Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Waits until the agent is seen gone, or the time is over.
async fn await_end(state: &ServerState, last: &Record, uid: &Uid, started: Instant) -> Result<Ending, Problem> {
    let key = last.key();
    loop {
        let present = state.store.get(&key).await?.filter(|r| r.metadata.uid.as_deref() == Some(uid.as_str()));
        let Some(record) = present else { return gone(state, last, uid, started).await };
        let view = AgentView::of(&record);
        if view.has_condition(condition::KILLED) && view.has_condition(condition::CLEANED_UP) {
            return Ok(ending(&view, true, started, "killed; everything of it was seen gone".to_owned()));
        }
        if started.elapsed() >= END_TIME_MAX || state.closing.is_cancelled() {
            let why = view.message.clone().map(|m| format!(" ({m})")).unwrap_or_default();
            let message = format!("asked for, but not seen gone within {} s{why}; it goes on", END_TIME_MAX.as_secs());
            return Ok(ending(&view, false, started, message));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// The record is gone: the controller lets go of it only after it saw everything gone.
async fn gone(state: &ServerState, last: &Record, uid: &Uid, started: Instant) -> Result<Ending, Problem> {
    let past = state.store.history(Some(uid.as_str()), 1).await?;
    let record = past.into_iter().find(|r| r.metadata.uid.as_deref() == Some(uid.as_str()));
    let view = AgentView::of(record.as_ref().unwrap_or(last));
    let message = match view.state.as_str() {
        "killed" => "killed; everything of it was seen gone",
        _ => "the record is gone, and everything that it owned",
    };
    Ok(ending(&view, true, started, message.to_owned()))
}

/// `POST /agents/kill-all`: engages a halt, deletes every agent that is not finished, and says of each what was seen.
/// # Errors
/// A body that cannot be read; a store that does not answer.
pub async fn kill_all(State(state): Ctx, OptionalJsonBody(body): OptionalJsonBody) -> Result<Response, Problem> {
    let started = Instant::now();
    let request: KillAllRequest = body.map(decode).transpose()?.unwrap_or_default();
    let namespace = request.namespace.clone().map(Namespace::new).transpose()?;
    // The halt comes first: what is being spawned at this moment meets it.
    let halt = engage(&state, request, namespace.as_ref()).await?;
    let (records, _) = state.store.list(Kind::Agent).await?;
    let is_meant = |r: &Record| namespace.as_ref().is_none_or(|n| r.metadata.namespace.as_deref() == Some(n.as_str()));
    let live: Vec<Found> = records.into_iter().filter(is_meant).map(|record| Found { record, is_live: true }).collect();
    let live: Vec<Found> = live.into_iter().filter(|f| !AgentView::of(&f.record).is_finished()).collect();
    let asks: Vec<_> = live.iter().map(|found| ask_for_all(&state, found)).collect();
    let asked: Vec<Result<Uid, Problem>> = futures::stream::iter(asks).buffered(DELETIONS_AT_ONCE).collect().await;
    let waits = live.iter().zip(asked).map(|(found, asked)| {
        let state = &state;
        async move {
            let result = match asked {
                Ok(uid) => await_end(state, &found.record, &uid, started).await,
                Err(problem) => Err(problem),
            };
            // One agent that cannot be ended must not hide what became of the others.
            result.unwrap_or_else(|p| ending(&AgentView::of(&found.record), false, started, format!("failed: {}", p.detail)))
        }
    });
    let agents = futures::future::join_all(waits).await;
    let status = if agents.iter().all(|a| a.verified) { StatusCode::OK } else { StatusCode::ACCEPTED };
    let hold = halt.spec["release"] == "manual";
    let name = halt.metadata.name.unwrap_or_default();
    Ok((status, Json(KillAll { halt: name, hold, agents, millis: millis_since(started) })).into_response())
}

async fn ask_for_all(state: &ServerState, found: &Found) -> Result<Uid, Problem> {
    let uid = found.uid()?;
    ask(state, &found.record.key(), &uid, "kill-all").await?;
    Ok(uid)
}

async fn engage(state: &ServerState, request: KillAllRequest, namespace: Option<&Namespace>) -> Result<Record, Problem> {
    let spec = HaltSpec {
        namespace: namespace.map(ToString::to_string),
        reason: request.reason.or_else(|| Some("kill-all".to_owned())),
        who: Some("http".to_owned()),
        release: Some(if request.hold { HaltRelease::Manual } else { HaltRelease::WhenDone }),
        ..HaltSpec::default()
    };
    let mut halt = Halt::new(&format!("kill-all-{}", uuid::Uuid::now_v7().simple()), spec);
    halt.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    Ok(state.store.create(Record::from(&halt)).await?)
}
