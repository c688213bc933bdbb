//! Kubernetes: how many passes and API requests one real agent takes, from its declaration until everything of it was cleaned up.
//!
//! Everything is real: `up::start` with `--store kube` on the cluster that `KUBECONFIG` names, process sandboxes, two gates, a verified push; as
//! the part `lifecycle` does on the embedded store. Requests are counted by the API server itself (`apiserver_request_total`): all to agents and
//! the history but lists and watches, which do not grow with the number of lifecycles; events and the leader lease are left out. The bench looks
//! through one watch and so is not among them. The cluster must have no other user of agents meanwhile.

use crate::lifecycle::{agent, quiet, sample_remote};
use crate::table::{Figure, Part, duration, median};
use futures::StreamExt;
use mosaic::api::condition;
use mosaic::config::{Config, Settings};
use mosaic::store::{Key, Kind, Record, WatchEvent};
use mosaic::up::{self, Running};
use std::path::Path;
use std::time::{Duration, Instant};

/// Agents, one after another; the first one warms up.
const AGENTS: usize = 8;
/// Longest wait for one agent.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the part.
pub fn measure() -> Part {
    let skipped = |why: &str| Part { figures: Vec::new(), foot: vec![format!("kube: not measured, {why}")] };
    if std::env::var_os("KUBECONFIG").is_none() {
        return skipped("KUBECONFIG names no cluster");
    }
    if !rustix::process::geteuid().is_root() || std::env::var_os("MOSAIC_INIT").is_none() {
        return skipped("the process sandbox needs root and MOSAIC_INIT");
    }
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(count(folder.path()))
}

async fn count(folder: &Path) -> Part {
    let remote = sample_remote(folder);
    let settings = Settings {
        listen: Some("127.0.0.1:0".to_owned()),
        store: Some("kube".to_owned()),
        driver: Some("process".to_owned()),
        local_repos: vec![folder.to_str().expect("a plain path").to_owned()],
        init: std::env::var("MOSAIC_INIT").ok(),
        ..Settings::default()
    };
    let config = Config::from_settings(settings, folder.join("state"), None).expect("plain settings");
    let up = up::start(&config).await.expect("mosaic up starts");
    let (mut passes, mut requests, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..AGENTS {
        quiet(&up).await;
        let (before, asked) = (up.progress.passes(), requests_so_far().await);
        let (declared, took) = one(&up, number, &remote).await;
        quiet(&up).await;
        // Less the one that declared it.
        let asked = requests_so_far().await - asked - 1.0;
        if number > 0 {
            passes.push((up.progress.passes() - before) as f64);
            requests.push(asked);
            seconds.push(took);
        }
        up.store.delete(&declared, None, &[]).await.expect("it goes");
    }
    quiet(&up).await;
    up.shutdown().await;
    let figure = |name: &str, goal, unit: &str, counts: Vec<f64>| Figure {
        name: name.to_owned(),
        goal: Some(goal),
        ours: format!("{:.0} {unit}", median(&counts)),
        floor: "1".to_owned(),
        ratios: counts,
    };
    let figures = vec![
        figure("passes per lifecycle on Kubernetes (2 gates)", 6.0, "passes", passes),
        figure("API requests per lifecycle, without events", 14.0, "requests", requests),
    ];
    let took = duration(median(&seconds));
    let foot = format!(
        "kube: one agent, declared -> pushed -> cleaned up, counts and no ratios; requests by the API server's own count; one agent took {took}."
    );
    Part { figures, foot: vec![foot] }
}

/// Declares one agent, as the HTTP API does, and waits until it was cleaned up.
async fn one(up: &Running, number: usize, remote: &str) -> (Key, f64) {
    let (_, from) = up.store.list(Kind::Agent).await.expect("a list");
    let mut watch = up.store.watch(Kind::Agent, from).await.expect("a watch");
    let mut record: Record = agent(number, remote);
    record.metadata.name = Some(format!("bench-{}", uuid::Uuid::new_v4().simple()));
    record.metadata.finalizers = Some(vec![mosaic::api::names::FINALIZER.to_owned()]);
    let started = Instant::now();
    let key = up.store.create(record).await.expect("a record").key();
    loop {
        let event =
            tokio::time::timeout(PATIENCE, watch.next()).await.expect("the agent ends").expect("a watch goes on").expect("an event");
        let WatchEvent::Applied(record) = event else { continue };
        let status = record.agent().expect("it decodes").status.unwrap_or_default();
        if record.key() == key && condition::is_true(&status.conditions, condition::CLEANED_UP) {
            assert!(condition::is_true(&status.conditions, condition::PUSHED), "it was not delivered: {status:?}");
            return (key, started.elapsed().as_secs_f64());
        }
    }
}

/// Requests to agents and the history since the API server began, but lists and watches.
async fn requests_so_far() -> f64 {
    let client = kube::Client::try_default().await.expect("a cluster");
    let request = hyper::Request::get("/metrics").body(Vec::new()).expect("a plain request");
    let text = client.request_text(request).await.expect("the API server's metrics");
    let counts = |line: &&str| {
        let is_ours = line.contains("resource=\"agents\"") || line.contains("resource=\"configmaps\"") && !line.contains("verb=\"GET\"");
        line.starts_with("apiserver_request_total{") && is_ours && !line.contains("verb=\"LIST\"") && !line.contains("verb=\"WATCH\"")
    };
    text.lines().filter(counts).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
