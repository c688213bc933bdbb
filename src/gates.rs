//! Gates: what must pass before a commit may be pushed, and what a finished gate run says.
//!
//! Flow: profile and `required` -> wanted names; the gates file of the *trusted* branch, or else what that branch is -> defined gates;
//! both -> the set that must pass, each gate after those that it needs. What the end of a gate's run says is `plan::gates::judge`'s.
//! An agent never writes the trusted branch, so it cannot choose its own judges.
//!
//! Pure: the trusted tree is read through a function that the caller gives; nothing here touches a disk, a clock or a process. It does
//! not run gates (the plan does, each in a sandbox of its own). What an agent's change does to the judges themselves is `tamper`'s.
//! What is not built yet (coverage, review, the 50 % rule, `[prepare]`) is refused with a text, never passed over.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod detect;
mod file;
mod select;
pub mod tamper;

use crate::api::agent::{GateDefinition, GateProfile};
use crate::api::condition::reason;
use crate::api::names::GateName;

/// Where a repository defines its gates; read from the trusted branch only.
pub const GATES_FILE: &str = ".mosaic/gates.toml";
/// Largest gates file, in bytes: a page of commands is a tenth of it.
pub const GATES_FILE_BYTES_MAX: usize = 64 * 1024;
/// Most gates in a file: each runs in a sandbox of its own, for each commit.
pub const GATES_MAX: usize = 32;
/// Longest command of a gate, in bytes; more belongs into a script.
pub const COMMAND_BYTES_MAX: usize = 8 * 1024;
/// Largest manifest (Cargo.toml, package.json, …) that is looked into, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Time limit of a gate that states none, in seconds.
pub const TIMEOUT_SECONDS_DEFAULT: u32 = 10 * 60;
/// Longest time limit that a gate may state, in seconds.
pub const TIMEOUT_SECONDS_MAX: u32 = 2 * 60 * 60;
/// Names with a meaning of their own. A gate of such a name provides it; so does one that lists it in `provides`.
pub const RESERVED: [&str; 5] = ["typecheck", "lint", "tests", "coverage", "build"];
/// Names that no command can provide: they need parts that are not built yet.
const NOT_BUILT: [&str; 2] = ["coverage", "review"];

/// Reads a file of a tree by its path; `None`: there is no such file; the error says why it could not be read.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>, String>;

/// The trusted branch's commit, as far as gates are concerned.
pub struct TrustedTree<'a> {
    /// Names of the entries in its root folder.
    pub root_files: &'a [String],
    /// Content of a file by its path.
    pub read: ReadFile<'a>,
}

/// The gates that must pass.
#[derive(Debug, Clone, PartialEq)]
pub struct GateSet {
    /// `.mosaic/gates.toml`, or what they were detected from.
    pub source: String,
    /// Only the required ones and what they need, each after those that it needs. Never empty.
    pub gates: Vec<GateDefinition>,
}

/// Why there is no set of gates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GatesError {
    /// One of `condition::reason`: `InvalidGates`, `GateMissing`, `NotSupported`, or `WorkspaceFailed` when the tree could not be read.
    pub reason: &'static str,
    /// For people: what is wrong, where, and what to do.
    pub message: String,
}

impl GatesError {
    /// Whether the tree could not be read: nobody's mistake, worth another try. Everything else waits for a changed record or branch.
    #[must_use]
    pub fn is_infrastructure(&self) -> bool {
        self.reason == reason::WORKSPACE_FAILED
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self { reason: reason::INVALID_GATES, message: message.into() }
    }

    fn missing(message: impl Into<String>) -> Self {
        Self { reason: reason::GATE_MISSING, message: message.into() }
    }

    fn not_supported(message: impl Into<String>) -> Self {
        Self { reason: reason::NOT_SUPPORTED, message: message.into() }
    }
}

/// One gate as a file or a manifest defines it, before anything was selected.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gate {
    name: GateName,
    command: String,
    timeout_seconds: u32,
    /// Sorted, without doubles.
    needs: Vec<GateName>,
    provides: Vec<GateName>,
}

impl Gate {
    fn provides(&self, wanted: &GateName) -> bool {
        self.name == *wanted || self.provides.contains(wanted)
    }
}

/// Returns the gates that `profile` and `required` ask for, as the trusted branch defines them.
///
/// With a gates file the file alone counts: what it leaves out is missing, not guessed. Every gate that provides a wanted name is
/// required, so that `provides = ["tests"]` on two gates means both.
/// # Guarantees
/// The set is not empty, holds every wanted name, and each gate comes after those that it needs. Same input, same set.
/// # Errors
/// `InvalidGates` (with the line), `GateMissing` (with what exists and how to add it), `NotSupported`; or the tree could not be read.
pub fn gate_set(tree: &TrustedTree<'_>, profile: GateProfile, required: &[GateName]) -> Result<GateSet, GatesError> {
    let wanted = wanted_names(profile, required)?;
    let (source, gates) = match read_capped(tree, GATES_FILE, GATES_FILE_BYTES_MAX)? {
        Some(bytes) => (GATES_FILE.to_owned(), file::parse(&bytes)?.gates),
        None => detect::detect(tree)?,
    };
    Ok(GateSet { gates: select::select(&source, &gates, &wanted)?, source })
}

/// The globs that a gates file protects; none without a file.
/// # Errors
/// The file is wrong.
pub fn protected(content: Option<&[u8]>) -> Result<Vec<String>, GatesError> {
    Ok(content.map(file::parse).transpose()?.map(|file| file.protect).unwrap_or_default())
}

/// Names that must be provided, without doubles: those of the profile first.
fn wanted_names(profile: GateProfile, required: &[GateName]) -> Result<Vec<GateName>, GatesError> {
    let of_profile: &[&str] = match profile {
        GateProfile::Minimal => &["tests"],
        GateProfile::Standard => &["tests", "lint"],
        GateProfile::Strict => {
            return Err(GatesError::not_supported(
                "spec.gates.profile `strict` needs the coverage gate, the AI review and the 50 % rule, which this version does not have; \
                 use `standard` with `required: [typecheck, build]` for the part of it that exists",
            ));
        }
    };
    let mut wanted: Vec<GateName> = of_profile.iter().map(|name| GateName::new(*name).expect("the profile's names are labels")).collect();
    for name in required {
        if NOT_BUILT.contains(&name.as_str()) {
            return Err(GatesError::not_supported(format!(
                "spec.gates.required names `{name}`, which this version does not have; take it out of the list"
            )));
        }
        if !wanted.contains(name) {
            wanted.push(name.clone());
        }
    }
    Ok(wanted)
}

/// Reads a file of the trusted tree and refuses one that is larger than `bytes_max`.
fn read_capped(tree: &TrustedTree<'_>, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, GatesError> {
    let content = (tree.read)(path).map_err(|why| GatesError {
        reason: reason::WORKSPACE_FAILED,
        message: format!("cannot read {path} of the trusted branch: {why}"),
    })?;
    match content {
        Some(bytes) if bytes.len() > bytes_max => {
            Err(GatesError::invalid(format!("{path} has {} bytes, more than the {bytes_max} that are read", bytes.len())))
        }
        other => Ok(other),
    }
}
