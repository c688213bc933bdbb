//! AGAIN AND AGAIN: reflector cache and kube's `applier` as the one work queue for all stores.

pub mod reconcile;
