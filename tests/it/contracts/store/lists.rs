//! Promises about lists that are made while others write.

use super::{Fixture, agent, event, version};
use futures::StreamExt;
use mosaic::store::{Key, Kind, WatchEvent};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Numbers are written round after round, so that in every moment no record is more than one round ahead of another.
pub async fn list_among_writers_is_of_one_moment(f: Fixture) {
    const RECORDS: usize = 40;
    let mut records = Vec::new();
    for n in 0..RECORDS {
        records.push(f.store.create(agent(&format!("a{n}"))).await.unwrap());
    }
    let store = Arc::clone(&f.store);
    let writer = tokio::spawn(async move {
        for round in 1..=10 {
            for record in &mut records {
                record.status = json!({ "attempt": round });
                *record = store.replace_status(record.clone()).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        let (listed, at) = f.store.list(Kind::Agent).await.unwrap();
        let rounds: Vec<u64> = listed.iter().map(|record| record.status["attempt"].as_u64().unwrap_or(0)).collect();
        let (least, most) = (rounds.iter().min().unwrap(), rounds.iter().max().unwrap());
        assert!(listed.len() == RECORDS && most - least <= 1, "{rounds:?}");
        assert!(listed.iter().all(|record| version(record) <= at), "nothing is newer than the list says");
    }
    writer.await.unwrap();
}

/// Whatever is created, changed or deleted while a list is streamed: list and watch together end at what is there.
pub async fn streamed_list_and_its_watch_miss_nothing(f: Fixture) {
    for n in 0..30 {
        f.store.create(agent(&format!("old{n}"))).await.unwrap();
    }
    let (mut listing, from) = f.store.list_stream(Kind::Agent).await.unwrap();
    let mut known = BTreeMap::new();
    for n in 0..20 {
        if let Some(record) = listing.next().await {
            let record = record.unwrap();
            known.insert(record.key(), record);
        }
        f.store.create(agent(&format!("new{n}"))).await.unwrap();
        f.store.delete(&Key::agent("default", format!("old{n}")), None, &[]).await.unwrap();
    }
    while let Some(record) = listing.next().await {
        let record = record.unwrap();
        known.insert(record.key(), record);
    }
    let (there, last) = f.store.list(Kind::Agent).await.unwrap();
    let mut watch = f.store.watch(Kind::Agent, from).await.unwrap();
    let mut seen = from;
    while seen < last {
        match event(&mut watch).await.unwrap() {
            WatchEvent::Applied(record) => {
                seen = version(&record);
                known.insert(record.key(), record);
            }
            WatchEvent::Deleted(record) => {
                seen = version(&record);
                known.remove(&record.key());
            }
            WatchEvent::Bookmark(_) => unreachable!("bookmarks are left out"),
        }
    }
    assert_eq!(known.into_values().collect::<Vec<_>>(), there);
}
