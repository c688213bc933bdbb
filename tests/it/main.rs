//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.

#![allow(clippy::unwrap_used, reason = "a test that unwraps says enough by failing; support code of tests is no different")]

mod agent_contract;
mod audit;
mod cli;
mod contracts;
mod e2e;
mod gates;
mod http;
mod records;
mod skip;
mod tidy;
mod tools;
mod workspace;
