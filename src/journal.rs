//! What the controller does -> audit log: an intent before each effect, its outcome after, an entry for each fact that changed.
//!
//! Deliberately no decision and no state beyond which intent an outcome answers; after a crash the audit log itself marks intents without
//! outcome as unknown.

use crate::api::agent::AgentStatus;
use crate::api::condition;
use crate::api::names::{Attempt, Uid};
use crate::audit::{Audit, AuditError, Draft, Outcome};
use crate::cleanups::Cleanups;
use crate::controller::reconcile::{Journal, Transition};
use crate::plan::action::{Action, Effect};
use futures::FutureExt;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// One entry, which is an event as well, for each clean-up.
#[must_use]
pub fn cleanups(audit: &Arc<Audit>) -> Cleanups {
    let audit = audit.clone();
    Cleanups::new(move |stray, text| {
        if let Err(error) = audit.append(Draft::event(stray.reason(), text)) {
            tracing::error!(%error, "the audit entry of a clean-up was lost");
        }
    })
}

/// Which intent each effect under way has.
pub struct Ledger {
    audit: Arc<Audit>,
    open: Mutex<BTreeMap<(Uid, Action), u64>>,
}

impl Ledger {
    /// A ledger over an open audit log.
    #[must_use]
    pub fn new(audit: Arc<Audit>) -> Self {
        Self { audit, open: Mutex::default() }
    }

    /// The ends that passes tell.
    #[must_use]
    pub fn journal(self: &Arc<Self>) -> Journal {
        let (intents, outcomes, transitions) = (self.clone(), self.clone(), self.clone());
        Journal {
            intent: Arc::new(move |effect| {
                let this = intents.clone();
                async move { this.intent(&effect).await.map_err(|error| error.to_string()) }.boxed()
            }),
            outcome: Arc::new(move |effect, result| outcomes.outcome(effect, result)),
            transition: Arc::new(move |transition| transitions.transition(&transition)),
            cleanups: cleanups(&self.audit),
        }
    }

    async fn intent(&self, effect: &Effect) -> Result<(), AuditError> {
        let seq = self.audit.append_durable(Draft::intent(effect)).await?;
        self.open.lock().expect("nobody panics while holding it").insert((effect.uid.clone(), effect.action.clone()), seq);
        Ok(())
    }

    /// What came of an effect.
    pub fn outcome(&self, effect: &Effect, result: Result<(), String>) {
        let intent = self.open.lock().expect("nobody panics while holding it").remove(&(effect.uid.clone(), effect.action.clone()));
        let (outcome, message) = match &result {
            Ok(()) => (Outcome::Ok, ""),
            Err(message) => (Outcome::Failed, message.as_str()),
        };
        self.append(Draft::outcome(intent.unwrap_or_default(), effect, outcome, message));
    }

    /// One entry for the phase, one for each condition that flipped, one for each new round of feedback.
    fn transition(&self, transition: &Transition) {
        let Transition { key, uid, before, after } = transition;
        if before.phase != after.phase {
            let name = |status: &AgentStatus| status.phase.map_or_else(|| "None".to_owned(), |phase| format!("{phase:?}"));
            let why = after.reason.clone().unwrap_or_default();
            let draft = Draft::transition(key.clone(), uid.clone(), &name(before), &name(after), &why);
            self.append(draft.with_attempt(Attempt(after.attempt)).with_message(after.message.as_deref().unwrap_or_default()));
        }
        for now in &after.conditions {
            let then = condition::get(&before.conditions, &now.type_);
            let flipped = then.map_or(now.status == "True" || now.type_ == condition::ADMITTED, |then| then.status != now.status);
            if flipped {
                let event = if now.status == "True" { now.type_.clone() } else { format!("Not{}", now.type_) };
                self.append(Draft::event(&event, &now.message).about(key.clone(), Some(uid.clone())));
            }
        }
        for gate in after.gates.iter().filter(|gate| !before.gates.contains(gate)) {
            let text = format!("gate {} on {}: {:?}", gate.name, gate.sha, gate.verdict);
            self.append(Draft::event("GateJudged", &text).about(key.clone(), Some(uid.clone())));
        }
        for feedback in after.feedback.iter().filter(|feedback| !before.feedback.contains(feedback)) {
            self.append(Draft::event("RoundRefused", &feedback.summary).about(key.clone(), Some(uid.clone())));
        }
    }

    /// Outcomes and events are told as well as they can be: their effect is done, and a full disk must not undo or block it.
    fn append(&self, draft: Draft) {
        if let Err(error) = self.audit.append(draft) {
            tracing::error!(%error, "an audit entry was lost");
        }
    }
}
