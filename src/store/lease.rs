//! The leader lease: who may decide, and with which fencing epoch.
//!
//! A lease saves effort (two controllers do not do everything twice); safety comes from the epoch, which only ever grows and which every
//! effect carries, and from the store's compare-and-set. The embedded form is a lock on `<state>/lock`, which the kernel takes back when
//! the process dies, so it never has to be waited for. The epoch is kept in `<state>/epoch` and in the store: losing one of them, or
//! restoring an old backup of one, does not bring an old epoch back, and `floor` carries what was seen on labels of live sandboxes.

use super::StoreError;
use super::embedded::EmbeddedStore;
use crate::api::names::Epoch;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest content of the lock and epoch files that is looked at, in bytes.
const SMALL_FILE_BYTES_MAX: u64 = 256;
/// Time since the machine was started, suspended time included: what leases are counted by.
pub(crate) fn since_boot() -> Duration {
    Duration::from_millis(crate::inside::system::boot_millis())
}

/// How long a wish to lead stands without being repeated. Until then who has it goes first, so this is also how much longer nobody leads if leader
/// and wisher die at once.
pub const WISH_TIME: Duration = Duration::from_secs(6);
/// How long the word of one that stands by that it lives counts without being repeated.
pub const PRESENCE_TIME: Duration = Duration::from_secs(60);
/// How often taking the lock starts anew because somebody replaced the lock file in between.
const LOCK_TRIES_MAX: u32 = 5;

/// What came of asking for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// The caller leads, with an epoch that nobody had before.
    Leads(Epoch),
    /// Somebody else leads, or goes first because it has wished to; the text says who, for people.
    Held {
        /// For example `pid 4711, since 2026-01-01T00:00:00Z`.
        by: String,
    },
}

/// Why the lease could not be asked for, renewed or released.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The caller leads no longer: it must stop having effects.
    #[error("the lease of epoch {epoch} was lost: {why}", epoch = .epoch.0)]
    Lost {
        /// Epoch that was held.
        epoch: Epoch,
        /// What was seen.
        why: String,
    },
    /// Something is there that must not be guessed at; the text says what to do.
    #[error("{0}")]
    Unusable(String),
    /// The store did not answer or refused.
    #[error("the store did not serve the leader lease")]
    Store(#[source] StoreError),
    /// A file could not be read or written.
    #[error("failed to {verb} {}", path.display())]
    File {
        /// Verb.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who may decide.
pub trait Lease: Send + Sync {
    /// Tries to lead. The new epoch is above every earlier one and above `floor` (the highest seen on labels). While the caller leads, asking
    /// again answers with the same epoch.
    fn acquire(&self, floor: Epoch) -> BoxFuture<'_, Result<Acquired, LeaseError>>;

    /// Makes sure that the caller still leads with that epoch. Says who wishes to lead instead, for people, if somebody does.
    /// # Errors
    /// `Lost`: it does not.
    fn renew(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<String>, LeaseError>>;

    /// Tells whoever leads that the caller wishes to, and goes first once the lease is free. Stands for `WISH_TIME`, and is repeated as long as it
    /// holds; of several the first one stands. It takes nothing from who leads, and where only one can have the store it changes nothing.
    fn wish(&self) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async { Ok(()) })
    }

    /// Tells whoever leads that the caller lives, though it stands by. Counts for `PRESENCE_TIME`, and is repeated as long as it holds. Where nobody
    /// takes over what another one has begun it changes nothing.
    fn say_present(&self) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async { Ok(()) })
    }

    /// Whether the candidate of an installation has said so lately, as far as the caller has seen while it asked for the lease or renewed it.
    fn is_present(&self, installation: &str) -> bool {
        let _ = installation;
        false
    }

    /// Leads no longer; the next one can at once. Not leading is no error.
    fn release(&self, epoch: Epoch) -> BoxFuture<'_, Result<(), LeaseError>>;

    /// Who has not renewed for so long leads no longer, and another one may; `None`: it is held until it is released or its holder dies.
    fn ttl(&self) -> Option<Duration> {
        None
    }
}

/// The highest epoch that was in use here, in a file. Losing the store, or restoring an old copy of it, does not bring an old epoch back.
#[derive(Debug, Clone)]
pub(super) struct EpochFile(PathBuf);

impl EpochFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The stored epoch; 0: none was yet.
    pub(super) fn read(&self) -> Result<Epoch, LeaseError> {
        let failed = |verb| move |source| LeaseError::File { verb, path: self.0.clone(), source };
        let mut file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Epoch(0)),
            Err(error) => return Err(failed("open")(error)),
        };
        let text = read_small(&mut file).map_err(failed("read"))?;
        text.parse().map(Epoch).map_err(|_| {
            LeaseError::Unusable(format!(
                "{} holds {text:?} instead of a number. Write the highest epoch that was in use into it, or remove it if the store \
                 beside it is intact",
                self.0.display()
            ))
        })
    }

    /// Stores an epoch, on the disk before anybody hears of it.
    pub(super) fn write(&self, epoch: Epoch) -> Result<(), LeaseError> {
        let failed = |source| LeaseError::File { verb: "write", path: self.0.clone(), source };
        crate::durable::replace(&self.0, format!("{}\n", epoch.0).as_bytes()).map_err(failed)
    }
}

/// The embedded form.
#[derive(Debug)]
pub struct FileLease {
    files: Arc<Files>,
    store: Option<Arc<EmbeddedStore>>,
    /// Makes one `acquire` at a time.
    acquiring: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Files {
    lock: PathBuf,
    epoch: EpochFile,
    held: Mutex<Option<Held>>,
}

/// The lock is held as long as the file is open.
#[derive(Debug)]
struct Held {
    file: File,
    epoch: Epoch,
}

impl FileLease {
    /// A lease on the state folder, which must exist. With `store`, the epoch is kept there as well.
    #[must_use]
    pub fn new(state: &Path, store: Option<Arc<EmbeddedStore>>) -> Self {
        let files = Files { lock: state.join("lock"), epoch: EpochFile::new(state.join("epoch")), held: Mutex::new(None) };
        Self { files: Arc::new(files), store, acquiring: tokio::sync::Mutex::new(()) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, LeaseError> + Send + 'static,
    ) -> Result<T, LeaseError> {
        let files = Arc::clone(&self.files);
        let joined = tokio::task::spawn_blocking(move || work(&files)).await;
        joined.map_err(|e| LeaseError::Unusable(format!("the work on the lease's files ended early: {e}")))?
    }
}

impl Lease for FileLease {
    fn acquire(&self, floor: Epoch) -> BoxFuture<'_, Result<Acquired, LeaseError>> {
        Box::pin(async move {
            let _one_at_a_time = self.acquiring.lock().await;
            if let Some(epoch) = self.files.held_epoch() {
                return Ok(Acquired::Leads(epoch));
            }
            let file = match self.blocking(|files| files.lock()).await? {
                Ok(file) => file,
                Err(by) => return Ok(Acquired::Held { by }),
            };
            let store = self.store.clone();
            let stored = move || store.map_or(Ok(Epoch(0)), |store| store.epoch()).map_err(LeaseError::Store);
            let epoch = self.blocking(move |files| files.next_epoch(floor.max(stored()?))).await?;
            if let Some(store) = &self.store {
                store.raise_epoch(epoch).await.map_err(LeaseError::Store)?;
            }
            *self.files.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(Held { file, epoch });
            Ok(Acquired::Leads(epoch))
        })
    }

    fn renew(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<String>, LeaseError>> {
        Box::pin(self.blocking(move |files| files.check_held(epoch).map(|()| None)))
    }

    fn release(&self, epoch: Epoch) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(self.blocking(move |files| {
            let mut held = files.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.as_ref().is_some_and(|h| h.epoch == epoch) {
                // Closing the file gives the lock back.
                *held = None;
            }
            Ok(())
        }))
    }
}

impl Files {
    fn held_epoch(&self) -> Option<Epoch> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|h| h.epoch)
    }

    /// Takes the lock and writes who has it; or says who has it.
    fn lock(&self) -> Result<Result<File, String>, LeaseError> {
        let failed = |verb| move |source| LeaseError::File { verb, path: self.lock.clone(), source };
        for _ in 0..LOCK_TRIES_MAX {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(&self.lock).map_err(failed("open"))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(read_small(&mut file).map_err(failed("read"))?)),
                Err(errno) => return Err(failed("lock")(errno.into())),
            }
            // A lock on a file that has another one in its place protects nothing.
            if !self.is_in_place(&file) {
                continue;
            }
            let who = format!("pid {}, since {}", std::process::id(), Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"));
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(who.as_bytes())).map_err(failed("write"))?;
            return Ok(Ok(file));
        }
        Err(LeaseError::Unusable(format!("{} is replaced again and again by somebody else", self.lock.display())))
    }

    fn is_in_place(&self, file: &File) -> bool {
        match (file.metadata(), std::fs::metadata(&self.lock)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Counts the epoch up, on the disk before anybody hears of it.
    fn next_epoch(&self, floor: Epoch) -> Result<Epoch, LeaseError> {
        let next = Epoch(floor.max(self.epoch.read()?).0 + 1);
        self.epoch.write(next)?;
        Ok(next)
    }

    fn check_held(&self, epoch: Epoch) -> Result<(), LeaseError> {
        let lost = |why: String| Err(LeaseError::Lost { epoch, why });
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_ref().filter(|h| h.epoch == epoch) else {
            return lost("it was released".to_owned());
        };
        if !self.is_in_place(&held.file) {
            return lost(format!("{} was removed or replaced", self.lock.display()));
        }
        let stored = self.epoch.read()?;
        if stored > epoch {
            return lost(format!("{} says {}", self.epoch.0.display(), stored.0));
        }
        Ok(())
    }
}

fn read_small(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
