//! Opens whatever keeps the records, and the lease that goes with it.
//!
//! The state folder belongs to one program, whatever the store: its lock is taken first where the store is elsewhere. An embedded store is led by
//! whoever has the folder, at once or never. Of several controllers on one Valkey server or in one cluster one leads and the others stand by.

use super::{UpError, part};
use crate::api::names::Epoch;
use crate::config::{Config, StoreChoice};
use crate::controller::leadership::Leadership;
use crate::store::embedded::{EmbeddedOptions, EmbeddedStore};
use crate::store::kube::{KubeLease, KubeOptions, KubeStore, Teller};
use crate::store::lease::{Acquired, FileLease, Lease};
use crate::store::valkey::{Durability, ValkeyLease, ValkeyOptions, ValkeyStore, ValkeyUrl};
use crate::store::{Store, StoreError, StoreResult};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the lock of a killed predecessor is waited for, and how often it is tried.
const STORE_PATIENCE: Duration = Duration::from_secs(1);
const STORE_PAUSE: Duration = Duration::from_millis(50);
/// How long a server that does not answer yet is waited for at start, and how often it is tried.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);
const SERVER_PAUSE: Duration = Duration::from_millis(250);

/// What keeps the records.
pub(super) struct Kept {
    pub(super) store: Arc<dyn Store>,
    pub(super) leadership: Arc<Leadership>,
    /// Names this state folder on this host: what runs here is marked with it.
    pub(super) installation: String,
    /// What was found, one line each.
    pub(super) notes: Vec<String>,
    /// Tells people beside the records what happens, where the keeper has a way.
    pub(super) teller: Option<Arc<Teller>>,
    /// Held as long as this program works on the state folder.
    pub(super) _folder: Option<FileLease>,
}

/// Opens the configured store.
pub(super) async fn open(config: &Config) -> Result<Kept, UpError> {
    match &config.store {
        StoreChoice::Embedded => embedded(config).await,
        StoreChoice::Valkey { url, durability, prefix } => valkey(config, url, *durability, prefix).await,
        StoreChoice::Kube => kube(config).await,
    }
}

async fn embedded(config: &Config) -> Result<Kept, UpError> {
    let store = Arc::new(open_file(&config.state.join("mosaic.redb")).await?);
    let installation = store.installation().map_err(part("the embedded store"))?;
    let leadership = Leadership::new(Arc::new(FileLease::new(&config.state, Some(store.clone()))), Epoch(0));
    take(config, leadership.ask().await.map_err(part("the leader lease"))?)?;
    Ok(Kept { store, leadership: Arc::new(leadership), installation, notes: Vec::new(), teller: None, _folder: None })
}

async fn valkey(config: &Config, url: &ValkeyUrl, durability: Durability, prefix: &str) -> Result<Kept, UpError> {
    let folder = lock_folder(config).await?;
    let options = ValkeyOptions { prefix: prefix.to_owned(), durability, ..ValkeyOptions::default() };
    let store = patiently(async || ValkeyStore::open(url, options.clone()).await).await.map_err(part("the Valkey store"))?;
    let installation = installation(&config.state)?;
    let leadership = stand(Arc::new(ValkeyLease::new(&store, Some(&config.state)))).await;
    let mut notes = store.notes().to_vec();
    notes.push(leadership.describe());
    Ok(Kept { store: Arc::new(store), leadership, installation, notes, teller: None, _folder: Some(folder) })
}

async fn kube(config: &Config) -> Result<Kept, UpError> {
    let folder = lock_folder(config).await?;
    let client = crate::store::kube::client().await.map_err(part("the Kubernetes store"))?;
    let store = KubeStore::new(client, KubeOptions::default());
    let mut notes = patiently(async || store.check().await).await.map_err(part("the Kubernetes store"))?;
    let installation = installation(&config.state)?;
    let leadership = stand(Arc::new(KubeLease::new(&store, &installation, Some(&config.state)))).await;
    notes.push(leadership.describe());
    let teller = Some(Arc::new(store.teller()));
    Ok(Kept { store: Arc::new(store), leadership, installation, notes, teller, _folder: Some(folder) })
}

/// Makes the state folder this program's, where the store does not do that.
async fn lock_folder(config: &Config) -> Result<FileLease, UpError> {
    let folder = FileLease::new(&config.state, None);
    take(config, folder.acquire(Epoch(0)).await.map_err(part("the state folder's lock"))?)?;
    Ok(folder)
}

/// A candidate that has asked once. Who is not told that it leads stands by and asks on.
async fn stand(lease: Arc<dyn Lease>) -> Arc<Leadership> {
    let leadership = Leadership::new(lease, Epoch(0));
    if let Err(error) = leadership.ask().await {
        tracing::warn!(error = crate::causes::one_line(&error), "could not ask for the leader lease; asking on");
    }
    Arc::new(leadership)
}

fn take(config: &Config, acquired: Acquired) -> Result<(), UpError> {
    match acquired {
        Acquired::Leads(_) => Ok(()),
        Acquired::Held { by } => Err(UpError::Busy { path: config.state.clone(), by }),
    }
}

/// Opens the file. The lock of one that was just killed may still be held for a moment by a child that it was starting.
async fn open_file(path: &Path) -> Result<EmbeddedStore, UpError> {
    let until = Instant::now() + STORE_PATIENCE;
    loop {
        match EmbeddedStore::open(path, EmbeddedOptions::default()) {
            Ok(store) => return Ok(store),
            Err(error) if Instant::now() > until => return Err(part("the embedded store")(error)),
            Err(_) => tokio::time::sleep(STORE_PAUSE).await,
        }
    }
}

/// Opens the store of a server that may just be starting as well.
async fn patiently<T>(open: impl AsyncFn() -> StoreResult<T>) -> StoreResult<T> {
    let until = Instant::now() + SERVER_PATIENCE;
    loop {
        match open().await {
            Err(StoreError::Unavailable { .. }) if Instant::now() < until => tokio::time::sleep(SERVER_PAUSE).await,
            opened => return opened,
        }
    }
}

/// The id of this state folder, made once. The store cannot give it: several hosts share that.
fn installation(state: &Path) -> Result<String, UpError> {
    let path = state.join("installation");
    let made = crate::durable::make_once(&path, uuid::Uuid::new_v4().to_string().as_bytes());
    let read = made.and_then(|()| std::fs::read_to_string(&path));
    read.map(|id| id.trim().to_owned()).map_err(|error| UpError::State { path, why: error.to_string() })
}
