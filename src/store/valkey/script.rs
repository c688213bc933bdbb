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
    /// What the server is told of it before it runs.
    flags: &'static str,
    text: &'static str,
    built: OnceLock<(String, String)>,
}

impl Script {
    const fn new(flags: &'static str, text: &'static str) -> Self {
        Self { flags, text, built: OnceLock::new() }
    }

    /// The whole text, with what all scripts share, and its hash.
    fn built(&self) -> &(String, String) {
        self.built.get_or_init(|| {
            let source = format!("#!lua{}\n{}{}", self.flags, include_str!("scripts/head.lua"), self.text);
            let hash = Sha1::digest(&source).iter().map(|byte| format!("{byte:02x}")).collect();
            (source, hash)
        })
    }
}

/// A full memory refuses it before it has done anything.
const ORDINARY: &str = "";
/// A full memory does not refuse it: what ends agents, frees memory or says who leads must go on. It adds little, and to what is there already.
const URGENT: &str = " flags=allow-oom";
/// It only reads: it runs with a full memory and on a replica.
const READING: &str = " flags=no-writes";

pub(super) static OPEN: Script = Script::new(URGENT, include_str!("scripts/open.lua"));
pub(super) static POSITION: Script = Script::new(READING, include_str!("scripts/position.lua"));
pub(super) static CREATE: Script = Script::new(ORDINARY, include_str!("scripts/create.lua"));
pub(super) static PUT_HEAD: Script = Script::new(ORDINARY, include_str!("scripts/put_head.lua"));
pub(super) static PUT_HEAD_OF_ENDING: Script = Script::new(URGENT, include_str!("scripts/put_head.lua"));
pub(super) static PUT_STATUS: Script = Script::new(ORDINARY, include_str!("scripts/put_status.lua"));
pub(super) static PUT_STATUS_OF_ENDING: Script = Script::new(URGENT, include_str!("scripts/put_status.lua"));
pub(super) static REMOVE: Script = Script::new(URGENT, include_str!("scripts/remove.lua"));
pub(super) static ARCHIVE: Script = Script::new(URGENT, include_str!("scripts/archive.lua"));
pub(super) static LEASE: Script = Script::new(URGENT, include_str!("scripts/lease.lua"));

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
        let (name, script) = if by_text { ("EVAL", &self.script.built().0) } else { ("EVALSHA", &self.script.built().1) };
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
