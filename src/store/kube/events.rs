//! What happens to agents, as Kubernetes events: `kubectl describe agent` tells the story.
//!
//! Flow: a stored change -> what is news in it (`news`, pure) -> a bounded queue -> one request each. Telling never holds a pass up: what does
//! not fit into the queue, or is not taken by the API server, is dropped and counted. Events are for people; nothing is decided by them.

use super::call::{Api, Method};
use super::wire::stamp;
use crate::api::agent::{AgentStatus, Phase, Verdict};
use crate::api::condition;
use crate::api::names::{GROUP, Uid, VERSION};
use crate::store::Key;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Most events that wait.
const QUEUE_MAX: usize = 1024;
/// Longest note, in bytes; the API server takes no more.
const NOTE_BYTES_MAX: usize = 1000;

/// One event.
struct News {
    key: Key,
    uid: Uid,
    is_warning: bool,
    reason: String,
    note: String,
}

/// Tells events. What is still queued when it is dropped is not told.
pub struct Teller {
    queue: mpsc::Sender<(Timestamp, News)>,
    dropped: Counter,
    telling: AbortHandle,
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.telling.abort();
    }
}

impl Teller {
    pub(super) fn start(api: Arc<Api>) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let dropped = Counter::default();
        let telling = tokio::spawn(run(api, queue, dropped.clone())).abort_handle();
        Self { queue: sender, dropped, telling }
    }

    /// Tells what is news in a stored change of an agent's status. Does not wait.
    pub fn tell(&self, key: &Key, uid: &Uid, before: &AgentStatus, after: &AgentStatus) {
        for news in news(key, uid, before, after) {
            if self.queue.try_send((Timestamp::now(), news)).is_err() {
                self.dropped.inc();
            }
        }
    }

    /// How many events could not be told, as it goes on.
    #[must_use]
    pub fn dropped(&self) -> Counter {
        self.dropped.clone()
    }
}

async fn run(api: Arc<Api>, mut queue: mpsc::Receiver<(Timestamp, News)>, dropped: Counter) {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let instance = format!("{host}-{}", std::process::id());
    while let Some((at, news)) = queue.recv().await {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", news.key.namespace);
        if let Err(error) = api.call::<Value>(Method::POST, &path, Some(&event(&news, at, &instance))).await {
            dropped.inc();
            tracing::debug!(error = crate::causes::one_line(&error), "an event was not taken");
        }
    }
}

fn event(news: &News, at: Timestamp, instance: &str) -> Value {
    let News { key, uid, is_warning, reason, note } = news;
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{}.{}", key.name, uuid::Uuid::now_v7().simple()), "namespace": key.namespace },
        "eventTime": stamp(at),
        "reportingController": format!("{GROUP}/mosaic"),
        "reportingInstance": instance,
        "action": "Reconcile",
        "reason": reason,
        "note": note,
        "type": if *is_warning { "Warning" } else { "Normal" },
        "regarding": {
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "Agent",
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid,
        },
    })
}

/// What is news in a stored change: verdicts of gates, rounds that were refused, failures that are not the agent's, conditions that became true, the phase.
fn news(key: &Key, uid: &Uid, before: &AgentStatus, after: &AgentStatus) -> Vec<News> {
    let mut all = Vec::new();
    let mut add = |is_warning, reason: &str, note: &str| {
        let note = shortened(note);
        all.push(News { key: key.clone(), uid: uid.clone(), is_warning, reason: reason.to_owned(), note });
    };
    for gate in after.gates.iter().filter(|gate| !before.gates.contains(gate)) {
        let (is_warning, reason) = match gate.verdict {
            Verdict::Pass => (false, "GatePassed"),
            Verdict::Fail => (true, "GateFailed"),
            Verdict::Error => (true, "GateError"),
            Verdict::Skipped => (false, "GateSkipped"),
        };
        // One line, or the table of `kubectl describe` falls apart.
        let evidence = gate.evidence.as_deref().map(|text| text.trim().replace('\n', " | ")).filter(|text| !text.is_empty());
        let evidence = evidence.map(|text| format!(": {text}")).unwrap_or_default();
        add(is_warning, reason, &format!("gate {} on {}{evidence}", gate.name, gate.sha));
    }
    for feedback in after.feedback.iter().filter(|feedback| !before.feedback.contains(feedback)) {
        add(true, "RoundRefused", &format!("attempt {}: {}", feedback.attempt, feedback.summary));
    }
    // A gate that could not judge was told above, and left no word here.
    let is_gates = after.gates.iter().any(|gate| gate.verdict == Verdict::Error && !before.gates.contains(gate));
    let failed = condition::get(&after.conditions, condition::PUSHED).filter(|pushed| pushed.status == "False");
    if let Some(failed) = failed.filter(|_| after.counts.infrastructure > before.counts.infrastructure && !is_gates) {
        let message = failed.message.trim().replace('\n', " | ");
        add(true, &failed.reason, &format!("attempt {}, not the agent's fault: {message}", after.attempt));
    }
    for now in after.conditions.iter().filter(|now| now.status == "True" && !condition::is_true(&before.conditions, &now.type_)) {
        // Said by the phase.
        if now.type_ != condition::KILLED {
            add(false, &now.type_, &now.message);
        }
    }
    if let Some(phase) = after.phase.filter(|phase| before.phase != Some(*phase)) {
        add(matches!(phase, Phase::Failed | Phase::Killed), &format!("{phase:?}"), &why(after));
    }
    all
}

fn why(status: &AgentStatus) -> String {
    let (reason, message) = (status.reason.as_deref().unwrap_or_default(), status.message.as_deref().unwrap_or_default());
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

fn shortened(note: &str) -> String {
    if note.len() <= NOTE_BYTES_MAX {
        return note.to_owned();
    }
    let end = (0..=NOTE_BYTES_MAX).rev().find(|at| note.is_char_boundary(*at)).unwrap_or_default();
    format!("{}…", &note[..end])
}
