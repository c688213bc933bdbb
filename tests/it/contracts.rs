//! One suite per trait, run on every implementation.

pub mod lease;
#[path = "contracts/lease/file.rs"]
mod lease_file;
pub mod sandbox;
pub mod store;
#[path = "contracts/store/embedded.rs"]
mod store_embedded;
