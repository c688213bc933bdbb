//! The embedded keeper: the contract, and what only a file can do.

use crate::contracts::store::{Fixture, agent, event, version};
use mosaic::api::names::Epoch;
use mosaic::store::embedded::{EmbeddedOptions, EmbeddedStore};
use mosaic::store::{Kind, Store, StoreError};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Set in a child process that this test binary starts from itself: the file to write to.
const CHILD_FILE: &str = "MOSAIC_TEST_STORE_FILE";

mod contract {
    crate::contracts::store::every_promise!(super::fresh);
}

async fn fresh() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let options =
        EmbeddedOptions { changes_max: 100, history_max: 5, bookmark_interval: Duration::from_millis(100), ..EmbeddedOptions::default() };
    let (changes_max, history_max) = (Some(options.changes_max), 5);
    let store = EmbeddedStore::open(&folder.path().join("mosaic.redb"), options).unwrap();
    Fixture { store: Arc::new(store), changes_max, history_max, _keep: Box::new(folder) }
}

fn open(path: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(path, EmbeddedOptions::default())
}

fn unusable(path: &Path) -> String {
    let before = std::fs::read(path).unwrap();
    let text = match open(path) {
        Err(StoreError::Unusable(text)) => text,
        other => panic!("expected Unusable, got {other:?}"),
    };
    assert_eq!(std::fs::read(path).unwrap(), before, "the file was not touched");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    text
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    let store = open(&path).unwrap();
    let created = store.create(agent("one")).await.unwrap();
    store.archive(created.clone()).await.unwrap();
    store.raise_epoch(Epoch(7)).await.unwrap();
    store.raise_epoch(Epoch(3)).await.unwrap();
    let installation = store.installation().unwrap();
    drop(store);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    let store = open(&path).unwrap();
    assert_eq!(store.list(Kind::Agent).await.unwrap(), (vec![created.clone()], version(&created)));
    assert_eq!(store.history(None, 10).await.unwrap(), [created]);
    assert_eq!(store.epoch().unwrap(), Epoch(7));
    assert_eq!(store.installation().unwrap(), installation);
}

#[tokio::test]
async fn a_watch_resumes_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    let store = open(&path).unwrap();
    let first = store.create(agent("one")).await.unwrap();
    let second = store.create(agent("two")).await.unwrap();
    let mut old_watch = store.watch(Kind::Agent, version(&second)).await.unwrap();
    drop(store);
    assert!(event(&mut old_watch).await.is_err(), "a watch of a closed store ends");
    let store = open(&path).unwrap();
    let mut watch = store.watch(Kind::Agent, version(&first)).await.unwrap();
    assert_eq!(event(&mut watch).await.unwrap(), mosaic::store::WatchEvent::Applied(second));
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    let _first = open(&path).unwrap();
    let text = match open(&path) {
        Err(StoreError::Unusable(text)) => text,
        other => panic!("expected Unusable, got {other:?}"),
    };
    assert!(text.contains(&format!("is used by another mosaic (pid {})", std::process::id())), "{text}");
}

#[test]
fn what_is_no_store_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    std::fs::write(&path, "my diary\n".repeat(1000)).unwrap();
    assert!(unusable(&path).contains("is not a store of mosaic"));
    std::fs::write(&path, "").unwrap();
    assert!(unusable(&path).contains("is empty"));
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<u64, u64>::new("theirs")).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    match open(&path) {
        Err(StoreError::Unusable(text)) => assert!(text.contains("another program"), "{text}"),
        other => panic!("expected Unusable, got {other:?}"),
    }
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    drop(open(&path).unwrap());
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    match open(&path) {
        Err(StoreError::Unusable(text)) => assert!(text.contains("another version of mosaic (store format 99"), "{text}"),
        other => panic!("expected Unusable, got {other:?}"),
    }
}

/// Every damaged file is reported, or (when the bytes were not in use) everything is still there; never a panic, never a wrong record.
#[tokio::test]
async fn a_damaged_file_is_reported_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    let store = open(&path).unwrap();
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(store.create(agent(&format!("a{n:02}"))).await.unwrap());
    }
    drop(store);
    let healthy = std::fs::read(&path).unwrap();
    let mut reported = 0;
    for step in 0..40 {
        let mut damaged = healthy.clone();
        let at = damaged.len() * step / 40 + 13;
        damaged[at..].iter_mut().take(64).for_each(|b| *b ^= 0xff);
        std::fs::write(&path, &damaged).unwrap();
        match open(&path) {
            Err(StoreError::Unusable(text)) => {
                assert!(text.contains("backup"), "{text}");
                reported += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
            Ok(store) => assert_eq!(store.list(Kind::Agent).await.unwrap().0, all, "byte {at}"),
        }
    }
    assert!(reported > 0);
    std::fs::write(&path, &healthy[..healthy.len() / 2]).unwrap();
    assert!(matches!(open(&path), Err(StoreError::Unusable(_))), "cut in half");
}

/// Starts this test binary again, for one test that plays a child.
fn start_child(test: &str, file: &Path) -> Child {
    let name = format!("contracts::store_embedded::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name.as_str(), "--exact", "--ignored", "--nocapture", "--test-threads=1"]).env(CHILD_FILE, file);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

#[tokio::test]
#[ignore = "played by a child process of `acknowledged_writes_survive_kill_9`"]
async fn child_writes_until_killed() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let store = Arc::new(open(Path::new(&path)).unwrap());
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0u64.. {
                    let created = store.create(agent(&format!("t{task}-{n}"))).await.unwrap();
                    let line = format!("ack {} {}\n", created.metadata.name.as_deref().unwrap(), version(&created));
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mosaic.redb");
    for round in 1..=3 {
        let mut child = start_child("child_writes_until_killed", &path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        while acknowledged.len() < 100 * round {
            let line = lines.next().expect("the child writes on").unwrap();
            acknowledged.extend(acknowledgement(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| acknowledgement(&line)));
        let store = open(&path).unwrap();
        let (records, last) = store.list(Kind::Agent).await.unwrap();
        for (name, acknowledged_version) in &acknowledged {
            let found = records.iter().find(|r| r.metadata.name.as_ref() == Some(name));
            assert_eq!(found.map(version), Some(*acknowledged_version), "{name} was acknowledged");
            assert!(*acknowledged_version <= last);
        }
        drop(store);
        std::fs::remove_file(&path).unwrap();
    }
}

fn acknowledgement(line: &str) -> Option<(String, u64)> {
    let (_, rest) = line.split_once("ack ")?;
    let (name, version) = rest.split_once(' ')?;
    Some((name.to_owned(), version.parse().ok()?))
}

/// The kernel lets files of this process grow to so many bytes; `None`: without limit.
fn limit_file_size(bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

#[tokio::test]
#[ignore = "played by a child process of `a_full_disk_is_reported_and_survived`"]
async fn child_meets_a_full_disk() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    // SAFETY: ignoring a signal touches no memory; without it the kernel ends the process instead of failing the write.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let store = open(Path::new(&path)).unwrap();
    let mut watch = store.watch(Kind::Agent, 0).await.unwrap();
    let mut kept = vec![store.create(agent("before")).await.unwrap()];
    for round in 0..3 {
        limit_file_size(Some(std::fs::metadata(&path).unwrap().len()));
        let error = loop {
            let mut large = agent(&format!("r{round}-n{}", kept.len()));
            large.spec["context"]["instructions"] = json!("x".repeat(60_000));
            match store.create(large).await {
                Ok(record) => kept.push(record),
                Err(error) => break error,
            }
            assert!(kept.len() < 10_000, "the disk must become full");
        };
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        let (listed, _) = store.list(Kind::Agent).await.expect("reading works on a full disk");
        assert_eq!(listed.len(), kept.len(), "what was refused is not there");
        limit_file_size(None);
        kept.push(store.create(agent(&format!("after-{round}"))).await.expect("writing works once there is space"));
    }
    for record in &kept {
        assert_eq!(store.get(&record.key()).await.unwrap().as_ref(), Some(record));
        assert_eq!(event(&mut watch).await.unwrap(), mosaic::store::WatchEvent::Applied(record.clone()));
    }
    drop(store);
    assert_eq!(open(Path::new(&path)).unwrap().list(Kind::Agent).await.unwrap().0.len(), kept.len());
    println!("survived");
}

#[test]
fn a_full_disk_is_reported_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let child = start_child("child_meets_a_full_disk", &folder.path().join("mosaic.redb"));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("survived"), "{text}");
}
