//! The one offline test binary.
#![expect(clippy::unwrap_used, reason = "a test that meets what it did not expect has failed")]

mod plan;
mod records;
mod sim;
