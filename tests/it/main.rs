//! The one offline test binary.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[cfg(feature = "controller")]
mod workspace;
