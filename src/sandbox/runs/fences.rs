//! The highest epoch and attempts that were seen; what is lower is refused. Kept in the state folder: `runs/epoch-seen`, and
//! `logs/<uid>/attempt-seen`, which outlives the agent's runs.

use super::{Runs, failed};
use crate::api::names::{Attempt, Epoch, RunId, Uid};
use crate::sandbox::SandboxError;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Name of the file with the highest epoch seen, in `runs/`.
const FILE_EPOCH: &str = "epoch-seen";
/// Name of the file with an agent's highest attempt, in its folder of logs.
const FILE_ATTEMPT: &str = "attempt-seen";

/// The highest that was seen.
#[derive(Default)]
pub(crate) struct Fences {
    epoch: Epoch,
    attempts: BTreeMap<Uid, Attempt>,
}

impl Fences {
    pub(super) fn read(state: &Path) -> io::Result<Self> {
        let number = |path: PathBuf| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let epoch = Epoch(number(state.join("runs").join(FILE_EPOCH)).unwrap_or(0));
        let mut fences = Self { epoch, attempts: BTreeMap::new() };
        for entry in fs::read_dir(state.join("logs"))? {
            let entry = entry?;
            let uid = entry.file_name().to_str().and_then(|name| Uid::new(name).ok());
            let attempt = number(entry.path().join(FILE_ATTEMPT)).and_then(|n| u32::try_from(n).ok());
            if let (Some(uid), Some(attempt)) = (uid, attempt) {
                fences.attempts.insert(uid, Attempt(attempt));
            }
        }
        Ok(fences)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A run that was found.
    pub(super) fn adopt(&mut self, run: &RunId, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch);
        let highest = self.attempts.entry(run.uid.clone()).or_default();
        *highest = run.attempt.max(*highest);
    }

    /// Forgets an agent whose folder of logs was removed.
    pub(crate) fn forget(&mut self, uid: &Uid) {
        self.attempts.remove(uid);
    }
}

impl Runs {
    /// Refuses what is older than what was seen, and remembers epoch and attempt before anything is made for them. What could start for an
    /// older attempt lives in this boot only.
    pub(super) fn fence(&self, run: &RunId, epoch: Epoch) -> Result<(), SandboxError> {
        let mut fences = self.fences();
        if epoch < fences.epoch {
            return Err(SandboxError::Fenced(format!("epoch {} of {run} is older than {}", epoch.0, fences.epoch.0)));
        }
        let highest = fences.attempts.get(&run.uid).copied();
        if let Some(highest) = highest.filter(|highest| run.attempt < *highest) {
            return Err(SandboxError::Fenced(format!("attempt {} of {run} is older than {highest}", run.attempt)));
        }
        if epoch > fences.epoch {
            let runs = self.state().join("runs");
            crate::durable::replace(&runs.join(FILE_EPOCH), epoch.0.to_string().as_bytes()).map_err(failed(run, "prepare"))?;
            fences.epoch = epoch;
            self.link.raise_epoch(epoch);
        }
        if highest != Some(run.attempt) {
            let logs = self.state().join("logs").join(run.uid.as_str());
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&logs);
            made.and_then(|()| crate::durable::replace_for_this_boot(&logs.join(FILE_ATTEMPT), run.attempt.to_string().as_bytes()))
                .map_err(failed(run, "prepare"))?;
            fences.attempts.insert(run.uid.clone(), run.attempt);
        }
        Ok(())
    }
}
