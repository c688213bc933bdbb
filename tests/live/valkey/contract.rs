//! The contracts of `Store` and `Lease`, unchanged.

use super::server::shared_url;
use super::{of_one_test, open_with};
use crate::contracts::{lease, store};
use mosaic::store::valkey::ValkeyLease;
use std::sync::Arc;

mod of_the_store {
    crate::contracts::store::every_promise!(super::fresh_store);
}

mod of_the_lease {
    crate::contracts::lease::every_promise!(super::fresh_lease);
    crate::contracts::wishes::every_promise_of_wishes!(super::fresh_lease);
}

async fn fresh_store() -> Option<store::Fixture> {
    let url = shared_url()?;
    let options = of_one_test();
    let (changes_max, history_max) = (Some(options.changes_max), usize::try_from(options.history_max).unwrap());
    let store = open_with(&url, options).await.unwrap();
    Some(store::Fixture { store: Arc::new(store), changes_max, history_max, _keep: Box::new(()) })
}

async fn fresh_lease() -> Option<lease::Fixture> {
    let url = shared_url()?;
    let store = open_with(&url, of_one_test()).await.unwrap();
    Some(lease::Fixture { candidate: Box::new(move || Arc::new(ValkeyLease::new(&store, None))), _keep: Box::new(()) })
}
