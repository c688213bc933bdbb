//! What others can read on the server while agents live: states of agents and tasks, and a stream of events.

use super::open;
use super::server::{DURABLE, Server};
use crate::contracts::store::{agent, halt};
use mosaic::store::Store;
use serde_json::json;

#[tokio::test]
async fn states_and_events_are_told_in_the_words_of_the_task_queue() {
    let test = "valkey::words::states_and_events_are_told_in_the_words_of_the_task_queue";
    let Some(server) = Server::start(test, &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let mut given = agent("one");
    given.spec["taskId"] = json!("T-1");
    let mut record = store.create(given).await.unwrap();
    store.create(halt("stop")).await.unwrap();
    let uid = record.metadata.uid.clone().unwrap();
    let states = |key: &str| server.ask(&["HGETALL", &format!("{{mosaic:default}}:{key}")]).pairs();
    assert_eq!(states("agent-states")[&uid], "pending");
    assert_eq!(states("task-states")["default/T-1"], "pending");
    assert_eq!(states("agent-states").len(), 1, "halts are no agents");

    let life =
        [("Pending", "pending"), ("Spawning", "assigned"), ("Running", "executing"), ("Running", "executing"), ("Completed", "completed")];
    for (attempt, (phase, task)) in life.into_iter().enumerate() {
        record.status = json!({ "attempt": attempt, "phase": phase, "taskState": task, "reason": "Because" });
        record = store.replace_status(record).await.unwrap();
        assert_eq!(states("agent-states")[&uid], phase.to_lowercase());
        assert_eq!(states("task-states")["default/T-1"], task);
    }
    let gone =
        json!({ "type": "CleanedUp", "status": "True", "reason": "Met", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    record.status["conditions"] = json!([gone]);
    record = store.replace_status(record).await.unwrap();
    store.delete(&record.key(), None, &[]).await.unwrap();
    assert!(states("agent-states").is_empty() && states("task-states").is_empty());

    for (name, phase) in [("two", "Failed"), ("three", "Killed")] {
        let mut record = store.create(agent(name)).await.unwrap();
        record.status = json!({ "phase": phase, "taskState": "failed" });
        store.replace_status(record).await.unwrap();
    }
    let entries = server.ask(&["XRANGE", "{mosaic:default}:events", "-", "+"]);
    let events: Vec<_> = entries.list().iter().map(|entry| entry.list()[1].pairs()).collect();
    let told: Vec<&str> = events.iter().map(|event| event["event"].as_str()).collect();
    assert_eq!(told, ["spawned", "running", "completed", "cleaned up", "failed", "killed"]);
    let first = &events[0];
    let seen = ["agent", "namespace", "name", "task", "state", "task-state", "attempt", "reason"].map(|field| first[field].as_str());
    assert_eq!(seen, [uid.as_str(), "default", "one", "T-1", "spawning", "assigned", "1", "Because"]);
}

#[tokio::test]
async fn all_keys_are_in_one_slot_of_a_cluster() {
    let Some(server) = Server::start("valkey::words::all_keys_are_in_one_slot_of_a_cluster", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let record = store.create(agent("one")).await.unwrap();
    store.archive(record).await.unwrap();
    let keys = server.ask(&["KEYS", "*"]);
    assert!(keys.list().len() >= 6, "{keys:?}");
    assert!(keys.list().iter().all(|key| key.text().starts_with("{mosaic:default}:")), "{keys:?}");
}

#[tokio::test]
async fn a_cluster_serves_a_store_as_well() {
    let flags =
        [&DURABLE[..], &["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-announce-ip", "127.0.0.1"]].concat();
    let Some(server) = Server::start("valkey::words::a_cluster_serves_a_store_as_well", &flags) else { return };
    server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let started = std::time::Instant::now();
    while !server.ask(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok") {
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let store = open(&server.url().replace("valkey://", "valkey-cluster://")).await.unwrap();
    let record = store.create(agent("one")).await.unwrap();
    let mut watch = store.watch(mosaic::store::Kind::Agent, 1).await.unwrap();
    let record = store.replace_status(super::next(record)).await.unwrap();
    assert_eq!(crate::contracts::store::event(&mut watch).await.unwrap(), mosaic::store::WatchEvent::Applied(record.clone()));
    store.archive(record.clone()).await.unwrap();
    assert_eq!(store.history(None, 5).await.unwrap(), std::slice::from_ref(&record));
    assert_eq!(store.list(mosaic::store::Kind::Agent).await.unwrap(), (vec![record], 2));
}
