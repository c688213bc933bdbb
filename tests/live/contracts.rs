//! The suites of the offline binary, run on what only a server has.

#[path = "../it/contracts/lease.rs"]
pub mod lease;
#[path = "../it/contracts/store.rs"]
pub mod store;
#[path = "../it/contracts/lease/wishes.rs"]
pub mod wishes;
