//! The pass over what has no record: inventory first, records after it, so that nothing that was just declared is taken for an orphan.

use crate::api::names::Uid;
use crate::controller::reconcile::Context;
use crate::plan::observed::Inventory;
use crate::plan::orphans::{KnownRecords, plan_orphans};
use crate::store::{Kind, Record, StoreError};
use futures::TryStreamExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for orphans.
pub const ORPHAN_RESYNC: Duration = Duration::from_secs(10);

/// Remembers, outside the store, how far the store was: a store that comes back empty or older has forgotten, and then the world wins.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// Kept in the state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("last-version") }
    }

    /// The last resource version that was seen; 0: none.
    #[must_use]
    pub fn last(&self) -> u64 {
        std::fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    fn remember(&self, version: u64) -> std::io::Result<()> {
        crate::durable::replace(&self.path, version.to_string().as_bytes())
    }
}

/// Looks for orphans now and then, for ever. `seen_before` is what `Memory::last` said before this start.
pub async fn run(ctx: Arc<Context>, memory: Memory) {
    let seen_before = memory.last();
    let mut warned = false;
    loop {
        if let Err(error) = pass(&ctx, &memory, seen_before, &mut warned).await {
            tracing::warn!(error, "could not look for orphans; nothing was removed");
        }
        tokio::time::sleep(ORPHAN_RESYNC).await;
    }
}

async fn pass(ctx: &Context, memory: &Memory, seen_before: u64, warned: &mut bool) -> Result<(), String> {
    let Some(epoch) = (ctx.epoch)() else { return Ok(()) };
    let inventory = ctx.world.inventory().await.map_err(|error| error.to_string())?;
    let (records, version) = ctx.store.list_stream(Kind::Agent).await.map_err(|error| error.to_string())?;
    let amnesia = version < seen_before;
    if amnesia && !*warned {
        *warned = true;
        tracing::error!(
            version,
            seen_before,
            file = %memory.path.display(),
            "the store is older than what this state folder has seen: sandboxes without a record are left alone; \
             remove the named file and restart to confirm that the store is right"
        );
    }
    if !amnesia {
        memory.remember(version).map_err(|error| format!("could not write {}: {error}", memory.path.display()))?;
    }
    if inventory == Inventory::default() {
        return Ok(());
    }
    let uid_of = async |record: Record| Ok(Uid::new(record.metadata.uid.unwrap_or_default()).ok());
    let uids = records.try_filter_map(uid_of).try_collect().await.map_err(|error: StoreError| error.to_string())?;
    for action in plan_orphans(&inventory, &KnownRecords { uids, amnesia }) {
        tracing::info!(?action, "removing what has no record");
        if let Err(error) = ctx.world.apply_orphan(epoch, action.clone()).await {
            tracing::warn!(?action, %error, "could not remove what has no record; it is tried again");
        }
    }
    Ok(())
}
