//! The tests that need something beside this machine's kernel and git: each says what, and is skipped loudly where it cannot be had.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod contracts;
#[allow(unused, reason = "shared with the offline binary, which uses all of it")]
#[path = "../it/e2e/harness.rs"]
mod harness;
#[path = "../it/skip.rs"]
mod skip;
mod valkey;
