//! Who can be killed: every run and every agent with a tree that a state folder knows, read from its folders alone. No store, no engine, no
//! controller is asked.

use crate::api::agent::Driver;
use crate::api::names::{RunId, Uid};
use crate::inside::wire::{FILE_CONTAINER, FILE_IDENTITY, FILE_LAUNCHER, FILE_SPEC, FILE_WAIT, Identity};
use crate::sandbox::docker::engine::container_name;
use crate::sandbox::folder::{FILE_PREPARED, FOLDER_PREPARED, MadeContainer, PreparedContainer, RunFolder, StoredSpec};
use crate::workspace::{self, Held};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One run, as its folder tells.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which run.
    pub run: RunId,
    /// `namespace/name` of its agent; the uid where an earlier version wrote none.
    pub agent: String,
    /// Which driver made it.
    pub driver: Driver,
    /// Its folder.
    pub folder: RunFolder,
    /// Its control groups.
    pub groups: Vec<PathBuf>,
    /// Its init as the controller remembers it, where its folder says nothing any more.
    pub remembered: Option<Identity>,
    /// A container that waits for an agent: it is no agent's, and a kill of everything ends it.
    pub is_prepared: bool,
}

impl Target {
    /// init's identity, once it is known. Read anew each time: it may be written while we look.
    /// # Errors
    /// Could not look.
    pub fn identity(&self) -> io::Result<Option<Identity>> {
        Ok(self.folder.read(FILE_IDENTITY)?.or_else(|| self.remembered.clone()))
    }

    /// The launcher's identity (process driver).
    /// # Errors
    /// Could not look.
    pub fn launcher(&self) -> io::Result<Option<Identity>> {
        self.folder.read(FILE_LAUNCHER)
    }

    /// Name of its container.
    #[must_use]
    pub fn container(&self, installation: &str) -> String {
        let made: Option<MadeContainer> = self.folder.read(FILE_CONTAINER).ok().flatten();
        made.map_or_else(|| container_name(installation, &self.run), |made| made.name)
    }

    /// Whether its create was asked for and never answered: something may still come of it. What has no agent executes nothing whatever comes;
    /// a folder that is gone was taken away after its end was seen, or by somebody else, and then the start gate knows no such run.
    /// # Errors
    /// Could not look.
    pub fn is_unanswered(&self) -> io::Result<bool> {
        let is_there = |name: &str| fs::exists(self.folder.path().join(name));
        Ok(!self.is_prepared
            && self.driver == Driver::Docker
            && is_there(FILE_SPEC)?
            && !is_there(FILE_CONTAINER)?
            && !is_there(FILE_IDENTITY)?
            && !is_there(FILE_WAIT)?)
    }

    /// Its agent.
    #[must_use]
    pub fn uid(&self) -> &Uid {
        &self.run.uid
    }
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Targets {
    /// The runs.
    pub runs: Vec<Target>,
    /// Agents with a tree: they may be between two runs, merged or pushed.
    pub held: Vec<Held>,
    /// Folders that hold something and do not say what; why.
    pub unreadable: Vec<String>,
}

/// Reads the runs and trees of a state folder, and what is prepared for some.
/// # Errors
/// The runs cannot be listed: nothing can be said then.
pub fn find(state: &Path) -> io::Result<Targets> {
    // Trees that cannot be listed keep nothing alive that runs.
    let (held, unreadable) = workspace::held(state).unwrap_or_else(|e| (Vec::new(), vec![format!("the trees cannot be listed: {e}")]));
    let mut found = Targets { runs: Vec::new(), held, unreadable };
    // What is prepared first: it becomes a run's, and is found there then.
    for (folder, read) in [(FOLDER_PREPARED, read_prepared as fn(PathBuf) -> _), ("runs", read)] {
        let entries = match fs::read_dir(state.join(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            // What is being removed had been seen dead.
            let is_run = entry.file_type()?.is_dir() && !entry.file_name().as_encoded_bytes().starts_with(b".");
            if is_run {
                match read(entry.path()) {
                    Ok(Some(target)) => found.runs.push(target),
                    Ok(None) => {}
                    Err(why) => found.unreadable.push(format!("{}: {why}", entry.path().display())),
                }
            }
        }
    }
    Ok(found)
}

/// `None`: nothing was made for it yet, or it has just become a run's.
fn read_prepared(path: PathBuf) -> Result<Option<Target>, String> {
    let folder = RunFolder::at(path);
    let prepared: Option<PreparedContainer> = folder.read(FILE_PREPARED).map_err(|e| e.to_string())?;
    let groups = folder.groups().map_err(|e| e.to_string())?;
    Ok(prepared.map(|PreparedContainer { run, .. }| Target {
        agent: run.uid.to_string(),
        run,
        driver: Driver::Docker,
        folder,
        groups,
        remembered: None,
        is_prepared: true,
    }))
}

/// `None`: a folder without an intent, for which nothing was started.
fn read(path: PathBuf) -> Result<Option<Target>, String> {
    let folder = RunFolder::at(path);
    let spec: Option<StoredSpec> = folder.read(FILE_SPEC).map_err(|e| e.to_string())?;
    let Some(spec) = spec else {
        let holds_something = folder.is_held().map_err(|e| e.to_string())?;
        return if holds_something { Err("something runs there, and its intent cannot be read".to_owned()) } else { Ok(None) };
    };
    let mut groups = spec.launch.limits.groups;
    groups.extend(folder.groups().map_err(|e| e.to_string())?);
    let agent = if spec.agent.is_empty() { spec.run.uid.to_string() } else { spec.agent };
    Ok(Some(Target { run: spec.run, agent, driver: spec.driver, folder, groups, remembered: None, is_prepared: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::names::{Attempt, Role};

    #[test]
    fn a_create_is_unanswered_until_its_folder_says_more_or_is_gone() {
        let state = tempfile::tempdir().unwrap();
        let run = RunId { uid: Uid::new("unanswered-01").unwrap(), attempt: Attempt(1), role: Role::Agent };
        let folder = RunFolder::of(state.path(), &run);
        folder.make(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()).unwrap();
        folder.write(FILE_SPEC, &"read only by others").unwrap();
        let target = Target {
            agent: run.uid.to_string(),
            run,
            driver: Driver::Docker,
            folder: folder.clone(),
            groups: Vec::new(),
            remembered: None,
            is_prepared: false,
        };
        assert!(target.is_unanswered().unwrap());
        folder.write(FILE_CONTAINER, &"an answer").unwrap();
        assert!(!target.is_unanswered().unwrap());
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(!target.is_unanswered().unwrap(), "its end was seen, and the folder removed, while the engine was asked");
    }
}
