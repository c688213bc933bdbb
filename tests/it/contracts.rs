//! One suite per trait, run on every implementation.

pub mod store;
