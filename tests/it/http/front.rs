//! A server over the embedded store on a free port, and ways to talk to it.

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use mosaic::api::agent::{AgentStatus, Phase};
use mosaic::api::condition;
use mosaic::api::names::{Namespace, RunId, Secret, Uid};
use mosaic::audit::{Audit, AuditOptions};
use mosaic::kill::Killer;
use mosaic::kill::lane::Lane;
use mosaic::kill::latch::Latch;
use mosaic::server::auth::{Door, ensure_token};
use mosaic::server::{LogPiece, Refusal, ServerState, serve};
use mosaic::store::embedded::{EmbeddedOptions, EmbeddedStore};
use mosaic::store::{Key, Kind, Record, Store, WatchEvent};
use mosaic::telemetry::Metrics;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in these tests.
pub const WAIT: Duration = Duration::from_secs(20);

pub type Logs = Arc<Mutex<BTreeMap<RunId, (Vec<u8>, bool)>>>;

/// A server on a free port over a store of its own.
pub struct Front {
    pub address: SocketAddr,
    pub token: Secret,
    pub store: Arc<dyn Store>,
    pub audit: Arc<Audit>,
    pub logs: Logs,
    pub ready: watch::Sender<bool>,
    pub closing: CancellationToken,
    pub task: JoinHandle<()>,
    pub http: reqwest::Client,
    pub state: TempDir,
}

impl Front {
    pub async fn start() -> Self {
        Self::start_with(Semaphore::new(8)).await
    }

    pub async fn start_with(follows: Semaphore) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = ensure_token(folder.path()).unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("mosaic.redb"), EmbeddedOptions::default()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ready, is_ready) = watch::channel(true);
        let audit = Arc::new(Audit::open(&folder.path().join("audit"), "test", AuditOptions::default()).unwrap());
        let (logs, closing) = (Logs::default(), CancellationToken::new());
        let (listed, read) = (logs.clone(), logs.clone());
        let latch = Arc::new(Latch::open(folder.path()).unwrap());
        let killer = Killer { state: folder.path().to_owned(), latch: Ok(latch.clone()), controller: None, audit: None };
        let lane = Lane::start(killer).unwrap();
        let state = ServerState {
            store: store.clone(),
            door: Arc::new(Door::new(&token, address.port())),
            default_namespace: Namespace::new("default").unwrap(),
            diff: Arc::new(|record: Record| {
                let has_diff = record.spec["taskId"] == "with-diff";
                Box::pin(async move { Ok(has_diff.then(|| "+a line\n".to_owned())) })
            }),
            admission: Arc::new(|agent| {
                let is_wrong = agent.repository.ends_with("/missing");
                let refusal = Refusal { reason: "RepositoryNotFound".into(), message: "there is no repository at /missing".into() };
                Box::pin(async move { if is_wrong { Err(refusal) } else { Ok(()) } })
            }),
            queue: {
                let store = store.clone();
                Arc::new(move || {
                    let store = store.clone();
                    Box::pin(async move {
                        let (mut records, _) = store.list(Kind::Agent).await.unwrap();
                        records.sort_by_key(|r| -r.spec["priority"].as_i64().unwrap_or(5));
                        records.iter().map(|r| Uid::new(r.metadata.uid.clone().unwrap()).unwrap()).collect()
                    })
                })
            },
            log_list: Arc::new(move |uid| Ok(listed.lock().unwrap().keys().filter(|run| run.uid == *uid).cloned().collect())),
            log_read: Arc::new(move |run, from, bytes_max| {
                let logs = read.lock().unwrap();
                let (bytes, ended) = &logs[run];
                let piece: Vec<u8> = bytes.iter().skip(usize::try_from(from).unwrap()).take(bytes_max).copied().collect();
                Ok(LogPiece { next: from + piece.len() as u64, bytes: piece, dropped: 0, ended: *ended })
            }),
            lane: Arc::new(lane),
            latch,
            audit: audit.clone(),
            metrics: Arc::new(Metrics::default()),
            ready: is_ready,
            remarks: Arc::new(Vec::new),
            started: Instant::now(),
            closing: closing.clone(),
            follows: Arc::new(follows),
        };
        let task = tokio::spawn(serve(state, listener, closing.clone().cancelled_owned()));
        Self { address, token, store, audit, logs, ready, closing, task, http: reqwest::Client::new(), state: folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, self.url(path)).bearer_auth(self.token.expose());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        }
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Does what the controller does for a deleted agent: latches `Killed`, keeps the last state, lets go.
    pub fn tear_down_deleted(&self) -> JoinHandle<()> {
        let store = self.store.clone();
        tokio::spawn(async move {
            let (records, from) = store.list(Kind::Agent).await.unwrap();
            let mut changes = store.watch(Kind::Agent, from).await.unwrap();
            for record in records {
                tear_down(&*store, record).await;
            }
            while let Some(Ok(event)) = changes.next().await {
                if let WatchEvent::Applied(record) = event {
                    tear_down(&*store, record).await;
                }
            }
        })
    }

    pub async fn set_status(&self, name: &str, status: &AgentStatus) {
        let key = Key::agent("default", name);
        let mut record = self.store.get(&key).await.unwrap().unwrap();
        record.status = serde_json::to_value(status).unwrap();
        self.store.replace_status(record).await.unwrap();
    }

    pub async fn spawn_named(&self, task: &str) -> Value {
        let (status, agent) = self.post("/agents/spawn", request(task)).await;
        assert_eq!(status, StatusCode::CREATED, "{agent}");
        agent
    }
}

pub async fn tear_down(store: &dyn Store, record: Record) {
    let Some(mut record) = store.get(&record.key()).await.unwrap().filter(|r| r.metadata.deletion_timestamp.is_some()) else { return };
    if record.status["phase"] != "Killed" {
        let mut status = finished(Phase::Killed);
        condition::set(&mut status.conditions, condition::KILLED, true, "Killed", "killed", Timestamp::now());
        record.status = serde_json::to_value(status).unwrap();
        record = store.replace_status(record).await.unwrap();
    }
    store.archive(record.clone()).await.unwrap();
    record.metadata.finalizers = None;
    let _ = store.replace(record).await;
}

pub fn finished(phase: Phase) -> AgentStatus {
    let now = k8s_openapi::jiff::Timestamp::now();
    let mut conditions = Vec::new();
    if phase == Phase::Completed {
        condition::set(&mut conditions, condition::PUSHED, true, condition::reason::DELIVERED, "pushed", now);
    }
    AgentStatus {
        conditions,
        completed_at: Some(MicroTime(now)),
        phase: Some(phase),
        reason: Some(format!("{phase:?}")),
        message: Some("over".into()),
        attempt: 1,
        ..AgentStatus::default()
    }
}

pub fn request(task: &str) -> Value {
    json!({
        "taskId": task,
        "agentType": "worker",
        "context": { "repository": "/srv/repository", "branch": "main", "workItems": ["US-1"], "skills": ["rust"] },
        "runtime": { "command": { "args": ["true"] } },
        "options": { "sandbox": false, "timeout": 600, "maxRetries": 2 },
    })
}

/// Lines of a watch.
pub struct NdJson {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl NdJson {
    pub fn of(response: reqwest::Response) -> Self {
        Self { response, buffer: Vec::new() }
    }

    pub async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let piece = tokio::time::timeout(WAIT, self.response.chunk()).await.expect("a line in time").unwrap();
            self.buffer.extend_from_slice(&piece.expect("the watch goes on"));
        }
    }

    pub async fn next_of(&mut self, type_: &str) -> Value {
        loop {
            let line = self.next().await;
            if line["type"] == type_ {
                return line;
            }
        }
    }
}
