//! The contracts of `Store` and `Lease`, unchanged.

use super::cluster::cluster;
use crate::contracts::{lease, store};
use mosaic::store::kube::KubeLease;
use std::sync::Arc;

mod of_the_store {
    crate::contracts::store::every_promise!(super::fresh_store);
}

mod of_the_lease {
    crate::contracts::lease::every_promise!(super::fresh_lease);
    crate::contracts::wishes::every_promise_of_wishes!(super::fresh_lease);
}

async fn fresh_store() -> Option<store::Fixture> {
    let cluster = cluster(&this_test()).await?;
    let store = Arc::new(cluster.store());
    Some(store::Fixture { store, changes_max: None, history_max: 5, _keep: Box::new(cluster) })
}

async fn fresh_lease() -> Option<lease::Fixture> {
    let cluster = cluster(&this_test()).await?;
    let store = cluster.store();
    let candidate =
        move || -> Arc<dyn mosaic::store::lease::Lease> { Arc::new(KubeLease::new(&store, &uuid::Uuid::new_v4().to_string(), None)) };
    Some(lease::Fixture { candidate: Box::new(candidate), _keep: Box::new(cluster) })
}

fn this_test() -> String {
    std::thread::current().name().unwrap_or("kube::contract").to_owned()
}
