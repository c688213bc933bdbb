//! Leading with a lease that runs out: killed, stopped and slow leaders, and epochs that never go back.

use super::open;
use super::proxy::{Mode, Proxy};
use super::server::{DURABLE, Server};
use crate::contracts::lease::leads;
use futures::FutureExt;
use mosaic::api::names::Epoch;
use mosaic::controller::leadership::Leadership;
use mosaic::store::lease::{Acquired, Lease};
use mosaic::store::valkey::{ValkeyLease, ValkeyStore};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Set in a child process: the server to lead on.
const CHILD_URL: &str = "MOSAIC_TEST_LEASE_URL";
/// Within which a leader that is gone is replaced.
const REPLACED_WITHIN: Duration = Duration::from_secs(6);

fn candidate(store: &ValkeyStore) -> Arc<dyn Lease> {
    Arc::new(ValkeyLease::new(store, None))
}

/// A candidate that asks and holds on in the background as long as this lives.
struct Held {
    leadership: Arc<Leadership>,
    task: tokio::task::JoinHandle<()>,
}

impl std::ops::Deref for Held {
    type Target = Leadership;
    fn deref(&self) -> &Leadership {
        &self.leadership
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hold(lease: Arc<dyn Lease>) -> Held {
    let leadership = Arc::new(Leadership::new(lease, Epoch(0)));
    let held = leadership.clone();
    Held { leadership, task: tokio::spawn(async move { held.run(|| async {}.boxed()).await }) }
}

async fn until_it_leads(leadership: &Leadership) -> Epoch {
    let started = Instant::now();
    loop {
        if let Some(epoch) = leadership.epoch() {
            return epoch;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{}", leadership.describe());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "played by a child process of `a_killed_leader_is_replaced_within_six_seconds` and of `a_stopped_leader_finds_itself_replaced`"]
async fn child_leads_and_says_so() {
    let Ok(url) = std::env::var(CHILD_URL) else { return };
    let leadership = hold(candidate(&open(&url).await.unwrap()));
    loop {
        println!("\nepoch {}", leadership.epoch().map_or(0, |epoch| epoch.0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A leader in a process of its own, and the epochs that it believes to have, as it says them.
fn start_leader(url: &str) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["valkey::lease::child_leads_and_says_so", "--exact", "--ignored", "--nocapture"]).env(CHILD_URL, url);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn next_epoch(lines: &mut std::io::Lines<BufReader<ChildStdout>>) -> u64 {
    loop {
        let line = lines.next().expect("the child goes on").unwrap();
        if let Some(epoch) = line.strip_prefix("epoch ") {
            return epoch.parse().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_six_seconds() {
    let Some(server) = Server::start("valkey::lease::a_killed_leader_is_replaced_within_six_seconds", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let mut longest = Duration::ZERO;
    for round in 1..=3 {
        let (mut child, mut lines) = start_leader(&server.url());
        while next_epoch(&mut lines) == 0 {}
        let next = hold(candidate(&store));
        tokio::time::sleep(Duration::from_millis(300 * round)).await;
        assert_eq!(next.epoch(), None, "one leads");
        child.kill().unwrap();
        let killed = Instant::now();
        until_it_leads(&next).await;
        longest = longest.max(killed.elapsed());
        child.wait().unwrap();
        next.task.abort();
        next.resign().await;
    }
    println!("a killed leader was replaced after {longest:?} at the longest");
    assert!(longest < REPLACED_WITHIN, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_finds_itself_replaced() {
    let Some(server) = Server::start("valkey::lease::a_stopped_leader_finds_itself_replaced", &DURABLE) else { return };
    let (mut child, mut lines) = start_leader(&server.url());
    let first = loop {
        match next_epoch(&mut lines) {
            0 => {}
            epoch => break epoch,
        }
    };
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let store = open(&server.url()).await.unwrap();
    let next = hold(candidate(&store));
    let second = until_it_leads(&next).await;
    assert!(second.0 > first);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    // What was said before the stop may still be in the pipe; the stop itself may have come between the question and the word.
    let mut said_after = Vec::new();
    let began = Instant::now();
    while said_after.last() != Some(&0) {
        said_after.push(next_epoch(&mut lines));
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    for _ in 0..50 {
        assert_eq!(next_epoch(&mut lines), 0, "it believes no more that it leads");
    }
    assert_eq!(next.epoch(), Some(second));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_end_hands_over_at_once() {
    let Some(server) = Server::start("valkey::lease::a_clean_end_hands_over_at_once", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let first = Leadership::new(candidate(&store), Epoch(0));
    assert!(matches!(first.ask().await.unwrap(), Acquired::Leads(_)));
    let next = hold(candidate(&store));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(next.epoch(), None);
    let ended = Instant::now();
    first.resign().await;
    assert_eq!(first.epoch(), None);
    until_it_leads(&next).await;
    assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", ended.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_its_server_stops_before_another_begins() {
    let test = "valkey::lease::a_leader_cut_off_from_its_server_stops_before_another_begins";
    let Some(server) = Server::start(test, &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let first = hold(candidate(&open(&proxy.url()).await.unwrap()));
    let epoch = until_it_leads(&first).await;
    let next = hold(candidate(&open(&server.url()).await.unwrap()));
    proxy.set(Mode::Swallow);
    let started = Instant::now();
    while next.epoch().is_none() {
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(first.epoch().is_none_or(|held| held == epoch));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(first.epoch(), None, "two never lead at once");
    proxy.set(Mode::Pass);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(first.epoch(), None);
    assert!(next.epoch() > Some(epoch));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_or_a_full_memory_deposes_nobody() {
    let Some(server) = Server::start("valkey::lease::a_slow_server_or_a_full_memory_deposes_nobody", &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let leader = hold(candidate(&open(&proxy.url()).await.unwrap()));
    let epoch = until_it_leads(&leader).await;
    server.ask(&["CONFIG", "SET", "maxmemory", "1mb"]);
    proxy.set(Mode::Slow);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        assert_eq!(leader.epoch(), Some(epoch), "after {:?}: {}", started.elapsed(), leader.describe());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_emptied_server_brings_no_epoch_back() {
    let Some(server) = Server::start("valkey::lease::an_emptied_server_brings_no_epoch_back", &DURABLE) else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = open(&server.url()).await.unwrap();
    let lease: Arc<dyn Lease> = Arc::new(ValkeyLease::new(&store, Some(folder.path())));
    let first = leads(&lease, 40).await;
    server.ask(&["FLUSHALL"]);
    assert!(lease.renew(first).await.is_err(), "its lease is gone with everything else");
    let again = loop {
        // The first question after it learns that the store is another one.
        if let Ok(Acquired::Leads(epoch)) = lease.acquire(Epoch(0)).await {
            break epoch;
        }
    };
    assert!(again > first, "the state folder remembers: {again:?} after {first:?}");
    let elsewhere = candidate(&store);
    lease.release(again).await.unwrap();
    assert!(leads(&elsewhere, 0).await > again, "and so does the store");
}
