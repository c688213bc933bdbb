//! A kill through the lane at every effect: before it begins, after each of its parts, after its end; then nothing, a restart of the controller,
//! or a restart with an older copy of the store. Whatever came of the effect: nothing of the agent starts any more, no ref moves (but by a
//! push that was under way), nothing is left, and the record says killed unless it had ended before.

use super::{Scenario, all_actions, born, end_of, is_time, meet, reach, scenarios, suspend};
use crate::sim::engine::Job;
use crate::sim::faults::{Aim, Faults, Moment, Strike};
use crate::sim::mischief::{agent_record, agent_spec};
use crate::sim::oracle::status_of;
use crate::sim::plants::Plant;
use crate::sim::run::simulate;
use crate::sim::scheduler::Sim;
use crate::sim::store::uid_of;
use crate::sim::truth::{Pending, Truth};
use mosaic::api::names::{CommitId, Uid};
use mosaic::plan::action::Action;
use mosaic::plan::fleet::FleetLimits;
use mosaic::plan::status::{Ending, ending};
use mosaic::store::{Key, Record};
use serde_json::json;
use std::collections::BTreeMap;

/// Steps within which a scenario reaches the action of its kill.
const REACH_STEPS_MAX: u32 = 20_000;
/// The longest effect has so many parts before it waits for somebody.
const PARTS_MAX: u32 = 5;

/// What follows the kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    Nothing,
    Restart,
    OlderStore,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    action: &'static str,
    scenario: Scenario,
    moment: Moment,
    aftermath: Aftermath,
    contained: bool,
}

/// What is true at the moment of the kill.
struct Before {
    uid: Uid,
    record: Record,
    refs: BTreeMap<String, CommitId>,
    ending: Option<Ending>,
}

fn look(truth: &Truth, key: &Key) -> Before {
    let record = &truth.records.map[key];
    let refs = truth.git.remotes["file:///one"].refs.clone();
    Before { uid: uid_of(record), record: record.clone(), refs, ending: ending(&status_of(record)) }
}

/// Lives a scenario until its kill, and to the end; what was wrong.
fn live_and_be_killed(case: &Case) -> Option<String> {
    let aim = Aim { action: case.action.into(), skip: 0, strike: Strike::Kill(case.moment) };
    let (mut sim, key) = born(case.scenario, &[aim]);
    if case.contained {
        sim.with(|truth| truth.contained.insert(key.name.clone()));
    }
    let mut before = sim.with(|truth| look(truth, &key));
    let (mut met, mut resumed) = (false, case.scenario != Scenario::Suspended);
    for _ in 0..REACH_STEPS_MAX {
        if sim.with(|truth| truth.lane.begun > 0) {
            break;
        }
        if !met && sim.with(|truth| is_time(truth, case.scenario)) {
            sim.with(|truth| meet(truth, case.scenario, &key));
            met = true;
        } else if met && !resumed && sim.with(|truth| truth.bodies.values().all(|body| body.cells.is_empty())) {
            sim.with(|truth| suspend(truth, &key, false));
            resumed = true;
        }
        before = sim.with(|truth| if truth.records.map.contains_key(&key) { look(truth, &key) } else { before });
        if !sim.step() {
            sim.pass_time(1000);
        }
    }
    assert!(sim.with(|truth| truth.lane.begun > 0), "{case:?} struck nothing");
    if case.aftermath != Aftermath::Nothing {
        let first = sim.controllers[0].id;
        sim.crash(first, false);
        if case.aftermath == Aftermath::OlderStore {
            sim.with(|truth| {
                truth.lane.older.entry(before.uid.clone()).or_insert(before.record.clone());
                if truth.may_come_back(&before.uid) {
                    truth.restore_record(&before.uid);
                }
            });
        }
        sim.start_controller();
    }
    sim.heal();
    judge(&sim, &key, case, &before)
}

fn judge(sim: &Sim, key: &Key, case: &Case, before: &Before) -> Option<String> {
    let life = end_of(sim, key);
    let mut wrong = life.violations;
    sim.with(|truth| {
        if let Some(record) = truth.records.map.get(key) {
            let now = ending(&status_of(record));
            // What ended at this very moment may have been stored before the pass could see the latch.
            let as_before = before.ending.is_some() && now == before.ending;
            if !as_before && now != Some(Ending::Killed) {
                wrong.push(format!("its record says {now:?}"));
            }
        }
        if truth.git.remotes["file:///one"].refs != before.refs && case.action != "Push" {
            wrong.push("a ref has moved".to_owned());
        }
    });
    if life.end.left > 0 {
        wrong.push(format!("{} things are left", life.end.left));
    }
    (!wrong.is_empty()).then(|| format!("{case:?}: {wrong:?}\n{}", life.lines.join("\n")))
}

#[test]
fn a_kill_through_the_lane_at_every_action_is_the_end() {
    let mut cases = Vec::new();
    let moments = [Moment::Before, Moment::After].into_iter().chain((1..=PARTS_MAX).map(Moment::During));
    for moment in moments {
        for action in all_actions() {
            // Only blocking effects have parts.
            if matches!(moment, Moment::During(parts) if !action.is_blocking() || parts > 3 && !matches!(action, Action::EnsureSandbox { .. }))
            {
                continue;
            }
            for scenario in scenarios(&action) {
                for aftermath in [Aftermath::Nothing, Aftermath::Restart, Aftermath::OlderStore] {
                    for contained in [false, true] {
                        cases.push(Case { action: action.name(), scenario: *scenario, moment, aftermath, contained });
                    }
                }
            }
        }
    }
    let wrong: Vec<String> =
        simulate(cases.len() as u64, |index| live_and_be_killed(&cases[index as usize])).into_iter().flatten().collect();
    println!("{} kills", cases.len());
    assert!(wrong.is_empty(), "{} of {} end otherwise; the first:\n{}", wrong.len(), cases.len(), wrong[0]);
}

/// A kill through the lane while the agent's commit is being pushed, with every order of what follows; returns what was violated.
pub fn kill_at_the_push(seed: u64, plant: Option<Plant>) -> Vec<String> {
    let mut sim = Sim::new(seed, plant, FleetLimits { running_max: 1, starting_max: 1 }, Faults::default());
    let key = Key::agent("default", "agent-0");
    sim.with(|truth| {
        truth.git.add_remote("file:///one", &[("tests", &[])]);
        truth.create_record(agent_record("agent-0", agent_spec("file:///one", json!({})))).unwrap();
    });
    sim.start_controller();
    let first = sim.controllers[0].id;
    reach(&mut sim, |truth| truth.effects.values().any(|p| matches!(p.effect.action, Action::Push { .. })));
    sim.with(|truth| {
        let uid = uid_of(&truth.records.map[&key]);
        truth.kill_now(first, &uid);
    });
    sim.heal();
    end_of(&sim, &key).violations
}

#[test]
fn a_kill_while_the_commit_is_pushed_leaves_nothing() {
    for (seed, violations) in (0..).zip(simulate(100, |seed| kill_at_the_push(seed, None))) {
        assert_eq!(violations, Vec::<String>::new(), "seed {seed}");
    }
}

/// An agent in a container whose start was asked for and not done.
fn with_a_queued_start(seed: u64, plant: Option<Plant>) -> (Sim, Key) {
    let mut sim = Sim::new(seed, plant, FleetLimits { running_max: 1, starting_max: 1 }, Faults::default());
    let key = Key::agent("default", "agent-0");
    sim.with(|truth| {
        truth.git.add_remote("file:///one", &[("tests", &[])]);
        truth.contained.insert("agent-0".into());
        truth.create_record(agent_record("agent-0", agent_spec("file:///one", json!({})))).unwrap();
    });
    sim.start_controller();
    reach(&mut sim, |truth| truth.engine.jobs.iter().any(|(_, job)| *job == Job::Start));
    (sim, key)
}

/// A kill while a start is queued at the engine; returns what was violated.
pub fn kill_at_a_queued_start(seed: u64, plant: Option<Plant>) -> Vec<String> {
    let (mut sim, key) = with_a_queued_start(seed, plant);
    let first = sim.controllers[0].id;
    sim.with(|truth| {
        let uid = uid_of(&truth.records.map[&key]);
        truth.kill_now(first, &uid);
    });
    sim.heal();
    end_of(&sim, &key).violations
}

/// Who waits for a queued start gives up, and the engine says that there is no container; then it starts it. What was violated.
pub fn start_after_a_lie(seed: u64, plant: Option<Plant>) -> Vec<String> {
    let (mut sim, key) = with_a_queued_start(seed, plant);
    sim.with(|truth| {
        let (run, _) = truth.engine.jobs[0].clone();
        let makes = |p: &Pending| matches!(&p.effect.action, Action::EnsureSandbox { run: of, .. } if *of == run);
        let number = truth.effects.iter().find(|(_, p)| makes(p)).map(|(number, _)| *number);
        if let Some(number) = number {
            truth.give_up(number);
        }
        truth.conclude(&run, "no container came of it");
        while !truth.engine.jobs.is_empty() {
            truth.step_job(0);
        }
        while truth.waiting_inits().contains(&run) && truth.oracle.violations.is_empty() {
            truth.step_init(&run);
        }
    });
    sim.heal();
    end_of(&sim, &key).violations
}

#[test]
fn a_queued_start_is_no_danger_to_a_kill_nor_to_a_lie() {
    for (seed, violations) in (0..).zip(simulate(50, |seed| [kill_at_a_queued_start(seed, None), start_after_a_lie(seed, None)].concat())) {
        assert_eq!(violations, Vec::<String>::new(), "seed {seed}");
    }
}
