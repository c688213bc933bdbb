//! The server-side scripts: what they are, how one is called, and what it answers.
//!
//! A script is called by its hash; a server that does not know it (it was restarted) is sent the text once. That is safe to repeat: a script
//! that is not known was not run.

use fred::bytes::Bytes;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use sha1::{Digest, Sha1};
use std::sync::OnceLock;

/// A script and its hash.
#[derive(Debug)]
pub(super) struct Script {
    source: &'static str,
    hash: OnceLock<String>,
}

impl Script {
    fn hash(&self) -> &str {
        self.hash.get_or_init(|| Sha1::digest(self.source).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// What all scripts share, then the text of one.
macro_rules! script {
    ($file:literal) => {
        Script { source: concat!(include_str!("scripts/head.lua"), include_str!(concat!("scripts/", $file))), hash: OnceLock::new() }
    };
}

pub(super) static OPEN: Script = script!("open.lua");
pub(super) static POSITION: Script = script!("position.lua");
pub(super) static CREATE: Script = script!("create.lua");
pub(super) static PUT_HEAD: Script = script!("put_head.lua");
pub(super) static PUT_STATUS: Script = script!("put_status.lua");
pub(super) static REMOVE: Script = script!("remove.lua");
pub(super) static ARCHIVE: Script = script!("archive.lua");
pub(super) static ACQUIRE: Script = script!("acquire.lua");
pub(super) static RENEW: Script = script!("renew.lua");

/// One call of a script.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) script: &'static Script,
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<Value>,
}

impl Call {
    /// Sends it to wherever `client` puts it: a connection, or a pipeline that is being filled.
    pub(super) async fn send<C: ClientLike>(&self, client: &C, by_text: bool) -> Result<Value, Error> {
        let (name, script) = if by_text { ("EVAL", self.script.source) } else { ("EVALSHA", self.script.hash()) };
        let slot = self.keys.first().map_or(0, |key| fred::util::redis_keyslot(key.as_bytes()));
        let count = i64::try_from(self.keys.len()).expect("a handful of keys");
        let keys = self.keys.iter().map(Value::from);
        let args: Vec<Value> = [script.into(), count.into()].into_iter().chain(keys).chain(self.args.iter().cloned()).collect();
        client.custom(CustomCommand::new_static(name, ClusterHash::Custom(slot), false), args).await
    }

    /// Runs it by its hash, or by its text where the server does not know it.
    pub(super) async fn run(&self, client: &Client) -> Result<Value, Error> {
        match self.send(client, false).await {
            Err(error) if is_unknown_script(&error) => self.send(client, true).await,
            answer => answer,
        }
    }
}

/// Whether the server does not know the script: it was not run.
pub(super) fn is_unknown_script(error: &Error) -> bool {
    error.details().starts_with("NOSCRIPT")
}

/// What a script answered: a word, and for some words more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) word: String,
    pub(super) more: Vec<Bytes>,
}

impl Reply {
    /// Reads a list of texts. An answer of another form is no answer of our scripts.
    pub(super) fn read(value: Value) -> Option<Self> {
        let Value::Array(items) = value else { return None };
        let mut texts = items.into_iter().map(Value::into_bytes);
        let word = String::from_utf8(texts.next()??.to_vec()).ok()?;
        Some(Self { word, more: texts.map(Option::unwrap_or_default).collect() })
    }

    /// The first text behind the word.
    pub(super) fn first(&self) -> &[u8] {
        self.more.first().map(AsRef::as_ref).unwrap_or_default()
    }
}
