//! What must hold of the truth, whatever the faults. Looks at what really happened (grants, refs, trees, stored records), never at
//! what a controller says of itself. Called by the fakes at the moment something becomes true.

pub mod lane;

use super::store::uid_of;
use super::truth::{Behaviour, Pending, Truth};
use mosaic::api::agent::{AgentStatus, Verdict};
use mosaic::api::condition;
use mosaic::api::names::{CommitId, FINALIZER, Role, RunId, Uid};
use mosaic::api::validate::{ValidAgent, validate};
use mosaic::effect::Subject;
use mosaic::plan::action::{Action, Effect};
use mosaic::plan::fleet::{FleetLimits, HaltInForce, Place, place};
use mosaic::plan::orphans::OrphanAction;
use mosaic::plan::status::{Ending, ending};
use mosaic::store::{Kind, Record};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// What the oracle remembers of one run.
#[derive(Debug, Clone)]
pub struct Oracle {
    pub violations: Vec<String>,
    /// Gates that truly passed: agent, gate, commit, base.
    pub passed: BTreeSet<(Uid, String, CommitId, CommitId)>,
    /// Sandboxes that were ever granted their start.
    pub granted: BTreeSet<RunId>,
    /// The last failure of an agent: its time (wall clock), how many there were, and the version of the record that says so.
    pub failed: BTreeMap<Uid, (i64, u32, u64)>,
    /// Every ref that was written: repository, ref, agent, commit.
    pub ref_writes: Vec<(String, String, Uid, CommitId)>,
    /// What each controller was told of the halts.
    pub halts: BTreeMap<u32, Option<Vec<HaltInForce>>>,
    pub limits: FleetLimits,
    /// Attempts that a deposed leader has begun with a stale view: the caps may be exceeded by so many.
    pub begun_by_deposed: usize,
    /// Epoch of each controller.
    pub epochs: BTreeMap<u32, u64>,
    /// How often the wall clock jumped.
    pub jumps: u32,
    /// Whether anybody else wrote to a target ref.
    pub strangers: BTreeSet<(String, String)>,
}

impl Oracle {
    pub fn new(limits: FleetLimits) -> Self {
        Self {
            violations: Vec::new(),
            passed: BTreeSet::new(),
            granted: BTreeSet::new(),
            failed: BTreeMap::new(),
            ref_writes: Vec::new(),
            halts: BTreeMap::new(),
            limits,
            begun_by_deposed: 0,
            epochs: BTreeMap::new(),
            jumps: 0,
            strangers: BTreeSet::new(),
        }
    }
}

/// The status of a record; an absent one is the empty one.
pub fn status_of(record: &Record) -> AgentStatus {
    AgentStatus::deserialize(&record.status).unwrap_or_default()
}

fn version(record: &Record) -> u64 {
    record.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn is_killed(status: &AgentStatus) -> bool {
    condition::is_true(&status.conditions, condition::KILLED)
}

/// A record was written.
pub fn on_write(truth: &mut Truth, before: Option<&Record>, after: &Record, by: Option<u32>) {
    let Some(before) = before.filter(|before| after.kind == Kind::Agent && before.status != after.status) else { return };
    let (old, new) = (status_of(before), status_of(after));
    let uid = uid_of(after);
    let mut wrong = broken_moves(&old, &new);
    let failures = |s: &AgentStatus| s.counts.agent_failures + s.counts.infrastructure;
    if failures(&new) > failures(&old) {
        let at = new.last_failure_at.as_ref().map_or(truth.wall, |at| at.0.as_millisecond());
        truth.oracle.failed.insert(uid.clone(), (at, failures(&new), version(after)));
    }
    if old.last_failure_at.is_some() && new.last_failure_at.is_none() {
        // What had failed has succeeded after all.
        truth.oracle.failed.remove(&uid);
    }
    let rounds = truth.oracle.granted.iter().filter(|run| run.uid == uid && run.role == Role::Agent).count();
    if (new.counts.agent_failures + new.counts.rejections) as usize > rounds {
        wrong.push(format!("{:?} is blamed on the agent, which had {rounds} rounds", new.counts));
    }
    let active = |s: &AgentStatus| matches!(place(s), Place::Starting | Place::Running);
    if active(&new) && !active(&old) {
        if by.is_some_and(|by| truth.oracle.epochs.get(&by).copied() < Some(truth.highest_epoch.0)) {
            truth.oracle.begun_by_deposed += 1;
        }
        let now_active = counted(truth).filter(|r| active(&status_of(r))).count();
        if now_active > truth.oracle.limits.running_max + truth.oracle.begun_by_deposed {
            wrong.push(format!("{now_active} agents are active, {} may be", truth.oracle.limits.running_max));
        }
        check_starting_cap(truth, &mut wrong);
        check_claims(truth, after, &mut wrong);
    }
    if ending(&new) == Some(Ending::Completed) && ending(&old).is_none() {
        check_completed(truth, after, &new, &mut wrong);
    }
    truth.note(format!("status of {uid}: {:?} attempt {} {:?} by {by:?}", new.phase, new.attempt, new.reason));
    for text in wrong {
        truth.violate(format!("{uid}: {text}"));
    }
}

/// Agents whose status counts: what an older copy of the store says of the killed is not so.
fn counted(truth: &Truth) -> impl Iterator<Item = &Record> {
    let agents = truth.records.map.values().filter(|record| record.kind == Kind::Agent);
    agents.filter(|record| !truth.lane.restored.contains(&uid_of(record)))
}

fn check_starting_cap(truth: &Truth, wrong: &mut Vec<String>) {
    let starting = counted(truth).filter(|r| place(&status_of(r)) == Place::Starting).count();
    if starting > truth.oracle.limits.starting_max + truth.oracle.begun_by_deposed {
        wrong.push(format!("{starting} agents are starting, {} may be", truth.oracle.limits.starting_max));
    }
}

/// One agent at a time works on a task id, and one writes to a branch.
fn check_claims(truth: &Truth, record: &Record, wrong: &mut Vec<String>) {
    let Ok(agent) = validate(record) else { return };
    for other in counted(truth).filter(|other| other.metadata.uid != record.metadata.uid) {
        let active = matches!(place(&status_of(other)), Place::Starting | Place::Running);
        let Some(other) = validate(other).ok().filter(|_| active) else { continue };
        if other.task_id == agent.task_id {
            wrong.push(format!("works on the task of {}", other.name));
        }
        if other.target_branch == agent.target_branch && other.repository == agent.repository {
            wrong.push(format!("works for the branch of {}", other.name));
        }
    }
}

/// The graph along which a status moves.
fn broken_moves(old: &AgentStatus, new: &AgentStatus) -> Vec<String> {
    let rules = [
        (new.attempt >= old.attempt, "the attempt went back"),
        (new.attempt <= old.attempt + 1, "an attempt was left out"),
        (!is_killed(old) || is_killed(new), "a kill was taken back"),
        (old.completed_at.is_none() || old.completed_at == new.completed_at, "an end was taken back"),
        (old.completed_at.is_none() || ending(old) == ending(new), "an end became another one"),
        (old.completed_at.is_none() || old.attempt == new.attempt, "an attempt was begun after the end"),
        (old.phase <= new.phase, "the phase went back"),
        (old.observed_generation <= new.observed_generation, "the observed generation went back"),
        (new.counts.agent_failures >= old.counts.agent_failures, "agent failures were forgotten"),
        (new.counts.rejections >= old.counts.rejections, "rejections were forgotten"),
        (new.counts.infrastructure >= old.counts.infrastructure, "failures of the infrastructure were forgotten"),
        (old.started_at.is_none() || old.started_at == new.started_at, "the start was moved"),
    ];
    rules.iter().filter(|(holds, _)| !holds).map(|(_, text)| (*text).to_owned()).collect()
}

/// Completed means delivered.
fn check_completed(truth: &Truth, record: &Record, status: &AgentStatus, wrong: &mut Vec<String>) {
    if !condition::is_true(&status.conditions, condition::PUSHED) {
        return;
    }
    let Ok(agent) = validate(record) else { return wrong.push("completed without a spec".into()) };
    let found = truth.git.remotes[&agent.repository].refs.get(&agent.target_branch.full_ref());
    let claimed = status.push.as_ref().and_then(|push| push.sha.as_deref());
    if claimed.is_none() || found.map(CommitId::as_str) != claimed {
        wrong.push(format!("completed with {claimed:?}, and the remote has {found:?}"));
        return;
    }
    let body = &truth.bodies[&agent.uid];
    let pushed = truth.git.files(found.expect("compared above")).get(&body.path());
    let made = body.finished.get(&status.attempt).and_then(|files| files.get(&body.path()));
    if made.is_none() || pushed != made {
        wrong.push(format!("delivered {pushed:?}, but the agent had made {made:?}"));
    }
}

/// Whether a controller has heard of a halt on an agent, or cannot know.
pub fn is_halted(truth: &Truth, controller: u32, subject: &Subject) -> bool {
    let metadata = &subject.record.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    match truth.oracle.halts.get(&controller).cloned().flatten() {
        None => true,
        Some(halts) => halts.iter().any(|halt| halt.matches(metadata.namespace.as_deref().unwrap_or_default(), &labels)),
    }
}

/// A controller is about to apply an effect.
pub fn on_apply(truth: &mut Truth, subject: &Subject, effect: &Effect, halted: bool) {
    let mut wrong = Vec::new();
    if effect.epoch < truth.highest_epoch {
        wrong.push("an effect of a deposed leader was let through".to_owned());
    }
    match &effect.action {
        Action::Resolve | Action::EnsureSandbox { .. } | Action::TakeSnapshot { .. } | Action::Integrate { .. } | Action::Push { .. } => {
            check_start(truth, subject, effect, halted, &mut wrong);
        }
        Action::AddFinalizer
        | Action::StopSandbox { .. }
        | Action::RemoveSandbox { .. }
        | Action::Rescue { .. }
        | Action::RemoveWorkspace
        | Action::Archive
        | Action::RemoveFinalizer
        | Action::DeleteRecord => {}
    }
    for text in wrong {
        truth.violate(format!("{} of {}: {text}", effect.action.name(), effect.uid));
    }
}

fn check_start(truth: &Truth, subject: &Subject, effect: &Effect, halted: bool, wrong: &mut Vec<String>) {
    let Some(record) = truth.records.record(&effect.uid) else { return wrong.push("for a record that is gone".into()) };
    let stored = status_of(record);
    // Another controller's lane may have killed it since this pass was read, on a disk that took no note of it.
    let unheard = truth.lane.older.contains_key(&effect.uid) && !halted;
    if (is_killed(&stored) || stored.completed_at.is_some()) && !unheard {
        wrong.push("after the end was stored".into());
    }
    if record.metadata.finalizers.iter().flatten().all(|name| name != FINALIZER) {
        wrong.push("without our finalizer".into());
    }
    let Some(agent) = &subject.agent else { return wrong.push("for a spec that is none".into()) };
    if halted {
        wrong.push("while halted or killed".into());
    }
    check_backoff(truth, agent, version(&subject.record), wrong);
    if let Action::EnsureSandbox { run, .. } = &effect.action {
        if agent.suspend {
            wrong.push("while suspended".into());
        }
        if stored.attempt != run.attempt.0 || stored.between_attempts {
            wrong.push(format!("before its stored fact: attempt {} is stored", stored.attempt));
        }
    }
    if stored.attempt <= 1 && stored.run.is_none() {
        check_dependencies(truth, agent, wrong);
    }
    if let Action::Push { head, base, .. } = &effect.action {
        check_stored_verdicts(truth, agent, &stored, head, base, wrong);
    }
}

/// Nothing is tried again before the backoff is over (a tenth of jitter allowed).
fn check_backoff(truth: &Truth, agent: &ValidAgent, read: u64, wrong: &mut Vec<String>) {
    let Some((at, failures, stored)) = truth.oracle.failed.get(&agent.uid) else { return };
    if truth.oracle.jumps > 0 || read < *stored {
        return;
    }
    let initial = i64::try_from(agent.backoff_initial.as_millis()).unwrap();
    let max = i64::try_from(agent.backoff_max.as_millis()).unwrap();
    let whole = initial.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max);
    let passed = truth.wall - at;
    if passed < whole * 9 / 10 {
        wrong.push(format!("{passed} ms after failure {failures}, {whole} ms are the backoff"));
    }
}

fn check_dependencies(truth: &Truth, agent: &ValidAgent, wrong: &mut Vec<String>) {
    for name in &agent.depends_on {
        let key = mosaic::store::Key::agent(agent.namespace.as_str(), name.as_str());
        if let Some(record) = truth.records.map.get(&key)
            && ending(&status_of(record)) != Some(Ending::Completed)
        {
            wrong.push(format!("before {name} has completed"));
        }
    }
}

/// Every gate of the trusted branch has a stored pass for exactly this commit on exactly this base.
fn check_stored_verdicts(
    truth: &Truth,
    agent: &ValidAgent,
    stored: &AgentStatus,
    head: &CommitId,
    base: &CommitId,
    wrong: &mut Vec<String>,
) {
    for gate in &truth.git.remotes[&agent.repository].gates {
        let passes = |v: &&mosaic::api::agent::GateStatus| {
            v.name == gate.name
                && v.verdict == Verdict::Pass
                && v.sha == head.as_str()
                && v.base_sha == base.as_str()
                && v.definition == gate.digest
        };
        if !stored.gates.iter().any(|v| passes(&v)) {
            wrong.push(format!("no stored pass of {} for {head} on {base}", gate.name));
        }
    }
}

/// A sandbox begins to run.
pub fn on_grant(truth: &mut Truth, run: &RunId, by: u32, late: bool) {
    let uid = &run.uid;
    let mut wrong = Vec::new();
    if truth.lane.is_known(by, uid) {
        wrong.push("was granted its start although it was killed, or everything was halted".to_owned());
    }
    if !truth.oracle.granted.insert(run.clone()) {
        wrong.push("was granted twice".to_owned());
    }
    if late {
        wrong.push("was granted by a dead controller".to_owned());
    }
    if !truth.has_record(uid) {
        wrong.push("runs without a record".to_owned());
    }
    if truth.running_cells(uid) > 1 {
        wrong.push("runs beside another sandbox of the same agent".to_owned());
    }
    let running = truth.bodies.keys().filter(|uid| truth.running_cells(uid) > 0).count();
    if running > truth.oracle.limits.running_max + truth.oracle.begun_by_deposed {
        wrong.push(format!("{running} agents run, {} may", truth.oracle.limits.running_max));
    }
    for text in wrong {
        truth.violate(format!("{run} {text}"));
    }
}

/// The tree is read.
pub fn on_snapshot(truth: &mut Truth, uid: &Uid) {
    if truth.running_cells(uid) > 0 {
        truth.violate(format!("the tree of {uid} is read while its agent lives"));
    }
}

/// A ref of a remote is written.
pub fn on_ref_written(truth: &mut Truth, pending: &Pending, head: &CommitId, base: &CommitId, found: Option<&CommitId>) {
    let uid = &pending.effect.uid;
    let remote = &truth.git.remotes[&pending.repository];
    let mut wrong = Vec::new();
    for gate in &remote.gates {
        if !truth.oracle.passed.contains(&(uid.clone(), gate.name.clone(), head.clone(), base.clone())) {
            wrong.push(format!("{head} on {base} reaches the remote, and {} never passed it", gate.name));
        }
    }
    if truth.lane.unpushable.contains(uid) {
        wrong.push(format!("{head} reaches the remote after the receipt of its agent's kill"));
    }
    if pending.abandoned == Some(0) {
        wrong.push(format!("{head} reaches the remote by a push that was begun after its agent had ended"));
    }
    if remote.moved_at.get(base).is_some_and(|at| *at < pending.begun_at) {
        wrong.push(format!("{head} reaches the remote, and its base {base} was not the tip any more"));
    }
    let writes = |of: &&(String, String, Uid, CommitId)| of.0 == pending.repository && of.1 == pending.target;
    let own = truth.oracle.ref_writes.iter().filter(writes).any(|write| write.2 == *uid && Some(&write.3) == found);
    if found.is_some() && !own {
        wrong.push(format!("{} of somebody else was overwritten", pending.target));
    }
    truth.oracle.ref_writes.push((pending.repository.clone(), pending.target.clone(), uid.clone(), head.clone()));
    for text in wrong {
        truth.violate(text);
    }
}

/// A tree is removed.
pub fn on_tree_removed(truth: &mut Truth, uid: &Uid, discard: bool) {
    let Some(tree) = truth.bodies.get(uid).and_then(|body| body.tree.clone()) else { return };
    let status = truth.records.record(uid).map(status_of).unwrap_or_default();
    let kept = truth.bodies[uid].rescued.contains(&tree.files);
    let delivered = ending(&status) == Some(Ending::Completed);
    let nothing = tree.files == *truth.git.files(&tree.base) || tree.late;
    if !kept && !delivered && !nothing && !discard {
        truth.violate(format!("unpushed work of {uid} went with its tree"));
    }
    if truth.running_cells(uid) > 0 {
        truth.violate(format!("the tree of {uid} went while its agent lives"));
    }
}

/// A record is gone.
pub fn on_gone(truth: &mut Truth, record: &Record) {
    if record.kind != Kind::Agent {
        return;
    }
    let uid = uid_of(record);
    truth.note(format!("record of {uid} is gone"));
    let Some(body) = truth.bodies.get(&uid) else { return };
    let cells = body.cells.values().filter(|cell| !cell.late).count();
    let tree = body.tree.as_ref().is_some_and(|tree| !tree.late);
    if cells > 0 || tree {
        truth.violate(format!("the record of {uid} is gone, with {cells} sandboxes and tree {tree} left"));
    }
    if !truth.records.archive.contains_key(&uid) {
        truth.violate(format!("the record of {uid} is gone without a history"));
    }
}

/// Something without a record is removed.
pub fn on_orphan(truth: &mut Truth, action: &OrphanAction) {
    let uid = match action {
        OrphanAction::StopSandbox(run) | OrphanAction::RemoveSandbox(run) => run.uid.clone(),
        OrphanAction::RemoveWorkspace(uid) => uid.clone(),
    };
    if truth.has_record(&uid) {
        truth.violate(format!("{action:?} of an agent that has a record"));
    }
}

/// How each agent ended, for the report.
pub fn endings(truth: &Truth) -> Vec<String> {
    let agents = truth.records.map.values().filter(|record| record.kind == Kind::Agent).chain(truth.records.archive.values());
    let ends = agents.map(status_of).map(|s| format!("{:?} {}", s.phase.unwrap_or_default(), s.reason.unwrap_or_default()));
    let receipts = truth.lane.receipts.iter().flat_map(|(verdict, count)| (0..*count).map(move |_| format!("receipt {verdict}")));
    let lies = (0..truth.engine.lies).map(|_| "lie of the engine".to_owned());
    ends.chain(receipts).chain(lies).chain(truth.lane.restored.iter().map(|_| "came back by an older store".to_owned())).collect()
}

/// Everything has settled: compares the world with the records.
pub fn at_the_end(truth: &mut Truth) {
    let mut wrong = Vec::new();
    let bodies: Vec<Uid> = truth.bodies.keys().cloned().collect();
    for uid in bodies {
        let body = &truth.bodies[&uid];
        let ended = truth.records.record(&uid).is_none_or(|record| ending(&status_of(record)).is_some());
        if ended && (!body.cells.is_empty() || body.tree.is_some()) {
            wrong.push(format!("{uid} has ended, and {} sandboxes and tree {} are left", body.cells.len(), body.tree.is_some()));
        }
    }
    for record in truth.records.map.values().filter(|record| record.kind == Kind::Agent) {
        let status = status_of(record);
        if ending(&status) == Some(Ending::Completed) {
            check_completed(truth, record, &status, &mut wrong);
        }
        check_blame(truth, record, &status, &mut wrong);
    }
    lane::at_the_end(truth, &mut wrong);
    let mut owners: BTreeMap<(&String, &String), BTreeSet<&Uid>> = BTreeMap::new();
    for (repository, target, uid, _) in &truth.oracle.ref_writes {
        owners.entry((repository, target)).or_default().insert(uid);
    }
    for ((_, target), uids) in owners.iter().filter(|(_, uids)| uids.len() > 1) {
        wrong.push(format!("{target} was written by {uids:?}"));
    }
    for text in wrong {
        truth.violate(text);
    }
}

/// An agent that does good work is never blamed.
fn check_blame(truth: &Truth, record: &Record, status: &AgentStatus, wrong: &mut Vec<String>) {
    let Some(body) = truth.bodies.get(&uid_of(record)) else { return };
    let good = body.script.iter().all(|behaviour| *behaviour == Behaviour::Good);
    if good && truth.oracle.jumps == 0 && status.counts.agent_failures + status.counts.rejections > 0 {
        wrong.push(format!("{} did good work and is blamed: {:?}", body.name, status.counts));
    }
}
