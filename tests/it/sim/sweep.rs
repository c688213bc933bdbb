//! A crash at every effect: each `Action` x {crash before it, crash after it, its reply lost, crash and a late landing}, then the run
//! must end as the run without a fault does. Then the same with a second fault at one of the next effects, during the recovery.
//!
//! `scenario` and `next` match on `Action` without a wildcard: a new variant does not compile until it has a scenario here.

mod lane;

pub use lane::{kill_at_a_queued_start, kill_at_the_push, start_after_a_lie};

use super::faults::{Aim, Faults, Strike};
use super::mischief::{agent_record, agent_spec};
use super::oracle::status_of;
use super::run::simulate;
use super::scheduler::Sim;
use super::truth::{Behaviour, Truth};
use mosaic::api::condition;
use mosaic::api::names::{ANNOTATION_ENDED_BY, Attempt, CommitId, GateName, Role, RunId, Uid};
use mosaic::plan::action::Action;
use mosaic::plan::fleet::FleetLimits;
use mosaic::store::Key;
use serde_json::json;
use std::collections::BTreeSet;

/// Steps within which a scenario reaches its action.
const REACH_STEPS_MAX: u32 = 20_000;
/// Second faults strike one of so many effects after the first.
const SECOND_SKIP_MAX: u32 = 6;
const STRIKES: [Strike; 4] = [Strike::CrashBefore, Strike::CrashAfter, Strike::ReplyLost, Strike::CrashAndLand];

/// A life of one agent in which an action occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// One good round.
    Delivered,
    /// A round that the gates refuse, then a good one.
    SecondRound,
    /// The base moves while the gates judge.
    BaseMoves,
    /// Killed while the agent runs.
    Killed,
    /// Given up with work in the tree.
    GivenUp,
    /// Suspended while the agent runs, and resumed.
    Suspended,
    /// Delivered, and its time to live is over.
    Expired,
}

/// In which lives each action occurs.
fn scenarios(action: &Action) -> &'static [Scenario] {
    match action {
        Action::AddFinalizer => &[Scenario::Delivered],
        Action::Resolve => &[Scenario::Delivered],
        Action::EnsureSandbox { run, .. } => match run.role {
            Role::Agent => &[Scenario::Delivered, Scenario::SecondRound, Scenario::Suspended],
            Role::Gate { .. } => &[Scenario::Delivered, Scenario::SecondRound, Scenario::BaseMoves],
        },
        Action::StopSandbox { .. } => &[Scenario::Killed, Scenario::Suspended],
        Action::RemoveSandbox { .. } => &[Scenario::Delivered, Scenario::Killed],
        Action::TakeSnapshot { .. } => &[Scenario::Delivered, Scenario::SecondRound],
        // The first time it is part of the snapshot.
        Action::Integrate { .. } => &[Scenario::BaseMoves],
        Action::Push { .. } => &[Scenario::Delivered, Scenario::BaseMoves, Scenario::SecondRound],
        Action::Rescue { .. } => &[Scenario::Killed, Scenario::GivenUp],
        Action::RemoveWorkspace => &[Scenario::Delivered, Scenario::Killed],
        Action::Archive => &[Scenario::Killed, Scenario::Expired],
        Action::RemoveFinalizer => &[Scenario::Killed, Scenario::Expired],
        Action::DeleteRecord => &[Scenario::Expired],
    }
}

/// The variants one after the other; the first is `AddFinalizer`.
fn next(action: &Action) -> Option<Action> {
    let uid = Uid::new("00000000-0000").unwrap();
    let sha = CommitId::new("0".repeat(40)).unwrap();
    let attempt = Attempt(1);
    let agent = RunId { uid: uid.clone(), attempt, role: Role::Agent };
    let gate = RunId { uid, attempt, role: Role::Gate { name: GateName::new("tests").unwrap(), sha: sha.clone(), tries: 0 } };
    Some(match action {
        Action::AddFinalizer => Action::Resolve,
        Action::Resolve => Action::EnsureSandbox { run: agent, base: sha, content: None },
        Action::EnsureSandbox { run, .. } => match run.role {
            Role::Agent => Action::EnsureSandbox { run: gate, base: sha.clone(), content: Some(sha) },
            Role::Gate { .. } => Action::StopSandbox { run: agent },
        },
        Action::StopSandbox { .. } => Action::RemoveSandbox { run: agent },
        Action::RemoveSandbox { .. } => Action::TakeSnapshot { attempt, base: sha },
        Action::TakeSnapshot { .. } => Action::Integrate { attempt, candidate: sha, round: 0 },
        Action::Integrate { .. } => Action::Push { attempt, head: sha.clone(), base: sha, expected_old: None },
        Action::Push { .. } => Action::Rescue { attempt },
        Action::Rescue { .. } => Action::RemoveWorkspace,
        Action::RemoveWorkspace => Action::Archive,
        Action::Archive => Action::RemoveFinalizer,
        Action::RemoveFinalizer => Action::DeleteRecord,
        Action::DeleteRecord => return None,
    })
}

fn all_actions() -> Vec<Action> {
    std::iter::successors(Some(Action::AddFinalizer), next).collect()
}

/// How a life ended, as far as a fault must not change it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    record: Option<String>,
    remote: Vec<(String, String)>,
    rescued: bool,
    left: usize,
}

/// What a life has shown.
struct Life {
    end: End,
    applied: Vec<&'static str>,
    /// Faults that found no effect to strike.
    unused: usize,
    violations: Vec<String>,
    lines: Vec<String>,
}

/// Lives one scenario with the faults aimed at it.
fn live(scenario: Scenario, aims: &[Aim]) -> Life {
    let (mut sim, key) = born(scenario, aims);
    reach(&mut sim, |truth| is_time(truth, scenario));
    sim.with(|truth| meet(truth, scenario, &key));
    if scenario == Scenario::Suspended {
        reach(&mut sim, |truth| truth.bodies.values().all(|body| body.cells.is_empty()));
        sim.with(|truth| suspend(truth, &key, false));
    }
    let expires = scenario == Scenario::Expired;
    reach(&mut sim, |truth| {
        let record = truth.records.map.get(&key);
        record.is_none_or(|record| !expires && mosaic::plan::status::ending(&status_of(record)).is_some() && truth.effects.is_empty())
    });
    sim.heal();
    end_of(&sim, &key)
}

/// Whether it is time for what a scenario is about: a sandbox is about to end by itself; where the base moves, a gate runs.
fn is_time(truth: &Truth, scenario: Scenario) -> bool {
    let is_meant = |run: &RunId, left: u32| match scenario {
        Scenario::BaseMoves => matches!(run.role, Role::Gate { .. }),
        _ => left == 1,
    };
    truth.bodies.values().any(|body| body.cells.iter().any(|(run, cell)| cell.runs() && is_meant(run, cell.left)))
}

/// What happens to a scenario's agent then.
fn meet(truth: &mut Truth, scenario: Scenario, key: &Key) {
    let elapsed = truth.elapsed;
    match scenario {
        Scenario::BaseMoves => truth.git.move_base("file:///one", "other", "somebody's", elapsed),
        Scenario::Killed => drop(truth.delete_record(key, None, &[(ANNOTATION_ENDED_BY, "kill".into())])),
        Scenario::Suspended => suspend(truth, key, true),
        Scenario::Delivered | Scenario::SecondRound | Scenario::GivenUp | Scenario::Expired => {}
    }
}

/// A scenario's agent is declared, and a controller begins.
fn born(scenario: Scenario, aims: &[Aim]) -> (Sim, Key) {
    let script = match scenario {
        Scenario::SecondRound => vec![Behaviour::Bad, Behaviour::Good],
        Scenario::GivenUp => vec![Behaviour::Bad],
        Scenario::Suspended | Scenario::Killed => vec![Behaviour::Good],
        Scenario::Delivered | Scenario::BaseMoves | Scenario::Expired => vec![Behaviour::Good],
    };
    let mut sim = Sim::new(7, None, FleetLimits { running_max: 2, starting_max: 2 }, Faults::default());
    let mut more = json!({"maxRetries": u8::from(scenario == Scenario::SecondRound)});
    if scenario == Scenario::Expired {
        more["ttlAfterFinished"] = json!("90s");
    }
    let key = Key::agent("default", "agent-0");
    sim.with(|truth| {
        truth.git.add_remote("file:///one", &[("tests", &[]), ("lint", &["tests"])]);
        truth.scripts.insert("agent-0".into(), script);
        truth.aims = aims.to_vec();
        truth.create_record(agent_record("agent-0", agent_spec("file:///one", more))).unwrap();
    });
    sim.start_controller();
    (sim, key)
}

fn suspend(truth: &mut Truth, key: &Key, suspend: bool) {
    let mut record = truth.records.map[key].clone();
    record.spec["suspend"] = json!(suspend);
    truth.replace_record(record, None).unwrap();
}

/// Steps until something is true; a controller that crashed is started again.
fn reach(sim: &mut Sim, is_there: impl Fn(&Truth) -> bool) {
    for _ in 0..REACH_STEPS_MAX {
        if sim.with(|truth| is_there(truth)) {
            return;
        }
        if sim.controllers.is_empty() {
            sim.start_controller();
        }
        if !sim.step() {
            sim.pass_time(1000);
        }
    }
    sim.with(|truth| truth.violate("the scenario was not reached".into()));
}

fn end_of(sim: &Sim, key: &Key) -> Life {
    sim.with(|truth| {
        let record = truth.records.map.get(key).map(|record| {
            let status = status_of(record);
            format!("{:?} {:?} {} {}", status.phase, status.reason, status.counts.agent_failures, status.counts.rejections)
        });
        let refs = truth.git.remotes["file:///one"].refs.iter();
        let remote = refs.map(|(name, id)| (name.clone(), format!("{:?}", truth.git.files(id)))).collect();
        Life {
            end: End {
                record,
                remote,
                rescued: truth.bodies.values().any(|body| !body.rescued.is_empty()),
                left: truth.bodies.values().map(|body| body.cells.len() + usize::from(body.tree.is_some())).sum(),
            },
            applied: truth.applied.clone(),
            unused: truth.aims.len(),
            violations: truth.oracle.violations.clone(),
            lines: truth.log.lines.clone(),
        }
    })
}

fn compare(what: &str, expected: &End, life: &Life) -> Option<String> {
    if life.violations.is_empty() && life.end == *expected {
        return None;
    }
    Some(format!("{what}: {:?}\nexpected {expected:?}\n     got {:?}\n{}", life.violations, life.end, life.lines.join("\n")))
}

#[test]
fn every_action_survives_a_fault_before_and_after_it() {
    let mut cases = Vec::new();
    for action in all_actions() {
        for scenario in scenarios(&action) {
            cases.extend(STRIKES.map(|strike| (action.name(), *scenario, strike)));
        }
    }
    let wrong: Vec<String> = simulate(cases.len() as u64, |index| {
        let (action, scenario, strike) = cases[index as usize];
        let expected = live(scenario, &[]);
        let life = live(scenario, &[Aim { action: action.into(), skip: 0, strike }]);
        let what = format!("{strike:?} at {action} in {scenario:?}");
        assert_eq!(life.unused, 0, "{what} struck nothing");
        compare(&what, &expected.end, &life)
    })
    .into_iter()
    .flatten()
    .collect();
    println!("{} cases", cases.len());
    assert!(wrong.is_empty(), "{} of {} end otherwise; the first:\n{}", wrong.len(), cases.len(), wrong[0]);
}

#[test]
fn what_was_just_written_is_not_read_again() {
    let (mut sim, key) = born(Scenario::Delivered, &[]);
    reach(&mut sim, |truth| condition::is_true(&status_of(&truth.records.map[&key]).conditions, condition::CLEANED_UP));
    let (reads, writes) = sim.with(|truth| truth.reads_and_writes);
    println!("{reads} reads, {writes} writes");
    assert!(writes >= 8 && reads * 2 <= writes, "{reads} reads for {writes} writes");
}

#[test]
fn a_second_fault_during_the_recovery_changes_nothing() {
    let mut cases = Vec::new();
    for action in all_actions() {
        let scenario = scenarios(&action)[0];
        for first in STRIKES {
            for second in STRIKES {
                cases.extend((0..SECOND_SKIP_MAX).map(|skip| (action.name(), scenario, first, second, skip)));
            }
        }
    }
    let wrong: Vec<String> = simulate(cases.len() as u64, |index| {
        let (action, scenario, first, second, skip) = cases[index as usize];
        let expected = live(scenario, &[]);
        let aims = [Aim { action: action.into(), skip: 0, strike: first }, Aim { action: String::new(), skip, strike: second }];
        compare(&format!("{first:?} at {action}, then {second:?} after {skip} in {scenario:?}"), &expected.end, &live(scenario, &aims))
    })
    .into_iter()
    .flatten()
    .collect();
    println!("{} pairs", cases.len());
    assert!(wrong.is_empty(), "{} of {} end otherwise; the first:\n{}", wrong.len(), cases.len(), wrong[0]);
}

#[test]
fn a_push_that_lands_after_the_base_has_moved_is_nobody_elses() {
    let mut sim = Sim::new(7, None, FleetLimits { running_max: 1, starting_max: 1 }, Faults::default());
    let key = Key::agent("default", "agent-0");
    sim.with(|truth| {
        truth.git.add_remote("file:///one", &[("tests", &[])]);
        truth.create_record(agent_record("agent-0", agent_spec("file:///one", json!({})))).unwrap();
    });
    let pushes = |p: &super::truth::Pending| matches!(p.effect.action, Action::Push { .. });
    sim.start_controller();
    reach(&mut sim, |truth| truth.effects.values().any(|p| pushes(p) && p.part == 1));
    let (number, late) = sim.with(|truth| {
        let (number, pending) = truth.effects.iter().find(|(_, p)| pushes(p)).unwrap();
        (*number, super::truth::Pending { late: true, ..pending.clone() })
    });
    // The controller dies, its push hangs somewhere in the network, and the base moves on.
    let first = sim.controllers[0].id;
    sim.crash(first, true);
    sim.with(|truth| {
        truth.effects.remove(&number);
        let elapsed = truth.elapsed;
        truth.git.move_base("file:///one", "other", "somebody's", elapsed);
    });
    sim.start_controller();
    reach(&mut sim, |truth| truth.effects.values().any(|p| matches!(p.effect.action, Action::EnsureSandbox { .. })));
    sim.with(|truth| {
        truth.effects.insert(number, late);
        truth.step_effect(number);
    });
    sim.heal();
    let life = end_of(&sim, &key);
    assert_eq!(life.violations, Vec::<String>::new(), "{}", life.lines.join("\n"));
    assert!(life.end.record.as_deref().unwrap().contains("Delivered"), "{:?}\n{}", life.end, life.lines.join("\n"));
    let (_, files) = &life.end.remote[0];
    assert!(files.contains("somebody's") && files.contains("good work"), "{files}");
}

/// A kill that comes while the sandbox is being started, with every order of what follows; returns what was violated.
pub fn kill_at_the_start(seed: u64, plant: Option<super::plants::Plant>) -> Vec<String> {
    let mut sim = Sim::new(seed, plant, FleetLimits { running_max: 1, starting_max: 1 }, Faults::default());
    let key = Key::agent("default", "agent-0");
    sim.with(|truth| {
        truth.git.add_remote("file:///one", &[("tests", &[])]);
        truth.create_record(agent_record("agent-0", agent_spec("file:///one", json!({})))).unwrap();
    });
    sim.start_controller();
    reach(&mut sim, |truth| truth.effects.values().any(|p| matches!(p.effect.action, Action::EnsureSandbox { .. })));
    sim.with(|truth| truth.delete_record(&key, None, &[(ANNOTATION_ENDED_BY, "kill".into())])).unwrap();
    sim.heal();
    end_of(&sim, &key).violations
}

#[test]
fn a_kill_while_the_sandbox_starts_leaves_nothing() {
    for (seed, violations) in (0..).zip(simulate(300, |seed| kill_at_the_start(seed, None))) {
        assert_eq!(violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn the_scenarios_reach_every_action() {
    let mut reached = BTreeSet::new();
    for action in all_actions() {
        for scenario in scenarios(&action) {
            let life = live(*scenario, &[]);
            assert_eq!(life.violations, Vec::<String>::new(), "{scenario:?}");
            assert!(life.applied.contains(&action.name()), "{scenario:?} never applies {}", action.name());
            reached.extend(life.applied);
        }
    }
    let swept: BTreeSet<&str> = all_actions().iter().map(Action::name).collect();
    assert_eq!(reached, swept);
}
