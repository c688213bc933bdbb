//! Opening a store: what kind of server it is, whether the store there is ours to read, and what can be promised.

use super::feed::{self, State};
use super::keys::Keys;
use super::link::{ANSWER_WAIT_MAX, Link, LinkError};
use super::script::{Call, OPEN, Reply};
use super::writes::{Writes, confirmed, wait_for_disk};
use super::{Shared, ValkeyStore, ValkeyUrl};
use crate::store::{StoreError, StoreResult};
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// Version of how things are kept; a store with a higher one was written by a newer program.
const FORMAT: u64 = 1;

/// What an acknowledged write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// It is on the server's disk where the server keeps an append-only file; where it does not, that is said loudly.
    #[default]
    Auto,
    /// It is on the server's disk; a server without an append-only file is refused.
    Aof,
    /// It is in the server's memory.
    None,
}

/// Limits of a Valkey store.
#[derive(Debug, Clone)]
pub struct ValkeyOptions {
    /// Names one of several stores on a server.
    pub prefix: String,
    /// What an acknowledged write means.
    pub durability: Durability,
    /// How many changes are kept for watches that resume; who is further behind lists again.
    pub changes_max: u64,
    /// How many events are kept for others to read, about.
    pub events_max: u64,
    /// How many records that are gone are kept in the history.
    pub history_max: u64,
    /// How often a watch without news is told how far it is.
    pub bookmark_interval: Duration,
}

impl Default for ValkeyOptions {
    fn default() -> Self {
        Self {
            prefix: "default".to_owned(),
            durability: Durability::Auto,
            changes_max: 4096,
            events_max: 10_000,
            history_max: 1000,
            bookmark_interval: Duration::from_secs(10),
        }
    }
}

impl ValkeyStore {
    /// Opens the store, or makes one where there is none.
    /// # Errors
    /// `Unavailable` when the server does not answer or refuses; the text says why. `Unusable` when the store was written by a newer version,
    /// or when durability is asked for that the server cannot give.
    pub async fn open(url: &ValkeyUrl, options: ValkeyOptions) -> StoreResult<Self> {
        let keys = Keys::new(&options.prefix);
        let link = Arc::new(Link::new(url.clone()));
        let failed = |what: &str, error| StoreError::Unavailable { what: format!("failed to {what} {url}"), source: Some(Box::new(error)) };
        let (format, id) = enter(&link, &keys).await.map_err(|error| failed("open the store in", error))?;
        if format.parse() != Ok(FORMAT) {
            return Err(StoreError::Unusable(format!(
                "{url} holds a store of another version of mosaic (store format {format}; this one reads {FORMAT}). It was not touched. \
                 Use the version that wrote it, or another --valkey-prefix"
            )));
        }
        let durable = probe(&link, keys.slot()).await.map_err(|error| failed("ask about durability of", error))?;
        let durable = promise(options.durability, durable).map_err(|why| StoreError::Unusable(format!("{url}: {why}")))?;
        let notes = notes(&link, url, &durable).await;
        let writes = Writes::new(link, durable.is_ok(), keys.slot());
        let (reads, id, ring) = (Link::new(url.clone()), RwLock::new(id), feed::Ring::default());
        let shared = Arc::new(Shared { url: url.clone(), options, keys, id, reads, writes, ring });
        let (state, feed) = watch::channel(State::default());
        let feeding = tokio::spawn(feed::run(shared.clone(), Link::that_tells_breaks(url.clone()), state)).abort_handle();
        Ok(Self { shared, feed, feeding, notes, durable })
    }
}

/// Makes the store if there is none; returns its format and id.
async fn enter(link: &Link, keys: &Keys) -> Result<(String, String), LinkError> {
    let new_id = uuid::Uuid::new_v4().to_string();
    let call = Call { script: &OPEN, keys: vec![keys.meta()], args: vec![FORMAT.to_string().into(), new_id.into()] };
    let value = link.call(ANSWER_WAIT_MAX, |client| async move { call.run(&client).await }).await?;
    let odd = || LinkError::Refused("what is there under the name of the store is none of mosaic's".to_owned());
    let reply = Reply::read(value).ok_or_else(odd)?;
    let id = String::from_utf8(reply.first().to_vec()).map_err(|_| odd())?;
    Ok((reply.word, id))
}

/// The server holds another store than before (`seen` is its id; empty: none): takes it as it is, so that what follows sees it. What must not be
/// concluded from that is said by whoever remembers the former id (`controller::orphans::Memory`).
pub(super) async fn replaced(shared: &Shared, seen: &str) -> LinkError {
    let known = shared.id();
    match enter(&shared.reads, &shared.keys).await {
        Ok((_, id)) if id == known => LinkError::Refused(format!("the store was away for a moment (its id was {seen:?}); try again")),
        Ok((format, id)) if format.parse() == Ok(FORMAT) => {
            tracing::error!(server = %shared.url, known, found = id, "THE STORE WAS EMPTIED OR REPLACED: this server has forgotten everything");
            *shared.id.write().unwrap_or_else(PoisonError::into_inner) = id;
            LinkError::Refused("the store was emptied or replaced; look again what is there".to_owned())
        }
        Ok((format, _)) => LinkError::Refused(format!("the store was replaced by one of format {format}; this version reads {FORMAT}")),
        Err(error) => error,
    }
}

/// Whether the server confirms that writes are on its disk; the inner error is the server's word against it.
async fn probe(link: &Link, slot: u16) -> Result<Result<(), String>, LinkError> {
    let ask = |client: Client| async move { Ok(confirmed(wait_for_disk(&client, slot).await)) };
    link.call(ANSWER_WAIT_MAX, ask).await
}

/// What is promised: `Ok` that writes are durable, else why not. The outer error refuses the server.
fn promise(wanted: Durability, found: Result<(), String>) -> Result<Result<(), String>, String> {
    let help = "set `appendonly yes` and `appendfsync always` in the server";
    match (wanted, found) {
        (Durability::None, _) => Ok(Err("writes are acknowledged from memory (--valkey-durability none)".to_owned())),
        (_, Ok(())) => Ok(Ok(())),
        (Durability::Aof, Err(why)) => Err(format!("it does not confirm that writes are on its disk ({why}): {help}")),
        (Durability::Auto, Err(why)) => Ok(Err(format!("WRITES ARE NOT DURABLE: a restart of the server loses them ({why}); {help}"))),
    }
}

/// What people should know about the server. What may not be asked is left out.
async fn notes(link: &Link, url: &ValkeyUrl, durable: &Result<(), String>) -> Vec<String> {
    let setting = async |name: &'static str| {
        let command = CustomCommand::new_static("CONFIG", ClusterHash::FirstKey, false);
        let ask = |client: Client| async move { client.custom::<Value, _>(command, vec!["GET", name]).await };
        let Ok(Value::Array(pair)) = link.call(ANSWER_WAIT_MAX, ask).await else { return None };
        pair.get(1).and_then(Value::as_string)
    };
    let mut notes = Vec::new();
    match durable {
        Ok(()) if setting("appendfsync").await.as_deref() == Some("everysec") => {
            notes.push(format!("store: {url}; durable, but each write waits up to a second: set `appendfsync always`"));
        }
        Ok(()) => notes.push(format!("store: {url}; durable")),
        Err(why) => {
            tracing::warn!(server = %url, "{why}");
            notes.push(format!("store: {url}; {why}"));
        }
    }
    if let Some(policy) = setting("maxmemory-policy").await.filter(|policy| policy != "noeviction") {
        let note = format!("store: THE SERVER MAY THROW RECORDS AWAY when its memory is full (maxmemory-policy {policy}): set noeviction");
        tracing::warn!(server = %url, "{note}");
        notes.push(note);
    }
    notes
}
