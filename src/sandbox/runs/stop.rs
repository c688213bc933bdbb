//! Ending a sandbox and looking that it is gone, and taking an ended one away.

use super::{LOOK_PAUSE, REMOVING, Run, Runs, failed};
use crate::api::names::RunId;
use crate::beneath;
use crate::inside::wire::{FILE_SPEC, FILE_STOPPED, Identity};
use crate::plan::observed::SandboxState;
use crate::sandbox::folder::{StoredSpec, short};
use crate::sandbox::kill::{self, Life};
use crate::sandbox::{SandboxError, cgroup};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a launcher may take to write its last word after init is gone.
pub(crate) const LAUNCHER_PATIENCE: Duration = Duration::from_secs(1);

impl Runs {
    /// SIGKILLs everything of a run and looks that it is gone.
    pub(crate) fn stop(&self, id: &RunId) -> Result<(), SandboxError> {
        let Some(run) = self.find(id) else { return Ok(()) };
        if run.ended.get().is_some() {
            return Ok(());
        }
        let until = Instant::now() + self.config.stop_timeout;
        // Before the kill: from now on nothing of this run is granted, whatever is on its way.
        let buried = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run.folder.path())
            .and_then(|()| crate::durable::replace(&run.folder.path().join(FILE_STOPPED), b""));
        self.link.say_stop(id);
        // Behind the tombstone nothing is handed over any more: who still holds the lock lives.
        self.link.let_go(id);
        let outcome = self.kill_until(&run, until);
        // A tombstone that could not be written matters only while something lives.
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(SandboxError::Unverified { run: id.clone(), why }),
            Err(e) => {
                let why = buried.err().map_or_else(|| e.to_string(), |b| format!("{e}; no tombstone either: {b}"));
                Err(SandboxError::Unverified { run: id.clone(), why })
            }
        }
    }

    /// Kills until nothing is left. `None`: seen gone; else what was still there when the time was over.
    pub(super) fn kill_until(&self, run: &Run, until: Instant) -> io::Result<Option<String>> {
        let maker = self.maker(run.driver)?;
        let mut init_gone_at: Option<Instant> = None;
        // By every path at once. Where init is in none of the groups it goes with its namespace below.
        maker.strike(run);
        cgroup::kill(&groups_of(run)?);
        loop {
            let groups = groups_of(run)?;
            if let Some(identity) = run.identity()? {
                if let Some(left) = kill_namespace(&identity, &groups, until)? {
                    return Ok(Some(left));
                }
                init_gone_at.get_or_insert_with(Instant::now);
            }
            if !run.folder.is_held()? {
                // init's identity may have been written after we looked, but not after the lock was free.
                match run.identity()? {
                    Some(identity) if kill::look(&identity)? == Life::Alive => continue,
                    Some(_) => return Ok(None),
                    None if !maker.may_come(run)? => return Ok(None),
                    None => {}
                }
            }
            maker.kill_starter(run, init_gone_at.map(|at| at.elapsed()))?;
            if Instant::now() >= until {
                return Ok(Some(maker.still(run)));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Takes an ended run away.
    pub(crate) fn remove(&self, id: &RunId) -> Result<(), SandboxError> {
        let Some(run) = self.find(id) else { return Ok(()) };
        if run.is_being_made() {
            return Err(failed(id, "remove")(io::Error::other("it is being made")));
        }
        let until = Instant::now() + LAUNCHER_PATIENCE;
        loop {
            let seen = self.look(&run).map_err(failed(id, "look at"))?;
            let held = run.folder.is_held().map_err(failed(id, "look at"))?;
            match seen.state {
                SandboxState::Ended(_) if !held => break,
                SandboxState::Ended(_) if Instant::now() < until => std::thread::sleep(LOOK_PAUSE),
                _ => return Err(failed(id, "remove")(io::Error::other("it still runs: stop it first"))),
            }
        }
        let cleared = self.maker(run.driver).and_then(|maker| maker.clear(&run));
        cleared.map_err(failed(id, "remove what was made for"))?;
        self.link.forget(id);
        let runs = self.state().join("runs");
        let away = format!("{REMOVING}{}", short(id));
        let moved = match fs::rename(run.folder.path(), runs.join(&away)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        moved.and_then(|()| beneath::remove_all(&runs, &away)).map_err(failed(id, "remove"))?;
        self.known().remove(id);
        Ok(())
    }
}

/// The control groups that a run was made with, wherever this program is now.
pub(crate) fn groups_of(run: &Run) -> io::Result<Vec<PathBuf>> {
    let mut groups = run.folder.read::<StoredSpec>(FILE_SPEC)?.map(|spec| spec.launch.limits.groups).unwrap_or_default();
    groups.extend(run.folder.groups()?);
    Ok(groups)
}

/// SIGKILLs a PID 1 and looks that its whole namespace is empty. `None`: seen; else what is left.
fn kill_namespace(identity: &Identity, groups: &[PathBuf], until: Instant) -> io::Result<Option<String>> {
    let Some(handle) = kill::handle(identity)? else { return Ok(None) };
    // Held before the kill: a free inode is given to the next namespace at once.
    let held = kill::hold_namespace(identity)?;
    kill::kill(&handle)?;
    // What is frozen dies when it is thawed.
    cgroup::thaw(groups);
    if !kill::wait_gone(&handle, until)? {
        return Ok(Some(format!("pid {} still lives", identity.pid)));
    }
    if held.is_none() {
        return Ok(None);
    }
    loop {
        let left = kill::members(identity.pid_namespace)?;
        if left.is_empty() {
            return Ok(None);
        }
        if Instant::now() >= until {
            return Ok(Some(format!("{} processes of its namespace still live", left.len())));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}
