//! Gate results for one commit -> passed, failed or pending.
//!
//! A verdict counts only for exactly this commit, this base and this definition. Only `pass` passes, and an empty set never does.

use crate::api::agent::{AgentStatus, GateDefinition, GateStatus, Verdict};
use crate::api::names::CommitId;
use crate::plan::observed::{EndCause, RunEnd};

/// How many verdicts a record keeps: those of the last commits.
pub const VERDICTS_MAX: usize = 24;
/// Longest evidence of one verdict, in bytes: the end of the output.
pub const EVIDENCE_BYTES_MAX: usize = 4096;

/// Where the gates of one commit are.
#[derive(Debug, Clone, PartialEq)]
pub enum GatesState {
    /// All required gates passed.
    Passed,
    /// At least one refused, and no other can still run.
    Failed(Vec<GateStatus>),
    /// One could not judge, too often.
    Broken(GateStatus),
    /// These may run now (each with how often its infrastructure failed before); others may be waiting for them.
    Pending(Vec<(GateDefinition, u32)>),
}

/// Sums up the verdicts on `head`, which stands on `base`.
#[must_use]
pub fn state(status: &AgentStatus, head: &CommitId, base: &CommitId, tries_max: u32) -> GatesState {
    let gates = status.gate_set.as_ref().map(|set| set.gates.as_slice()).unwrap_or_default();
    let verdict = |gate: &GateDefinition| verdict_of(status, gate, head, base);
    let failed: Vec<GateStatus> = gates.iter().filter_map(verdict).filter(|v| v.verdict == Verdict::Fail).cloned().collect();
    if let Some(broken) = gates.iter().filter_map(verdict).find(|v| v.verdict == Verdict::Error && v.tries >= tries_max) {
        return if failed.is_empty() { GatesState::Broken(broken.clone()) } else { GatesState::Failed(failed) };
    }
    let passed = |name: &str| gates.iter().find(|g| g.name == name).and_then(verdict).is_some_and(|v| v.verdict == Verdict::Pass);
    let runnable: Vec<(GateDefinition, u32)> = gates
        .iter()
        .filter(|gate| gate.needs.iter().all(|need| passed(need)))
        .filter_map(|gate| match verdict(gate) {
            None => Some((gate.clone(), 0)),
            Some(v) => match v.verdict {
                Verdict::Error | Verdict::Skipped => Some((gate.clone(), v.tries)),
                Verdict::Pass | Verdict::Fail => None,
            },
        })
        .collect();
    match (failed.is_empty(), runnable.is_empty()) {
        (_, false) => GatesState::Pending(runnable),
        (false, true) => GatesState::Failed(failed),
        (true, true) if !gates.is_empty() && gates.iter().all(|g| passed(&g.name)) => GatesState::Passed,
        // Nothing failed, nothing can run and not all passed: only a set that is empty or needs what it lacks gets here.
        (true, true) => GatesState::Pending(Vec::new()),
    }
}

/// The verdict of one gate on exactly this commit, base and definition.
#[must_use]
pub fn verdict_of<'a>(status: &'a AgentStatus, gate: &GateDefinition, head: &CommitId, base: &CommitId) -> Option<&'a GateStatus> {
    status
        .gates
        .iter()
        .find(|v| v.name == gate.name && v.sha == head.as_str() && v.base_sha == base.as_str() && v.definition == gate.digest)
}

/// What the end of a gate's run says. A missing command is the infrastructure's failure; a gate that never ends is the change's: an
/// endless test is the agent's to mend, and it must hear of it.
#[must_use]
pub fn judge(end: &RunEnd) -> (Verdict, String) {
    let (verdict, headline) = match &end.cause {
        EndCause::Exited(0) => (Verdict::Pass, String::new()),
        EndCause::Exited(code @ (126 | 127)) => (Verdict::Error, format!("the command could not be run (exit code {code})")),
        EndCause::Exited(code) => (Verdict::Fail, format!("exit code {code}")),
        EndCause::Signaled(signal) => (Verdict::Fail, format!("ended by signal {signal}")),
        EndCause::TimedOut => (Verdict::Fail, format!("timed out after {} s", end.duration_millis / 1000)),
        EndCause::LeaseExpired => (Verdict::Error, "the sandbox lost its lease".to_owned()),
        // Ours, for a suspend: nobody's failure, so that no number of suspends breaks a gate.
        EndCause::Stopped => (Verdict::Skipped, "stopped before it could judge".to_owned()),
        EndCause::NotStarted(why) => (Verdict::Error, format!("did not start: {why}")),
        EndCause::CannotExecute(why) => (Verdict::Error, format!("the command could not be run: {why}")),
        EndCause::Lost(why) => (Verdict::Error, format!("the sandbox was lost: {why}")),
    };
    let text = if headline.is_empty() { end.output_tail.clone() } else { format!("{headline}\n{}", end.output_tail) };
    (verdict, keep_end(&text, EVIDENCE_BYTES_MAX))
}

/// Records a verdict in place of an older one on the same commit, base and definition; forgets the oldest beyond the cap.
pub fn record(status: &mut AgentStatus, verdict: GateStatus) {
    let same = |v: &GateStatus| {
        v.name == verdict.name && v.sha == verdict.sha && v.base_sha == verdict.base_sha && v.definition == verdict.definition
    };
    status.gates.retain(|v| !same(v));
    status.gates.push(verdict);
    let excess = status.gates.len().saturating_sub(VERDICTS_MAX);
    status.gates.drain(..excess);
}

/// The last `bytes_max` bytes of a text, cut at a character.
#[must_use]
pub fn keep_end(text: &str, bytes_max: usize) -> String {
    let mut from = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}
