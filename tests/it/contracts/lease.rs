//! The contract of `trait Lease`. `every_promise!` makes one test per promise for one form; a form gives a factory of fresh leases, which
//! may answer `None` where it cannot be had (and then says so). What only one form can do is tested beside it.

use mosaic::api::names::Epoch;
use mosaic::store::lease::{Acquired, Lease, LeaseError};
use std::sync::Arc;

/// Makes candidates for one and the same lease.
pub struct Fixture {
    /// A further candidate.
    pub candidate: Box<dyn Fn() -> Arc<dyn Lease> + Send + Sync>,
    /// A folder or a process.
    pub _keep: Box<dyn std::any::Any + Send + Sync>,
}

/// Makes one test per promise of a module.
macro_rules! suite {
    ($factory:path; $module:ident: $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $promise() {
                let fixture: Option<$crate::contracts::lease::Fixture> = $factory().await.into();
                if let Some(fixture) = fixture {
                    $crate::contracts::$module::$promise(fixture).await;
                }
            }
        )*
    };
}

/// Every promise of the contract.
macro_rules! every_promise {
    ($factory:path) => {
        $crate::contracts::lease::suite! {
            $factory; lease:
            one_leads_and_the_other_is_told_who,
            whoever_leads_keeps_its_epoch,
            epochs_only_grow,
            epoch_is_above_what_was_seen_elsewhere,
            released_is_free_for_the_next,
            releasing_what_is_not_held_harms_nobody,
            renewing_what_is_not_held_is_lost,
            of_many_candidates_one_leads,
        }
    };
}
pub(crate) use {every_promise, suite};

/// Leads, or the test has failed.
pub async fn leads(lease: &Arc<dyn Lease>, floor: u64) -> Epoch {
    match lease.acquire(Epoch(floor)).await.unwrap() {
        Acquired::Leads(epoch) => epoch,
        held @ Acquired::Held { .. } => panic!("{held:?}"),
    }
}

pub async fn one_leads_and_the_other_is_told_who(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let epoch = leads(&a, 0).await;
    let Acquired::Held { by } = b.acquire(Epoch(0)).await.unwrap() else { panic!("two leaders") };
    assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
    a.renew(epoch).await.unwrap();
}

pub async fn whoever_leads_keeps_its_epoch(f: Fixture) {
    let a = (f.candidate)();
    let epoch = leads(&a, 0).await;
    assert_eq!(leads(&a, 500).await, epoch);
}

pub async fn epochs_only_grow(f: Fixture) {
    let mut last = Epoch(0);
    for _ in 0..5 {
        let a = (f.candidate)();
        let epoch = leads(&a, 0).await;
        assert!(epoch > last);
        last = epoch;
        a.release(epoch).await.unwrap();
    }
}

pub async fn epoch_is_above_what_was_seen_elsewhere(f: Fixture) {
    let a = (f.candidate)();
    assert_eq!(leads(&a, 41).await, Epoch(42));
    a.release(Epoch(42)).await.unwrap();
    assert_eq!(leads(&a, 7).await, Epoch(43));
}

pub async fn released_is_free_for_the_next(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let first = leads(&a, 0).await;
    a.release(first).await.unwrap();
    let second = leads(&b, 0).await;
    assert!(second > first);
    assert!(matches!(a.renew(first).await, Err(LeaseError::Lost { .. })));
    b.renew(second).await.unwrap();
}

pub async fn releasing_what_is_not_held_harms_nobody(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let epoch = leads(&a, 0).await;
    b.release(epoch).await.unwrap();
    a.release(Epoch(epoch.0 + 1)).await.unwrap();
    a.renew(epoch).await.unwrap();
    assert!(matches!(b.acquire(Epoch(0)).await.unwrap(), Acquired::Held { .. }));
}

pub async fn renewing_what_is_not_held_is_lost(f: Fixture) {
    let a = (f.candidate)();
    assert!(matches!(a.renew(Epoch(1)).await, Err(LeaseError::Lost { .. })));
    let epoch = leads(&a, 0).await;
    assert!(matches!(a.renew(Epoch(epoch.0 + 1)).await, Err(LeaseError::Lost { .. })));
}

pub async fn of_many_candidates_one_leads(f: Fixture) {
    let candidates: Vec<_> = (0..16).map(|_| (f.candidate)()).collect();
    let asked = candidates.iter().map(|c| c.acquire(Epoch(0)));
    let answers = futures::future::join_all(asked).await;
    let leaders = answers.iter().filter(|a| matches!(a, Ok(Acquired::Leads(_)))).count();
    assert_eq!(leaders, 1, "{answers:?}");
}
