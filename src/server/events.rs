//! `GET /events`: what happened, one JSON object per line; with `follow` until the client or the server goes.
//!
//! An event has a number that only grows within a stream; `?stream=&since=` resumes after it. What memory does not hold any more is told by
//! a `gap` line, and a follower that is too slow by a `lagged` line at the end: it comes back with its last number. Nobody waits for it.

use super::Ctx;
use super::agents::find;
use super::error::Problem;
use super::request::Query;
use super::view::EventLine;
use crate::audit::{Entry, Frame};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;

/// Which events.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only those of this agent, by name or id.
    agent: Option<String>,
    namespace: Option<String>,
    /// Only those after this number.
    since: Option<u64>,
    /// Stream that the number is of.
    stream: Option<String>,
    follow: Option<bool>,
}

/// The handler.
/// # Errors
/// No such agent; too many follows.
pub async fn events(State(state): Ctx, Query(query): Query<EventsQuery>) -> Result<Response, Problem> {
    let uid = match &query.agent {
        Some(id) => Some(find(&state, id, &state.namespace(query.namespace)?).await?.uid()?),
        None => None,
    };
    // A number of another stream says nothing here: everything is new to that reader.
    let is_foreign = query.stream.as_deref().is_some_and(|stream| stream != state.audit.stream_id());
    let since = if is_foreign { 0 } else { query.since.unwrap_or_default() };
    let head = EventLine::Stream { stream: state.audit.stream_id().to_owned() };
    let gap = is_foreign.then_some(EventLine::Gap).into_iter();
    if query.follow != Some(true) {
        let (entries, has_gap) = state.audit.events_since(since, uid.as_ref());
        let gap = gap.chain(has_gap.then_some(EventLine::Gap)).take(1);
        let lines = [head].into_iter().chain(gap).chain(entries.iter().map(event));
        return Ok(answer(stream::iter(lines.map(|line| text(&line)).collect::<Vec<_>>())));
    }
    let place = state.follow_place()?;
    let frames = state.audit.follow(Some(since), uid).map(|frame| match frame {
        Frame::Entry(entry) => event(&entry),
        Frame::Gap => EventLine::Gap,
        Frame::Lagged(missed) => EventLine::Lagged { missed },
    });
    let lines = stream::iter([head].into_iter().chain(gap)).chain(frames).map(move |line| {
        // The place is held as long as the stream lives.
        let _ = &place;
        text(&line)
    });
    Ok(answer(lines.take_until(state.closing.clone().cancelled_owned())))
}

fn event(entry: &Arc<Entry>) -> EventLine {
    EventLine::Event {
        seq: entry.seq,
        at: entry.at.clone(),
        namespace: entry.key.as_ref().map(|key| key.namespace.clone()),
        name: entry.key.as_ref().map(|key| key.name.clone()),
        agent_id: entry.uid.as_ref().map(ToString::to_string),
        attempt: entry.attempt.map(|attempt| attempt.0),
        before: entry.before.clone(),
        after: entry.after.clone(),
        reason: entry.action.clone().unwrap_or_default(),
        message: entry.message.clone(),
    }
}

fn text(line: &EventLine) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("a line is plain data");
    text.push(b'\n');
    Bytes::from(text)
}

fn answer(lines: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
