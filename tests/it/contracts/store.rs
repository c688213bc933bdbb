//! The contract of `trait Store`. `suite!` makes one test per promise for one keeper; a keeper gives a factory of fresh stores, which may
//! answer `None` where the keeper cannot be had (and then says so).
//!
//! What only one keeper can do (its file, its process, its server) is tested beside it: `contracts/store/embedded.rs`, `tests/live`.

#[path = "store/history.rs"]
mod history;
#[path = "store/lists.rs"]
mod lists;
#[path = "store/watches.rs"]
mod watches;

use futures::StreamExt;
pub use history::{archive_is_idempotent_by_uid_and_newest_first, history_is_capped};
pub use lists::{list_among_writers_is_of_one_moment, streamed_list_and_its_watch_miss_nothing};
use mosaic::api::names::{FINALIZER, Uid};
use mosaic::store::{Key, Kind, Record, Store, StoreError, Watch, WatchEvent};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
pub use watches::{
    idle_watch_is_told_how_far_it_is, slow_watch_is_ended_and_holds_nobody_up, watch_from_the_future_is_told_so,
    watch_from_too_long_ago_is_told_so, watch_is_of_one_kind, watch_resumes_without_loss_or_doubles, watch_tells_every_change_in_order,
};

/// Longest wait for an event that must come.
const EVENT_WAIT_MAX: Duration = Duration::from_secs(20);

/// A store under test, with what must live as long as it does.
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How many changes the keeper keeps for watches; `None`: that is not ours to set, and its versions count others' writes as well.
    pub changes_max: Option<u64>,
    /// How many records its history keeps.
    pub history_max: usize,
    /// A folder or a process.
    pub _keep: Box<dyn std::any::Any + Send>,
}

/// Makes one test per promise.
macro_rules! suite {
    ($factory:path; $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture: Option<$crate::contracts::store::Fixture> = $factory().await.into();
                if let Some(fixture) = fixture {
                    $crate::contracts::store::$promise(fixture).await;
                }
            }
        )*
    };
}

/// Every promise of the contract.
macro_rules! every_promise {
    ($factory:path) => {
        $crate::contracts::store::suite! {
            $factory;
            created_record_is_read_back_with_what_the_store_owns,
            name_is_taken_once,
            a_recreated_record_has_another_uid,
            what_a_caller_may_not_set_on_create_is_refused_or_dropped,
            list_holds_one_kind_and_a_version_to_watch_from,
            list_among_writers_is_of_one_moment,
            streamed_list_and_its_watch_miss_nothing,
            identity_is_one_and_stays,
            replace_needs_the_version_that_was_read,
            replace_with_a_stale_uid_is_a_conflict,
            generation_moves_with_the_spec_only,
            a_write_that_changes_nothing_keeps_the_version,
            replace_never_touches_the_status,
            replace_status_touches_nothing_else,
            replace_status_needs_the_version_that_was_read,
            only_priority_and_suspend_can_change,
            unknown_fields_and_nulls_are_pruned,
            a_refusal_names_the_field,
            halts_are_cluster_scoped,
            metadata_is_checked_as_kubernetes_does,
            too_large_records_are_refused,
            delete_without_finalizers_removes,
            delete_waits_for_finalizers,
            delete_asks_for_the_very_record,
            finalizers_cannot_be_added_while_deleting,
            missing_records_are_not_found,
            watch_tells_every_change_in_order,
            watch_is_of_one_kind,
            watch_resumes_without_loss_or_doubles,
            watch_from_too_long_ago_is_told_so,
            watch_from_the_future_is_told_so,
            slow_watch_is_ended_and_holds_nobody_up,
            idle_watch_is_told_how_far_it_is,
            racing_writers_lose_nothing,
            archive_is_idempotent_by_uid_and_newest_first,
            history_is_capped,
        }
    };
}
pub(crate) use {every_promise, suite};

/// A valid agent.
pub fn agent(name: &str) -> Record {
    record(
        Kind::Agent,
        "default",
        name,
        json!({
            "context": { "repository": "file:///srv/git/sample.git", "instructions": "Say hello." },
            "runtime": { "command": { "args": ["sh", "-c", "true"] } },
        }),
    )
}

/// A valid halt.
pub fn halt(name: &str) -> Record {
    record(Kind::Halt, "", name, json!({ "reason": "fire", "who": "operator" }))
}

fn record(kind: Kind, namespace: &str, name: &str, spec: Value) -> Record {
    let metadata = serde_json::from_value(json!({ "name": name, "namespace": (!namespace.is_empty()).then_some(namespace) })).unwrap();
    Record { kind, metadata, spec, status: Value::Null }
}

fn with_finalizer(mut record: Record) -> Record {
    record.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    record
}

pub fn version(record: &Record) -> u64 {
    record.metadata.resource_version.as_deref().unwrap().parse().unwrap()
}

pub fn uid(record: &Record) -> Uid {
    Uid::new(record.metadata.uid.clone().unwrap()).unwrap()
}

fn refusal(result: Result<Record, StoreError>) -> String {
    match result {
        Err(StoreError::Invalid(text)) => text,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn conflicts(result: Result<Record, StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict(_)))
}

async fn live(store: &Arc<dyn Store>, key: &Key) -> Record {
    store.get(key).await.unwrap().unwrap()
}

/// The next event that is no bookmark.
pub async fn event(watch: &mut Watch) -> Result<WatchEvent, StoreError> {
    loop {
        let next = tokio::time::timeout(EVENT_WAIT_MAX, watch.next()).await.expect("an event must come");
        match next.expect("a watch ends with an error") {
            Ok(WatchEvent::Bookmark(_)) => {}
            other => return other,
        }
    }
}

pub async fn created_record_is_read_back_with_what_the_store_owns(f: Fixture) {
    let created = f.store.create(agent("one")).await.unwrap();
    assert_eq!(live(&f.store, &Key::agent("default", "one")).await, created);
    let metadata = &created.metadata;
    assert!(uid(&created).as_str().len() >= 8);
    assert!(version(&created) > 0);
    assert_eq!(metadata.generation, Some(1));
    assert!(metadata.creation_timestamp.is_some());
    assert!(metadata.deletion_timestamp.is_none());
    assert_eq!(created.spec, agent("one").spec);
    assert!(created.agent().is_ok());
}

pub async fn name_is_taken_once(f: Fixture) {
    f.store.create(agent("one")).await.unwrap();
    assert!(matches!(f.store.create(agent("one")).await, Err(StoreError::AlreadyExists(_))));
    let mut elsewhere = agent("one");
    elsewhere.metadata.namespace = Some("other".to_owned());
    f.store.create(elsewhere).await.unwrap();
}

pub async fn a_recreated_record_has_another_uid(f: Fixture) {
    let first = f.store.create(agent("one")).await.unwrap();
    f.store.delete(&first.key(), None, &[]).await.unwrap();
    let second = f.store.create(agent("one")).await.unwrap();
    assert_ne!(uid(&first), uid(&second));
    assert!(version(&second) > version(&first));
    assert!(matches!(f.store.delete(&first.key(), Some(&uid(&first)), &[]).await, Err(StoreError::Conflict(_))));
}

pub async fn what_a_caller_may_not_set_on_create_is_refused_or_dropped(f: Fixture) {
    let mut given = agent("one");
    given.status = json!({ "phase": "Completed" });
    given.metadata.uid = Some("11111111-mine".to_owned());
    given.metadata.generation = Some(9);
    given.metadata.deletion_timestamp = serde_json::from_value(json!("2020-01-01T00:00:00Z")).unwrap();
    let created = f.store.create(given).await.unwrap();
    assert_eq!(created.status, Value::Null);
    assert_ne!(uid(&created).as_str(), "11111111-mine");
    assert_eq!(created.metadata.generation, Some(1));
    assert!(created.metadata.deletion_timestamp.is_none());

    let mut versioned = agent("two");
    versioned.metadata.resource_version = Some("1".to_owned());
    assert!(refusal(f.store.create(versioned).await).contains("resourceVersion"));
    let mut generated = agent("x");
    generated.metadata.name = None;
    generated.metadata.generate_name = Some("worker-".to_owned());
    assert!(refusal(f.store.create(generated).await).contains("generateName"));
}

pub async fn list_holds_one_kind_and_a_version_to_watch_from(f: Fixture) {
    assert!(f.store.list(Kind::Agent).await.unwrap().0.is_empty());
    for name in ["b", "a", "c"] {
        f.store.create(agent(name)).await.unwrap();
    }
    f.store.create(halt("stop")).await.unwrap();
    let (agents, from) = f.store.list(Kind::Agent).await.unwrap();
    let mut names: Vec<_> = agents.iter().map(|r| r.metadata.name.clone().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(f.store.list(Kind::Halt).await.unwrap().0.len(), 1);
    let mut watch = f.store.watch(Kind::Agent, from).await.unwrap();
    let later = f.store.create(agent("later")).await.unwrap();
    assert_eq!(event(&mut watch).await.unwrap(), WatchEvent::Applied(later), "nothing older than the list is told");
}

pub async fn identity_is_one_and_stays(f: Fixture) {
    let before = f.store.identity().await.unwrap();
    f.store.create(agent("one")).await.unwrap();
    assert_eq!(f.store.identity().await.unwrap(), before);
}

pub async fn replace_needs_the_version_that_was_read(f: Fixture) {
    let read = f.store.create(agent("one")).await.unwrap();
    let mut first = read.clone();
    first.spec["priority"] = json!(7);
    let stored = f.store.replace(first).await.unwrap();
    assert_eq!(live(&f.store, &read.key()).await, stored);
    let mut second = read.clone();
    second.spec["priority"] = json!(8);
    assert!(conflicts(f.store.replace(second.clone()).await));
    second.metadata.resource_version = None;
    assert!(refusal(f.store.replace(second).await).contains("resourceVersion"));
    assert_eq!(live(&f.store, &read.key()).await, stored, "a refused write changes nothing");
}

pub async fn replace_with_a_stale_uid_is_a_conflict(f: Fixture) {
    let mut read = f.store.create(agent("one")).await.unwrap();
    read.metadata.uid = Some("00000000-0000".to_owned());
    assert!(conflicts(f.store.replace(read.clone()).await));
    assert!(conflicts(f.store.replace_status(read.clone()).await));
    read.metadata.uid = None;
    read.spec["suspend"] = json!(true);
    f.store.replace(read).await.unwrap();
}

pub async fn generation_moves_with_the_spec_only(f: Fixture) {
    let mut record = f.store.create(with_finalizer(agent("one"))).await.unwrap();
    record.metadata.labels = serde_json::from_value(json!({ "team": "a" })).unwrap();
    record = f.store.replace(record).await.unwrap();
    assert_eq!(record.metadata.generation, Some(1));
    record.status = json!({ "phase": "Running" });
    record = f.store.replace_status(record).await.unwrap();
    assert_eq!(record.metadata.generation, Some(1));
    record.spec["priority"] = json!(9);
    record.metadata.generation = Some(77);
    record = f.store.replace(record).await.unwrap();
    assert_eq!(record.metadata.generation, Some(2));
}

pub async fn a_write_that_changes_nothing_keeps_the_version(f: Fixture) {
    let mut record = f.store.create(with_finalizer(agent("one"))).await.unwrap();
    record.status = json!({ "phase": "Running" });
    let record = f.store.replace_status(record).await.unwrap();
    assert_eq!(version(&f.store.replace_status(record.clone()).await.unwrap()), version(&record));
    assert_eq!(version(&f.store.replace(record.clone()).await.unwrap()), version(&record));
    let deleting = f.store.delete(&record.key(), None, &[]).await.unwrap();
    assert_eq!(version(&f.store.delete(&record.key(), None, &[]).await.unwrap()), version(&deleting));
}

pub async fn replace_never_touches_the_status(f: Fixture) {
    let mut record = f.store.create(agent("one")).await.unwrap();
    record.status = json!({ "phase": "Running" });
    let mut record = f.store.replace_status(record).await.unwrap();
    record.status = json!({ "phase": "Completed" });
    record.spec["priority"] = json!(2);
    let stored = f.store.replace(record).await.unwrap();
    assert_eq!(stored.status["phase"], "Running");
    assert_eq!(stored.spec["priority"], 2);
}

pub async fn replace_status_touches_nothing_else(f: Fixture) {
    let created = f.store.create(agent("one")).await.unwrap();
    let mut record = created.clone();
    record.status = json!({ "phase": "Running", "attempt": 1 });
    record.spec["priority"] = json!(2);
    record.metadata.labels = serde_json::from_value(json!({ "team": "a" })).unwrap();
    record.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    let stored = f.store.replace_status(record).await.unwrap();
    assert_eq!(stored.status, json!({ "phase": "Running", "attempt": 1 }));
    assert_eq!(stored.spec, created.spec);
    assert_eq!(stored.metadata.labels, None);
    assert_eq!(stored.metadata.finalizers, None);
    assert!(version(&stored) > version(&created));
    assert_eq!(live(&f.store, &created.key()).await, stored);
}

pub async fn replace_status_needs_the_version_that_was_read(f: Fixture) {
    let read = f.store.create(agent("one")).await.unwrap();
    let mut first = read.clone();
    first.status = json!({ "attempt": 1 });
    f.store.replace_status(first.clone()).await.unwrap();
    first.status = json!({ "attempt": 2 });
    assert!(conflicts(f.store.replace_status(first.clone()).await));
    first.metadata.resource_version = None;
    assert!(refusal(f.store.replace_status(first.clone()).await).contains("resourceVersion"));
    let mut broken = live(&f.store, &read.key()).await;
    broken.status = json!({ "attempt": "many" });
    assert!(refusal(f.store.replace_status(broken).await).contains("status.attempt"));
}

pub async fn only_priority_and_suspend_can_change(f: Fixture) {
    let record = f.store.create(agent("one")).await.unwrap();
    for (field, value) in [
        ("timeout", json!("2h")),
        ("taskId", json!("T-2")),
        ("dependsOn", json!(["other"])),
        ("gates", json!({ "profile": "minimal" })),
        ("context", json!({ "repository": "file:///elsewhere" })),
        ("runtime", json!({ "command": { "args": ["other"] } })),
    ] {
        let mut changed = record.clone();
        changed.spec[field] = value;
        assert!(refusal(f.store.replace(changed).await).contains("only spec.priority and spec.suspend"), "{field}");
    }
    let mut changed = record.clone();
    changed.spec["priority"] = json!(10);
    changed.spec["suspend"] = json!(true);
    let mut changed = f.store.replace(changed).await.unwrap();
    changed.spec.as_object_mut().unwrap().remove("priority");
    f.store.replace(changed).await.unwrap();
}

pub async fn unknown_fields_and_nulls_are_pruned(f: Fixture) {
    let mut given = agent("one");
    given.spec["shoeSize"] = json!(44);
    given.spec["context"]["colour"] = json!("red");
    given.spec["timeout"] = Value::Null;
    let mut created = f.store.create(given).await.unwrap();
    assert_eq!(created.spec, agent("one").spec);
    created.spec["shoeSize"] = json!(45);
    assert_eq!(version(&f.store.replace(created.clone()).await.unwrap()), version(&created));
}

pub async fn a_refusal_names_the_field(f: Fixture) {
    let mut urgent = agent("one");
    urgent.spec["priority"] = json!(11);
    let text = refusal(f.store.create(urgent).await);
    assert!(text.contains("spec.priority"), "{text}");
    let mut both = agent("one");
    both.spec["runtime"]["preset"] = json!("codex");
    let text = refusal(f.store.create(both).await);
    assert!(text.contains("spec.runtime needs exactly one of claude, preset and command"), "{text}");
    assert_eq!(f.store.get(&Key::agent("default", "one")).await.unwrap(), None);
}

pub async fn halts_are_cluster_scoped(f: Fixture) {
    let created = f.store.create(halt("stop")).await.unwrap();
    assert_eq!(created.key(), Key::halt("stop"));
    assert_eq!(live(&f.store, &Key::halt("stop")).await, created);
    assert!(created.halt().is_ok());
    let mut namespaced = halt("other");
    namespaced.metadata.namespace = Some("default".to_owned());
    assert!(f.store.create(namespaced).await.is_err());
    let mut homeless = agent("one");
    homeless.metadata.namespace = None;
    assert!(f.store.create(homeless).await.is_err());
}

pub async fn metadata_is_checked_as_kubernetes_does(f: Fixture) {
    let attempts = [
        ("labels", json!({ "-bad": "x" })),
        ("labels", json!({ "team": "not a value" })),
        ("labels", json!({ "Bad_Prefix!/team": "x" })),
        ("annotations", json!({ "not a key": "x" })),
        ("annotations", json!({ "big": "x".repeat(300 << 10) })),
        ("finalizers", json!(["no spaces please"])),
    ];
    for (field, value) in attempts {
        let mut metadata = json!({ "name": "one", "namespace": "default" });
        metadata[field] = value;
        let record = Record { metadata: serde_json::from_value(metadata).unwrap(), ..agent("one") };
        assert!(f.store.create(record).await.is_err(), "{field}");
    }
    for name in ["", "Upper", "-dash", "a/b", "..", &"x".repeat(64)] {
        assert!(f.store.create(agent(name)).await.is_err(), "{name}");
    }
    let mut fine = agent("one");
    fine.metadata.labels = serde_json::from_value(json!({ "example.org/Team_1": "A.b-c", "empty": "" })).unwrap();
    fine.metadata.annotations = serde_json::from_value(json!({ "mosaicstack.dev/ended-by": "any text\nat all" })).unwrap();
    f.store.create(fine).await.unwrap();
}

pub async fn too_large_records_are_refused(f: Fixture) {
    let mut large = agent("one");
    large.spec["runtime"]["command"]["args"] = json!(vec!["x".repeat(16_000); 100]);
    assert!(refusal(f.store.create(large).await).contains("maximum"));
}

pub async fn delete_without_finalizers_removes(f: Fixture) {
    let created = f.store.create(agent("one")).await.unwrap();
    let mut watch = f.store.watch(Kind::Agent, version(&created)).await.unwrap();
    let last = f.store.delete(&created.key(), Some(&uid(&created)), &[]).await.unwrap();
    assert_eq!(last.spec, created.spec);
    assert_eq!(f.store.get(&created.key()).await.unwrap(), None);
    let WatchEvent::Deleted(told) = event(&mut watch).await.unwrap() else { panic!("expected Deleted") };
    assert_eq!(uid(&told), uid(&created));
    assert!(version(&told) > version(&created));
}

pub async fn delete_waits_for_finalizers(f: Fixture) {
    let created = f.store.create(with_finalizer(agent("one"))).await.unwrap();
    let why = [("mosaicstack.dev/ended-by", "kill".to_owned())];
    let deleting = f.store.delete(&created.key(), None, &why).await.unwrap();
    assert!(deleting.metadata.deletion_timestamp.is_some());
    assert_eq!(deleting.metadata.annotations.as_ref().unwrap()["mosaicstack.dev/ended-by"], "kill");
    assert!(version(&deleting) > version(&created));
    assert_eq!(live(&f.store, &created.key()).await, deleting);

    let mut status = deleting.clone();
    status.status = json!({ "phase": "Killed" });
    let mut last = f.store.replace_status(status).await.unwrap();
    let mut watch = f.store.watch(Kind::Agent, version(&last)).await.unwrap();
    last.metadata.finalizers = None;
    last.metadata.deletion_timestamp = None;
    let gone = f.store.replace(last).await.unwrap();
    assert!(gone.metadata.deletion_timestamp.is_some(), "only the store decides it");
    assert_eq!(gone.status["phase"], "Killed");
    assert_eq!(f.store.get(&created.key()).await.unwrap(), None);
    let WatchEvent::Deleted(told) = event(&mut watch).await.unwrap() else { panic!("expected Deleted") };
    assert_eq!(told.status["phase"], "Killed", "watches are told the last state");
    assert!(matches!(f.store.delete(&created.key(), None, &[]).await, Err(StoreError::NotFound(_))));
}

pub async fn delete_asks_for_the_very_record(f: Fixture) {
    let created = f.store.create(agent("one")).await.unwrap();
    let other = Uid::new("00000000-0000").unwrap();
    assert!(conflicts(f.store.delete(&created.key(), Some(&other), &[]).await));
    assert_eq!(live(&f.store, &created.key()).await, created);
}

pub async fn finalizers_cannot_be_added_while_deleting(f: Fixture) {
    let created = f.store.create(with_finalizer(agent("one"))).await.unwrap();
    let mut deleting = f.store.delete(&created.key(), None, &[]).await.unwrap();
    deleting.metadata.finalizers = Some(vec![FINALIZER.to_owned(), "example.org/mine".to_owned()]);
    assert!(refusal(f.store.replace(deleting).await).contains("finalizers"));
}

pub async fn missing_records_are_not_found(f: Fixture) {
    let mut ghost = agent("ghost");
    ghost.metadata.resource_version = Some("1".to_owned());
    assert_eq!(f.store.get(&ghost.key()).await.unwrap(), None);
    assert!(matches!(f.store.replace(ghost.clone()).await, Err(StoreError::NotFound(_))));
    assert!(matches!(f.store.replace_status(ghost.clone()).await, Err(StoreError::NotFound(_))));
    assert!(matches!(f.store.delete(&ghost.key(), None, &[]).await, Err(StoreError::NotFound(_))));
}

pub async fn racing_writers_lose_nothing(f: Fixture) {
    const TASKS: u32 = 16;
    const WINS_EACH: u32 = 50;
    let created = f.store.create(agent("one")).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (store, key) = (Arc::clone(&f.store), created.key());
            tokio::spawn(async move {
                let mut wins = 0;
                while wins < WINS_EACH {
                    let mut record = live(&store, &key).await;
                    let attempt = record.status["attempt"].as_u64().unwrap_or(0);
                    record.status = json!({ "attempt": attempt + 1 });
                    match store.replace_status(record).await {
                        Ok(_) => wins += 1,
                        Err(StoreError::Conflict(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let record = live(&f.store, &created.key()).await;
    assert_eq!(record.status["attempt"], TASKS * WINS_EACH);
    assert_eq!(record.metadata.generation, Some(1));
    // Each win changed the record once, and nothing else was written meanwhile.
    if f.changes_max.is_some() {
        assert_eq!(version(&record) - version(&created), u64::from(TASKS * WINS_EACH));
    }
}
