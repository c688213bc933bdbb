//! Where a Valkey server is and how one gets in. What is shown of it never holds the password.

use crate::api::names::Secret;
use fred::types::config::{Config, ServerConfig};
use std::fmt;

/// Schemes that are understood; `redis` in place of `valkey` means the same.
const SCHEMES: &str = "valkey://, valkeys:// (TLS), valkey-cluster:// or valkey+unix://";

/// The address of a server with its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct ValkeyUrl {
    full: Secret,
    shown: String,
}

impl ValkeyUrl {
    /// Checks an address such as `valkey://user:password@host:6379/0`.
    /// # Errors
    /// What is wrong with it; the text does not repeat the address, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("is no address; write {SCHEMES} followed by host:port"));
        };
        let kind = scheme.strip_prefix("redis").or_else(|| scheme.strip_prefix("valkey"));
        if !matches!(kind, Some("" | "s" | "-cluster" | "s-cluster" | "+unix")) {
            return Err(format!("has an unknown scheme; use {SCHEMES}"));
        }
        let url = Self { full: Secret::new(text), shown: format!("{scheme}://{}", without_credentials(rest)) };
        url.config().map(|_| url).map_err(|error| format!("cannot be used: {}", error.details()))
    }

    /// The settings of a connection.
    pub(super) fn config(&self) -> Result<Config, fred::error::Error> {
        let config = Config::from_url(self.full.expose())?;
        match &config.server {
            ServerConfig::Centralized { server } if server.host.is_empty() => {
                Err(fred::error::Error::new(fred::error::ErrorKind::Url, "the host is missing"))
            }
            _ => Ok(config),
        }
    }
}

/// Everything behind the scheme without user, password and options.
fn without_credentials(rest: &str) -> &str {
    // A password may hold anything, even '@' and '?': what stands behind the last '@' is the host.
    let place = rest.rsplit('@').next().unwrap_or_default();
    place.split(['?', '#']).next().unwrap_or_default()
}

impl fmt::Display for ValkeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for ValkeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ValkeyUrl({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_holds_no_password() {
        for text in [
            "valkey://mosaic:hunter2@store.example.org:6379/1",
            "redis://:hunter2@store.example.org:6379/1",
            "valkeys://mosaic:hunter2@store.example.org:6379/1",
            "valkey-cluster://mosaic:hunter2@store.example.org:6379?node=b:1",
        ] {
            let url = ValkeyUrl::parse(text).unwrap();
            assert!(url.to_string().ends_with("store.example.org:6379/1") || text.contains("cluster"), "{url}");
            assert!(!format!("{url} {url:?}").contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for text in ["hunter2", "http://mosaic:hunter2@x", "valkey://", "valkey://mosaic:hunter2@host:notaport", "redis-sentinel://hunter2"]
        {
            let why = ValkeyUrl::parse(text).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
