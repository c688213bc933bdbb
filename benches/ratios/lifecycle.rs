//! Lifecycle: how many passes one real agent takes, from its declaration until everything of it was cleaned up.
//!
//! Everything is real: `up::start` as `mosaic up` calls it, a git remote, process sandboxes, two gates that pass, a verified push. The
//! agents run one after another, so that every pass in between is that agent's; passes are counted until none was made for a while after
//! the last fact was stored. The other side of the ratio is 1: the figure is a count. Beside it stands how many effects there were, from
//! the audit log: each ends at a time of its own, and something must look at what it brought.

use crate::table::{Figure, Part, duration, median};
use crate::workspace::git;
use mosaic::api::condition;
use mosaic::config::{Config, Settings};
use mosaic::store::{Key, Record, Store};
use mosaic::up::{self, Running};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Agents, one after another; the first one warms up.
const AGENTS: usize = 8;
/// No pass for so long after the end: there will be none.
const QUIET: Duration = Duration::from_millis(500);
/// Longest wait for one agent.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the record is read.
const LOOK: Duration = Duration::from_millis(5);

/// Measures the part.
pub fn measure() -> Part {
    let skipped = |why: &str| Part { figures: Vec::new(), foot: vec![format!("lifecycle: not measured, {why}")] };
    if !rustix::process::geteuid().is_root() {
        return skipped("the process sandbox needs root");
    }
    if std::env::var_os("MOSAIC_INIT").is_none() {
        return skipped("MOSAIC_INIT names no mosaic-init; run it by `make bench`");
    }
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(count(folder.path()))
}

async fn count(folder: &Path) -> Part {
    let remote = sample_remote(folder);
    let settings = Settings {
        listen: Some("127.0.0.1:0".to_owned()),
        local_repos: vec![folder.to_str().expect("a plain path").to_owned()],
        init: std::env::var("MOSAIC_INIT").ok(),
        ..Settings::default()
    };
    let config = Config::from_settings(settings, folder.join("state"), None).expect("plain settings");
    let up = up::start(&config).await.expect("mosaic up starts");
    let (mut passes, mut seconds, mut uid) = (Vec::new(), Vec::new(), String::new());
    for number in 0..AGENTS {
        quiet(&up).await;
        let (before, started) = (up.progress.passes(), Instant::now());
        let declared = up.store.create(agent(number, &remote)).await.expect("a record");
        cleaned_up(&*up.store, &declared.key()).await;
        let took = started.elapsed().as_secs_f64();
        quiet(&up).await;
        if number > 0 {
            passes.push((up.progress.passes() - before) as f64);
            seconds.push(took);
        }
        uid = declared.metadata.uid.unwrap_or_default();
    }
    up.shutdown().await;
    let effects = effects_of(&folder.join("state/audit"), &uid);
    let count: usize = effects.values().sum();
    let named: Vec<String> = effects.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let figures = vec![Figure {
        name: "passes per lifecycle (2 gates)".to_owned(),
        goal: Some(6.0),
        ours: format!("{:.0} passes", median(&passes)),
        floor: format!("{count} effects"),
        ratios: passes,
    }];
    let foot = vec![format!(
        "lifecycle: passes over one agent, declared -> pushed -> cleaned up, a count and no ratio; one agent took {}. Its effects: {}.",
        duration(median(&seconds)),
        named.join(", ")
    )];
    Part { figures, foot }
}

/// A remote with two gates that any machine can run.
pub fn sample_remote(folder: &Path) -> String {
    let (seed, remote) = (folder.join("seed"), folder.join("remote.git"));
    std::fs::create_dir_all(seed.join(".mosaic")).expect("a fresh folder");
    let gates = "[[gate]]\nname = \"tests\"\ncommand = \"sleep 0.6; test -s note.txt\"\n\n[[gate]]\nname = \"lint\"\ncommand = \"sleep 0.3; test -f README.md\"\n";
    std::fs::write(seed.join(".mosaic/gates.toml"), gates).expect("a fresh file");
    std::fs::write(seed.join("README.md"), "A sample.\n").expect("a fresh file");
    let (seed_text, remote_text) = (seed.to_str().expect("a plain path"), remote.to_str().expect("a plain path"));
    git(folder, &["init", "--quiet", "--bare", "--initial-branch=main", remote_text]);
    git(folder, &["init", "--quiet", "--initial-branch=main", seed_text]);
    git(&seed, &["add", "--all"]);
    git(&seed, &["commit", "--quiet", "--message=sample"]);
    git(&seed, &["push", "--quiet", remote_text, "main"]);
    remote_text.to_owned()
}

/// One agent that does something.
pub fn agent(number: usize, remote: &str) -> Record {
    let object = json!({
        "kind": "Agent",
        "metadata": {"name": format!("bench-{number}"), "namespace": "default"},
        "spec": {
            "taskId": format!("bench-{number}"),
            "agentType": "worker",
            "context": {"repository": remote, "branch": "main"},
            // Long enough that its start and its end are two things to see, as with any agent that does something.
            "runtime": {"command": {"args": ["sh", "-c", "sleep 0.3; echo done > note.txt"]}},
        },
    });
    serde_json::from_value(object).expect("a record")
}

async fn cleaned_up(store: &dyn Store, key: &Key) {
    let started = Instant::now();
    loop {
        let record = store.get(key).await.expect("an answer").expect("the agent");
        let status = record.agent().expect("it decodes").status.unwrap_or_default();
        if status.completed_at.is_some() && condition::is_true(&status.conditions, condition::CLEANED_UP) {
            return assert!(condition::is_true(&status.conditions, condition::PUSHED), "it was not delivered: {status:?}");
        }
        assert!(started.elapsed() < PATIENCE, "the agent does not end: {status:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until no pass was made for a while.
pub async fn quiet(up: &Running) {
    let (mut since, mut seen) = (Instant::now(), up.progress.passes());
    while since.elapsed() < QUIET {
        tokio::time::sleep(LOOK).await;
        let now = up.progress.passes();
        if now != seen {
            (since, seen) = (Instant::now(), now);
        }
    }
}

/// How often each effect was begun for an agent, from the audit log.
fn effects_of(audit: &Path, uid: &str) -> BTreeMap<String, usize> {
    let mut effects = BTreeMap::new();
    for entry in std::fs::read_dir(audit).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if line["kind"] == "intent" && line["uid"] == uid {
                *effects.entry(line["action"].as_str().unwrap_or("?").to_owned()).or_default() += 1;
            }
        }
    }
    effects
}
