//! Brings to the store what was latched outside it: a halt becomes a record, what it meant is deleted, and what was killed is woken.
//!
//! Level-triggered: it looks again and again while something is latched that the store does not know, so that a store which was stuck,
//! full or away during a kill learns of it once it answers. Until then the latch itself halts.

use super::latch::{Latch, Note};
use crate::api::halt::{Halt, HaltRelease, HaltSpec};
use crate::api::names::{ANNOTATION_ENDED_BY, FINALIZER, Uid};
use crate::controller::reconcile::Context;
use crate::plan::status::{Ending, ending};
use crate::store::{Kind, Record, Store, StoreError};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether something is latched that the store does not know.
pub const RECORD_INTERVAL: Duration = Duration::from_millis(500);

/// Looks for ever.
pub async fn run(ctx: Arc<Context>) {
    loop {
        for note in ctx.latch.halts() {
            if let Err(error) = record(&*ctx.store, &ctx.latch, &note).await {
                tracing::warn!(error = crate::causes::one_line(&error), "a halt is latched and the store does not take it; trying again");
            }
        }
        tokio::time::sleep(RECORD_INTERVAL).await;
    }
}

/// Makes the halt's record, asks for the deletion of everything that it means, and hands the halt over to the store. Idempotent.
/// # Errors
/// The store refuses or does not answer: the latch goes on halting.
pub async fn record(store: &dyn Store, latch: &Latch, note: &Note) -> Result<(), StoreError> {
    let Note::Halt { name, namespace, hold, reason, .. } = note else { return Ok(()) };
    let spec = HaltSpec {
        namespace: namespace.clone(),
        reason: Some(reason.clone()),
        who: Some("kill lane".to_owned()),
        release: Some(if *hold { HaltRelease::Manual } else { HaltRelease::WhenDone }),
        ..HaltSpec::default()
    };
    let mut halt = Halt::new(name, spec);
    halt.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    match store.create(Record::from(&halt)).await {
        Ok(_) | Err(StoreError::AlreadyExists(_)) => {}
        Err(other) => return Err(other),
    }
    let (agents, _) = store.list(Kind::Agent).await?;
    for agent in agents.iter().filter(|agent| is_meant(agent, latch, namespace.as_deref())) {
        let uid = agent.metadata.uid.clone().and_then(|uid| Uid::new(uid).ok());
        match store.delete(&agent.key(), uid.as_ref(), &[(ANNOTATION_ENDED_BY, "kill-all".to_owned())]).await {
            Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => {}
            Err(other) => return Err(other),
        }
    }
    let handed_over = latch.hand_over(name);
    handed_over.map_err(|e| StoreError::Unavailable { what: "the latch's file".to_owned(), source: Some(Box::new(e)) })
}

/// Whether a halt of that namespace means this agent: all that have not finished, and those that the lane has just ended.
#[must_use]
pub fn is_meant(agent: &Record, latch: &Latch, namespace: Option<&str>) -> bool {
    let status = serde_json::from_value(agent.status.clone()).unwrap_or_default();
    let in_it = namespace.is_none_or(|namespace| agent.metadata.namespace.as_deref() == Some(namespace));
    in_it
        && match ending(&status) {
            None => true,
            Some(Ending::Killed) => {
                agent.metadata.uid.clone().and_then(|uid| Uid::new(uid).ok()).is_some_and(|uid| latch.killed(&uid).is_some())
            }
            Some(Ending::Completed | Ending::Failed) => false,
        }
}
