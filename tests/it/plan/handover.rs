//! When who stands by wishes to lead, and when who leads hands over.

use super::build::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use mosaic::api::condition::reason;
use mosaic::controller::handover::{BUSY_MAX, TERM_MIN, WISH_INTERVAL, Waiting, needs_a_leader, wishes, yields};
use mosaic::plan::action::Action;
use mosaic::plan::fleet::Permit;
use mosaic::plan::observed::{EndCause, FailureClass, Look, SandboxSeen, SandboxState};
use serde_json::json;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn needs(facts: &Facts) -> bool {
    needs_a_leader(&facts.status, &facts.observed, &facts.plan())
}

#[test]
fn what_has_ended_or_was_never_begun_anew_needs_a_leader() {
    for cause in [EndCause::Exited(0), EndCause::Exited(3), EndCause::LeaseExpired, EndCause::Lost("gone".into())] {
        let facts = Facts::new(status(Stage::SandboxKnown), observed(vec![ended(agent_run(1), cause.clone())], tree()));
        assert!(needs(&facts), "{cause:?}");
    }
    for stage in [Stage::Begun, Stage::SandboxKnown, Stage::Ran, Stage::Candidate, Stage::Head, Stage::Passed, Stage::BetweenAttempts] {
        assert!(needs(&Facts::new(status(stage), observed(Vec::new(), tree()))), "{stage:?}");
    }
}

#[test]
fn what_runs_needs_none_until_it_has_to_be_ended() {
    let mut facts = Facts::new(status(Stage::SandboxKnown), observed(vec![running(agent_run(1), 1)], tree()));
    assert!(!needs(&facts));
    // Who leads has written what it cannot see, and something is left to be swept up: both can wait.
    facts.status.reason = Some(reason::CANNOT_OBSERVE.into());
    facts.status.attempt = 2;
    facts.observed = observed(vec![ended(agent_run(1), EndCause::Exited(1)), running(agent_run(2), 1)], tree());
    assert!(!needs(&facts), "{:?}", facts.plan().actions);
    facts.observed = observed(vec![running(agent_run(2), 100_000)], tree());
    assert!(needs(&facts), "it is silent for too long");
    facts.observed = observed(vec![running(agent_run(2), 1)], tree());
    facts.status.started_at = Some(MicroTime(ago(100_000)));
    assert!(needs(&facts), "its time is over");
    facts.status.started_at = Some(MicroTime(ago(60)));
    facts.agent = agent(json!({"suspend": true}));
    assert!(needs(&facts), "it has to be suspended");
}

#[test]
fn a_start_needs_a_leader_to_let_it_begin() {
    let ensure = Action::EnsureSandbox { run: agent_run(1), base: sha(1), content: None };
    let mut facts = Facts::new(status(Stage::Begun), observed(vec![seen(agent_run(1), SandboxState::Preparing)], tree()));
    assert!(needs(&facts), "nobody is making it");
    facts.observed.in_flight = in_flight(&[ensure]);
    assert!(needs(&facts), "it is being made, and waits");
    let coming = SandboxSeen { doing: Some("its image is pulled".into()), ..seen(agent_run(1), SandboxState::Preparing) };
    facts.observed.sandboxes = Look::Seen(vec![coming]);
    assert!(!needs(&facts), "it waits for something that no leader can do");
}

#[test]
fn what_a_leader_could_not_go_on_with_either_needs_none() {
    let mut waits = status(Stage::BetweenAttempts);
    (waits.last_failure_at, waits.counts.infrastructure) = (Some(MicroTime(ago(1))), 5);
    // As whoever leads has left it.
    waits.reason = Some(reason::CANNOT_OBSERVE.into());
    waits.message = Some("could not look".into());
    waits.sandbox = None;
    assert!(!needs(&Facts::new(waits, observed(Vec::new(), tree()))), "its backoff is not over");

    let mut halted = Facts::new(status(Stage::Ran), observed(Vec::new(), tree()));
    halted.permit = Permit::Halted { by: None, message: "the halts cannot be read".into() };
    assert!(!needs(&halted));

    let mut unseen = Facts::new(status(Stage::SandboxKnown), observed(Vec::new(), tree()));
    unseen.observed.sandboxes = Look::Unknown("the engine does not answer".into());
    assert!(!needs(&unseen));

    let failed = failure(FailureClass::Infrastructure, now());
    let snapshot = Action::TakeSnapshot { attempt: mosaic::api::names::Attempt(1), base: sha(1) };
    let mut busy = Facts::new(status(Stage::Ran), observed(Vec::new(), tree()));
    busy.observed.in_flight = in_flight(std::slice::from_ref(&snapshot));
    assert!(!needs(&busy), "it is under way");
    busy.observed.in_flight.clear();
    assert!(needs(&Facts { observed: with_outcome(busy.observed, snapshot, Err(failed)), ..busy }), "and has failed: that is stored");
}

#[test]
fn a_wish_is_repeated_as_long_as_something_waits() {
    assert!(wishes(1, None));
    assert!(!wishes(0, None) && !wishes(0, Some(BUSY_MAX)));
    assert!(!wishes(3, Some(WISH_INTERVAL - Duration::from_millis(1))) && wishes(3, Some(WISH_INTERVAL)));
    assert!(WISH_INTERVAL * 2 < mosaic::store::lease::WISH_TIME, "one that comes late keeps it standing");
}

#[test]
fn who_leads_yields_after_its_term_and_not_amid_effects_for_ever() {
    assert!(!yields(TERM_MIN - SECOND, BUSY_MAX, false), "it has just begun");
    assert!(yields(TERM_MIN, SECOND, false));
    assert!(!yields(TERM_MIN * 10, BUSY_MAX - SECOND, true), "a push is under way");
    assert!(yields(TERM_MIN * 10, BUSY_MAX, true), "it does not come to an end");
    // From when it could hand over: a wish that stood from the beginning of the term does not use that up.
    assert!(!yields(TERM_MIN + BUSY_MAX - SECOND, TERM_MIN * 10, true));
    assert!(yields(TERM_MIN + BUSY_MAX, TERM_MIN * 10, true));
}

#[test]
fn what_waits_is_counted_once() {
    let waiting = Waiting::default();
    waiting.note(&uid(), true);
    waiting.note(&uid(), true);
    assert_eq!(waiting.count(|_| true), 1);
    waiting.note(&uid(), false);
    assert_eq!(waiting.count(|_| true), 0);
}
