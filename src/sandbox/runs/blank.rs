//! Folders of runs made ahead: making a file costs a file system many times what writing or renaming one does (`docs/performance.md`), and
//! a run has a dozen of them. So they are made while nobody waits, and a start renames.
//!
//! A blank has what every run has, and drafts of the files that are written before its command executes. It belongs to nobody; what a
//! controller left behind is removed at the next start. Where there is none a run's folder is made as if there were no such thing.

use crate::beneath;
use crate::inside::wire::{DRAFT, FILE_EXIT, FILE_IDENTITY, FILE_LAUNCHER, FILE_SESSION, FILE_SPEC, FILE_WAIT};
use crate::sandbox::SandboxIds;
use crate::sandbox::folder::{FILE_LOG, RunFolder};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Folder of the state folder where they are.
const FOLDER: &str = "blank";
/// How many are kept ready: a wave of starts that comes out of nothing.
const KEPT: usize = 4;
/// Files written before the command executes, or at its end.
const WRITTEN: [&str; 5] = [FILE_SPEC, FILE_LAUNCHER, FILE_IDENTITY, FILE_SESSION, FILE_WAIT];

/// What is ready.
pub(super) struct Blanks {
    folder: PathBuf,
    ids: SandboxIds,
    ready: Mutex<Vec<PathBuf>>,
    is_filling: AtomicBool,
}

impl Blanks {
    /// Removes what is there from before.
    /// # Errors
    /// The disk refuses.
    pub(super) fn open(state: &Path, ids: SandboxIds) -> io::Result<Arc<Self>> {
        beneath::remove_all(state, FOLDER)?;
        let folder = state.join(FOLDER);
        DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Arc::new(Self { folder, ids, ready: Mutex::default(), is_filling: AtomicBool::new(false) }))
    }

    /// Makes one the folder of a run that has none; false where that is not to be had.
    pub(super) fn claim(&self, run: &RunFolder) -> bool {
        let blank = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        blank.is_some_and(|blank| {
            // It refuses where there is a folder with anything in it.
            let claimed = fs::rename(&blank, run.path()).is_ok();
            if !claimed {
                let _ = fs::remove_dir_all(&blank);
            }
            claimed
        })
    }

    /// Makes what is missing, beside the caller. A disk that refuses is the next start's to report.
    pub(super) fn fill(self: &Arc<Self>) {
        if self.is_filling.swap(true, Ordering::SeqCst) {
            return;
        }
        let filling = self.clone();
        let spawned = std::thread::Builder::new().name("mosaic-blanks".to_owned()).spawn(move || {
            if let Err(error) = filling.make_missing() {
                tracing::debug!(%error, "could not make a folder of a run ahead");
            }
            filling.is_filling.store(false, Ordering::SeqCst);
        });
        if spawned.is_err() {
            self.is_filling.store(false, Ordering::SeqCst);
        }
    }

    fn make_missing(&self) -> io::Result<()> {
        while self.ready.lock().unwrap_or_else(PoisonError::into_inner).len() < KEPT {
            let path = self.folder.join(uuid::Uuid::new_v4().simple().to_string());
            self.make(&path).inspect_err(|_| {
                let _ = fs::remove_dir_all(&path);
            })?;
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        }
        Ok(())
    }

    fn make(&self, path: &Path) -> io::Result<()> {
        let folder = RunFolder::at(path.to_owned());
        folder.make(self.ids.uid, self.ids.gid)?;
        folder.open_lock()?;
        let file = |name: &str| File::options().write(true).create_new(true).mode(0o600).open(path.join(name)).map(drop);
        file(FILE_LOG)?;
        file(FILE_EXIT)?;
        WRITTEN.iter().try_for_each(|name| file(&format!("{name}{DRAFT}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::names::{Attempt, Role, RunId, Uid};
    use crate::sandbox::SANDBOX_UID;
    use std::os::unix::fs::MetadataExt;

    fn run(name: &str) -> RunId {
        RunId { uid: Uid::new(format!("{name}-run")).unwrap(), attempt: Attempt(1), role: Role::Agent }
    }

    fn with_one(state: &Path) -> Arc<Blanks> {
        fs::create_dir(state.join("runs")).unwrap();
        let blanks = Blanks::open(state, SandboxIds::of(SANDBOX_UID)).unwrap();
        blanks.make_missing().unwrap();
        blanks
    }

    #[test]
    fn a_claimed_folder_is_as_one_that_was_made() {
        let state = tempfile::tempdir().unwrap();
        let blanks = with_one(state.path());
        let (claimed, made) = (RunFolder::of(state.path(), &run("claimed")), RunFolder::of(state.path(), &run("made")));
        assert!(blanks.claim(&claimed));
        made.make(blanks.ids.uid, blanks.ids.gid).unwrap();
        for name in ["", "control", "link", "out"] {
            let look =
                |folder: &RunFolder| fs::metadata(folder.path().join(name)).map(|found| (found.mode(), found.uid(), found.gid())).unwrap();
            assert_eq!(look(&claimed), look(&made), "{name}");
        }
        // What was made ahead says nothing yet.
        assert!(claimed.identity().unwrap().is_none() && !claimed.is_held().unwrap() && !claimed.is_stopped().unwrap());
        claimed.write(FILE_SPEC, &7).unwrap();
        claimed.write(FILE_SPEC, &8).unwrap();
        assert_eq!(claimed.read::<u32>(FILE_SPEC).unwrap(), Some(8));
        assert!(!claimed.path().join(format!("{FILE_SPEC}{DRAFT}")).exists(), "it was used up");
    }

    #[test]
    fn a_tombstone_is_never_covered() {
        let state = tempfile::tempdir().unwrap();
        let blanks = with_one(state.path());
        let stopped = RunFolder::of(state.path(), &run("stopped"));
        fs::create_dir(stopped.path()).unwrap();
        fs::write(stopped.path().join("stopped"), "").unwrap();
        assert!(!blanks.claim(&stopped));
        assert!(stopped.is_stopped().unwrap());
        assert_eq!(fs::read_dir(&blanks.folder).unwrap().count(), KEPT - 1, "what was refused is gone");
    }

    #[test]
    fn what_an_earlier_controller_left_is_removed() {
        let state = tempfile::tempdir().unwrap();
        drop(with_one(state.path()));
        let blanks = Blanks::open(state.path(), SandboxIds::of(SANDBOX_UID)).unwrap();
        assert_eq!(fs::read_dir(&blanks.folder).unwrap().count(), 0);
        assert!(!blanks.claim(&RunFolder::of(state.path(), &run("early"))), "there is none");
    }
}
