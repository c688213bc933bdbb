//! `GET /agents?watch=true`: the present state, then every change, one JSON object per line.
//!
//! The stream is pulled by the connection: a slow reader holds up nobody, and is told to list again when the store has moved on too far.

use super::ServerState;
use super::agents::ListQuery;
use super::error::Problem;
use super::view::{AgentView, WatchLine};
use crate::store::{Kind, Record, StoreResult, WatchEvent};
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use std::convert::Infallible;

/// Answers with a watch of agents.
/// # Errors
/// A query that does not go with a watch; a resource version that is too old; too many follows.
pub(super) async fn agents(state: ServerState, query: ListQuery) -> Result<Response, Problem> {
    if query.phase.is_some() || query.limit.is_some() || query.continue_.is_some() {
        let detail = "phase, limit and continue do not go with watch: an agent that leaves the selection would go unseen";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad-query", detail));
    }
    let place = state.follow_place()?;
    let (present, from) = match &query.resource_version {
        Some(text) => {
            let bad = || Problem::new(StatusCode::BAD_REQUEST, "bad-query", "resourceVersion: use the one of a list or bookmark");
            (Vec::new(), text.parse().map_err(|_| bad())?)
        }
        None => state.store.list(Kind::Agent).await?,
    };
    let changes = state.store.watch(Kind::Agent, from).await?;
    let first = stream::iter(present.into_iter().map(|r| Ok(WatchEvent::Applied(r))).chain([Ok(WatchEvent::Bookmark(from))]));
    let wanted = move |record: &Record| {
        let key = record.key();
        query.namespace.as_ref().is_none_or(|n| *n == key.namespace) && query.name.as_ref().is_none_or(|n| *n == key.name)
    };
    let lines = first.chain(changes).filter_map(move |event| std::future::ready(line(event, &wanted)));
    let lines = lines.take_until(state.closing.clone().cancelled_owned()).map(move |line| {
        // The place is held as long as the stream lives.
        let _ = &place;
        Ok::<_, Infallible>(line)
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn line(event: StoreResult<WatchEvent>, wanted: &impl Fn(&Record) -> bool) -> Option<Bytes> {
    let line = match event {
        Ok(WatchEvent::Applied(record)) if wanted(&record) => WatchLine::Applied { agent: Box::new(AgentView::of(&record)) },
        Ok(WatchEvent::Deleted(record)) if wanted(&record) => WatchLine::Deleted { agent: Box::new(AgentView::of(&record)) },
        Ok(WatchEvent::Applied(_) | WatchEvent::Deleted(_)) => return None,
        Ok(WatchEvent::Bookmark(version)) => WatchLine::Bookmark { resource_version: version.to_string() },
        Err(error) => WatchLine::Ended { why: error.to_string() },
    };
    let mut text = serde_json::to_vec(&line).ok()?;
    text.push(b'\n');
    Some(Bytes::from(text))
}
