//! Simulation: the real `reconcile()` over a fake store and a fake world, driven by a seed. See `scheduler` for what it does, `oracle`
//! for what must hold, `plants` for the proof that the oracle sees, `sweep` for a crash and a kill at every effect. The latch, the hand-over of
//! its halts and the judgement of a receipt are the real ones as well; the kill lane (`lane`) and container engines (`engine`) are fakes.
//!
//! `MOSAIC_SIM_SEEDS` sets how many seeds are run and `MOSAIC_SIM_FROM` the first; `MOSAIC_SIM_SEED` runs a single one and prints its log.

mod effects;
mod engine;
mod faults;
mod git;
mod heal;
mod lane;
mod mischief;
mod oracle;
mod passes;
mod plants;
mod run;
mod scheduler;
mod store;
mod sweep;
mod truth;
mod world;

use faults::Case;
pub use run::simulate;
use run::{Run, run_case};
use std::collections::BTreeMap;

/// Seeds of one ordinary test run.
const SEEDS: u64 = 2000;
/// Seeds that are run twice, to see that a seed is a run.
const SEEDS_TWICE: u64 = 50;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number of seeds"))
}

fn report(seed: u64, run: &Run) -> String {
    let from = run.lines.len().saturating_sub(200);
    format!(
        "{1}\nseed {seed}: {0:#?}\nrun it alone: MOSAIC_SIM_SEED={seed} cargo test --test it sim::one_seed -- --nocapture",
        run.violations,
        run.lines[from..].join("\n"),
    )
}

#[test]
fn whatever_fails_everything_converges() {
    let seeds = number("MOSAIC_SIM_SEEDS").unwrap_or(SEEDS);
    let started = std::time::Instant::now();
    let first = number("MOSAIC_SIM_FROM").unwrap_or_default();
    let runs = simulate(seeds, |index| {
        let seed = first + index;
        let mut run = run_case(&Case { seed, plant: None });
        if run.violations.is_empty() {
            run.lines.clear();
        }
        run
    });
    let passes: u32 = runs.iter().map(|run| run.passes).sum();
    println!("{seeds} seeds, {passes} passes after healing, {:.1} s", started.elapsed().as_secs_f32());
    let mut tally: BTreeMap<String, u32> = BTreeMap::new();
    for word in runs.iter().flat_map(|run| run.endings.iter().cloned().chain(run.applied.iter().map(|name| (*name).to_owned()))) {
        *tally.entry(word).or_default() += 1;
    }
    println!("{tally:#?}");
    let failed: Vec<(u64, &Run)> = (first..).zip(&runs).filter(|(_, run)| !run.violations.is_empty()).collect();
    if let Some((seed, run)) = failed.first() {
        let all: Vec<String> = failed.iter().take(40).map(|(seed, run)| format!("{seed}: {}", run.violations[0])).collect();
        panic!("{} seeds of {seeds} failed:\n{}\n{}", failed.len(), all.join("\n"), report(*seed, run));
    }
}

#[test]
fn one_seed_is_one_run() {
    for (seed, same) in (0..).zip(simulate(SEEDS_TWICE, |seed| {
        let case = Case { seed, plant: None };
        run_case(&case).hash == run_case(&case).hash
    })) {
        assert!(same, "seed {seed} went another way the second time");
    }
}

#[test]
fn one_seed() {
    let Some(seed) = number("MOSAIC_SIM_SEED") else { return };
    let run = run_case(&Case { seed, plant: None });
    println!("{}", run.lines.join("\n"));
    assert!(run.violations.is_empty(), "{:#?}", run.violations);
}
