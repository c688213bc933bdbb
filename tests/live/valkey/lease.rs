//! Leading with a lease that runs out: killed, stopped and slow leaders, and epochs that never go back.

use super::open;
use super::proxy::{Mode, Proxy};
use super::server::{DURABLE, Server};
use crate::contracts::lease::leads;
use crate::leaders::{self, Leader, hold, lead_and_say_so, until_it_leads};
use mosaic::api::names::Epoch;
use mosaic::store::lease::{Acquired, Lease};
use mosaic::store::valkey::{ValkeyLease, ValkeyStore};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Set in a child process: the server to lead on.
const CHILD_URL: &str = "MOSAIC_TEST_LEASE_URL";

fn candidate(store: &ValkeyStore) -> Arc<dyn Lease> {
    Arc::new(ValkeyLease::new(store, None))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "played by a child process of `a_killed_leader_is_replaced_within_six_seconds` and of `a_stopped_leader_finds_itself_replaced`"]
async fn child_leads_and_says_so() {
    let Ok(url) = std::env::var(CHILD_URL) else { return };
    lead_and_say_so(candidate(&open(&url).await.unwrap())).await
}

fn start_leader(url: &str) -> Leader {
    Leader::start("valkey::lease::child_leads_and_says_so", CHILD_URL, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_six_seconds() {
    let Some(server) = Server::start("valkey::lease::a_killed_leader_is_replaced_within_six_seconds", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    leaders::killed_leader_is_replaced(3, || start_leader(&server.url()), || candidate(&store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_finds_itself_replaced() {
    let Some(server) = Server::start("valkey::lease::a_stopped_leader_finds_itself_replaced", &DURABLE) else { return };
    let next = candidate(&open(&server.url()).await.unwrap());
    leaders::stopped_leader_finds_itself_replaced(start_leader(&server.url()), next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_end_hands_over_at_once() {
    let Some(server) = Server::start("valkey::lease::a_clean_end_hands_over_at_once", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    leaders::clean_end_hands_over(candidate(&store), candidate(&store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_to_lead_gets_the_lease() {
    let Some(server) = Server::start("valkey::lease::who_has_to_lead_gets_the_lease", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    leaders::who_has_to_lead_gets_the_lease(|| candidate(&store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_its_server_stops_before_another_begins() {
    let test = "valkey::lease::a_leader_cut_off_from_its_server_stops_before_another_begins";
    let Some(server) = Server::start(test, &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let first = candidate(&open(&proxy.url()).await.unwrap());
    let next = candidate(&open(&server.url()).await.unwrap());
    leaders::cut_off_leader_stops(first, next, || proxy.set(Mode::Swallow), || proxy.set(Mode::Pass)).await;
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
