//! Passes beside that of an agent, as a controller runs them: over what has no record, and over halts that are latched outside the store.

use super::plants::Plant;
use super::scheduler::Done;
use super::store::{slowly, uid_of};
use super::truth::Shared;
use mosaic::api::names::Epoch;
use mosaic::controller::reconcile::Context;
use mosaic::kill::latch::{Latch, Note};
use mosaic::kill::record::record;
use mosaic::plan::orphans::{KnownRecords, plan_orphans};
use mosaic::store::Kind;
use std::sync::Arc;

/// One pass over what has no record: the inventory first, then the records, so that nothing new counts as an orphan.
pub async fn orphan_pass(ctx: Arc<Context>, epoch: Epoch, early_list: bool) -> Done {
    let known = async || {
        let (records, _) = ctx.store.list(Kind::Agent).await.ok()?;
        Some(KnownRecords { uids: records.iter().map(uid_of).collect(), amnesia: false })
    };
    let before = if early_list { known().await } else { None };
    if early_list {
        slowly().await;
    }
    let Ok(inventory) = ctx.world.inventory().await else { return Done::Orphans };
    let Some(known) = (if early_list { before } else { known().await }) else { return Done::Orphans };
    for action in plan_orphans(&inventory, &known) {
        if ctx.world.apply_orphan(epoch, action).await.is_err() {
            break;
        }
    }
    Done::Orphans
}

/// One pass over what is latched and the store does not know.
pub async fn record_pass(ctx: Arc<Context>, shared: Shared, note: Note) -> Done {
    let early = shared.lock().unwrap().planted(Plant::HandedOverTooEarly);
    if early && let Note::Halt { name, .. } = &note {
        ctx.latch.hand_over(name).expect("it is in memory only");
        slowly().await;
        // What failed was never latched any more: nobody tries again.
        let _ = record(&*ctx.store, &Latch::default(), &note).await;
        return Done::Recorded;
    }
    let recorded = record(&*ctx.store, &ctx.latch, &note).await;
    if let Err(error) = recorded {
        shared.lock().unwrap().note(format!("{note:?} is not recorded: {error}"));
    }
    Done::Recorded
}
