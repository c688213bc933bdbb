//! Settings of `mosaic up`: flags, then `MOSAIC_*` variables, then a file, each name the same -> one validated `Config`.
//!
//! Flow: clap fills `Settings` from flags and environment, `Settings::or` adds what the file says, `Config::from_settings` checks
//! everything at once. Values stay text until that check, so that one start names every bad value and not only the first one.
//! Every limit has a unit, a default and a reason in its help text. No credential is ever a setting; how remotes are reached (`remotes`)
//! names the files that hold some.

mod check;
mod folder;
mod pods;
mod remotes;
mod store;

pub use folder::state_folder;
pub use remotes::RemoteSettings;
pub use store::StoreChoice;

use crate::api::agent::Driver;
use crate::api::names::{Namespace, Secret};
use crate::sandbox::pod::PodConfig;
use crate::workspace::{RemoteAccess, check_private};
use check::Check;
use serde::{Deserialize, Deserializer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the server listens unless told otherwise.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:3001";
/// Largest configuration file, in bytes.
pub const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Settings as people write them; all text, all optional.
#[derive(clap::Args, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Address of the HTTP server; loopback only, because there is one token and no encryption. Port 0 takes a free one [default: 127.0.0.1:3001]
    #[arg(long, env = "MOSAIC_LISTEN", value_name = "ADDRESS:PORT")]
    #[serde(deserialize_with = "scalar")]
    pub listen: Option<String>,

    /// Where records are kept: embedded (one file in the state folder), valkey or kube (the cluster that KUBECONFIG names, or that mosaic runs in) [default: embedded, or valkey where its address is given]
    #[arg(long, env = "MOSAIC_STORE", value_name = "STORE")]
    #[serde(deserialize_with = "scalar")]
    pub store: Option<String>,

    /// Address of the Valkey server, valkey://user:password@host:6379/0; valkeys:// with TLS, valkey-cluster:// for a cluster. It is never shown with its password; give it by the variable or a file of mode 0600, not as a flag, which others on this machine can see
    #[arg(long, env = "VALKEY_URL", value_name = "URL", hide_env_values = true, value_parser = secret)]
    #[serde(deserialize_with = "secret_scalar")]
    pub valkey_url: Option<Secret>,

    /// aof: a write is acknowledged once it is on the server's disk, and a server that cannot say so is refused; none: once it is in the server's memory [default: aof where the server keeps an append-only file, else none, and loudly so]
    #[arg(long, env = "MOSAIC_VALKEY_DURABILITY", value_name = "WHAT")]
    #[serde(deserialize_with = "scalar")]
    pub valkey_durability: Option<String>,

    /// Tells several stores on one Valkey server apart [default: default]
    #[arg(long, env = "MOSAIC_VALKEY_PREFIX", value_name = "NAME")]
    #[serde(deserialize_with = "scalar")]
    pub valkey_prefix: Option<String>,

    /// Where agents run that ask for nothing: auto, docker, process or pod; auto takes pod where pods are made (--link-address), else docker when an engine answers and has the image, else process [default: auto]
    #[arg(long, env = "MOSAIC_DRIVER", value_name = "DRIVER")]
    #[serde(deserialize_with = "scalar")]
    pub driver: Option<String>,

    /// Image of containers and pods whose agents name none; pulled when it is not there [default: mosaic-sandbox:latest]
    #[arg(long, env = "MOSAIC_SANDBOX_IMAGE", value_name = "IMAGE")]
    #[serde(deserialize_with = "scalar")]
    pub sandbox_image: Option<String>,

    /// Sandboxes that are made and started ahead, 0 to 50: pods of each kind (namespace, image, runtime, limits) that was asked for within an hour, or where none are made containers, for agents that ask for no other image, runtime or limits; each takes some megabytes of memory, and nothing of an agent is in it [default: 0]
    #[arg(long, env = "MOSAIC_WARM", value_name = "NUMBER")]
    #[serde(deserialize_with = "scalar")]
    pub warm: Option<String>,

    /// host:port at which pods reach this controller; agents can run in pods then, of the cluster that KUBECONFIG names or that mosaic runs in. Port 0 takes that of --link-listen
    #[arg(long, env = "MOSAIC_LINK_ADDRESS", value_name = "HOST:PORT")]
    #[serde(deserialize_with = "scalar")]
    pub link_address: Option<String>,

    /// Where the link of pods listens; it speaks TLS, and answers nobody without a pod's own token [default: 0.0.0.0:7443]
    #[arg(long, env = "MOSAIC_LINK_LISTEN", value_name = "ADDRESS:PORT")]
    #[serde(deserialize_with = "scalar")]
    pub link_listen: Option<String>,

    /// Pods behind --link-address where that is a Service, as namespace/label=value; repeatable for more labels. Network policies look at pods
    #[arg(long, env = "MOSAIC_LINK_PODS", value_name = "NAMESPACE/LABEL=VALUE", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub link_pods: Vec<String>,

    /// Image that brings mosaic-init into pods [default: mosaic:latest]
    #[arg(long, env = "MOSAIC_INIT_IMAGE", value_name = "IMAGE")]
    #[serde(deserialize_with = "scalar")]
    pub init_image: Option<String>,

    /// When the images of pods are pulled: Always, IfNotPresent or Never [default: the cluster's]
    #[arg(long, env = "MOSAIC_IMAGE_PULL_POLICY", value_name = "POLICY")]
    #[serde(deserialize_with = "scalar")]
    pub image_pull_policy: Option<String>,

    /// Secret of the agent's namespace with which images are pulled; repeatable
    #[arg(long, env = "MOSAIC_IMAGE_PULL_SECRET", value_name = "NAME", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub image_pull_secret: Vec<String>,

    /// Label that the nodes of pods must have; repeatable
    #[arg(long, env = "MOSAIC_NODE_SELECTOR", value_name = "LABEL=VALUE", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub node_selector: Vec<String>,

    /// Taint that pods tolerate; repeatable
    #[arg(long, env = "MOSAIC_TOLERATION", value_name = "KEY[=VALUE]:EFFECT", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub toleration: Vec<String>,

    /// How long a pod may wait for a node, 10s to 1h; a cluster that grows needs some minutes [default: 5m]
    #[arg(long, env = "MOSAIC_POD_PENDING_MAX", value_name = "DURATION")]
    #[serde(deserialize_with = "scalar")]
    pub pod_pending_max: Option<String>,

    /// Where several controllers share a cluster: how long an agent in pods of which nothing runs any more waits for the one that began it,
    /// where nothing is heard of that one either, before whoever leads begins it again, 10s to 24h [default: 5m]
    #[arg(long, env = "MOSAIC_TAKEOVER_AFTER", value_name = "DURATION")]
    #[serde(deserialize_with = "scalar")]
    pub takeover_after: Option<String>,

    /// Folder beneath which repositories may be given as paths; repeatable. Your home folder is always one
    #[arg(long, env = "MOSAIC_LOCAL_REPOS", value_name = "FOLDER", value_delimiter = ':')]
    #[serde(deserialize_with = "list")]
    pub local_repos: Vec<String>,

    /// Folder of tools or their caches that sandboxes see read-only; repeatable. Name no folder that holds credentials
    #[arg(long, env = "MOSAIC_TOOL_ROOT", value_name = "FOLDER", value_delimiter = ':')]
    #[serde(deserialize_with = "list")]
    pub tool_root: Vec<String>,

    /// Primitive of isolation, or limit (memory, pids), without which sandboxes start all the same where this machine lacks it; repeatable. SECURITY.md has the table
    #[arg(long, env = "MOSAIC_ALLOW_MISSING", value_name = "NAME", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub allow_missing: Vec<String>,

    /// Most agents that run at once, 1 to 1000; each may use a core and its memory limit [default: 10]
    #[arg(long, env = "MOSAIC_RUNNING_MAX", value_name = "NUMBER")]
    #[serde(deserialize_with = "scalar")]
    pub running_max: Option<String>,

    /// Most agents whose tree and sandbox are being made at once, 1 to 1000; making is bound by cores and disk [default: twice the cores]
    #[arg(long, env = "MOSAIC_STARTING_MAX", value_name = "NUMBER")]
    #[serde(deserialize_with = "scalar")]
    pub starting_max: Option<String>,

    /// User id of sandboxed processes when mosaic runs as root, 1000 to 2000000000; far from the ids that people get [default: 61357]
    #[arg(long, env = "MOSAIC_SANDBOX_UID", value_name = "UID")]
    #[serde(deserialize_with = "scalar")]
    pub sandbox_uid: Option<String>,

    /// A sandbox that hears nothing for so long ends itself, 5s to 10m; longer than a restart, shorter than anyone's patience [default: 30s]
    #[arg(long, env = "MOSAIC_LEASE", value_name = "DURATION")]
    #[serde(deserialize_with = "scalar")]
    pub lease: Option<String>,

    /// Name of author and committer of pushed commits [default: Mosaic]
    #[arg(long, env = "MOSAIC_AUTHOR_NAME", value_name = "NAME")]
    #[serde(deserialize_with = "scalar")]
    pub author_name: Option<String>,

    /// Address of author and committer of pushed commits; without it mosaic@localhost
    #[arg(long, env = "MOSAIC_AUTHOR_EMAIL", value_name = "ADDRESS")]
    #[serde(deserialize_with = "scalar")]
    pub author_email: Option<String>,

    /// Longest time of one fetch or push, 1s to 1h; a large first clone is the longest of them [default: 5m]
    #[arg(long, env = "MOSAIC_REMOTE_TIMEOUT", value_name = "DURATION")]
    #[serde(deserialize_with = "scalar")]
    pub remote_timeout: Option<String>,

    /// A remote over the network that is silent for so long is given up, 1s to 10m [default: 30s]
    #[arg(long, env = "MOSAIC_REMOTE_SILENCE", value_name = "DURATION")]
    #[serde(deserialize_with = "scalar")]
    pub remote_silence: Option<String>,

    /// TOML file of `[[remote]]` tables that say how https and ssh remotes are reached; only you may read it (mode 0600)
    #[arg(long, env = "MOSAIC_REMOTES", value_name = "FILE")]
    #[serde(deserialize_with = "scalar")]
    pub remotes: Option<String>,

    /// The same tables in the configuration file itself.
    #[arg(skip)]
    pub remote: Vec<RemoteSettings>,

    /// Every agent is looked at again after so long even if nothing happened, 10s to 1h; a missed event costs no more than this [default: 5m]
    #[arg(long, env = "MOSAIC_RESYNC", value_name = "DURATION")]
    #[serde(deserialize_with = "scalar")]
    pub resync: Option<String>,

    /// Namespace of requests that name none [default: default]
    #[arg(long, env = "MOSAIC_DEFAULT_NAMESPACE", value_name = "NAME")]
    #[serde(deserialize_with = "scalar")]
    pub default_namespace: Option<String>,

    /// The static `mosaic-init` program, PID 1 of every sandbox [default: beside this program]
    #[arg(long, env = "MOSAIC_INIT", value_name = "FILE")]
    #[serde(deserialize_with = "scalar")]
    pub init: Option<String>,
}

/// A TOML text, number or boolean, as text.
fn scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => Ok(Some(text)),
        value @ (toml::Value::Integer(_) | toml::Value::Boolean(_) | toml::Value::Float(_)) => Ok(Some(value.to_string())),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
            Err(serde::de::Error::custom("expected one text or number"))
        }
    }
}

/// A text that is never shown.
#[allow(clippy::unnecessary_wraps, reason = "clap asks for a result")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

fn secret_scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    scalar(deserializer).map(|text| text.map(Secret::new))
}

/// A TOML text or a list of them.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer).map_err(|_| serde::de::Error::custom("expected a text or a list of texts"))? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    })
}

/// Settings that cannot be used; names all of them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read or is no such file.
    #[error("failed to read the configuration file {path}: {why}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Values that cannot be used.
    #[error("{} setting(s) cannot be used:\n  {}", .0.len(), .0.join("\n  "))]
    Values(Vec<String>),
}

impl Settings {
    /// Reads a configuration file (TOML, names as the flags without dashes in front).
    /// # Errors
    /// The file cannot be read, is too large, is not TOML or has a name that is no setting.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let refuse = |why: String| ConfigError::File { path: path.to_owned(), why };
        let size = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(refuse(format!("it has {size} bytes; at most {FILE_BYTES_MAX} are read")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
        let settings: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        if !settings.remote.is_empty() {
            check_private(path).map_err(|why| refuse(format!("it has [[remote]] tables: {why}")))?;
        }
        if settings.valkey_url.as_ref().is_some_and(|url| url.expose().contains('@')) {
            check_private(path).map_err(|why| refuse(format!("its valkey-url has a password: {why}")))?;
        }
        Ok(settings)
    }

    /// These settings, and `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let lists = |mine: Vec<String>, theirs| if mine.is_empty() { theirs } else { mine };
        Self {
            listen: self.listen.or(other.listen),
            store: self.store.or(other.store),
            valkey_url: self.valkey_url.or(other.valkey_url),
            valkey_durability: self.valkey_durability.or(other.valkey_durability),
            valkey_prefix: self.valkey_prefix.or(other.valkey_prefix),
            driver: self.driver.or(other.driver),
            sandbox_image: self.sandbox_image.or(other.sandbox_image),
            warm: self.warm.or(other.warm),
            link_address: self.link_address.or(other.link_address),
            link_listen: self.link_listen.or(other.link_listen),
            link_pods: lists(self.link_pods, other.link_pods),
            init_image: self.init_image.or(other.init_image),
            image_pull_policy: self.image_pull_policy.or(other.image_pull_policy),
            image_pull_secret: lists(self.image_pull_secret, other.image_pull_secret),
            node_selector: lists(self.node_selector, other.node_selector),
            toleration: lists(self.toleration, other.toleration),
            pod_pending_max: self.pod_pending_max.or(other.pod_pending_max),
            takeover_after: self.takeover_after.or(other.takeover_after),
            local_repos: lists(self.local_repos, other.local_repos),
            tool_root: lists(self.tool_root, other.tool_root),
            allow_missing: lists(self.allow_missing, other.allow_missing),
            running_max: self.running_max.or(other.running_max),
            starting_max: self.starting_max.or(other.starting_max),
            sandbox_uid: self.sandbox_uid.or(other.sandbox_uid),
            lease: self.lease.or(other.lease),
            author_name: self.author_name.or(other.author_name),
            author_email: self.author_email.or(other.author_email),
            remote_timeout: self.remote_timeout.or(other.remote_timeout),
            remote_silence: self.remote_silence.or(other.remote_silence),
            remotes: self.remotes.or(other.remotes),
            remote: if self.remote.is_empty() { other.remote } else { self.remote },
            resync: self.resync.or(other.resync),
            default_namespace: self.default_namespace.or(other.default_namespace),
            init: self.init.or(other.init),
        }
    }
}

/// Everything `mosaic up` needs to know, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Address of the HTTP server; loopback.
    pub listen: SocketAddr,
    /// State folder, absolute.
    pub state: PathBuf,
    /// Where records are kept.
    pub store: StoreChoice,
    /// Where agents run that ask for nothing.
    pub driver: Driver,
    /// Image of containers whose agents name none.
    pub sandbox_image: String,
    /// Sandboxes that are made and started ahead.
    pub warm: usize,
    /// How pods are made; `None`: they are not.
    pub pods: Option<PodConfig>,
    /// Folders beneath which repositories may be given as paths; absolute.
    pub local_repos: Vec<PathBuf>,
    /// Folders that sandboxes see read-only; absolute.
    pub tool_roots: Vec<PathBuf>,
    /// Primitives of isolation without which sandboxes start all the same.
    pub allow_missing: Vec<String>,
    /// Most agents that run at once.
    pub running_max: usize,
    /// Most agents that are being started at once.
    pub starting_max: usize,
    /// User id of sandboxed processes.
    pub sandbox_uid: u32,
    /// A sandbox that hears nothing for so long ends itself.
    pub lease: Duration,
    /// How long an agent in pods of which nothing runs any more waits for the controller that began it, where nothing is heard of that.
    pub takeover_after: Duration,
    /// Name of author and committer.
    pub author_name: String,
    /// Address of author and committer.
    pub author_email: String,
    /// Longest time of one fetch or push.
    pub remote_timeout: Duration,
    /// A remote over the network that is silent for so long is given up.
    pub remote_silence: Duration,
    /// How remotes over the network are reached.
    pub remotes: Vec<RemoteAccess>,
    /// Every agent is looked at again after so long.
    pub resync: Duration,
    /// Namespace of requests that name none.
    pub default_namespace: Namespace,
    /// The `mosaic-init` program; `None`: beside this program.
    pub init: Option<PathBuf>,
}

impl Config {
    /// Checks all settings at once. `home` is the caller's home folder, beneath which repositories may always lie.
    /// # Errors
    /// Every value that cannot be used, each with what would do.
    pub fn from_settings(settings: Settings, state: PathBuf, home: Option<PathBuf>) -> Result<Self, ConfigError> {
        let mut check = Check::default();
        let starting_default = 2 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let pods = check.pods(&settings);
        let mut local_repos = check.folders("local-repos", settings.local_repos);
        local_repos.extend(home.filter(|h| h.is_absolute() && h.parent().is_some()));
        let config = Self {
            listen: check.listen(settings.listen.as_deref().unwrap_or(LISTEN_DEFAULT)),
            state: check.absolute("state", state),
            store: check.store(
                settings.store.as_deref(),
                settings.valkey_url.as_ref(),
                settings.valkey_durability.as_deref(),
                settings.valkey_prefix.as_deref(),
            ),
            driver: check.driver(settings.driver.as_deref()),
            sandbox_image: check.image(settings.sandbox_image),
            warm: check.number("warm", settings.warm, 0, 0, 50),
            pods,
            local_repos,
            tool_roots: check.folders("tool-root", settings.tool_root),
            allow_missing: check.primitives(settings.allow_missing),
            running_max: check.number("running-max", settings.running_max, 10, 1, 1000),
            starting_max: check.number("starting-max", settings.starting_max, starting_default, 1, 1000),
            sandbox_uid: check.number("sandbox-uid", settings.sandbox_uid, 61_357, 1000, 2_000_000_000),
            lease: check.duration("lease", settings.lease, 30, 5, 600),
            takeover_after: check.duration("takeover-after", settings.takeover_after, 300, 10, 86_400),
            author_name: check.line("author-name", settings.author_name, "Mosaic"),
            author_email: check.line("author-email", settings.author_email, "mosaic@localhost"),
            remote_timeout: check.duration("remote-timeout", settings.remote_timeout, 300, 1, 3600),
            remote_silence: check.duration("remote-silence", settings.remote_silence, 30, 1, 600),
            remotes: remotes::check(&mut check.0, settings.remotes.as_deref(), settings.remote),
            resync: check.duration("resync", settings.resync, 300, 10, 3600),
            default_namespace: check.namespace(settings.default_namespace.as_deref().unwrap_or("default")),
            init: settings.init.map(PathBuf::from),
        };
        if check.0.is_empty() { Ok(config) } else { Err(ConfigError::Values(check.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bad_values_are_named_at_once() {
        let settings = Settings {
            listen: Some("0.0.0.0:3001".into()),
            running_max: Some("0".into()),
            lease: Some("soon".into()),
            driver: Some("vm".into()),
            sandbox_image: Some("../x".into()),
            tool_root: vec!["/no/such/folder".into()],
            allow_missing: vec!["seccomp".into(), "user-namespace".into(), "bravery".into()],
            ..Settings::default()
        };
        let error = Config::from_settings(settings, "/tmp/state".into(), None).unwrap_err().to_string();
        let missing = ["\"user-namespace\": nothing can start", "\"bravery\": there is no such"];
        for name in ["listen:", "running-max:", "lease:", "driver:", "sandbox-image:", "tool-root:", "8 setting(s)", missing[0], missing[1]]
        {
            assert!(error.contains(name), "{name} is missing in: {error}");
        }
    }

    #[test]
    fn an_address_alone_chooses_valkey_and_its_password_is_never_shown() {
        let of = |store: Option<&str>, url: Option<&str>| {
            let (store, valkey_url) = (store.map(str::to_owned), url.map(Secret::new));
            Config::from_settings(Settings { store, valkey_url, ..Settings::default() }, "/tmp/state".into(), None)
        };
        let url = Some("valkey://mosaic:hunter2@store.example.org:6379");
        assert_eq!(of(None, None).unwrap().store, StoreChoice::Embedded);
        assert_eq!(of(Some("embedded"), url).unwrap().store, StoreChoice::Embedded);
        assert_eq!(of(Some("kube"), url).unwrap().store, StoreChoice::Kube);
        let chosen = of(None, url).unwrap();
        assert!(matches!(chosen.store, StoreChoice::Valkey { .. }));
        assert!(!format!("{chosen:?}").contains("hunter2"));
        let file: Settings = toml::from_str("valkey-url = \"valkey://:hunter2@store.example.org\"").unwrap();
        assert!(!format!("{file:?}").contains("hunter2"));
        for (store, url) in [(Some("valkey"), None), (Some("file"), None), (None, Some("http://:hunter2@store"))] {
            let error = of(store, url).unwrap_err().to_string();
            assert!(error.contains("store: ") || error.contains("valkey-url: "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let file: Settings = toml::from_str("listen = \"127.0.0.1:4000\"\nrunning-max = 3\nlocal-repos = [\"/tmp\"]").unwrap();
        let flags = Settings { listen: Some("127.0.0.1:5000".into()), ..Settings::default() };
        let config = Config::from_settings(flags.or(file), "/tmp/state".into(), Some("/home/someone".into())).unwrap();
        assert_eq!(config.listen.port(), 5000);
        assert_eq!(config.running_max, 3);
        assert_eq!(config.local_repos, [PathBuf::from("/tmp"), PathBuf::from("/home/someone")]);
    }

    #[test]
    fn unknown_names_in_the_file_are_refused() {
        let error = toml::from_str::<Settings>("runing-max = 3").unwrap_err().to_string();
        assert!(error.contains("runing-max"), "{error}");
    }

    #[test]
    fn every_mistake_in_the_remotes_is_named_at_once() {
        let table: Settings = toml::from_str(
            r#"
            [[remote]]
            prefix = "https://git.example.org/team"
            [[remote]]
            prefix = "http://git.example.org/"
            namespaces = ["*"]
            [[remote]]
            prefix = "https://me:secret@git.example.org/"
            namespaces = ["Not A Name"]
            [[remote]]
            prefix = "ssh://git@example.org/"
            namespaces = ["*"]
            token_file = "/no/such/token"
            [[remote]]
            prefix = "https://git.example.org/a/"
            namespaces = ["a"]
            ssh-key = "/x"
            ca = "relative/path"
            proxy = "http://me:secret@proxy:3128"
            username = "no-token"
            [[remote]]
            prefix = "https://GIT.example.org:443/a/"
            namespaces = ["a", "b"]
            token-file = "/etc/passwd"
            credential-helper = "/x;y"
            "#,
        )
        .unwrap();
        let settings = Settings { remotes: Some("/no/such/file".into()), ..table };
        let error = Config::from_settings(settings, "/tmp/state".into(), None).unwrap_err().to_string();
        for words in [
            "remotes: /no/such/file",
            "must end with a slash",
            "`namespaces` is missing",
            "write https://host/path",
            "credentials do not belong",
            "`namespaces`: ",
            "ssh:// needs `known-hosts`",
            "`token-file` means nothing for ssh://",
            "`ssh-key` means nothing for https://",
            "`ca`: \"relative/path\" must be an absolute path",
            "`proxy` must be",
            "`username` needs `token-file`",
            "more than one credential",
            "chmod 600 /etc/passwd",
            "an earlier table has the same prefix",
        ] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
        assert!(!error.contains("no-token"), "a value is never repeated: {error}");
    }
}
