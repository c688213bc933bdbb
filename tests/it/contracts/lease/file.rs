//! The file lock: the contract, and what only it can do.

use crate::contracts::lease::{Fixture, leads};
use mosaic::api::names::Epoch;
use mosaic::store::embedded::{EmbeddedOptions, EmbeddedStore};
use mosaic::store::lease::{Acquired, FileLease, Lease, LeaseError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Set in a child process: the state folder to lead on.
const CHILD_FOLDER: &str = "MOSAIC_TEST_LEASE_FOLDER";

mod contract {
    crate::contracts::lease::every_promise!(super::in_a_folder);
}

async fn in_a_folder() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    Fixture { candidate: Box::new(move || Arc::new(FileLease::new(&path, None))), _keep: Box::new(folder) }
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
async fn who_cannot_have_the_store_wishes_in_vain() {
    let fixture = in_a_folder().await;
    let [a, b, c] = [(); 3].map(|()| (fixture.candidate)());
    let epoch = leads(&a, 0).await;
    b.wish().await.unwrap();
    assert_eq!(a.renew(epoch).await.unwrap(), None);
    a.release(epoch).await.unwrap();
    assert!(leads(&c, 0).await > epoch);
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
    command.args(["contracts::lease_file::child_leads_until_killed", "--exact", "--ignored", "--nocapture"]).env(CHILD_FOLDER, folder);
    command.stdout(Stdio::piped()).spawn().unwrap()
}
