//! Tests that need something that may be absent say so loudly, and `tests/run.sh` counts them as skipped, never as passed.

use std::io::Write as _;

/// Set by CI, where everything is there: what cannot run has failed.
const NO_SKIP: &str = "MOSAIC_TEST_NO_SKIP";

/// Reports that a test (`module::name`) cannot run here and why. The caller returns.
/// # Panics
/// When skipping is not allowed.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os(NO_SKIP).is_none_or(|value| value != "1"), "{test} cannot run: {why}");
    // Not by `eprintln!`, which the test harness keeps to itself when a test passes.
    std::io::stderr().write_all(format!("\nSKIPPED {test}: {why}\n").as_bytes()).unwrap();
}
