//! The redb file: made once, verified when opened, opened again after an I/O error, never overwritten.
//!
//! redb refuses every call after an I/O error until the database is opened anew. So the database sits in a slot: whoever meets such an
//! error empties the slot, and the next call fills it again from what is really on the disk.

use super::tables::{self, Snapshot};
use crate::store::{StoreError, StoreResult};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError, WriteTransaction};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Why a piece of work on the database failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// redb could not.
    Database(redb::Error),
    /// What is stored cannot be read.
    Unusable(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

/// What the slot holds.
#[derive(Debug)]
enum Slot {
    Open(Database),
    /// An I/O error was met: open it again before the next call.
    Broken,
    /// The store was dropped.
    Closed,
}

/// A redb file with its slot.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    cache_bytes: usize,
    slot: RwLock<Slot>,
    is_closed: AtomicBool,
}

impl File {
    /// Opens the file; makes it where there is none.
    pub(super) fn open(path: &Path, cache_bytes: usize) -> StoreResult<Self> {
        if !path.try_exists().map_err(|e| io_failed("look for", path, e))? {
            make(path, cache_bytes)?;
        }
        let database = open_database(path, cache_bytes)?;
        Ok(Self { path: path.to_owned(), cache_bytes, slot: RwLock::new(Slot::Open(database)), is_closed: AtomicBool::new(false) })
    }

    /// Looks at the committed data.
    pub(super) fn read<T>(&self, what: &str, look: impl FnOnce(&Snapshot) -> Result<T, Failure>) -> StoreResult<T> {
        self.with_database(what, |database| look(&Snapshot::new(database.begin_read()?)))
    }

    /// Runs a write transaction; the work itself commits or aborts.
    pub(super) fn write<T>(&self, what: &str, work: impl FnOnce(WriteTransaction) -> Result<T, Failure>) -> StoreResult<T> {
        self.with_database(what, |database| work(database.begin_write()?))
    }

    /// Lets go of the file. Waits for reads that are under way.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = Slot::Closed;
    }

    /// Whether the store was dropped. Never waits.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn with_database<T>(&self, what: &str, work: impl FnOnce(&Database) -> Result<T, Failure>) -> StoreResult<T> {
        self.open_if_broken()?;
        let result = match &*self.slot.read().unwrap_or_else(PoisonError::into_inner) {
            Slot::Open(database) => work(database),
            // Between the two looks another thread met an error: the caller tries again, as it would have to anyway.
            Slot::Broken => return Err(unavailable(format!("failed to {what} in {}", self.path.display()), None)),
            Slot::Closed => return Err(unavailable(format!("{} was closed", self.path.display()), None)),
        };
        result.map_err(|failure| match failure {
            Failure::Unusable(why) => StoreError::Unusable(format!("{}: {why}", self.path.display())),
            Failure::Database(error) => {
                let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
                if matches!(*slot, Slot::Open(_)) {
                    *slot = Slot::Broken;
                }
                unavailable(format!("failed to {what} in {}", self.path.display()), Some(error))
            }
        })
    }

    fn open_if_broken(&self) -> StoreResult<()> {
        if !matches!(*self.slot.read().unwrap_or_else(PoisonError::into_inner), Slot::Broken) {
            return Ok(());
        }
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*slot, Slot::Broken) {
            *slot = Slot::Open(open_database(&self.path, self.cache_bytes)?);
        }
        Ok(())
    }
}

/// Makes a complete store beside the path and links it into place, so that a crash never leaves half of one under the name.
fn make(path: &Path, cache_bytes: usize) -> StoreResult<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let draft = path.with_extension(format!("draft-{}", uuid::Uuid::new_v4().simple()));
    let made = make_draft(&draft, cache_bytes).and_then(|()| match std::fs::hard_link(&draft, path) {
        // Somebody else made it in the meantime: theirs is as good.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|e| io_failed("create", path, e)),
    });
    if let Err(error) = std::fs::remove_file(&draft) {
        tracing::warn!(draft = %draft.display(), %error, "could not remove the draft of the store");
    }
    made?;
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io_failed("sync the folder of", path, e))
}

fn make_draft(draft: &Path, cache_bytes: usize) -> StoreResult<()> {
    let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    options.map_err(|e| io_failed("create", draft, e))?;
    let failed = |error: redb::Error| unavailable(format!("failed to create the store {}", draft.display()), Some(error));
    let database = Builder::new().set_cache_size(cache_bytes).create(draft).map_err(|e| failed(e.into()))?;
    match database.begin_write().map_err(Failure::from).and_then(tables::initialize) {
        Ok(()) => Ok(()),
        Err(Failure::Database(error)) => Err(failed(error)),
        Err(Failure::Unusable(why)) => Err(StoreError::Unusable(why)),
    }
}

/// Opens and verifies. Every page's checksum is looked at: a damaged file must not be found out in the middle of work.
fn open_database(path: &Path, cache_bytes: usize) -> StoreResult<Database> {
    let bytes = std::fs::metadata(path).map_err(|e| io_failed("open", path, e))?.len();
    if bytes == 0 {
        return Err(unusable(path, "is empty, which a store of mosaic never is", RESTORE));
    }
    // redb may panic on a file that was damaged by others; for us that is one more way to say so.
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
        Builder::new().set_cache_size(cache_bytes).set_check_integrity_on_open(true).open(path)
    }));
    let database = opened.map_err(|_| unusable(path, "is damaged", RESTORE))?.map_err(|error| explain(path, error))?;
    match database.begin_read().map_err(Failure::from).and_then(|t| Snapshot::new(t).check_format()) {
        Ok(()) => Ok(database),
        Err(Failure::Database(error)) => Err(unavailable(format!("failed to read {}", path.display()), Some(error))),
        Err(Failure::Unusable(why)) => Err(StoreError::Unusable(format!("{} {why}", path.display()))),
    }
}

/// What a person can do about a file that is damaged or something else.
const RESTORE: &str = "It was not touched. Restore it from a backup, or move it away to start with an empty store";

fn explain(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            let by = holder(path).map_or("another process".to_owned(), |pid| format!("another mosaic (pid {pid})"));
            StoreError::Unusable(format!("{} is used by {by}. Stop that one, or use another --state folder", path.display()))
        }
        DatabaseError::UpgradeRequired(version) => {
            let what = format!("has file format {version}, which this version does not read");
            unusable(path, &what, "It was not touched. Use the version of mosaic that wrote it")
        }
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
            unusable(path, "is not a store of mosaic", RESTORE)
        }
        DatabaseError::Storage(StorageError::Corrupted(what)) => unusable(path, &format!("is damaged ({what})"), RESTORE),
        DatabaseError::RepairAborted => unusable(path, "is damaged and could not be repaired", RESTORE),
        other => unavailable(format!("failed to open the store {}", path.display()), Some(other.into())),
    }
}

/// The process that holds the lock of a file, by the kernel's own list. redb locks with flock, which is listed with a pid (0 for one that
/// cannot be seen from here).
fn holder(path: &Path) -> Option<u32> {
    let inode = std::fs::metadata(path).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // `1: FLOCK ADVISORY WRITE 4711 fe:00:131 0 EOF`
    let of_file = |fields: &Vec<&str>| fields.get(5).and_then(|id| id.rsplit(':').next()) == Some(inode.as_str());
    lines.filter(of_file).find_map(|fields| fields.get(4)?.parse().ok().filter(|pid| *pid > 0))
}

fn unusable(path: &Path, what: &str, advice: &str) -> StoreError {
    StoreError::Unusable(format!("{} {what}. {advice}", path.display()))
}

fn unavailable(what: String, error: Option<redb::Error>) -> StoreError {
    StoreError::Unavailable { what, source: error.map(|e| Box::new(e) as _) }
}

fn io_failed(verb: &str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Unavailable { what: format!("failed to {verb} {}", path.display()), source: Some(Box::new(error)) }
}
