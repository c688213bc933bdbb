//! Typed names: a string is checked once, where it enters, and never again.
//!
//! Every name that later becomes a path, a ref, an argument or a label is one of these types. They keep out what a shell, git or
//! a file system would read as something else (a leading `-`, `..`, NUL, control and bidi characters). Copies share their text: the same
//! uid stands in many tables.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// API group of all our kinds.
pub const GROUP: &str = "mosaicstack.dev";
/// API version of all our kinds.
pub const VERSION: &str = "v1alpha1";
/// Finalizer on every `Agent` and `Halt`: the record stays until what it owns is gone.
pub const FINALIZER: &str = "mosaicstack.dev/cleanup";
/// Annotation: who asked for the agent's end, and how (`kill`, `delete`, `kill-all`).
pub const ANNOTATION_ENDED_BY: &str = "mosaicstack.dev/ended-by";
/// Annotation: hash of the spawn request, so that the same task id with another body is refused.
pub const ANNOTATION_REQUEST_HASH: &str = "mosaicstack.dev/request-hash";
/// Annotation: an operator asked to drop unpushed work instead of keeping it under `refs/rescue`.
pub const ANNOTATION_DISCARD: &str = "mosaicstack.dev/discard";
/// A person's word that the refused commit of this id may change what decides its verdict; it holds for exactly those contents.
pub const ANNOTATION_APPROVE_TAMPER: &str = "mosaicstack.dev/approve-tamper";
/// Longest name of an agent, a namespace or a gate, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {rule}")]
pub struct NameError {
    /// Which kind of name.
    pub what: &'static str,
    /// The refused value, shortened.
    pub value: String,
    /// What it must look like.
    pub rule: &'static str,
}

fn refuse(what: &'static str, value: &str, rule: &'static str) -> NameError {
    NameError { what, value: value.chars().take(80).collect(), rule }
}

fn is_label(value: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = value.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_uid(value: &str) -> bool {
    (8..=64).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !value.starts_with('-')
}

fn is_commit(value: &str) -> bool {
    value.len() == 40 && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `git check-ref-format --branch`, and a little stricter: printable ASCII without quotes, at most 200 bytes.
fn is_branch(value: &str) -> bool {
    let bad = |b: u8| b <= b' ' || b >= 0x7f || b"~^:?*[\\'\"`$;&|<>(){}!#".contains(&b);
    !value.is_empty()
        && value.len() <= 200
        && !value.starts_with(['-', '/', '.'])
        && !value.ends_with(['/', '.'])
        && !value.bytes().any(bad)
        && !value.contains("..")
        && !value.contains("//")
        && !value.contains("@{")
        && value != "@"
        && value != "HEAD"
        && value.split('/').all(|part| !part.starts_with('.') && !part.ends_with(".lock"))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);
        impl $name {
            /// Checks and takes the value.
            /// # Errors
            /// `NameError` says what the value must look like.
            pub fn new(value: impl Into<String>) -> Result<Self, NameError> {
                let value = value.into();
                if $check(&value) { Ok(Self(value.into())) } else { Err(refuse($what, &value, $rule)) }
            }
            /// The checked text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                Self::new(value)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

name_type!(
    /// Name of an `Agent` within its namespace.
    AgentName, "agent name", is_label, "use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
);
name_type!(
    /// A namespace: agents, credentials and repositories of different namespaces never meet.
    Namespace, "namespace", is_label, "use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
);
name_type!(
    /// Name of a gate.
    GateName, "gate name", is_label, "use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
);
name_type!(
    /// Identity of one record for ever: a deleted and re-created agent has another one.
    Uid, "uid", is_uid, "use 8 to 64 letters, digits and '-'"
);
name_type!(
    /// A git commit id: 40 lower-case hexadecimal digits.
    CommitId, "commit id", is_commit, "use 40 lower-case hexadecimal digits"
);
name_type!(
    /// A branch name without `refs/heads/`.
    Branch, "branch", is_branch, "use a name that `git check-ref-format --branch` accepts, of plain ASCII, at most 200 bytes"
);

impl Branch {
    /// The full ref, `refs/heads/<name>`.
    #[must_use]
    pub fn full_ref(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl Uid {
    /// The first 8 characters, for names people read.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

/// Which try of one agent: only ever grows, starts at 1; 0 means that none was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The attempt after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Fencing epoch of a leader: an effect of a lower epoch than the highest seen is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// A secret: never shown by `Debug`, never serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }
    /// The value itself; call it only where it is used.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Who a sandbox runs for: the agent itself or one gate on one commit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Role {
    /// The agent's own run.
    Agent,
    /// One gate on one commit.
    Gate {
        /// Which gate.
        name: GateName,
        /// Commit that it judges.
        sha: CommitId,
        /// How often its infrastructure failed before.
        tries: u32,
    },
}

/// Identity of one run of one sandbox. Generation is no part of it: a changed priority makes nothing older.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunId {
    /// The agent's uid.
    pub uid: Uid,
    /// The agent's attempt.
    pub attempt: Attempt,
    /// What runs.
    pub role: Role,
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Agent => write!(f, "{}/{}/agent", self.uid.short(), self.attempt),
            Role::Gate { name, sha, tries } => {
                write!(f, "{}/{}/gate/{name}/{}/{tries}", self.uid.short(), self.attempt, &sha.as_str()[..8])
            }
        }
    }
}

/// Name of the agent that a task id gives: `<slug>-<hash of namespace and task id>`, so the store itself keeps it unique.
#[must_use]
pub fn agent_name_of_task(namespace: &Namespace, task_id: &str) -> AgentName {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{namespace}\0{task_id}").as_bytes());
    let hash: String = digest.iter().take(5).map(|b| format!("{b:02x}")).collect();
    let slug = slug(task_id, 40);
    let name = if slug.is_empty() { format!("task-{hash}") } else { format!("{slug}-{hash}") };
    AgentName::new(name).expect("a slug and a hexadecimal hash make a label")
}

/// Lower-case letters, digits and single dashes of a text, at most `bytes_max`; may be empty.
#[must_use]
pub fn slug(text: &str, bytes_max: usize) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(bytes_max);
    out.trim_matches('-').to_owned()
}
