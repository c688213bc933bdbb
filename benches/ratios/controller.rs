//! Controller: what one change of one agent costs with ten thousand agents, over what it costs with a hundred.
//!
//! Both sides are the real `Controller` over a real `EmbeddedStore` on disk, alive in one process at the same time, with a world in
//! which there is nothing to see. The agents are suspended. A change is: read one record, write it back with another priority (schema
//! and CEL rules, one durable commit), until its pass has stored that it saw it (a second durable commit); the CPU time of a turn is
//! taken when no pass is left to be made, so whatever else a change wakes is in it.

use crate::rig::{Rig, cpu_seconds};
use crate::table::{Figure, Part, median};
use mosaic::store::embedded::EmbeddedOptions;

const SMALL: usize = 100;
const LARGE: usize = 10_000;
/// Turns.
const TURNS: usize = 9;
/// Changes of one turn.
const CHANGES: usize = 200;

/// What one turn took, per change.
struct Turn {
    cpu: f64,
    wall: f64,
    passes: f64,
}

/// Measures the part.
pub fn measure() -> Part {
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(compare(folder.path()))
}

async fn compare(folder: &std::path::Path) -> Part {
    let mut rigs = Vec::new();
    for count in [SMALL, LARGE] {
        let place = folder.join(count.to_string());
        std::fs::create_dir(&place).expect("a fresh folder");
        let rig = Rig::start(&place, EmbeddedOptions::default());
        rig.declare(0, count).await;
        rigs.push((rig, count, Vec::new()));
    }
    for turn in 0..=TURNS {
        for (rig, count, turns) in &mut rigs {
            let done = one_turn(rig, *count, turn).await;
            // The first turn warms both sides up.
            if turn > 0 {
                turns.push(done);
            }
        }
    }
    let unrelated: u64 = rigs.iter().map(|(rig, _, _)| rig.looks.unrelated()).sum();
    let [(small_rig, _, small), (large_rig, _, large)] = <[_; 2]>::try_from(rigs).ok().expect("two sides");
    small_rig.end().await;
    large_rig.end().await;
    let column = |turns: &[Turn], of: fn(&Turn) -> f64| turns.iter().map(of).collect::<Vec<f64>>();
    let changes = (2 * (TURNS + 1) * CHANGES) as f64;
    let passes = column(&large, |t| t.passes);
    let figures = vec![
        Figure::of_seconds("CPU of one change, 10,000 agents / 100", Some(1.2), &column(&large, |t| t.cpu), &column(&small, |t| t.cpu)),
        Figure::of_seconds("  time of one change, 10,000 agents / 100", None, &column(&large, |t| t.wall), &column(&small, |t| t.wall)),
        Figure {
            name: "passes over other agents per change".to_owned(),
            ratios: vec![unrelated as f64 / changes],
            goal: Some(0.0),
            ours: unrelated.to_string(),
            floor: format!("{changes} changes"),
        },
        Figure {
            name: "  passes over the agent itself per change".to_owned(),
            ratios: passes.clone(),
            goal: None,
            ours: format!("{:.2}", median(&passes)),
            floor: "1".to_owned(),
        },
    ];
    let foot = vec![format!(
        "controller: {CHANGES} changes per turn and side; one change = read, write another priority, until the pass over it was stored; CPU by \
         getrusage, of the whole process, until nothing is left to do. Ours = {LARGE} suspended agents, floor = {SMALL}; the same program."
    )];
    Part { figures, foot }
}

async fn one_turn(rig: &mut Rig, count: usize, turn: usize) -> Turn {
    let (cpu, passes) = (cpu_seconds(), rig.passes());
    let mut walls = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        // Spread over the fleet, each time others.
        walls.push(rig.change((turn * CHANGES + change) * 7919 % count).await);
    }
    rig.settled().await;
    let per_change = CHANGES as f64;
    Turn { cpu: (cpu_seconds() - cpu) / per_change, wall: median(&walls), passes: (rig.passes() - passes) as f64 / per_change }
}
