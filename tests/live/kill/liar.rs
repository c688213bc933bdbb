//! An engine that is slow with what it was asked to do and tells what is not so: a proxy in front of the real one.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// What it does; all of it can be changed while it runs.
#[derive(Default)]
pub struct Manners {
    /// Starts are taken and not done yet, and nobody is answered.
    pub holds_starts: AtomicBool,
    /// And who asked for one is hung up on.
    pub hangs_up: AtomicBool,
    /// Creates likewise.
    pub holds_creates: AtomicBool,
    /// Asked for any one container, it says that there is none.
    pub denies: AtomicBool,
    /// How many starts it has taken.
    pub starts: AtomicUsize,
    /// How many creates.
    pub creates: AtomicUsize,
}

pub struct Liar {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    pub manners: Arc<Manners>,
}

impl Liar {
    /// Starts one in front of the engine at a socket; it ends with the runtime.
    pub fn start(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("liar.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let manners: Arc<Manners> = Arc::default();
        let (engine, served) = (engine.to_owned(), manners.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (engine, manners) = (engine.clone(), served.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(engine.clone(), manners.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { _folder: folder, socket, manners }
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

async fn answer(engine: String, manners: Arc<Manners>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, String> {
    let path = request.uri().path().to_owned();
    let is_post = request.method() == Method::POST;
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    if manners.denies.load(Ordering::SeqCst) && head.method == Method::GET && path.contains("/containers/") && path.ends_with("/json") {
        let mut gone = Response::new(Full::new(Bytes::from_static(b"{\"message\":\"No such container\"}")));
        *gone.status_mut() = StatusCode::NOT_FOUND;
        return Ok(gone);
    }
    let hangs_up = is_post && path.ends_with("/start") && manners.hangs_up.load(Ordering::SeqCst);
    // What was taken is done some time, also when nobody waits for the answer any more.
    let held = tokio::spawn(async move {
        if is_post && path.ends_with("/start") {
            manners.starts.fetch_add(1, Ordering::SeqCst);
            wait_while(&manners.holds_starts).await;
        }
        if is_post && path.ends_with("/containers/create") {
            manners.creates.fetch_add(1, Ordering::SeqCst);
            wait_while(&manners.holds_creates).await;
        }
        hand_on(&engine, Request::from_parts(head, Full::new(body))).await
    });
    if hangs_up {
        return Err("hung up".to_owned());
    }
    held.await.map_err(|e| e.to_string())?
}

async fn wait_while(held: &AtomicBool) {
    while held.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn hand_on(engine: &str, request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, String> {
    let stream = UnixStream::connect(engine).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
    let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = head.status;
    if let Some(kind) = head.headers.get(hyper::header::CONTENT_TYPE) {
        answer.headers_mut().insert(hyper::header::CONTENT_TYPE, kind.clone());
    }
    Ok(answer)
}
