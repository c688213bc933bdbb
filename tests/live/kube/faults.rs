//! An API server that is killed, cut off, silent, or has forgotten; and records that do not decode.

use super::cluster::{Control, cluster, cluster_now};
use super::lease::behind_a_proxy;
use crate::contracts::store::{agent, event, version};
use crate::harness::{Mosaic, Remote, eventually, gates, sandbox_pids, task};
use crate::jobs;
use crate::valkey::proxy::Mode;
use futures::StreamExt;
use mosaic::store::kube::{KubeOptions, KubeStore};
use mosaic::store::{Kind, Store, StoreError, WatchEvent};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_api_server_fails_calls_and_watches_in_time() {
    let Some(cluster) = cluster("kube::faults::a_silent_api_server_fails_calls_and_watches_in_time").await else { return };
    let (proxy, client) = behind_a_proxy().await;
    let store = KubeStore::new(client, KubeOptions { watch_window: Duration::from_secs(2), ..KubeOptions::default() });
    let created = store.create(agent("one")).await.unwrap();
    let mut watch = store.watch(Kind::Agent, version(&created)).await.unwrap();
    proxy.set(Mode::Swallow);
    let started = Instant::now();
    let error = store.get(&created.key()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    let ended = loop {
        match tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("a dead watch is found").unwrap() {
            Ok(WatchEvent::Bookmark(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(ended, Err(StoreError::Unavailable { .. })), "{ended:?}");
    proxy.set(Mode::Pass);
    assert_eq!(store.get(&created.key()).await.unwrap(), Some(created));
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_not_sent_again() {
    let Some(cluster) = cluster("kube::faults::a_write_whose_answer_is_lost_is_not_sent_again").await else { return };
    let (proxy, client) = behind_a_proxy().await;
    let store = KubeStore::new(client, KubeOptions::default());
    let created = store.create(agent("one")).await.unwrap();
    let mut changed = created.clone();
    changed.status = json!({ "attempt": 1 });
    proxy.set(Mode::CutAnswers);
    let error = store.replace_status(changed.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    proxy.set(Mode::Pass);
    // Written or not: the compare-and-set tells, and nothing was written twice.
    let now = store.get(&created.key()).await.unwrap().unwrap();
    assert!(now.status["attempt"] == 1 || now == created, "{now:?}");
    let again = store.replace_status(changed).await;
    assert_eq!(again.is_ok(), now == created);
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_its_requests_and_misses_nothing() {
    let Some(cluster) = cluster("kube::faults::a_watch_outlives_its_requests_and_misses_nothing").await else { return };
    let store = KubeStore::new(cluster.client.clone(), KubeOptions { watch_window: Duration::from_secs(1), ..KubeOptions::default() });
    let mut record = store.create(agent("one")).await.unwrap();
    let mut watch = store.watch(Kind::Agent, version(&record)).await.unwrap();
    let mut written = Vec::new();
    for n in 1..=60 {
        record.status = json!({ "attempt": n });
        record = store.replace_status(record).await.unwrap();
        written.push(version(&record));
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    let mut told = Vec::new();
    while told.len() < written.len() {
        let WatchEvent::Applied(record) = event(&mut watch).await.unwrap() else { panic!("expected Applied") };
        told.push(version(&record));
    }
    assert_eq!(told, written, "over at least four requests");
}

#[test]
fn jobs_are_done_once_while_the_api_server_is_killed_again_and_again() {
    let test = "kube::faults::jobs_are_done_once_while_the_api_server_is_killed_again_and_again";
    let Some(control) = Control::of(test) else { return };
    let Some((_cluster, _runtime)) = cluster_now(test) else { return };
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let script = |n: usize| format!("sleep 1; echo {n} >> note-{n}.txt");
    let uids: Vec<String> = (0..6).map(|n| mosaic.spawn(&task(&remote, &format!("job-{n}"), &script(n)))).collect();
    for part in ["apiserver", "etcd", "apiserver"] {
        std::thread::sleep(Duration::from_millis(700));
        control.stop(part);
        std::thread::sleep(Duration::from_millis(500));
        control.start(part);
        let started = Instant::now();
        while mosaic.call("GET", "/agents", None).0 != 200 {
            assert!(started.elapsed() < Duration::from_secs(60), "{part}");
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("{part} killed and started: served again after {:?}", started.elapsed());
    }
    jobs::each_note_is_delivered_once(&mosaic, &remote, &uids);
}

#[test]
fn a_kill_works_while_the_api_server_is_down() {
    let test = "kube::faults::a_kill_works_while_the_api_server_is_down";
    let Some(control) = Control::of(test) else { return };
    let Some((_cluster, _runtime)) = cluster_now(test) else { return };
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uid = mosaic.spawn(&task(&remote, "long", "trap '' TERM; while :; do sleep 1; done"));
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    control.stop("apiserver");
    let started = Instant::now();
    let mut kill = crate::harness::program();
    kill.args(["kill", "--all", "--state"]).arg(mosaic.state());
    let out = kill.output().unwrap();
    let took = started.elapsed();
    assert!(sandbox_pids(&mosaic.state()).is_empty(), "{out:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("killed with the API server down in {took:?}: {}", String::from_utf8_lossy(&out.stdout));
    drop(control);
    eventually("the cluster hears of it", || {
        let (code, answer) = mosaic.call("GET", &format!("/agents/{uid}"), None);
        code == 200 && answer["state"] == "killed"
    });
    assert!(sandbox_pids(&mosaic.state()).is_empty());
    mosaic.assert_nothing_left();
}

#[test]
fn a_record_written_past_the_schema_is_reported_and_harms_no_other() {
    let test = "kube::faults::a_record_written_past_the_schema_is_reported_and_harms_no_other";
    let Some((cluster, runtime)) = cluster_now(test) else { return };
    // The definition lets anything in for a moment.
    let definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/agents.mosaicstack.dev";
    let strict = runtime.block_on(cluster.ask("GET", definition, None)).unwrap();
    let mut lax = strict.clone();
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
    lax["spec"]["versions"][0]["selectableFields"] = json!([]);
    runtime.block_on(cluster.ask("PUT", definition, Some(&lax))).unwrap();
    let odd = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Agent",
        "metadata": { "name": "odd" },
        "spec": { "context": 7, "runtime": "nonsense" },
    });
    let agents = "/apis/mosaicstack.dev/v1alpha1/namespaces/default/agents";
    let started = Instant::now();
    while let Err(status) = runtime.block_on(cluster.ask("POST", agents, Some(&odd))) {
        assert!(started.elapsed() < Duration::from_secs(20), "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let now = runtime.block_on(cluster.ask("GET", definition, None)).unwrap();
    let mut back = strict;
    back["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
    runtime.block_on(cluster.ask("PUT", definition, Some(&back))).unwrap();
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uid = mosaic.spawn(&task(&remote, "fine", "echo fine > fine.txt"));
    mosaic.wait_completed(&uid);
    let (code, answer) = mosaic.call("GET", "/agents/odd", None);
    println!("the odd one: {code} {answer}");
    assert_eq!(code, 200, "{answer}");
}

/// Two looks for orphans, and some.
const TWO_LOOKS: Duration = Duration::from_secs(23);

#[test]
fn a_cluster_that_has_forgotten_kills_nothing_and_starts_nothing_again() {
    let test = "kube::faults::a_cluster_that_has_forgotten_kills_nothing_and_starts_nothing_again";
    let Some((cluster, runtime)) = cluster_now(test) else { return };
    let mut mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let uid = mosaic.spawn(&task(&remote, "long", "sleep 600"));
    let object = mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    let living = sandbox_pids(&mosaic.state());
    assert_eq!(living.len(), 1);
    eventually("the cluster is remembered", || mosaic.state().join("last-version").exists());
    mosaic.sigkill();
    // As after a restore without our objects: nobody asked for this agent's end.
    let path = format!("/apis/mosaicstack.dev/v1alpha1/namespaces/default/agents/{}", object["metadata"]["name"].as_str().unwrap());
    runtime.block_on(async {
        cluster.ask("PATCH", &path, Some(&json!({ "metadata": { "finalizers": null } }))).await.unwrap();
        cluster.ask("DELETE", &path, None).await.unwrap();
        cluster.ask("DELETE", "/api/v1/namespaces/default/configmaps/mosaic-installation", None).await.unwrap();
    });
    mosaic.up();
    let says = |words: &str| mosaic.call("GET", "/readyz?verbose", None).1.to_string().contains(words);
    eventually("it is noticed", || says("is another one than before"));
    std::thread::sleep(TWO_LOOKS);
    assert_eq!(sandbox_pids(&mosaic.state()), living, "what lives is left alone: {}", mosaic.log());
    // An operator confirms: what has no record goes.
    std::fs::remove_file(mosaic.state().join("last-version")).unwrap();
    eventually("the orphan goes", || sandbox_pids(&mosaic.state()).is_empty());
    mosaic.assert_nothing_left();
}
