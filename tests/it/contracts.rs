//! One suite per trait, run on every implementation.

pub mod lease;
pub mod sandbox;
pub mod store;
