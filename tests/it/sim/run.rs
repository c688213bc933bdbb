//! One seed from beginning to end, and many of them on all processors.

use super::faults::Case;
use super::mischief;
use super::oracle;
use super::truth::Shared;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a run has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub hash: u64,
    pub violations: Vec<String>,
    pub lines: Vec<String>,
    pub applied: Vec<&'static str>,
    pub endings: Vec<String>,
    pub passes: u32,
}

/// One seed from beginning to end; a panic counts as a violation.
pub fn run_case(case: &Case) -> Run {
    let shared: Arc<Mutex<Option<Shared>>> = Arc::default();
    let keep = shared.clone();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut sim = mischief::fleet_of(case);
        *keep.lock().unwrap() = Some(sim.truth.clone());
        mischief::wreak(&mut sim);
        sim.heal();
        sim.passes.values().sum::<u32>()
    }));
    let truth = shared.lock().unwrap().take().expect("a run has a truth");
    let mut truth = truth.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Err(panic) = &result {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        truth.violate(format!("panic: {}", text.unwrap_or_default()));
    }
    Run {
        hash: truth.log.hash,
        violations: truth.oracle.violations.clone(),
        lines: truth.log.lines.clone(),
        applied: truth.applied.clone(),
        endings: oracle::endings(&truth),
        passes: result.unwrap_or_default(),
    }
}

/// Runs `act` for every number below `count` on all processors; results in order.
pub fn simulate<T: Send>(count: u64, act: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = std::sync::atomic::AtomicU64::new(0);
    let results = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let result = act(index);
                    results.lock().unwrap().insert(index, result);
                }
            });
        }
    });
    results.into_inner().unwrap().into_values().collect()
}
