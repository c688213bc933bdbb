//! The lane of a running controller: a thread and a runtime of their own that serve the admin socket. No pool, queue or lock of the rest is
//! used, so that it answers while everything else is stuck.

use super::Killer;
use super::admin::{PATH_KILL, PATH_PING, SOCKET_ADMIN};
use super::receipt::{KillRequest, Receipts};
use crate::sandbox::link::bind_in;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Largest request.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Connections at once. Only the owner of the state folder can connect at all.
const CONNECTIONS_MAX: usize = 64;
/// How long a request may take to arrive.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A running lane.
pub struct Lane {
    killer: Arc<Killer>,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Lane {
    /// Binds the admin socket, anew if there was one, and serves it.
    /// # Errors
    /// The socket cannot be bound or no thread made: a controller without a lane must not start.
    pub fn start(killer: Killer) -> io::Result<Self> {
        let listener = bind_in(&killer.state, SOCKET_ADMIN, 0o600)?;
        let killer = Arc::new(killer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (quit, quitting) = oneshot::channel::<()>();
        let serving = killer.clone();
        let thread = std::thread::Builder::new().name("mosaic-kill".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(serving, listener) => {}
                    _ = quitting => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { killer, quit: Some(quit), thread: Some(thread) })
    }

    /// Kills, on a thread of its own; the answer comes within `KILL_TIME_MAX` and a little.
    /// # Errors
    /// No thread could be made.
    pub fn kill(&self, request: KillRequest) -> io::Result<oneshot::Receiver<Receipts>> {
        kill(self.killer.clone(), request)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(self.killer.state.join(SOCKET_ADMIN));
    }
}

fn kill(killer: Arc<Killer>, request: KillRequest) -> io::Result<oneshot::Receiver<Receipts>> {
    let (told, answer) = oneshot::channel();
    std::thread::Builder::new().name("mosaic-killer".to_owned()).spawn(move || {
        // Who asked may be gone; the kill is done all the same.
        let _ = told.send(killer.kill(&request));
    })?;
    Ok(answer)
}

async fn accept(killer: Arc<Killer>, listener: UnixListener) {
    let Ok(listener) = tokio::net::UnixListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let killer = killer.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(killer.clone(), request));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIME_MAX).keep_alive(false);
            // A broken connection is the client's matter.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(killer: Arc<Killer>, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if (method == Method::GET) && path == PATH_PING {
        return Ok(text(StatusCode::OK, "here"));
    }
    if method != Method::POST || path != PATH_KILL {
        return Ok(text(StatusCode::NOT_FOUND, "there is GET /v1/ping and POST /v1/kill"));
    }
    let body = tokio::time::timeout(REQUEST_TIME_MAX, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = body else { return Ok(text(StatusCode::BAD_REQUEST, "the request did not arrive whole")) };
    let request: KillRequest = match serde_json::from_slice(&body.to_bytes()) {
        Ok(request) => request,
        Err(e) => return Ok(text(StatusCode::BAD_REQUEST, &format!("the request cannot be read: {e}"))),
    };
    let receipts = match kill(killer, request) {
        Ok(answer) => answer.await,
        Err(e) => return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, &format!("no thread could be made: {e}"))),
    };
    Ok(match receipts {
        Ok(receipts) => Response::new(Full::new(serde_json::to_vec(&receipts).expect("receipts are plain data").into())),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the kill broke; what it did is not known"),
    })
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response
}
