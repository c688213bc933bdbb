//! Who may run now: halts, priorities, caps, dependencies, claims on task ids and branches.
//!
//! The view is kept incrementally: one changed record costs the same with ten agents as with ten thousand. `upsert`, `remove` and
//! `set_halts` return the agents whose answer may have changed, so that only those are woken. `permit` answers for one agent.

mod index;
mod labels;

pub use labels::Labels;

use crate::api::agent::AgentStatus;
use crate::api::condition::reason;
use crate::api::names::{AgentName, Uid};
use crate::api::validate::ValidAgent;
use crate::plan::status::{Ending, ending};
use index::{ByName, ByTarget, ByTask, Index};
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Caps of one installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetLimits {
    /// Agents that may be past their start and not finished.
    pub running_max: usize,
    /// Agents of those that may be between their start and a running sandbox.
    pub starting_max: usize,
}

/// Where one agent is, for the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not begun, or between two attempts.
    Waiting,
    /// Begun for the first time; no sandbox of it runs yet.
    Starting,
    /// Runs, is judged or pushed, or has ended and is still being removed.
    Running,
    /// Begun by another installation and not seen gone: it takes none of the places here.
    Elsewhere,
    /// Finished and delivered.
    Completed,
    /// Failed or killed.
    Failed,
}

/// What the fleet knows of one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Identity.
    pub uid: Uid,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels, for halts.
    pub labels: Labels,
    /// Older ones win.
    pub created_at: Timestamp,
    /// 1 to 10.
    pub priority: u8,
    /// True: never in the queue.
    pub suspend: bool,
    /// True: not admitted; waits for its own re-check, outside the queue.
    pub refused: bool,
    /// True: is being deleted.
    pub deleting: bool,
    /// The caller's id of the task.
    pub task_id: String,
    /// Uid of the finished agent that this one runs again.
    pub rerun_of: Option<String>,
    /// Remote and target branch.
    pub target: (String, String),
    /// Names that must complete first.
    pub depends_on: Vec<AgentName>,
    /// Where it is.
    pub place: Place,
    /// True: it is another installation's, whether it has ended or not.
    pub is_elsewhere: bool,
    /// Whether an attempt was ever begun: who works on a task or for a branch keeps it, whatever the clocks say of its age.
    pub begun: bool,
    /// Version of the record that says all this; 0: not known.
    pub version: u64,
}

impl Member {
    /// What the fleet needs of an agent.
    #[must_use]
    pub fn of(agent: &ValidAgent, labels: BTreeMap<String, String>, deleting: bool, rerun_of: Option<String>, version: u64) -> Self {
        Self {
            uid: agent.uid.clone(),
            namespace: agent.namespace.to_string(),
            name: agent.name.to_string(),
            labels: labels.into(),
            created_at: agent.created_at,
            priority: agent.priority,
            suspend: agent.suspend,
            refused: crate::api::condition::get(&agent.status.conditions, crate::api::condition::ADMITTED)
                .is_some_and(|c| c.status == "False"),
            deleting,
            task_id: agent.task_id.clone(),
            rerun_of,
            target: (agent.repository.clone(), agent.target_branch.to_string()),
            depends_on: agent.depends_on.clone(),
            place: place(&agent.status),
            is_elsewhere: false,
            begun: agent.status.attempt > 0,
            version,
        }
    }

    fn is_live(&self) -> bool {
        !matches!(self.place, Place::Completed | Place::Failed)
    }

    /// Precedence among those that claim the same: who has begun, then the older one.
    fn claim(&self) -> ClaimOf {
        (!self.begun, self.created_at, self.uid.clone())
    }
}

/// Where a status says that the agent is.
#[must_use]
pub fn place(status: &AgentStatus) -> Place {
    let gone = crate::api::condition::is_true(&status.conditions, crate::api::condition::CLEANED_UP);
    // What of a broken-off attempt still runs keeps its place.
    let rests = status.attempt == 0 || (status.between_attempts && status.sandbox.is_none());
    match ending(status) {
        // Place, task and branch are free only once it was seen that nothing of the agent runs.
        Some(_) if !rests && !gone => Place::Running,
        Some(Ending::Completed) => Place::Completed,
        Some(Ending::Failed | Ending::Killed) => Place::Failed,
        None if rests => Place::Waiting,
        // A refused round goes on at once in the place that it has.
        None if !status.between_attempts && status.sandbox.is_none() && status.run.is_none() => Place::Starting,
        None => Place::Running,
    }
}

/// The same, seen from an installation: what another one has begun goes on there alone.
#[must_use]
pub fn place_seen_from(installation: Option<&str>, status: &AgentStatus) -> Place {
    match place(status) {
        Place::Waiting | Place::Starting | Place::Running if is_elsewhere(installation, status.installation.as_deref()) => Place::Elsewhere,
        place => place,
    }
}

/// Whether what a record says of its installation is another one than this.
#[must_use]
pub fn is_elsewhere(here: Option<&str>, there: Option<&str>) -> bool {
    here.zip(there).is_some_and(|(here, there)| here != there)
}

/// A halt in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaltInForce {
    /// Its name.
    pub name: String,
    /// Only this namespace; `None`: all.
    pub namespace: Option<String>,
    /// Labels that must match, `key=value`; empty: all.
    pub match_labels: BTreeMap<String, String>,
    /// Why, for people.
    pub reason: String,
}

impl HaltInForce {
    /// Whether the halt stops an agent with these labels in this namespace.
    #[must_use]
    pub fn matches(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// Whether one agent may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permit {
    /// It may begin its next attempt.
    Granted,
    /// It must wait; one of `condition::reason` and a sentence.
    Waiting {
        /// Why, in one word.
        reason: &'static str,
        /// Why, in a sentence.
        message: String,
        /// True: the record is refused as it stands (`Admitted=False`), not merely queued.
        refused: bool,
    },
    /// A halt matches, or the halts cannot be read.
    Halted {
        /// Name of the halt; `None`: unreadable.
        by: Option<String>,
        /// Why, in a sentence.
        message: String,
    },
}

type ClaimOf = (bool, Timestamp, Uid);

/// The fleet as the records show it.
#[derive(Debug, Clone)]
pub struct Fleet {
    limits: FleetLimits,
    /// Each with the version of its record: a version that says nothing new changes no index.
    members: BTreeMap<Uid, (Arc<Member>, u64)>,
    names: Index<ByName>,
    tasks: Index<ByTask>,
    /// Of those that live.
    targets: Index<ByTarget>,
    dependents: BTreeMap<(String, String), BTreeSet<Uid>>,
    ready: BTreeSet<(Reverse<u8>, Timestamp, Uid)>,
    halts: Option<Vec<HaltInForce>>,
    counts: Counts,
}

/// How many agents are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Waiting, whatever for.
    pub pending: usize,
    /// Begun, without a running sandbox.
    pub starting: usize,
    /// Running, judged or pushed.
    pub running: usize,
    /// Begun by another installation.
    pub elsewhere: usize,
    /// Delivered.
    pub completed: usize,
    /// Failed or killed.
    pub failed: usize,
}

impl Counts {
    fn slot(&mut self, place: Place) -> &mut usize {
        match place {
            Place::Waiting => &mut self.pending,
            Place::Starting => &mut self.starting,
            Place::Running => &mut self.running,
            Place::Elsewhere => &mut self.elsewhere,
            Place::Completed => &mut self.completed,
            Place::Failed => &mut self.failed,
        }
    }
}

impl Fleet {
    /// An empty fleet whose halts were not read yet: everything counts as halted until `set_halts`.
    #[must_use]
    pub fn new(limits: FleetLimits) -> Self {
        Self {
            limits,
            members: BTreeMap::new(),
            names: Index::new(),
            tasks: Index::new(),
            targets: Index::new(),
            dependents: BTreeMap::new(),
            ready: BTreeSet::new(),
            halts: None,
            counts: Counts::default(),
        }
    }

    /// How many agents are where.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The queue, most urgent first, at most `limit`.
    pub fn queue(&self, limit: usize) -> impl Iterator<Item = &Member> {
        self.ready.iter().take(limit).filter_map(|(_, _, uid)| self.member(uid))
    }

    /// The halts in force; `None`: they cannot be read, which counts as halted. Returns every agent that this may stop.
    pub fn set_halts(&mut self, halts: Option<Vec<HaltInForce>>) -> Vec<Uid> {
        if self.halts == halts {
            return Vec::new();
        }
        self.halts = halts;
        let live: Vec<Uid> = self.members.values().filter(|(m, _)| m.is_live()).map(|(m, _)| m.uid.clone()).collect();
        for uid in &live {
            self.place_in_queue(uid);
        }
        live
    }

    /// Takes in a new or changed agent. Returns others whose answer may have changed.
    pub fn upsert(&mut self, member: Member) -> BTreeSet<Uid> {
        let (uid, version) = (member.uid.clone(), member.version);
        let member = Member { version: 0, ..member };
        if let Some((known, seen)) = self.members.get_mut(&uid) {
            // Another version that says nothing new changes nobody's answer.
            *seen = version;
            if **known == member {
                return BTreeSet::new();
            }
        }
        let front_before = self.front();
        let rewired = self.member(&uid).is_none_or(|known| known.depends_on != member.depends_on);
        let mut affected = self.take_out(&uid);
        affected.extend(self.put_in(member, version));
        if rewired {
            affected.extend(self.downstream(&uid));
        }
        self.settle(&uid, affected, &front_before)
    }

    /// Forgets an agent whose record is gone. Returns others whose answer may have changed.
    pub fn remove(&mut self, uid: &Uid) -> BTreeSet<Uid> {
        let front_before = self.front();
        let mut affected = self.downstream(uid);
        affected.extend(self.take_out(uid));
        self.settle(uid, affected, &front_before)
    }

    /// What the fleet knows of an agent; without its version (`is_news` knows it).
    #[must_use]
    pub fn member(&self, uid: &Uid) -> Option<&Member> {
        self.members.get(uid).map(|(member, _)| &**member)
    }

    /// All agents.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().map(|(member, _)| &**member)
    }

    /// The agent of that name.
    #[must_use]
    pub fn uid_named(&self, namespace: &str, name: &str) -> Option<&Uid> {
        self.named(namespace, name).map(|member| &member.uid)
    }

    /// Whether a watched version of a record says more than what a pass has read or written since. Watches lag: an older version would
    /// give a place away that is taken.
    #[must_use]
    pub fn is_news(&self, uid: &Uid, version: u64) -> bool {
        version == 0 || self.members.get(uid).is_none_or(|(_, known)| *known < version)
    }

    /// Whether a halt stops this agent: the first rule of every plan, and checked again before every start.
    #[must_use]
    pub fn halt_on(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Permit> {
        let Some(halts) = &self.halts else {
            return Some(Permit::Halted { by: None, message: "the halts cannot be read, which counts as halted".to_owned() });
        };
        let halt = halts.iter().find(|halt| halt.matches(namespace, labels))?;
        Some(Permit::Halted { by: Some(halt.name.clone()), message: format!("halted by {}: {}", halt.name, halt.reason) })
    }

    fn halt_on_member(&self, member: &Member) -> Option<Permit> {
        match &self.halts {
            Some(none) if none.is_empty() => None,
            Some(_) | None => self.halt_on(&member.namespace, &member.labels.unpack()),
        }
    }

    /// The agent of that name; of two, while one takes the other's place, the later one.
    fn named(&self, namespace: &str, name: &str) -> Option<&Member> {
        self.names.all(namespace, name).max_by_key(|member| (member.created_at, &member.uid)).map(|member| &**member)
    }

    /// Whether the agent may begin its next attempt now.
    #[must_use]
    pub fn permit(&self, uid: &Uid) -> Permit {
        let Some(member) = self.member(uid) else {
            return waiting(reason::PENDING, "the record has just appeared".to_owned());
        };
        if let Some(halted) = self.halt_on_member(member) {
            return halted;
        }
        if let Some(blocked) = self.blocker(member) {
            return blocked;
        }
        if member.place != Place::Waiting || member.refused {
            return Permit::Granted;
        }
        let free = self.free();
        let first = self.ready.iter().take(free).any(|(_, _, ready)| ready == uid);
        match first {
            true => Permit::Granted,
            false if self.counts.starting >= self.limits.starting_max => {
                waiting(reason::STARTING_LIMIT, format!("{} agents are starting, which is the limit", self.limits.starting_max))
            }
            false => {
                waiting(reason::QUEUED, format!("waits for one of {} places; higher priority and older go first", self.limits.running_max))
            }
        }
    }

    /// How many may begin now.
    fn free(&self) -> usize {
        let active = self.counts.starting + self.counts.running;
        let places = self.limits.running_max.saturating_sub(active);
        places.min(self.limits.starting_max.saturating_sub(self.counts.starting))
    }

    fn front(&self) -> BTreeSet<Uid> {
        self.ready.iter().take(self.free()).map(|(_, _, uid)| uid.clone()).collect()
    }

    /// Puts the changed agent and all it touches into their places in the queue; returns those to wake.
    fn settle(&mut self, uid: &Uid, affected: BTreeSet<Uid>, front_before: &BTreeSet<Uid>) -> BTreeSet<Uid> {
        self.place_in_queue(uid);
        for other in &affected {
            self.place_in_queue(other);
        }
        let mut wake: BTreeSet<Uid> = self.front().difference(front_before).cloned().collect();
        wake.extend(affected);
        wake.remove(uid);
        wake
    }

    fn place_in_queue(&mut self, uid: &Uid) {
        let Some(member) = self.member(uid) else { return };
        let entry = (Reverse(member.priority), member.created_at, uid.clone());
        let halted = self.halt_on_member(member).is_some();
        let waits = member.place == Place::Waiting && !member.suspend && !member.deleting && !member.refused;
        if waits && !halted && self.blocker(member).is_none() {
            self.ready.insert(entry);
        } else {
            self.ready.remove(&entry);
        }
    }

    /// Why the agent may not run whatever places are free: dependencies and claims.
    fn blocker(&self, member: &Member) -> Option<Permit> {
        if !member.is_live() {
            return None;
        }
        self.dependency_blocker(member).or_else(|| self.claim_blocker(member))
    }

    fn dependency_blocker(&self, member: &Member) -> Option<Permit> {
        // Whoever has begun had its dependencies; that one of them is deleted later takes nothing back.
        for name in member.depends_on.iter().filter(|_| !member.begun) {
            let Some(dependency) = self.named(&member.namespace, name.as_str()) else {
                return Some(refused(
                    reason::DEPENDENCY_MISSING,
                    format!("dependsOn names {name}, and there is no such agent in namespace {}", member.namespace),
                ));
            };
            match dependency.place {
                Place::Completed => {}
                Place::Failed => {
                    return Some(refused(
                        reason::DEPENDENCY_FAILED,
                        format!("{name} failed or was killed; run it again or delete this agent"),
                    ));
                }
                Place::Waiting | Place::Starting | Place::Running | Place::Elsewhere => {
                    if let Some(cycle) = self.cycle_from(member) {
                        return Some(refused(
                            reason::DEPENDENCY_CYCLE,
                            format!("dependsOn is a cycle: {}; delete one of them", cycle.join(" -> ")),
                        ));
                    }
                    return Some(waiting(reason::DEPENDENCY_PENDING, format!("waits for {name} to complete")));
                }
            }
        }
        None
    }

    /// The way from the agent back to itself along `dependsOn`, if there is one.
    fn cycle_from(&self, member: &Member) -> Option<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut path = vec![(member.name.clone(), 0_usize)];
        while let Some((name, next)) = path.last_mut() {
            let current = self.named(&member.namespace, name);
            let Some(dependency) = current.and_then(|m| m.depends_on.get(*next)) else {
                path.pop();
                continue;
            };
            *next += 1;
            let dependency = dependency.to_string();
            if dependency == member.name {
                return Some(path.into_iter().map(|(name, _)| name).chain([dependency]).collect());
            }
            if seen.insert(dependency.clone()) {
                path.push((dependency, 0));
            }
        }
        None
    }

    fn claim_blocker(&self, member: &Member) -> Option<Permit> {
        let own = member.claim();
        if let Some(other) = self.tasks.all(&member.namespace, &member.task_id).next().filter(|first| first.claim() < own) {
            let rerun = member.rerun_of.is_some() && !self.other_live_with_task(member);
            if !rerun {
                return Some(refused(
                    reason::TASK_ID_TAKEN,
                    format!(
                        "task id {:?} belongs to {}; delete that agent, or name its uid in rerunOf once it is finished",
                        member.task_id, other.name
                    ),
                ));
            }
        }
        let other = self.targets.all(&member.target.0, &member.target.1).next().filter(|first| first.claim() < own)?;
        Some(refused(
            reason::BRANCH_TAKEN,
            format!("{} writes to {} of the same repository; choose another targetBranch", other.name, member.target.1),
        ))
    }

    fn other_live_with_task(&self, member: &Member) -> bool {
        let own = member.claim();
        self.tasks.all(&member.namespace, &member.task_id).take_while(|other| other.claim() < own).any(|other| other.is_live())
    }

    /// Removes an agent from every index; returns those whose answer may depend on it.
    fn take_out(&mut self, uid: &Uid) -> BTreeSet<Uid> {
        let Some((member, _)) = self.members.remove(uid) else { return BTreeSet::new() };
        *self.counts.slot(member.place) -= 1;
        self.ready.remove(&(Reverse(member.priority), member.created_at, uid.clone()));
        self.names.remove(&member);
        self.tasks.remove(&member);
        self.targets.remove(&member);
        for name in &member.depends_on {
            let key = (member.namespace.clone(), name.to_string());
            if let Some(set) = self.dependents.get_mut(&key) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&key);
                }
            }
        }
        self.touched_by(&member)
    }

    fn put_in(&mut self, member: Member, version: u64) -> BTreeSet<Uid> {
        let member = Arc::new(member);
        *self.counts.slot(member.place) += 1;
        self.names.insert(&member);
        self.tasks.insert(&member);
        if member.is_live() {
            self.targets.insert(&member);
        }
        for name in &member.depends_on {
            self.dependents.entry((member.namespace.clone(), name.to_string())).or_default().insert(member.uid.clone());
        }
        let touched = self.touched_by(&member);
        self.members.insert(member.uid.clone(), (member, version));
        touched
    }

    /// All that wait for this one, however far along: it may close a cycle by its coming, and open one by its going.
    fn downstream(&self, uid: &Uid) -> BTreeSet<Uid> {
        let mut found = BTreeSet::new();
        let mut open = vec![uid.clone()];
        while let Some(member) = open.pop().and_then(|uid| self.member(&uid)) {
            let dependents = self.dependents.get(&(member.namespace.clone(), member.name.clone()));
            open.extend(dependents.into_iter().flatten().filter(|uid| found.insert((*uid).clone())).cloned());
        }
        found
    }

    /// Agents that depend on this one or compete with it for a task id or a branch.
    fn touched_by(&self, member: &Member) -> BTreeSet<Uid> {
        let dependents = self.dependents.get(&(member.namespace.clone(), member.name.clone())).into_iter().flatten().cloned();
        let tasks = self.tasks.all(&member.namespace, &member.task_id);
        let targets = self.targets.all(&member.target.0, &member.target.1);
        dependents.chain(tasks.chain(targets).map(|other| other.uid.clone())).collect()
    }
}

fn waiting(reason: &'static str, message: String) -> Permit {
    Permit::Waiting { reason, message, refused: false }
}

fn refused(reason: &'static str, message: String) -> Permit {
    Permit::Waiting { reason, message, refused: true }
}
