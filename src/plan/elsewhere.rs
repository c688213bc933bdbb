//! An agent whose controller does not come back begins again here.
//!
//! Nothing of it runs, that was seen; what its attempt has brought is where nobody here can look. So the next attempt begins with a new look
//! at the repository, and from its base as it is by then. That look also finds what was pushed before and not stored any more (`absorb`).

use crate::api::condition::reason;
use crate::api::validate::ValidAgent;
use crate::plan::Plan;
use crate::plan::absorb::infrastructure_failure;
use crate::plan::action::Action;
use crate::plan::observed::{Look, Observed};
use k8s_openapi::jiff::Timestamp;

/// Takes over what was given up (`why`), of which nothing lives. What is left of it in the cluster is removed once that is stored: whose it was
/// learns from the record that somebody has seen its end.
pub(super) fn begin_again(plan: &mut Plan, agent: &ValidAgent, observed: &Observed, why: &str, now: Timestamp) {
    if agent.suspend {
        return plan.wait(reason::SUSPENDED, format!("spec.suspend is true; it will begin again here: {why}"));
    }
    if let Look::Seen(sandboxes) = &observed.sandboxes {
        plan.actions.extend(sandboxes.iter().map(|seen| Action::RemoveSandbox { run: seen.run.clone() }));
    }
    plan.status.installation = None;
    plan.status.between_attempts = true;
    plan.status.sandbox = None;
    if let Some(workspace) = plan.status.workspace.as_mut() {
        (workspace.base_sha, workspace.worktree) = (None, None);
    }
    let text = format!("begins again here: {why}");
    infrastructure_failure(plan, reason::SANDBOX_LOST, &text, now);
    plan.wait(reason::SANDBOX_LOST, text);
}
