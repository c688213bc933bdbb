//! Bugs that are planted one at a time, to see that the oracle has eyes. None lives in the product: each sits in a fake at the seam
//! where the real component would have it, or writes the status that a plan with that bug would have written.

use super::faults::Case;
use super::oracle::status_of;
use super::run::{run_case, simulate};
use super::truth::Truth;
use mosaic::api::agent::{AgentStatus, GateStatus, Verdict};
use mosaic::api::condition;
use mosaic::store::{Kind, Record};

/// One bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The store says "stored" and has not.
    WriteOnlyPretends,
    /// An acknowledged write is lost in a crash: effects ran before their fact was durable.
    AcknowledgedWriteLost,
    /// The last writer wins.
    CompareAndSetIgnored,
    /// A restore brings back a status from before the kill.
    KilledResurrected,
    /// A verdict is written for a gate that never ran.
    VerdictInvented,
    /// A verdict on one commit is carried over to the next one.
    VerdictCarriedOver,
    /// Nobody remembers when the last failure was.
    BackoffForgotten,
    /// A failure of the infrastructure is counted as the agent's.
    InfrastructureBlamedOnAgent,
    /// An attempt is begun twice.
    AttemptSkipped,
    /// A kill is never stored, only acted on.
    KillNotLatched,
    /// The finalizer is never put on the record, and nobody hears of it.
    FinalizerLost,
    /// A look that failed counts as "nothing there".
    UnknownIsAbsent,
    /// The sandboxes of gates are not looked at.
    GateSandboxesUnseen,
    /// Effects under way are not reported.
    LateCompletionCountsAsDone,
    /// The in-flight table is read after the looks.
    InFlightReadLast,
    /// Effects of a deposed leader are let through.
    FencingForgotten,
    /// Sandboxes start whatever their tombstone, attempt or controller.
    StartGateOpen,
    /// A second start of the same run starts it again.
    EnsureNotIdempotent,
    /// Stop reports success and kills nothing.
    StopOnlyPretends,
    /// A sandbox is reported as ended while processes of it still write.
    EndBeforeAllIsDead,
    /// The base is not read again before the push.
    BaseNotReadAgain,
    /// The push overwrites whatever is there.
    ExpectedOldIgnored,
    /// The push reports success without a push.
    PushOnlyPretends,
    /// Nothing is rescued.
    RescueForgotten,
    /// Halts are not seen by the fleet.
    HaltsReadAsEmpty,
    /// The fleet has no caps.
    CapsIgnored,
    /// The records are listed before the inventory is taken: what is made in between counts as an orphan.
    OrphansListedTooEarly,
    /// Timers of the queue are forgotten.
    RequeueIgnored,
    /// The end of an effect wakes nobody.
    EndsWakeNobody,
    /// The passes do not look at the latch.
    LatchForgotten,
    /// Who starts does not read the latch's file.
    LatchLostAtRestart,
    /// A note goes with the record, and an older store brings that back.
    NoteGoesWithRecord,
    /// A receipt says dead because it was signalled.
    ReceiptWithoutLooking,
    /// A create that was not answered counts as one that made nothing: for a receipt.
    UnansweredIsNothing,
    /// As that, for the look of a pass.
    NoSuchContainerBelieved,
    /// An engine that does not answer has no container.
    ReleasedOnUnknown,
    /// A kill goes to whoever has the number now.
    PidReused,
    /// The sandboxes of gates are not killed.
    GatesSpared,
    /// What was killed is kept once its tree is gone.
    RescuedAfterRemoval,
    /// The start gate does not look at the latch.
    GateGrantsLatched,
    /// A halt is handed over before its agents are deleted.
    HandedOverTooEarly,
    /// A push that was queued at the kill is begun after it.
    QueuedPushBegun,
    /// A container that was made and not started counts as dead for a receipt, and stays.
    CreatedIsDead,
    /// What is taken for gone by the engine's word has no tombstone.
    ConcludedUnburied,
}

/// All of them.
pub const ALL: &[Plant] = &[
    Plant::WriteOnlyPretends,
    Plant::AcknowledgedWriteLost,
    Plant::CompareAndSetIgnored,
    Plant::KilledResurrected,
    Plant::VerdictInvented,
    Plant::VerdictCarriedOver,
    Plant::BackoffForgotten,
    Plant::InfrastructureBlamedOnAgent,
    Plant::AttemptSkipped,
    Plant::KillNotLatched,
    Plant::FinalizerLost,
    Plant::UnknownIsAbsent,
    Plant::GateSandboxesUnseen,
    Plant::LateCompletionCountsAsDone,
    Plant::InFlightReadLast,
    Plant::FencingForgotten,
    Plant::StartGateOpen,
    Plant::EnsureNotIdempotent,
    Plant::StopOnlyPretends,
    Plant::EndBeforeAllIsDead,
    Plant::BaseNotReadAgain,
    Plant::ExpectedOldIgnored,
    Plant::PushOnlyPretends,
    Plant::RescueForgotten,
    Plant::HaltsReadAsEmpty,
    Plant::CapsIgnored,
    Plant::OrphansListedTooEarly,
    Plant::RequeueIgnored,
    Plant::EndsWakeNobody,
    Plant::LatchForgotten,
    Plant::LatchLostAtRestart,
    Plant::NoteGoesWithRecord,
    Plant::ReceiptWithoutLooking,
    Plant::UnansweredIsNothing,
    Plant::NoSuchContainerBelieved,
    Plant::ReleasedOnUnknown,
    Plant::PidReused,
    Plant::GatesSpared,
    Plant::RescuedAfterRemoval,
    Plant::GateGrantsLatched,
    Plant::HandedOverTooEarly,
    Plant::QueuedPushBegun,
    Plant::CreatedIsDead,
    Plant::ConcludedUnburied,
];

/// The status as a store or plan with the planted bug would write it. `Err`: acknowledged, and not stored.
pub fn perturb_status(truth: &mut Truth, mut record: Record) -> Result<Record, Box<Record>> {
    let Some(plant) = truth.plant.filter(|_| record.kind == Kind::Agent) else { return Ok(record) };
    let mut status = status_of(&record);
    let stored = truth.records.map.get(&record.key()).map(status_of).unwrap_or_default();
    match plant {
        Plant::WriteOnlyPretends if truth.rng.hits(200) => return Err(Box::new(record)),
        Plant::KilledResurrected if condition::is_true(&stored.conditions, condition::KILLED) => {
            status.conditions.retain(|c| c.type_ != condition::KILLED);
        }
        Plant::VerdictInvented => invent_verdicts(&mut status),
        Plant::VerdictCarriedOver => carry_verdicts(&mut status),
        Plant::BackoffForgotten => status.last_failure_at = None,
        Plant::InfrastructureBlamedOnAgent => {
            let more = status.counts.infrastructure.saturating_sub(stored.counts.infrastructure);
            status.counts.infrastructure -= more;
            status.counts.agent_failures += more;
        }
        Plant::AttemptSkipped if status.attempt > stored.attempt => status.attempt += 1,
        Plant::KillNotLatched if status.completed_at.is_some() && stored.completed_at.is_none() => {
            status.conditions.retain(|c| c.type_ != condition::KILLED);
            status.completed_at = None;
        }
        _ => return Ok(record),
    }
    record.status = serde_json::to_value(&status).expect("a status is plain data");
    Ok(record)
}

fn invent_verdicts(status: &mut AgentStatus) {
    let Some((head, base)) = head_of(status) else { return };
    let gates = status.gate_set.clone().unwrap_or_default().gates;
    status.gates = gates
        .into_iter()
        .map(|gate| GateStatus {
            name: gate.name,
            verdict: Verdict::Pass,
            sha: head.clone(),
            base_sha: base.clone(),
            definition: gate.digest,
            duration_millis: None,
            evidence: None,
            tries: 0,
        })
        .collect();
}

fn carry_verdicts(status: &mut AgentStatus) {
    let Some((head, base)) = head_of(status) else { return };
    for verdict in status.gates.iter_mut().filter(|v| v.verdict == Verdict::Pass) {
        verdict.sha.clone_from(&head);
        verdict.base_sha.clone_from(&base);
    }
}

fn head_of(status: &AgentStatus) -> Option<(String, String)> {
    let workspace = status.workspace.as_ref()?;
    Some((workspace.head_sha.clone()?, workspace.head_base_sha.clone()?))
}

/// Most seeds that may pass before a planted bug is seen.
const SEEDS_MAX: u64 = 4000;

fn seeds_until_caught(plant: Plant) -> Option<(u64, String)> {
    (0..SEEDS_MAX).find_map(|seed| {
        let mut violations = run_case(&Case { seed, plant: Some(plant) }).violations;
        if matches!(plant, Plant::InFlightReadLast | Plant::LateCompletionCountsAsDone) {
            // It needs a kill within moments of a start, which whole fleets meet too seldom.
            violations.extend(super::sweep::kill_at_the_start(seed, Some(plant)));
        }
        if plant == Plant::QueuedPushBegun {
            violations.extend(super::sweep::kill_at_the_push(seed, Some(plant)));
        }
        // A start that is queued at this very moment is met seldom as well.
        if plant == Plant::CreatedIsDead {
            violations.extend(super::sweep::kill_at_a_queued_start(seed, Some(plant)));
        }
        if plant == Plant::ConcludedUnburied {
            violations.extend(super::sweep::start_after_a_lie(seed, Some(plant)));
        }
        violations.first().map(|text| (seed + 1, text.clone()))
    })
}

#[test]
fn every_planted_bug_is_caught() {
    let only = std::env::var("MOSAIC_SIM_PLANT").ok();
    let planted: Vec<Plant> = ALL.iter().copied().filter(|plant| only.as_ref().is_none_or(|name| *name == format!("{plant:?}"))).collect();
    let results = simulate(planted.len() as u64, |index| {
        let plant = planted[index as usize];
        (plant, seeds_until_caught(plant))
    });
    let mut missed = Vec::new();
    for (plant, caught) in results {
        match caught {
            Some((seeds, text)) => println!("{plant:?}: caught after {seeds} seeds: {text}"),
            None => missed.push(plant),
        }
    }
    assert_eq!(missed, Vec::new(), "not caught within {SEEDS_MAX} seeds");
}
