//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must end with the place where it could not")]

mod agent_contract;
mod contracts;
mod gates;
mod records;
mod skip;
mod tidy;
mod tools;
