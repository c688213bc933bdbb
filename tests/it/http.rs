//! The HTTP server over real sockets and the embedded store: every route, and every refusal.

pub mod front;
mod streams;

use front::{Front, WAIT, finished, request};
use futures::StreamExt;
use mosaic::api::agent::Phase;
use mosaic::server::BODY_BYTES_MAX;
use mosaic::store::{Key, Kind};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness_need_no_token_and_tell_the_truth() {
    let front = Front::start().await;
    let text = reqwest::get(front.url("/health")).await.unwrap().text().await.unwrap();
    assert!(text.starts_with(r#"{"status":"healthy","uptime":"#), "{text}");
    let health: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(health.as_object().unwrap().len(), 3);
    assert!(health["timestamp"].as_str().unwrap().ends_with('Z') && health["timestamp"].as_str().unwrap().len() == 20, "{health}");
    assert_eq!(reqwest::get(front.url("/livez")).await.unwrap().status(), 200);
    let verbose = reqwest::get(front.url("/readyz?verbose")).await.unwrap().text().await.unwrap();
    assert!(verbose.contains("[+] store ok") && verbose.contains("[+] records-seen ok"), "{verbose}");
    front.ready.send_replace(false);
    let response = reqwest::get(front.url("/readyz")).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.text().await.unwrap().contains("records-seen"));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_needs_the_token() {
    let front = Front::start().await;
    for path in ["/agents", "/agents/x", "/agents/x/logs", "/queue", "/halts", "/metrics"] {
        let none = reqwest::get(front.url(path)).await.unwrap();
        assert_eq!(none.status(), 401, "{path}");
        assert_eq!(none.headers()["www-authenticate"], "Bearer realm=\"mosaic\"");
        let wrong = front.http.get(front.url(path)).bearer_auth("wrong").send().await.unwrap();
        assert_eq!(wrong.status(), 401, "{path}");
        assert!(wrong.text().await.unwrap().contains("wrong-token"));
    }
    for path in ["/agents/spawn", "/agents/kill-all", "/agents/x/kill", "/halts"] {
        assert_eq!(front.http.post(front.url(path)).send().await.unwrap().status(), 401, "{path}");
    }
    assert_eq!(front.http.delete(front.url("/agents/x")).send().await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_hosts_and_origins_are_refused() {
    let front = Front::start().await;
    let (port, client) = (front.address.port(), &front.http);
    for host in ["evil.example", "evil.example:3001", "127.0.0.1", "localhost:1"] {
        let response = client.get(front.url("/livez")).header("Host", host).send().await.unwrap();
        assert_eq!(response.status(), 421, "{host}");
    }
    let own = client.get(front.url("/livez")).header("Host", format!("localhost:{port}")).send().await.unwrap();
    assert_eq!(own.status(), 200);
    let origin = |origin: String| client.get(front.url("/livez")).header("Origin", origin).send();
    assert_eq!(origin("http://evil.example".into()).await.unwrap().status(), 403);
    assert_eq!(origin("null".into()).await.unwrap().status(), 403);
    assert_eq!(origin(format!("http://localhost:{port}")).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_get_problem_details() {
    let front = Front::start().await;
    let expect = async |method: Method, path: &str, type_: &str, body: Vec<u8>, status: u16, code: &str| {
        let request = front.http.request(method, front.url(path)).bearer_auth(front.token.expose());
        let response = request.header("Content-Type", type_).body(body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path} {code}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["type"], format!("urn:mosaic:problem:{code}"));
        assert_eq!(problem["status"], status);
    };
    let json = "application/json";
    expect(Method::GET, "/nowhere", json, vec![], 404, "no-such-route").await;
    expect(Method::PATCH, "/agents", json, vec![], 405, "method-not-allowed").await;
    expect(Method::POST, "/agents/spawn", json, vec![], 400, "no-body").await;
    expect(Method::POST, "/agents/spawn", json, b"{".to_vec(), 400, "bad-json").await;
    expect(Method::POST, "/agents/spawn", "text/plain", b"{}".to_vec(), 415, "not-json").await;
    expect(Method::POST, "/agents/spawn", json, vec![b' '; BODY_BYTES_MAX + 1], 413, "body-too-large").await;
    expect(Method::POST, "/agents/spawn", json, b"[]".to_vec(), 422, "invalid-request").await;
    expect(Method::GET, "/agents?limit=0", json, vec![], 400, "bad-query").await;
    expect(Method::GET, "/agents?colour=red", json, vec![], 400, "bad-query").await;
    expect(Method::GET, "/agents?phase=Happy", json, vec![], 400, "bad-query").await;
    expect(Method::GET, "/agents?continue=%2A", json, vec![], 400, "bad-query").await;
    expect(Method::GET, "/agents/none", json, vec![], 404, "agent-not-found").await;
    expect(Method::GET, &format!("/agents/{}", "x".repeat(9000)), json, vec![], 414, "uri-too-long").await;
    expect(Method::POST, "/agents/none/kill", json, vec![], 404, "agent-not-found").await;
    expect(Method::DELETE, "/halts/none", json, vec![], 404, "not-found").await;
    expect(Method::POST, "/agents/kill-all", json, br#"{"force":true}"#.to_vec(), 422, "invalid-request").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_is_limited_as_well() {
    let front = Front::start().await;
    let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])).take(64);
    let request = front.http.post(front.url("/agents/spawn")).bearer_auth(front.token.expose()).header("Content-Type", "application/json");
    // The server may answer and close before everything is sent: then the client sees a broken pipe instead.
    if let Ok(response) = request.body(reqwest::Body::wrap_stream(pieces)).send().await {
        assert_eq!(response.status(), 413);
    }
    assert_eq!(reqwest::get(front.url("/livez")).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn spawn_is_idempotent_by_task_id() {
    let front = Front::start().await;
    let (status, first) = front.post("/agents/spawn", request("build-42")).await;
    assert_eq!(status, StatusCode::CREATED, "{first}");
    assert_eq!((&first["state"], &first["taskId"]), (&json!("pending"), &json!("build-42")));
    assert_eq!(first["object"]["spec"]["sandbox"]["driver"], "process");
    assert_eq!((&first["object"]["spec"]["timeout"], &first["object"]["spec"]["maxRetries"]), (&json!("600"), &json!(2)));
    let mut reordered = request("build-42");
    reordered["branch"] = Value::Null;
    let (status, again) = front.post("/agents/spawn", reordered).await;
    assert_eq!((status, &again["agentId"]), (StatusCode::OK, &first["agentId"]));
    let mut other = request("build-42");
    other["priority"] = json!(9);
    let (status, problem) = front.post("/agents/spawn", other).await;
    assert_eq!((status, &problem["agentId"]), (StatusCode::CONFLICT, &first["agentId"]));
    assert!(problem["hint"].as_str().unwrap().contains("rerunOf"), "{problem}");
    // A changed priority makes it no other request.
    let id = first["agentId"].as_str().unwrap();
    assert_eq!(front.send(Method::PATCH, &format!("/agents/{id}"), Some(json!({ "priority": 7 }))).await.0, StatusCode::OK);
    assert_eq!(front.post("/agents/spawn", request("build-42")).await.0, StatusCode::OK);
    let mut elsewhere = request("build-42");
    elsewhere["namespace"] = json!("other");
    assert_eq!(front.post("/agents/spawn", elsewhere).await.0, StatusCode::CREATED);
    assert_eq!(front.store.list(Kind::Agent).await.unwrap().0.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_calls_at_once_make_one_agent() {
    let front = Arc::new(Front::start().await);
    let calls = (0..100).map(|_| {
        let front = front.clone();
        tokio::spawn(async move { front.post("/agents/spawn", request("race")).await })
    });
    let mut created = 0;
    for call in calls.collect::<Vec<_>>() {
        let (status, body) = call.await.unwrap();
        assert!(status.is_success(), "{body}");
        created += usize::from(status == StatusCode::CREATED);
    }
    assert_eq!((created, front.store.list(Kind::Agent).await.unwrap().0.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_task_id_stays_bound_after_the_end() {
    let front = Front::start().await;
    let _controller = front.tear_down_deleted();
    let first = front.spawn_named("mortal").await;
    let id = first["agentId"].as_str().unwrap();
    let mut rerun = request("mortal");
    rerun["rerunOf"] = json!(id);
    let (status, problem) = front.post("/agents/spawn", rerun.clone()).await;
    assert_eq!((status, &problem["type"]), (StatusCode::CONFLICT, &json!("urn:mosaic:problem:not-finished")));
    let (status, ending) = front.send(Method::POST, &format!("/agents/{id}/kill"), None).await;
    assert_eq!((status, &ending["state"], &ending["verified"]), (StatusCode::OK, &json!("killed"), &json!(true)), "{ending}");
    let (status, again) = front.post("/agents/spawn", request("mortal")).await;
    assert_eq!((status, &again["agentId"], &again["state"]), (StatusCode::OK, &first["agentId"], &json!("killed")));
    assert!(front.store.list(Kind::Agent).await.unwrap().0.is_empty());
    let (status, second) = front.post("/agents/spawn", rerun.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{second}");
    assert_ne!(second["agentId"], first["agentId"]);
    let (status, same) = front.post("/agents/spawn", rerun).await;
    assert_eq!((status, &same["agentId"]), (StatusCode::OK, &second["agentId"]));
    let mut foreign = request("another-task");
    foreign["rerunOf"] = json!(id);
    assert_eq!(front.post("/agents/spawn", foreign).await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn spawn_names_the_field_that_is_wrong() {
    let front = Front::start().await;
    let refused = async |change: fn(&mut Value), word: &str| {
        let mut body = request("wrong");
        change(&mut body);
        let (status, problem) = front.post("/agents/spawn", body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{word}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{word} is missing in {problem}");
    };
    refused(|b| b["colour"] = json!("red"), "colour").await;
    refused(|b| b["context"]["brunch"] = json!("main"), "context.brunch").await;
    refused(|b| b["options"]["force"] = json!(true), "force").await;
    refused(|b| b["options"]["timeout"] = json!("soon"), "timeout").await;
    refused(|b| b["timeout"] = json!("5m"), "timeout").await;
    refused(|b| b["priority"] = json!(11), "priority").await;
    refused(|b| b["agentType"] = json!("boss"), "agentType").await;
    refused(|b| b["context"]["repository"] = Value::Null, "repository").await;
    refused(|b| b["context"]["branch"] = json!("-rf"), "branch").await;
    refused(|b| b["taskId"] = Value::Null, "taskId").await;
    refused(|b| b["namespace"] = json!("No Such"), "namespace").await;
    refused(|b| b["runtime"] = json!({ "command": { "args": ["true"] }, "preset": "codex" }), "exactly one").await;
    refused(|b| b["sandbox"] = json!({ "driver": "docker" }), "options.sandbox").await;
    refused(|b| b["context"]["repository"] = json!("/missing"), "no repository").await;
    assert!(front.store.list(Kind::Agent).await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_listed_in_pages_with_an_etag() {
    let front = Front::start().await;
    for i in 0..5 {
        front.spawn_named(&format!("page-{i}")).await;
    }
    let (_, first) = front.get("/agents?limit=3").await;
    assert_eq!(first["items"].as_array().unwrap().len(), 3);
    let (_, rest) = front.get(&format!("/agents?limit=3&continue={}", first["continue"].as_str().unwrap())).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["continue"]), (2, &Value::Null));
    let mut names: Vec<_> = [&first, &rest].iter().flat_map(|p| p["items"].as_array().unwrap()).map(|a| a["name"].to_string()).collect();
    names.dedup();
    assert_eq!(names.len(), 5);
    assert_eq!(front.get("/agents?namespace=elsewhere").await.1["items"], json!([]));
    assert_eq!(front.get("/agents?phase=running").await.1["items"], json!([]));
    let get = || front.http.get(front.url("/agents")).bearer_auth(front.token.expose());
    let etag = get().send().await.unwrap().headers()["etag"].clone();
    assert_eq!(get().header("If-None-Match", &etag).send().await.unwrap().status(), 304);
    front.spawn_named("page-5").await;
    assert_eq!(get().header("If-None-Match", &etag).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_changes_and_says_when_nothing_changed() {
    let front = Front::start().await;
    let mut object = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1", "kind": "Agent",
        "metadata": { "name": "by-hand", "labels": { "team": "a" } },
        "spec": { "context": { "repository": "/srv/repository" }, "runtime": { "command": { "args": ["true"] } } },
    });
    let (status, written) = front.send(Method::PUT, "/agents/by-hand", Some(object.clone())).await;
    assert_eq!((status, &written["result"]), (StatusCode::CREATED, &json!("created")), "{written}");
    // What the server prints can be applied as it is.
    let (_, written) = front.send(Method::PUT, "/agents/by-hand", Some(written["object"].clone())).await;
    assert_eq!(written["result"], "unchanged");
    object["spec"]["priority"] = json!(8);
    let (_, written) = front.send(Method::PUT, "/agents/by-hand", Some(object.clone())).await;
    assert_eq!((&written["result"], &written["priority"]), (&json!("configured"), &json!(8)));
    object["spec"]["context"]["repository"] = json!("/srv/other");
    let (status, problem) = front.send(Method::PUT, "/agents/by-hand", Some(object.clone())).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem["detail"].as_str().unwrap().contains("only spec.priority and spec.suspend can be changed"), "{problem}");
    for (pointer, value, word) in
        [("/kind", json!("Job"), "kind"), ("/metadata/name", json!("else"), "metadata.name"), ("/spec/colour", json!(1), "spec.colour")]
    {
        let mut wrong = object.clone();
        match wrong.pointer_mut(pointer) {
            Some(field) => *field = value,
            None => wrong["spec"]["colour"] = value,
        }
        let (status, problem) = front.send(Method::PUT, "/agents/by-hand", Some(wrong)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    let (status, _) = front.send(Method::PATCH, "/agents/by-hand", Some(json!({ "timeout": "1h" }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_that_is_not_seen_through_says_so() {
    let front = Front::start().await;
    let agent = front.spawn_named("stuck").await;
    let begun = Instant::now();
    let (status, ending) = front.send(Method::POST, &format!("/agents/{}/kill", agent["name"].as_str().unwrap()), None).await;
    assert_eq!((status, &ending["verified"]), (StatusCode::ACCEPTED, &json!(false)), "{ending}");
    assert!(begun.elapsed() < WAIT);
    let record = front.store.get(&Key::agent("default", agent["name"].as_str().unwrap())).await.unwrap().unwrap();
    assert!(record.metadata.deletion_timestamp.is_some());
    assert_eq!(record.metadata.annotations.unwrap()["mosaicstack.dev/ended-by"], "kill");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_agent_has_nothing_to_kill_and_can_be_deleted() {
    let front = Front::start().await;
    let agent = front.spawn_named("done").await;
    let name = agent["name"].as_str().unwrap();
    front.set_status(name, &finished(Phase::Completed)).await;
    let (status, ending) = front.send(Method::POST, &format!("/agents/{name}/kill"), None).await;
    assert_eq!((status, &ending["state"]), (StatusCode::OK, &json!("completed")));
    assert!(ending["message"].as_str().unwrap().contains("nothing to kill"));
    let _controller = front.tear_down_deleted();
    let (status, _) = front.send(Method::DELETE, &format!("/agents/{name}"), None).await;
    assert_eq!(status, StatusCode::OK);
    let (status, shown) = front.get(&format!("/agents/{}", agent["agentId"].as_str().unwrap())).await;
    assert_eq!((status, &shown["agentId"]), (StatusCode::OK, &agent["agentId"]));
    assert_eq!(front.send(Method::DELETE, &format!("/agents/{name}"), None).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_engages_a_halt_and_spares_what_is_finished() {
    let front = Front::start().await;
    let done = front.spawn_named("done").await;
    front.set_status(done["name"].as_str().unwrap(), &finished(Phase::Completed)).await;
    for i in 0..3 {
        front.spawn_named(&format!("live-{i}")).await;
    }
    let _controller = front.tear_down_deleted();
    let (status, all) = front.post("/agents/kill-all", json!({ "reason": "drill", "hold": true })).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    assert_eq!(all["agents"].as_array().unwrap().len(), 3);
    assert!(all["agents"].as_array().unwrap().iter().all(|a| a["state"] == "killed" && a["verified"] == true), "{all}");
    let (_, halts) = front.get("/halts").await;
    assert_eq!((&halts["items"][0]["release"], &halts["items"][0]["reason"]), (&json!("manual"), &json!("drill")));
    let name = halts["items"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(front.send(Method::DELETE, &format!("/halts/{name}"), None).await.0, StatusCode::OK);
    let halt = front.store.get(&Key::halt(name)).await.unwrap();
    assert!(halt.is_none_or(|h| h.metadata.deletion_timestamp.is_some()));
    assert_eq!(front.get("/agents").await.1["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_spawned_under_a_halt_that_matches() {
    let front = Front::start().await;
    front.post("/halts", json!({ "namespace": "elsewhere" })).await;
    front.spawn_named("unconcerned").await;
    let (_, halt) = front.post("/halts", json!({ "reason": "drill" })).await;
    let (status, problem) = front.post("/agents/spawn", request("halted")).await;
    assert_eq!((status, &problem["reason"]), (StatusCode::CONFLICT, &json!("Halted")));
    assert!(problem["detail"].as_str().unwrap().contains("drill"), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains(halt["name"].as_str().unwrap()), "{problem}");
    // What is known already is still told.
    assert_eq!(front.post("/agents/spawn", request("unconcerned")).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_needs_no_body() {
    let front = Front::start().await;
    let (status, all) = front.send(Method::POST, "/agents/kill-all", None).await;
    assert_eq!((status, &all["agents"], &all["hold"]), (StatusCode::OK, &json!([]), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn halts_are_made_as_written_and_refused_when_wrong() {
    let front = Front::start().await;
    let (status, halt) = front.post("/halts", json!({ "reason": "deploy", "namespace": "team-a" })).await;
    assert_eq!((status, &halt["release"]), (StatusCode::CREATED, &json!("manual")), "{halt}");
    assert_eq!(front.post("/halts", json!({ "because": "x" })).await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_counts_and_orders() {
    let front = Front::start().await;
    for (task, priority) in [("low", 2), ("high", 9), ("done", 5), ("busy", 5)] {
        let mut body = request(task);
        body["priority"] = json!(priority);
        let (_, agent) = front.post("/agents/spawn", body).await;
        let phase = match task {
            "done" => Phase::Completed,
            "busy" => Phase::Running,
            _ => continue,
        };
        front.set_status(agent["name"].as_str().unwrap(), &finished(phase)).await;
    }
    let (_, queue) = front.get("/queue").await;
    assert_eq!((&queue["pending"], &queue["active"], &queue["completed"], &queue["failed"]), (&json!(2), &json!(1), &json!(1), &json!(0)));
    let names: Vec<_> =
        queue["positions"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().split('-').next().unwrap()).collect();
    assert_eq!(names, ["high", "low"]);
    assert_eq!(queue["positions"][0]["position"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_open_metrics_with_routes_and_states() {
    let front = Front::start().await;
    front.spawn_named("counted").await;
    let response = front.http.get(front.url("/metrics")).bearer_auth(front.token.expose()).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = response.text().await.unwrap();
    assert!(text.contains(r#"mosaic_agents{state="pending"} 1"#), "{text}");
    assert!(text.contains(r#"route="/agents/spawn",status="201"} 1"#), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_half_requests_hurt_nobody() {
    let front = Front::start().await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET\0/ HTTP/1.1\r\n\r\n",
        b"POST /agents/spawn HTTP/1.1\r\n",
    ] {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    }
    assert_eq!(reqwest::get(front.url("/livez")).await.unwrap().status(), 200);
}
