//! Every combination of the small space: what is seen x what is under way x what has ended x stage x deleting or latched x permit x suspend.

use super::build::*;
use crate::sim::simulate;
use mosaic::api::condition::{self, reason};
use mosaic::api::names::Attempt;
use mosaic::plan::Plan;
use mosaic::plan::action::{Action, ActionId};
use mosaic::plan::fleet::Permit;
use mosaic::plan::observed::{
    EndCause, Failure, FailureClass, Integrated, Look, Outcome, Pushed, SandboxSeen, SandboxState, Snapshot, WorkspaceSeen,
};
use mosaic::plan::status::ending;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

fn sandboxes() -> Vec<Look<Vec<SandboxSeen>>> {
    let lists = vec![
        vec![],
        vec![seen(agent_run(1), SandboxState::Preparing)],
        vec![running(agent_run(1), 1)],
        vec![running(agent_run(1), 100_000)],
        vec![ended(agent_run(1), EndCause::Exited(0))],
        vec![ended(agent_run(1), EndCause::Exited(1))],
        vec![ended(agent_run(1), EndCause::Stopped)],
        vec![ended(agent_run(1), EndCause::Lost("gone".into()))],
        vec![running(agent_run(2), 1)],
        vec![running(gate_run("tests", 2, 0), 1)],
        vec![ended(gate_run("tests", 2, 0), EndCause::Exited(0))],
        vec![ended(gate_run("tests", 2, 0), EndCause::Exited(1))],
        vec![ended(gate_run("tests", 2, 0), EndCause::Lost("gone".into()))],
        vec![running(gate_run("tests", 9, 0), 1)],
        vec![running(agent_run(1), 1), running(gate_run("tests", 2, 0), 1)],
    ];
    lists.into_iter().map(Look::Seen).chain([Look::Unknown("no answer".into())]).collect()
}

fn workspaces() -> Vec<Look<Option<WorkspaceSeen>>> {
    vec![Look::Seen(None), Look::Seen(tree()), Look::Unknown("no answer".into()), Look::GivenUp("it is elsewhere".into())]
}

fn ensure() -> Action {
    Action::EnsureSandbox { run: agent_run(1), base: sha(1), content: None }
}

fn push() -> Action {
    Action::Push { attempt: Attempt(1), head: sha(2), base: sha(1), expected_old: None }
}

fn snapshot() -> Action {
    Action::TakeSnapshot { attempt: Attempt(1), base: sha(1) }
}

fn integrate() -> Action {
    Action::Integrate { attempt: Attempt(1), candidate: sha(2), round: 0 }
}

fn flights() -> Vec<BTreeSet<ActionId>> {
    vec![BTreeSet::new(), in_flight(&[ensure()]), in_flight(&[push(), Action::StopSandbox { run: agent_run(1) }])]
}

fn outcomes() -> Vec<BTreeMap<ActionId, Result<Outcome, Failure>>> {
    let infrastructure = || Err(failure(FailureClass::Infrastructure, now()));
    let conflict = Integrated::Conflict { base: sha(3), content: sha(4), paths: vec!["a".into()], hunks: "h".into() };
    let list = vec![
        (Action::Resolve, infrastructure()),
        (Action::Resolve, Err(failure(FailureClass::Invalid, now()))),
        (ensure(), infrastructure()),
        (snapshot(), Ok(Outcome::Snapshot(Snapshot::Candidate(sha(2)), None))),
        (snapshot(), Ok(Outcome::Snapshot(Snapshot::Candidate(sha(2)), Some(Integrated::Head { head: sha(2), base: sha(1) })))),
        (snapshot(), Ok(Outcome::Snapshot(Snapshot::Candidate(sha(2)), Some(conflict.clone())))),
        (snapshot(), Ok(Outcome::Snapshot(Snapshot::Unchanged, None))),
        (snapshot(), Ok(Outcome::Snapshot(Snapshot::Refused(vec!["a".into()]), None))),
        (integrate(), Ok(Outcome::Integrated(Integrated::Head { head: sha(2), base: sha(1) }))),
        (integrate(), Ok(Outcome::Integrated(conflict))),
        (push(), Ok(Outcome::Pushed(Pushed::Verified(sha(2))))),
        (push(), Ok(Outcome::Pushed(Pushed::BaseMoved(sha(3))))),
        (push(), Ok(Outcome::Pushed(Pushed::RefTaken(Some(sha(9)))))),
        (push(), Ok(Outcome::Pushed(Pushed::Rejected("no".into())))),
        (push(), infrastructure()),
        (Action::Rescue { attempt: Attempt(1) }, Ok(Outcome::Rescued(None))),
        (Action::StopSandbox { run: agent_run(1) }, infrastructure()),
    ];
    let single = list.into_iter().map(|(action, outcome)| BTreeMap::from([(action.id(), outcome)]));
    [BTreeMap::new()].into_iter().chain(single).collect()
}

fn permits() -> Vec<Permit> {
    vec![
        Permit::Granted,
        Permit::Waiting { reason: reason::QUEUED, message: "waits".into(), refused: false },
        Permit::Waiting { reason: reason::TASK_ID_TAKEN, message: "taken".into(), refused: true },
        Permit::Halted { by: Some("stop".into()), message: "halted".into() },
        Permit::Halted { by: None, message: "unreadable".into() },
    ]
}

/// What somebody else will end, and then wake the agent.
fn is_woken(plan: &Plan, facts: &Facts) -> bool {
    const BY_OTHERS: [&str; 11] = [
        reason::HALTED,
        reason::SUSPENDED,
        reason::QUEUED,
        reason::STARTING_LIMIT,
        reason::TASK_ID_TAKEN,
        reason::BRANCH_TAKEN,
        reason::DEPENDENCY_PENDING,
        reason::DEPENDENCY_MISSING,
        reason::DEPENDENCY_FAILED,
        reason::INVALID_SPEC,
        reason::NOT_SUPPORTED,
    ];
    let alive = |s: &SandboxSeen| matches!(s.state, SandboxState::Running { .. });
    let sandbox_event = matches!(&facts.observed.sandboxes, Look::Seen(all) if all.iter().any(alive));
    plan.waiting.iter().any(|w| BY_OTHERS.contains(&w.reason.as_str())) || sandbox_event
}

fn check(facts: &Facts) {
    let plan = facts.plan();
    let starts = |a: &Action| {
        matches!(
            a,
            Action::Resolve | Action::EnsureSandbox { .. } | Action::TakeSnapshot { .. } | Action::Integrate { .. } | Action::Push { .. }
        )
    };
    let gone = facts.deleting.is_some() || facts.latched.is_some();
    let over = ending(&facts.status).is_some() || gone || matches!(facts.permit, Permit::Halted { .. });
    if over || facts.agent.suspend {
        assert!(!plan.actions.iter().any(starts), "starts something: {facts:#?}\n{plan:#?}");
    }
    if matches!(facts.observed.sandboxes, Look::Unknown(_)) {
        assert!(plan.actions.iter().all(|a| *a == Action::AddFinalizer), "acts blindly: {facts:#?}\n{plan:#?}");
    }
    let distinct: BTreeSet<&Action> = plan.actions.iter().collect();
    assert_eq!(distinct.len(), plan.actions.len(), "does something twice: {facts:#?}\n{plan:#?}");
    let settled = ending(&plan.status).is_some() && condition::is_true(&plan.status.conditions, condition::CLEANED_UP);
    let moves = !plan.actions.is_empty() || !facts.observed.in_flight.is_empty() || plan.requeue_after.is_some();
    assert!(settled || moves || plan.status != facts.status || is_woken(&plan, facts), "is stuck: {facts:#?}\n{plan:#?}");
    if settled && plan.actions.is_empty() {
        let again = Facts { status: plan.status.clone(), ..facts.clone() }.plan();
        assert_eq!((&again.status, &again.actions), (&plan.status, &plan.actions), "does not rest: {facts:#?}");
    }
}

#[test]
fn every_combination_of_the_small_space_keeps_the_rules() {
    let (looks, trees, flights, ends, permits) = (sandboxes(), workspaces(), flights(), outcomes(), permits());
    let agents = [agent(json!({})), agent(json!({"suspend": true}))];
    let counts = simulate(STAGES.len() as u64, |index| {
        let stage = STAGES[index as usize];
        let mut facts = Facts::new(status(stage), observed(Vec::new(), None));
        let mut count = 0_u64;
        for (look, tree) in looks.iter().flat_map(|look| trees.iter().map(move |tree| (look, tree))) {
            facts.observed.sandboxes.clone_from(look);
            facts.observed.workspace.clone_from(tree);
            for (flight, end) in flights.iter().flat_map(|flight| ends.iter().map(move |end| (flight, end))) {
                facts.observed.in_flight.clone_from(flight);
                facts.observed.outcomes.clone_from(end);
                let ended = [(&permits[0], Some("kill"), None), (&permits[0], None, Some("a kill"))];
                for (permit, deleting, latched) in permits.iter().map(|p| (p, None, None)).chain(ended) {
                    facts.permit.clone_from(permit);
                    (facts.deleting, facts.latched) = (deleting, latched);
                    for agent in &agents {
                        facts.agent.suspend = agent.suspend;
                        check(&facts);
                        count += 1;
                    }
                }
            }
        }
        count
    });
    println!("{} combinations", counts.iter().sum::<u64>());
}

#[test]
fn a_record_without_our_finalizer_or_with_a_wrong_spec_keeps_the_rules() {
    for stage in STAGES {
        for look in sandboxes() {
            for tree in workspaces() {
                let ended = [(Permit::Granted, Some("delete"), None), (Permit::Granted, None, Some("a kill"))];
                for (permit, deleting, latched) in permits().into_iter().map(|p| (p, None, None)).chain(ended) {
                    for (has_finalizer, errors) in
                        [(false, None), (true, Some(vec!["wrong".to_owned()])), (false, Some(vec!["wrong".to_owned()]))]
                    {
                        let mut facts = Facts::new(status(stage), observed(Vec::new(), None));
                        facts.observed.sandboxes.clone_from(&look);
                        facts.observed.workspace.clone_from(&tree);
                        (facts.permit, facts.deleting, facts.latched) = (permit.clone(), deleting, latched);
                        (facts.has_finalizer, facts.errors) = (has_finalizer, errors);
                        check(&facts);
                    }
                }
            }
        }
    }
}
