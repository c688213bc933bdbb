//! A connection that is made when it is needed, given up at the first doubt, and never repeats a command.
//!
//! fred's own reconnecting is switched off: a command that was under way when a connection broke must not be sent again behind anybody's
//! back, and none may wait in a queue for a server that is away. So a connection that breaks, or that owes an answer for too long (half-open
//! TCP, a stopped server), is thrown away with whatever is under way on it, and the next call makes a new one. Each failure says whether the
//! server refused (nothing happened) or fell silent (the outcome is unknown).

use super::address::ValkeyUrl;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::Builder;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for an answer, or for a connection that is being made: longer than a slow server (2 s), shorter than anyone's patience.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest time in which a connection is made. It takes five answers, so that a slow server (2 s each) still gets one.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// Pause after a connection could not be made; calls within it are told the same reason.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinkError {
    /// Nothing was sent.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The server refused: nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Something was sent, and no answer came: the outcome is unknown.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Something was sent, and the connection broke: the outcome is unknown.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It is written, but that it is on the server's disk was not confirmed.
    #[error("the server did not confirm that it is on its disk: {0}")]
    NotDurable(String),
}

impl LinkError {
    /// Whether something may have been changed all the same.
    pub(super) fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Refused(_) => false,
            Self::Silent(_) | Self::Broken(_) | Self::NotDurable(_) => true,
        }
    }
}

/// A connection that works as far as is known. Dropped with the last call on it, which closes it.
#[derive(Debug)]
struct Live {
    client: Client,
    /// Raised when the connection ended.
    closed: CancellationToken,
    task: AbortHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Attempt = Shared<BoxFuture<'static, (Instant, Result<Arc<Live>, LinkError>)>>;

#[derive(Debug, Default)]
struct Slot {
    live: Option<Arc<Live>>,
    attempt: Option<Attempt>,
}

/// One connection to a server, made when it is needed.
#[derive(Debug)]
pub(super) struct Link {
    url: ValkeyUrl,
    slot: Mutex<Slot>,
    /// Whether a connection that broke between two calls is told to the second.
    tells_breaks: bool,
}

impl Link {
    pub(super) fn new(url: ValkeyUrl) -> Self {
        Self { url, slot: Mutex::default(), tells_breaks: false }
    }

    /// The same for who must know of every break, also of one while nothing was under way.
    pub(super) fn that_tells_breaks(url: ValkeyUrl) -> Self {
        Self { tells_breaks: true, ..Self::new(url) }
    }

    /// Sends one command, or a few at once, and waits for the answer as long as is given.
    pub(super) async fn call<T, F>(&self, wait: Duration, send: impl FnOnce(Client) -> F) -> Result<T, LinkError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let live = self.live().await?;
        let answered = tokio::select! {
            biased;
            answer = tokio::time::timeout(wait, send(live.client.clone())) => answer.map_err(|_| LinkError::Silent(wait)),
            () = live.closed.cancelled() => Err(LinkError::Broken("closed by the server".to_owned())),
        };
        let result = answered.and_then(|answer| answer.map_err(|error| sort_out(&error)));
        if matches!(result, Err(LinkError::Silent(_) | LinkError::Broken(_))) {
            self.discard(&live);
        }
        result
    }

    /// A connection that works as far as is known; makes one where there is none.
    async fn live(&self) -> Result<Arc<Live>, LinkError> {
        let attempt = {
            let mut slot = self.slot();
            if let Some(live) = slot.live.as_ref().filter(|live| !live.closed.is_cancelled()) {
                return Ok(live.clone());
            }
            if slot.live.take().is_some() && self.tells_breaks {
                return Err(LinkError::Broken("closed by the server".to_owned()));
            }
            let is_recent = |attempt: &&Attempt| attempt.peek().is_none_or(|(at, result)| result.is_err() && at.elapsed() < RETRY_PAUSE);
            let attempt = slot.attempt.as_ref().filter(is_recent).cloned().unwrap_or_else(|| start(&self.url));
            slot.attempt = Some(attempt.clone());
            attempt
        };
        let made = tokio::time::timeout(ANSWER_WAIT_MAX, attempt).await;
        let (_, live) = made.map_err(|_| LinkError::Unreachable("the server takes long to answer the first words".to_owned()))?;
        let live = live?;
        self.slot().live.get_or_insert(live.clone());
        Ok(live)
    }

    /// Nobody uses this connection any more; who waits on it is told that it broke.
    fn discard(&self, live: &Arc<Live>) {
        live.closed.cancel();
        let mut slot = self.slot();
        slot.live.take_if(|current| Arc::ptr_eq(current, live));
        slot.attempt = None;
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts making a connection; it goes on although nobody waits, at most [`CONNECT_TIME_MAX`].
fn start(url: &ValkeyUrl) -> Attempt {
    let url = url.clone();
    let made = tokio::spawn(async move {
        let made = tokio::time::timeout(CONNECT_TIME_MAX, connect(&url)).await;
        let made = made.unwrap_or_else(|_| Err(LinkError::Unreachable(format!("no answer within {} s", CONNECT_TIME_MAX.as_secs()))));
        (Instant::now(), made)
    });
    let broken_off = |_| (Instant::now(), Err(LinkError::Unreachable("the attempt was broken off".to_owned())));
    made.map(move |joined| joined.unwrap_or_else(broken_off)).boxed().shared()
}

async fn connect(url: &ValkeyUrl) -> Result<Arc<Live>, LinkError> {
    let unreachable = |error: Error| {
        LinkError::Unreachable(match sort_out(&error) {
            LinkError::Refused(why) | LinkError::Broken(why) => why,
            other => other.to_string(),
        })
    };
    let config = url.config().map_err(unreachable)?;
    let client = Builder::from_config(config)
        .with_connection_config(|connection| {
            connection.connection_timeout = ANSWER_WAIT_MAX;
            connection.internal_command_timeout = CONNECT_TIME_MAX;
            connection.max_command_attempts = 1;
            connection.max_redirections = 5;
            connection.tcp.nodelay = Some(true);
        })
        .build()
        .map_err(unreachable)?;
    let task = client.init().await.map_err(unreachable)?;
    let (closed, abort) = (CancellationToken::new(), task.abort_handle());
    let ended = closed.clone();
    tokio::spawn(async move {
        drop(task.await);
        ended.cancel();
    });
    Ok(Arc::new(Live { client, closed, task: abort }))
}

/// Tells the server's own word, which begins with a code in capitals, from everything that is the connection's.
pub(super) fn sort_out(error: &Error) -> LinkError {
    let details = error.details();
    let code = details.split(' ').next().unwrap_or_default();
    let is_code = code.len() > 2 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if is_code { LinkError::Refused(explain(code, details)) } else { LinkError::Broken(lost(error)) }
}

/// What is wrong and what would help, for the refusals that people meet.
fn explain(code: &str, details: &str) -> String {
    let help = match code {
        "READONLY" => "it is a replica that takes no writes: name the primary in --valkey-url",
        "LOADING" => "it is still loading its data: it answers once it has read them",
        "OOM" => "its memory is full: raise maxmemory or remove data that is not mosaic's",
        "MISCONF" => "it cannot write to its own disk: look at its log",
        "WRONGPASS" | "NOAUTH" => "user name or password are wrong: correct --valkey-url",
        "NOPERM" => "the user lacks a right: the store's page in docs/ lists the rights that are needed",
        "BUSY" => "a script of somebody holds it up",
        "MOVED" | "ASK" | "CLUSTERDOWN" | "CROSSSLOT" => "it is part of a cluster: write valkey-cluster:// in --valkey-url",
        _ => return format!("refused: {details}"),
    };
    format!("refused: {help} ({details})")
}

fn lost(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Canceled => "closed by the server".to_owned(),
        ErrorKind::Timeout => "no answer in time".to_owned(),
        _ => error.details().to_owned(),
    }
}
