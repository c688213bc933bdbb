//! How long agents of another controller are waited for.

use mosaic::api::names::Uid;
use mosaic::effect::waits::Waits;
use std::time::{Duration, Instant};

fn after(began: Instant, seconds: u64) -> Instant {
    began + Duration::from_secs(seconds)
}

#[test]
fn the_wait_begins_with_the_last_look_at_something_that_lives() {
    let (waits, uid, began) = (Waits::default(), Uid::new("waited-for").unwrap(), Instant::now());
    let look = |lives: bool, seconds: u64| waits.looked(&uid, ("other", false), lives, lives, after(began, seconds));
    assert_eq!(look(false, 0), (began, false));
    assert_eq!(look(false, 10), (began, false));
    assert_eq!(look(true, 20), (after(began, 20), true));
    assert_eq!(look(false, 30), (after(began, 20), true), "and it is remembered that there were pods");
    waits.forget(&uid);
    assert_eq!(look(false, 35), (after(began, 35), false));
}

#[test]
fn a_wait_begins_anew_for_another_controller_for_a_deletion_and_after_a_gap() {
    let (waits, uid, began) = (Waits::default(), Uid::new("waited-for").unwrap(), Instant::now());
    let since = |other: &str, deleted: bool, seconds: u64| waits.looked(&uid, (other, deleted), false, false, after(began, seconds)).0;
    assert_eq!(since("other", false, 0), began);
    assert_eq!(since("other", true, 10), after(began, 10), "its own controller has its time to keep what it has");
    assert_eq!(since("third", true, 20), after(began, 20));
    assert_eq!(since("third", true, 30), after(began, 20));
    // Nobody looked: another one led, for the shortest term that there is, and whose it is may have done all it had to.
    let term = mosaic::controller::handover::TERM_MIN.as_secs();
    assert_eq!(since("third", true, 30 + term), after(began, 30 + term));
}

#[test]
fn what_was_said_stands_for_a_moment() {
    let (waits, uid, began) = (Waits::default(), Uid::new("waited-for").unwrap(), Instant::now());
    waits.looked(&uid, ("other", false), false, true, began);
    waits.tell(&uid, "it runs", began);
    assert_eq!(waits.told(&uid, after(began, 4)).as_deref(), Some("it runs"));
    assert_eq!(waits.told(&uid, after(began, 6)), None);
}
