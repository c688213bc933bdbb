//! Each rule of retries, time-outs, gates and teardown by its name.

use super::build::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use mosaic::api::agent::{Phase, Verdict};
use mosaic::api::condition::{self, reason};
use mosaic::api::names::Attempt;
use mosaic::plan::action::Action;
use mosaic::plan::gates::{GatesState, state};
use mosaic::plan::observed::{EndCause, FailureClass, Integrated, Look, Outcome, Pushed, Resolved, SandboxState, Snapshot};
use mosaic::plan::retry::{BASE_MOVES_MAX, GATE_TRIES_MAX, INFRASTRUCTURE_FAILURES_MAX, backoff};
use mosaic::plan::status::{Ending, ending};
use serde_json::json;
use std::time::Duration;

fn infrastructure() -> Result<Outcome, mosaic::plan::observed::Failure> {
    Err(failure(FailureClass::Infrastructure, now()))
}

fn gate_start(head: u8, tries: u32) -> Action {
    Action::EnsureSandbox { run: gate_run("tests", head, tries), base: sha(1), content: Some(sha(head)) }
}

#[test]
fn a_gate_that_could_not_start_waits_for_its_backoff() {
    let facts = Facts::new(status(Stage::Head), with_outcome(observed(vec![], tree()), gate_start(2, 0), infrastructure()));
    let plan = facts.plan();
    assert_eq!(names(&plan), Vec::<&str>::new());
    assert_eq!(plan.status.counts.infrastructure, 1);
    // The failure is stored and forgotten; a second later it still waits.
    let mut later = Facts::new(plan.status, observed(vec![], tree()));
    later.now = now() + k8s_openapi::jiff::SignedDuration::from_secs(2);
    let plan = later.plan();
    assert_eq!(names(&plan), Vec::<&str>::new());
    assert!(plan.requeue_after.unwrap() > Duration::from_secs(6), "{:?}", plan.requeue_after);
    later.now = now() + k8s_openapi::jiff::SignedDuration::from_secs(11);
    assert_eq!(names(&later.plan()), ["EnsureGate"]);
}

#[test]
fn a_gate_that_was_lost_waits_for_its_backoff_and_burns_no_retry() {
    let lost = ended(gate_run("tests", 2, 0), EndCause::Lost("gone".into()));
    let plan = Facts::new(status(Stage::Head), observed(vec![lost], tree())).plan();
    assert_eq!(names(&plan), ["RemoveSandbox"]);
    assert_eq!((plan.status.counts.infrastructure, plan.status.counts.rejections, plan.status.counts.agent_failures), (1, 0, 0));
    assert_eq!(plan.status.attempt, 1);
    let waits = plan.waiting.iter().find(|w| w.reason == reason::BACKOFF).unwrap();
    assert!(waits.message.ends_with(": gone"), "what failed is where people look first: {}", waits.message);
}

#[test]
fn what_takes_long_while_a_sandbox_is_made_is_what_the_agent_waits_for() {
    let mut making = seen(agent_run(1), SandboxState::Preparing);
    making.doing = Some("pulling the image a:1: layer 40 %".into());
    let plan = Facts::new(status(Stage::Begun), observed(vec![making], tree())).plan();
    assert_eq!(names(&plan), ["EnsureSandbox"]);
    assert_eq!(plan.status.message.as_deref(), Some("pulling the image a:1: layer 40 %"));
    assert_eq!(plan.status.reason.as_deref(), Some(reason::STARTING_SANDBOX));
}

#[test]
fn a_sandbox_whose_grant_failed_waits_for_its_backoff() {
    let ensure = Action::EnsureSandbox { run: agent_run(1), base: sha(1), content: None };
    let half_made = || observed(vec![seen(agent_run(1), SandboxState::Preparing)], tree());
    let plan = Facts::new(status(Stage::Begun), with_outcome(half_made(), ensure, infrastructure())).plan();
    let mut later = Facts::new(plan.status, half_made());
    later.now = now() + k8s_openapi::jiff::SignedDuration::from_secs(2);
    assert_eq!(names(&later.plan()), Vec::<&str>::new());
}

#[test]
fn a_gate_that_cannot_judge_ends_the_agent_as_gate_error_never_as_rejected() {
    let mut s = status(Stage::Head);
    s.gates = vec![verdict("tests", Verdict::Error, 2, GATE_TRIES_MAX)];
    let plan = Facts::new(s, observed(vec![], tree())).plan();
    assert_eq!(plan.status.reason.as_deref(), Some(reason::GATE_ERROR));
    assert_eq!(plan.status.counts.rejections, 0);
}

#[test]
fn no_number_of_suspends_breaks_a_gate() {
    let mut s = status(Stage::Head);
    for tries in 0..GATE_TRIES_MAX + 2 {
        let stopped = ended(gate_run("tests", 2, tries), EndCause::Stopped);
        let mut facts = Facts::new(s, observed(vec![stopped], tree()));
        facts.agent = agent(json!({"suspend": true}));
        s = facts.plan().status;
    }
    assert_eq!(s.counts.infrastructure, 0);
    let plan = Facts::new(s, observed(vec![], tree())).plan();
    assert_eq!(names(&plan), ["EnsureGate"], "{plan:#?}");
}

#[test]
fn only_pass_passes_and_an_empty_set_never_does() {
    let s = status(Stage::Passed);
    assert_eq!(state(&s, &sha(2), &sha(1), GATE_TRIES_MAX), GatesState::Passed);
    assert_ne!(state(&s, &sha(2), &sha(3), GATE_TRIES_MAX), GatesState::Passed, "another base");
    assert_ne!(state(&s, &sha(3), &sha(1), GATE_TRIES_MAX), GatesState::Passed, "another commit");
    for other in [Verdict::Fail, Verdict::Error, Verdict::Skipped] {
        let mut s = s.clone();
        s.gates[0].verdict = other;
        assert_ne!(state(&s, &sha(2), &sha(1), GATE_TRIES_MAX), GatesState::Passed, "{other:?}");
    }
    let mut redefined = s.clone();
    redefined.gates[0].definition = "another".into();
    assert_ne!(state(&redefined, &sha(2), &sha(1), GATE_TRIES_MAX), GatesState::Passed, "another definition");
    let mut empty = s;
    empty.gate_set.as_mut().unwrap().gates.clear();
    assert_ne!(state(&empty, &sha(2), &sha(1), GATE_TRIES_MAX), GatesState::Passed, "no gate at all");
    assert_eq!(ending(&Facts::new(empty, observed(vec![], tree())).plan().status), Some(Ending::Failed));
}

#[test]
fn a_gate_waits_for_what_it_needs() {
    let mut s = status(Stage::Head);
    assert_eq!(names(&Facts::new(s.clone(), observed(vec![], tree())).plan()), ["EnsureGate"], "lint needs tests");
    s.gates = vec![verdict("tests", Verdict::Fail, 2, 0)];
    let plan = Facts::new(s, observed(vec![], tree())).plan();
    assert_eq!((plan.status.attempt, plan.status.counts.rejections), (2, 1), "lint cannot run any more");
}

#[test]
fn a_clock_that_was_set_back_keeps_no_clean_up_waiting() {
    let rescue = Action::Rescue { attempt: Attempt(1) };
    let ahead = now() + k8s_openapi::jiff::SignedDuration::from_hours(1);
    let failed = with_outcome(observed(vec![], tree()), rescue, Err(failure(FailureClass::Infrastructure, ahead)));
    assert_eq!(names(&Facts::new(status(Stage::Killed), failed).plan()), ["Rescue"]);
}

#[test]
fn a_clock_that_was_set_back_times_nothing_out() {
    let mut s = status(Stage::SandboxKnown);
    s.started_at = Some(MicroTime(ago(-7200)));
    let plan = Facts::new(s, observed(vec![running(agent_run(1), -7200)], tree())).plan();
    assert_eq!(ending(&plan.status), None);
    assert_eq!(plan.status.counts.agent_failures, 0);
}

#[test]
fn a_push_of_our_own_that_landed_late_is_nobody_elses() {
    let mut s = status(Stage::Passed);
    s.gates.insert(0, verdict("tests", Verdict::Pass, 5, 0));
    let push = |expected_old| Action::Push { attempt: Attempt(1), head: sha(2), base: sha(1), expected_old };
    let taken = |found| with_outcome(observed(vec![], tree()), push(None), Ok(Outcome::Pushed(Pushed::RefTaken(Some(found)))));
    let plan = Facts::new(s.clone(), taken(sha(5))).plan();
    assert_eq!(plan.actions, [push(Some(sha(5)))]);
    let plan = Facts::new(s, taken(sha(6))).plan();
    assert_eq!(plan.status.reason.as_deref(), Some(reason::BRANCH_TAKEN));
}

#[test]
fn an_agent_fails_at_most_once_more_than_its_retries() {
    for retries in 0..4_u32 {
        let mut s = status(Stage::SandboxKnown);
        let mut rounds = 0;
        loop {
            let mut facts = Facts::new(s.clone(), observed(vec![ended(agent_run(s.attempt), EndCause::Exited(1))], tree()));
            facts.agent = agent(json!({"maxRetries": retries}));
            s = facts.plan().status;
            rounds += 1;
            if ending(&s).is_some() {
                break;
            }
            assert!(s.between_attempts);
            facts.observed = observed(vec![], tree());
            facts.status = s;
            facts.now = now() + k8s_openapi::jiff::SignedDuration::from_secs(400);
            s = facts.plan().status;
            assert!(!s.between_attempts, "the backoff is over");
        }
        assert_eq!((rounds, s.counts.agent_failures, s.attempt), (retries + 1, retries + 1, retries + 1));
        assert_eq!(s.reason.as_deref(), Some(reason::AGENT_FAILED));
    }
}

#[test]
fn infrastructure_has_a_budget_of_its_own_and_burns_no_retry() {
    let mut s = status(Stage::Candidate);
    let action = Action::Integrate { attempt: Attempt(1), candidate: sha(2), round: 0 };
    for failures in 1..=INFRASTRUCTURE_FAILURES_MAX {
        let mut facts = Facts::new(s, with_outcome(observed(vec![], tree()), action.clone(), infrastructure()));
        facts.agent = agent(json!({"maxRetries": 0}));
        s = facts.plan().status;
        assert_eq!((s.counts.infrastructure, s.counts.agent_failures, s.counts.rejections), (failures, 0, 0));
        assert_eq!(ending(&s).is_some(), failures == INFRASTRUCTURE_FAILURES_MAX);
    }
}

#[test]
fn a_base_that_keeps_moving_is_the_infrastructures_failure() {
    let mut s = status(Stage::Passed);
    for round in 0..=BASE_MOVES_MAX {
        let push = Action::Push { attempt: Attempt(1), head: sha(2), base: sha(1), expected_old: None };
        let moved = Ok(Outcome::Pushed(Pushed::BaseMoved(sha(3))));
        s = Facts::new(s, with_outcome(observed(vec![], tree()), push, moved)).plan().status;
        let workspace = s.workspace.as_mut().unwrap();
        assert_eq!((workspace.base_moves, workspace.head_sha.take()), (round + 1, None));
        workspace.head_sha = Some(sha(2).to_string());
        workspace.head_base_sha = Some(sha(1).to_string());
    }
    assert_eq!((s.counts.infrastructure, s.counts.rejections), (1, 0));
}

#[test]
fn by_default_the_backoff_is_ten_to_three_hundred_seconds() {
    let a = agent(json!({}));
    for failures in 1..40 {
        let wait = backoff(&uid(), failures, a.backoff_initial, a.backoff_max);
        let whole = Duration::from_secs(10 << (failures - 1).min(10)).min(Duration::from_secs(300));
        assert!(wait <= whole && wait >= whole * 9 / 10, "{failures}: {wait:?}");
        assert_eq!(wait, backoff(&uid(), failures, a.backoff_initial, a.backoff_max), "the same every time");
    }
}

#[test]
fn the_whole_agent_and_its_silence_time_out() {
    let mut s = status(Stage::SandboxKnown);
    let quiet = |seconds| observed(vec![running(agent_run(1), seconds)], tree());
    let plan = Facts::new(s.clone(), quiet(599)).plan();
    assert_eq!((names(&plan), plan.requeue_after), (vec![], Some(Duration::from_secs(1))));
    let plan = Facts::new(s.clone(), quiet(600)).plan();
    assert_eq!(names(&plan), ["StopSandbox"]);
    assert_eq!((plan.status.counts.agent_failures, plan.status.feedback.len()), (1, 1));
    s.started_at = Some(MicroTime(ago(3600)));
    let plan = Facts::new(s, quiet(1)).plan();
    assert_eq!((plan.status.phase, plan.status.reason.as_deref()), (Some(Phase::Failed), Some(reason::TIMEOUT)));
    assert_eq!(names(&plan), ["StopSandbox"]);
}

#[test]
fn a_conflict_lays_out_the_next_round_with_markers_and_tells_paths_and_hunks() {
    let action = Action::Integrate { attempt: Attempt(1), candidate: sha(2), round: 0 };
    let conflict = Integrated::Conflict { base: sha(3), content: sha(4), paths: vec!["a.rs".into()], hunks: "<<<".into() };
    let plan =
        Facts::new(status(Stage::Candidate), with_outcome(observed(vec![], tree()), action, Ok(Outcome::Integrated(conflict)))).plan();
    let feedback = plan.status.feedback.last().unwrap();
    assert!(feedback.summary.contains("a.rs") && feedback.details.as_deref() == Some("<<<"));
    assert_eq!(plan.actions, [Action::EnsureSandbox { run: agent_run(2), base: sha(3), content: Some(sha(4)) }]);
}

#[test]
fn nothing_changed_completes_only_with_a_reason() {
    let action = Action::TakeSnapshot { attempt: Attempt(1), base: sha(1) };
    let facts = |s| Facts::new(s, with_outcome(observed(vec![], tree()), action.clone(), Ok(Outcome::Snapshot(Snapshot::Unchanged, None))));
    let plan = facts(status(Stage::Ran)).plan();
    assert_eq!((ending(&plan.status), plan.status.counts.agent_failures), (None, 1));
    let mut said = status(Stage::Ran);
    said.run.as_mut().unwrap().summary = Some("all is well already".into());
    assert_eq!(ending(&facts(said).plan().status), Some(Ending::Completed));
}

#[test]
fn a_lost_tree_and_a_lost_sandbox_are_not_the_agents_fault() {
    let plan = Facts::new(status(Stage::Ran), observed(vec![], None)).plan();
    assert_eq!((plan.status.counts.infrastructure, plan.status.counts.agent_failures), (1, 0));
    let plan = Facts::new(status(Stage::SandboxKnown), observed(vec![], tree())).plan();
    assert_eq!((plan.status.counts.infrastructure, plan.status.counts.agent_failures), (1, 0));
    assert!(plan.status.between_attempts);
}

#[test]
fn a_kill_goes_from_latch_to_finalizer_in_order_and_keeps_the_work() {
    let mut facts = Facts::new(status(Stage::SandboxKnown), observed(vec![running(agent_run(1), 1)], tree()));
    facts.deleting = Some("kill");
    let mut order = Vec::new();
    for (sandboxes, workspace) in
        [(vec![running(agent_run(1), 1)], tree()), (vec![ended(agent_run(1), EndCause::Stopped)], tree()), (vec![], tree())]
    {
        facts.observed = observed(sandboxes, workspace);
        let plan = facts.plan();
        assert!(condition::is_true(&plan.status.conditions, condition::KILLED));
        order.extend(names(&plan));
        facts.status = plan.status;
    }
    let rescue = Action::Rescue { attempt: Attempt(1) };
    facts.observed = with_outcome(observed(vec![], tree()), rescue, Ok(Outcome::Rescued(Some("refs/rescue/x".into()))));
    let plan = facts.plan();
    order.extend(names(&plan));
    facts.status = plan.status;
    facts.observed = observed(vec![], None);
    order.extend(names(&facts.plan()));
    assert_eq!(order, ["StopSandbox", "RemoveSandbox", "Rescue", "RemoveWorkspace", "Archive", "RemoveFinalizer"]);
    assert_eq!(facts.status.workspace.unwrap().rescue_ref.as_deref(), Some("refs/rescue/x"));
}

#[test]
fn discarded_work_is_not_rescued() {
    let mut facts = Facts::new(status(Stage::Killed), observed(vec![], tree()));
    (facts.deleting, facts.discard) = (Some("delete"), true);
    assert_eq!(names(&facts.plan()), ["RemoveWorkspace"]);
}

#[test]
fn a_start_under_way_is_stopped_before_the_finalizer_goes() {
    let ensure = Action::EnsureSandbox { run: agent_run(1), base: sha(1), content: None };
    let mut facts = Facts::new(status(Stage::Begun), observed(vec![], None));
    facts.observed.in_flight = in_flight(&[ensure]);
    facts.deleting = Some("kill");
    assert_eq!(names(&facts.plan()), ["StopSandbox"]);
}

#[test]
fn what_work_brings_after_the_kill_is_forgotten() {
    let push = Action::Push { attempt: Attempt(1), head: sha(2), base: sha(1), expected_old: None };
    let late = with_outcome(observed(vec![], None), push.clone(), Ok(Outcome::Pushed(Pushed::Verified(sha(2)))));
    let plan = Facts::new(status(Stage::Killed), late).plan();
    assert!(plan.taken.contains(&push.id()));
    assert_eq!(ending(&plan.status), Some(Ending::Killed));
}

#[test]
fn a_push_that_a_kill_met_is_said_to_be_unknown_until_it_is_known() {
    let pushed = |facts: &Facts| condition::get(&facts.status.conditions, condition::PUSHED).cloned();
    let mut facts = Facts::new(status(Stage::Passed), observed(vec![], tree()));
    let plan = facts.plan();
    assert_eq!(names(&plan), ["Push"]);
    facts.status = plan.status;
    facts.deleting = Some("kill");
    facts.status = facts.plan().status;
    let unknown = pushed(&facts).unwrap();
    assert_eq!((unknown.status.as_str(), unknown.reason.as_str()), ("False", reason::PUSH_UNKNOWN));
    assert!(unknown.message.contains(sha(2).as_str()), "{}", unknown.message);
    // What comes back of the push takes its place.
    let push = Action::Push { attempt: Attempt(1), head: sha(2), base: sha(1), expected_old: None };
    for (outcome, reason, word) in
        [(Pushed::Rejected("no".into()), reason::KILLED, "not changed"), (Pushed::Verified(sha(2)), reason::KILLED, sha(2).as_str())]
    {
        let mut later =
            Facts::new(facts.status.clone(), with_outcome(observed(vec![], tree()), push.clone(), Ok(Outcome::Pushed(outcome))));
        later.deleting = Some("kill");
        later.status = later.plan().status;
        let known = pushed(&later).unwrap();
        assert!(known.reason == reason && known.message.contains(word), "{known:?}");
    }
    // Before its gates had passed, nothing can have been under way.
    let mut early = Facts::new(status(Stage::Head), observed(vec![], tree()));
    early.deleting = Some("kill");
    early.status = early.plan().status;
    assert!(pushed(&early).is_none_or(|c| c.reason != reason::PUSH_UNKNOWN));
}

#[test]
fn a_sandbox_that_lives_after_its_stored_end_is_stopped_before_the_tree_is_read() {
    let plan = Facts::new(status(Stage::Ran), observed(vec![running(agent_run(1), 1)], tree())).plan();
    assert_eq!(names(&plan), ["StopSandbox"]);
}

#[test]
fn no_gate_starts_beside_an_agent_or_a_gate_on_another_commit() {
    for other in [running(agent_run(1), 1), running(gate_run("tests", 9, 0), 1)] {
        let plan = Facts::new(status(Stage::Head), observed(vec![other], tree())).plan();
        assert_eq!(names(&plan), ["StopSandbox"]);
    }
}

#[test]
fn a_record_that_is_older_than_its_sandbox_starts_and_stops_nothing_until_it_is_deleted() {
    for stage in [Stage::Begun, Stage::SandboxKnown, Stage::Ran, Stage::Head] {
        let mut facts = Facts::new(status(stage), observed(vec![running(agent_run(2), 1)], tree()));
        let plan = facts.plan();
        assert_eq!(names(&plan), [""; 0], "{stage:?}");
        assert_eq!(plan.waiting[0].reason, reason::CANNOT_OBSERVE);
        facts.deleting = Some("kill");
        facts.status = facts.plan().status;
        assert_eq!(names(&facts.plan()), ["StopSandbox"], "a kill kills it all the same");
    }
}

#[test]
fn a_status_without_its_base_finds_it_again() {
    for stage in [Stage::Begun, Stage::SandboxKnown] {
        let mut facts = Facts::new(status(stage), observed(vec![], None));
        facts.status.workspace = None;
        assert_eq!(names(&facts.plan()), ["Resolve"], "{stage:?}");
    }
}

#[test]
fn a_killed_agent_without_our_finalizer_is_cleaned_up_all_the_same() {
    let mut facts = Facts::new(status(Stage::Killed), observed(vec![running(agent_run(1), 1)], tree()));
    facts.has_finalizer = false;
    assert_eq!(names(&facts.plan()), ["StopSandbox"]);
}

#[test]
fn a_failed_look_makes_and_ends_nothing() {
    for stage in STAGES {
        let mut facts = Facts::new(status(stage), observed(vec![], tree()));
        facts.observed.sandboxes = Look::Unknown("no answer".into());
        assert_eq!(names(&facts.plan()), Vec::<&str>::new(), "{stage:?}");
    }
}

#[test]
fn an_agent_that_ended_before_anybody_saw_it_run_says_where_it_ran() {
    let end = ended(agent_run(1), EndCause::Exited(0));
    let (driver, id) = (end.driver, end.id.clone());
    let plan = Facts::new(status(Stage::Begun), observed(vec![end], tree())).plan();
    let sandbox = plan.status.sandbox.expect("it is told");
    assert_eq!((sandbox.driver, sandbox.id), (driver, id));
}

#[test]
fn a_tree_that_was_given_up_holds_no_record_and_is_not_called_gone() {
    let mut facts = Facts::new(status(Stage::Begun), observed(vec![running(agent_run(1), 1)], None));
    facts.observed.workspace = Look::GivenUp("its tree may still be elsewhere".into());
    facts.deleting = Some("kill");
    assert_eq!(names(&facts.plan()), ["StopSandbox"], "what runs is not given up");
    facts.observed.sandboxes = Look::Seen(vec![]);
    let plan = facts.plan();
    assert_eq!(names(&plan), ["Archive", "RemoveFinalizer"]);
    let said = condition::get(&plan.status.conditions, condition::CLEANED_UP).unwrap().message.clone();
    assert_eq!(said, "its sandboxes were seen gone; its tree may still be elsewhere");
}

#[test]
fn a_death_that_nobody_has_seen_is_told_beside_the_end() {
    let stop = Action::StopSandbox { run: agent_run(1) };
    let seen = observed(vec![running(agent_run(1), 1)], tree());
    let mut facts = Facts::new(status(Stage::Begun), with_outcome(seen, stop, infrastructure()));
    facts.deleting = Some("kill");
    let plan = facts.plan();
    assert_eq!(ending(&plan.status), Some(Ending::Killed));
    let gone = condition::get(&plan.status.conditions, condition::CLEANED_UP).expect("it is told");
    assert_eq!(gone.status, "False");
    assert!(!gone.message.is_empty() && gone.reason != reason::CLEANING_UP, "{gone:?}");
}

#[test]
fn an_agent_whose_controller_does_not_come_back_begins_again_from_a_new_look() {
    let why = "its tree may still be elsewhere";
    let gone = ended(agent_run(1), EndCause::Lost("its container ended".into()));
    let mut facts = Facts::new(status(Stage::Passed), observed(vec![gone], None));
    facts.status.installation = Some("another".into());
    condition::set(&mut facts.status.conditions, condition::GATES_PASSED, true, reason::MET, "text", now());
    facts.observed.workspace = Look::GivenUp(why.into());
    let plan = facts.plan();
    assert_eq!(names(&plan), ["RemoveSandbox"], "behind the record that tells of it");
    assert_eq!((plan.status.installation.as_deref(), plan.status.attempt, plan.status.counts.infrastructure), (None, 1, 1));
    // From here on it is this place's, where nothing of it is.
    let mut here = Facts::new(plan.status, observed(vec![], None));
    here.now = now() + k8s_openapi::jiff::SignedDuration::from_secs(30);
    assert_eq!(names(&here.plan()), ["Resolve"]);
    let look = |target: Option<u8>| {
        let outcome = Outcome::Resolved(Resolved { target: target.map(sha), base: sha(7), ..resolved() });
        with_outcome(observed(vec![], None), Action::Resolve, Ok(outcome))
    };
    here.observed = look(None);
    let plan = here.plan();
    assert_eq!(names(&plan), ["EnsureSandbox"]);
    assert_eq!((plan.status.attempt, plan.status.workspace.and_then(|w| w.base_sha)), (2, Some(sha(7).to_string())));
    // What passed may have been pushed by the one that is gone: then it is delivered, and nothing is done twice.
    here.observed = look(Some(2));
    let plan = here.plan();
    assert_eq!((ending(&plan.status), plan.status.attempt), (Some(Ending::Completed), 1));
    assert_eq!(plan.status.push.and_then(|push| push.sha), Some(sha(2).to_string()));
    here.status.gates.push(verdict("tests", Verdict::Pass, 9, 0));
    here.observed = look(Some(9));
    assert_eq!(names(&here.plan()), ["EnsureSandbox"], "an earlier push of its own is in nobody's way");
    here.observed = look(Some(8));
    assert_eq!(condition::get(&here.plan().status.conditions, condition::ADMITTED).unwrap().reason, reason::BRANCH_TAKEN);
}
