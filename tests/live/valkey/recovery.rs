//! A server that is killed, stopped, emptied or restored: what was acknowledged is there, and a store that forgot is told from one that knows.

use super::server::{DURABLE, Server};
use super::{next, open, unavailable};
use crate::contracts::store::{agent, event, version};
use mosaic::store::{Kind, Record, Store, StoreError, Watch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the server is stopped; `MOSAIC_TEST_STOP_SECONDS` for longer.
fn stop_time() -> Duration {
    let seconds = std::env::var("MOSAIC_TEST_STOP_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

/// Writes one record after the other until told to stop; returns what was acknowledged and what is unknown.
async fn write_on(store: Arc<impl Store + 'static>, task: usize, stop: Arc<AtomicBool>) -> (Vec<Record>, Vec<String>) {
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("t{task}-{n}");
        match store.create(agent(&name)).await {
            Ok(record) => acknowledged.push(record),
            Err(StoreError::Unavailable { .. }) => unknown.push(name),
            Err(other) => panic!("{other}"),
        }
    }
    (acknowledged, unknown)
}

async fn until_ended(watch: &mut Watch) -> StoreError {
    let ended = async {
        loop {
            if let Err(error) = event(watch).await {
                return error;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the watch ends")
}

async fn until_it_answers(store: &impl Store) -> (Vec<Record>, u64) {
    let started = Instant::now();
    loop {
        match store.list(Kind::Agent).await {
            Ok(found) => return found,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{}", mosaic::causes::one_line(&error)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_killed_server() {
    let Some(mut server) = Server::start("valkey::recovery::acknowledged_writes_survive_a_killed_server", &DURABLE) else { return };
    let store = Arc::new(open(&server.url()).await.unwrap());
    let mut expected = std::collections::BTreeMap::new();
    let mut unknown = Vec::new();
    for round in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..8).map(|task| tokio::spawn(write_on(store.clone(), round * 8 + task, stop.clone()))).collect();
        tokio::time::sleep(Duration::from_millis(400)).await;
        server.kill();
        let began = Instant::now();
        server.begin(&DURABLE);
        server.answers();
        let (_, _) = until_it_answers(&*store).await;
        println!("round {round}: answers again {} ms after the restart began", began.elapsed().as_millis());
        stop.store(true, Ordering::SeqCst);
        for task in tasks {
            let (acknowledged, lost) = task.await.unwrap();
            expected.extend(acknowledged.into_iter().map(|record| (record.key(), record)));
            unknown.extend(lost);
        }
    }
    let (there, _) = store.list(Kind::Agent).await.unwrap();
    let mut versions: Vec<u64> = there.iter().map(version).collect();
    versions.sort_unstable();
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "no version was given twice");
    for record in there {
        let name = record.metadata.name.clone().unwrap();
        match expected.remove(&record.key()) {
            Some(acknowledged) => assert_eq!(acknowledged, record),
            None => assert!(unknown.contains(&name), "{name} was neither acknowledged nor unknown"),
        }
    }
    assert!(expected.is_empty(), "lost although acknowledged: {:?}", expected.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_costs_bounded_waits_and_nothing_else() {
    let Some(server) = Server::start("valkey::recovery::a_stopped_server_costs_bounded_waits_and_nothing_else", &DURABLE) else { return };
    let store = Arc::new(open(&server.url()).await.unwrap());
    let record = store.create(agent("one")).await.unwrap();
    let mut watch = store.watch(Kind::Agent, 0).await.unwrap();
    server.signal(rustix::process::Signal::STOP);
    let stopped = Instant::now();
    let mut longest = Duration::ZERO;
    while stopped.elapsed() < stop_time() {
        let asked = Instant::now();
        let text = unavailable(store.replace_status(next(record.clone())).await);
        longest = longest.max(asked.elapsed());
        assert!(longest < Duration::from_secs(14), "{text}");
    }
    assert!(matches!(until_ended(&mut watch).await, StoreError::Unavailable { .. }), "who watches is told");
    server.signal(rustix::process::Signal::CONT);
    let (there, last) = until_it_answers(&*store).await;
    // Every one of these calls compared with the same version: however many arrived late, at most one changed anything.
    assert!(last == 1 || last == 2, "version {last}");
    assert_eq!(there.len(), 1);
    let again = store.replace_status(next(there[0].clone())).await.unwrap();
    println!("stopped for {:?}, longest call {longest:?}, version after {}", stop_time(), version(&again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_is_another_store() {
    let Some(mut server) = Server::start("valkey::recovery::a_server_that_comes_back_empty_is_another_store", &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    let before = store.identity().await.unwrap();
    let record = store.create(agent("one")).await.unwrap();
    let mut watch = store.watch(Kind::Agent, 0).await.unwrap();
    server.kill();
    server.forget();
    server.begin(&DURABLE);
    server.answers();
    until_ended(&mut watch).await;
    assert_eq!(until_it_answers(&store).await, (Vec::new(), 0), "and it is listed as it is");
    assert_ne!(store.identity().await.unwrap(), before);
    assert!(matches!(store.replace_status(next(record)).await, Err(StoreError::NotFound(_))));
    store.create(agent("two")).await.unwrap();

    // Emptied under our hands, without any connection breaking.
    let mut watch = store.watch(Kind::Agent, 1).await.unwrap();
    let before = store.identity().await.unwrap();
    server.ask(&["FLUSHALL"]);
    let text = unavailable(store.create(agent("three")).await);
    assert!(text.contains("emptied or replaced"), "{text}");
    assert_ne!(store.identity().await.unwrap(), before);
    until_ended(&mut watch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_restored_from_an_older_copy_ends_every_watch() {
    let Some(mut server) = Server::start("valkey::recovery::a_server_restored_from_an_older_copy_ends_every_watch", &DURABLE) else {
        return;
    };
    let backup = tempfile::tempdir().unwrap();
    let store = open(&server.url()).await.unwrap();
    let one = store.create(agent("one")).await.unwrap();
    server.copy_disk(backup.path());
    for name in ["two", "three"] {
        store.create(agent(name)).await.unwrap();
    }
    let mut watch = store.watch(Kind::Agent, 3).await.unwrap();
    server.kill();
    server.restore_disk(backup.path());
    server.begin(&DURABLE);
    server.answers();
    // Three changes of another history: their versions are those that were seen before, and further.
    let other = open(&server.url()).await.unwrap();
    for name in ["four", "five", "six"] {
        other.create(agent(name)).await.unwrap();
    }
    until_ended(&mut watch).await;
    let (there, last) = until_it_answers(&store).await;
    assert_eq!((there.len(), last), (4, 4));
    assert_eq!(store.get(&one.key()).await.unwrap(), Some(one));
}

/// Copies of all keys on the server itself, and back: a restore in one instant, without any connection breaking.
const BACK_UP: &str = "for _, key in ipairs(redis.call('KEYS', '{mosaic*')) do redis.call('COPY', key, 'backup:' .. key) end";
const RESTORE: &str = "for _, key in ipairs(redis.call('KEYS', 'backup:*')) do redis.call('COPY', key, string.sub(key, 8), 'REPLACE') end";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begun_while_the_feed_is_away_ends_when_an_older_store_comes_back() {
    let test = "valkey::recovery::a_watch_begun_while_the_feed_is_away_ends_when_an_older_store_comes_back";
    let Some(server) = Server::start(test, &DURABLE) else { return };
    let store = open(&server.url()).await.unwrap();
    for name in ["one", "two", "three"] {
        store.create(agent(name)).await.unwrap();
    }
    server.ask(&["EVAL", BACK_UP, "0"]);
    // The feed's connection alone breaks; for a moment nobody follows.
    let began = Instant::now();
    let feed = loop {
        assert!(began.elapsed() < Duration::from_secs(10), "nobody follows");
        // It pauses for a moment between two reads.
        let clients = server.ask(&["CLIENT", "LIST"]);
        let follows = |client: &&str| client.contains(" cmd=xread ");
        let id = |client: &str| Some(client.strip_prefix("id=")?.split(' ').next()?.to_owned());
        if let Some(id) = clients.text().lines().find(follows).and_then(id) {
            break id;
        }
    };
    server.ask(&["CLIENT", "KILL", "ID", &feed]);
    store.create(agent("four")).await.unwrap();
    let mut watch = store.watch(Kind::Agent, 4).await.unwrap();
    server.ask(&["EVAL", RESTORE, "0"]);
    let other = open(&server.url()).await.unwrap();
    for name in ["five", "six"] {
        other.create(agent(name)).await.unwrap();
    }
    until_ended(&mut watch).await;
    let (there, last) = until_it_answers(&store).await;
    assert_eq!((there.len(), last), (5, 5));
}
