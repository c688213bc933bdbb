//! Problem details (RFC 9457): the one shape of every refusal, also of those that axum would word itself.
//!
//! `type` is `urn:mosaic:problem:<code>`: programs compare the code, people read `detail` and `hint`. The client decodes the same struct.

use crate::api::names::NameError;
use crate::store::StoreError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// What every problem type begins with.
pub const TYPE_PREFIX: &str = "urn:mosaic:problem:";

/// One refusal. Boxed, because every handler's result carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problem(Box<Details>);

/// What a refusal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// `urn:mosaic:problem:<code>`.
    #[serde(rename = "type")]
    pub type_: String,
    /// HTTP status.
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What is wrong, in a sentence.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Reason in one CamelCase word, when it is one that conditions have too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Every single mistake, when there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// The agent that is in the way, when one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
}

impl Problem {
    /// A problem of that code.
    #[must_use]
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Details {
            type_: format!("{TYPE_PREFIX}{code}"),
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Problem").to_owned(),
            detail: detail.into(),
            hint: None,
            reason: None,
            errors: Vec::new(),
            agent_id: None,
        }))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the reason in one CamelCase word.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.0.reason = Some(reason.into());
        self
    }

    /// Adds every single mistake.
    #[must_use]
    pub fn errors(mut self, errors: Vec<String>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Adds the agent that is in the way.
    #[must_use]
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.0.agent_id = Some(id.into());
        self
    }

    /// 404 for an agent.
    #[must_use]
    pub fn no_agent(id: &str, namespace: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "agent-not-found",
            format!("there is no agent {id:?} in namespace {namespace:?}, neither live nor in the history"),
        )
        .hint("list the live ones with `mosaic get` or GET /agents; names belong to a namespace (?namespace=), ids do not")
    }

    /// 422 with every mistake of the request.
    #[must_use]
    pub fn invalid(mistakes: Vec<String>) -> Self {
        let detail = mistakes.join("; ");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", detail).errors(mistakes)
    }

    /// 500 that tells nothing of the inside.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this is a fault of the server").hint("the server's log has the details")
    }
}

impl std::ops::Deref for Problem {
    type Target = Details;
    fn deref(&self) -> &Details {
        &self.0
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::NotFound(key) => {
                Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {:?} {:?}", key.kind, key.name))
            }
            StoreError::AlreadyExists(key) => {
                Self::new(StatusCode::CONFLICT, "already-exists", format!("{:?} {:?} exists already", key.kind, key.name))
            }
            StoreError::Conflict(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", "the record changes faster than this request could").hint("send it again")
            }
            StoreError::Invalid(text) => Self::invalid(vec![text]),
            StoreError::TooOld(_) => Self::new(StatusCode::GONE, "too-old", detail).hint("list again and watch from there"),
            StoreError::Unusable(_) | StoreError::Unavailable { .. } => {
                let detail = crate::causes::one_line(&error);
                tracing::error!(error = detail, "the store failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail)
                    .hint("nothing was changed or the outcome is unknown: look before sending it again")
            }
        }
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        Self::invalid(vec![error.to_string()])
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is plain data");
        let mut response = (status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mosaic\""));
        }
        response
    }
}
