//! The pass over what has no record: inventory first, records after it, so that nothing that was just declared is taken for an orphan.

use crate::api::names::Uid;
use crate::causes;
use crate::cleanups::{Cleanups, Stray};
use crate::controller::reconcile::Context;
use crate::plan::fleet::is_elsewhere;
use crate::plan::observed::Inventory;
use crate::plan::orphans::{KnownRecords, OrphanAction, plan_orphans};
use crate::store::{Kind, Record, StoreError};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for orphans.
pub const ORPHAN_RESYNC: Duration = Duration::from_secs(10);

/// Remembers, outside the store, which store it was and how far: one that comes back empty or older has forgotten, and then the world wins.
/// Once that was seen it stays so, also over restarts and however far the store gets, until an operator removes the file.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
}

/// What the file says.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
struct Remembered {
    /// The highest resource version that was seen.
    version: u64,
    /// The store that it was seen in.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    /// Set when the store was seen to have forgotten, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgot: Option<String>,
}

impl Memory {
    /// Kept in the state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("last-version") }
    }

    /// Holds what the store says against what is remembered, and remembers it. Returns why the store has forgotten, if it has.
    /// # Errors
    /// The file cannot be written.
    pub fn judge(&self, version: u64, store: Option<&str>) -> std::io::Result<Option<String>> {
        let before = self.read();
        let mut now = before.clone();
        let is_other = before.store.as_deref().zip(store).is_some_and(|(before, store)| before != store);
        if now.forgot.is_none() && (version < before.version || is_other) {
            let what = if is_other { "is another one than before".to_owned() } else { format!("went back to version {version}") };
            now.forgot = Some(format!("the store {what}; version {} was seen", before.version));
        }
        if now.forgot.is_none() {
            now.version = version;
            now.store = store.map(str::to_owned).or(before.store.clone());
        }
        if now != before {
            crate::durable::replace(&self.path, &serde_json::to_vec(&now).expect("plain data"))?;
        }
        Ok(now.forgot)
    }

    /// The file that it is kept in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the store has forgotten, if that was seen.
    #[must_use]
    pub fn forgot(&self) -> Option<String> {
        self.read().forgot
    }

    fn read(&self) -> Remembered {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        // Earlier versions wrote the number alone.
        let number = text.trim().parse().map(|version| Remembered { version, ..Remembered::default() });
        number.or_else(|_| serde_json::from_str(&text)).unwrap_or_default()
    }
}

/// Looks for orphans now and then, for ever.
pub async fn run(ctx: Arc<Context>, memory: Memory) {
    let mut warned = false;
    loop {
        if let Err(error) = pass(&ctx, &memory, &mut warned).await {
            tracing::warn!(error, "could not look for orphans; nothing was removed");
        }
        tokio::time::sleep(ORPHAN_RESYNC).await;
    }
}

fn tell(cleanups: &Cleanups, action: &OrphanAction) {
    match action {
        // Its removal is told, which comes next.
        OrphanAction::StopSandbox(_) => {}
        OrphanAction::RemoveSandbox(run) => cleanups.tell(Stray::Sandbox, &format!("{run}, whose agent has no record")),
        OrphanAction::RemoveWorkspace(uid) => {
            cleanups.tell(Stray::Tree, &format!("that of agent {uid}, which has no record; what was not pushed is under refs/rescue"));
        }
    }
}

async fn pass(ctx: &Context, memory: &Memory, warned: &mut bool) -> Result<(), String> {
    // Also who stands by looks: what is left over from its own state folder is swept up with that, and nobody else's to do.
    let inventory = ctx.world.inventory().await.map_err(|error| error.to_string())?;
    let Some(epoch) = (ctx.epoch)() else { return Ok(()) };
    let (records, version) = ctx.store.list_stream(Kind::Agent).await.map_err(|error| causes::one_line(&error))?;
    let identity = ctx.store.identity().await.map_err(|error| causes::one_line(&error))?;
    let forgot = memory.judge(version, identity.as_deref());
    let forgot = forgot.map_err(|error| format!("could not write {}: {error}", memory.path.display()))?;
    if let Some(why) = forgot.as_ref().filter(|_| !std::mem::replace(warned, true)) {
        tracing::error!(
            why,
            file = %memory.path.display(),
            "the store is not what this state folder has seen: sandboxes without a record are left alone; remove the named file to confirm \
             that the store is right"
        );
    }
    if inventory == Inventory::default() {
        return Ok(());
    }
    let here = ctx.world.place();
    let uid_of = async |record: Record| {
        let is_elsewhere = is_elsewhere(here, record.status["installation"].as_str());
        Ok(Uid::new(record.metadata.uid.unwrap_or_default()).ok().filter(|_| !is_elsewhere))
    };
    let uids = records.try_filter_map(uid_of).try_collect().await.map_err(|error: StoreError| causes::one_line(&error))?;
    for action in plan_orphans(&inventory, &KnownRecords { uids, amnesia: forgot.is_some() }) {
        tracing::info!(?action, "removing what has no record");
        match ctx.world.apply_orphan(epoch, action.clone()).await {
            Ok(()) => tell(&ctx.journal.cleanups, &action),
            Err(error) => tracing::warn!(?action, %error, "could not remove what has no record; it is tried again"),
        }
    }
    Ok(())
}
