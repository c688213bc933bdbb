//! Promises about watches.

use super::{EVENT_WAIT_MAX, Fixture, agent, event, halt, version, with_finalizer};
use futures::StreamExt;
use mosaic::store::{Kind, StoreError, WatchEvent};
use serde_json::json;
use std::sync::Arc;

pub async fn watch_tells_every_change_in_order(f: Fixture) {
    let (_, from) = f.store.list(Kind::Agent).await.unwrap();
    let mut watch = f.store.watch(Kind::Agent, from).await.unwrap();
    let created = f.store.create(with_finalizer(agent("one"))).await.unwrap();
    let mut changed = created.clone();
    changed.status = json!({ "attempt": 1 });
    let changed = f.store.replace_status(changed).await.unwrap();
    let deleting = f.store.delete(&created.key(), None, &[]).await.unwrap();
    let mut bare = deleting.clone();
    bare.metadata.finalizers = None;
    f.store.replace(bare).await.unwrap();
    assert_eq!(event(&mut watch).await.unwrap(), WatchEvent::Applied(created));
    assert_eq!(event(&mut watch).await.unwrap(), WatchEvent::Applied(changed));
    assert_eq!(event(&mut watch).await.unwrap(), WatchEvent::Applied(deleting));
    assert!(matches!(event(&mut watch).await.unwrap(), WatchEvent::Deleted(_)));
}

pub async fn watch_is_of_one_kind(f: Fixture) {
    let (_, from) = f.store.list(Kind::Halt).await.unwrap();
    let mut watch = f.store.watch(Kind::Halt, from).await.unwrap();
    f.store.create(agent("one")).await.unwrap();
    let stop = f.store.create(halt("stop")).await.unwrap();
    assert_eq!(event(&mut watch).await.unwrap(), WatchEvent::Applied(stop));
}

/// A watch that is broken off after every third event and resumed from the last version it saw, while others write.
pub async fn watch_resumes_without_loss_or_doubles(f: Fixture) {
    let (_, from) = f.store.list(Kind::Agent).await.unwrap();
    let store = Arc::clone(&f.store);
    let writer = tokio::spawn(async move {
        let mut versions = Vec::new();
        for n in 0..60 {
            versions.push(version(&store.create(agent(&format!("a{n}"))).await.unwrap()));
        }
        versions
    });
    let mut seen = Vec::new();
    let mut cursor = from;
    while seen.len() < 60 {
        let mut watch = f.store.watch(Kind::Agent, cursor).await.unwrap();
        for _ in 0..3 {
            let WatchEvent::Applied(record) = event(&mut watch).await.unwrap() else { panic!("expected Applied") };
            cursor = version(&record);
            seen.push(cursor);
        }
    }
    assert_eq!(seen, writer.await.unwrap());
}

/// Whether a watch from there is refused, at once or as the first that it tells.
async fn is_told_too_old(f: &Fixture, from: u64) -> bool {
    match f.store.watch(Kind::Agent, from).await {
        Ok(mut watch) => matches!(event(&mut watch).await, Err(StoreError::TooOld(_))),
        Err(error) => matches!(error, StoreError::TooOld(_)),
    }
}

pub async fn watch_from_too_long_ago_is_told_so(f: Fixture) {
    let mut record = f.store.create(agent("one")).await.unwrap();
    // Long before anything that is kept, where how much that is is not ours to set.
    let first = if f.changes_max.is_some() { version(&record) } else { 1 };
    for n in 0..=f.changes_max.map_or(0, |max| max + 1) {
        record.status = json!({ "attempt": n });
        record = f.store.replace_status(record).await.unwrap();
    }
    assert!(is_told_too_old(&f, first).await);
    let (listed, from) = f.store.list(Kind::Agent).await.unwrap();
    assert_eq!(listed, [record]);
    drop(f.store.watch(Kind::Agent, from).await.unwrap());
}

pub async fn watch_from_the_future_is_told_so(f: Fixture) {
    let (_, from) = f.store.list(Kind::Agent).await.unwrap();
    assert!(matches!(f.store.watch(Kind::Agent, from + 1000).await, Err(StoreError::TooOld(_))));
}

pub async fn slow_watch_is_ended_and_holds_nobody_up(f: Fixture) {
    // Else that is the server's business.
    let Some(changes_max) = f.changes_max else { return };
    let mut record = f.store.create(agent("one")).await.unwrap();
    let mut watch = f.store.watch(Kind::Agent, version(&record)).await.unwrap();
    record.status = json!({ "attempt": 0 });
    record = f.store.replace_status(record).await.unwrap();
    assert!(event(&mut watch).await.is_ok(), "the watch is live");
    for n in 1..changes_max * 2 {
        record.status = json!({ "attempt": n });
        record = f.store.replace_status(record).await.unwrap();
    }
    let mut told = 0;
    loop {
        match event(&mut watch).await {
            Ok(_) => told += 1,
            Err(StoreError::TooOld(_)) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(told < changes_max * 2, "it must end");
    }
    assert!(tokio::time::timeout(EVENT_WAIT_MAX, watch.next()).await.unwrap().is_none(), "nothing comes after the error");
}

pub async fn idle_watch_is_told_how_far_it_is(f: Fixture) {
    let created = f.store.create(agent("one")).await.unwrap();
    let mut watch = f.store.watch(Kind::Halt, 0).await.unwrap();
    let deadline = tokio::time::Instant::now() + EVENT_WAIT_MAX;
    loop {
        let next = tokio::time::timeout_at(deadline, watch.next()).await.expect("a bookmark must come");
        let WatchEvent::Bookmark(at) = next.unwrap().unwrap() else { panic!("there is no halt") };
        // Others may write to the same server.
        if at >= version(&created) {
            break;
        }
    }
}
