//! Several controllers on one store, each with a state folder of its own: what has to be so on every store that they can share.

use crate::harness::{Mosaic, Remote, gates, sandbox_pids, task};
use rustix::process::Signal;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

const LEADS: &str = "this controller leads";
/// How long agents run whose controller comes back meanwhile, and those of the one that leads then.
const HELD_SECONDS: u64 = 30;
const OWN_SECONDS: u64 = 50;

pub fn says(mosaic: &Mosaic, words: &str) -> bool {
    let (code, text) = mosaic.call("GET", "/readyz?verbose", None);
    code == 200 && text.as_str().is_some_and(|text| text.contains(words))
}

pub fn wait_until(what: &str, longest: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < longest, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

/// One leads; the other stands by, serves, and takes over. `flags` name the store, `shared` is a folder that both may have repositories in.
pub fn one_leads_and_the_other_takes_over(flags: &[&str], shared: &Path) {
    let (mut first, mut second) = (Mosaic::start(flags), Mosaic::start(flags));
    assert!(says(&first, LEADS) && !says(&second, LEADS), "one leads");
    let remote = Remote::new(shared, "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);

    // Declared to the one that stands by, done by the one that leads, and read at either.
    let early = second.spawn(&task(&remote, "early", "echo early > early.txt"));
    first.wait_completed(&early);
    assert_eq!(second.object(&early)["status"], first.object(&early)["status"]);

    let doomed = first.spawn(&task(&remote, "doomed", "sleep 600"));
    let held = first.spawn(&task(&remote, "held", "sleep 45; echo held > held.txt"));
    for uid in [&held, &doomed] {
        first.wait(uid, "the run", |object| object["status"]["phase"] == "Running");
    }
    first.sigkill();
    let replaced = wait_until("the other one takes over", Duration::from_secs(10), || says(&second, LEADS));
    println!("a killed leader was replaced after {replaced:?}");
    assert!(replaced < Duration::from_secs(6), "{replaced:?}");
    let later = second.spawn(&task(&remote, "later", "echo later > later.txt"));
    second.wait_completed(&later);
    // What runs elsewhere cannot be looked at: it is neither begun again nor taken for dead.
    let object = second.wait(&held, "the unknown", |object| object["status"]["reason"] == "CannotObserve");
    assert_eq!((&object["status"]["phase"], &object["status"]["attempt"]), (&json!("Running"), &json!(1)));
    assert!(sandbox_pids(&second.state()).is_empty(), "nothing of it was started here");
    assert_eq!(sandbox_pids(&first.state()).len(), 2, "and it lives on there");

    first.up();
    assert!(!says(&first, LEADS), "who comes back stands by");
    // A kill reaches what the one that stands by holds: nobody else can.
    let (code, ending) = second.call("POST", &format!("/agents/{doomed}/kill"), Some(&json!({})));
    assert_eq!((code, &ending["verified"]), (200, &json!(true)), "{ending}");
    assert_eq!(sandbox_pids(&first.state()).len(), 1, "the other one lives on");
    assert!(says(&second, LEADS) && !says(&first, LEADS));
    let ended = Instant::now();
    second.sigterm();
    wait_until("a clean end hands over", Duration::from_secs(10), || says(&first, LEADS));
    println!("a clean end handed over after {:?}, the end itself included", ended.elapsed());
    let object = first.wait_completed(&held);
    assert_eq!(object["status"]["attempt"], 1, "it was run once");
    assert_eq!(remote.agent_refs().len(), 3, "one ref each");
    first.assert_nothing_left();
    second.up();
    second.assert_nothing_left();
}

/// A leader that stands still doubles nothing when it goes on: the first of three that were just started. `versions` is what of the records may
/// not change by that.
pub fn stopped_leader_doubles_nothing<T: PartialEq + std::fmt::Debug>(
    controllers: [Mosaic; 3],
    shared: &Path,
    versions: impl Fn() -> Vec<T>,
) {
    assert!(says(&controllers[0], LEADS));
    let remote = Remote::new(shared, "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let jobs = |from: usize| -> Vec<String> {
        (from..from + 4).map(|n| controllers[1].spawn(&task(&remote, &format!("job-{n}"), &format!("echo {n} > note-{n}.txt")))).collect()
    };
    let mut uids = jobs(0);
    std::thread::sleep(Duration::from_millis(700));
    controllers[0].signal(Signal::STOP);
    let stopped = Instant::now();
    wait_until("another leads", Duration::from_secs(10), || controllers[1..].iter().any(|controller| says(controller, LEADS)));
    uids.extend(jobs(4));
    for uid in &uids[4..] {
        controllers[1].wait_completed(uid);
    }
    let seconds = std::env::var("MOSAIC_TEST_STOP_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(stopped.elapsed()));
    // What has ended does not change any more, whoever goes on.
    let before = versions();
    controllers[0].signal(Signal::CONT);
    wait_until("it finds itself replaced", Duration::from_secs(10), || says(&controllers[0], "stands by"));
    let after = versions();
    assert!(before.iter().all(|version| after.contains(version)), "{before:?} {after:?}");
    // What it had begun before goes on once it leads again.
    let [first, mut second, mut third] = controllers;
    second.sigterm();
    third.sigterm();
    for uid in &uids {
        let object = first.wait_completed(uid);
        let name = object["status"]["push"]["ref"].as_str().unwrap();
        assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each");
        assert_eq!(object["status"]["push"]["sha"].as_str(), remote.refs().get(name).map(String::as_str));
    }
    assert_eq!(remote.agent_refs().len(), uids.len(), "one ref each");
    first.assert_nothing_left();
}

/// What ends at a controller that stands by is delivered by it: whoever leads hands the lease over for that, and gets it back for its own. `within` is
/// how long that takes at most, from the end of the run.
pub fn the_lease_is_handed_to_who_has_to_finish([mut first, second]: [Mosaic; 2], shared: &Path, within: Duration) {
    assert!(says(&first, LEADS) && !says(&second, LEADS));
    let remote = Remote::new(shared, "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let held = first.spawn(&task(&remote, "held", &format!("sleep {HELD_SECONDS}; echo held > held.txt")));
    first.wait(&held, "the run", |object| object["status"]["phase"] == "Running");
    let began = Instant::now();
    first.sigkill();
    wait_until("the other one takes over", Duration::from_secs(10), || says(&second, LEADS));
    let own = second.spawn(&task(&remote, "own", &format!("sleep {OWN_SECONDS}; echo own > own.txt")));
    second.wait(&own, "the run", |object| object["status"]["phase"] == "Running");
    let own_began = Instant::now();
    first.up();
    wait_until("who comes back stands by", Duration::from_secs(10), || says(&first, "stands by"));
    assert!(began.elapsed() < Duration::from_secs(HELD_SECONDS), "it came back before the end: {:?}", began.elapsed());
    assert!(says(&second, LEADS) && !second.log().contains("hands the lease"), "what runs is no reason to hand over");

    let done = first.wait_completed(&held);
    let took = began.elapsed().saturating_sub(Duration::from_secs(HELD_SECONDS));
    println!("delivered {took:?} after its end, by the controller that had stood by");
    assert!(took < within, "{took:?}");
    assert!(second.log().contains("hands the lease to another one, which has agents of its own to finish"), "{}", second.log());
    assert!(says(&first, LEADS) && says(&second, "stands by"));
    assert_eq!(second.object(&own)["status"]["completedAt"], json!(null), "the other one runs on");
    let others = second.wait_completed(&own);
    println!("and that of the other one {:?} after its own", own_began.elapsed().saturating_sub(Duration::from_secs(OWN_SECONDS)));
    assert!(first.log().contains("hands the lease"), "{}", first.log());
    for object in [&done, &others] {
        assert_eq!((&object["status"]["attempt"], &object["status"]["counts"]["infrastructure"]), (&json!(1), &json!(0)), "{object:#}");
        let name = object["status"]["push"]["ref"].as_str().unwrap();
        assert_eq!(object["status"]["push"]["sha"].as_str(), remote.refs().get(name).map(String::as_str));
        assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each");
    }
    assert_eq!(remote.agent_refs().len(), 2, "one ref each");
    assert_ne!(done["status"]["installation"], others["status"]["installation"]);
    first.assert_nothing_left();
    second.assert_nothing_left();
}
