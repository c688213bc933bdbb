//! The contract of `trait Lease`, and what only the embedded form can do.

use mosaic::api::names::Epoch;
use mosaic::store::embedded::{EmbeddedOptions, EmbeddedStore};
use mosaic::store::lease::{Acquired, FileLease, Lease, LeaseError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Set in a child process: the state folder to lead on.
const CHILD_FOLDER: &str = "MOSAIC_TEST_LEASE_FOLDER";

/// Makes candidates for one and the same lease.
struct Fixture {
    candidate: Box<dyn Fn() -> Arc<dyn Lease> + Send + Sync>,
    _keep: Box<dyn std::any::Any + Send + Sync>,
}

macro_rules! suite {
    ($factory:path; $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $promise() {
                super::$promise($factory()).await;
            }
        )*
    };
}

mod file {
    suite! {
        super::in_a_folder;
        one_leads_and_the_other_is_told_who,
        whoever_leads_keeps_its_epoch,
        epochs_only_grow,
        epoch_is_above_what_was_seen_elsewhere,
        released_is_free_for_the_next,
        releasing_what_is_not_held_harms_nobody,
        renewing_what_is_not_held_is_lost,
        of_many_candidates_one_leads,
    }
}

fn in_a_folder() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    Fixture { candidate: Box::new(move || Arc::new(FileLease::new(&path, None))), _keep: Box::new(folder) }
}

async fn leads(lease: &Arc<dyn Lease>, floor: u64) -> Epoch {
    match lease.acquire(Epoch(floor)).await.unwrap() {
        Acquired::Leads(epoch) => epoch,
        held @ Acquired::Held { .. } => panic!("{held:?}"),
    }
}

async fn one_leads_and_the_other_is_told_who(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let epoch = leads(&a, 0).await;
    let Acquired::Held { by } = b.acquire(Epoch(0)).await.unwrap() else { panic!("two leaders") };
    assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
    a.renew(epoch).await.unwrap();
}

async fn whoever_leads_keeps_its_epoch(f: Fixture) {
    let a = (f.candidate)();
    let epoch = leads(&a, 0).await;
    assert_eq!(leads(&a, 500).await, epoch);
}

async fn epochs_only_grow(f: Fixture) {
    let mut last = Epoch(0);
    for _ in 0..5 {
        let a = (f.candidate)();
        let epoch = leads(&a, 0).await;
        assert!(epoch > last);
        last = epoch;
    }
}

async fn epoch_is_above_what_was_seen_elsewhere(f: Fixture) {
    let a = (f.candidate)();
    assert_eq!(leads(&a, 41).await, Epoch(42));
    a.release(Epoch(42)).await.unwrap();
    assert_eq!(leads(&a, 7).await, Epoch(43));
}

async fn released_is_free_for_the_next(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let first = leads(&a, 0).await;
    a.release(first).await.unwrap();
    let second = leads(&b, 0).await;
    assert!(second > first);
    assert!(matches!(a.renew(first).await, Err(LeaseError::Lost { .. })));
    b.renew(second).await.unwrap();
}

async fn releasing_what_is_not_held_harms_nobody(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let epoch = leads(&a, 0).await;
    b.release(epoch).await.unwrap();
    a.release(Epoch(epoch.0 + 1)).await.unwrap();
    a.renew(epoch).await.unwrap();
    assert!(matches!(b.acquire(Epoch(0)).await.unwrap(), Acquired::Held { .. }));
}

async fn renewing_what_is_not_held_is_lost(f: Fixture) {
    let a = (f.candidate)();
    assert!(matches!(a.renew(Epoch(1)).await, Err(LeaseError::Lost { .. })));
    let epoch = leads(&a, 0).await;
    assert!(matches!(a.renew(Epoch(epoch.0 + 1)).await, Err(LeaseError::Lost { .. })));
}

async fn of_many_candidates_one_leads(f: Fixture) {
    let candidates: Vec<_> = (0..16).map(|_| (f.candidate)()).collect();
    let asked = candidates.iter().map(|c| c.acquire(Epoch(0)));
    let answers = futures::future::join_all(asked).await;
    let leaders = answers.iter().filter(|a| matches!(a, Ok(Acquired::Leads(_)))).count();
    assert_eq!(leaders, 1, "{answers:?}");
}

#[tokio::test]
async fn a_lost_epoch_file_does_not_bring_an_old_epoch_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open(&folder.path().join("mosaic.redb"), EmbeddedOptions::default()).unwrap();
    let lease = || -> Arc<dyn Lease> { Arc::new(FileLease::new(folder.path(), Some(Arc::new(open())))) };
    let first = leads(&lease(), 10).await;
    std::fs::remove_file(folder.path().join("epoch")).unwrap();
    let second = leads(&lease(), 0).await;
    assert!(second > first, "the store remembers");
    std::fs::remove_file(folder.path().join("mosaic.redb")).unwrap();
    assert!(leads(&lease(), 0).await > second, "the epoch file remembers");
}

#[tokio::test]
async fn a_damaged_epoch_file_is_not_guessed_at() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("epoch"), "ten").unwrap();
    let lease = FileLease::new(folder.path(), None);
    let error = lease.acquire(Epoch(0)).await.unwrap_err().to_string();
    assert!(error.contains("instead of a number"), "{error}");
    std::fs::write(folder.path().join("epoch"), "10").unwrap();
    assert_eq!(lease.acquire(Epoch(0)).await.unwrap(), Acquired::Leads(Epoch(11)), "the lock was given back");
}

#[tokio::test]
async fn a_removed_lock_file_is_noticed_by_the_old_leader() {
    let folder = tempfile::tempdir().unwrap();
    let old: Arc<dyn Lease> = Arc::new(FileLease::new(folder.path(), None));
    let epoch = leads(&old, 0).await;
    std::fs::remove_file(folder.path().join("lock")).unwrap();
    let new: Arc<dyn Lease> = Arc::new(FileLease::new(folder.path(), None));
    assert!(leads(&new, 0).await > epoch);
    assert!(matches!(old.renew(epoch).await, Err(LeaseError::Lost { .. })));
}

#[tokio::test]
#[ignore = "played by a child process of `a_killed_leader_is_followed_at_once`"]
async fn child_leads_until_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER).map(PathBuf::from) else { return };
    let lease: Arc<dyn Lease> = Arc::new(FileLease::new(&folder, None));
    println!("\nleads {}", leads(&lease, 0).await.0);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_leader_is_followed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = start_leader(folder.path());
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("leads ")).expect("the child leads");
    let lease: Arc<dyn Lease> = Arc::new(FileLease::new(folder.path(), None));
    let Acquired::Held { by } = lease.acquire(Epoch(0)).await.unwrap() else { panic!("two leaders") };
    assert!(by.starts_with(&format!("pid {}, since 20", child.id())), "{by}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(format!("leads {}", leads(&lease, 0).await.0 - 1), line);
}

fn start_leader(folder: &Path) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["contracts::lease::child_leads_until_killed", "--exact", "--ignored", "--nocapture"]).env(CHILD_FOLDER, folder);
    command.stdout(Stdio::piped()).spawn().unwrap()
}
