//! The drivers' own test: a tiny sandbox, made as all are, tells from inside what is in force.
//!
//! The docker driver's also proves that the engine sees our files where we do: its tree holds a number that only we know, and another one
//! in a file system that is mounted over it. What comes out says whether the folder is shared, and whether mounts of ours are seen.

use super::Inner;
use crate::api::agent::Driver;
use crate::api::names::{Attempt, Role, RunId, Uid};
use crate::api::validate::Limits;
use crate::cleanups::Stray;
use crate::inside::wire::INIT_INSIDE;
use crate::plan::observed::{EndCause, RunEnd, SandboxState};
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::runs::{LOOK_PAUSE, Run};
use crate::sandbox::{Refusal, RunSpec, SandboxError, limits};
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// The agent that the tests run for.
const SELF_TEST_UID: &str = "driver-self-test";
/// File of the number, in the tree.
pub const FILE_NONCE: &str = "nonce";

impl Inner {
    /// Tests a driver unless that was done, for a run that asks and the image that it will have.
    pub(super) fn make_ready(&self, driver: Driver, asked: Option<(&Arc<Run>, &str)>) -> Result<(), SandboxError> {
        if self.verified().contains_key(&driver) {
            return Ok(());
        }
        // A pod looks at itself from inside before each start; a test would only be one more.
        let Some(testing) = self.testing.get(&driver) else { return Ok(()) };
        let image = match (driver, asked) {
            // Before the lock: a pull takes its time.
            (Driver::Docker, Some((run, image))) => Some(self.docker.provide_for(run, image)?.name),
            // Nothing to make a container of: the first run brings its own, or says that there is none.
            (Driver::Docker, None) if self.docker.look_at_engine().is_ok() && !self.docker.has_default_image()? => return Ok(()),
            _ => None,
        };
        let _testing = testing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.verified().contains_key(&driver) {
            return Ok(());
        }
        if driver == Driver::Docker {
            self.docker.look_at_engine()?;
        }
        let isolation = self.try_out(driver, image)?;
        self.verified().insert(driver, isolation);
        Ok(())
    }

    fn try_out(&self, driver: Driver, image: Option<String>) -> Result<Vec<String>, SandboxError> {
        let maker = self.runs.maker(driver).map_err(|e| SandboxError::Unsupported(e.to_string()))?;
        let refusals = limits::refusals(driver, &maker.means(), &self.runs.config.allow_missing);
        if !refusals.is_empty() {
            return Err(SandboxError::Unsupported(refusals.join("; ")));
        }
        let tree = Tree::make(&self.runs.config, driver == Driver::Docker).map_err(cannot)?;
        let (end, isolation) = self.run_test(driver, image, &tree)?;
        match end.map(|end| (end.cause, end.output_tail)) {
            Some((EndCause::Exited(0), output)) if driver == Driver::Docker => {
                self.docker.set_proven(tree.judge(&output, self.docker.host())?);
                Ok(isolation)
            }
            Some((EndCause::Exited(0), _)) => Ok(isolation),
            Some((EndCause::NotStarted(text) | EndCause::CannotExecute(text), _)) => {
                let name = format!("{driver:?}").to_lowercase();
                Err(SandboxError::Unsupported(format!("this host cannot make the {name} sandbox: {text}")))
            }
            other => Err(SandboxError::Unsupported(format!("the sandbox's own test ended with {other:?}"))),
        }
    }

    /// Runs the test's sandbox to its end and takes it away.
    fn run_test(&self, driver: Driver, image: Option<String>, tree: &Tree) -> Result<(Option<RunEnd>, Vec<String>), SandboxError> {
        let runs = &self.runs;
        let uid = Uid::new(SELF_TEST_UID).expect("a valid uid");
        let run = RunId { uid: uid.clone(), attempt: Attempt(1), role: Role::Agent };
        let args = match driver {
            Driver::Docker => vec![INIT_INSIDE.to_owned(), "prove".to_owned()],
            Driver::Auto | Driver::Process | Driver::Pod => vec!["/bin/true".to_owned()],
        };
        runs.stop(&run)?;
        runs.remove(&run)?;
        let epoch = runs.fences().epoch();
        let spec = RunSpec {
            run: run.clone(),
            epoch,
            driver,
            image,
            runtime_class: None,
            agent: SELF_TEST_UID.to_owned(),
            tree: tree.path.clone(),
            home: None,
            base_objects: None,
            task: None,
            args,
            env: BTreeMap::new(),
            deadline: Some(runs.config.start_timeout),
            limits: Limits { cpu_millis: 1000, memory_bytes: 64 << 20, pids_max: 16, disk_bytes: 1 << 20 },
        };
        let outcome = runs.ensure(&spec, driver, &|_| Ok(())).and_then(|()| self.wait_ended(&run));
        runs.stop(&run)?;
        runs.remove(&run)?;
        let logs = runs.state().join("logs").join(SELF_TEST_UID);
        match fs::remove_dir_all(&logs) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(cannot(e)),
            _ => {}
        }
        runs.fences().forget(&uid);
        outcome
    }

    fn wait_ended(&self, run: &RunId) -> Result<(Option<RunEnd>, Vec<String>), SandboxError> {
        let until = Instant::now() + self.runs.config.start_timeout;
        loop {
            for seen in self.runs.observe(Some(&run.uid))? {
                if let SandboxState::Ended(end) = seen.state {
                    return Ok((Some(end), seen.isolation));
                }
            }
            if Instant::now() >= until {
                return Ok((None, Vec::new()));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}

fn tree_in(state: &Path) -> PathBuf {
    state.join("self-test-tree")
}

/// Takes away what a test that was broken off has left; what that was.
pub(super) fn clear_left(state: &Path) -> Vec<(Stray, PathBuf)> {
    let path = tree_in(state);
    let mut left = Vec::new();
    while rustix::mount::unmount(&path, UnmountFlags::DETACH).is_ok() {
        left.push((Stray::Mount, path.clone()));
    }
    if fs::remove_dir_all(&path).is_ok() {
        left.push((Stray::Folder, path));
    }
    left
}

fn cannot(e: io::Error) -> SandboxError {
    SandboxError::Unsupported(format!("the sandbox's own test failed: {e}"))
}

/// The tree of a test, with a number in it, and another one in what is mounted over it where we may mount; gone with this value.
struct Tree {
    path: PathBuf,
    beneath: String,
    /// What only those see who see our mounts.
    above: Option<String>,
}

impl Tree {
    fn make(config: &SandboxConfig, with_mount: bool) -> io::Result<Self> {
        let path = tree_in(&config.state);
        clear_left(&config.state);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let mut tree = Self { beneath: put_nonce(&path)?, above: None, path };
        // Who may not mount has no mounts that must be seen.
        if with_mount
            && rustix::mount::mount("mosaic", &tree.path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755,size=64k").is_ok()
        {
            tree.above = Some(put_nonce(&tree.path)?);
        }
        Ok(tree)
    }

    /// Whether our mounts are seen by who printed this.
    fn judge(&self, output: &str, host: &str) -> Result<bool, SandboxError> {
        let printed = output.trim();
        if self.above.as_deref().unwrap_or(&self.beneath) == printed {
            return Ok(true);
        }
        if self.beneath == printed {
            return Ok(false);
        }
        Err(SandboxError::Refused { why: Refusal::FilesNotShared, message: crate::sandbox::docker::not_shared(host, &self.path) })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn put_nonce(folder: &Path) -> io::Result<String> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let path = folder.join(FILE_NONCE);
    fs::write(&path, &nonce)?;
    // Read inside by the sandbox's user.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(nonce)
}
