//! What goes on over time: watches, follows, events, the audit log and the shutdown.

use super::front::{Front, NdJson, WAIT, finished, request};
use mosaic::api::agent::Phase;
use mosaic::api::names::{Attempt, Role, RunId, Uid};
use mosaic::audit::Draft;
use mosaic::store::Key;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_the_present_and_every_change() {
    let front = Front::start().await;
    let agent = front.spawn_named("watched").await;
    let name = agent["name"].as_str().unwrap();
    let response = front.http.get(front.url("/agents?watch=true")).bearer_auth(front.token.expose()).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut lines = NdJson::of(response);
    assert_eq!(lines.next().await["agent"]["name"], *name);
    assert_eq!(lines.next().await["type"], "bookmark");
    front.set_status(name, &finished(Phase::Running)).await;
    let change = lines.next_of("applied").await;
    assert_eq!(change["agent"]["state"], "running");
    let _controller = front.tear_down_deleted();
    front.send(Method::POST, &format!("/agents/{name}/kill"), None).await;
    assert_eq!(lines.next_of("deleted").await["agent"]["state"], "killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_are_limited_and_give_their_place_back() {
    let front = Front::start_with(Semaphore::new(1)).await;
    let watch = || front.http.get(front.url("/agents?watch=true")).bearer_auth(front.token.expose()).send();
    let first = watch().await.unwrap();
    assert_eq!(watch().await.unwrap().status(), 503);
    drop(first);
    let begun = Instant::now();
    while watch().await.unwrap().status() != 200 {
        assert!(begun.elapsed() < WAIT, "the place was not given back");
        // The server sees the closed connection when it next writes; this makes it write.
        front.post("/halts", json!({})).await;
        front.post("/agents/spawn", request(&format!("noise-{}", begun.elapsed().as_nanos()))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_cleaned_and_followed_into_the_next_attempt() {
    let front = Front::start().await;
    let agent = front.spawn_named("talkative").await;
    let (name, uid) = (agent["name"].as_str().unwrap(), Uid::new(agent["agentId"].as_str().unwrap()).unwrap());
    let run = |attempt| RunId { uid: uid.clone(), attempt: Attempt(attempt), role: Role::Agent };
    assert_eq!(front.get(&format!("/agents/{name}/logs")).await.0, StatusCode::NOT_FOUND);
    front.logs.lock().unwrap().insert(run(1), (b"\x1b[31mfirst\x1b[0m\n".to_vec(), true));
    let get = |path: String| front.http.get(front.url(&path)).bearer_auth(front.token.expose()).send();
    assert_eq!(get(format!("/agents/{name}/logs")).await.unwrap().text().await.unwrap(), "first\n");
    assert_eq!(get(format!("/agents/{name}/logs?from=8")).await.unwrap().text().await.unwrap(), "st\n");
    assert_eq!(front.get(&format!("/agents/{name}/logs?attempt=7")).await.0, StatusCode::NOT_FOUND);
    let mut follow = get(format!("/agents/{name}/logs?follow=true")).await.unwrap();
    let mut seen = String::new();
    let mut read_until = async |end: &str| {
        while !seen.ends_with(end) {
            let piece = tokio::time::timeout(WAIT, follow.chunk()).await.unwrap().unwrap();
            let Some(piece) = piece else { break };
            seen.push_str(std::str::from_utf8(&piece).unwrap());
        }
        seen.clone()
    };
    read_until("first\n").await;
    front.logs.lock().unwrap().insert(run(2), (b"sec".to_vec(), false));
    read_until("sec").await;
    *front.logs.lock().unwrap().get_mut(&run(2)).unwrap() = (b"second\n".to_vec(), true);
    front.set_status(name, &finished(Phase::Completed)).await;
    assert_eq!(read_until("(never)").await, "first\n--- attempt 2 ---\nsecond\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_is_shown_where_there_is_one() {
    let front = Front::start().await;
    let (none, some) = (front.spawn_named("none").await, front.spawn_named("with-diff").await);
    assert_eq!(front.get(&format!("/agents/{}/diff", none["name"].as_str().unwrap())).await.0, StatusCode::NOT_FOUND);
    let path = format!("/agents/{}/diff", some["name"].as_str().unwrap());
    let response = front.http.get(front.url(&path)).bearer_auth(front.token.expose()).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "+a line\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_follows_and_stops_listening() {
    let front = Front::start().await;
    let agent = front.spawn_named("followed").await;
    let path = format!("/agents/{}/logs?follow=true", agent["name"].as_str().unwrap());
    let get = |path: &str| front.http.get(front.url(path)).bearer_auth(front.token.expose()).send();
    let (logs, watch) = (get(&path).await.unwrap(), get("/agents?watch=true").await.unwrap());
    front.closing.cancel();
    tokio::time::timeout(WAIT, async {
        let _ = logs.bytes().await;
        let _ = watch.bytes().await;
    })
    .await
    .expect("follows end with the server");
    tokio::time::timeout(WAIT, front.task).await.expect("the server ends").unwrap();
    assert!(TcpStream::connect(front.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_from_a_number_on_and_followed() {
    let front = Front::start().await;
    let agent = front.spawn_named("eventful").await;
    let (name, uid) = (agent["name"].as_str().unwrap(), Uid::new(agent["agentId"].as_str().unwrap()).unwrap());
    let tell =
        |word: &str| front.audit.append(Draft::event(word, "it was so").about(Key::agent("default", name), Some(uid.clone()))).unwrap();
    let first = tell("First");
    front.audit.append(Draft::event("Elsewhere", "")).unwrap();
    let get = |query: String| front.http.get(front.url(&format!("/events{query}"))).bearer_auth(front.token.expose()).send();
    let reasons = async |query: String| -> Vec<String> {
        let text = get(query).await.unwrap().text().await.unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["reason"].as_str().unwrap_or_else(|| line["type"].as_str().unwrap()).to_owned()).collect()
    };
    // The writer tells followers from a thread of its own.
    let begun = Instant::now();
    while reasons(String::new()).await.len() < 3 {
        assert!(begun.elapsed() < WAIT);
    }
    assert_eq!(reasons(String::new()).await, ["stream", "First", "Elsewhere"]);
    assert_eq!(reasons(format!("?agent={name}")).await, ["stream", "First"]);
    assert_eq!(reasons(format!("?since={first}")).await, ["stream", "Elsewhere"]);
    assert_eq!(reasons(format!("?since={first}&stream=another")).await, ["stream", "gap", "First", "Elsewhere"]);
    let mut lines = NdJson::of(get(format!("?agent={name}&since={first}&follow=true")).await.unwrap());
    assert_eq!(lines.next().await["type"], "stream");
    tell("Second");
    let second = lines.next().await;
    assert_eq!((&second["reason"], &second["agentId"], &second["name"]), (&json!("Second"), &agent["agentId"], &agent["name"]));
    assert_eq!(front.get("/events?agent=none").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changed_what_is_in_the_audit_log() {
    let front = Front::start().await;
    front.spawn_named("audited").await;
    front.post("/agents/spawn", json!({})).await;
    front.http.post(front.url("/agents/kill-all")).send().await.unwrap();
    front.get("/agents").await;
    let requests = || {
        let files = std::fs::read_dir(front.state.path().join("audit")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
        let lines: Vec<Value> = files
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| serde_json::from_str(&line).ok())
            .collect();
        lines
            .into_iter()
            .filter(|line| line["kind"] == "request")
            .map(|line| (line["action"].clone(), line["result"].clone()))
            .collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while requests().len() < 2 {
        assert!(begun.elapsed() < WAIT);
    }
    // What was not let in changed nothing and is not written: strangers must not be able to fill the disk.
    assert_eq!(requests(), [(json!("POST /agents/spawn"), json!("ok")), (json!("POST /agents/spawn"), json!("failed"))]);
}
