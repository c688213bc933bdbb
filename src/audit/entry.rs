//! What one line says.

use crate::api::names::{Attempt, Epoch, Uid};
use crate::plan::action::{Action, Effect};
use crate::store::Key;
use serde::{Deserialize, Serialize};

/// Actor of what the controller does by itself.
pub const ACTOR_CONTROLLER: &str = "controller";
/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 2048;
/// Longest of the other texts, in bytes.
const WORD_BYTES_MAX: usize = 256;

/// What kind of entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// An effect is about to begin.
    Intent,
    /// What came of an intent.
    Outcome,
    /// Somebody asked for something.
    Request,
    /// An agent went from one state to another.
    Transition,
    /// Something that people may want to know.
    Event,
}

impl EntryKind {
    /// Whether followers of the event stream are told.
    #[must_use]
    pub fn is_event(self) -> bool {
        match self {
            Self::Transition | Self::Event => true,
            Self::Intent | Self::Outcome | Self::Request => false,
        }
    }
}

/// What came of an effect or a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not done.
    Failed,
    /// Nobody saw the end.
    Unknown,
}

/// One line as written. `prev` and `mac` chain it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Grows by one with every entry of a writer.
    pub seq: u64,
    /// When, RFC 3339 with microseconds.
    pub at: String,
    /// What kind.
    pub kind: EntryKind,
    /// Who: `controller`, or the user of a request.
    pub actor: String,
    /// Request that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Record that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// Identity of that record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// Attempt that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Epoch of the leader that decided it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Name of the effect or request, or the reason of a transition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The intent that this is the outcome of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<u64>,
    /// State before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// State after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Outcome>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// MAC of the entry before.
    pub prev: String,
    /// MAC of this line; filled when it is read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
}

/// An entry before it has its number, time and place in the chain. Made by the constructors, filled by `with_*`.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub(super) kind: EntryKind,
    pub(super) actor: String,
    pub(super) request_id: Option<String>,
    pub(super) key: Option<Key>,
    pub(super) uid: Option<Uid>,
    pub(super) attempt: Option<Attempt>,
    pub(super) epoch: Option<Epoch>,
    pub(super) action: Option<String>,
    pub(super) intent: Option<u64>,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    pub(super) result: Option<Outcome>,
    pub(super) message: Option<String>,
}

impl Draft {
    fn new(kind: EntryKind, actor: &str) -> Self {
        Self {
            kind,
            actor: word(actor),
            request_id: None,
            key: None,
            uid: None,
            attempt: None,
            epoch: None,
            action: None,
            intent: None,
            before: None,
            after: None,
            result: None,
            message: None,
        }
    }

    /// An effect is about to begin.
    #[must_use]
    pub fn intent(effect: &Effect) -> Self {
        Self {
            key: Some(effect.key.clone()),
            uid: Some(effect.uid.clone()),
            attempt: attempt_of(&effect.action),
            epoch: Some(effect.epoch),
            action: Some(effect.action.name().to_owned()),
            ..Self::new(EntryKind::Intent, ACTOR_CONTROLLER)
        }
    }

    /// What came of an effect; `intent` is the number that its intent got.
    #[must_use]
    pub fn outcome(intent: u64, effect: &Effect, result: Outcome, message: &str) -> Self {
        Self { kind: EntryKind::Outcome, intent: Some(intent), result: Some(result), ..Self::intent(effect) }.with_message(message)
    }

    /// Somebody asked for something, and what came of it.
    #[must_use]
    pub fn request(actor: &str, action: &str, result: Outcome) -> Self {
        Self { action: Some(word(action)), result: Some(result), ..Self::new(EntryKind::Request, actor) }
    }

    /// An agent went from one state to another, for that reason.
    #[must_use]
    pub fn transition(key: Key, uid: Uid, before: &str, after: &str, reason: &str) -> Self {
        Self {
            key: Some(key),
            uid: Some(uid),
            before: Some(word(before)),
            after: Some(word(after)),
            action: Some(word(reason)),
            ..Self::new(EntryKind::Transition, ACTOR_CONTROLLER)
        }
    }

    /// Something that people may want to know, by a CamelCase reason.
    #[must_use]
    pub fn event(reason: &str, message: &str) -> Self {
        Self { action: Some(word(reason)), ..Self::new(EntryKind::Event, ACTOR_CONTROLLER) }.with_message(message)
    }

    /// About which record.
    #[must_use]
    pub fn about(self, key: Key, uid: Option<Uid>) -> Self {
        Self { key: Some(key), uid, ..self }
    }

    /// In which attempt.
    #[must_use]
    pub fn with_attempt(self, attempt: Attempt) -> Self {
        Self { attempt: Some(attempt), ..self }
    }

    /// Asked for by which request.
    #[must_use]
    pub fn with_request_id(self, request_id: &str) -> Self {
        Self { request_id: Some(word(request_id)), ..self }
    }

    /// A sentence; a long one is cut.
    #[must_use]
    pub fn with_message(self, message: &str) -> Self {
        Self { message: (!message.is_empty()).then(|| cut(message, MESSAGE_BYTES_MAX)), ..self }
    }

    /// An intent of an earlier process that has no outcome.
    pub(super) fn lost(intent: &Entry) -> Self {
        Self {
            key: intent.key.clone(),
            uid: intent.uid.clone(),
            attempt: intent.attempt,
            epoch: intent.epoch,
            action: intent.action.clone(),
            intent: Some(intent.seq),
            result: Some(Outcome::Unknown),
            ..Self::new(EntryKind::Outcome, ACTOR_CONTROLLER)
        }
        .with_message("the process ended before it saw the outcome")
    }
}

fn word(text: &str) -> String {
    cut(text, WORD_BYTES_MAX)
}

fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max - '…'.len_utf8());
    format!("{}…", &text[..end])
}

fn attempt_of(action: &Action) -> Option<Attempt> {
    match action {
        Action::TakeSnapshot { attempt, .. }
        | Action::Integrate { attempt, .. }
        | Action::Push { attempt, .. }
        | Action::Rescue { attempt } => Some(*attempt),
        Action::EnsureSandbox { run, .. } | Action::StopSandbox { run } | Action::RemoveSandbox { run } => Some(run.attempt),
        Action::AddFinalizer
        | Action::Resolve
        | Action::RemoveWorkspace
        | Action::Archive
        | Action::RemoveFinalizer
        | Action::DeleteRecord => None,
    }
}
