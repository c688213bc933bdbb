//! How a remote over the network may be reached: which credential, authority, known hosts and proxy of the operator count for it.
//!
//! Flow: address + namespace -> the entry with the longest prefix -> settings and environment of one `git`. A credential is read when it
//! is needed, so that a renewed token counts at once, and it reaches `git` through a sealed memory file alone (`crate::askpass`): never as an
//! argument, a variable, part of an address, or a file of ours. An entry for other namespaces lends its trust, but not its credential.

use super::address::Remote;
use super::error::{RemoteCause, WorkspaceError, io};
use crate::api::names::{Namespace, Secret};
use crate::askpass::{CREDENTIAL_BYTES_MAX, DESCRIPTOR, encode};
use base64::Engine;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What the operator says of the remotes beneath one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAccess {
    /// Canonical, ends in `/`: `https://host/team/`.
    pub prefix: String,
    /// Namespaces that may use the credential; empty: all.
    pub namespaces: Vec<Namespace>,
    /// The credential.
    pub credential: RemoteCredential,
    /// Host keys that are trusted (ssh).
    pub known_hosts: Option<PathBuf>,
    /// Authorities that are trusted instead of the system's (https).
    pub authority: Option<PathBuf>,
    /// Proxy (https).
    pub proxy: Option<String>,
}

/// Where a credential is; never the credential itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RemoteCredential {
    /// There is none.
    #[default]
    None,
    /// User name, and the file that holds the token or password.
    Token {
        /// User name.
        username: String,
        /// The file.
        file: PathBuf,
    },
    /// A `git credential` helper of the operator.
    Helper(PathBuf),
    /// File with the private key.
    SshKey(PathBuf),
    /// Socket of an agent that holds the key.
    SshAgent(PathBuf),
}

/// What counts for one remote in one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Access {
    credential: RemoteCredential,
    known_hosts: Option<PathBuf>,
    authority: Option<PathBuf>,
    proxy: Option<String>,
    /// For people: which entry counted, or why none did.
    pub(super) note: String,
}

/// The entry with the longest prefix; among equals the one that this namespace may use.
pub(super) fn choose(all: &[RemoteAccess], namespace: &Namespace, url: &str) -> Access {
    let beneath = format!("{url}/");
    let allows = |entry: &RemoteAccess| entry.namespaces.is_empty() || entry.namespaces.contains(namespace);
    let fitting = all.iter().filter(|entry| beneath.starts_with(&entry.prefix));
    let Some(entry) = fitting.max_by_key(|entry| (entry.prefix.len(), allows(entry))) else {
        let note = "no [[remote]] of the operator's configuration has a prefix of this address, so no credential was used".to_owned();
        return Access { note, ..Access::default() };
    };
    let (credential, note) = if !allows(entry) {
        let names: Vec<&str> = entry.namespaces.iter().map(Namespace::as_str).collect();
        let note = format!(
            "the credential for {} is for the namespaces {} and not for {namespace}, so it was not used",
            entry.prefix,
            names.join(", ")
        );
        (RemoteCredential::None, note)
    } else if entry.credential == RemoteCredential::None {
        (RemoteCredential::None, format!("the [[remote]] for {} names no credential", entry.prefix))
    } else {
        (entry.credential.clone(), format!("the credential for {} was used", entry.prefix))
    };
    let RemoteAccess { known_hosts, authority, proxy, .. } = entry.clone();
    Access { credential, known_hosts, authority, proxy, note }
}

impl Access {
    /// Settings for `git -c`; paths and limits, nothing secret.
    pub(super) fn settings(&self, remote: &Remote, silence: Duration) -> Vec<String> {
        if remote.protocol != "https" {
            return Vec::new();
        }
        let mut settings: Vec<String> = ["http.sslVerify=true", "http.sslTry=false", "http.lowSpeedLimit=1", "http.emptyAuth=false"]
            .map(str::to_owned)
            .into_iter()
            .collect();
        settings.push(format!("http.lowSpeedTime={}", silence.as_secs().max(1)));
        settings.push(format!("http.proxy={}", self.proxy.as_deref().unwrap_or_default()));
        if let Some(file) = &self.authority {
            settings.push(format!("http.sslCAInfo={}", file.display()));
        }
        if let RemoteCredential::Helper(program) = &self.credential {
            settings.extend([format!("credential.helper={}", program.display()), "credential.useHttpPath=true".to_owned()]);
        }
        settings
    }

    /// Gives a command what it needs to reach the remote. Returns the texts that must appear in no message.
    /// # Errors
    /// The credential cannot be read, or none may be used where one is needed.
    pub(super) fn equip(
        &self,
        command: &mut Command,
        remote: &Remote,
        askpass: &Path,
        silence: Duration,
    ) -> Result<Vec<Secret>, WorkspaceError> {
        match (&self.credential, remote.protocol) {
            (RemoteCredential::Token { username, file }, "https") => self.hand_over(command, remote, askpass, username, file),
            (_, "ssh") => {
                command.env("GIT_SSH_VARIANT", "ssh").env("GIT_SSH_COMMAND", self.ssh(remote, silence)?);
                if let RemoteCredential::SshAgent(socket) = &self.credential {
                    command.env("SSH_AUTH_SOCK", socket);
                }
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Puts the credential into a sealed memory file that only this one child inherits.
    fn hand_over(
        &self,
        command: &mut Command,
        remote: &Remote,
        askpass: &Path,
        username: &str,
        file: &Path,
    ) -> Result<Vec<Secret>, WorkspaceError> {
        let token = read_token(file).map_err(|why| self.refused(remote, RemoteCause::Credential, why))?;
        let host = remote.url.trim_start_matches("https://").split('/').next().unwrap_or_default();
        let failed = |error: rustix::io::Errno| io("make", "a memory file")(std::io::Error::from(error));
        let memory = memfd_create("mosaic-credential", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(failed)?;
        let mut memory = File::from(memory);
        memory.write_all(encode(host, username, token.expose()).as_bytes()).map_err(io("write", "a memory file"))?;
        fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).map_err(failed)?;
        command.env("GIT_ASKPASS", askpass).env(DESCRIPTOR, memory.as_raw_fd().to_string());
        // SAFETY: one system call between fork and exec, on a descriptor that the closure owns.
        unsafe {
            command.pre_exec(move || Ok(fcntl_setfd(&memory, FdFlags::empty())?));
        }
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", token.expose()));
        Ok(vec![token, Secret::new(basic)])
    }

    /// The command that `git` gives to a shell: fixed words and paths that were checked to be plain.
    fn ssh(&self, remote: &Remote, silence: Duration) -> Result<String, WorkspaceError> {
        let Some(known_hosts) = &self.known_hosts else {
            let why = "ssh:// needs a [[remote]] entry with `known-hosts`".to_owned();
            return Err(self.refused(remote, RemoteCause::Trust, why));
        };
        let (key, agent) = match &self.credential {
            RemoteCredential::SshKey(key) => (key.as_path(), "none".to_owned()),
            RemoteCredential::SshAgent(socket) => (Path::new("/dev/null"), socket.display().to_string()),
            RemoteCredential::None | RemoteCredential::Token { .. } | RemoteCredential::Helper(_) => {
                return Err(self.refused(remote, RemoteCause::Credential, "ssh:// needs a key or an agent".to_owned()));
            }
        };
        // The last guard of the shell: the configuration's check lets nothing else in.
        let plain = [known_hosts.as_path(), key, Path::new(&agent)].into_iter().all(is_plain_path);
        if !plain {
            let why = "a path of its [[remote]] has characters that a shell could read as something else".to_owned();
            return Err(self.refused(remote, RemoteCause::Credential, why));
        }
        let seconds = silence.as_secs().max(1);
        // Two unanswered probes: silence of the length that was asked for.
        let alive = (seconds / 2).max(1);
        let options = [
            format!("UserKnownHostsFile={}", known_hosts.display()),
            format!("IdentityFile={}", key.display()),
            format!("IdentityAgent={agent}"),
            format!("IdentitiesOnly={}", if matches!(self.credential, RemoteCredential::SshKey(_)) { "yes" } else { "no" }),
            format!("ConnectTimeout={seconds}"),
            format!("ServerAliveInterval={alive}"),
        ];
        let mut command = "ssh -F /dev/null -a -x -T".to_owned();
        for option in SSH_OPTIONS.iter().copied().chain(options.iter().map(String::as_str)) {
            command.push_str(" -o");
            command.push_str(option);
        }
        Ok(command)
    }

    fn refused(&self, remote: &Remote, cause: RemoteCause, words: String) -> WorkspaceError {
        WorkspaceError::RemoteRefused { what: "reach", repository: remote.given.clone(), cause, words, note: self.note.clone() }
    }
}

/// Nobody is asked, nothing of a user's configuration counts, no key of a host is learned, and nothing is forwarded.
const SSH_OPTIONS: &[&str] = &[
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "CheckHostIP=no",
    "VerifyHostKeyDNS=no",
    "PreferredAuthentications=publickey",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "GSSAPIAuthentication=no",
    "HostbasedAuthentication=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "ProxyCommand=none",
    "ControlMaster=no",
    "ControlPath=none",
    "CanonicalizeHostname=no",
    "AddKeysToAgent=no",
    "ConnectionAttempts=1",
    "ServerAliveCountMax=2",
    "TCPKeepAlive=yes",
    "LogLevel=ERROR",
];

/// Whether a path consists of characters that neither a shell nor ssh (`%`, `~`, blanks) reads as anything else.
pub(crate) fn is_plain_path(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@,=".contains(&b)))
}

/// Why a file with a credential may not be used.
pub(crate) fn check_private(path: &Path) -> Result<(), String> {
    let seen = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let own = rustix::process::geteuid().as_raw();
    if !seen.is_file() {
        return Err(format!("{} is no file", path.display()));
    }
    if seen.uid() != own && seen.uid() != 0 {
        return Err(format!("{} belongs to another user (uid {}); it must be yours or root's", path.display(), seen.uid()));
    }
    if seen.mode() & 0o077 != 0 {
        let mode = seen.mode() & 0o7777;
        return Err(format!("others may read or change {0} (mode {mode:o}); run: chmod 600 {0}", path.display()));
    }
    Ok(())
}

/// Reads a token: one line, not empty. The error never holds any of it.
pub(crate) fn read_token(path: &Path) -> Result<Secret, String> {
    check_private(path)?;
    let size = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
    if size > CREDENTIAL_BYTES_MAX as u64 / 2 {
        return Err(format!("{} has {size} bytes; a token has at most {}", path.display(), CREDENTIAL_BYTES_MAX / 2));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let token = text.trim_end_matches(['\n', '\r']);
    if token.is_empty() || token.chars().any(char::is_control) {
        return Err(format!("{} must hold the token on one line, and nothing else", path.display()));
    }
    Ok(Secret::new(token))
}
