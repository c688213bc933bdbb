//! Ten thousand records and a hundred changes a second: nothing lost, nothing doubled, memory flat. Shorter and smaller unless
//! `MOSAIC_TEST_SOAK_SECONDS` and `MOSAIC_TEST_SOAK_RECORDS` say otherwise.

use super::server::{DURABLE, Server};
use super::{next, open};
use crate::contracts::store::{agent, event, version};
use futures::StreamExt;
use mosaic::store::{Key, Kind, Record, Store, WatchEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Changes per second.
const CHANGES_PER_SECOND: u64 = 100;

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Follows all changes and compares each with the one before: every version once, each record's attempts without a gap.
async fn follow(store: Arc<impl Store>, from: u64, mut known: BTreeMap<Key, u64>, seen: Arc<AtomicU64>, until: Arc<AtomicU64>) {
    let mut watch = store.watch(Kind::Agent, from).await.unwrap();
    let mut last = from;
    while last < until.load(Ordering::SeqCst) {
        let WatchEvent::Applied(record) = event(&mut watch).await.unwrap() else { panic!("nothing is deleted") };
        assert_eq!(version(&record), last + 1, "every change is told, once");
        last += 1;
        let attempt = record.status["attempt"].as_u64().unwrap();
        let before = known.insert(record.key(), attempt).expect("a known record");
        assert_eq!(attempt, before + 1, "{:?}", record.key());
        seen.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_and_changes_lose_and_double_nothing() {
    let Some(server) = Server::start("valkey::soak::many_records_and_changes_lose_and_double_nothing", &DURABLE) else { return };
    let (records_max, seconds) = (number("MOSAIC_TEST_SOAK_RECORDS", 1000), number("MOSAIC_TEST_SOAK_SECONDS", 8));
    let store = Arc::new(open(&server.url()).await.unwrap());
    let began = Instant::now();
    let creating = (0..records_max).map(|n| {
        let mut given = agent(&format!("a{n:05}"));
        given.spec["context"]["instructions"] = serde_json::json!("x".repeat(1500));
        store.create(given)
    });
    let mut records: Vec<Record> = futures::stream::iter(creating).buffered(64).map(Result::unwrap).collect().await;
    println!("{records_max} records of about 2 KB created in {:.1} s", began.elapsed().as_secs_f64());
    let first = records.iter().map(version).max().unwrap();
    let known: BTreeMap<Key, u64> = records.iter().map(|record| (record.key(), 0)).collect();
    let (seen, until) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
    let follower = tokio::spawn(follow(store.clone(), first, known, seen.clone(), until.clone()));

    let (began, mut written, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    let mut memory = Vec::new();
    while began.elapsed() < Duration::from_secs(seconds) {
        let due = began.elapsed().as_millis() as u64 * CHANGES_PER_SECOND / 1000;
        // Each of the changes that are due is of another record: they are written at once.
        let at: std::collections::BTreeSet<usize> = (written..due).map(|n| (n as usize * 7919) % records.len()).collect();
        let changed = records.iter_mut().enumerate().filter(|(n, _)| at.contains(n)).map(|(_, record)| async {
            let asked = Instant::now();
            *record = store.replace_status(next(record.clone())).await.unwrap();
            asked.elapsed()
        });
        let took = futures::future::join_all(changed).await;
        written += took.len() as u64;
        slowest = took.into_iter().fold(slowest, Duration::max);
        if memory.len() as u64 <= began.elapsed().as_secs() * 10 / seconds {
            drop(store.list(Kind::Agent).await.unwrap());
            memory.push((resident_bytes(std::process::id()), server.resident_bytes()));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until.store(first + written, Ordering::SeqCst);
    // The follower may be waiting for a change beyond the last: one more than is counted wakes it.
    records[0] = store.replace_status(next(records[0].clone())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), follower).await.expect("all is told").unwrap();
    let (there, last) = store.list(Kind::Agent).await.unwrap();
    assert_eq!(last, first + written + 1);
    assert_eq!(there.len(), records.len());
    records.sort_by_key(Record::key);
    assert!(there == records, "what is there is what was acknowledged");
    println!("{written} changes in {seconds} s, slowest {slowest:?}; {} told, each once", seen.load(Ordering::SeqCst));
    let shown: Vec<String> = memory.iter().map(|(own, server)| format!("{:.0}/{:.0}", mebibytes(*own), mebibytes(*server))).collect();
    println!("resident MiB of this process/the server, over time: {}", shown.join(" "));
    let half = &memory[memory.len() / 2..];
    let growth = |of: fn(&(u64, u64)) -> u64| mebibytes(of(half.last().unwrap())) - mebibytes(of(half.first().unwrap()));
    assert!(growth(|m| m.0) < 24.0 && growth(|m| m.1) < 24.0, "memory grows: {}", shown.join(" "));
}
