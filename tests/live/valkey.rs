//! On a real Valkey server: `VALKEY_URL` where a test needs no power over it, else a server of the test's own, made with the program named by
//! `MOSAIC_TEST_VALKEY_SERVER` or found as `valkey-server` in `PATH`.

mod contract;
mod e2e;
mod faults;
mod lease;
pub mod proxy;
mod recovery;
pub mod server;
mod soak;
mod standby;
mod words;

use mosaic::store::valkey::{Durability, ValkeyOptions, ValkeyStore, ValkeyUrl};
use mosaic::store::{Record, StoreError};
use std::time::Duration;

/// Opens the default store of a server.
pub async fn open(url: &str) -> Result<ValkeyStore, StoreError> {
    open_with(url, ValkeyOptions::default()).await
}

/// Opens a store with these options.
pub async fn open_with(url: &str, options: ValkeyOptions) -> Result<ValkeyStore, StoreError> {
    ValkeyStore::open(&ValkeyUrl::parse(url).unwrap(), options).await
}

/// Options for a store of one test on a server that many share.
pub fn of_one_test() -> ValkeyOptions {
    ValkeyOptions {
        prefix: format!("test-{}", uuid::Uuid::new_v4()),
        durability: Durability::Auto,
        changes_max: 100,
        history_max: 5,
        bookmark_interval: Duration::from_millis(100),
        ..ValkeyOptions::default()
    }
}

/// The words of an error that says that the store is unavailable, with its causes.
pub fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(error @ StoreError::Unavailable { .. }) => mosaic::causes::one_line(&error),
        other => panic!("expected Unavailable, got {other:?}"),
    }
}

/// The same record with the next attempt in its status.
pub fn next(mut record: Record) -> Record {
    let attempt = record.status["attempt"].as_u64().unwrap_or(0);
    record.status = serde_json::json!({ "attempt": attempt + 1 });
    record
}
