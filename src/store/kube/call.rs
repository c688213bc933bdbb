//! One request to the API server: sent once, within a time limit, and what came of it in the store's words.
//!
//! A request that was not begun (429) is sent again as the server asks, within the same limit. Nothing else is: its outcome may be unknown,
//! and whoever asked reads and decides again.

use crate::store::{Key, StoreError, StoreResult};
pub(crate) use hyper::Method;
use hyper::Request;
use hyper::header::HeaderValue;
use kube::client::ClientBuilder;
use kube::core::Status;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Longest time of one request with everything that belongs to it.
pub(crate) const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest time until a connection stands.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// How long a server that is too busy is left alone where it does not say how long.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// A client for the cluster that the environment names: `KUBECONFIG`, `~/.kube/config`, else the cluster that this program runs in.
/// # Errors
/// `Unusable`: there is none, or its settings cannot be used.
pub async fn client() -> StoreResult<Client> {
    let unusable = |why: String| StoreError::Unusable(format!("{why}. Name a cluster with KUBECONFIG, or run in one"));
    let mut config = Config::infer().await.map_err(|error| unusable(crate::causes::one_line(&error)))?;
    config.connect_timeout = Some(CONNECT_TIME_MAX);
    // What was sent may have been done: only whoever sent it knows whether it may be sent again.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).map_err(|error| unusable(crate::causes::one_line(&error)))?;
    Ok(builder.build())
}

/// The API server of one cluster, and our namespace there.
pub(crate) struct Api {
    client: Client,
    pub(crate) namespace: String,
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The server said no, and why.
    #[error("the API server answered {}: {}", .0.code, .0.message)]
    Refused(Box<Status>),
    /// No answer in time; whether something was written is unknown.
    #[error("the API server did not answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// There was no connection, or it broke off.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer of another form.
    #[error("the API server answered something unexpected")]
    Odd(#[source] serde_json::Error),
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            kube::Error::SerdeError(error) => Self::Odd(error),
            // These two repeat the cause in their own words.
            kube::Error::Service(source) => Self::Unreachable(source),
            kube::Error::HyperError(source) => Self::Unreachable(Box::new(source)),
            other => Self::Unreachable(Box::new(other)),
        }
    }
}

impl CallError {
    /// What it means for a record.
    pub(crate) fn into_store(self, verb: &str, key: &Key) -> StoreError {
        if let Self::Refused(status) = &self {
            match (status.code, status.reason.as_str()) {
                (404, _) if super::is_absent(status) => return StoreError::NotFound(key.clone()),
                (409, "AlreadyExists") => return StoreError::AlreadyExists(key.clone()),
                (409, _) => return StoreError::Conflict(key.clone()),
                (400 | 413 | 422, _) => return StoreError::Invalid(status.message.clone()),
                _ => {}
            }
        }
        self.into_trouble(&format!("{verb} {:?} {}", key.kind, key.name))
    }

    /// What it means for anything else.
    pub(crate) fn into_trouble(self, what: &str) -> StoreError {
        match &self {
            Self::Refused(status) if status.code == 404 && !super::is_absent(status) => {
                let help = "the cluster has no such definition; make it with `mosaic crd | kubectl apply -f -`";
                StoreError::Unusable(format!("failed to {what}: {help}"))
            }
            Self::Refused(status) if is_terminating(status) => StoreError::Invalid(status.message.clone()),
            Self::Refused(status) if matches!(status.code, 401 | 403) => {
                let help = "`mosaic crd --rbac` prints the rights that are needed";
                StoreError::Unavailable { what: format!("failed to {what} ({help})"), source: Some(Box::new(self)) }
            }
            _ => StoreError::Unavailable { what: format!("failed to {what}"), source: Some(Box::new(self)) },
        }
    }

    /// Whether a watch or a list must begin anew: what it goes on from is not kept any more.
    pub(crate) fn is_too_old(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 410 || status.reason == "Expired")
    }

    /// Whether the object is not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(status) if super::is_absent(status))
    }

    /// Whether somebody else was faster: the object exists already, or has changed.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409)
    }
}

/// A namespace that is being deleted takes nothing new: that is no question of rights.
fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

impl Api {
    pub(crate) fn new(client: Client) -> Self {
        let namespace = client.default_namespace().to_owned();
        Self { client, namespace }
    }

    /// Asks, with the usual patience.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> Result<T, CallError> {
        self.send(CALL_TIME_MAX, || request(&method, path, body)).await
    }

    /// Asks, and waits no longer than this.
    pub(crate) async fn call_within<T: DeserializeOwned>(
        &self,
        patience: Duration,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, CallError> {
        self.send(patience, || request(&method, path, body)).await
    }

    /// Reads, in a form that the server shall answer in.
    pub(crate) async fn read_as<T: DeserializeOwned>(&self, form: &'static str, path: &str) -> Result<T, CallError> {
        let asked = || {
            let mut asked = request(&Method::GET, path, None);
            asked.headers_mut().insert("accept", HeaderValue::from_static(form));
            asked
        };
        self.send(CALL_TIME_MAX, asked).await
    }

    async fn send<T: DeserializeOwned>(&self, patience: Duration, request: impl Fn() -> Request<Vec<u8>>) -> Result<T, CallError> {
        let until = Instant::now() + patience;
        loop {
            let sent = self.client.request_text(request());
            let error = match tokio::time::timeout_at(until, sent).await {
                Err(_) => return Err(CallError::Silent(patience)),
                Ok(Ok(text)) => return serde_json::from_str(&text).map_err(CallError::Odd),
                Ok(Err(error)) => CallError::from(error),
            };
            let pause = match &error {
                CallError::Refused(status) if status.code == 429 => pause_asked(status),
                _ => return Err(error),
            };
            if Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The client, for what is no single answer.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

/// How long the server asks to be left alone, and up to a half more, so that not all come back at once.
fn pause_asked(status: &Status) -> Duration {
    let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let pause = if asked == 0 { BUSY_PAUSE } else { Duration::from_secs(u64::from(asked)) };
    pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

/// A request; a PATCH is a merge patch.
pub(crate) fn request(method: &Method, path: &str, body: Option<&Value>) -> Request<Vec<u8>> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let builder = Request::builder().method(method).uri(path).header("accept", "application/json").header("content-type", kind);
    let body = body.map(|body| serde_json::to_vec(body).expect("JSON is plain data")).unwrap_or_default();
    builder.body(body).expect("paths are made of checked names")
}
