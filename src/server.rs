//! FRONT DOOR: HTTP on a loopback address. It reads and writes records through `Store`; only a kill, by the lane, touches a sandbox.
//!
//! Flow of a request: connection (capped, header time limited) -> Host and token checked (`auth`) -> time limit -> route -> answer, or
//! problem details (`error`). What the store does not know (diffs, logs, queue order, readiness) comes in as closures of `ServerState`.
//! Nothing is decided here about agents: a kill is the lane's work and then a deletion that the controller carries out, and the answer says
//! what was seen of both.

pub mod agents;
pub mod auth;
pub mod error;
pub mod events;
pub mod finish;
pub mod halts;
pub mod health;
pub mod logs;
pub mod queue;
pub mod request;
pub mod spawn;
pub mod view;
pub mod watch;

use crate::api::names::{Namespace, RunId, Uid};
use crate::audit::Audit;
use crate::kill::lane::Lane;
use crate::kill::latch::Latch;
use crate::store::{Record, Store};
use crate::telemetry::Metrics;
use auth::Door;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware;
use axum::routing::{delete, get, post};
use error::Problem;
use futures::future::BoxFuture;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch as watched};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Largest request body: an object may hold 64 KiB of instructions and a hundred work items of 4 KiB.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Longest path and query.
pub const URL_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of request line and headers together.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Longest time for the request line and headers to arrive.
pub const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest time from the headers to the head of the answer; a follow streams on after that.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Most connections at once; one more is told so and closed.
pub const CONNECTIONS_MAX: usize = 256;
/// Most follows and watches at once, so that they leave room for a kill.
pub const FOLLOWS_MAX: usize = 192;
/// How long open requests may go on after a shutdown began.
pub const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest time to tell a connection that there are too many.
const TURN_AWAY_TIME_MAX: Duration = Duration::from_secs(1);

/// A refusal of the courtesy check, in the words that `Admitted=False` has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Reason in one CamelCase word.
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
}

/// Looks whether an agent would be admitted, before its record exists.
pub type CourtesyCheck = Arc<dyn Fn(crate::api::validate::ValidAgent) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync>;
/// The change that an agent has made so far, as a patch; `None`: there is none to show. The error is a sentence.
pub type DiffSource = Arc<dyn Fn(Record) -> BoxFuture<'static, Result<Option<String>, String>> + Send + Sync>;
/// The waiting agents in the order in which they would start.
pub type QueueSource = Arc<dyn Fn() -> BoxFuture<'static, Vec<Uid>> + Send + Sync>;
/// The runs of one agent that have logs, oldest first. Blocking.
pub type LogListSource = Arc<dyn Fn(&Uid) -> std::io::Result<Vec<RunId>> + Send + Sync>;
/// A piece of one run's log from an offset, of at most so many bytes. Blocking.
pub type LogReadSource = Arc<dyn Fn(&RunId, u64, usize) -> std::io::Result<LogPiece> + Send + Sync>;

/// A piece of one run's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogPiece {
    /// Raw output.
    pub bytes: Vec<u8>,
    /// Where to go on.
    pub next: u64,
    /// Bytes before the piece that are kept no longer.
    pub dropped: u64,
    /// Nothing will be added any more.
    pub ended: bool,
}

/// What people should know about this server at this moment.
pub type Remarks = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Everything that the routes need.
#[derive(Clone)]
pub struct ServerState {
    /// The records.
    pub store: Arc<dyn Store>,
    /// Whom to let in.
    pub door: Arc<Door>,
    /// Namespace of requests that name none.
    pub default_namespace: Namespace,
    /// The change of an agent.
    pub diff: DiffSource,
    /// Looks beforehand whether an agent would be admitted.
    pub admission: CourtesyCheck,
    /// The order of the waiting agents.
    pub queue: QueueSource,
    /// The runs that have logs.
    pub log_list: LogListSource,
    /// One run's log.
    pub log_read: LogReadSource,
    /// Kills without asking anybody.
    pub lane: Arc<Lane>,
    /// What was killed or halted outside the store.
    pub latch: Arc<Latch>,
    /// What happened, and who asked for what.
    pub audit: Arc<Audit>,
    /// Metrics of all parts.
    pub metrics: Arc<Metrics>,
    /// True once the controller has seen all records and works on them.
    pub ready: watched::Receiver<bool>,
    /// What people should know although it does not keep the server from serving, one sentence each.
    pub remarks: Remarks,
    /// When the server started.
    pub started: Instant,
    /// Cancelled when the server shuts down: follows and waits end.
    pub closing: CancellationToken,
    /// Places for follows and watches.
    pub follows: Arc<Semaphore>,
}

/// All routes, with their checks and limits.
pub fn router(state: ServerState) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(health::metrics))
        .route("/agents", get(agents::list))
        .route("/agents/spawn", post(spawn::spawn))
        .route("/agents/kill-all", post(finish::kill_all))
        .route("/agents/{id}", get(agents::show).put(agents::apply).patch(agents::patch).delete(finish::delete))
        .route("/agents/{id}/kill", post(finish::kill))
        .route("/agents/{id}/logs", get(logs::logs))
        .route("/agents/{id}/diff", get(agents::diff))
        .route("/halts", get(halts::list).post(halts::create))
        .route("/halts/{name}", delete(halts::release))
        .route("/queue", get(queue::queue))
        .route("/events", get(events::events))
        .route_layer(middleware::from_fn_with_state(state.clone(), request::record))
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::require_token));
    Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .merge(guarded)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(request::limit_time))
        .layer(middleware::from_fn_with_state(state.clone(), auth::require_host))
        .layer(middleware::from_fn_with_state(state.clone(), request::observe))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(|panic: Box<dyn std::any::Any + Send>| {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
            tracing::error!(panic = text.unwrap_or_default(), "a request handler panicked");
            axum::response::IntoResponse::into_response(Problem::internal())
        }))
        .with_state(state)
}

async fn no_route(uri: axum::http::Uri) -> Problem {
    Problem::new(axum::http::StatusCode::NOT_FOUND, "no-such-route", format!("there is nothing at {}", uri.path()))
        .hint("GET /agents and POST /agents/spawn are good places to begin")
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Problem {
    Problem::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", format!("{} does not take {method}", uri.path()))
}

/// Serves until `shutdown` completes; then follows end, open requests get [`SHUTDOWN_TIME_MAX`], and the rest is cut.
pub async fn serve(state: ServerState, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let closing = state.closing.clone();
    let app = router(state);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            () = closing.cancelled() => break,
            // Ended connections are taken out as they end, or the set would grow for ever.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        let connection = serve_connection(stream, app.clone(), closing.clone());
                        connections.spawn(async move { connection.await; drop(place) });
                    }
                    Err(_) => drop(connections.spawn(turn_away(stream))),
                },
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    closing.cancel();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_TIME_MAX, all_ended).await.is_err() {
        tracing::warn!("cut requests that did not end in time");
    }
}

async fn serve_connection(stream: TcpStream, app: Router, closing: CancellationToken) {
    // Small answers and log lines should not wait for more.
    let _ = stream.set_nodelay(true);
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX).max_buf_size(HEADER_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::causes::one_line(&error), "a connection ended early");
    }
}

async fn turn_away(mut stream: TcpStream) {
    let body =
        r#"{"type":"urn:mosaic:problem:too-many-connections","status":503,"title":"Service Unavailable","detail":"too many connections"}"#;
    let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nConnection: close\r\nRetry-After: 1";
    let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = tokio::time::timeout(TURN_AWAY_TIME_MAX, stream.write_all(answer.as_bytes())).await;
}

impl ServerState {
    /// A place for one follow or watch.
    /// # Errors
    /// All places are taken.
    pub(crate) fn follow_place(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
        self.follows.clone().try_acquire_owned().map_err(|_| {
            Problem::new(
                axum::http::StatusCode::SERVICE_UNAVAILABLE,
                "too-many-follows",
                format!("{FOLLOWS_MAX} follows and watches are open already"),
            )
            .hint("end one of them, or ask without follow")
        })
    }

    /// The namespace of a request.
    pub(crate) fn namespace(&self, given: Option<String>) -> Result<Namespace, Problem> {
        given.map_or_else(|| Ok(self.default_namespace.clone()), |n| Namespace::new(n).map_err(Problem::from))
    }
}

/// State extractor used by handlers.
pub type Ctx = State<ServerState>;
