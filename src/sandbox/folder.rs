//! The folder of one run, `runs/<short>/`: what is in it, and how it is written so that a crash leaves it whole or absent.
//!
//! Its files are the only memory that the driver has across a restart; `inside::wire` names and describes them.

use crate::api::agent::Driver;
use crate::api::names::{Epoch, RunId, Uid};
use crate::api::validate::Limits;
use crate::durable;
use crate::inside::system;
use crate::inside::wire::{self, DRAFT, Identity, LaunchSpec};
use crate::sandbox::runs::watchdog::WatchSpec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Largest file that is read back.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What `spec.json` holds: the intent, and everything to adopt the run again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredSpec {
    /// Which run.
    pub run: RunId,
    /// Leader epoch that decided it.
    pub epoch: Epoch,
    /// Installation that it belongs to.
    pub installation: String,
    /// Which driver makes it; never `Auto`.
    #[serde(default = "driver_before")]
    pub driver: Driver,
    /// `namespace/name` of the agent; empty where an earlier version wrote it.
    #[serde(default)]
    pub agent: String,
    /// What is launched.
    pub launch: LaunchSpec,
    /// What is watched while it runs.
    #[serde(default)]
    pub watch: WatchSpec,
    /// Limits that were asked for.
    #[serde(default)]
    pub limits: Limits,
    /// What the engine is asked for, where there is one.
    #[serde(default)]
    pub container: Option<ContainerSpec>,
}

/// What an engine is asked for beyond what init is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSpec {
    /// Image, by name.
    pub image: String,
    /// Runtime; `None`: the engine's default.
    pub runtime: Option<String>,
}

/// What `container.json` holds: the engine has answered the create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeContainer {
    /// The engine's id.
    pub id: String,
    /// Name.
    pub name: String,
}

/// Log of a run in a folder that was made ahead (`runs::blank`); it moves to the agent's logs.
pub(super) const FILE_LOG: &str = "log";

/// Folder of the state folder with what is prepared ahead, and file in each folder there that says what it is.
pub const FOLDER_PREPARED: &str = "prepared";
/// See [`FOLDER_PREPARED`].
pub const FILE_PREPARED: &str = "prepared.json";

/// What `prepared.json` holds. The folder of one that is claimed becomes that of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedContainer {
    /// The run that its labels name; there never is one.
    pub run: RunId,
    /// Mark of the state folder that it was made from.
    pub home: String,
}

/// What made runs before there was a choice.
fn driver_before() -> Driver {
    Driver::Process
}

/// What the controller keeps of a granted run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// SHA-256 of init's secret, hexadecimal: enough to know it again, useless to whoever reads it.
    pub secret_hash: String,
    /// When it was granted, as Unix time.
    pub granted_at_millis: i64,
    /// What init saw in force.
    pub isolation: Vec<String>,
}

/// Hexadecimal SHA-256.
#[must_use]
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder of a run in a state folder; nothing is made.
    #[must_use]
    pub fn of(state: &Path, run: &RunId) -> Self {
        Self { path: state.join("runs").join(short(run)) }
    }

    /// A folder that was found.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it with its subfolders. `out` belongs to the sandbox's user.
    /// # Errors
    /// The disk refuses.
    pub fn make(&self, uid: u32, gid: u32) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        // The modes below are seen from inside only: nobody else passes the folders above.
        for (name, mode) in [(wire::FOLDER_CONTROL, 0o755), (wire::FOLDER_LINK, 0o755), (wire::FOLDER_OUT, 0o700)] {
            let path = self.path.join(name);
            DirBuilder::new().recursive(true).create(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        std::os::unix::fs::chown(self.path.join(wire::FOLDER_OUT), Some(uid), Some(gid))
    }

    /// Reads a file of JSON; `None` when it is absent or was cut off by a crash.
    /// # Errors
    /// Could not look.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let mut bytes = Vec::new();
        match File::open(self.path.join(name)) {
            Ok(file) => file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Writes a file of JSON: whole or absent after a crash of ours. After a loss of power nothing of the run lives, and what was cut off
    /// counts as absent.
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let path = self.path.join(name);
        durable::replace_for_this_boot_in(&self.path.join(format!("{name}{DRAFT}")), &path, &serde_json::to_vec(value)?)
    }

    /// The same for what must outlive a loss of power: a pod lives on another host.
    /// # Errors
    /// The disk refuses.
    pub fn write_durably(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        durable::replace(&self.path.join(name), &serde_json::to_vec(value)?)
    }

    /// Whether the run never starts (again): it was stopped, or nothing came of it.
    /// # Errors
    /// Could not look.
    pub fn is_stopped(&self) -> io::Result<bool> {
        fs::exists(self.path.join(wire::FILE_STOPPED))
    }

    /// Its tombstone: why nothing ever came of it, or empty where it was stopped. `None`: it has none.
    /// # Errors
    /// Could not look.
    pub fn tombstone(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.path.join(wire::FILE_STOPPED)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// The lock file, made if absent.
    /// # Errors
    /// The disk refuses.
    pub fn open_lock(&self) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(self.path.join(wire::FILE_LOCK))
    }

    /// Whether the launcher or init lives: one of them holds the lock.
    /// # Errors
    /// Could not look.
    pub fn is_held(&self) -> io::Result<bool> {
        match File::open(self.path.join(wire::FILE_LOCK)) {
            Ok(file) => system::is_locked(file.as_fd()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Control groups of its processes, as they were found when they had begun.
    /// # Errors
    /// Could not look.
    pub fn groups(&self) -> io::Result<Vec<PathBuf>> {
        let found: Option<Vec<PathBuf>> = self.read(wire::FILE_GROUPS)?;
        Ok(found.unwrap_or_default())
    }

    /// Identity of init, once it is written.
    /// # Errors
    /// Could not look.
    pub fn identity(&self) -> io::Result<Option<Identity>> {
        self.read(wire::FILE_IDENTITY)
    }
}

/// Name of a run's folder: short, for the paths of sockets, and the same for ever.
#[must_use]
pub fn short(run: &RunId) -> String {
    let json = serde_json::to_vec(run).expect("a run is plain data");
    hash(&json)[..16].to_owned()
}

/// Path of the log of a run.
#[must_use]
pub fn log_path(state: &Path, uid: &Uid, short: &str) -> PathBuf {
    state.join("logs").join(uid.as_str()).join(format!("{short}.log"))
}
