//! What HTTP says of an agent: the record in the words of the API, and the whole object beside it. The client decodes the same structs.

use crate::api::agent::{AgentType, Phase};
use crate::api::condition;
use crate::kill::receipt::{Receipt, Verdict};
use crate::store::{Kind, Record};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The states in the words of HTTP, in the order of a life.
pub const STATES: [&str; 6] = ["pending", "spawning", "running", "completed", "failed", "killed"];

/// One agent, as `GET /agents` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// The uid: names one agent for ever.
    pub agent_id: String,
    /// Name within the namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The caller's id of the task.
    pub task_id: String,
    /// pending, spawning, running, completed, failed or killed.
    pub state: String,
    /// The same with a capital letter.
    pub phase: String,
    /// Why it is where it is, in one CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What went wrong, once it failed or was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Current attempt; 0 before the first.
    pub attempt: u64,
    /// True between a kill or delete and the end of the record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
    /// When the first attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it completed, failed or was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// worker, reviewer or tester.
    pub agent_type: AgentType,
    /// 1 to 10; 10 is the most urgent.
    pub priority: i64,
    /// The whole object as Kubernetes writes it.
    pub object: Value,
}

impl AgentView {
    /// The view of a record. Reads leniently: a record that does not decode is still shown.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let object = record.to_object();
        let (spec, status) = (&object["spec"], &object["status"]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let name = record.metadata.name.clone().unwrap_or_default();
        let phase = text(&status["phase"]).unwrap_or_else(|| format!("{:?}", Phase::Pending));
        let state = phase.to_lowercase();
        let message = text(&status["message"]);
        Self {
            agent_id: record.metadata.uid.clone().unwrap_or_default(),
            namespace: record.metadata.namespace.clone().unwrap_or_default(),
            task_id: text(&spec["taskId"]).unwrap_or_else(|| name.clone()),
            reason: text(&status["reason"]),
            error: if state == "failed" || state == "killed" { message.clone().or_else(|| text(&status["reason"])) } else { None },
            message,
            attempt: status["attempt"].as_u64().unwrap_or_default(),
            deleting: record.metadata.deletion_timestamp.is_some(),
            started_at: text(&status["startedAt"]),
            completed_at: text(&status["completedAt"]),
            agent_type: serde_json::from_value(spec["agentType"].clone()).unwrap_or_default(),
            priority: spec["priority"].as_i64().unwrap_or(5),
            name,
            phase,
            state,
            object,
        }
    }

    /// Whether the agent has come to its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "failed" | "killed")
    }

    /// Whether a condition of that type is true.
    #[must_use]
    pub fn has_condition(&self, type_: &str) -> bool {
        let conditions = self.object["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == type_ && c["status"] == "True"))
    }

    /// Why not everything of it was seen gone, if that is known.
    #[must_use]
    pub fn why_not_gone(&self) -> Option<&str> {
        self.said_of(condition::CLEANED_UP).filter(|_| !self.has_condition(condition::CLEANED_UP))
    }

    /// What a condition of that type says.
    #[must_use]
    pub fn said_of(&self, type_: &str) -> Option<&str> {
        let conditions = self.object["status"]["conditions"].as_array()?;
        conditions.iter().find(|c| c["type"] == type_)?["message"].as_str()
    }
}

/// One page of `GET /agents`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentList {
    /// The agents, by namespace and name.
    pub items: Vec<AgentView>,
    /// A watch from here sees every later change.
    pub resource_version: String,
    /// Pass it as `?continue=` to get the next page.
    #[serde(rename = "continue", default, skip_serializing_if = "Option::is_none")]
    pub continue_: Option<String>,
}

/// One line of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum WatchLine {
    /// The agent is new or changed.
    Applied {
        /// Its present state.
        agent: Box<AgentView>,
    },
    /// The record is gone.
    Deleted {
        /// Its last state.
        agent: Box<AgentView>,
    },
    /// Everything up to this resource version was told.
    Bookmark {
        /// Watch from here next time.
        #[serde(rename = "resourceVersion")]
        resource_version: String,
    },
    /// The watch ends; list again and watch from there.
    Ended {
        /// Why.
        why: String,
    },
}

/// One line of `GET /events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum EventLine {
    /// The first line: numbers are those of this stream.
    Stream {
        /// Its name; pass it with `since` to resume.
        stream: String,
    },
    /// Something happened.
    Event {
        /// Grows within the stream.
        seq: u64,
        /// When, RFC 3339.
        at: String,
        /// Namespace of the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Name of the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// The agent's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent_id: Option<String>,
        /// Attempt that it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// Phase before, of a transition.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<String>,
        /// Phase after, of a transition.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
        /// What happened, or why, in one CamelCase word.
        reason: String,
        /// In a sentence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Events before the next one are not in memory any more.
    Gap,
    /// The follower was too slow; the stream ends here.
    Lagged {
        /// So many events were not told.
        missed: u64,
    },
}

/// Answer to a kill or delete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// Which agent.
    pub agent_id: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// State after the wait.
    pub state: String,
    /// True when everything of it was seen gone; false means that this is not known yet.
    pub verified: bool,
    /// From the request to this answer.
    pub millis: u64,
    /// In a sentence.
    pub message: String,
    /// What the kill lane saw of it; absent: nothing of it was on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

impl Ending {
    /// The end of an agent of which only the receipt is known; `why`: why its record is not told, empty where that is not known.
    #[must_use]
    pub fn of_receipt(receipt: Receipt, millis: u64, why: &str) -> Self {
        let (namespace, name) = receipt.agent.split_once('/').unwrap_or(("", &receipt.agent));
        let untold = if why.is_empty() { String::new() } else { format!("; its record is not told yet ({why}), and will be") };
        Self {
            agent_id: receipt.agent_id.to_string(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            state: "killed".to_owned(),
            verified: false,
            millis,
            message: format!("{}{untold}", receipt.message),
            receipt: Some(receipt),
        }
    }

    /// Whether nothing of the agent lives: seen by the lane, or by the controller that let go of everything of it.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let seen = self.receipt.as_ref().map(|receipt| receipt.verdict == Verdict::DeadVerified);
        seen.unwrap_or(self.verified)
    }
}

/// Answer to kill-all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillAll {
    /// The halt that was engaged.
    pub halt: String,
    /// Whether it stays until it is released.
    pub hold: bool,
    /// One line per agent that was not finished.
    pub agents: Vec<Ending>,
    /// What was found of runs and could not be told apart: nothing is known of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
    /// What else did not work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// From the request to this answer.
    pub millis: u64,
}

/// Answer of `GET /queue`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueView {
    /// Agents that wait.
    pub pending: usize,
    /// Agents that are being started or run.
    pub active: usize,
    /// Agents that delivered.
    pub completed: usize,
    /// Agents that failed or were killed.
    pub failed: usize,
    /// Who starts next, first comes first.
    pub positions: Vec<QueuePosition>,
}

/// One waiting agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueuePosition {
    /// 1 is next.
    pub position: usize,
    /// Which agent.
    pub agent_id: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its priority.
    pub priority: i64,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to spawn and apply: the agent, and what the call did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// created, configured or unchanged.
    pub result: String,
    /// The agent.
    #[serde(flatten)]
    pub agent: AgentView,
}

/// One halt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaltView {
    /// Name.
    pub name: String,
    /// whenDone or manual.
    pub release: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The whole object as Kubernetes writes it.
    pub object: Value,
}

impl HaltView {
    /// The view of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        debug_assert_eq!(record.kind, Kind::Halt);
        let object = record.to_object();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            name: record.metadata.name.clone().unwrap_or_default(),
            release: text(&object["spec"]["release"]).unwrap_or_else(|| "whenDone".to_owned()),
            reason: text(&object["spec"]["reason"]),
            object,
        }
    }
}
