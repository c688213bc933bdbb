//! Pods: from the declaration of an agent to the first instruction of its command, over a raw pod that is made by hand; one and ten at once.
//! And from a kill to the instant at which nothing of it lives, over the deletion of a raw pod without grace.
//!
//! Everything is real: `up::start` with `--store kube --driver pod` on the cluster that `KUBECONFIG` names, whose node must be this machine,
//! for both sides are looked at in its process table, every few milliseconds. Ours has its workspace in place by then, a closed network and a
//! look from inside; the raw pod has the same image, user, limits and restrictions, and nothing else. `MOSAIC_TEST_POD_IMAGE` and
//! `MOSAIC_TEST_LINK_HOST` are those of the tests.

use crate::lifecycle::{quiet, sample_remote};
use crate::table::{Figure, Part};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use mosaic::config::{Config, Settings};
use mosaic::kill::admin;
use mosaic::kill::receipt::KillRequest;
use mosaic::store::{Key, Record};
use mosaic::up::{self, Running};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Starts and kills of one.
const TURNS: usize = 15;
/// Starts of ten at once.
const WAVES: usize = 4;
/// How many at once.
const WAVE: usize = 10;
/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the process table is read.
const LOOK: Duration = Duration::from_millis(5);
/// How long what was prepared last has until its init asks.
const PREPARED_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether a record has gone.
const SLOW_LOOK: Duration = Duration::from_millis(200);

/// Both sides.
struct Bench {
    up: Running,
    state: PathBuf,
    remote: String,
    image: String,
    pods: Api<Pod>,
    /// How many pods are kept prepared.
    warm: usize,
}

/// Measures the part.
pub fn measure() -> Part {
    let skipped = |why: &str| Part { figures: Vec::new(), foot: vec![format!("pods: not measured, {why}")] };
    let read = |name: &str| std::env::var(name).ok();
    let Some((image, host)) = read("MOSAIC_TEST_POD_IMAGE").zip(read("MOSAIC_TEST_LINK_HOST")).filter(|_| read("KUBECONFIG").is_some())
    else {
        return skipped("it needs KUBECONFIG, MOSAIC_TEST_POD_IMAGE and MOSAIC_TEST_LINK_HOST");
    };
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(ratios(folder.path(), image, &host))
}

async fn ratios(folder: &Path, image: String, host: &str) -> Part {
    let remote = sample_remote(folder);
    let mut part = Part::default();
    let bench = Bench::open(folder, &remote, &image, host, 0).await;
    bench.starts("pod, declared to first instruction / raw pod", 1.10, 1, TURNS, &mut part).await;
    bench.starts("ten pods at once / ten raw ones", 1.20, WAVE, WAVES, &mut part).await;
    bench.kills(&mut part).await;
    bench.up.shutdown().await;
    let bench = Bench::open(folder, &remote, &image, host, WAVE).await;
    bench.starts("prepared pod, declared to first instruction / raw pod", 1.10, 1, TURNS, &mut part).await;
    bench.starts("ten prepared pods at once / ten raw ones", 1.20, WAVE, WAVES, &mut part).await;
    bench.up.shutdown().await;
    part.foot.push(
        "pods: both sides by the process table of the node, which is this machine; ours with workspace and closed network.".to_owned(),
    );
    part
}

impl Bench {
    async fn open(folder: &Path, remote: &str, image: &str, host: &str, warm: usize) -> Self {
        let state = folder.join(format!("state-{warm}"));
        let settings = Settings {
            listen: Some("127.0.0.1:0".to_owned()),
            store: Some("kube".to_owned()),
            driver: Some("pod".to_owned()),
            local_repos: vec![folder.to_str().expect("a plain path").to_owned()],
            init: std::env::var("MOSAIC_INIT").ok(),
            link_address: Some(format!("{host}:0")),
            link_listen: Some("0.0.0.0:0".to_owned()),
            sandbox_image: Some(image.to_owned()),
            init_image: Some(image.to_owned()),
            image_pull_policy: Some("Never".to_owned()),
            running_max: Some(WAVE.to_string()),
            starting_max: Some(WAVE.to_string()),
            warm: Some(warm.to_string()),
            ..Settings::default()
        };
        let config = Config::from_settings(settings, state.clone(), None).expect("plain settings");
        let up = up::start(&config).await.expect("mosaic up starts");
        let client = kube::Client::try_default().await.expect("a cluster");
        Self { up, state, remote: remote.to_owned(), image: image.to_owned(), pods: Api::namespaced(client, "default"), warm }
    }

    /// Waits until as many pods are prepared as there shall be, and all is quiet.
    async fn settled(&self) {
        let started = Instant::now();
        let prepared = ListParams::default().labels("mosaicstack.dev/role=prepared");
        let runs =
            |pod: &Pod| pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).any(|c| c.started == Some(true));
        while self.pods.list(&prepared).await.expect("a list").iter().filter(|pod| runs(pod)).count() < self.warm {
            assert!(started.elapsed() < PATIENCE, "no pods are prepared");
            tokio::time::sleep(SLOW_LOOK).await;
        }
        if self.warm > 0 {
            tokio::time::sleep(PREPARED_PAUSE).await;
        }
        quiet(&self.up).await;
    }

    async fn starts(&self, name: &str, goal: f64, count: usize, turns: usize, part: &mut Part) {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for turn in 0..=turns {
            // The first one warms up, and says what is to be prepared.
            if turn > 0 {
                self.settled().await;
            }
            let mark = format!("ours-{}-{count}-{turn}-end", self.warm);
            let (keys, took) = self.start(&mark, count).await;
            self.kill(&keys).await;
            self.settled().await;
            let raw_mark = format!("raw-{}-{count}-{turn}-end", self.warm);
            let (names, raw_took) = self.start_raw(&raw_mark, count).await;
            self.delete_raw(&names).await;
            until("the raw processes go", || processes(&raw_mark) == 0).await;
            if turn > 0 {
                ours.push(took);
                floor.push(raw_took);
            }
        }
        part.figures.push(Figure::of_seconds(name, Some(goal), &ours, &floor));
    }

    async fn kills(&self, part: &mut Part) {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            let (mark, raw_mark) = (format!("killed-{turn}-end"), format!("deleted-{turn}-end"));
            let (keys, _) = self.start(&mark, 1).await;
            let (started, state, name) = (Instant::now(), self.state.clone(), keys[0].name.clone());
            let killing = tokio::task::spawn_blocking(move || {
                let request = KillRequest { agents: vec![name], who: "bench".to_owned(), ..KillRequest::default() };
                admin::ask(&state, &request).expect("a lane")
            });
            until("the process goes", || processes(&mark) == 0).await;
            ours.push(started.elapsed().as_secs_f64());
            assert!(killing.await.expect("receipts").all_dead(), "the kill was not verified");
            self.gone(&keys).await;
            let (names, _) = self.start_raw(&raw_mark, 1).await;
            let started = Instant::now();
            self.delete_raw(&names).await;
            until("the raw process goes", || processes(&raw_mark) == 0).await;
            floor.push(started.elapsed().as_secs_f64());
        }
        part.figures.push(Figure::of_seconds("process gone after a kill / raw pod deleted without grace", Some(0.5), &ours, &floor));
    }

    /// Declares agents; how long until the commands of all of them ran.
    async fn start(&self, mark: &str, count: usize) -> (Vec<Key>, f64) {
        let started = Instant::now();
        let records = (0..count).map(|number| {
            let object = json!({
                "kind": "Agent",
                "metadata": {
                    "name": format!("bench-{}", uuid::Uuid::new_v4().simple()),
                    "namespace": "default",
                    "finalizers": [mosaic::api::names::FINALIZER],
                },
                "spec": {
                    "taskId": format!("{mark}-{number}"),
                    "agentType": "worker",
                    "context": {"repository": self.remote, "branch": "main"},
                    "runtime": {"command": {"args": ["sh", "-c", script(mark, number)]}},
                    "sandbox": {"cpu": "500m", "memory": "256Mi"},
                },
            });
            let record: Record = serde_json::from_value(object).expect("a record");
            async move { self.up.store.create(record).await.expect("a record").key() }
        });
        let keys = futures::future::join_all(records).await;
        until("the commands", || (0..count).all(|number| processes(&format!("{mark}-{number}-run")) > 0)).await;
        (keys, started.elapsed().as_secs_f64())
    }

    async fn kill(&self, keys: &[Key]) {
        let (state, agents) = (self.state.clone(), keys.iter().map(|key| key.name.clone()).collect());
        let request = KillRequest { agents, who: "bench".to_owned(), ..KillRequest::default() };
        tokio::task::spawn_blocking(move || admin::ask(&state, &request).expect("a lane")).await.expect("receipts");
        self.gone(keys).await;
    }

    /// Deletes the records, and waits until they have gone with everything that they owned.
    async fn gone(&self, keys: &[Key]) {
        let started = Instant::now();
        for key in keys {
            let _ = self.up.store.delete(key, None, &[]).await;
            while self.up.store.get(key).await.expect("an answer").is_some() {
                assert!(started.elapsed() < PATIENCE, "{key:?} does not go");
                tokio::time::sleep(SLOW_LOOK).await;
            }
        }
    }

    /// Makes pods by hand; how long until the commands of all of them ran.
    async fn start_raw(&self, mark: &str, count: usize) -> (Vec<String>, f64) {
        let started = Instant::now();
        let made = (0..count).map(|number| async move {
            let name = format!("{mark}-{number}");
            let object = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": "run",
                        "image": self.image,
                        "imagePullPolicy": "Never",
                        "command": ["sh", "-c", script(mark, number)],
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "25m", "memory": "128Mi"}},
                    }],
                },
            });
            let pod: Pod = serde_json::from_value(object).expect("a pod");
            self.pods.create(&PostParams::default(), &pod).await.expect("a raw pod");
            name
        });
        let names = futures::future::join_all(made).await;
        until("the raw commands", || (0..count).all(|number| processes(&format!("{mark}-{number}-run")) > 0)).await;
        (names, started.elapsed().as_secs_f64())
    }

    async fn delete_raw(&self, names: &[String]) {
        for name in names {
            self.pods.delete(name, &DeleteParams::default().grace_period(0)).await.expect("it goes");
        }
    }
}

/// A command that ignores every signal that can be ignored, and that is found in the process table.
fn script(mark: &str, number: usize) -> String {
    format!("trap '' TERM INT HUP; while :; do sleep 1; : {mark}-{number}-run; done")
}

/// Processes of this machine whose command line holds a text, but the dead that wait to be reaped.
fn processes(text: &str) -> usize {
    let holds = |entry: &std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(text)
    };
    std::fs::read_dir("/proc").expect("a process table").flatten().filter(holds).count()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(LOOK).await;
    }
}
