//! What others do to a run: users, other committers, the network, the clock, and the hardware under the controllers.

use super::faults::{Case, Faults};
use super::scheduler::Sim;
use super::truth::{Behaviour, Cell, CellState, Truth};
use mosaic::api::condition::{self, reason};
use mosaic::api::names::{ANNOTATION_DISCARD, ANNOTATION_ENDED_BY, Role, RunId, Uid};
use mosaic::api::validate::validate;
use mosaic::plan::action::Action;
use mosaic::plan::fleet::{FleetLimits, HaltInForce};
use mosaic::plan::status::{Ending, ending};
use mosaic::store::{Key, Kind, Record};
use serde_json::json;
use std::collections::BTreeMap;

/// Most agents of one run.
const AGENTS_MAX: u64 = 6;

/// A record as a user writes it.
pub fn agent_record(name: &str, spec: serde_json::Value) -> Record {
    let metadata = serde_json::from_value(json!({"name": name, "namespace": "default", "labels": {"team": name}})).unwrap();
    Record { kind: Kind::Agent, metadata, spec, status: serde_json::Value::Null }
}

/// A spec with what every agent of the simulation has.
pub fn agent_spec(repository: &str, more: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({
        "context": {"repository": repository},
        "runtime": {"command": {"args": ["work"]}},
        "timeout": "20m",
        "idleTimeout": "2m",
        "backoff": {"initial": "5s", "max": "40s"},
    });
    for (key, value) in more.as_object().unwrap() {
        if key == "targetBranch" {
            spec["context"][key] = value.clone();
        } else {
            spec[key] = value.clone();
        }
    }
    spec
}

/// The fleet of a seed: remotes, agents and what they will do, the first controller.
pub fn fleet_of(case: &Case) -> Sim {
    let limits = FleetLimits { running_max: 1 + (case.seed % 3) as usize, starting_max: 1 + (case.seed / 3 % 2) as usize };
    let mut sim = Sim::new(case.seed, case.plant, limits, Faults::default());
    sim.with(|truth| {
        truth.faults = Faults::of(&mut truth.rng);
        let sets: [&[(&str, &[&str])]; 3] = [&[("tests", &[])], &[("tests", &[]), ("lint", &[])], &[("tests", &[]), ("lint", &["tests"])]];
        for url in ["file:///one", "file:///two"] {
            let set = *truth.rng.pick(&sets);
            truth.git.add_remote(url, set);
        }
        if truth.rng.hits(500) {
            // Some of the agents are containers.
            let names: Vec<String> = (0..AGENTS_MAX).map(|index| format!("agent-{index}")).filter(|_| truth.rng.hits(600)).collect();
            truth.contained.extend(names);
        }
        if truth.rng.hits(100) {
            truth.git.remotes.get_mut("file:///two").unwrap().exists = false;
        }
    });
    let agents = 1 + sim.with(|truth| truth.rng.below(AGENTS_MAX));
    for index in 0..agents {
        let record = sim.with(|truth| random_agent(truth, index, agents));
        sim.to_create.push(record);
    }
    sim.to_create.reverse();
    sim
}

fn random_agent(truth: &mut Truth, index: u64, agents: u64) -> Record {
    let name = format!("agent-{index}");
    let script = random_script(truth);
    truth.note(format!("{name}: {script:?}"));
    truth.scripts.insert(name.clone(), script);
    let rng = &mut truth.rng;
    let mut more = json!({"maxRetries": rng.below(4), "priority": 1 + rng.below(10)});
    if index > 0 && rng.hits(250) {
        more["dependsOn"] = json!([format!("agent-{}", rng.below(index))]);
    } else if rng.hits(30) {
        // Perhaps a cycle, perhaps somebody who never comes.
        let other = rng.below(agents + 1);
        if other != index {
            more["dependsOn"] = json!([format!("agent-{other}")]);
        }
    }
    if rng.hits(80) {
        more["taskId"] = json!("the same task");
    }
    if rng.hits(80) {
        more["targetBranch"] = json!("the-same-branch");
    }
    if rng.hits(60) {
        more["ttlAfterFinished"] = json!("90s");
    }
    let repository = *rng.pick(&["file:///one", "file:///two"]);
    agent_record(&name, agent_spec(repository, more))
}

fn random_script(truth: &mut Truth) -> Vec<Behaviour> {
    const KINDS: [Behaviour; 14] = [
        Behaviour::Bad,
        Behaviour::Ugly,
        Behaviour::Fragile,
        Behaviour::Share,
        Behaviour::Share,
        Behaviour::Forbidden,
        Behaviour::Nothing,
        Behaviour::NothingSaid,
        Behaviour::Unfit,
        Behaviour::Exit(3),
        Behaviour::Signal,
        Behaviour::CannotExecute,
        Behaviour::Hang,
        Behaviour::Forever,
    ];
    let rng = &mut truth.rng;
    let mut script: Vec<Behaviour> = (0..rng.below(3)).map(|_| *rng.pick(&KINDS)).collect();
    if rng.hits(900) {
        script.push(Behaviour::Good);
    } else {
        script.push(*rng.pick(&KINDS));
    }
    script
}

/// Phase one: the run with all its faults.
pub fn wreak(sim: &mut Sim) {
    sim.start_controller();
    let steps = 150 + sim.with(|truth| truth.rng.below(900));
    let at_once = sim.with(|truth| truth.rng.hits(600));
    for _ in 0..steps {
        let due = !sim.to_create.is_empty() && (at_once || sim.with(|truth| truth.rng.hits(20)));
        if due {
            create_next(sim);
        }
        strike(sim);
        if !sim.step() {
            sim.pass_time(1000);
        }
    }
    while !sim.to_create.is_empty() {
        create_next(sim);
    }
}

fn create_next(sim: &mut Sim) {
    if let Some(record) = sim.to_create.pop() {
        sim.with(|truth| truth.create_record(record)).unwrap();
    }
}

/// Perhaps something goes wrong now.
fn strike(sim: &mut Sim) {
    let faults = sim.with(|truth| truth.faults);
    let hits = |rate: u64| sim.truth.lock().unwrap().rng.hits(rate);
    let (drops, crashes, pauses, jumps) = (hits(faults.pass_dropped), hits(faults.crash), hits(faults.pause), hits(faults.clock_jump));
    let (moves, downs, users, doubles) =
        (hits(faults.base_moves), hits(faults.remote_down), hits(faults.user), hits(faults.trigger_doubled));
    let (kills, kills_all, restores, hangs) = (hits(faults.kill), hits(faults.kill_all), hits(faults.restore), hits(faults.engine_hangs));
    let (resumes, orphans, starts) = (hits(20), hits(4), hits(40));
    let below = |limit: usize| sim.truth.lock().unwrap().rng.below(limit as u64) as usize;
    if sim.controllers.is_empty() {
        if starts {
            sim.start_controller();
        }
    } else {
        let at = below(sim.controllers.len());
        let (id, pass) = (sim.controllers[at].id, below(sim.pass_count(at).max(1)));
        if drops {
            sim.drop_pass(at, pass);
        } else if crashes {
            sim.crash(id, false);
        } else if pauses && !sim.controllers[at].paused && sim.controllers.len() < 2 {
            sim.controllers[at].paused = true;
            sim.with(|truth| truth.paused.insert(id));
            sim.start_controller();
        } else if resumes {
            resume_or_depose(sim, at);
        } else if orphans && !sim.controllers[at].paused {
            sim.begin_orphans(at);
        } else if doubles {
            sim.resync();
        }
    }
    if jumps {
        sim.with(jump);
    }
    if moves {
        sim.with(move_base);
    }
    if downs {
        sim.with(toggle_remote);
    }
    if users {
        user(sim);
    }
    if kills || kills_all {
        kill(sim, kills_all);
    }
    if restores {
        restore(sim);
    }
    if hangs {
        sim.with(|truth| {
            truth.engine.down = !truth.engine.down;
            let down = truth.engine.down;
            truth.note(format!("the engine hangs: {down}"));
        });
    }
}

/// A paused leader goes on as if nothing had been; one that hears that it was deposed ends.
fn resume_or_depose(sim: &mut Sim, at: usize) {
    let highest = sim.with(|truth| truth.highest_epoch);
    let controller = &mut sim.controllers[at];
    let id = controller.id;
    if controller.paused {
        controller.paused = false;
        sim.with(|truth| truth.paused.remove(&id));
    } else if controller.epoch < highest {
        sim.crash(id, false);
    }
}

fn jump(truth: &mut Truth) {
    let millis = 1 + truth.rng.below(3_600_000) as i64;
    truth.wall += if truth.rng.hits(500) { millis } else { -millis };
    truth.oracle.jumps += 1;
    truth.note("the clock jumps".into());
}

fn move_base(truth: &mut Truth) {
    let url = *truth.rng.pick(&["file:///one", "file:///two"]);
    let number = truth.rng.below(1000);
    let path = *truth.rng.pick(&["other", "other", "shared", "api"]);
    truth.note(format!("the base of {url} moves: {path}"));
    let elapsed = truth.elapsed;
    truth.git.move_base(url, path, &format!("text {number}"), elapsed);
}

fn toggle_remote(truth: &mut Truth) {
    let url = *truth.rng.pick(&["file:///one", "file:///two"]);
    let remote = truth.git.remotes.get_mut(url).unwrap();
    remote.down = !remote.down;
    remote.exists = true;
    let down = remote.down;
    truth.note(format!("{url} down: {down}"));
}

/// The lane kills somebody, or everything: in the process of a controller, or in that of a command line.
fn kill(sim: &mut Sim, all: bool) {
    let awake: Vec<Option<u32>> = sim.controllers.iter().filter(|c| !c.paused).map(|c| Some(c.id)).chain([None]).collect();
    sim.with(|truth| {
        let owner = *truth.rng.pick(&awake);
        let uids = if truth.rng.hits(500) { truth.delicate() } else { truth.bodies.keys().cloned().collect() };
        let hold = truth.rng.hits(200);
        if all {
            truth.begin_kill(owner, None, hold);
        } else if !uids.is_empty() {
            let uid = truth.rng.pick(&uids).clone();
            truth.begin_kill(owner, Some(uid), hold);
        }
    });
}

/// The store comes back with an older copy of somebody whom the lane has killed, and the controllers perhaps start anew.
fn restore(sim: &mut Sim) {
    let candidate = sim.with(|truth| {
        let killed: Vec<Uid> = truth.lane.older.keys().filter(|uid| truth.lane.is_kept(uid)).cloned().collect();
        (!killed.is_empty()).then(|| truth.rng.pick(&killed).clone()).filter(|uid| truth.may_come_back(uid))
    });
    let Some(uid) = candidate else { return };
    if sim.with(|truth| truth.rng.hits(500)) {
        for id in sim.controllers.iter().map(|c| c.id).collect::<Vec<_>>() {
            sim.crash(id, false);
        }
    }
    sim.with(|truth| truth.restore_record(&uid));
}

/// A user does something.
fn user(sim: &mut Sim) {
    let keys: Vec<Key> = sim.with(|truth| truth.records.map.keys().filter(|key| key.kind == Kind::Agent).cloned().collect());
    let deed = sim.with(|truth| truth.rng.below(12));
    if keys.is_empty() {
        return;
    }
    let key = sim.with(|truth| truth.rng.pick(&keys).clone());
    match deed {
        0 | 1 => sim.with(|truth| end(truth, &key)),
        2 | 3 => {
            let labels =
                if sim.with(|truth| truth.rng.hits(500)) { BTreeMap::new() } else { BTreeMap::from([("team".into(), key.name.clone())]) };
            let name = format!("halt-{}", sim.halts.len());
            sim.with(|truth| truth.note(format!("{name} on {labels:?}")));
            sim.halts.push(HaltInForce { name, namespace: None, match_labels: labels, reason: "a test".into() });
            sim.tell_halts();
        }
        4 | 5 => {
            sim.halts.pop();
            sim.tell_halts();
        }
        6 => {
            sim.halts_readable = !sim.halts_readable;
            sim.tell_halts();
        }
        7 | 8 => sim.with(|truth| patch(truth, &key, "suspend", |spec| json!(spec["suspend"] != json!(true)))),
        9 | 10 => sim.with(|truth| {
            let priority = 1 + truth.rng.below(10);
            patch(truth, &key, "priority", |_| json!(priority));
        }),
        _ => sim.with(|truth| write_as_a_stranger(truth, &key)),
    }
}

fn end(truth: &mut Truth, key: &Key) {
    let how = (*truth.rng.pick(&["kill", "delete", "kill-all"])).to_owned();
    let discard = truth.rng.hits(200).to_string();
    truth.note(format!("{how} of {}", key.name));
    let _ = truth.delete_record(key, None, &[(ANNOTATION_ENDED_BY, how), (ANNOTATION_DISCARD, discard)]);
}

fn patch(truth: &mut Truth, key: &Key, field: &str, value: impl Fn(&serde_json::Value) -> serde_json::Value) {
    let Some(mut record) = truth.records.map.get(key).cloned() else { return };
    record.spec[field] = value(&record.spec);
    truth.note(format!("{field} of {} is {} now", key.name, record.spec[field]));
    truth.replace_record(record, None).unwrap();
}

/// Somebody else creates a branch of the agent's name.
fn write_as_a_stranger(truth: &mut Truth, key: &Key) {
    let Some(agent) = truth.records.map.get(key).and_then(|record| validate(record).ok()) else { return };
    let target = agent.target_branch.full_ref();
    let base = truth.git.remotes[&agent.repository].base.clone();
    let remote = truth.git.remotes.get_mut(&agent.repository).unwrap();
    if !remote.refs.contains_key(&target) {
        remote.refs.insert(target.clone(), base);
        truth.note(format!("a stranger writes {target}"));
        truth.oracle.strangers.insert((agent.repository, target));
    }
}

/// Phase two begins: everything works again.
pub fn repair(sim: &mut Sim) {
    let highest = sim.with(|truth| truth.highest_epoch);
    let deposed: Vec<u32> = sim.controllers.iter().filter(|c| c.epoch < highest).map(|c| c.id).collect();
    for id in deposed {
        sim.crash(id, false);
    }
    for controller in &mut sim.controllers {
        controller.paused = false;
    }
    sim.with(|truth| {
        truth.faults = Faults::default();
        truth.paused.clear();
        truth.engine.down = false;
        for remote in truth.git.remotes.values_mut() {
            remote.down = false;
            remote.exists = true;
        }
    });
    if sim.controllers.is_empty() {
        sim.start_controller();
    }
    sim.halts.clear();
    sim.halts_readable = true;
    sim.tell_halts();
    let keys: Vec<Key> = sim.with(|truth| truth.records.map.keys().cloned().collect());
    let (agents, halts): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(|key| key.kind == Kind::Agent);
    // Somebody releases what is held.
    halts.iter().for_each(|key| drop(sim.with(|truth| truth.delete_record(key, None, &[]))));
    for key in agents {
        sim.with(|truth| patch(truth, &key, "suspend", |_| json!(false)));
    }
}

impl Truth {
    /// Agents that are being pushed or judged, whose container has not shown itself, or of which something ended is left: where a kill
    /// meets most.
    fn delicate(&self) -> Vec<Uid> {
        let pushed = |uid: &Uid| self.effects.values().any(|p| p.effect.uid == *uid && matches!(p.effect.action, Action::Push { .. }));
        let tender =
            |(run, cell): (&RunId, &Cell)| run.role != Role::Agent || cell.pid.is_none() || matches!(cell.state, CellState::Ended(_));
        let bodies = self.bodies.iter().filter(|(uid, body)| pushed(uid) || body.cells.iter().any(tender));
        bodies.map(|(uid, _)| uid.clone()).collect()
    }

    /// Whether an agent that has not begun waits for what stands as the world is: a refusal, or a dependency that waits itself.
    pub fn waits(&self, record: &Record, depth: usize) -> bool {
        let status = super::oracle::status_of(record);
        if status.attempt > 0 || depth > AGENTS_MAX as usize {
            return false;
        }
        let refusal = condition::get(&status.conditions, condition::ADMITTED).filter(|c| c.status == "False");
        if refusal.is_some_and(|c| self.stands(record, &c.reason)) {
            return true;
        }
        let Ok(agent) = validate(record) else { return true };
        let dependencies = agent.depends_on.iter().filter_map(|name| self.records.map.get(&Key::agent("default", name.as_str())));
        status.reason.as_deref() == Some(reason::DEPENDENCY_PENDING) && dependencies.into_iter().any(|other| self.waits(other, depth + 1))
    }

    /// Whether a refusal is right as the world stands.
    pub fn stands(&self, record: &Record, why: &str) -> bool {
        let Ok(agent) = validate(record) else { return true };
        let dependency = |name: &str| self.records.map.get(&Key::agent(agent.namespace.as_str(), name));
        let others =
            || self.records.map.values().filter(|other| other.metadata.uid != record.metadata.uid).filter_map(|r| validate(r).ok());
        match why {
            reason::DEPENDENCY_MISSING => agent.depends_on.iter().any(|name| dependency(name.as_str()).is_none()),
            reason::DEPENDENCY_FAILED => agent.depends_on.iter().any(|name| {
                let ended = dependency(name.as_str()).and_then(|r| ending(&super::oracle::status_of(r)));
                matches!(ended, Some(Ending::Failed | Ending::Killed))
            }),
            reason::DEPENDENCY_CYCLE => true,
            reason::TASK_ID_TAKEN => others().any(|other| other.task_id == agent.task_id),
            reason::BRANCH_TAKEN => {
                let taken = self.git.remotes[&agent.repository].refs.contains_key(&agent.target_branch.full_ref());
                taken || others().any(|other| other.target_branch == agent.target_branch && other.repository == agent.repository)
            }
            _ => false,
        }
    }
}
