//! From the text of a record to a remote: what it is, whether it may be used, and its one canonical spelling.
//!
//! A path (or `file://`) counts only beneath the folders that the operator allows, after all links are resolved, and never in the
//! state folder. A `.git` file or `commondir` that leads elsewhere is followed and judged too. Credentials in an address are refused:
//! they would end up in status, logs and audit. Host, user, port and path of a network address go on to programs and to the operator's
//! prefixes, so there is one spelling of each, and nothing in it that any of them could read as something else.

use super::access::Access;
use super::error::WorkspaceError;
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
    if given.is_empty() || given.starts_with('-') || given.chars().any(char::is_control) {
        return Err(bad(given, "write an absolute path, file://, https:// or ssh://"));
    }
    if let Some(rest) = given.strip_prefix("file://") {
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(bad(given, "write file:// with an absolute path, as file:///home/me/project"));
        }
        return local(allowed, given, &decode(given, path)?);
    }
    if given.starts_with('/') {
        return local(allowed, given, given);
    }
    match given.split_once("://") {
        Some(("https" | "ssh", _)) => network(given),
        Some(("http", _)) => Err(bad(given, "http:// is neither private nor authentic; write https://")),
        Some((scheme, _)) => Err(bad(given, &format!("{scheme}:// is not supported; write https://, ssh://, file:// or an absolute path"))),
        None if given.contains("::") => {
            Err(bad(given, "remote helpers are not supported; write https://, ssh://, file:// or an absolute path"))
        }
        None if given.contains(':') => Err(bad(given, "write ssh://user@host/path instead of user@host:path")),
        None => Err(bad(given, "a relative path depends on who reads it; write an absolute path")),
    }
}

/// The canonical spelling without looking whether it may be used: for repositories that we have known already.
pub(super) fn spelling(allowed: &Allowed, given: &str) -> String {
    parse(allowed, given).map_or_else(|_| given.trim_start_matches("file://").to_owned(), |remote| remote.url)
}

fn bad(given: &str, why: &str) -> WorkspaceError {
    WorkspaceError::BadAddress { repository: given.to_owned(), why: why.to_owned() }
}

/// `%20` and the like in a `file://` address.
fn decode(given: &str, path: &str) -> Result<String, WorkspaceError> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits: String = rest.by_ref().take(2).map(char::from).collect();
        match u8::from_str_radix(&digits, 16) {
            Ok(value) if digits.len() == 2 && value >= b' ' => bytes.push(value),
            Ok(_) | Err(_) => return Err(bad(given, "a % in a file:// address must be followed by two hexadecimal digits")),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad(given, "the path is not UTF-8"))
}

fn network(given: &str) -> Result<Remote, WorkspaceError> {
    let (protocol, url) = canonical(given).map_err(|why| bad(given, why))?;
    Ok(Remote { url, protocol, given: given.to_owned(), access: Access::default() })
}

/// The protocol and the one spelling of an `https://` or `ssh://` address: host in small letters, no default port, no slash at the end.
pub(crate) fn canonical(given: &str) -> Result<(&'static str, String), &'static str> {
    const PLAIN: &str = "write scheme://host/path in plain characters";
    let (protocol, default_port, rest) = match given.split_once("://") {
        Some(("https", rest)) => ("https", 443, rest),
        Some(("ssh", rest)) => ("ssh", 22, rest),
        _ => return Err("write https://host/path or ssh://user@host/path"),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, endpoint) = authority.rsplit_once('@').map_or((None, authority), |(user, endpoint)| (Some(user), endpoint));
    if user.is_some_and(|user| protocol == "https" || user.contains(':')) {
        return Err("credentials do not belong into an address; remove them");
    }
    let word =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !text.is_empty() && !text.starts_with('-');
    let (host, port) = host_and_port(endpoint).ok_or(PLAIN)?;
    let path = path.trim_end_matches('/');
    if user.is_some_and(|user| !word(user)) || path.is_empty() || !path.split('/').all(is_plain_segment) {
        return Err(PLAIN);
    }
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let port = port.filter(|port| *port != default_port).map(|port| format!(":{port}")).unwrap_or_default();
    Ok((protocol, format!("{protocol}://{user}{}{port}/{path}", host.to_ascii_lowercase())))
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn host_and_port(endpoint: &str) -> Option<(&str, Option<u16>)> {
    let end = if endpoint.starts_with('[') { endpoint.find(']')? + 1 } else { endpoint.find(':').unwrap_or(endpoint.len()) };
    let (host, rest) = endpoint.split_at(end);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b)) && !host.is_empty() && !host.starts_with(['-', '.']),
    };
    let port = match rest.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok().filter(|port| *port != 0)?),
        Some(_) => return None,
        None if rest.is_empty() => None,
        None => return None,
    };
    is_host.then_some((host, port))
}

/// One part of a path: no way up, also not in disguise, and no character with a meaning in an address or a shell.
fn is_plain_segment(segment: &str) -> bool {
    let plain = segment.bytes().all(|b| b.is_ascii_graphic() && !b"\"'`\\<>|;$(){}?#*&!^[]".contains(&b));
    let lower = segment.to_ascii_lowercase();
    let disguised = ["%2e", "%2f", "%5c", "%25", "%0", "%1"].iter().any(|code| lower.contains(code));
    plain && !disguised && !matches!(segment, "" | "." | "..") && !segment.starts_with('-')
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
