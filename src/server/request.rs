//! What every request goes through: metrics, the time limit, and bodies and queries read with clear refusals.

use super::error::Problem;
use super::{BODY_BYTES_MAX, Ctx, REQUEST_TIME_MAX};
use crate::audit::{Draft, Outcome};
use crate::telemetry::RequestLabels;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Instant;

/// Whoever has the token: there is one so far.
const ACTOR: &str = "http";

/// Where a caller may put an id of its own, and where every answer to a change has the one that the audit log has.
const HEADER_REQUEST_ID: &str = "x-request-id";
/// Longest id that is taken over.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Counts the request and traces its end.
pub async fn observe(State(state): Ctx, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = match *request.method() {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => request.method().to_string(),
        _ => "OTHER".to_owned(),
    };
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "none".to_owned(), |p| p.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::debug!(method, route, status, millis = millis_since(started), "answered");
    state.metrics.count_request(&RequestLabels { method, route, status }, started.elapsed());
    response
}

/// Writes down who changed something: one entry per request that may change anything, with what came of it.
pub async fn record(State(state): Ctx, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let action = format!("{} {}", request.method(), request.uri().path());
    let request_id = request_id(request.headers());
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(HEADER_REQUEST_ID, value);
    }
    let result = if response.status().is_success() { Outcome::Ok } else { Outcome::Failed };
    let draft =
        Draft::request(ACTOR, &action, result).with_request_id(&request_id).with_message(&format!("status {}", response.status().as_u16()));
    if let Err(error) = state.audit.append(draft) {
        tracing::error!(error = %crate::causes::one_line(&error), action, "failed to write a request into the audit log");
    }
    response
}

/// The caller's id of a request, so that its own logs can be matched with the audit log; made here if there is none that can be used.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(HEADER_REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = given.filter(|id| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()));
    usable.map_or_else(|| uuid::Uuid::now_v7().to_string(), ToOwned::to_owned)
}

/// Milliseconds since then.
pub(crate) fn millis_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Ends a request whose answer does not begin in time. The store keeps what it has acknowledged.
/// # Errors
/// 503 when the time is over.
pub async fn limit_time(request: Request, next: Next) -> Result<Response, Problem> {
    tokio::time::timeout(REQUEST_TIME_MAX, next.run(request)).await.map_err(|_| {
        let detail = format!("no answer within {} s", REQUEST_TIME_MAX.as_secs());
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).hint("look at the present state before sending it again")
    })
}

/// A JSON body; empty where the type is optional.
pub struct JsonBody(pub Value);

/// A JSON body that may be left out.
pub struct OptionalJsonBody(pub Option<Value>);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let missing = || Problem::new(StatusCode::BAD_REQUEST, "no-body", "this needs a JSON body");
        OptionalJsonBody::from_request(request, state).await?.0.map(Self).ok_or_else(missing)
    }
}

impl<S: Send + Sync> FromRequest<S> for OptionalJsonBody {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let has_type = is_json(request.headers());
        let bytes = Bytes::from_request(request, state).await.map_err(|e| unreadable(&e))?;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        if !has_type {
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "the body must be JSON")
                .hint("send `Content-Type: application/json`"));
        }
        let value = serde_json::from_slice(&bytes).map_err(|e| {
            let detail = format!("the body is not JSON: {e}");
            Problem::new(StatusCode::BAD_REQUEST, "bad-json", detail)
        })?;
        Ok(Self(Some(value)))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let type_ = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = type_.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

fn unreadable(error: &BytesRejection) -> Problem {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail)
        }
        status => Problem::new(status, "unreadable-body", error.body_text()),
    }
}

/// The name or id in the path.
pub struct InPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for InPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let part = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        part.map(|part| Self(part.0)).map_err(|_| {
            let detail = format!("{:?} holds a name that is no text", parts.uri.path());
            Problem::new(StatusCode::BAD_REQUEST, "bad-path", detail).hint("names and ids are letters, digits and '-'")
        })
    }
}

/// The query, checked: unknown names are refused.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        let sentence = |text: String| text.replacen("Failed to deserialize query string: ", "query ", 1);
        query.map(|q| Self(q.0)).map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "bad-query", sentence(e.body_text())))
    }
}

/// Decodes a part of the body.
/// # Errors
/// 422 that says what is wrong with it.
pub fn decode<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|e| Problem::invalid(vec![e.to_string()]))
}

/// Paths of fields that were pruned: those of `given` that `known` does not have. Nulls say nothing and are never unknown.
#[must_use]
pub fn unknown_fields(given: &Value, known: &Value, path: &str) -> Vec<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given
            .iter()
            .filter(|(_, value)| !value.is_null())
            .flat_map(|(name, value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                known.get(name).map_or_else(|| vec![path.clone()], |inner| unknown_fields(value, inner, &path))
            })
            .collect(),
        (Value::Array(given), Value::Array(known)) => {
            let pairs = given.iter().zip(known).enumerate();
            pairs.flat_map(|(i, (given, known))| unknown_fields(given, known, &format!("{path}[{i}]"))).collect()
        }
        _ => Vec::new(),
    }
}
