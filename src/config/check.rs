//! Checking single values: each method gives a value even where the text cannot be used, and keeps the sentence about it.

use super::LISTEN_DEFAULT;
use crate::api::agent::Driver;
use crate::api::names::Namespace;
use crate::api::validate::parse_duration;
use crate::inside::confine::PRIMITIVES;
use crate::sandbox::docker::IMAGE_DEFAULT;
use crate::sandbox::docker::image::check_name;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The sentences about values that cannot be used. Each method gives a value even then: it is thrown away with the whole.
#[derive(Default)]
pub(super) struct Check(pub(super) Vec<String>);

impl Check {
    pub(super) fn listen(&mut self, text: &str) -> SocketAddr {
        let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = if let Some(port) = text.strip_prefix("localhost:") { format!("127.0.0.1:{port}") } else { text.to_owned() };
        match SocketAddr::from_str(&address) {
            Ok(found) if found.ip().is_loopback() => found,
            Ok(found) => {
                self.0.push(format!(
                    "listen: {found} can be reached from outside; only loopback addresses are served (127.0.0.1 or [::1]), use a tunnel such as `ssh -L` to get there"
                ));
                fallback
            }
            Err(_) => {
                self.0.push(format!("listen: {text:?} is no address and port; write it as {LISTEN_DEFAULT}"));
                fallback
            }
        }
    }

    pub(super) fn driver(&mut self, text: Option<&str>) -> Driver {
        match text {
            None | Some("auto") => Driver::Auto,
            Some("docker") => Driver::Docker,
            Some("process") => Driver::Process,
            Some("pod") => Driver::Pod,
            Some(other) => {
                self.0.push(format!("driver: {other:?} is not one of auto, docker, process and pod"));
                Driver::Auto
            }
        }
    }

    pub(super) fn image(&mut self, text: Option<String>) -> String {
        let text = text.unwrap_or_else(|| IMAGE_DEFAULT.to_owned());
        if let Err(why) = check_name(&text) {
            self.0.push(format!("sandbox-image: {why}"));
        }
        text
    }

    pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
        &mut self,
        name: &str,
        text: Option<String>,
        default: T,
        min: T,
        max: T,
    ) -> T {
        let Some(text) = text else { return default };
        match text.trim().parse::<T>() {
            Ok(value) if value >= min && value <= max => value,
            Ok(_) | Err(_) => {
                self.0.push(format!("{name}: {text:?} is no whole number from {min} to {max}"));
                default
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        name: &str,
        text: Option<String>,
        default_seconds: u64,
        min_seconds: u64,
        max_seconds: u64,
    ) -> Duration {
        let default = Duration::from_secs(default_seconds);
        let Some(text) = text else { return default };
        match parse_duration(text.trim()) {
            Ok(value) if value >= Duration::from_secs(min_seconds) && value <= Duration::from_secs(max_seconds) => value,
            Ok(_) | Err(_) => {
                self.0.push(format!("{name}: {text:?} is no duration from {min_seconds}s to {max_seconds}s (such as 90s, 5m or 1h)"));
                default
            }
        }
    }

    pub(super) fn primitives(&mut self, names: Vec<String>) -> Vec<String> {
        let primitives = PRIMITIVES.iter().filter(|p| p.can_be_allowed()).map(|p| p.name);
        let limits = crate::sandbox::limits::LIMITS.iter().filter(|limit| limit.required).map(|limit| limit.name);
        let optional: Vec<&str> = primitives.chain(limits).collect();
        for name in names.iter().filter(|name| !optional.contains(&name.as_str())) {
            let why = if PRIMITIVES.iter().any(|p| p.name == name) {
                "nothing can start without it"
            } else {
                "there is no such primitive or limit"
            };
            self.0.push(format!("allow-missing: {name:?}: {why}; one of {} can be named", optional.join(", ")));
        }
        names
    }

    pub(super) fn line(&mut self, name: &str, text: Option<String>, default: &str) -> String {
        let Some(text) = text else { return default.to_owned() };
        let text = text.trim().to_owned();
        // What git itself refuses in an identity, and what would end the header line.
        if text.is_empty() || text.len() > 200 || text.chars().any(|c| c.is_control() || c == '<' || c == '>') {
            self.0.push(format!("{name}: use 1 to 200 characters on one line, without < and >"));
        }
        text
    }

    pub(super) fn namespace(&mut self, text: &str) -> Namespace {
        Namespace::new(text).unwrap_or_else(|e| {
            self.0.push(format!("default-namespace: {e}"));
            Namespace::new("default").expect("a plain word is a namespace")
        })
    }

    pub(super) fn absolute(&mut self, name: &str, path: PathBuf) -> PathBuf {
        std::path::absolute(&path).unwrap_or_else(|e| {
            self.0.push(format!("{name}: {path:?}: {e}"));
            path
        })
    }

    pub(super) fn folders(&mut self, name: &str, texts: Vec<String>) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for text in texts.into_iter().filter(|t| !t.is_empty()) {
            match std::fs::canonicalize(&text) {
                Ok(path) if path.is_dir() => found.push(path),
                Ok(_) => self.0.push(format!("{name}: {text:?} is no folder")),
                Err(e) => self.0.push(format!("{name}: {text:?}: {e}")),
            }
        }
        found
    }
}
