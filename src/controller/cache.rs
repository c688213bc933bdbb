//! The slim cache: the names of records that are queued, being passed over or due again. kube's queue wants to find in it what it runs;
//! a pass reads the whole record live, so nothing else is kept, and an idle record costs nothing here.
//!
//! Both kinds share one cache and one queue. An agent always has a namespace and a halt never has one: that tells them apart.

use crate::store::{Key, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::{Store, Writer};
use kube::runtime::watcher::Event;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// A record's name; the rest stays in the store.
#[derive(Debug, Clone)]
pub struct Slim {
    metadata: ObjectMeta,
}

impl Slim {
    /// The slim form of a record.
    #[must_use]
    pub fn named(key: &Key) -> Self {
        let namespace = Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty());
        Self { metadata: ObjectMeta { name: Some(key.name.clone()), namespace, ..ObjectMeta::default() } }
    }

    /// Address of the record.
    #[must_use]
    pub fn key(&self) -> Key {
        key(self.metadata.namespace.as_deref(), self.metadata.name.as_deref().unwrap_or_default())
    }
}

impl Resource for Slim {
    type DynamicType = ();
    type Scope = kube::core::DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Record".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        crate::api::names::GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        crate::api::names::VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "records".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The cache and who writes it.
pub struct Queued {
    writer: Writer<Slim>,
    /// Woken since their last pass began.
    woken: BTreeSet<Key>,
}

impl Default for Queued {
    /// Empty, and counts as filled: the queue must not wait for a first list of both kinds to tell it so.
    fn default() -> Self {
        let mut writer = Writer::new(());
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        Self { writer, woken: BTreeSet::new() }
    }
}

impl Queued {
    /// Where the queue looks.
    #[must_use]
    pub fn reader(&self) -> Store<Slim> {
        self.writer.as_reader()
    }

    /// A record is about to be queued.
    pub fn wake(&mut self, key: &Key) {
        self.writer.apply_watcher_event(&Event::Apply(Slim::named(key)));
        self.woken.insert(key.clone());
    }

    /// A pass begins: it sees whatever the record was woken for so far.
    pub fn begin(&mut self, key: &Key) {
        self.woken.remove(key);
    }

    /// A pass has ended that awaits a change. Whatever woke the record since then runs it again.
    pub fn rest(&mut self, key: &Key) {
        if !self.woken.contains(key) {
            self.writer.apply_watcher_event(&Event::Delete(Slim::named(key)));
        }
    }
}

/// The reference by which the queue knows a record.
#[must_use]
pub fn reference(key: &Key) -> ObjectRef<Slim> {
    let reference = ObjectRef::new(&key.name);
    match key.kind {
        Kind::Agent => reference.within(&key.namespace),
        Kind::Halt => reference,
    }
}

/// The address behind a reference.
#[must_use]
pub fn key_of(reference: &ObjectRef<Slim>) -> Key {
    key(reference.namespace.as_deref(), &reference.name)
}

fn key(namespace: Option<&str>, name: &str) -> Key {
    namespace.map_or_else(|| Key::halt(name), |namespace| Key::agent(namespace, name))
}
