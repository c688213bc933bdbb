//! Ends: kill one, kill all, delete.
//!
//! The kill lane comes first, and asks nobody: SIGKILL, a look, a receipt (`kill`). Then the record: a kill is its deletion, which the
//! controller carries out, and this waits, for a bounded time, until the record shows `Killed` and everything cleaned up, or is gone. The
//! answer says what was seen: not seen in time is `verified: false`, never a guess; a store that does not answer does not keep anything alive.

use super::agents::{Found, NamespaceQuery, find};
use super::error::Problem;
use super::request::{InPath, OptionalJsonBody, Query, decode, millis_since};
use super::view::{AgentView, Ending, KillAll};
use super::{Ctx, ServerState};
use crate::api::condition;
use crate::api::names::{ANNOTATION_ENDED_BY, AgentName, Namespace, Uid};
use crate::kill::latch::Note;
use crate::kill::receipt::{KillRequest, Receipt, Receipts, Verdict};
use crate::kill::record::{is_meant, record};
use crate::plan::teardown::SEEN_GONE;
use crate::store::{Key, Kind, Record, StoreError, WatchEvent};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How long a kill or delete waits for the proof.
pub const END_TIME_MAX: Duration = Duration::from_secs(5);
/// Time that is left for words after the last look.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// Pause between two looks at the store while waiting.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

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
    /// Name of the halt, so that the same kill-all can be asked for again; absent: one is made up.
    halt: Option<String>,
}

/// `POST /agents/{id}/kill`: 200 once it is seen gone, 202 if that is not known yet. A finished agent has nothing to kill.
/// # Errors
/// No such agent.
pub async fn kill(State(state): Ctx, InPath(id): InPath, Query(query): Query<NamespaceQuery>) -> Result<Response, Problem> {
    let started = Instant::now();
    let namespace = state.namespace(query.namespace)?;
    let receipt = strike(&state, &id, &namespace).await?;
    let found = match in_time(&state, started, find(&state, &id, &namespace)).await {
        Ok(found) => found,
        Err(problem) => return untold(receipt, &problem, started),
    };
    let view = AgentView::of(&found.record);
    // One that the lane has just ended, for this call or an earlier one, still has a record that goes.
    let ended_here = found.is_live && view.state == "killed" && state.latch.killed(&found.uid()?).is_some();
    let is_settled = !found.is_live || (view.is_finished() && !view.deleting && !ended_here);
    let nothing_ran = receipt.as_ref().is_none_or(|receipt| receipt.runs == 0);
    if is_settled && nothing_ran {
        let message = format!("nothing to kill: the agent {}", if view.state == "killed" { "was killed before" } else { "has finished" });
        return Ok(answer(ending(&view, true, started, message)));
    }
    end(&state, &found, "kill", receipt, started).await
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
    let receipt = strike(&state, found.uid()?.as_str(), &namespace).await?;
    end(&state, &found, "delete", receipt, started).await
}

/// Kills what runs of one agent; `None`: there was no run of it.
async fn strike(state: &ServerState, id: &str, namespace: &Namespace) -> Result<Option<Receipt>, Problem> {
    let request = KillRequest {
        agents: vec![id.to_owned()],
        namespace: Some(namespace.to_string()),
        who: "http".to_owned(),
        ..KillRequest::default()
    };
    let Receipts { mut agents, unknown, .. } = lane(state, request).await?;
    Ok(agents.pop().map(|receipt| {
        // What could not be told apart may be its.
        if receipt.runs > 0 || unknown.is_empty() {
            return receipt;
        }
        Receipt { verdict: Verdict::RevokedUnverified, message: unknown.join("; "), ..receipt }
    }))
}

async fn lane(state: &ServerState, request: KillRequest) -> Result<Receipts, Problem> {
    let broken = |why: String| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "kill-failed", format!("the kill lane broke: {why}"))
            .hint("run `mosaic kill` on the machine of the controller: it needs neither this server nor the store")
    };
    let killing = state.lane.kill(request).map_err(|error| broken(error.to_string()))?;
    killing.await.map_err(|_| broken("nobody knows what it did".to_owned()))
}

/// Bounds what the store may take: what lives is dead by now, and the answer must say so.
async fn in_time<T>(state: &ServerState, started: Instant, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let left = END_TIME_MAX.saturating_sub(started.elapsed());
    let silent = || StoreError::Unavailable { what: format!("it did not answer within {} s", END_TIME_MAX.as_secs()), source: None };
    tokio::select! {
        done = work => done,
        () = tokio::time::sleep(left) => Err(silent().into()),
        () = state.closing.cancelled() => Err(silent().into()),
    }
}

/// The store could not be told: what was struck is answered from the receipt, and the latch keeps it.
fn untold(receipt: Option<Receipt>, problem: &Problem, started: Instant) -> Result<Response, Problem> {
    match receipt {
        Some(receipt) => Ok(answer(Ending::of_receipt(receipt, millis_since(started), &problem.detail))),
        None => Err(problem.clone()),
    }
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
        receipt: None,
    }
}

async fn end(state: &ServerState, found: &Found, how: &str, receipt: Option<Receipt>, started: Instant) -> Result<Response, Problem> {
    let (key, uid) = (found.record.key(), found.uid()?);
    if let Err(problem) = in_time(state, started, ask(state, &key, &uid, how)).await {
        return untold(receipt, &problem, started);
    }
    Ok(answer(with_receipt(await_end(state, &found.record, &uid, started).await, receipt)))
}

/// What the lane could not see dead is not gone, whatever the record says.
fn with_receipt(ending: Ending, receipt: Option<Receipt>) -> Ending {
    let dead = receipt.as_ref().is_none_or(|receipt| receipt.verdict == Verdict::DeadVerified);
    let message = match &receipt {
        Some(receipt) if !dead && !ending.verified => format!("{}; {}", receipt.message, ending.message),
        Some(_) | None => ending.message,
    };
    Ending { receipt, message, ..ending }
}

/// Writes the deletion. A record that is gone or another one by now needs none.
async fn ask(state: &ServerState, key: &Key, uid: &Uid, how: &str) -> Result<(), Problem> {
    match state.store.delete(key, Some(uid), &[(ANNOTATION_ENDED_BY, how.to_owned())]).await {
        Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Waits until the agent is seen gone, or the time is over. That it is to end is stored by now, whatever the store answers after that.
async fn await_end(state: &ServerState, last: &Record, uid: &Uid, started: Instant) -> Ending {
    let mut seen = AgentView::of(last);
    loop {
        match in_time(state, started, look(state, last, uid, started)).await {
            Ok(Look::Gone(ending)) => return *ending,
            Ok(Look::StillThere(view)) => seen = *view,
            Err(problem) => return not_seen_gone(&seen, Some(&problem.detail), started),
        }
        if started.elapsed() + LAST_LOOK >= END_TIME_MAX || state.closing.is_cancelled() {
            return not_seen_gone(&seen, None, started);
        }
        // The longer it takes, the less it matters: a store elsewhere is not asked fifty times a second for seconds.
        tokio::time::sleep((started.elapsed() / 5).clamp(LOOK_PAUSE, LOOK_PAUSE * 5)).await;
    }
}

/// What one look at a record has shown.
enum Look {
    Gone(Box<Ending>),
    StillThere(Box<AgentView>),
}

async fn look(state: &ServerState, last: &Record, uid: &Uid, started: Instant) -> Result<Look, Problem> {
    let present = state.store.get(&last.key()).await?.filter(|r| r.metadata.uid.as_deref() == Some(uid.as_str()));
    let Some(record) = present else { return gone(state, last, uid, started).await.map(|ending| Look::Gone(Box::new(ending))) };
    let view = AgentView::of(&record);
    Ok(match seen_gone(&view) {
        Some(message) => Look::Gone(Box::new(ending(&view, true, started, message))),
        None => Look::StillThere(Box::new(view)),
    })
}

/// What is to be said of one that was killed and is gone; `None`: that was not seen.
fn seen_gone(view: &AgentView) -> Option<String> {
    let is_gone = view.has_condition(condition::KILLED) && view.has_condition(condition::CLEANED_UP);
    let said = view.said_of(condition::CLEANED_UP).filter(|said| *said != SEEN_GONE);
    is_gone.then(|| format!("killed; {}", said.unwrap_or("everything of it was seen gone")))
}

/// `silence`: what the store said instead of an answer.
fn not_seen_gone(view: &AgentView, silence: Option<&str>, started: Instant) -> Ending {
    let why = silence.or(view.why_not_gone()).or(view.message.as_deref()).map(|m| format!(" ({m})")).unwrap_or_default();
    let message = format!("asked for, but not seen gone within {} s{why}; it goes on", END_TIME_MAX.as_secs());
    ending(view, false, started, message)
}

/// The record is gone: the controller lets go of it only after it saw everything gone.
async fn gone(state: &ServerState, last: &Record, uid: &Uid, started: Instant) -> Result<Ending, Problem> {
    let past = state.store.history(Some(uid.as_str()), 1).await?;
    let record = past.into_iter().find(|r| r.metadata.uid.as_deref() == Some(uid.as_str()));
    Ok(deleted(&AgentView::of(record.as_ref().unwrap_or(last)), started))
}

fn deleted(view: &AgentView, started: Instant) -> Ending {
    let message = seen_gone(view).unwrap_or_else(|| match view.state.as_str() {
        "killed" => "killed; everything of it was seen gone".to_owned(),
        _ => "the record is gone, and everything that it owned".to_owned(),
    });
    ending(view, true, started, message)
}

/// `POST /agents/kill-all`: engages a halt, kills everything, deletes every agent that is not finished, and says of each what was seen.
/// # Errors
/// A body that cannot be read.
pub async fn kill_all(State(state): Ctx, OptionalJsonBody(body): OptionalJsonBody) -> Result<Response, Problem> {
    let started = Instant::now();
    let request: KillAllRequest = body.map(decode).transpose()?.unwrap_or_default();
    let namespace = request.namespace.clone().map(Namespace::new).transpose()?;
    let halt = request.halt.clone().map(AgentName::new).transpose()?.map(String::from);
    let hold = request.hold;
    let request = KillRequest {
        all: true,
        halt,
        namespace: request.namespace,
        reason: request.reason,
        hold,
        who: "http".to_owned(),
        ..KillRequest::default()
    };
    let receipts = lane(&state, request).await?;
    let halt = receipts.halt.clone().unwrap_or_default();
    let told = in_time(&state, started, tell_store(&state, &halt, namespace.as_ref())).await;
    let (mut live, from, warning) = match told {
        Ok((live, from)) => (live.into_iter().map(Last::Open).collect(), from, None),
        Err(problem) => (Vec::new(), 0, Some(format!("the store is not told yet ({}); nothing starts until it is", problem.detail))),
    };
    let trouble = follow(&state, &mut live, from, started).await;
    let mut open: Vec<Receipt> = receipts.agents;
    let ends = live.iter().map(|last| {
        let uid = last.record().metadata.uid.clone().unwrap_or_default();
        let receipt = open.iter().position(|receipt| receipt.agent_id.as_str() == uid).map(|index| open.swap_remove(index));
        end_of_all(last, trouble.as_deref(), receipt, started)
    });
    let mut agents: Vec<Ending> = ends.collect();
    if warning.is_none() {
        // They had ended before, and only their trees were left.
        open.retain(|receipt| receipt.runs > 0);
    }
    let why = if warning.is_some() { "the store does not answer" } else { "" };
    agents.extend(open.into_iter().map(|receipt| Ending::of_receipt(receipt, millis_since(started), why)));
    agents.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let warnings = receipts.warnings.into_iter().chain(warning).collect();
    let unknown = receipts.unknown;
    let all = unknown.is_empty() && agents.iter().all(|agent| agent.verified);
    let status = if all { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(KillAll { halt, hold, agents, unknown, warnings, millis: millis_since(started) })).into_response())
}

/// Hands the latched halt over to the store; returns what it means there, and the version from which that can be followed.
async fn tell_store(state: &ServerState, halt: &str, namespace: Option<&Namespace>) -> Result<(Vec<Record>, u64), Problem> {
    let namespace = namespace.map(Namespace::as_str);
    let (mut agents, version) = state.store.list(Kind::Agent).await?;
    agents.retain(|agent| is_meant(agent, &state.latch, namespace));
    let notes = state.latch.halts();
    // The controller may have handed it over meanwhile.
    if let Some(note) = notes.iter().find(|note| matches!(note, Note::Halt { name, .. } if name == halt)) {
        record(&*state.store, &state.latch, note).await?;
    }
    Ok((agents, version))
}

/// One agent of many, as it was told of last.
enum Last {
    /// Not seen gone.
    Open(Record),
    /// Everything of it was seen gone.
    SeenGone(Record),
    /// Its record is gone.
    Deleted(Record),
}

impl Last {
    fn of(record: Record) -> Self {
        if seen_gone(&AgentView::of(&record)).is_some() { Self::SeenGone(record) } else { Self::Open(record) }
    }

    fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    fn record(&self) -> &Record {
        let (Self::Open(record) | Self::SeenGone(record) | Self::Deleted(record)) = self;
        record
    }
}

/// Follows many until none is open, or the time is over. By one watch: a store elsewhere has enough to do with their ends. Returns why they
/// cannot be followed at the moment.
async fn follow(state: &ServerState, all: &mut [Last], mut from: u64, started: Instant) -> Option<String> {
    let mut trouble = None;
    let work = async {
        while let Err(error) = watch_ends(state, all, from).await {
            trouble = Some(crate::causes::one_line(&error));
            tokio::time::sleep(LOOK_PAUSE * 5).await;
            let Ok((present, version)) = state.store.list(Kind::Agent).await else { continue };
            (from, trouble) = (version, None);
            for last in all.iter_mut().filter(|last| last.is_open()) {
                let found = present.iter().find(|record| record.metadata.uid == last.record().metadata.uid);
                *last = found.map_or_else(|| Last::Deleted(last.record().clone()), |record| Last::of(record.clone()));
            }
        }
    };
    let left = END_TIME_MAX.saturating_sub(LAST_LOOK).saturating_sub(started.elapsed());
    tokio::select! {
        () = work => {}
        () = tokio::time::sleep(left) => {}
        () = state.closing.cancelled() => {}
    }
    trouble
}

/// Follows from a version until none is open.
async fn watch_ends(state: &ServerState, all: &mut [Last], from: u64) -> Result<(), StoreError> {
    if !all.iter().any(Last::is_open) {
        return Ok(());
    }
    let mut watch = state.store.watch(Kind::Agent, from).await?;
    while all.iter().any(Last::is_open) {
        let over = || StoreError::Unavailable { what: "the watch of the agents ended".to_owned(), source: None };
        let told = match watch.next().await.unwrap_or_else(|| Err(over()))? {
            WatchEvent::Applied(record) => Last::of(record),
            WatchEvent::Deleted(record) => Last::Deleted(record),
            WatchEvent::Bookmark(_) => continue,
        };
        if let Some(last) = all.iter_mut().find(|last| last.record().metadata.uid == told.record().metadata.uid) {
            *last = told;
        }
    }
    Ok(())
}

/// One agent that cannot be ended must not hide what became of the others.
fn end_of_all(last: &Last, trouble: Option<&str>, receipt: Option<Receipt>, started: Instant) -> Ending {
    let view = AgentView::of(last.record());
    match (last, trouble, receipt) {
        (Last::Deleted(_), _, receipt) => with_receipt(deleted(&view, started), receipt),
        (Last::Open(_), Some(why), Some(receipt)) => Ending::of_receipt(receipt, millis_since(started), why),
        (Last::Open(_), Some(why), None) => ending(&view, false, started, format!("failed: {why}")),
        (Last::SeenGone(_) | Last::Open(_), _, receipt) => {
            let said = seen_gone(&view).map_or_else(|| not_seen_gone(&view, None, started), |text| ending(&view, true, started, text));
            with_receipt(said, receipt)
        }
    }
}
