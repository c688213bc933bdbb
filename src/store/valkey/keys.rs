//! The names of everything on the server. One hash tag for all: a cluster keeps them in one place, so that one script may use them all.

use crate::store::{Key, Kind};

/// Names beneath one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    tag: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { tag: format!("{{mosaic:{prefix}}}") }
    }

    /// The slot of a cluster in which all of them are.
    pub(super) fn slot(&self) -> u16 {
        fred::util::redis_keyslot(self.tag.as_bytes())
    }

    fn named(&self, name: &str) -> String {
        format!("{}:{name}", self.tag)
    }

    /// Hash: format, id, last version, leader epoch, last place in the history.
    pub(super) fn meta(&self) -> String {
        self.named("meta")
    }

    /// Hash: the records of a kind by [`field`].
    pub(super) fn records(&self, kind: Kind) -> String {
        self.named(match kind {
            Kind::Agent => "agents",
            Kind::Halt => "halts",
        })
    }

    /// Stream: every change, its id is its version.
    pub(super) fn changes(&self) -> String {
        self.named("changes")
    }

    /// Stream: what agents went through, for others to read.
    pub(super) fn events(&self) -> String {
        self.named("events")
    }

    /// Hash: the last state of records that are gone, by uid.
    pub(super) fn history(&self) -> String {
        self.named("history")
    }

    /// Sorted set: uids in the order in which they came into the history.
    pub(super) fn history_order(&self) -> String {
        self.named("history-order")
    }

    /// Text: who leads. It goes by itself.
    pub(super) fn lease(&self) -> String {
        self.named("lease")
    }

    /// Text: who wishes to lead. It goes by itself.
    pub(super) fn wish(&self) -> String {
        self.named("wish")
    }

    /// The keys of every script that writes a record.
    pub(super) fn of_write(&self, kind: Kind) -> Vec<String> {
        vec![self.meta(), self.records(kind), self.changes(), self.events(), self.named("agent-states"), self.named("task-states")]
    }
}

/// Field of a record in the hash of its kind.
pub(super) fn field(key: &Key) -> String {
    match key.kind {
        Kind::Agent => format!("{}/{}", key.namespace, key.name),
        Kind::Halt => key.name.clone(),
    }
}
