//! How a gate's run ended -> its verdict. Only exit code 0 passes.

use crate::api::agent::Verdict;
use crate::plan::observed::{EndCause, RunEnd};

/// Most evidence that is kept of a gate that refused or could not judge, in bytes: the record holds it, and the agent reads it.
pub const EVIDENCE_BYTES_MAX: usize = 4 * 1024;
/// Most evidence that is kept of a gate that passed, in bytes: its closing lines, for people.
pub const EVIDENCE_OF_PASS_BYTES_MAX: usize = 512;

/// Returns the verdict of a finished gate run, with what to show for it: one line on the cause, then the end of the output.
///
/// - Exit code 0 passes. 126 and 127 are the shell's words for "the command is not there": the gate's own tool is missing, which is the
///   infrastructure's fault and burns no retry of the agent. Any other code, and a signal, is a refusal.
/// - Its own deadline over is a refusal: the usual cause is a test that never ends, and only the agent can mend that. Were it an error,
///   the same endless test would run again and again at the infrastructure's expense, and the agent would never hear of it.
/// - What we stopped, what never started and what got lost has judged nothing: an error, and the gate runs again.
/// # Guarantees
/// Nothing but an exit code 0 that was seen gives `Pass`. Evidence has at most `EVIDENCE_BYTES_MAX` bytes.
#[must_use]
pub fn verdict_of(end: &RunEnd) -> (Verdict, Option<String>) {
    let seconds = end.duration_millis / 1000;
    let (verdict, cause) = match &end.cause {
        EndCause::Exited(0) => (Verdict::Pass, String::new()),
        EndCause::Exited(code @ (126 | 127)) => {
            (Verdict::Error, format!("exit code {code}: the gate's command, or a program that it calls, is missing or not executable"))
        }
        EndCause::Exited(code) => (Verdict::Fail, format!("exit code {code}")),
        EndCause::Signaled(signal) => (Verdict::Fail, format!("ended by signal {signal}")),
        EndCause::TimedOut => (Verdict::Fail, format!("timed out after {seconds} s")),
        EndCause::CannotExecute(why) => (Verdict::Error, format!("the gate's command cannot be executed: {why}")),
        EndCause::LeaseExpired => {
            (Verdict::Error, "the sandbox ended itself: the controller was away for longer than the lease".to_owned())
        }
        EndCause::Stopped => (Verdict::Error, "the gate was stopped before it had judged".to_owned()),
        EndCause::NotStarted(why) => (Verdict::Error, format!("the gate did not start: {why}")),
        EndCause::Lost(why) => (Verdict::Error, format!("the sandbox was lost: {why}")),
    };
    let bytes_max = if verdict == Verdict::Pass { EVIDENCE_OF_PASS_BYTES_MAX } else { EVIDENCE_BYTES_MAX };
    (verdict, evidence(&cause, end.output_tail.trim_end(), bytes_max))
}

/// The cause, then as much of the output's end as there is room for.
fn evidence(cause: &str, output: &str, bytes_max: usize) -> Option<String> {
    let head = cut_end(cause, bytes_max);
    let room = bytes_max.saturating_sub(head.len() + 1);
    let tail = keep_end(output, room);
    match (head.is_empty(), tail.is_empty()) {
        (true, true) => None,
        (true, false) => Some(tail.to_owned()),
        (false, true) => Some(head.to_owned()),
        (false, false) => Some(format!("{head}\n{tail}")),
    }
}

/// The first bytes of a text, cut between characters.
fn cut_end(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// The last bytes of a text, cut between characters.
fn keep_end(text: &str, bytes_max: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes_max))..]
}
