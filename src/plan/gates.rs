//! Gate results for one commit -> passed, failed or pending.
//!
//! A verdict counts only for exactly this commit, this base and this definition. Only `pass` passes, and an empty set never does.

use crate::api::agent::{AgentStatus, GateDefinition, GateStatus, Verdict};
use crate::api::names::CommitId;
use crate::gates::tamper::TAMPER;
use crate::plan::observed::{EndCause, RunEnd};

/// How many verdicts a record keeps: two commits' worth of the largest set of gates.
pub const VERDICTS_MAX: usize = 64;
/// Most evidence that is kept of a gate that refused or could not judge, in bytes: the record holds it, and the agent reads it.
pub const EVIDENCE_BYTES_MAX: usize = 4 * 1024;
/// Most evidence that is kept of a gate that passed, in bytes: its closing lines, for people.
pub const EVIDENCE_OF_PASS_BYTES_MAX: usize = 512;

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
    // Who changed the judges is not heard by them.
    let of_this = |v: &&GateStatus| v.name == TAMPER && v.sha == head.as_str() && v.base_sha == base.as_str();
    if let Some(tampered) = status.gates.iter().find(of_this).filter(|v| v.verdict == Verdict::Fail) {
        return GatesState::Failed(vec![tampered.clone()]);
    }
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

/// Returns the verdict of a finished gate run, with what to show for it: one line on the cause, then the end of the output.
///
/// - Exit code 0 passes. 126 and 127 are the shell's words for "the command is not there": the gate's own tool is missing, which is the
///   infrastructure's fault and burns no retry of the agent. Any other code, and a signal, is a refusal.
/// - Its own deadline over is a refusal: the usual cause is a test that never ends, and only the agent can mend that. Were it an error,
///   the same endless test would run again and again at the infrastructure's expense, and the agent would never hear of it.
/// - What never started and what got lost has judged nothing: an error, and the gate runs again. What we stopped was skipped: nobody's
///   failure, and it runs again as well.
/// # Guarantees
/// Nothing but an exit code 0 that was seen gives `Pass`. Evidence has at most `EVIDENCE_BYTES_MAX` bytes.
#[must_use]
pub fn judge(end: &RunEnd) -> (Verdict, Option<String>) {
    let seconds = end.duration_millis / 1000;
    let (verdict, cause) = match &end.cause {
        EndCause::Exited(0) => (Verdict::Pass, String::new()),
        EndCause::Exited(code @ (126 | 127)) => {
            (Verdict::Error, format!("exit code {code}: the gate's command, or a program that it calls, is missing or not executable"))
        }
        EndCause::Exited(code) => (Verdict::Fail, format!("exit code {code}")),
        EndCause::Signaled(signal) => (Verdict::Fail, format!("ended by signal {signal}")),
        EndCause::TimedOut => (Verdict::Fail, format!("timed out after {seconds} s")),
        // Only the agent can mend a test that needs more than there is.
        EndCause::LimitExceeded { limit, message } => (Verdict::Fail, format!("the {} limit was exceeded: {message}", limit.as_str())),
        EndCause::CannotExecute(why) => (Verdict::Error, format!("the gate's command cannot be executed: {why}")),
        EndCause::LeaseExpired => {
            (Verdict::Error, "the sandbox ended itself: the controller was away for longer than the lease".to_owned())
        }
        // Ours, for a suspend: nobody's failure, so that no number of suspends breaks a gate.
        EndCause::Stopped => (Verdict::Skipped, "the gate was stopped before it had judged".to_owned()),
        EndCause::NotStarted(why) => (Verdict::Error, format!("the gate did not start: {why}")),
        EndCause::Lost(why) => (Verdict::Error, format!("the sandbox was lost: {why}")),
    };
    let bytes_max = if verdict == Verdict::Pass { EVIDENCE_OF_PASS_BYTES_MAX } else { EVIDENCE_BYTES_MAX };
    (verdict, evidence(&cause, end.output_tail.trim_end(), bytes_max))
}

/// The cause, then as much of the output's end as there is room for.
fn evidence(cause: &str, output: &str, bytes_max: usize) -> Option<String> {
    let head = keep_start(cause, bytes_max);
    let room = bytes_max.saturating_sub(head.len() + 1);
    let tail = keep_end(output, room);
    match (head.is_empty(), tail.is_empty()) {
        (true, true) => None,
        (true, false) => Some(tail.to_owned()),
        (false, true) => Some(head.to_owned()),
        (false, false) => Some(format!("{head}\n{tail}")),
    }
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

/// The first bytes of a text, cut between characters.
#[must_use]
pub fn keep_start(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// The last bytes of a text, cut between characters.
#[must_use]
pub fn keep_end(text: &str, bytes_max: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes_max))..]
}
