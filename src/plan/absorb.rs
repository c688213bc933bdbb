//! Outcomes of earlier effects -> facts in the status. An outcome that answers a question nobody asks any more is only forgotten.
//!
//! Nothing is decided here beyond whose failure it was: agent failures and rejections share `maxRetries` and become feedback for the
//! next round, the infrastructure has a budget of its own.

use crate::api::agent::{AgentStatus, Feedback, GateSetStatus, GateStatus, PushStatus, Verdict, WorkspaceStatus};
use crate::api::condition::{self, reason};
use crate::api::names::CommitId;
use crate::api::validate::ValidAgent;
use crate::gates::tamper::TAMPER;
use crate::plan::Plan;
use crate::plan::action::{Action, ActionId};
use crate::plan::gates::{self, EVIDENCE_BYTES_MAX, keep_end, keep_start};
use crate::plan::observed::{Failure, FailureClass, Integrated, Observed, Outcome, Pushed, Resolved, Snapshot};
use crate::plan::retry::{BASE_MOVES_MAX, INFRASTRUCTURE_FAILURES_MAX};
use crate::plan::status::{complete, ending, fail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// How many rounds of feedback a record keeps.
pub const FEEDBACK_ROUNDS_MAX: usize = 8;
/// Longest summary of one feedback, in bytes.
pub const SUMMARY_BYTES_MAX: usize = 1024;
/// Longest details of one feedback, in bytes.
pub const FEEDBACK_BYTES_MAX: usize = 16 * 1024;

/// Takes in every outcome that the present attempt asked for.
pub(super) fn absorb(plan: &mut Plan, agent: &ValidAgent, observed: &Observed, now: Timestamp) {
    for (id, outcome) in &observed.outcomes {
        if ending(&plan.status).is_some() {
            return;
        }
        match outcome {
            Ok(outcome) => take_success(plan, agent, id, outcome, now),
            Err(failure) => take_failure(plan, id, failure, now),
        }
    }
}

fn take_success(plan: &mut Plan, agent: &ValidAgent, id: &ActionId, outcome: &Outcome, now: Timestamp) {
    plan.taken.insert(id.clone());
    let wanted = is_wanted(&plan.status, &id.0);
    match (&id.0, outcome) {
        (Action::Resolve, Outcome::Resolved(resolved)) if wanted => take_resolved(plan, agent, resolved, now),
        (Action::TakeSnapshot { .. }, Outcome::Snapshot(snapshot, integrated)) if wanted => {
            take_snapshot(plan, agent, snapshot, now);
            if let (Snapshot::Candidate(_), Some(integrated)) = (snapshot, integrated) {
                take_integrated(plan, agent, integrated, now);
            }
        }
        (Action::Integrate { .. }, Outcome::Integrated(integrated)) if wanted => take_integrated(plan, agent, integrated, now),
        (Action::Push { .. }, Outcome::Pushed(pushed)) if wanted => take_pushed(plan, agent, pushed, now),
        // Everything else is seen by looking (sandboxes, trees), or nobody asks for it any more.
        _ => {}
    }
}

/// Whether the record still asks what this action answers.
fn is_wanted(status: &AgentStatus, action: &Action) -> bool {
    let workspace = status.workspace.as_ref();
    let candidate = workspace.and_then(|w| w.candidate_sha.as_deref());
    let head = workspace.and_then(|w| w.head_sha.as_deref());
    match action {
        Action::Resolve => status.attempt == 0 || workspace.is_some_and(|w| w.base_sha.is_none()),
        Action::EnsureSandbox { run, .. } => run.attempt.0 == status.attempt && !status.between_attempts,
        Action::TakeSnapshot { attempt, .. } => attempt.0 == status.attempt && candidate.is_none() && !status.between_attempts,
        Action::Integrate { attempt, candidate: of, round } => {
            attempt.0 == status.attempt
                && candidate == Some(of.as_str())
                && head.is_none()
                && workspace.is_some_and(|w| w.base_moves == *round)
        }
        Action::Push { attempt, head: of, .. } => attempt.0 == status.attempt && head == Some(of.as_str()),
        Action::AddFinalizer
        | Action::StopSandbox { .. }
        | Action::RemoveSandbox { .. }
        | Action::Rescue { .. }
        | Action::RemoveWorkspace
        | Action::Archive
        | Action::RemoveFinalizer
        | Action::DeleteRecord => false,
    }
}

fn take_failure(plan: &mut Plan, id: &ActionId, failure: &Failure, now: Timestamp) {
    match &id.0 {
        // Clean-up failures only space the tries (`Plan::act`); they stay until the action is started again.
        Action::StopSandbox { .. } | Action::RemoveSandbox { .. } | Action::Rescue { .. } | Action::RemoveWorkspace => return,
        _ => {}
    }
    plan.taken.insert(id.clone());
    if !is_wanted(&plan.status, &id.0) {
        return;
    }
    match (failure.class, &id.0) {
        (FailureClass::Invalid, Action::Resolve) => {
            condition::set(&mut plan.status.conditions, condition::ADMITTED, false, &failure.reason, &failure.message, now);
            plan.status.last_failure_at = Some(MicroTime(now));
        }
        _ => infrastructure_failure(plan, &failure.reason, &failure.message, now),
    }
}

fn take_resolved(plan: &mut Plan, agent: &ValidAgent, resolved: &Resolved, now: Timestamp) {
    if let Some(found) = resolved.target.as_ref().filter(|found| has_passed(&plan.status, found)) {
        return deliver(plan, found, now);
    }
    let base_is_target = resolved.base_branch == agent.target_branch;
    // An earlier push of this very agent, of which nobody could tell, is no reason.
    if let (Some(existing), false) = (&resolved.target, base_is_target)
        && !is_own_head(&plan.status, existing)
    {
        let message = format!(
            "branch {} exists on {} already, at {existing}; choose another context.targetBranch or delete it there",
            agent.target_branch, resolved.remote
        );
        condition::set(&mut plan.status.conditions, condition::ADMITTED, false, reason::BRANCH_TAKEN, &message, now);
        plan.status.last_failure_at = Some(MicroTime(now));
        return;
    }
    let status = &mut plan.status;
    status.last_failure_at = None;
    status.gate_set = Some(GateSetStatus {
        source: resolved.gate_source.clone(),
        trusted_sha: resolved.trusted.to_string(),
        gates: resolved.gates.clone(),
    });
    status.workspace = Some(WorkspaceStatus {
        base_branch: Some(resolved.base_branch.to_string()),
        base_sha: Some(resolved.base.to_string()),
        ..WorkspaceStatus::default()
    });
    status.push = Some(PushStatus {
        remote: resolved.remote.clone(),
        ref_name: agent.target_branch.full_ref(),
        expected_old: resolved.target.as_ref().map(CommitId::to_string).unwrap_or_default(),
        sha: None,
        verified_at: None,
    });
    condition::set(&mut status.conditions, condition::ADMITTED, true, reason::MET, "repository, branch and gates were found", now);
}

fn take_snapshot(plan: &mut Plan, agent: &ValidAgent, snapshot: &Snapshot, now: Timestamp) {
    let said_why = plan.status.run.as_ref().and_then(|run| run.summary.clone()).filter(|summary| !summary.trim().is_empty());
    match (snapshot, said_why) {
        (Snapshot::Candidate(sha), _) => {
            if let Some(workspace) = plan.status.workspace.as_mut() {
                workspace.candidate_sha = Some(sha.to_string());
                workspace.conflicts.clear();
            }
        }
        (Snapshot::Unchanged, Some(summary)) => complete(plan, reason::NO_CHANGES, format!("the agent changed nothing: {summary}"), now),
        (Snapshot::Unchanged, None) => {
            let text = "the agent changed nothing and did not say why; change the tree, or write a summary to /mosaic/out/result.json";
            agent_failure(plan, agent, Setback { why: reason::NOTHING_CHANGED, kind: "agent", summary: text, details: None }, now);
        }
        (Snapshot::Refused(lines), _) => {
            let details = Some(lines.join("\n"));
            let summary = format!("the tree cannot become a commit: {}", lines.first().map_or("", String::as_str));
            rejection(plan, agent, Setback { why: reason::TREE_REFUSED, kind: "tree", summary: &summary, details }, now);
        }
        (Snapshot::Unresolved(paths), _) => {
            let summary = "conflict markers are still in the tree; resolve them and remove the marker lines";
            rejection(
                plan,
                agent,
                Setback { why: reason::MERGE_CONFLICT, kind: "conflict", summary, details: Some(paths.join("\n")) },
                now,
            );
        }
    }
}

fn take_integrated(plan: &mut Plan, agent: &ValidAgent, integrated: &Integrated, now: Timestamp) {
    let Some(workspace) = plan.status.workspace.as_mut() else { return };
    match integrated {
        Integrated::Head { head, base } => {
            workspace.head_sha = Some(head.to_string());
            workspace.head_base_sha = Some(base.to_string());
        }
        Integrated::Tampered { head, base, definition, evidence } => {
            workspace.head_sha = Some(head.to_string());
            workspace.head_base_sha = Some(base.to_string());
            let verdict = GateStatus {
                name: TAMPER.to_owned(),
                verdict: Verdict::Fail,
                sha: head.to_string(),
                base_sha: base.to_string(),
                definition: definition.clone(),
                duration_millis: None,
                evidence: Some(keep_start(evidence, EVIDENCE_BYTES_MAX).to_owned()),
                tries: 0,
            };
            gates::record(&mut plan.status, verdict);
        }
        Integrated::Conflict { base, content, paths, hunks } => {
            workspace.base_sha = Some(base.to_string());
            workspace.content_sha = Some(content.to_string());
            workspace.conflicts.clone_from(paths);
            let summary = format!("the base branch moved to {base} and conflicts with the change in: {}", paths.join(", "));
            rejection(
                plan,
                agent,
                Setback { why: reason::MERGE_CONFLICT, kind: "conflict", summary: &summary, details: Some(hunks.clone()) },
                now,
            );
        }
        Integrated::Empty { base } => {
            complete(plan, reason::NO_CHANGES, format!("the base branch has all of the change already, at {base}"), now);
        }
    }
}

fn take_pushed(plan: &mut Plan, agent: &ValidAgent, pushed: &Pushed, now: Timestamp) {
    match pushed {
        Pushed::Verified(sha) => deliver(plan, sha, now),
        Pushed::BaseMoved(tip) => {
            let Some(workspace) = plan.status.workspace.as_mut() else { return };
            workspace.base_moves = workspace.base_moves.saturating_add(1);
            workspace.head_sha = None;
            workspace.head_base_sha = None;
            condition::set(
                &mut plan.status.conditions,
                condition::GATES_PASSED,
                false,
                reason::BASE_MOVING,
                &format!("the base branch moved to {tip}"),
                now,
            );
            if plan.status.workspace.as_ref().is_some_and(|w| w.base_moves > BASE_MOVES_MAX) {
                infrastructure_failure(plan, reason::BASE_MOVING, "the base branch moves faster than the gates run", now);
            }
        }
        Pushed::RefTaken(Some(found)) if is_own_head(&plan.status, found) => {
            // A push of this very agent that was thought lost has landed after all: the gated head of now takes its place.
            if let Some(push) = plan.status.push.as_mut() {
                push.expected_old = found.to_string();
            }
        }
        Pushed::RefTaken(found) => {
            let found = found.as_ref().map_or_else(|| "is gone".to_owned(), |sha| format!("is at {sha}"));
            let target = &agent.target_branch;
            fail(plan, reason::BRANCH_TAKEN, format!("branch {target} {found}: somebody else wrote it while the agent worked"), now);
        }
        Pushed::Rejected(words) => {
            let summary = format!("the remote refused the push: {}", words.lines().next().unwrap_or_default());
            rejection(
                plan,
                agent,
                Setback { why: reason::PUSH_REJECTED, kind: "remote", summary: &summary, details: Some(words.clone()) },
                now,
            );
        }
    }
}

/// The remote has the commit that passed.
fn deliver(plan: &mut Plan, sha: &CommitId, now: Timestamp) {
    if let Some(push) = plan.status.push.as_mut() {
        push.sha = Some(sha.to_string());
        push.verified_at = Some(MicroTime(now));
    }
    complete(plan, reason::DELIVERED, format!("pushed and read back: {sha}"), now);
}

/// Whether a commit is the head that all gates passed, as it is stored before a push: whoever pushed it could not tell of that any more.
fn has_passed(status: &AgentStatus, found: &CommitId) -> bool {
    let head = status.workspace.as_ref().and_then(|workspace| workspace.head_sha.as_deref());
    head == Some(found.as_str()) && condition::is_true(&status.conditions, condition::GATES_PASSED)
}

/// Whether a commit is an earlier head of this agent: only heads have verdicts.
fn is_own_head(status: &AgentStatus, found: &CommitId) -> bool {
    status.gates.iter().any(|verdict| verdict.sha == found.as_str())
}

/// A failure that is not the agent's: counted apart, tried again after a backoff, given up at its own limit.
pub(super) fn infrastructure_failure(plan: &mut Plan, why: &str, message: &str, now: Timestamp) {
    plan.status.counts.infrastructure = plan.status.counts.infrastructure.saturating_add(1);
    plan.status.last_failure_at = Some(MicroTime(now));
    // While the backoff lasts, this is where people see what fails.
    condition::set(&mut plan.status.conditions, condition::PUSHED, false, why, message, now);
    if plan.status.counts.infrastructure >= INFRASTRUCTURE_FAILURES_MAX {
        fail(plan, why, format!("given up after {INFRASTRUCTURE_FAILURES_MAX} failures of the infrastructure: {message}"), now);
    }
}

/// A round that did not end well.
pub(super) struct Setback<'a> {
    /// Reason of the record, should this be the last round.
    pub(super) why: &'a str,
    /// Who refused or failed, for the agent's feedback.
    pub(super) kind: &'a str,
    /// One sentence.
    pub(super) summary: &'a str,
    /// Everything else that helps the next round.
    pub(super) details: Option<String>,
}

/// The agent's own failure: feedback, and another attempt after a backoff while `maxRetries` lasts.
pub(super) fn agent_failure(plan: &mut Plan, agent: &ValidAgent, setback: Setback<'_>, now: Timestamp) {
    plan.status.counts.agent_failures = plan.status.counts.agent_failures.saturating_add(1);
    plan.status.last_failure_at = Some(MicroTime(now));
    plan.status.between_attempts = true;
    go_on_or_give_up(plan, agent, setback, now);
}

/// A refused round: feedback, and the next attempt at once while `maxRetries` lasts.
pub(super) fn rejection(plan: &mut Plan, agent: &ValidAgent, setback: Setback<'_>, now: Timestamp) {
    plan.status.counts.rejections = plan.status.counts.rejections.saturating_add(1);
    go_on_or_give_up(plan, agent, setback, now);
    if ending(&plan.status).is_none() {
        begin_attempt(&mut plan.status, now);
    }
}

fn go_on_or_give_up(plan: &mut Plan, agent: &ValidAgent, setback: Setback<'_>, now: Timestamp) {
    let Setback { why, kind, summary, details } = setback;
    tell_next_round(plan, kind, summary, details);
    give_up_if_spent(plan, agent, why, summary, now);
}

fn give_up_if_spent(plan: &mut Plan, agent: &ValidAgent, why: &str, summary: &str, now: Timestamp) {
    let counts = plan.status.counts;
    let spent = counts.agent_failures + counts.rejections;
    if spent > agent.retries_max {
        fail(plan, why, format!("given up after {spent} refused or failed rounds (maxRetries {}): {summary}", agent.retries_max), now);
    }
}

/// The next attempt: everything that belonged to the last one is forgotten, its tree and feedback stay.
pub(super) fn begin_attempt(status: &mut AgentStatus, now: Timestamp) {
    status.attempt = status.attempt.saturating_add(1);
    status.between_attempts = false;
    status.started_at.get_or_insert(MicroTime(now));
    status.sandbox = None;
    status.progress = None;
    if let Some(workspace) = status.workspace.as_mut() {
        workspace.candidate_sha = None;
        workspace.head_sha = None;
        workspace.head_base_sha = None;
        workspace.base_moves = 0;
    }
    if condition::get(&status.conditions, condition::GATES_PASSED).is_some() {
        let text = "the commit of this attempt was not judged yet";
        condition::set(&mut status.conditions, condition::GATES_PASSED, false, reason::PENDING, text, now);
    }
}

fn tell_next_round(plan: &mut Plan, kind: &str, summary: &str, details: Option<String>) {
    let feedback = &mut plan.status.feedback;
    feedback.push(Feedback {
        attempt: plan.status.attempt,
        kind: kind.to_owned(),
        summary: keep_start(summary, SUMMARY_BYTES_MAX).to_owned(),
        details: details.map(|text| keep_end(&text, FEEDBACK_BYTES_MAX).to_owned()).filter(|text| !text.is_empty()),
    });
    let excess = feedback.len().saturating_sub(FEEDBACK_ROUNDS_MAX);
    feedback.drain(..excess);
}
