//! Each way in which a server fails a call: bounded in time, with a reason that helps, and nothing written twice.

use super::proxy::{Mode, Proxy};
use super::server::{Answer, DURABLE, Server};
use super::{next, of_one_test, open, open_with, unavailable};
use crate::contracts::store::{agent, version};
use mosaic::store::valkey::{Durability, ValkeyOptions, ValkeyStore};
use mosaic::store::{Kind, Store, StoreError};
use std::time::{Duration, Instant};

/// Longest time that any failing call may take: the wait for an answer, for the server's disk, and slack for a busy machine.
const FAILING_CALL_MAX: Duration = Duration::from_secs(14);

/// A call that fails, and in time.
async fn fails_in_time(store: &ValkeyStore, name: &str) -> String {
    let started = Instant::now();
    let text = unavailable(store.create(agent(name)).await);
    assert!(started.elapsed() < FAILING_CALL_MAX, "{:?}: {text}", started.elapsed());
    text
}

/// Calls until one succeeds.
async fn works_again(store: &ValkeyStore, name: &str) {
    let started = Instant::now();
    while let Err(error) = store.create(agent(name)).await {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30), "{}", mosaic::causes::one_line(&error));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_replica_is_told_from_a_primary() {
    let Some(server) = Server::start("valkey::faults::a_replica_is_told_from_a_primary", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    let text = fails_in_time(&store, "one").await;
    assert!(text.contains("it is a replica that takes no writes: name the primary") && !text.contains("unknown"), "{text}");
    server.ask(&["REPLICAOF", "NO", "ONE"]);
    works_again(&store, "one").await;
}

#[tokio::test]
async fn full_memory_refuses_writes_and_loses_nothing() {
    let Some(server) = Server::start("valkey::faults::full_memory_refuses_writes_and_loses_nothing", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let before = store.create(agent("before")).await.unwrap();
    let mut doomed = agent("doomed");
    doomed.metadata.finalizers = Some(vec![mosaic::api::names::FINALIZER.to_owned()]);
    let doomed = store.create(doomed).await.unwrap();
    server.ask(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let text = fails_in_time(&store, "one").await;
    assert!(text.contains("its memory is full: raise maxmemory") && !text.contains("unknown"), "{text}");
    unavailable(store.replace_status(next(before.clone())).await);
    let (listed, last) = store.list(Kind::Agent).await.expect("reading works");
    assert_eq!((listed, last), (vec![before, doomed.clone()], version(&doomed)), "what was refused is not there");
    // A full memory keeps nobody alive: an end is declared, told and carried through.
    let mut ending = store.delete(&doomed.key(), None, &[]).await.expect("a kill is taken");
    ending.status = serde_json::json!({ "phase": "Killed" });
    let mut ending = store.replace_status(ending).await.expect("what came of it is stored");
    ending.metadata.finalizers = None;
    store.archive(ending.clone()).await.expect("and kept");
    store.replace(ending).await.expect("and the record goes");
    assert_eq!(store.get(&doomed.key()).await.unwrap(), None);
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    works_again(&store, "one").await;
}

#[tokio::test]
async fn a_server_that_loads_its_data_says_so() {
    let Some(mut server) = Server::start("valkey::faults::a_server_that_loads_its_data_says_so", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let kept = store.create(agent("kept")).await.unwrap();
    for n in 0..400 {
        server.ask(&["SET", &format!("other-{n}"), &"x".repeat(2000)]);
    }
    server.ask(&["BGREWRITEAOF"]);
    let rewritten = Instant::now();
    while server.ask(&["INFO", "persistence"]).text().contains("aof_rewrite_in_progress:1") {
        assert!(rewritten.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.kill();
    let slow = [&DURABLE[..], &["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"]].concat();
    server.begin(&slow);
    let started = Instant::now();
    let text = loop {
        match store.get(&kept.key()).await {
            Err(error) => {
                let text = mosaic::causes::one_line(&error);
                if text.contains("LOADING") {
                    break text;
                }
            }
            Ok(_) => panic!("it was loaded before it could say so"),
        }
        assert!(started.elapsed() < Duration::from_secs(20), "it never said that it loads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(text.contains("it is still loading its data"), "{text}");
    works_again(&store, "later").await;
    assert_eq!(store.get(&kept.key()).await.unwrap(), Some(kept), "what was acknowledged is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_is_waited_for() {
    let Some(server) = Server::start("valkey::faults::a_slow_server_is_waited_for", &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let store = open(&proxy.url()).await.unwrap();
    proxy.set(Mode::Slow);
    let started = Instant::now();
    let record = store.create(agent("one")).await.unwrap();
    let record = store.replace_status(next(record)).await.unwrap();
    assert_eq!(store.get(&record.key()).await.unwrap(), Some(record.clone()));
    assert!(started.elapsed() >= Duration::from_secs(6), "three answers came two seconds late each");
    assert_eq!(version(&record), 2, "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_given_up_in_time() {
    let Some(server) = Server::start("valkey::faults::a_half_open_connection_is_given_up_in_time", &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let store = open(&proxy.url()).await.unwrap();
    let mut watch = store.watch(Kind::Agent, 0).await.unwrap();
    proxy.set(Mode::Swallow);
    let text = fails_in_time(&store, "one").await;
    assert!(text.contains("no answer within") && text.contains("whether something was written is unknown"), "{text}");
    assert!(super::unavailable(store.get(&agent("one").key()).await).contains("failed to read a record"));
    let ended = tokio::time::timeout(FAILING_CALL_MAX, async {
        loop {
            if let Err(error) = crate::contracts::store::event(&mut watch).await {
                return error;
            }
        }
    });
    assert!(matches!(ended.await.expect("the watch ends in time"), StoreError::Unavailable { .. }));
    proxy.set(Mode::Pass);
    works_again(&store, "two").await;
    // Reading has a connection of its own, which may still be asking a server that never heard of it.
    let healed = Instant::now();
    let there = loop {
        match store.get(&agent("one").key()).await {
            Ok(there) => break there,
            Err(error) => assert!(healed.elapsed() < FAILING_CALL_MAX, "{}", mosaic::causes::one_line(&error)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(there, None, "what was given up was not sent later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_fails_fast_and_heals() {
    let Some(server) = Server::start("valkey::faults::a_partition_fails_fast_and_heals", &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let store = open(&proxy.url()).await.unwrap();
    proxy.set(Mode::Gone);
    fails_in_time(&store, "one").await;
    let started = Instant::now();
    let text = fails_in_time(&store, "one").await;
    assert!(text.contains("no connection") && !text.contains("unknown"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(3), "who cannot connect need not wait long");
    let before = proxy.accepted();
    for _ in 0..50 {
        unavailable(store.get(&agent("one").key()).await);
    }
    assert!(proxy.accepted() - before < 20, "calls do not storm a server that is away: {}", proxy.accepted() - before);
    proxy.set(Mode::Pass);
    works_again(&store, "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_an_answer_is_unknown_and_never_repeated() {
    let Some(server) = Server::start("valkey::faults::a_write_without_an_answer_is_unknown_and_never_repeated", &DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let store = open(&proxy.url()).await.unwrap();
    let record = store.create(agent("one")).await.unwrap();
    let record = store.replace_status(next(record)).await.unwrap();
    proxy.set(Mode::CutAnswers);
    let text = unavailable(store.replace_status(next(record.clone())).await);
    assert!(text.contains("whether something was written is unknown"), "{text}");
    proxy.set(Mode::Pass);
    let started = Instant::now();
    let there = loop {
        if let Ok(Some(there)) = store.get(&record.key()).await {
            break there;
        }
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((there.status["attempt"].as_u64(), version(&there)), (Some(2), 3), "it was written, once");
    assert!(matches!(store.replace_status(next(record)).await, Err(StoreError::Conflict(_))), "who sends it again learns that");
}

#[tokio::test]
async fn a_wrong_password_is_named_and_never_shown() {
    let flags = [&DURABLE[..], &["--requirepass", "right-hunter2"]].concat();
    let Some(mut server) = Server::start("valkey::faults::a_wrong_password_is_named_and_never_shown", &DURABLE) else { return };
    server.kill();
    server.begin(&flags);
    let url = |password: &str| format!("valkey://:{password}@127.0.0.1:{}", server.port);
    let started = Instant::now();
    let store = loop {
        match open(&url("right-hunter2")).await {
            Ok(store) => break store,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{}", mosaic::causes::one_line(&error)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    store.create(agent("one")).await.unwrap();
    for url in [url("wrong-hunter2"), server.url()] {
        let text = unavailable(open(&url).await.map(|_| ()));
        assert!(text.contains("user name or password are wrong") && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let Some(server) = Server::start("valkey::faults::a_missing_right_is_named", &DURABLE) else { return };
    open(&server.url()).await.unwrap().create(agent("one")).await.unwrap();
    server.ask(&["ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@all", "-evalsha", "-eval"]);
    let text = unavailable(open(&format!("valkey://reader:pass@127.0.0.1:{}", server.port)).await.map(|_| ()));
    assert!(text.contains("the user lacks a right") && text.contains("NOPERM"), "{text}");
    // The rights that docs/valkey.md asks for are enough.
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/valkey.md")).unwrap();
    let rule = document.lines().find_map(|line| line.strip_prefix("ACL SETUSER mosaic ")).expect("the document has the rule");
    let words: Vec<&str> = ["ACL", "SETUSER", "mosaic"].into_iter().chain(rule.split(' ')).collect();
    assert_eq!(server.ask(&words), Answer::Text("OK".to_owned()));
    let store = open(&format!("valkey://mosaic:change-me@127.0.0.1:{}", server.port)).await.unwrap();
    let record = store.create(agent("two")).await.unwrap();
    let record = store.replace_status(next(record)).await.unwrap();
    store.archive(record.clone()).await.unwrap();
    assert_eq!(store.history(None, 5).await.unwrap().len(), 1);
    assert_eq!(store.list(Kind::Agent).await.unwrap().0.len(), 2);
    let mut watch = store.watch(Kind::Agent, version(&record)).await.unwrap();
    store.delete(&record.key(), None, &[]).await.unwrap();
    crate::contracts::store::event(&mut watch).await.unwrap();
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_sent_them_again() {
    let Some(server) = Server::start("valkey::faults::a_server_that_forgot_the_scripts_is_sent_them_again", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let mut record = store.create(agent("one")).await.unwrap();
    for _ in 0..3 {
        server.ask(&["SCRIPT", "FLUSH"]);
        record = store.replace_status(next(record)).await.unwrap();
    }
    assert_eq!(version(&record), 4);
    server.ask(&["SCRIPT", "FLUSH"]);
    let (records, _) = store.list(Kind::Agent).await.unwrap();
    let racing = records.into_iter().chain(std::iter::once(record.clone())).map(|record| store.replace_status(next(record)));
    let results = futures::future::join_all(racing).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "of two writes in one go one wins: {results:?}");
}

#[tokio::test]
async fn durability_is_promised_only_where_it_is_given() {
    let Some(server) = Server::start("valkey::faults::durability_is_promised_only_where_it_is_given", &[]) else { return };
    let with = |durability| ValkeyOptions { durability, ..of_one_test() };
    let refused = open_with(&server.url(), with(Durability::Aof)).await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, StoreError::Unusable(text) if text.contains("set `appendonly yes`")), "{refused}");
    let store = open_with(&server.url(), with(Durability::Auto)).await.unwrap();
    assert!(store.caveat().unwrap().contains("WRITES ARE NOT DURABLE"));
    assert!(store.notes()[0].contains("WRITES ARE NOT DURABLE"));
    store.create(agent("one")).await.unwrap();

    server.ask(&["CONFIG", "SET", "appendonly", "yes"]);
    let started = Instant::now();
    while server.ask(&["INFO", "persistence"]).text().contains("aof_rewrite_in_progress:1") {
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let store = open_with(&server.url(), with(Durability::Aof)).await.unwrap();
    assert_eq!(store.caveat(), None);
    store.create(agent("one")).await.unwrap();
    // Switched off behind its back: what was promised is not claimed any more.
    server.ask(&["CONFIG", "SET", "appendonly", "no"]);
    let text = unavailable(store.create(agent("two")).await);
    assert!(text.contains("did not confirm that it is on its disk") && text.contains("unknown"), "{text}");

    let store = open_with(&server.url(), with(Durability::None)).await.unwrap();
    assert!(store.caveat().unwrap().contains("--valkey-durability none"));
}

#[tokio::test]
async fn a_server_that_may_evict_is_named() {
    let flags = [&DURABLE[..], &["--maxmemory-policy", "allkeys-lru"]].concat();
    let Some(server) = Server::start("valkey::faults::a_server_that_may_evict_is_named", &flags) else { return };
    let store = open(&server.url()).await.unwrap();
    assert!(store.notes().iter().any(|note| note.contains("THE SERVER MAY THROW RECORDS AWAY")), "{:?}", store.notes());
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_left_alone() {
    let Some(server) = Server::start("valkey::faults::a_store_of_a_newer_version_is_left_alone", &DURABLE) else { return };
    let meta = "{mosaic:default}:meta";
    server.ask(&["HSET", meta, "format", "99", "id", "theirs", "version", "7"]);
    let refused = open(&server.url()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, StoreError::Unusable(text) if text.contains("store format 99")), "{refused}");
    let kept = server.ask(&["HGETALL", meta]).pairs();
    assert_eq!((kept.len(), kept["format"].as_str(), kept["version"].as_str()), (3, "99", "7"), "it was not touched");
}

#[tokio::test]
async fn a_record_that_was_damaged_harms_no_other() {
    let Some(server) = Server::start("valkey::faults::a_record_that_was_damaged_harms_no_other", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let fine = store.create(agent("fine")).await.unwrap();
    let hurt = store.create(agent("hurt")).await.unwrap();
    let uid = hurt.metadata.uid.clone().unwrap();
    server.ask(&["HSET", "{mosaic:default}:agents", "default/hurt", &format!("2\n{uid}\npending\npending\nno\n{{broken\nnull")]);
    let (listed, _) = store.list(Kind::Agent).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0], fine);
    assert_eq!((listed[1].key(), listed[1].metadata.uid.clone()), (hurt.key(), Some(uid)), "it is there, and whose it is is known");
    assert!(mosaic::api::validate::validate(&listed[1]).is_err(), "and it is reported on itself");
    assert!(matches!(store.get(&hurt.key()).await, Err(StoreError::Unusable(_))));
    store.replace_status(next(fine)).await.unwrap();
    server.ask(&["HSET", "{mosaic:default}:agents", "default/hurt", "no record at all"]);
    assert!(matches!(store.list(Kind::Agent).await, Err(StoreError::Unusable(_))), "a list that misses somebody is no list");
}
