//! What the Kubernetes keeper sends, byte for byte, and what it makes of each answer: on a small API server that says what a test tells it to.

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mosaic::api::names::{ANNOTATION_ENDED_BY, FINALIZER, Uid};
use mosaic::store::kube::{KubeOptions, KubeStore, rbac_yaml, rights};
use mosaic::store::{Key, Kind, Record, Store, StoreError};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ONE: &str = "/apis/mosaicstack.dev/v1alpha1/namespaces/default/agents/one";

/// One request as it came.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    method: String,
    path: String,
    kind: String,
    body: Value,
}

#[derive(Clone, Default)]
struct Script {
    seen: Arc<Mutex<Vec<Seen>>>,
    answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
}

/// A store whose API server gives these answers in turn.
async fn store_with(answers: Vec<(u16, Value)>) -> (KubeStore, Script) {
    let script = Script { answers: Arc::new(Mutex::new(answers.into())), ..Script::default() };
    let routes = axum::Router::new().fallback(answer).with_state(script.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = kube::Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    config.default_retry = false;
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (KubeStore::new(kube::Client::try_from(config).unwrap(), KubeOptions::default()), script)
}

async fn answer(State(script): State<Script>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    script.seen.lock().unwrap().push(Seen {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        kind: head.headers["content-type"].to_str().unwrap().to_owned(),
        body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() },
    });
    let (code, answer) = script.answers.lock().unwrap().pop_front().expect("an answer for each request");
    let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
    (StatusCode::from_u16(code).unwrap(), text).into_response()
}

impl Script {
    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn seen(method: &str, path: &str, body: Value) -> Seen {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    Seen { method: method.to_owned(), path: path.to_owned(), kind: kind.to_owned(), body }
}

/// An agent as the API server sends it.
fn object() -> Value {
    json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {
            "name": "one",
            "namespace": "default",
            "uid": "11111111-2222",
            "resourceVersion": "41",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "team": "a" },
            "managedFields": [{ "manager": "kubectl", "operation": "Update" }],
        },
        "spec": {
            "context": { "repository": "file:///srv/git/sample.git" },
            "runtime": { "command": { "args": ["true"] } },
        },
    })
}

fn record() -> Record {
    let object = object();
    let mut metadata = object["metadata"].clone();
    metadata.as_object_mut().unwrap().remove("managedFields");
    Record { kind: Kind::Agent, metadata: serde_json::from_value(metadata).unwrap(), spec: object["spec"].clone(), status: Value::Null }
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let details = json!({ "name": "one", "group": "mosaicstack.dev", "kind": "agents" });
    let status = json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, "details": details });
    (code, status)
}

#[tokio::test]
async fn a_status_is_written_alone_and_only_on_the_version_that_was_read() {
    let (store, script) = store_with(vec![(200, object())]).await;
    let mut given = record();
    given.status = json!({ "phase": "Running", "attempt": 1, "unknown": true });
    assert_eq!(store.replace_status(given).await.unwrap(), record(), "who wrote which field is left out");
    let body = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Agent",
        "metadata": { "name": "one", "namespace": "default", "uid": "11111111-2222", "resourceVersion": "41" },
        "status": { "phase": "Running", "attempt": 1 },
    });
    assert_eq!(script.seen(), [seen("PUT", &format!("{ONE}/status?fieldManager=mosaic"), body)]);
}

#[tokio::test]
async fn the_finalizer_is_put_on_by_one_request_that_keeps_what_others_wrote() {
    let (store, script) = store_with(vec![(200, object())]).await;
    let mut given = record();
    given.metadata.finalizers = Some(vec!["example.org/theirs".to_owned(), FINALIZER.to_owned()]);
    store.replace(given).await.unwrap();
    let body = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {
            "name": "one",
            "namespace": "default",
            "uid": "11111111-2222",
            "resourceVersion": "41",
            "labels": { "team": "a" },
            "finalizers": ["example.org/theirs", "mosaicstack.dev/cleanup"],
        },
        "spec": object()["spec"],
    });
    assert_eq!(script.seen(), [seen("PUT", &format!("{ONE}?fieldManager=mosaic"), body)]);
}

#[tokio::test]
async fn a_deletion_says_who_asked_and_means_the_very_record() {
    let mut deleting = object();
    deleting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
    let (store, script) = store_with(vec![(200, object()), (200, deleting)]).await;
    let uid = Uid::new("11111111-2222").unwrap();
    let told = store.delete(&Key::agent("default", "one"), Some(&uid), &[(ANNOTATION_ENDED_BY, "kill".to_owned())]).await.unwrap();
    assert!(told.metadata.deletion_timestamp.is_some());
    let patch = json!({ "metadata": { "uid": "11111111-2222", "annotations": { "mosaicstack.dev/ended-by": "kill" } } });
    let options = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": { "uid": "11111111-2222" },
    });
    let expected = [seen("PATCH", &format!("{ONE}?fieldManager=mosaic"), patch), seen("DELETE", ONE, options)];
    assert_eq!(script.seen(), expected);
}

#[tokio::test]
async fn an_event_names_the_agent_and_what_happened() {
    let (store, script) = store_with(vec![(201, json!({})), (201, json!({}))]).await;
    let before = serde_json::from_value(json!({ "phase": "Spawning" })).unwrap();
    let gate =
        json!({ "name": "tests", "verdict": "fail", "sha": "abc", "baseSha": "def", "definition": "x", "evidence": "FAIL\n2 failed\n" });
    let after = serde_json::from_value(json!({ "phase": "Running", "reason": "AgentRunning", "gates": [gate] })).unwrap();
    let teller = store.teller();
    teller.tell(&Key::agent("default", "one"), &Uid::new("11111111-2222").unwrap(), &before, &after);
    let started = Instant::now();
    while script.seen().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut events = script.seen();
    for event in &mut events {
        assert_eq!(event.path, "/apis/events.k8s.io/v1/namespaces/default/events");
        let metadata = event.body.as_object_mut().unwrap().remove("metadata").unwrap();
        assert!(metadata["name"].as_str().unwrap().starts_with("one.") && metadata["namespace"] == "default", "{metadata}");
        for varies in ["eventTime", "reportingInstance"] {
            assert!(event.body.as_object_mut().unwrap().remove(varies).unwrap().is_string());
        }
    }
    let event = |type_: &str, reason: &str, note: &str| {
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "reportingController": "mosaicstack.dev/mosaic",
            "action": "Reconcile",
            "reason": reason,
            "note": note,
            "type": type_,
            "regarding": {
                "apiVersion": "mosaicstack.dev/v1alpha1", "kind": "Agent", "namespace": "default", "name": "one", "uid": "11111111-2222",
            },
        })
    };
    assert_eq!(events[0].body, event("Warning", "GateFailed", "gate tests on abc: FAIL | 2 failed"));
    assert_eq!(events[1].body, event("Normal", "Running", "AgentRunning"));
}

#[tokio::test]
async fn events_that_are_not_taken_are_dropped_and_counted_and_hold_nobody_up() {
    let (store, script) = store_with(vec![failure(403, "Forbidden", "no"), (500, json!("broken"))]).await;
    let teller = store.teller();
    let phase = |name: &str| serde_json::from_value(json!({ "phase": name })).unwrap();
    for _ in 0..2 {
        teller.tell(&Key::agent("default", "one"), &Uid::new("11111111-2222").unwrap(), &phase("Running"), &phase("Failed"));
    }
    let started = Instant::now();
    while teller.dropped().get() < 2 {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(script.seen().len(), 2, "each is sent once");
}

/// What the store makes of one answer to a write.
async fn outcome(answer: (u16, Value)) -> (StoreError, usize) {
    let (store, script) = store_with(vec![answer]).await;
    let error = store.replace_status(record()).await.unwrap_err();
    (error, script.seen().len())
}

#[tokio::test]
async fn each_answer_has_its_meaning_and_nothing_is_sent_twice() {
    let (error, sent) = outcome(failure(409, "Conflict", "the object has been modified")).await;
    assert!(matches!(error, StoreError::Conflict(_)) && sent == 1, "{error}");
    let (error, _) = outcome(failure(404, "NotFound", "agents \"one\" not found")).await;
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    let (error, _) = outcome(failure(422, "Invalid", "status.attempt: Invalid value")).await;
    assert!(matches!(&error, StoreError::Invalid(text) if text.contains("status.attempt")), "{error}");
    let (error, _) = outcome((404, json!("404 page not found"))).await;
    assert!(matches!(&error, StoreError::Unusable(text) if text.contains("mosaic crd | kubectl apply -f -")), "{error}");
    for (code, reason) in [(401, "Unauthorized"), (403, "Forbidden")] {
        let (error, _) = outcome(failure(code, reason, "not you")).await;
        let text = mosaic::causes::one_line(&error);
        assert!(matches!(error, StoreError::Unavailable { .. }) && text.contains("--rbac") && text.contains("not you"), "{text}");
    }
    for code in [500, 503, 504] {
        let (error, sent) = outcome((code, json!("something broke"))).await;
        let text = mosaic::causes::one_line(&error);
        assert!(matches!(error, StoreError::Unavailable { .. }) && text.contains("something broke") && sent == 1, "{text}");
    }
    let (error, _) = outcome((200, json!("<html>"))).await;
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_busy_server_is_left_alone_as_long_as_it_asks_and_asked_again() {
    let (code, mut busy) = failure(429, "TooManyRequests", "too many requests");
    busy["details"]["retryAfterSeconds"] = json!(2);
    let (store, script) = store_with(vec![(code, busy), (200, object())]).await;
    let started = Instant::now();
    store.replace_status(record()).await.unwrap();
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(4), "{waited:?}");
    assert_eq!(script.seen().len(), 2);
}

#[tokio::test]
async fn a_server_that_is_gone_is_said_to_be() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = kube::Config::new(format!("http://{gone}").parse().unwrap());
    let store = KubeStore::new(kube::Client::try_from(config).unwrap(), KubeOptions::default());
    let error = store.get(&Key::agent("default", "one")).await.unwrap_err();
    let text = mosaic::causes::one_line(&error);
    assert!(matches!(error, StoreError::Unavailable { .. }) && text.contains("cannot be reached") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn no_name_leads_anywhere_else() {
    let (store, script) = store_with(Vec::new()).await;
    for name in ["", ".", "..", "../secrets/x", "a/b", "one?watch=true", "One", "a%2Fb", "one#"] {
        assert_eq!(store.get(&Key::agent("default", name)).await.unwrap(), None, "{name:?}");
        assert_eq!(store.get(&Key::agent(name, "one")).await.unwrap(), None, "{name:?}");
        assert_eq!(store.get(&Key::halt(name)).await.unwrap(), None, "{name:?}");
        let deleted = store.delete(&Key::agent("default", name), None, &[]).await;
        assert!(matches!(deleted, Err(StoreError::NotFound(_))), "{name:?}");
    }
    assert!(script.seen().is_empty());
}

#[tokio::test]
async fn a_list_goes_on_by_token_and_begins_anew_when_its_moment_is_gone() {
    let page =
        |version: &str, token: &str| (200, json!({ "metadata": { "resourceVersion": version, "continue": token }, "items": [object()] }));
    let gone = failure(410, "Expired", "the provided continue parameter is too old");
    let (store, script) = store_with(vec![page("50", "a=/b"), gone, page("60", "c"), page("60", "")]).await;
    let (records, version) = store.list(Kind::Agent).await.unwrap();
    assert_eq!((records.len(), version), (2, 60));
    let all = "/apis/mosaicstack.dev/v1alpha1/agents?limit=500";
    let paths: Vec<String> = script.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, [all.to_owned(), format!("{all}&continue=a%3D%2Fb"), all.to_owned(), format!("{all}&continue=c")]);
}

#[tokio::test]
async fn what_does_not_decode_blinds_nobody() {
    let mut odd = object();
    odd["spec"] = json!({ "context": "nonsense" });
    odd["status"] = json!("nonsense");
    let list = json!({ "metadata": { "resourceVersion": "50" }, "items": [odd, object()] });
    let (store, _) = store_with(vec![(200, list)]).await;
    let (records, _) = store.list(Kind::Agent).await.unwrap();
    assert!(records[0].agent().is_err() && records[1].agent().is_ok());
}

#[test]
fn every_right_has_a_reason_and_none_is_a_wildcard() {
    for right in rights() {
        assert!(right.why.len() > 10 && !right.verbs.is_empty(), "{right:?}");
        let words = right.verbs.iter().chain([&right.group, &right.resource]).chain(right.names);
        assert!(words.into_iter().all(|word| !word.contains('*')), "{right:?}");
        let is_delicate = ["secrets", "pods", "roles"].contains(&right.resource);
        assert!(!is_delicate || (right.for_pods && right.resource != "roles"), "{right:?}");
    }
    let text = rbac_yaml("agents-live-here");
    for document in text.split("---\n") {
        let document: Value = serde_saphyr::from_str(document).unwrap();
        let named = document["kind"].as_str().unwrap();
        let is_of_cluster = named.starts_with("Cluster");
        assert_eq!(document["metadata"]["namespace"] == "agents-live-here", !is_of_cluster, "{named}");
        for rule in document["rules"].as_array().into_iter().flatten() {
            assert!(rule["verbs"].as_array().is_some_and(|verbs| !verbs.is_empty()), "{rule}");
        }
    }
    assert_eq!(text.matches("  # ").count(), rights().len(), "each rule has its reason above it");
}
