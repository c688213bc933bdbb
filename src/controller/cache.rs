//! The slim cache: enough of each record to queue it, never enough to decide. A pass reads the whole record live.
//!
//! Both kinds share one cache and one queue. An agent always has a namespace and a halt never has one: that tells them apart.

use crate::store::{Key, Kind, Record};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use std::borrow::Cow;

/// A record's name; the rest stays in the store.
#[derive(Debug, Clone)]
pub struct Slim {
    metadata: ObjectMeta,
}

impl Slim {
    /// The slim form of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let metadata =
            ObjectMeta { name: record.metadata.name.clone(), namespace: record.metadata.namespace.clone(), ..ObjectMeta::default() };
        Self { metadata }
    }

    /// The slim form of a record that is gone.
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
