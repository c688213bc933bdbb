//! From the text of a record to a remote: whether it may be used, and its one canonical spelling.
//!
//! A path (or `file://`) counts only beneath the folders that the operator allows, after all links are resolved, and never in the
//! state folder. A `.git` file or `commondir` that leads elsewhere is followed and judged too. `api::address` reads the text itself.

use super::access::Access;
use super::error::WorkspaceError;
use crate::api::address::Address;
use std::path::{Path, PathBuf};

/// A remote that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    /// The canonical spelling; also what `git` is given, literally.
    pub(super) url: String,
    /// The one protocol that `git` may use for it.
    pub(super) protocol: &'static str,
    /// As the record has it, for messages.
    pub(super) given: String,
    /// How it may be reached, for a network address.
    pub(super) access: Access,
}

/// Which paths may be used.
#[derive(Debug, Clone)]
pub(super) struct Allowed {
    /// Canonical folders.
    pub(super) folders: Vec<PathBuf>,
    /// Canonical state folder.
    pub(super) state: PathBuf,
}

/// Reads and judges an address.
pub(super) fn parse(allowed: &Allowed, given: &str) -> Result<Remote, WorkspaceError> {
    match Address::read(given).map_err(|why| bad(given, &why))? {
        Address::Path(path) => local(allowed, given, &path),
        Address::Network { protocol, url } => Ok(Remote { url, protocol, given: given.to_owned(), access: Access::default() }),
    }
}

/// The canonical spelling without looking whether it may be used: for repositories that we have known already.
pub(super) fn spelling(allowed: &Allowed, given: &str) -> String {
    parse(allowed, given).map_or_else(|_| given.trim_start_matches("file://").to_owned(), |remote| remote.url)
}

/// What stands before an `@` may be a password, and this text goes into status, logs and audit.
fn bad(given: &str, why: &str) -> WorkspaceError {
    let repository = match given.rsplit_once('@') {
        Some((before, rest)) => {
            let scheme = before.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
            format!("{scheme}…@{rest}")
        }
        None => given.to_owned(),
    };
    WorkspaceError::BadAddress { repository, why: why.to_owned() }
}

fn local(allowed: &Allowed, given: &str, path: &str) -> Result<Remote, WorkspaceError> {
    if allowed.folders.is_empty() {
        let advice = "no folder is; the operator names some with --local-repos";
        return Err(WorkspaceError::NotAllowed { repository: given.to_owned(), advice: advice.to_owned() });
    }
    let found = Path::new(path).canonicalize().map_err(|source| {
        // Whether a path outside exists is nobody's business.
        match existing_part(Path::new(path)) {
            Some(part) if is_allowed(allowed, &part) => not_found(given, &source.to_string()),
            Some(_) | None => not_allowed(allowed, given),
        }
    })?;
    // `/x/.git` and `/x` are one remote.
    let found = match (found.file_name(), found.parent()) {
        (Some(name), Some(parent)) if name == ".git" => parent.to_owned(),
        _ => found,
    };
    check(allowed, given, &found)?;
    let git_folder = git_folder(given, &found)?;
    check(allowed, given, &git_folder)?;
    if let Ok(common) = std::fs::read_to_string(git_folder.join("commondir")) {
        let common = git_folder.join(common.trim_end()).canonicalize().map_err(|e| not_found(given, &e.to_string()))?;
        check(allowed, given, &common)?;
    } else if !(git_folder.join("objects").is_dir() && git_folder.join("refs").is_dir()) {
        return Err(not_found(given, "it is not a git repository; make one with `git init`"));
    }
    let url = found.to_str().ok_or_else(|| bad(given, "its canonical path is not UTF-8"))?.to_owned();
    Ok(Remote { url, protocol: "file", given: given.to_owned(), access: Access::default() })
}

/// The folder with HEAD: `.git` of a work tree, what a `.git` file names, or the bare repository itself.
fn git_folder(given: &str, found: &Path) -> Result<PathBuf, WorkspaceError> {
    let inner = found.join(".git");
    let target = match std::fs::symlink_metadata(&inner) {
        Ok(seen) if seen.is_file() => {
            let text = std::fs::read_to_string(&inner).map_err(|e| not_found(given, &e.to_string()))?;
            let target = text.strip_prefix("gitdir:").ok_or_else(|| not_found(given, "its .git file names no folder"))?;
            found.join(target.trim())
        }
        Ok(_) => inner,
        Err(_) => found.to_owned(),
    };
    let target = target.canonicalize().map_err(|e| not_found(given, &e.to_string()))?;
    if !target.join("HEAD").is_file() {
        return Err(not_found(given, "it is not a git repository; make one with `git init`"));
    }
    Ok(target)
}

fn check(allowed: &Allowed, given: &str, path: &Path) -> Result<(), WorkspaceError> {
    if is_allowed(allowed, path) { Ok(()) } else { Err(not_allowed(allowed, given)) }
}

/// Judges a canonical path.
fn is_allowed(allowed: &Allowed, path: &Path) -> bool {
    allowed.folders.iter().any(|folder| path.starts_with(folder)) && !path.starts_with(&allowed.state)
}

/// The canonical form of as much of a path as exists.
fn existing_part(path: &Path) -> Option<PathBuf> {
    path.ancestors().find_map(|part| part.canonicalize().ok())
}

fn not_found(given: &str, why: &str) -> WorkspaceError {
    WorkspaceError::NotFound { repository: given.to_owned(), why: why.to_owned() }
}

fn not_allowed(allowed: &Allowed, given: &str) -> WorkspaceError {
    let folders: Vec<_> = allowed.folders.iter().map(|folder| folder.display().to_string()).collect();
    let advice = format!("use one beneath {} (never the state folder), or ask the operator for --local-repos", folders.join(", "));
    WorkspaceError::NotAllowed { repository: given.to_owned(), advice }
}
