//! What `trait Lease` promises of wishes to lead, where several controllers can share a store.

use super::lease::{Fixture, leads};
use mosaic::api::names::Epoch;
use mosaic::store::lease::{Acquired, Lease, WISH_TIME};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Makes one test per promise.
macro_rules! every_promise_of_wishes {
    ($factory:path) => {
        $crate::contracts::lease::suite! {
            $factory; wishes:
            a_wish_is_told_to_who_leads_and_lapses,
            a_wish_that_is_repeated_stands,
            who_has_wished_goes_first,
            a_wish_that_has_lapsed_keeps_nobody_out,
            of_two_wishes_the_first_one_stands,
            a_wish_of_who_leads_or_when_nobody_does_is_none,
            who_leads_renews_and_releases_amid_wishes,
            wishes_keep_no_leader_alive_that_has_died,
        }
    };
}
pub(crate) use every_promise_of_wishes;

/// Longest pause between two questions here.
const PAUSE: Duration = Duration::from_millis(500);
/// How much later than it should something may be seen.
const LATE: Duration = Duration::from_secs(2);

async fn is_held(lease: &Arc<dyn Lease>) -> bool {
    matches!(lease.acquire(Epoch(0)).await.unwrap(), Acquired::Held { .. })
}

pub async fn a_wish_is_told_to_who_leads_and_lapses(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let epoch = leads(&a, 0).await;
    for _ in 0..2 {
        assert_eq!(a.renew(epoch).await.unwrap(), None);
        b.wish().await.unwrap();
        let wished = Instant::now();
        let by = a.renew(epoch).await.unwrap().expect("the wish is seen with the next renewal");
        assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
        while a.renew(epoch).await.unwrap().is_some() {
            assert!(wished.elapsed() < WISH_TIME + LATE, "it lapses by itself");
            tokio::time::sleep(PAUSE).await;
        }
        assert!(wished.elapsed() + PAUSE > WISH_TIME, "{:?}", wished.elapsed());
    }
    assert_eq!(leads(&a, 0).await, epoch, "it takes nothing from who leads");
}

pub async fn a_wish_that_is_repeated_stands(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let epoch = leads(&a, 0).await;
    let began = Instant::now();
    while began.elapsed() < WISH_TIME + LATE {
        b.wish().await.unwrap();
        assert!(a.renew(epoch).await.unwrap().is_some(), "after {:?}", began.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
}

pub async fn who_has_wished_goes_first(f: Fixture) {
    let [a, b, c] = [(); 3].map(|()| (f.candidate)());
    let first = leads(&a, 0).await;
    b.wish().await.unwrap();
    a.release(first).await.unwrap();
    assert!(is_held(&c).await && is_held(&a).await, "the lease is free, and waits for one of three");
    let second = leads(&b, 0).await;
    assert!(second > first);
    assert_eq!(b.renew(second).await.unwrap(), None, "the wish is fulfilled");
    b.release(second).await.unwrap();
    assert!(leads(&c, 0).await > second, "and keeps nobody out any more");
}

pub async fn a_wish_that_has_lapsed_keeps_nobody_out(f: Fixture) {
    let [a, b, c] = [(); 3].map(|()| (f.candidate)());
    let first = leads(&a, 0).await;
    b.wish().await.unwrap();
    assert!(is_held(&c).await);
    a.release(first).await.unwrap();
    let freed = Instant::now();
    while is_held(&c).await {
        assert!(freed.elapsed() < WISH_TIME + LATE, "whoever wished has died");
        tokio::time::sleep(PAUSE).await;
    }
}

pub async fn of_two_wishes_the_first_one_stands(f: Fixture) {
    let [a, b, c] = [(); 3].map(|()| (f.candidate)());
    let first = leads(&a, 0).await;
    b.wish().await.unwrap();
    c.wish().await.unwrap();
    a.release(first).await.unwrap();
    assert!(is_held(&c).await);
    let second = leads(&b, 0).await;
    assert_eq!(b.renew(second).await.unwrap(), None);
    c.wish().await.unwrap();
    assert!(b.renew(second).await.unwrap().is_some(), "then it is the next one's turn");
}

pub async fn a_wish_of_who_leads_or_when_nobody_does_is_none(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    b.wish().await.unwrap();
    let epoch = leads(&a, 0).await;
    assert_eq!(a.renew(epoch).await.unwrap(), None, "nobody led whom it could have told");
    a.wish().await.unwrap();
    assert_eq!(a.renew(epoch).await.unwrap(), None);
    a.release(epoch).await.unwrap();
    b.wish().await.unwrap();
    assert!(leads(&a, 0).await > epoch);
}

pub async fn who_leads_renews_and_releases_amid_wishes(f: Fixture) {
    let a = (f.candidate)();
    let epoch = leads(&a, 0).await;
    let wishers = [(); 3].map(|()| (f.candidate)());
    let began = Instant::now();
    let wish = |wisher: Arc<dyn Lease>| async move {
        while began.elapsed() < LATE {
            wisher.wish().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let renew = async {
        while began.elapsed() < LATE {
            a.renew(epoch).await.unwrap();
        }
        a.release(epoch).await.unwrap();
    };
    tokio::join!(renew, futures::future::join_all(wishers.iter().cloned().map(wish)));
    let asked = futures::future::join_all(wishers.iter().map(|wisher| wisher.acquire(Epoch(0)))).await;
    assert_eq!(asked.iter().filter(|a| matches!(a, Ok(Acquired::Leads(_)))).count(), 1, "it was released: {asked:?}");
}

pub async fn wishes_keep_no_leader_alive_that_has_died(f: Fixture) {
    let (a, b) = ((f.candidate)(), (f.candidate)());
    let first = leads(&a, 0).await;
    let died = Instant::now();
    let second = loop {
        b.wish().await.unwrap();
        if let Acquired::Leads(epoch) = b.acquire(Epoch(0)).await.unwrap() {
            break epoch;
        }
        assert!(died.elapsed() < a.ttl().unwrap() + LATE, "nobody renews it any more");
        tokio::time::sleep(PAUSE).await;
    };
    assert!(second > first);
    assert!(a.renew(first).await.is_err());
}
