//! Promises about records that are gone.

use super::{Fixture, agent, uid};
use mosaic::store::Record;
use serde_json::json;

pub async fn archive_is_idempotent_by_uid_and_newest_first(f: Fixture) {
    let mut all = Vec::new();
    for name in ["a", "b", "c"] {
        let mut given = agent(name);
        given.spec["taskId"] = json!(format!("T-{name}"));
        all.push(f.store.create(given).await.unwrap());
        f.store.archive(all.last().unwrap().clone()).await.unwrap();
    }
    all[0].status = json!({ "phase": "Killed" });
    f.store.archive(all[0].clone()).await.unwrap();
    let names = |records: Vec<Record>| records.iter().map(|r| r.metadata.name.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(names(f.store.history(None, 10).await.unwrap()), ["c", "b", "a"]);
    assert_eq!(names(f.store.history(None, 2).await.unwrap()), ["c", "b"]);
    for filter in [uid(&all[0]).as_str(), "a", "T-a"] {
        assert_eq!(f.store.history(Some(filter), 10).await.unwrap(), [all[0].clone()], "{filter}");
    }
    assert!(f.store.history(Some("nobody"), 10).await.unwrap().is_empty());
}

pub async fn history_is_capped(f: Fixture) {
    let template = f.store.create(agent("one")).await.unwrap();
    for n in 0..f.history_max + 3 {
        let mut record = template.clone();
        record.metadata.uid = Some(format!("uid-{n:08}"));
        f.store.archive(record).await.unwrap();
    }
    let kept = f.store.history(None, usize::MAX).await.unwrap();
    assert_eq!(kept.len(), f.history_max);
    assert_eq!(kept[0].metadata.uid.as_deref(), Some(format!("uid-{:08}", f.history_max + 2).as_str()));
    assert!(f.store.history(Some("uid-00000000"), 1).await.unwrap().is_empty());
}
