//! The HTTP client of a Mosaic server: every route as a method, every refusal as one sentence.
//!
//! Plain HTTP, because servers listen on loopback only; a server elsewhere is reached through a tunnel. Reads are tried again while
//! nobody answers, for a bounded time; writes are sent once, except that those the server makes safe to repeat may be sent again by the caller.

use crate::api::names::Secret;
use crate::server::auth::read_token;
use crate::server::error::Problem;
use crate::server::view::{AgentList, AgentView, Ending, EventLine, HaltView, KillAll, QueueView, WatchLine, Written};
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// File of the state folder that holds the address of the server that runs on it.
pub const SERVER_FILE: &str = "server";
/// Longest time to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// Longest time of one request that is no follow: a little more than the server takes itself.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(35);
/// A read that failed after so long had a server that keeps silent: it is not tried again.
const TRY_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest time of a question after the server's health.
const HEALTH_TIME_MAX: Duration = Duration::from_secs(4);
/// How often a read is tried when nobody answers.
const READ_TRIES_MAX: u32 = 3;
/// Pause between two tries.
const TRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest line of a watch: one agent.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Server, token or state folder are not usable as given.
    #[error("{0}")]
    Setup(String),
    /// Nobody answered, or the answer broke off.
    #[error("no answer from {server} ({why})")]
    Unreachable {
        /// Which server.
        server: String,
        /// Why.
        why: String,
    },
    /// The server refused.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// The answer is not one of a Mosaic server of this version.
    #[error("{server} answered what no Mosaic server of this version would: {why}")]
    Strange {
        /// Which server.
        server: String,
        /// What was wrong.
        why: String,
    },
}

impl ClientError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(problem) => problem.hint.clone(),
            Self::Unreachable { .. } => {
                Some("is a server running? `mosaic up` starts one; --server or MOSAIC_SERVER name another".to_owned())
            }
            Self::Setup(_) | Self::Strange { .. } => None,
        }
    }

    /// Whether the server said that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem.status == 404)
    }
}

/// Result of a request.
pub type ClientResult<T> = Result<T, ClientError>;

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: Secret,
}

impl Client {
    /// A client of the server at that address.
    /// # Errors
    /// The address is not `http://host:port`.
    pub fn new(server: &str, token: Secret) -> ClientResult<Self> {
        let server = server.trim().trim_end_matches('/').to_owned();
        if server.starts_with("https://") {
            let why = "https is not spoken yet: reach a server elsewhere through a tunnel, such as `ssh -L 3001:127.0.0.1:3001 host`";
            return Err(ClientError::Setup(why.to_owned()));
        }
        let is_url = reqwest::Url::parse(&server).is_ok_and(|u| u.scheme() == "http" && u.has_host());
        if !is_url {
            return Err(ClientError::Setup(format!("{server:?} is no server address such as http://127.0.0.1:3001")));
        }
        // No proxy: the server is on this machine, and its token must not pass through another program.
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIME_MAX).no_proxy().user_agent("mosaic");
        let http = builder.build().map_err(|e| ClientError::Setup(format!("failed to make an HTTP client: {e}")))?;
        Ok(Self { http, server, token })
    }

    /// A client of the server that runs on a state folder, or of the named one.
    /// # Errors
    /// Neither a server nor a state folder with its files is there.
    pub fn locate(server: Option<&str>, token: Option<Secret>, state: &Path) -> ClientResult<Self> {
        let server = match server {
            Some(server) => server.to_owned(),
            None => read_server(state)?,
        };
        let token = match token {
            Some(token) => token,
            None => read_token(state).map_err(|why| ClientError::Setup(format!("{why}; MOSAIC_TOKEN or --token-file name a token")))?,
        };
        Self::new(&server, token)
    }

    /// Address of the server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// `POST /agents/spawn`.
    /// # Errors
    /// Refused or unreachable, as with every method here.
    pub async fn spawn(&self, request: &Value) -> ClientResult<Written> {
        self.json(self.request(Method::POST, &["agents", "spawn"], &[]).json(request)).await
    }

    /// `PUT /agents/{name}`.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn apply(&self, name: &str, namespace: Option<&str>, object: &Value) -> ClientResult<Written> {
        self.json(self.request(Method::PUT, &["agents", name], &[("namespace", namespace)]).json(object)).await
    }

    /// `PATCH /agents/{id}`: priority and suspend.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn patch(&self, id: &str, namespace: Option<&str>, change: &Value) -> ClientResult<AgentView> {
        self.json(self.request(Method::PATCH, &["agents", id], &[("namespace", namespace)]).json(change)).await
    }

    /// All agents, page by page.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn list(&self, namespace: Option<&str>, phase: Option<&str>) -> ClientResult<Vec<AgentView>> {
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let query = [("namespace", namespace), ("phase", phase), ("continue", token.as_deref())];
            let page: AgentList = self.read(|| self.request(Method::GET, &["agents"], &query)).await?;
            all.extend(page.items);
            token = page.continue_;
            if token.is_none() {
                return Ok(all);
            }
        }
    }

    /// One agent by name or id, also when only the history knows it.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn get(&self, id: &str, namespace: Option<&str>) -> ClientResult<AgentView> {
        self.read(|| self.request(Method::GET, &["agents", id], &[("namespace", namespace)])).await
    }

    /// The present state and then every change, until the server ends it.
    /// # Errors
    /// As [`Client::spawn`]; each line may be an error too.
    pub async fn watch(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> ClientResult<impl Stream<Item = ClientResult<WatchLine>> + Unpin + use<>> {
        let query = [("watch", Some("true")), ("namespace", namespace), ("name", name)];
        let response = self.follow(self.request(Method::GET, &["agents"], &query)).await?;
        Ok(Box::pin(json_lines(response, self.server.clone())))
    }

    /// What happened, of one agent or of all; with `follow` what happens from now on too.
    /// # Errors
    /// As [`Client::spawn`]; each line may be an error too.
    pub async fn events(
        &self,
        id: Option<&str>,
        namespace: Option<&str>,
        follow: bool,
    ) -> ClientResult<impl Stream<Item = ClientResult<EventLine>> + Unpin + use<>> {
        let query = [("agent", id), ("namespace", namespace.filter(|_| id.is_some())), ("follow", follow.then_some("true"))];
        let response = self.follow(self.request(Method::GET, &["events"], &query)).await?;
        Ok(Box::pin(json_lines(response, self.server.clone())))
    }

    /// The log as it comes; with `follow` until the agent has finished.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn logs(
        &self,
        id: &str,
        namespace: Option<&str>,
        follow: bool,
        attempt: Option<u32>,
    ) -> ClientResult<impl Stream<Item = ClientResult<Vec<u8>>> + Unpin + use<>> {
        let attempt = attempt.map(|a| a.to_string());
        let query = [("namespace", namespace), ("follow", follow.then_some("true")), ("attempt", attempt.as_deref())];
        let response = self.follow(self.request(Method::GET, &["agents", id, "logs"], &query)).await?;
        let server = self.server.clone();
        Ok(Box::pin(response.bytes_stream().map(move |piece| piece.map(|b| b.to_vec()).map_err(|e| unreachable(&server, &e)))))
    }

    /// The change so far, as a patch.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn diff(&self, id: &str, namespace: Option<&str>) -> ClientResult<String> {
        let request = self.request(Method::GET, &["agents", id, "diff"], &[("namespace", namespace)]);
        let response = self.follow(request.timeout(REQUEST_TIME_MAX)).await?;
        response.text().await.map_err(|e| unreachable(&self.server, &e))
    }

    /// Kills one agent and waits for the server's proof.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn kill(&self, id: &str, namespace: Option<&str>) -> ClientResult<Ending> {
        self.json(self.request(Method::POST, &["agents", id, "kill"], &[("namespace", namespace)])).await
    }

    /// Kills all agents, of one namespace or of every one. The same `halt` twice is the same kill-all; `None`: a new one.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn kill_all(&self, namespace: Option<&str>, reason: Option<&str>, hold: bool, halt: Option<&str>) -> ClientResult<KillAll> {
        let body = json!({ "namespace": namespace, "reason": reason, "hold": hold, "halt": halt });
        self.json(self.request(Method::POST, &["agents", "kill-all"], &[]).json(&body)).await
    }

    /// Ends the agent if it runs, and removes its record.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn delete(&self, id: &str, namespace: Option<&str>) -> ClientResult<Ending> {
        self.json(self.request(Method::DELETE, &["agents", id], &[("namespace", namespace)])).await
    }

    /// The halts, and why everything counts as halted beside them, if it does.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn halts(&self) -> ClientResult<(Vec<HaltView>, Option<String>)> {
        #[derive(serde::Deserialize)]
        struct Halts {
            items: Vec<HaltView>,
            unreadable: Option<String>,
        }
        let halts: Halts = self.read(|| self.request(Method::GET, &["halts"], &[])).await?;
        Ok((halts.items, halts.unreadable))
    }

    /// Releases a halt.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn release(&self, name: &str) -> ClientResult<HaltView> {
        self.json(self.request(Method::DELETE, &["halts", name], &[])).await
    }

    /// Counts and order of the queue.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn queue(&self) -> ClientResult<QueueView> {
        self.read(|| self.request(Method::GET, &["queue"], &[])).await
    }

    /// `GET /health`.
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn health(&self) -> ClientResult<Value> {
        let asked = tokio::time::timeout(HEALTH_TIME_MAX, self.read(|| self.request(Method::GET, &["health"], &[]))).await;
        let why = format!("it was silent for {} s", HEALTH_TIME_MAX.as_secs());
        asked.unwrap_or_else(|_| Err(ClientError::Unreachable { server: self.server.clone(), why }))
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, Option<&str>)]) -> RequestBuilder {
        let mut url = reqwest::Url::parse(&self.server).expect("checked when the client was made");
        // Segment by segment: a name with a slash or question mark stays one segment.
        url.path_segments_mut().expect("http addresses have paths").clear().extend(path);
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.http.request(method, url).bearer_auth(self.token.expose())
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> ClientResult<T> {
        let response = self.follow(request.timeout(REQUEST_TIME_MAX)).await?;
        let bytes = response.bytes().await.map_err(|e| unreachable(&self.server, &e))?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Strange { server: self.server.clone(), why: e.to_string() })
    }

    /// A read: tried again while nobody answers.
    async fn read<T: DeserializeOwned>(&self, request: impl Fn() -> RequestBuilder) -> ClientResult<T> {
        let (mut tries, started) = (1, Instant::now());
        loop {
            match self.json(request()).await {
                Err(ClientError::Unreachable { .. }) if tries < READ_TRIES_MAX && started.elapsed() < TRY_TIME_MAX => tries += 1,
                result => return result,
            }
            tokio::time::sleep(TRY_PAUSE).await;
        }
    }

    /// Sends, and takes the head of the answer.
    async fn follow(&self, request: RequestBuilder) -> ClientResult<Response> {
        let response = request.send().await.map_err(|e| unreachable(&self.server, &e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.map_err(|e| unreachable(&self.server, &e))?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Refused(problem),
            Err(_) => ClientError::Strange { server: self.server.clone(), why: format!("status {status} without problem details") },
        })
    }
}

fn unreachable(server: &str, error: &reqwest::Error) -> ClientError {
    // The innermost cause is the one that people can act on ("Connection refused").
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    ClientError::Unreachable { server: server.to_owned(), why: cause.to_string() }
}

/// The body line by line, each one JSON value.
fn json_lines<T: DeserializeOwned>(response: Response, server: String) -> impl Stream<Item = ClientResult<T>> {
    let reader = tokio_util::io::StreamReader::new(response.bytes_stream().map_err(std::io::Error::other));
    let codec = tokio_util::codec::LinesCodec::new_with_max_length(LINE_BYTES_MAX);
    tokio_util::codec::FramedRead::new(reader, codec).map(move |line| {
        let line = line.map_err(|e| ClientError::Unreachable { server: server.clone(), why: e.to_string() })?;
        serde_json::from_str(&line).map_err(|e| ClientError::Strange { server: server.clone(), why: e.to_string() })
    })
}

fn read_server(state: &Path) -> ClientResult<String> {
    let path = state.join(SERVER_FILE);
    std::fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|e| {
        let why = format!("no server has run on the state folder {} ({e})", state.display());
        ClientError::Setup(format!("{why}; start one with `mosaic up`, or name one with --server or MOSAIC_SERVER"))
    })
}
