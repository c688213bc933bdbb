//! Lives of one agent, step by step with random answers of the world: what was stored is planned upon again and again.

use super::build::*;
use k8s_openapi::jiff::SignedDuration;
use mosaic::api::condition;
use mosaic::api::names::Role;
use mosaic::plan::action::Action;
use mosaic::plan::observed::{EndCause, Failure, FailureClass, Integrated, Look, Observed, Outcome, Pushed, SandboxState, Snapshot};
use mosaic::plan::retry::{GATE_TRIES_MAX, INFRASTRUCTURE_FAILURES_MAX};
use mosaic::plan::status::ending;
use proptest::prelude::*;
use serde_json::json;

/// How the world answers one pass.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// Chooses among the outcomes of each effect.
    luck: u8,
    /// Seconds that go by.
    seconds: u16,
    /// The look fails.
    blind: bool,
}

fn answers(length: usize) -> impl Strategy<Value = Vec<Answer>> {
    let answer = (any::<u8>(), 0..40_u16, prop::bool::weighted(0.05)).prop_map(|(luck, seconds, blind)| Answer { luck, seconds, blind });
    prop::collection::vec(answer, length)
}

/// Carries out what a plan starts: at once, with an outcome by luck.
fn carry_out(observed: &mut Observed, action: &Action, luck: u8, facts: &Facts) {
    let infrastructure = Failure { at: facts.now, ..failure(FailureClass::Infrastructure, facts.now) };
    let outcome = if luck.is_multiple_of(9) { Err(infrastructure) } else { succeed(observed, action, luck, facts) };
    if action.is_blocking() {
        observed.outcomes.insert(action.id(), outcome);
    }
}

fn succeed(observed: &mut Observed, action: &Action, luck: u8, facts: &Facts) -> Result<Outcome, Failure> {
    let Look::Seen(sandboxes) = &mut observed.sandboxes else { return Ok(Outcome::Done) };
    match action {
        Action::Resolve => {
            return Ok(Outcome::Resolved(resolved()));
        }
        Action::EnsureSandbox { run, .. } => {
            sandboxes.retain(|s| s.run != *run);
            let code = i32::from(luck.is_multiple_of(3));
            sandboxes.push(match (luck % 4, &run.role) {
                (0, _) => seen(run.clone(), SandboxState::Running { since: facts.now, last_sign_at: facts.now, progress: None }),
                (1, Role::Gate { .. }) => ended(run.clone(), EndCause::Lost("gone".into())),
                _ => ended(run.clone(), EndCause::Exited(code)),
            });
            observed.workspace = Look::Seen(tree());
        }
        Action::StopSandbox { run } => {
            sandboxes.iter_mut().filter(|s| s.run == *run).for_each(|s| *s = ended(run.clone(), EndCause::Stopped));
        }
        Action::RemoveSandbox { run } => sandboxes.retain(|s| s.run != *run),
        Action::TakeSnapshot { .. } => {
            let head = sha(2 + luck % 3);
            let integrated = Integrated::Head { head: head.clone(), base: sha(1 + luck % 2) };
            return Ok(match luck % 5 {
                0 => Outcome::Snapshot(Snapshot::Unchanged, None),
                1 => Outcome::Snapshot(Snapshot::Candidate(head), None),
                _ => Outcome::Snapshot(Snapshot::Candidate(head), Some(integrated)),
            });
        }
        Action::Integrate { candidate, .. } => {
            return Ok(Outcome::Integrated(Integrated::Head { head: candidate.clone(), base: sha(1 + luck % 2) }));
        }
        Action::Push { head, .. } => {
            return Ok(Outcome::Pushed(match luck % 4 {
                0 => Pushed::BaseMoved(sha(7)),
                1 => Pushed::Rejected("no".into()),
                _ => Pushed::Verified(head.clone()),
            }));
        }
        Action::Rescue { .. } => return Ok(Outcome::Rescued(None)),
        Action::RemoveWorkspace => observed.workspace = Look::Seen(None),
        Action::AddFinalizer | Action::Archive | Action::RemoveFinalizer | Action::DeleteRecord => {}
    }
    Ok(Outcome::Done)
}

/// One pass: plan, store, forget what was taken, start.
fn pass(facts: &mut Facts, answer: Answer) -> Vec<Action> {
    let looked = facts.observed.sandboxes.clone();
    if answer.blind {
        facts.observed.sandboxes = Look::Unknown("no answer".into());
    }
    let plan = facts.plan();
    assert_eq!(plan, facts.plan(), "the same facts give the same plan");
    facts.observed.sandboxes = looked;
    facts.status = plan.status.clone();
    for id in &plan.taken {
        facts.observed.outcomes.remove(id);
    }
    for action in &plan.actions {
        facts.has_finalizer |= *action == Action::AddFinalizer;
        facts.observed.outcomes.remove(&action.id());
        let mut seen = facts.observed.clone();
        carry_out(&mut seen, action, answer.luck, facts);
        facts.observed = seen;
    }
    // Silence ends a running sandbox sooner or later.
    if let (Look::Seen(sandboxes), true) = (&mut facts.observed.sandboxes, answer.luck.is_multiple_of(2)) {
        for s in sandboxes.iter_mut().filter(|s| matches!(s.state, SandboxState::Running { .. })) {
            *s = ended(s.run.clone(), EndCause::Exited(0));
        }
    }
    facts.now += SignedDuration::from_secs(i64::from(answer.seconds));
    plan.actions
}

fn settled(facts: &Facts) -> bool {
    ending(&facts.status).is_some() && condition::is_true(&facts.status.conditions, condition::CLEANED_UP)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_life_ends_within_its_budgets_and_then_rests(retries in 0..4_u32, answers in answers(400)) {
        let mut facts = Facts::new(mosaic::api::agent::AgentStatus::default(), observed(Vec::new(), None));
        facts.agent = agent(json!({"maxRetries": retries, "timeout": "100h"}));
        facts.has_finalizer = false;
        for answer in answers {
            pass(&mut facts, answer);
            let counts = facts.status.counts;
            prop_assert!(counts.agent_failures + counts.rejections <= retries + 1);
            prop_assert!(counts.infrastructure < INFRASTRUCTURE_FAILURES_MAX + 2 * GATE_TRIES_MAX * (retries + 2));
        }
        prop_assert!(settled(&facts), "{:#?}", facts.status);
        facts.observed.outcomes.clear();
        prop_assert_eq!(pass(&mut facts, Answer { luck: 2, seconds: 0, blind: false }), Vec::<Action>::new());
    }

    #[test]
    fn a_kill_at_any_moment_ends_everything_and_starts_nothing(before in answers(60), at in 0..60_usize, after in answers(60)) {
        let mut facts = Facts::new(mosaic::api::agent::AgentStatus::default(), observed(Vec::new(), None));
        facts.has_finalizer = false;
        for answer in before.into_iter().take(at) {
            pass(&mut facts, answer);
        }
        facts.deleting = Some("kill");
        let mut done = Vec::new();
        for answer in after {
            done.extend(pass(&mut facts, answer));
            if done.last() == Some(&Action::RemoveFinalizer) {
                break;
            }
        }
        let starts = |a: &Action| matches!(a, Action::Resolve | Action::EnsureSandbox { .. } | Action::Push { .. } | Action::Integrate { .. } | Action::TakeSnapshot { .. });
        prop_assert!(!done.iter().any(starts), "{:?}", done);
        let nothing = facts.observed.sandboxes == Look::Seen(Vec::new()) && facts.observed.workspace == Look::Seen(None);
        prop_assert!(nothing && (!facts.has_finalizer || done.last() == Some(&Action::RemoveFinalizer)), "{:?}", done);
    }
}
