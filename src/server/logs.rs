//! `GET /agents/{id}/logs`: what the agent printed, cleaned of control characters; with `follow` until the agent has finished.
//!
//! Without `attempt` it is the last one's; a follow goes on with the attempts after it, under a line that says so. A reader that is slow
//! holds up its own stream only: at most [`PIECES_AHEAD_MAX`] pieces are read ahead.

use super::agents::find;
use super::error::Problem;
use super::request::{InPath, Query};
use super::view::AgentView;
use super::{Ctx, LogPiece, ServerState};
use crate::api::names::{Namespace, Role, RunId, Uid};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of log read at once.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;
/// Pieces read ahead of the reader.
pub const PIECES_AHEAD_MAX: usize = 4;
/// Pause of a follow when there is nothing new.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Which log.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    namespace: Option<String>,
    /// Go on until the agent has finished.
    follow: Option<bool>,
    /// This attempt only.
    attempt: Option<u32>,
    /// Byte of the raw log to begin with.
    from: Option<u64>,
}

/// The handler.
/// # Errors
/// No such agent, or no such log.
pub async fn logs(State(state): Ctx, InPath(id): InPath, Query(query): Query<LogsQuery>) -> Result<Response, Problem> {
    let found = find(&state, &id, &state.namespace(query.namespace)?).await?;
    let follow = query.follow.unwrap_or_default();
    let place = if follow { Some(state.follow_place()?) } else { None };
    let mut tail = Tail {
        uid: found.uid()?,
        namespace: Namespace::new(found.record.metadata.namespace.unwrap_or_default())?,
        attempt: query.attempt,
        follow,
        state,
        run: None,
        offset: query.from.unwrap_or_default(),
        cleaner: Cleaner::default(),
        _place: place,
    };
    tail.run = tail.next_run().await?;
    if tail.run.is_none() && !follow {
        let what = query.attempt.map_or_else(String::new, |a| format!(" for attempt {a}"));
        return Err(Problem::new(StatusCode::NOT_FOUND, "no-log", format!("agent {id:?} has no log{what}"))
            .hint("the log begins when the agent starts; follow it to wait for that. Of several controllers the one that began the agent has it (status.installation)"));
    }
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD_MAX);
    let closing = tail.state.closing.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = closing.cancelled() => {}
            // The reader is gone: so is the reason to go on.
            () = sender.closed() => {}
            () = tail.copy(&sender) => {}
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// A reader of one agent's logs.
struct Tail {
    state: ServerState,
    uid: Uid,
    namespace: Namespace,
    attempt: Option<u32>,
    follow: bool,
    run: Option<RunId>,
    offset: u64,
    cleaner: Cleaner,
    _place: Option<OwnedSemaphorePermit>,
}

impl Tail {
    /// The run to read next: the wanted or last one at first, later the first one after the present one.
    async fn next_run(&self) -> Result<Option<RunId>, Problem> {
        let (list, uid) = (self.state.log_list.clone(), self.uid.clone());
        let runs = tokio::task::spawn_blocking(move || list(&uid)).await.map_err(|_| Problem::internal())?;
        let runs = runs.map_err(|e| unreadable(&e))?;
        let mut runs: Vec<RunId> = runs.into_iter().filter(|r| r.role == Role::Agent).collect();
        runs.sort_by_key(|r| r.attempt);
        Ok(match (&self.run, self.attempt) {
            (None, Some(wanted)) => runs.into_iter().find(|r| r.attempt.0 == wanted),
            (None, None) => runs.pop(),
            (Some(present), _) => runs.into_iter().find(|r| r.attempt > present.attempt),
        })
    }

    async fn read(&self, run: RunId) -> Result<LogPiece, Problem> {
        let (read, offset) = (self.state.log_read.clone(), self.offset);
        let piece = tokio::task::spawn_blocking(move || read(&run, offset, PIECE_BYTES_MAX)).await.map_err(|_| Problem::internal())?;
        piece.map_err(|e| unreadable(&e))
    }

    async fn copy(mut self, sender: &mpsc::Sender<Bytes>) {
        if let Err(problem) = self.copy_all(sender).await {
            let _ = sender.send(Bytes::from(format!("\n[the log cannot be read on: {}]\n", problem.detail))).await;
        }
    }

    async fn copy_all(&mut self, sender: &mpsc::Sender<Bytes>) -> Result<(), Problem> {
        loop {
            // Asked before the look: what was written until the agent finished is still read.
            let is_finished = !self.follow || self.is_finished().await?;
            let has_ended = match self.run.clone() {
                Some(run) => self.copy_run(run, sender).await?,
                None => true,
            };
            if !self.follow || (has_ended && self.attempt.is_some() && self.run.is_some()) {
                return Ok(());
            }
            if has_ended && let Some(next) = self.next_run().await? {
                if self.run.is_some() {
                    let _ = sender.send(Bytes::from(format!("--- attempt {} ---\n", next.attempt))).await;
                    self.offset = 0;
                }
                self.cleaner = Cleaner::default();
                self.run = Some(next);
            } else if is_finished {
                return Ok(());
            } else {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        }
    }

    /// Copies what is there; returns whether the run has ended.
    async fn copy_run(&mut self, run: RunId, sender: &mpsc::Sender<Bytes>) -> Result<bool, Problem> {
        loop {
            let piece = self.read(run.clone()).await?;
            if piece.dropped > 0 {
                let _ = sender.send(Bytes::from(format!("[{} earlier bytes are kept no longer]\n", piece.dropped))).await;
            }
            let is_empty = piece.bytes.is_empty();
            let text = self.cleaner.clean(&piece.bytes);
            if !text.is_empty() && sender.send(Bytes::from(text)).await.is_err() {
                return Ok(true);
            }
            self.offset = piece.next;
            if is_empty {
                return Ok(piece.ended);
            }
        }
    }

    async fn is_finished(&self) -> Result<bool, Problem> {
        match find(&self.state, self.uid.as_str(), &self.namespace).await {
            Ok(found) => Ok(!found.is_live || AgentView::of(&found.record).is_finished()),
            Err(problem) if problem.status == 404 => Ok(true),
            Err(problem) => Err(problem),
        }
    }
}

fn unreadable(error: &std::io::Error) -> Problem {
    tracing::warn!(%error, "failed to read a log");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-unreadable", format!("the log cannot be read: {error}"))
}

/// Makes a terminal safe: control characters other than newline and tab go, whole escape sequences with them, and what would turn the
/// direction of text. Keeps what a piece cut in two (a character, a sequence) for the next one.
#[derive(Default)]
pub struct Cleaner {
    carry: Vec<u8>,
    escape: Escape,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// In a control sequence: ends with @ to ~.
    Control,
    /// In a string (title, link): ends with BEL or ESC \.
    Text,
}

impl Cleaner {
    /// The readable part of the next piece.
    pub fn clean(&mut self, bytes: &[u8]) -> String {
        self.carry.extend_from_slice(bytes);
        let keep = match std::str::from_utf8(&self.carry) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Ok(_) | Err(_) => {
                // Bytes in the middle that are no text become replacement characters; an unfinished end waits.
                let tail = self.carry.iter().rev().take(3).position(|b| b & 0xc0 == 0xc0).map_or(0, |i| i + 1);
                let cut = self.carry.len() - tail;
                let is_cut = std::str::from_utf8(&self.carry[cut..]).is_err_and(|e| e.error_len().is_none());
                if is_cut { cut } else { self.carry.len() }
            }
        };
        let rest = self.carry.split_off(keep);
        let whole = std::mem::replace(&mut self.carry, rest);
        String::from_utf8_lossy(&whole).chars().filter(|c| self.shows(*c)).collect()
    }

    fn shows(&mut self, c: char) -> bool {
        let (next, shows) = match (self.escape, c) {
            (_, '\x1b') => (Escape::Begun, false),
            (Escape::Begun, '[') => (Escape::Control, false),
            (Escape::Begun, ']' | 'P' | '_' | '^' | 'X') => (Escape::Text, false),
            (Escape::Begun, ' '..='/') => (Escape::Begun, false),
            (Escape::Begun, _) => (Escape::None, false),
            (Escape::Control, '@'..='~') => (Escape::None, false),
            (Escape::Control, ' '..='?') => (Escape::Control, false),
            (Escape::Text, '\x07') => (Escape::None, false),
            // A string that is never closed must not swallow the rest of the log.
            (Escape::Text, c) if c != '\n' => (Escape::Text, false),
            (_, '\n' | '\t') => (Escape::None, true),
            (_, c) => (Escape::None, !c.is_control() && !is_directional(c)),
        };
        self.escape = next;
        shows
    }
}

/// Characters that change the direction in which text is shown.
fn is_directional(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_go_and_text_stays() {
        let mut cleaner = Cleaner::default();
        assert_eq!(cleaner.clean(b"\x1b[31mred\x1b[0m\tand\r\n\x1b]0;title\x07plain\x08\x7f"), "red\tand\nplain");
        assert_eq!(cleaner.clean("a\u{202e}b".as_bytes()), "ab");
        assert_eq!(cleaner.clean(b"\x1b]never closed\nnext"), "\nnext");
    }

    #[test]
    fn what_a_piece_cuts_in_two_is_put_together() {
        let mut cleaner = Cleaner::default();
        let text = "ä\u{1f600}\x1b[1mb".as_bytes();
        let out: String = text.chunks(1).map(|piece| cleaner.clean(piece)).collect();
        assert_eq!(out, "ä\u{1f600}b");
        assert_eq!(cleaner.clean(b"x\xffy"), "x\u{fffd}y");
    }
}
