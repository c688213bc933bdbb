//! Backoff from (failures, last failure, now). Deterministic: the jitter comes from the agent's uid, so that the same state gives the
//! same plan.

use crate::api::names::Uid;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// How often the infrastructure may fail one agent before it is given up.
pub const INFRASTRUCTURE_FAILURES_MAX: u32 = 8;
/// How often the infrastructure of one gate may fail on one commit before the agent is given up.
pub const GATE_TRIES_MAX: u32 = 3;
/// How often the base may move between gates and push before that counts as a failure of the infrastructure.
pub const BASE_MOVES_MAX: u32 = 3;
/// How long a record that was not admitted waits before it is looked at again: the missing repository may appear.
pub const ADMISSION_RECHECK: Duration = Duration::from_secs(30);

/// Returns how long to wait after the `failures`-th failure: `initial` doubled each time, at most `max`, and up to a tenth less by jitter.
/// Source: kubelet restart backoff (doubles, capped at five minutes).
#[must_use]
pub fn backoff(uid: &Uid, failures: u32, initial: Duration, max: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = initial.saturating_mul(1 << doublings).min(max);
    // FNV-1a over uid and count: enough to spread a herd, and the same on every pass.
    let seed = uid
        .as_str()
        .bytes()
        .chain(failures.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    whole - (whole / 10).mul_f64(f64::from((seed % 1000) as u32) / 1000.0)
}

/// How long until something that failed at `at` is tried again; `None`: now. A failure that lies ahead means that the clock was set back:
/// it is tried again at once, or the wait would last until the clock has caught up.
#[must_use]
pub fn until_retry(at: Timestamp, wait: Duration, now: Timestamp) -> Option<Duration> {
    if at > now { None } else { remaining(at, wait, now) }
}

/// How long until `at + wait`; `None` when that is over. With a clock that was set back the whole of `wait` is left: nothing times out
/// early.
#[must_use]
pub fn remaining(at: Timestamp, wait: Duration, now: Timestamp) -> Option<Duration> {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    let passed = now.duration_since(at).max(SignedDuration::ZERO);
    let left = wait.checked_sub(passed)?;
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}
