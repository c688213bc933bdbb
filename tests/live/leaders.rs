//! Candidates for a leader lease, as the tests of both stores with one need them; and what they have to show on either.

use mosaic::api::names::Epoch;
use mosaic::controller::handover::TERM_MIN;
use mosaic::controller::leadership::{Business, Leadership};
use mosaic::store::lease::{Acquired, Lease};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

/// Within which a leader that is gone is replaced.
const REPLACED_WITHIN: Duration = Duration::from_secs(6);

/// Within which a lease is handed over that nothing holds: one renewal, and the next question of who has wished.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(4);

/// A candidate that asks and holds on in the background as long as this lives.
pub struct Held {
    leadership: Arc<Leadership>,
    task: tokio::task::JoinHandle<()>,
}

impl std::ops::Deref for Held {
    type Target = Leadership;
    fn deref(&self) -> &Leadership {
        &self.leadership
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn hold(lease: Arc<dyn Lease>) -> Held {
    hold_for(lease, Business::none())
}

/// The same with something to do.
fn hold_for(lease: Arc<dyn Lease>, business: Business) -> Held {
    let leadership = Arc::new(Leadership::new(lease, Epoch(0)));
    let held = leadership.clone();
    Held { leadership, task: tokio::spawn(async move { held.run(&business).await }) }
}

pub async fn until_it_leads(leadership: &Leadership) -> Epoch {
    let started = Instant::now();
    loop {
        if let Some(epoch) = leadership.epoch() {
            return epoch;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{}", leadership.describe());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Leads, and says its epoch again and again: the part of a child process.
pub async fn lead_and_say_so(lease: Arc<dyn Lease>) -> ! {
    let leadership = hold(lease);
    loop {
        println!("\nepoch {}", leadership.epoch().map_or(0, |epoch| epoch.0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A leader in a process of its own, which plays an ignored test.
pub struct Leader {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Leader {
    /// Starts it; the variable tells the child that it is one.
    pub fn start(test: &str, variable: &str, value: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--ignored", "--nocapture"]).env(variable, value);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The epoch that it believes to have, as it says it next; 0: none.
    fn next_epoch(&mut self) -> u64 {
        loop {
            let line = self.lines.next().expect("the child goes on").unwrap();
            if let Some(epoch) = line.strip_prefix("epoch ") {
                return epoch.parse().unwrap();
            }
        }
    }

    fn first_epoch(&mut self) -> u64 {
        loop {
            match self.next_epoch() {
                0 => {}
                epoch => return epoch,
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A leader that is killed is replaced in time, as often as that happens.
pub async fn killed_leader_is_replaced(rounds: u64, start: impl Fn() -> Leader, candidate: impl Fn() -> Arc<dyn Lease>) {
    let mut longest = Duration::ZERO;
    for round in 1..=rounds {
        let mut leader = start();
        leader.first_epoch();
        let next = hold(candidate());
        tokio::time::sleep(Duration::from_millis(310 * round)).await;
        assert_eq!(next.epoch(), None, "one leads");
        leader.child.kill().unwrap();
        let killed = Instant::now();
        until_it_leads(&next).await;
        longest = longest.max(killed.elapsed());
        drop(leader);
        next.task.abort();
        next.resign().await;
    }
    println!("a killed leader was replaced after {longest:?} at the longest");
    assert!(longest < REPLACED_WITHIN, "{longest:?}");
}

/// A leader that stands still is replaced, and knows it when it goes on.
pub async fn stopped_leader_finds_itself_replaced(mut leader: Leader, candidate: Arc<dyn Lease>) {
    let first = leader.first_epoch();
    leader.signal(rustix::process::Signal::STOP);
    let next = hold(candidate);
    let second = until_it_leads(&next).await;
    assert!(second.0 > first);
    leader.signal(rustix::process::Signal::CONT);
    // What was said before the stop may still be in the pipe; the stop itself may have come between the question and the word.
    let began = Instant::now();
    while leader.next_epoch() != 0 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    for _ in 0..50 {
        assert_eq!(leader.next_epoch(), 0, "it believes no more that it leads");
    }
    assert_eq!(next.epoch(), Some(second));
}

/// Who ends in good order is replaced at once.
pub async fn clean_end_hands_over(first: Arc<dyn Lease>, second: Arc<dyn Lease>) {
    let first = Leadership::new(first, Epoch(0));
    assert!(matches!(first.ask().await.unwrap(), Acquired::Leads(_)));
    let next = hold(second);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(next.epoch(), None);
    let ended = Instant::now();
    first.resign().await;
    assert_eq!(first.epoch(), None);
    until_it_leads(&next).await;
    assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", ended.elapsed());
}

/// Who is cut off (`cut`, until `mend`) leads no more when another one begins.
pub async fn cut_off_leader_stops(first: Arc<dyn Lease>, second: Arc<dyn Lease>, cut: impl FnOnce(), mend: impl FnOnce()) {
    let first = hold(first);
    let epoch = until_it_leads(&first).await;
    let next = hold(second);
    cut();
    let started = Instant::now();
    while next.epoch().is_none() {
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(first.epoch().is_none_or(|held| held == epoch));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(first.epoch(), None, "two never lead at once");
    mend();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(first.epoch(), None);
    assert!(next.epoch() > Some(epoch));
}

/// Of three, who has agents that wait for it leads next, once who leads has had its term and no effects are under way; and so on in turn.
pub async fn who_has_to_lead_gets_the_lease(candidate: impl Fn() -> Arc<dyn Lease>) {
    let (busy, changes) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_busy, changed) = (busy.clone(), changes.clone());
    let first = hold_for(
        candidate(),
        Business {
            is_busy: Box::new(move || is_busy.load(SeqCst)),
            changed: Box::new(move || _ = changed.fetch_add(1, SeqCst)),
            ..Business::none()
        },
    );
    let epoch = until_it_leads(&first).await;
    let led = Instant::now();
    let agents = Arc::new(AtomicUsize::new(2));
    let waiting = agents.clone();
    let second = hold_for(candidate(), Business { waiting: Box::new(move || waiting.load(SeqCst)), ..Business::none() });
    let third = hold(candidate());
    tokio::time::sleep(TERM_MIN + Duration::from_secs(2)).await;
    assert_eq!(first.epoch(), Some(epoch), "effects are under way");
    assert!(first.describe().contains("soon hands the lease to pid"), "{}", first.describe());
    assert!(second.describe().ends_with("; 2 of its agents wait for it to lead"), "{}", second.describe());
    busy.store(false, SeqCst);
    let free = Instant::now();
    while second.epoch().is_none() {
        assert_eq!(third.epoch(), None, "the one that has to goes first");
        assert!(free.elapsed() < HANDED_OVER_WITHIN, "{}", first.describe());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!("the lease was handed over {:?} after nothing stood against it, {:?} after the term began", free.elapsed(), led.elapsed());
    assert_eq!((first.epoch(), changes.load(SeqCst)), (None, 2), "both changes are told: that it led, and that it does not");
    assert!(second.epoch() > Some(epoch));

    // Nothing waits any more, so it stays as it is.
    agents.store(0, SeqCst);
    tokio::time::sleep(TERM_MIN + Duration::from_secs(4)).await;
    assert!(second.epoch().is_some() && first.epoch().is_none() && third.epoch().is_none());
    assert!(second.describe().starts_with("this controller leads, with epoch") && !second.describe().contains("hands"));
}
