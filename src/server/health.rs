//! Whether the server lives, is ready, and what it counts.

use super::error::Problem;
use super::view::{AgentView, STATES};
use super::{Ctx, ServerState};
use crate::store::{Key, Kind};
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

/// How long the readiness look at the store may take.
const STORE_LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// Answer of `GET /health`.
#[derive(Serialize, Debug)]
pub struct Health {
    status: &'static str,
    /// Seconds since the start.
    uptime: u64,
    timestamp: String,
}

/// `GET /health`.
pub async fn health(State(state): Ctx) -> Json<Health> {
    let now = Timestamp::from_second(Timestamp::now().as_second()).expect("the present is in range");
    Json(Health { status: "healthy", uptime: state.started.elapsed().as_secs(), timestamp: now.to_string() })
}

/// `GET /livez`: the server answers.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz[?verbose]`: the controller has seen all records, the store answers, and no shutdown began.
/// # Errors
/// 503 that names what is missing.
pub async fn readyz(State(state): Ctx, RawQuery(query): RawQuery) -> Result<String, Problem> {
    let checks = [
        ("records-seen", if *state.ready.borrow() { Ok(()) } else { Err("the controller has not seen all records yet".to_owned()) }),
        ("store", look_at_store(&state).await),
        ("serving", if state.closing.is_cancelled() { Err("the server shuts down".to_owned()) } else { Ok(()) }),
    ];
    let missing: Vec<String> =
        checks.iter().filter_map(|(name, result)| result.as_ref().err().map(|why| format!("{name}: {why}"))).collect();
    if !missing.is_empty() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", missing.join("; "));
        return Err(problem.errors(missing));
    }
    let is_verbose = query.unwrap_or_default().split('&').any(|q| q == "verbose" || q.starts_with("verbose="));
    let remarks = (state.remarks)().into_iter().map(|remark| format!("[i] {remark}\n"));
    let lines: String = checks.iter().map(|(name, _)| format!("[+] {name} ok\n")).chain(remarks).collect();
    Ok(if is_verbose { lines + "ready\n" } else { "ok\n".to_owned() })
}

async fn look_at_store(state: &ServerState) -> Result<(), String> {
    let key = Key::halt("readyz");
    match tokio::time::timeout(STORE_LOOK_TIME_MAX, state.store.get(&key)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(crate::causes::one_line(&error)),
        Err(_) => Err(format!("no answer within {} s", STORE_LOOK_TIME_MAX.as_secs())),
    }
}

/// `GET /metrics`: OpenMetrics text.
/// # Errors
/// The store does not answer.
pub async fn metrics(State(state): Ctx) -> Result<Response, Problem> {
    let (records, _) = state.store.list(Kind::Agent).await?;
    let states: Vec<String> = records.iter().map(|r| AgentView::of(r).state).collect();
    for name in STATES {
        state.metrics.set_agents(name, states.iter().filter(|s| *s == name).count());
    }
    let type_ = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, type_)], state.metrics.encode()).into_response())
}
