//! Leading with a Kubernetes lease: killed, stopped and cut-off leaders, clocks that differ, and epochs that never go back.

use super::cluster::{Cluster, cluster};
use crate::contracts::lease::leads;
use crate::leaders::{self, Leader, lead_and_say_so};
use crate::valkey::proxy::{Mode, Proxy};
use mosaic::api::names::Epoch;
use mosaic::store::StoreError;
use mosaic::store::kube::{KubeLease, KubeOptions, KubeStore};
use mosaic::store::lease::{Acquired, Lease, LeaseError, PRESENCE_TIME};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Set in a child process that shall lead.
const CHILD: &str = "MOSAIC_TEST_KUBE_LEASE_CHILD";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases/mosaic";

fn candidate(store: &KubeStore) -> Arc<dyn Lease> {
    Arc::new(KubeLease::new(store, &uuid::Uuid::new_v4().to_string(), None))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "played by a child process of `a_killed_leader_is_replaced_within_six_seconds` and of `a_stopped_leader_finds_itself_replaced`"]
async fn child_leads_and_says_so() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let store = KubeStore::new(mosaic::store::kube::client().await.unwrap(), KubeOptions::default());
    lead_and_say_so(candidate(&store)).await
}

fn start_leader() -> Leader {
    Leader::start("kube::lease::child_leads_and_says_so", CHILD, "1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_six_seconds() {
    let Some(cluster) = cluster("kube::lease::a_killed_leader_is_replaced_within_six_seconds").await else { return };
    let store = cluster.store();
    leaders::killed_leader_is_replaced(5, start_leader, || candidate(&store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_finds_itself_replaced() {
    let Some(cluster) = cluster("kube::lease::a_stopped_leader_finds_itself_replaced").await else { return };
    leaders::stopped_leader_finds_itself_replaced(start_leader(), candidate(&cluster.store())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_end_hands_over_at_once() {
    let Some(cluster) = cluster("kube::lease::a_clean_end_hands_over_at_once").await else { return };
    let store = cluster.store();
    leaders::clean_end_hands_over(candidate(&store), candidate(&store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_by_is_seen_to_be_there_for_as_long_as_it_says_so() {
    let Some(cluster) = cluster("kube::lease::who_stands_by_is_seen_to_be_there_for_as_long_as_it_says_so").await else { return };
    let store = cluster.store();
    let (leader, other) = ("00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b");
    let [a, b] = [leader, other].map(|id| KubeLease::new(&store, id, None));
    let Acquired::Leads(epoch) = a.acquire(Epoch(0)).await.unwrap() else { panic!("nobody else leads") };
    assert!(!a.is_present(other), "it has said nothing");
    b.say_present().await.unwrap();
    let said = Instant::now();
    assert_eq!(a.renew(epoch).await.unwrap(), None, "it wishes for nothing");
    while a.is_present(other) {
        a.renew(epoch).await.unwrap();
        assert!(said.elapsed() < PRESENCE_TIME + Duration::from_secs(3), "its word lapses");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(said.elapsed() + Duration::from_secs(1) > PRESENCE_TIME, "{:?}", said.elapsed());
    a.renew(epoch).await.unwrap();
    let annotations = || async { cluster.lease().await.expect("it is held")["metadata"]["annotations"].to_string() };
    assert!(!annotations().await.contains(other), "and is taken away");

    // One that leads next has seen it while it stood by.
    let c = KubeLease::new(&store, "00000000-0000-4000-8000-00000000000c", None);
    b.say_present().await.unwrap();
    assert!(matches!(c.acquire(Epoch(0)).await.unwrap(), Acquired::Held { .. }));
    a.release(epoch).await.unwrap();
    let Acquired::Leads(_) = c.acquire(Epoch(0)).await.unwrap() else { panic!("it is free") };
    assert!(c.is_present(other) && !c.is_present(leader));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_to_lead_gets_the_lease() {
    let Some(cluster) = cluster("kube::lease::who_has_to_lead_gets_the_lease").await else { return };
    let store = cluster.store();
    leaders::who_has_to_lead_gets_the_lease(|| candidate(&store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_the_api_server_stops_before_another_begins() {
    let test = "kube::lease::a_leader_cut_off_from_the_api_server_stops_before_another_begins";
    let Some(cluster) = cluster(test).await else { return };
    let (proxy, client) = behind_a_proxy().await;
    let first = candidate(&KubeStore::new(client, KubeOptions::default()));
    let next = candidate(&cluster.store());
    leaders::cut_off_leader_stops(first, next, || proxy.set(Mode::Swallow), || proxy.set(Mode::Pass)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_could_not_give_the_lease_back_does_not_take_it_from_who_wished_for_it() {
    let test = "kube::lease::who_could_not_give_the_lease_back_does_not_take_it_from_who_wished_for_it";
    let Some(cluster) = cluster(test).await else { return };
    let (proxy, client) = behind_a_proxy().await;
    let a = candidate(&KubeStore::new(client, KubeOptions::default()));
    let b = candidate(&cluster.store());
    let epoch = leads(&a, 0).await;
    b.wish().await.unwrap();
    assert!(a.renew(epoch).await.unwrap().is_some());
    proxy.set(Mode::Swallow);
    assert!(a.release(epoch).await.is_err());
    proxy.set(Mode::Pass);
    let began = Instant::now();
    let next = loop {
        b.wish().await.unwrap();
        assert!(matches!(a.acquire(Epoch(0)).await, Ok(Acquired::Held { .. }) | Err(_)), "it has said that it leads no longer");
        if let Acquired::Leads(next) = b.acquire(Epoch(0)).await.unwrap() {
            break next;
        }
        assert!(began.elapsed() < Duration::from_secs(8), "nobody renews it any more");
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    assert!(next > epoch);
}

/// A client that reaches the cluster through a proxy.
pub async fn behind_a_proxy() -> (Proxy, kube::Client) {
    let mut config = kube::Config::infer().await.unwrap();
    let proxy = Proxy::start(config.cluster_url.port_u16().unwrap_or(443)).await;
    config.cluster_url = format!("https://127.0.0.1:{}", proxy.port).parse().unwrap();
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(3));
    (proxy, kube::Client::try_from(config).unwrap())
}

/// Writes what a leader with another clock would have written.
async fn lease_with_times(cluster: &Cluster, holder: &str, time: &str) {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": "mosaic", "annotations": { "mosaicstack.dev/epoch": "7" } },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": 4, "acquireTime": time, "renewTime": time },
    });
    cluster.ask("POST", "/apis/coordination.k8s.io/v1/namespaces/default/leases", Some(&lease)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_of_others_do_not_matter() {
    let Some(cluster) = cluster("kube::lease::clocks_of_others_do_not_matter").await else { return };
    let store = cluster.store();
    for time in ["2001-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z"] {
        lease_with_times(&cluster, "somebody", time).await;
        let next = candidate(&store);
        let started = Instant::now();
        let epoch = loop {
            match next.acquire(Epoch(0)).await.unwrap() {
                Acquired::Leads(epoch) => break epoch,
                Acquired::Held { by } => assert_eq!(by, "somebody"),
            }
            // Somebody lives for two seconds, whatever the clock there says.
            if started.elapsed() < Duration::from_secs(2) {
                let renewed = json!({ "spec": { "leaseTransitions": started.elapsed().subsec_millis() } });
                cluster.ask("PATCH", LEASE, Some(&renewed)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let waited = started.elapsed();
        assert!(waited > Duration::from_millis(5900) && waited < Duration::from_secs(8), "{time}: {waited:?}");
        assert_eq!(epoch, Epoch(8), "above what the object says");
        cluster.ask("DELETE", LEASE, None).await.unwrap();
    }
}

#[tokio::test]
async fn who_annotates_the_lease_deposes_nobody_and_who_deletes_it_does() {
    let test = "kube::lease::who_annotates_the_lease_deposes_nobody_and_who_deletes_it_does";
    let Some(cluster) = cluster(test).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = cluster.store();
    let lease: Arc<dyn Lease> = Arc::new(KubeLease::new(&store, "one-state-folder", Some(folder.path())));
    let first = leads(&lease, 40).await;
    cluster.ask("PATCH", LEASE, Some(&json!({ "metadata": { "annotations": { "example.org/note": "hello" } } }))).await.unwrap();
    lease.renew(first).await.unwrap();
    let written = cluster.lease().await.unwrap();
    assert_eq!(written["metadata"]["annotations"]["example.org/note"], "hello", "what others wrote stays: {written}");
    cluster.ask("DELETE", LEASE, None).await.unwrap();
    assert!(matches!(lease.renew(first).await, Err(LeaseError::Lost { .. })));
    let again = leads(&lease, 0).await;
    assert!(again > first, "the state folder remembers: {again:?} after {first:?}");
    lease.release(again).await.unwrap();
    assert!(leads(&candidate(&store), 0).await > again, "and so does the object");
}

#[tokio::test]
async fn a_successor_on_the_same_state_folder_waits_for_nobody() {
    let Some(cluster) = cluster("kube::lease::a_successor_on_the_same_state_folder_waits_for_nobody").await else { return };
    let store = cluster.store();
    let killed: Arc<dyn Lease> = Arc::new(KubeLease::new(&store, "one-state-folder", None));
    let first = leads(&killed, 0).await;
    let other = candidate(&store);
    assert!(matches!(other.acquire(Epoch(0)).await.unwrap(), Acquired::Held { .. }));
    let successor: Arc<dyn Lease> = Arc::new(KubeLease::new(&store, "one-state-folder", None));
    assert!(leads(&successor, 0).await > first);
    assert!(matches!(killed.renew(first).await, Err(LeaseError::Lost { .. })), "with an epoch of its own");
}

#[tokio::test]
async fn an_epoch_that_is_no_number_is_not_guessed_at() {
    let Some(cluster) = cluster("kube::lease::an_epoch_that_is_no_number_is_not_guessed_at").await else { return };
    lease_with_times(&cluster, "", "2001-01-01T00:00:00.000000Z").await;
    cluster.ask("PATCH", LEASE, Some(&json!({ "metadata": { "annotations": { "mosaicstack.dev/epoch": "seven" } } }))).await.unwrap();
    let refused = candidate(&cluster.store()).acquire(Epoch(0)).await;
    assert!(matches!(&refused, Err(LeaseError::Unusable(why)) if why.contains("seven")), "{refused:?}");
}

#[tokio::test]
async fn two_installations_in_two_namespaces_do_not_share_agents() {
    let Some(cluster) = cluster("kube::lease::two_installations_in_two_namespaces_do_not_share_agents").await else { return };
    let elsewhere = |namespace: &str| {
        let namespace = namespace.to_owned();
        async move {
            let mut config = kube::Config::infer().await.unwrap();
            config.default_namespace = namespace;
            KubeStore::new(kube::Client::try_from(config).unwrap(), KubeOptions::default())
        }
    };
    let store = elsewhere("other").await;
    store.check().await.unwrap();
    leads(&candidate(&store), 0).await;
    let refused = cluster.store().check().await;
    assert!(matches!(&refused, Err(StoreError::Unusable(why)) if why.contains("namespace other")), "{refused:?}");
    // Also who looked before the other came.
    let late = candidate(&cluster.store()).acquire(Epoch(0)).await;
    assert!(matches!(&late, Err(LeaseError::Store(StoreError::Unusable(_)))), "{late:?}");
}
