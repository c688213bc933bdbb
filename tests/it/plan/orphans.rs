//! What has no record.

use super::build::*;
use mosaic::api::names::Uid;
use mosaic::plan::observed::{EndCause, Inventory};
use mosaic::plan::orphans::{KnownRecords, OrphanAction, plan_orphans};
use std::collections::BTreeSet;

fn inventory(sandboxes: Vec<mosaic::plan::observed::SandboxSeen>, trees: &[&Uid]) -> Inventory {
    let workspaces = trees.iter().map(|uid| ((*uid).clone(), "tree".to_owned())).collect();
    Inventory { sandboxes, workspaces, gate_trees: Vec::new() }
}

#[test]
fn what_has_a_record_is_never_touched() {
    let known = KnownRecords { uids: BTreeSet::from([uid()]), amnesia: false };
    let all = inventory(vec![running(agent_run(1), 1), ended(gate_run("tests", 2, 0), EndCause::Exited(0))], &[&uid()]);
    assert_eq!(plan_orphans(&all, &known), BTreeSet::new());
}

#[test]
fn a_store_that_has_forgotten_removes_nothing() {
    let known = KnownRecords { uids: BTreeSet::new(), amnesia: true };
    assert_eq!(plan_orphans(&inventory(vec![running(agent_run(1), 1)], &[&uid()]), &known), BTreeSet::new());
}

#[test]
fn an_orphan_is_stopped_then_removed_and_its_tree_goes_last() {
    let known = KnownRecords::default();
    let steps = [
        (inventory(vec![running(agent_run(1), 1)], &[&uid()]), OrphanAction::StopSandbox(agent_run(1))),
        (inventory(vec![ended(agent_run(1), EndCause::Stopped)], &[&uid()]), OrphanAction::RemoveSandbox(agent_run(1))),
        (inventory(vec![], &[&uid()]), OrphanAction::RemoveWorkspace(uid())),
    ];
    for (seen, expected) in steps {
        assert_eq!(plan_orphans(&seen, &known), BTreeSet::from([expected]));
    }
    assert_eq!(plan_orphans(&inventory(vec![], &[]), &known), BTreeSet::new());
}

#[test]
fn the_tree_of_a_gate_without_a_record_goes_as_well() {
    let seen = Inventory { gate_trees: vec![(uid(), "gate".into())], ..Inventory::default() };
    assert_eq!(plan_orphans(&seen, &KnownRecords::default()), BTreeSet::from([OrphanAction::RemoveWorkspace(uid())]));
}
