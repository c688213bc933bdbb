//! Agents, stages of their life and observations, as the tests of the plan need them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mosaic::api::agent::{
    AgentStatus, Driver, GateDefinition, GateSetStatus, GateStatus, PushStatus, RunStatus, SandboxStatus, Verdict, WorkspaceStatus,
};
use mosaic::api::condition::{self, reason};
use mosaic::api::names::{Attempt, CommitId, GateName, Role, RunId, Uid};
use mosaic::api::validate::{ValidAgent, validate};
use mosaic::plan::action::{Action, ActionId};
use mosaic::plan::fleet::Permit;
use mosaic::plan::observed::{
    EndCause, Failure, FailureClass, Look, Observed, Outcome, Resolved, RunEnd, SandboxSeen, SandboxState, WorkspaceSeen,
};
use mosaic::plan::{Desired, Plan, plan};
use mosaic::store::{Kind, Record};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub const UID: &str = "a1b2c3d4-0001";

/// The present of all tests.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_760_000_000).unwrap()
}

pub fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

pub fn uid() -> Uid {
    Uid::new(UID).unwrap()
}

/// Commit number `digit`.
pub fn sha(digit: u8) -> CommitId {
    CommitId::new(digit.to_string().repeat(40)).unwrap()
}

/// A checked agent; `more` goes into the spec.
pub fn agent(more: Value) -> ValidAgent {
    let mut spec = json!({"context": {"repository": "file:///one"}, "runtime": {"command": {"args": ["work"]}}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let metadata =
        json!({"name": "agent-0", "namespace": "default", "uid": UID, "generation": 1, "finalizers": ["mosaicstack.dev/cleanup"]});
    let record = Record { kind: Kind::Agent, metadata: serde_json::from_value(metadata).unwrap(), spec, status: Value::Null };
    validate(&record).unwrap()
}

pub fn agent_run(attempt: u32) -> RunId {
    RunId { uid: uid(), attempt: Attempt(attempt), role: Role::Agent }
}

pub fn gate_run(name: &str, head: u8, tries: u32) -> RunId {
    RunId { uid: uid(), attempt: Attempt(1), role: Role::Gate { name: GateName::new(name).unwrap(), sha: sha(head), tries } }
}

pub fn seen(run: RunId, state: SandboxState) -> SandboxSeen {
    SandboxSeen { run, driver: Driver::Process, id: "id".into(), isolation: Vec::new(), state, doing: None }
}

pub fn running(run: RunId, silent_seconds: i64) -> SandboxSeen {
    seen(run, SandboxState::Running { since: ago(silent_seconds), last_sign_at: ago(silent_seconds), progress: None })
}

pub fn ended(run: RunId, cause: EndCause) -> SandboxSeen {
    seen(run, SandboxState::Ended(RunEnd { cause, duration_millis: 1000, output_tail: "tail".into(), result: None }))
}

pub fn tree() -> Option<WorkspaceSeen> {
    Some(WorkspaceSeen { worktree: "agent-0".into(), base: sha(1), content: None, ready: true })
}

pub fn observed(sandboxes: Vec<SandboxSeen>, workspace: Option<WorkspaceSeen>) -> Observed {
    Observed { sandboxes: Look::Seen(sandboxes), workspace: Look::Seen(workspace), in_flight: BTreeSet::new(), outcomes: BTreeMap::new() }
}

pub fn with_outcome(mut observed: Observed, action: Action, outcome: Result<Outcome, Failure>) -> Observed {
    observed.outcomes.insert(action.id(), outcome);
    observed
}

pub fn failure(class: FailureClass, at: Timestamp) -> Failure {
    Failure { class, reason: reason::REMOTE_UNAVAILABLE.into(), message: "no answer".into(), at }
}

pub fn gate(name: &str, needs: &[&str]) -> GateDefinition {
    GateDefinition {
        name: name.into(),
        command: "check".into(),
        timeout_seconds: 60,
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        digest: format!("digest-{name}"),
    }
}

pub fn verdict(name: &str, verdict: Verdict, head: u8, tries: u32) -> GateStatus {
    GateStatus {
        name: name.into(),
        verdict,
        sha: sha(head).to_string(),
        base_sha: sha(1).to_string(),
        definition: format!("digest-{name}"),
        duration_millis: None,
        evidence: None,
        tries,
    }
}

/// A stage of an agent's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Fresh,
    Refused,
    Admitted,
    Begun,
    SandboxKnown,
    Ran,
    Candidate,
    Head,
    Passed,
    BetweenAttempts,
    Failed,
    Completed,
    CleanedUp,
    Killed,
    Rescued,
}

pub const STAGES: [Stage; 15] = [
    Stage::Fresh,
    Stage::Refused,
    Stage::Admitted,
    Stage::Begun,
    Stage::SandboxKnown,
    Stage::Ran,
    Stage::Candidate,
    Stage::Head,
    Stage::Passed,
    Stage::BetweenAttempts,
    Stage::Failed,
    Stage::Completed,
    Stage::CleanedUp,
    Stage::Killed,
    Stage::Rescued,
];

/// The status that was stored at that stage.
pub fn status(stage: Stage) -> AgentStatus {
    let mut s = AgentStatus::default();
    let at = |stage_from: Stage| {
        let place = |of: Stage| STAGES.iter().position(|s| *s == of);
        place(stage) >= place(stage_from)
    };
    let set = |s: &mut AgentStatus, type_: &str, value: bool, why: &str| {
        condition::set(&mut s.conditions, type_, value, why, "text", ago(100));
    };
    if stage == Stage::Refused {
        set(&mut s, condition::ADMITTED, false, reason::REPOSITORY_NOT_FOUND);
        s.last_failure_at = Some(MicroTime(ago(5)));
    }
    if at(Stage::Admitted) {
        set(&mut s, condition::ADMITTED, true, reason::MET);
        s.workspace = Some(WorkspaceStatus { base_sha: Some(sha(1).to_string()), ..WorkspaceStatus::default() });
        let gates = vec![gate("tests", &[]), gate("lint", &["tests"])];
        s.gate_set = Some(GateSetStatus { source: "file".into(), trusted_sha: sha(1).to_string(), gates });
        s.push = Some(PushStatus { remote: "file:///one".into(), ref_name: "refs/heads/x".into(), ..PushStatus::default() });
    }
    if at(Stage::Begun) {
        s.attempt = 1;
        s.started_at = Some(MicroTime(ago(60)));
    }
    if at(Stage::SandboxKnown) {
        s.sandbox = Some(SandboxStatus::default());
    }
    if at(Stage::Ran) && stage != Stage::BetweenAttempts {
        s.run = Some(RunStatus { attempt: 1, finished_at: Some(MicroTime(ago(30))), exit_code: Some(0), ..RunStatus::default() });
    }
    let workspace = s.workspace.get_or_insert_default();
    if at(Stage::Candidate) {
        workspace.candidate_sha = Some(sha(2).to_string());
    }
    if at(Stage::Head) {
        workspace.head_sha = Some(sha(2).to_string());
        workspace.head_base_sha = Some(sha(1).to_string());
    }
    if at(Stage::Passed) {
        s.gates = vec![verdict("tests", Verdict::Pass, 2, 0), verdict("lint", Verdict::Pass, 2, 0)];
    }
    s.between_attempts = stage == Stage::BetweenAttempts;
    if at(Stage::Failed) {
        s.completed_at = Some(MicroTime(ago(10)));
    }
    match stage {
        Stage::Completed | Stage::CleanedUp => set(&mut s, condition::PUSHED, true, reason::DELIVERED),
        Stage::Killed | Stage::Rescued => set(&mut s, condition::KILLED, true, reason::KILLED),
        _ => {}
    }
    if stage == Stage::CleanedUp {
        set(&mut s, condition::CLEANED_UP, true, reason::MET);
    }
    if stage == Stage::Rescued {
        s.workspace.get_or_insert_default().rescued = true;
    }
    s
}

/// Everything that one plan is made of.
#[derive(Debug, Clone)]
pub struct Facts {
    pub agent: ValidAgent,
    pub errors: Option<Vec<String>>,
    pub status: AgentStatus,
    pub observed: Observed,
    pub permit: Permit,
    pub latched: Option<&'static str>,
    pub deleting: Option<&'static str>,
    pub discard: bool,
    pub has_finalizer: bool,
    pub now: Timestamp,
}

impl Facts {
    pub fn new(status: AgentStatus, observed: Observed) -> Self {
        Self {
            agent: agent(json!({})),
            errors: None,
            status,
            observed,
            permit: Permit::Granted,
            latched: None,
            deleting: None,
            discard: false,
            has_finalizer: true,
            now: now(),
        }
    }

    fn with_desired<T>(&self, act: impl FnOnce(&Desired<'_>) -> T) -> T {
        let uid = uid();
        act(&Desired {
            uid: &uid,
            generation: 1,
            has_finalizer: self.has_finalizer,
            latched: self.latched,
            deleting: self.deleting,
            discard: self.discard,
            status: &self.status,
            spec: match &self.errors {
                Some(errors) => Err(errors),
                None => Ok(&self.agent),
            },
        })
    }

    /// The plan; panics where an invariant does not hold.
    pub fn plan(&self) -> Plan {
        self.with_desired(|desired| {
            let plan = plan(desired, &self.observed, &self.permit, self.now);
            let wrong = mosaic::plan::invariants::check(desired, &self.observed, &self.permit, &plan);
            assert_eq!(wrong, Vec::<String>::new(), "{self:#?}\n{plan:#?}");
            plan
        })
    }
}

pub fn names(plan: &Plan) -> Vec<&'static str> {
    plan.actions.iter().map(Action::name).collect()
}

/// A repository with two gates, as `Resolve` finds it.
pub fn resolved() -> Resolved {
    Resolved {
        remote: "file:///one".into(),
        base_branch: mosaic::api::names::Branch::new("main").unwrap(),
        base: sha(1),
        target: None,
        gate_source: "file".into(),
        trusted: sha(1),
        gates: vec![gate("tests", &[]), gate("lint", &["tests"])],
    }
}

pub fn in_flight(actions: &[Action]) -> BTreeSet<ActionId> {
    actions.iter().map(Action::id).collect()
}
