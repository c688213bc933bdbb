//! Tool roots: compilers and dependency caches of the host that agents and gates may read.
//!
//! A sandbox sees the host's `/usr` and nothing of anybody's home. Toolchains often live elsewhere (rustup, pyenv, nvm, `/usr/local/go`),
//! so those in use are found at start and mounted read-only under `/mosaic/tools/<name>`. Without network a build also needs its
//! dependencies; the operator names caches for that (`--tool-root DIR`).
//!
//! Only the folders that a tool needs are mounted, never the folder that was named: `~/.cargo` also holds `credentials.toml`, an npm
//! prefix may hold an `npmrc` with a token. Where a tool must write beside what it reads, its own folder in HOME is writable and only the
//! parts that it reads are links into the mount; those links are made inside the sandbox, because HOME is the agent's and a controller that
//! follows its links could be led anywhere.
//!
//! Deliberately not here: the mounting (each sandbox driver does its own), and fetching anything.

mod caches;
mod toolchains;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where tool roots are inside a sandbox.
pub const INSIDE: &str = "/mosaic/tools";
/// Where programs are looked for inside a sandbox after those of the tool roots.
pub const SEARCH_PATH_STANDARD: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most folders that the operator may name: each is some mounts in every sandbox.
pub const EXTRA_ROOTS_MAX: usize = 16;

/// Environment of every sandbox: tools must not try the network that is not there, nor wait for its time-outs.
const OFFLINE: [(&str, &str); 8] = [
    ("CARGO_NET_OFFLINE", "true"),
    ("GOPROXY", "off"),
    ("GOTOOLCHAIN", "local"),
    ("PIP_NO_INDEX", "1"),
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ("npm_config_offline", "true"),
    ("npm_config_audit", "false"),
    ("npm_config_update_notifier", "false"),
];

/// One toolchain or cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolRoot {
    /// Name, unique, a label; its place inside is `/mosaic/tools/<name>`.
    pub name: String,
    /// Folder on the host.
    pub host: PathBuf,
    /// Folders beneath `host` that are mounted, each at the same place beneath the root inside. All exist.
    pub folders: Vec<PathBuf>,
    /// Folders of programs, as paths inside, for PATH.
    pub bin: Vec<PathBuf>,
    /// Environment that makes tools find it.
    pub env: BTreeMap<String, String>,
    /// Links that HOME needs: place beneath HOME, and what it points to inside.
    pub home_links: Vec<(PathBuf, PathBuf)>,
}

impl ToolRoot {
    /// A root of those of the given folders that exist; nothing is mounted yet.
    fn new(name: &str, host: &Path, folders: &[&str]) -> Self {
        let folders = folders.iter().filter(|folder| host.join(folder).is_dir()).map(PathBuf::from).collect();
        let (bin, env, home_links) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { name: name.to_owned(), host: host.to_owned(), folders, bin, env, home_links }
    }

    /// The path inside of something beneath the root.
    fn inside(&self, beneath: impl AsRef<Path>) -> PathBuf {
        Path::new(INSIDE).join(&self.name).join(beneath)
    }

    /// A toolchain: its `bin` goes to PATH.
    fn with_programs(mut self) -> Self {
        self.bin = vec![self.inside("bin")];
        self
    }
}

/// One read-only mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolMount {
    /// Folder on the host.
    pub host: PathBuf,
    /// Absolute path inside the sandbox; its parents may have to be made.
    pub inside: PathBuf,
}

/// Why a folder that the operator named cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// It is not there, or no folder.
    #[error("cannot use --tool-root {path}: it is not a folder that can be read")]
    Unreadable {
        /// As it was given.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is none of the known kinds; mounting it whole could show anything.
    #[error(
        "cannot use --tool-root {0}: it is no Cargo home (registry/), Go path or module cache (cache/download/), npm cache (_cacache/), \
         folder of Python wheels (*.whl) or toolchain (bin/)"
    )]
    Unknown(PathBuf),
    /// There is one of that kind already.
    #[error("cannot use --tool-root {path}: there is another {kind} already, and tools read only one")]
    Twice {
        /// As it was given.
        path: PathBuf,
        /// Which kind.
        kind: String,
    },
    /// More than the limit.
    #[error("{0} times --tool-root is more than the {EXTRA_ROOTS_MAX} that are allowed")]
    TooMany(usize),
}

/// Finds the toolchains in use outside `/usr`, and adds what the operator named. Blocking, some tenths of a second; called at start.
///
/// A toolchain that is not there is left out silently: a gate that needs it says so. What the operator named must be usable.
/// # Errors
/// A named folder is missing, of no known kind, or a second one of its kind.
pub fn resolve(extra: &[PathBuf]) -> Result<Vec<ToolRoot>, ToolsError> {
    // What was named comes first in PATH: it was asked for, the rest was only found.
    let mut roots = named(extra)?;
    for root in toolchains::find() {
        if !roots.iter().any(|named| named.name == root.name) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// Only what the operator named: a container has the programs of its image.
/// # Errors
/// As `resolve`.
pub fn named(extra: &[PathBuf]) -> Result<Vec<ToolRoot>, ToolsError> {
    if extra.len() > EXTRA_ROOTS_MAX {
        return Err(ToolsError::TooMany(extra.len()));
    }
    caches::named(extra)
}

/// All mounts, parents before what is beneath them.
#[must_use]
pub fn mounts(roots: &[ToolRoot]) -> Vec<ToolMount> {
    let mount = |root: &ToolRoot, folder: &PathBuf| ToolMount { host: root.host.join(folder), inside: root.inside(folder) };
    roots.iter().flat_map(|root| root.folders.iter().map(move |folder| mount(root, folder))).collect()
}

/// PATH inside a sandbox that has the host's programs.
#[must_use]
pub fn search_path(roots: &[ToolRoot]) -> String {
    let own = programs(roots);
    if own.is_empty() { SEARCH_PATH_STANDARD.to_owned() } else { format!("{own}:{SEARCH_PATH_STANDARD}") }
}

/// The part of PATH that the tool roots are.
#[must_use]
pub fn programs(roots: &[ToolRoot]) -> String {
    let path: Vec<String> = roots.iter().flat_map(|root| &root.bin).map(|folder| folder.display().to_string()).collect();
    path.join(":")
}

/// Environment inside a sandbox, without PATH.
#[must_use]
pub fn environment(roots: &[ToolRoot]) -> BTreeMap<String, String> {
    let offline = OFFLINE.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    offline.chain(roots.iter().flat_map(|root| root.env.clone())).collect()
}

/// One line per root, for the operator.
#[must_use]
pub fn report(roots: &[ToolRoot]) -> Vec<String> {
    let folders = |root: &ToolRoot| root.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    roots
        .iter()
        .map(|root| format!("{}: {} of {} at {}", root.name, folders(root), root.host.display(), root.inside("").display()))
        .collect()
}
