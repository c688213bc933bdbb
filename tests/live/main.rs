//! What needs more than this machine's kernel and git: a container engine (`DOCKER_HOST`, or the usual socket), a Valkey server, a Kubernetes API
//! server. Without its component each test says so and is counted as skipped.
//!
//! Containers run this machine's busybox (Debian: `busybox-static`), from an image that the tests make themselves; what needs more inside uses
//! the default sandbox image (`make image`). Tests share one engine and never look at what another installation has there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[cfg(target_arch = "x86_64")]
#[path = "../it/contracts/sandbox/baits.rs"]
mod baits;
#[path = "../it/contracts/sandbox/contract.rs"]
mod contract;
mod contracts;
mod controllers;
mod docker;
mod e2e;
mod engine;
#[allow(unused, reason = "shared with the offline binary, which uses all of it")]
#[path = "../it/e2e/harness.rs"]
mod harness;
mod jobs;
mod kill;
mod kube;
mod leaders;
#[path = "../it/skip.rs"]
mod skip;
mod valkey;
#[path = "../it/e2e/waves.rs"]
mod waves;
