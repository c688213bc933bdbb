//! `[[remote]]` tables: which credential, authority, known hosts and proxy count for the remotes beneath a prefix.
//!
//! Everything is checked at the start, and everything that is wrong is said at once. The tables name files; what those hold is read when
//! it is needed, so that a renewed token counts without a restart.

use super::FILE_BYTES_MAX;
use crate::api::address::canonical;
use crate::api::names::Namespace;
use crate::workspace::{RemoteAccess, RemoteCredential, check_private, is_plain_path, read_token};
use serde::Deserialize;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Most tables.
pub const REMOTES_MAX: usize = 256;

/// One `[[remote]]` table, as people write it. Each name may have dashes or underscores.
#[derive(Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RemoteSettings {
    /// `https://host/team/` or `ssh://user@host/team/`; the longest that fits counts.
    pub prefix: String,
    /// Namespaces whose agents may use the credential; `["*"]`: all.
    pub namespaces: Vec<String>,
    /// User name for https.
    pub username: Option<String>,
    /// File with the token or password for https.
    #[serde(alias = "token_file")]
    pub token_file: Option<String>,
    /// Program that answers as a `git credential` helper for https.
    #[serde(alias = "credential_helper")]
    pub credential_helper: Option<String>,
    /// File with the private key for ssh.
    #[serde(alias = "ssh_key")]
    pub ssh_key: Option<String>,
    /// Socket of an ssh agent.
    #[serde(alias = "ssh_agent")]
    pub ssh_agent: Option<String>,
    /// File with the host keys that are trusted, for ssh.
    #[serde(alias = "known_hosts")]
    pub known_hosts: Option<String>,
    /// File with the authorities that are trusted instead of the system's, for https.
    pub ca: Option<String>,
    /// `http://host:port` or `socks5h://host:port`, for https.
    pub proxy: Option<String>,
}

/// The file of `--remotes`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RemotesFile {
    #[serde(default)]
    remote: Vec<RemoteSettings>,
}

/// Checks the tables of the file and of the configuration; what is wrong is added to `wrong`.
pub(super) fn check(wrong: &mut Vec<String>, file: Option<&str>, mut tables: Vec<RemoteSettings>) -> Vec<RemoteAccess> {
    if let Some(file) = file {
        match read(Path::new(file)) {
            Ok(found) => tables.extend(found),
            Err(why) => wrong.push(format!("remotes: {why}")),
        }
    }
    if tables.len() > REMOTES_MAX {
        wrong.push(format!("remotes: {} tables, and {REMOTES_MAX} is the most", tables.len()));
        return Vec::new();
    }
    let mut found: Vec<RemoteAccess> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let mut table_check = TableCheck { wrong, name: format!("remote {} ({:?})", index + 1, table.prefix) };
        let access = table_check.access(table);
        let shared = |other: &&RemoteAccess| {
            let overlap = other.namespaces.is_empty() || access.namespaces.iter().any(|name| other.namespaces.contains(name));
            other.prefix == access.prefix && (overlap || access.namespaces.is_empty())
        };
        if found.iter().any(|other| shared(&other)) {
            table_check.say("an earlier table has the same prefix and one of its namespaces");
        }
        found.push(access);
    }
    found
}

fn read(path: &Path) -> Result<Vec<RemoteSettings>, String> {
    check_private(path)?;
    let failed = |why: String| format!("{}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(format!("it has {size} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let file: RemotesFile = toml::from_str(&text).map_err(|e| failed(e.to_string()))?;
    Ok(file.remote)
}

/// Checks one table; its sentences begin with its name.
struct TableCheck<'w> {
    wrong: &'w mut Vec<String>,
    name: String,
}

impl TableCheck<'_> {
    fn say(&mut self, what: impl std::fmt::Display) {
        self.wrong.push(format!("{}: {what}", self.name));
    }

    fn access(&mut self, table: RemoteSettings) -> RemoteAccess {
        let (protocol, prefix) = self.prefix(&table.prefix);
        let foreign: &[(&str, bool)] = if protocol == "ssh" {
            &[
                ("username", table.username.is_some()),
                ("token-file", table.token_file.is_some()),
                ("credential-helper", table.credential_helper.is_some()),
                ("ca", table.ca.is_some()),
                ("proxy", table.proxy.is_some()),
            ]
        } else {
            &[("ssh-key", table.ssh_key.is_some()), ("ssh-agent", table.ssh_agent.is_some()), ("known-hosts", table.known_hosts.is_some())]
        };
        for (name, _) in foreign.iter().filter(|(_, given)| *given) {
            self.say(format!("`{name}` means nothing for {protocol}://; take it out"));
        }
        if protocol == "ssh" && table.known_hosts.is_none() {
            self.say("ssh:// needs `known-hosts`: hosts are never trusted at first sight; make it with `ssh-keyscan` and compare the keys");
        }
        if let Some(proxy) = &table.proxy {
            self.proxy(proxy);
        }
        RemoteAccess {
            prefix,
            namespaces: self.namespaces(&table.namespaces),
            known_hosts: table.known_hosts.as_deref().map(|path| self.file("known-hosts", path)),
            authority: table.ca.as_deref().map(|path| self.file("ca", path)),
            proxy: table.proxy.clone(),
            credential: self.credential(table),
        }
    }

    fn prefix(&mut self, text: &str) -> (&'static str, String) {
        if !text.ends_with('/') {
            self.say("`prefix` must end with a slash, as https://git.example.org/team/, so that it fits no other name that begins alike");
            return ("https", text.to_owned());
        }
        // A prefix is what remains of an address without its last part.
        match canonical(&format!("{text}x")) {
            Ok((protocol, url)) => (protocol, url.strip_suffix('x').unwrap_or(&url).to_owned()),
            Err(why) => {
                self.say(format!("`prefix`: {why}"));
                ("https", text.to_owned())
            }
        }
    }

    fn namespaces(&mut self, names: &[String]) -> Vec<Namespace> {
        if names.is_empty() {
            self.say("`namespaces` is missing; list those that may use the credential, or [\"*\"] for all");
        }
        if names == ["*"] {
            return Vec::new();
        }
        let mut found = Vec::new();
        for name in names {
            match Namespace::new(name.as_str()) {
                Ok(namespace) => found.push(namespace),
                Err(error) => self.say(format!("`namespaces`: {error}")),
            }
        }
        found
    }

    fn credential(&mut self, table: RemoteSettings) -> RemoteCredential {
        let RemoteSettings { username, token_file, credential_helper, ssh_key, ssh_agent, .. } = table;
        let given = [&token_file, &credential_helper, &ssh_key, &ssh_agent].iter().filter(|one| one.is_some()).count();
        if given > 1 {
            self.say("more than one credential; choose one of `token-file`, `credential-helper`, `ssh-key` and `ssh-agent`");
        }
        if username.is_some() && token_file.is_none() {
            self.say("`username` needs `token-file`");
        }
        if let Some(path) = token_file {
            let file = self.file("token-file", &path);
            if let Err(why) = read_token(&file) {
                self.say(format!("`token-file`: {why}"));
            }
            // The large hosts take any name beside a token.
            return RemoteCredential::Token { username: self.username(username.unwrap_or_else(|| "git".to_owned())), file };
        }
        if let Some(path) = credential_helper {
            return RemoteCredential::Helper(self.file("credential-helper", &path));
        }
        if let Some(path) = ssh_key {
            let file = self.file("ssh-key", &path);
            if let Err(why) = check_private(&file) {
                self.say(format!("`ssh-key`: {why}"));
            }
            return RemoteCredential::SshKey(file);
        }
        if let Some(path) = ssh_agent {
            let socket = PathBuf::from(&path);
            let is_socket = std::fs::metadata(&socket).is_ok_and(|seen| seen.file_type().is_socket());
            if !is_socket || !socket.is_absolute() || !is_plain_path(&socket) {
                self.say(format!("`ssh-agent`: {path:?} must be the absolute path of a socket, in letters, digits and /._-+@,="));
            }
            return RemoteCredential::SshAgent(socket);
        }
        RemoteCredential::None
    }

    fn username(&mut self, name: String) -> String {
        if name.is_empty() || name.len() > 200 || name.contains(':') || !name.bytes().all(|b| b.is_ascii_graphic()) {
            self.say("`username` must be 1 to 200 plain characters without a colon");
        }
        name
    }

    fn proxy(&mut self, text: &str) {
        let parts = text.split_once("://").filter(|(scheme, _)| ["http", "https", "socks5", "socks5h"].contains(scheme));
        let plain = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        if parts.is_none_or(|(_, rest)| !plain(rest)) {
            self.say(
                "`proxy` must be http://host:port or socks5h://host:port, without a user or password (it would show in the process list)",
            );
        }
    }

    /// An existing file by its absolute path; its name goes on to programs, so it must be plain.
    fn file(&mut self, name: &str, text: &str) -> PathBuf {
        let path = PathBuf::from(text);
        if !path.is_absolute() || !is_plain_path(&path) {
            self.say(format!("`{name}`: {text:?} must be an absolute path in letters, digits and /._-+@,="));
        } else if let Err(error) = std::fs::File::open(&path) {
            self.say(format!("`{name}`: {text:?}: {error}"));
        }
        path
    }
}
