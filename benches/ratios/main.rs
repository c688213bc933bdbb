//! What `make bench` runs: ratios of what this program does to the least that the same work can cost, both measured in one run.
//!
//! Each part takes turns between the two sides (A, B, A, B, …), so that a slow minute of the machine is slow for both; a ratio is the
//! median over the turns. Nothing is asserted: a figure is for people, and a busy machine is no mistake of the program. What each side
//! does is said at the head of each part and at the foot of the table.
//!
//! Names behind `cargo bench --bench ratios --` choose parts: workspace, snapshot, sandbox, docker, controller, lifecycle, kube, pods,
//! memory, valkey.

mod controller;
mod docker;
mod kube;
mod lifecycle;
mod memory;
mod pods;
mod rig;
mod sandbox;
mod snapshot;
mod table;
mod valkey;
mod workspace;

use table::Part;

/// Measures one part, both sides in this run.
type Measure = fn() -> Part;

fn main() {
    if memory::is_child() {
        return memory::child();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    let parts: [(&str, Measure); 10] = [
        ("workspace", workspace::measure),
        ("snapshot", snapshot::measure),
        ("sandbox", sandbox::measure),
        ("controller", controller::measure),
        ("docker", docker::measure),
        ("lifecycle", lifecycle::measure),
        ("kube", kube::measure),
        ("pods", pods::measure),
        ("memory", memory::measure),
        ("valkey", valkey::measure),
    ];
    let mut done = Vec::new();
    for (name, measure) in parts.into_iter().filter(|(name, _)| is_wanted(name)) {
        eprintln!("measuring: {name} …");
        done.push(measure());
    }
    table::print(&done);
}
