//! What a kill answers: for each agent, what was seen, with milliseconds. Never a guess.

use crate::api::names::Uid;
use serde::{Deserialize, Serialize};

/// What became of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was looked at, and nothing of it lives.
    DeadVerified,
    /// It was signalled, its grant and lease are revoked, but nobody could look whether it is gone.
    RevokedUnverified,
    /// It was looked at, and something still lives, or nothing could be done; the message says what.
    Failed,
}

impl Verdict {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeadVerified => "dead-verified",
            Self::RevokedUnverified => "revoked-unverified",
            Self::Failed => "failed",
        }
    }
}

/// When each step was done, in milliseconds from the request; absent: not done or not seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// The latch was on the disk: no restart and no restore brings it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latched: Option<u64>,
    /// SIGKILL was sent by the kernel's paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signalled: Option<u64>,
    /// The container engine has answered to its kill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<u64>,
    /// Nothing of it lives: seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<u64>,
}

/// What became of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Its uid.
    pub agent_id: Uid,
    /// `namespace/name`.
    pub agent: String,
    /// What was seen.
    pub verdict: Verdict,
    /// How many of its runs (the agent, its gates) were found.
    pub runs: usize,
    /// When.
    pub steps: Steps,
    /// In a sentence: by which path it was seen, or what is open.
    pub message: String,
}

/// Answer to a kill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipts {
    /// One per agent of which there was a run, by name.
    pub agents: Vec<Receipt>,
    /// What was found and could not be told apart: nothing is known of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
    /// Name of the halt that a kill-all engaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt: Option<String>,
    /// What else did not work, such as the latch or the audit log; a kill never waits for those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// From the request to this answer.
    pub millis: u64,
}

impl Receipts {
    /// Whether everything that was found was seen dead.
    #[must_use]
    pub fn all_dead(&self) -> bool {
        self.unknown.is_empty() && self.agents.iter().all(|receipt| receipt.verdict == Verdict::DeadVerified)
    }
}

/// Whom to kill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KillRequest {
    /// Names, `namespace/name` or uids; empty with `all`.
    #[serde(default)]
    pub agents: Vec<String>,
    /// Everything, and nothing new starts until the store has taken over the halt.
    #[serde(default)]
    pub all: bool,
    /// With `all`: name of the halt; absent: one is made up. The same name twice is one halt.
    #[serde(default)]
    pub halt: Option<String>,
    /// With `all`: only this namespace. Else: where plain names are.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// With `all`: the halt stays until somebody releases it.
    #[serde(default)]
    pub hold: bool,
    /// Whoever asks knows that the nodes of their pods are gone, so that nothing of them runs although nobody can look.
    #[serde(default)]
    pub node_is_gone: bool,
    /// Who asks, for the record.
    #[serde(default)]
    pub who: String,
}
