//! Which keeper holds the records, and how a Valkey server is reached. How a cluster is reached is kubectl's own configuration.

use super::Check;
use crate::api::names::{AgentName, Secret};
use crate::store::valkey::{Durability, ValkeyUrl};

/// The keeper of the records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreChoice {
    /// One file in the state folder.
    #[default]
    Embedded,
    /// A Valkey server, which several controllers may share.
    Valkey {
        /// Where it is.
        url: ValkeyUrl,
        /// What an acknowledged write means.
        durability: Durability,
        /// Names one of several stores on the server.
        prefix: String,
    },
    /// The API server of a Kubernetes cluster, which several controllers may share.
    Kube,
}

impl Check {
    /// A server's address alone chooses it.
    pub(super) fn store(
        &mut self,
        store: Option<&str>,
        url: Option<&Secret>,
        durability: Option<&str>,
        prefix: Option<&str>,
    ) -> StoreChoice {
        let url = url.filter(|url| !url.expose().trim().is_empty());
        let wants_valkey = match store {
            None => url.is_some(),
            Some("embedded" | "kube") => false,
            Some("valkey") => true,
            Some(other) => {
                self.0.push(format!("store: {other:?} is not one of embedded, valkey and kube"));
                false
            }
        };
        let durability = match durability {
            None => Durability::Auto,
            Some("aof") => Durability::Aof,
            Some("none") => Durability::None,
            Some(other) => {
                self.0.push(format!("valkey-durability: {other:?} is not one of aof and none"));
                Durability::Auto
            }
        };
        let prefix = prefix.unwrap_or("default");
        if AgentName::new(prefix).is_err() {
            self.0.push(format!("valkey-prefix: {prefix:?}: use at most 63 small letters, digits and '-'"));
        }
        match (wants_valkey, url.map(|url| ValkeyUrl::parse(url.expose()))) {
            (false, _) => return if store == Some("kube") { StoreChoice::Kube } else { StoreChoice::Embedded },
            (true, Some(Ok(url))) => return StoreChoice::Valkey { url, durability, prefix: prefix.to_owned() },
            (true, Some(Err(why))) => self.0.push(format!("valkey-url: {why}")),
            (true, None) => self.0.push("valkey-url: is missing; write it as valkey://host:6379".to_owned()),
        }
        StoreChoice::Embedded
    }
}
