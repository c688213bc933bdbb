//! One pass over one halt: count its matches, latch, release. The decisions are `plan_halt`'s.

use crate::api::agent::AgentStatus;
use crate::api::halt::HaltStatus;
use crate::api::names::FINALIZER;
use crate::controller::reconcile::{Context, Next, PassError};
use crate::plan::halts::{HaltFacts, in_force, plan_halt};
use crate::store::{Key, Kind, Record};

/// One pass over one halt.
/// # Errors
/// The store refused or did not answer; nothing is lost.
pub async fn reconcile_halt(key: &Key, ctx: &Context) -> Result<Next, PassError> {
    if (ctx.epoch)().is_none() {
        return Ok(Next::Await);
    }
    let failed = |what: &'static str| move |source| PassError::Store { what, key: key.clone(), source };
    let Some(record) = ctx.store.get(key).await.map_err(failed("read"))? else { return Ok(Next::Await) };
    let Ok(halt) = record.halt() else { return Ok(Next::Await) };
    let force = in_force(&key.name, &halt.spec);
    let (agents, _) = ctx.store.list(Kind::Agent).await.map_err(failed("list what matches"))?;
    let labels = |agent: &Record| agent.metadata.labels.clone().unwrap_or_default();
    let matching = agents.iter().filter(|agent| force.matches(agent.metadata.namespace.as_deref().unwrap_or_default(), &labels(agent)));
    let statuses: Vec<AgentStatus> = matching.map(|agent| serde_json::from_value(agent.status.clone()).unwrap_or_default()).collect();
    let stored: HaltStatus = halt.status.clone().unwrap_or_default();
    let facts = HaltFacts {
        has_finalizer: record.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER),
        deleting: record.metadata.deletion_timestamp.is_some(),
    };
    let decided = plan_halt(&halt.spec, &stored, facts, &statuses, (ctx.clock)());
    let mut record = record;
    if decided.status != stored {
        record.status = serde_json::to_value(&decided.status).expect("a status is plain data");
        record = ctx.store.replace_status(record).await.map_err(failed("write the status of"))?;
    }
    if decided.add_finalizer {
        record.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
        ctx.store.replace(record).await.map_err(failed("put our finalizer on"))?;
    } else if decided.remove_finalizer {
        record.metadata.finalizers.iter_mut().for_each(|all| all.retain(|finalizer| finalizer != FINALIZER));
        ctx.store.replace(record).await.map_err(failed("take our finalizer off"))?;
    } else if decided.delete {
        ctx.store.delete(key, None, &[]).await.map_err(failed("release"))?;
    } else if decided.status.pending > 0 {
        return Ok(Next::After(crate::plan::TEARDOWN_RETRY));
    }
    Ok(Next::Await)
}
