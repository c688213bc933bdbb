//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod contracts;
mod gates;
mod records;
mod tidy;
mod tools;
