//! How long agents of another controller are waited for.

use mosaic::api::names::Uid;
use mosaic::effect::waits::{Seen, Waits};
use std::time::{Duration, Instant};

fn after(began: Instant, seconds: u64) -> Instant {
    began + Duration::from_secs(seconds)
}

#[test]
fn the_wait_begins_with_the_last_look_at_something_that_lives() {
    let (waits, uid, began) = (Waits::default(), Uid::new("waited-for").unwrap(), Instant::now());
    let look = |lives: bool, seconds: u64| {
        let seen = Seen { has_pods: lives, lives, is_attended: false };
        waits.looked(&uid, ("other", false), &seen, after(began, seconds))
    };
    assert_eq!(look(false, 0), (began, false));
    assert_eq!(look(false, 10), (began, false));
    assert_eq!(look(true, 20), (after(began, 20), true));
    assert_eq!(look(false, 30), (after(began, 20), true), "and it is remembered that there were pods");
    let attended = Seen { is_attended: true, ..Seen::default() };
    assert_eq!(waits.looked(&uid, ("other", false), &attended, after(began, 32)).0, after(began, 32), "or at its controller");
    waits.forget(&uid);
    assert_eq!(look(false, 35), (after(began, 35), false));
}

#[test]
fn a_wait_begins_anew_for_another_controller_for_a_deletion_and_after_a_gap() {
    let (waits, uid, began) = (Waits::default(), Uid::new("waited-for").unwrap(), Instant::now());
    let since = |other: &str, deleted: bool, seconds: u64| waits.looked(&uid, (other, deleted), &Seen::default(), after(began, seconds)).0;
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
    waits.looked(&uid, ("other", false), &Seen { lives: true, ..Seen::default() }, began);
    waits.tell(&uid, "it runs", began);
    assert_eq!(waits.told(&uid, false, after(began, 4)).as_deref(), Some("it runs"));
    assert_eq!(waits.told(&uid, false, after(began, 6)), None);
    assert_eq!(waits.told(&uid, true, after(began, 1)), None, "what is to end is looked at until it has");
    waits.looked(&uid, ("other", false), &Seen::default(), after(began, 7));
    waits.tell(&uid, "it has ended", after(began, 7));
    assert_eq!(waits.told(&uid, true, after(began, 8)).as_deref(), Some("it has ended"));
}

#[test]
fn a_given_up_agent_is_looked_at_again_before_the_wait_begins_anew() {
    let (waits, uid, began) = (Waits::default(), Uid::new("waited-for").unwrap(), Instant::now());
    let pause = mosaic::plan::elsewhere::SUSPENDED_RECHECK;
    for round in 0..4 {
        let (since, _) = waits.looked(&uid, ("other", false), &Seen::default(), began + pause * round * 2);
        assert_eq!(since, began, "even where one look is missed");
    }
}
