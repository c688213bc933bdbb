//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agent_contract;
mod audit;
mod bad_input;
mod cli;
mod contracts;
mod doctor;
mod e2e;
mod fuzz_seeds;
mod gates;
mod http;
mod kill;
mod kube_api;
mod link;
mod plan;
mod records;
mod servers;
mod sim;
mod skip;
mod standby;
mod tamper;
mod tidy;
mod tools;
mod waits;
mod workspace;
