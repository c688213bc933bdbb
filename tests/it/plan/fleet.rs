//! Who may run now.

use k8s_openapi::jiff::Timestamp;
use mosaic::api::agent::AgentStatus;
use mosaic::api::condition::reason;
use mosaic::api::names::{AgentName, Uid};
use mosaic::plan::fleet::{Fleet, FleetLimits, HaltInForce, Labels, Member, Permit, Place, place_seen_from};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn uid(number: u32) -> Uid {
    Uid::new(format!("00000000-{number:04}")).unwrap()
}

fn member(number: u32) -> Member {
    Member {
        uid: uid(number),
        namespace: "default".into(),
        name: format!("agent-{number}"),
        labels: Labels::default(),
        created_at: Timestamp::from_second(1000 + i64::from(number)).unwrap(),
        priority: 5,
        suspend: false,
        refused: false,
        deleting: false,
        task_id: format!("task-{number}"),
        rerun_of: None,
        target: ("file:///one".into(), format!("branch-{number}")),
        depends_on: Vec::new(),
        place: Place::Waiting,
        is_elsewhere: false,
        begun: false,
        version: 0,
    }
}

fn at(number: u32, place: Place) -> Member {
    Member { place, begun: place != Place::Waiting, ..member(number) }
}

fn depending(number: u32, on: &[&str]) -> Member {
    Member { depends_on: on.iter().map(|name| AgentName::new(*name).unwrap()).collect(), ..member(number) }
}

fn fleet_with(running_max: usize, starting_max: usize, members: impl IntoIterator<Item = Member>) -> Fleet {
    let mut fleet = Fleet::new(FleetLimits { running_max, starting_max });
    let _ = fleet.set_halts(Some(Vec::new()));
    for member in members {
        fleet.upsert(member);
    }
    fleet
}

fn why(fleet: &Fleet, number: u32) -> &'static str {
    match fleet.permit(&uid(number)) {
        Permit::Granted => "granted",
        Permit::Waiting { reason, .. } => reason,
        Permit::Halted { .. } => reason::HALTED,
    }
}

#[test]
fn the_most_urgent_and_then_the_oldest_go_first() {
    let mut fleet =
        fleet_with(1, 1, (1..=10).map(|n| Member { priority: n as u8, ..member(n) }).chain([Member { priority: 10, ..member(11) }]));
    for expected in [10, 11, 9, 8, 7, 6, 5, 4, 3, 2, 1] {
        let granted: Vec<u32> =
            (1..=11).filter(|n| why(&fleet, *n) == "granted" && fleet.member(&uid(*n)).unwrap().place == Place::Waiting).collect();
        assert_eq!(granted, [expected]);
        fleet.upsert(at(expected, Place::Completed));
    }
}

#[test]
fn what_another_installation_has_begun_takes_no_place_here_and_keeps_its_claims() {
    let fleet = fleet_with(1, 1, [at(1, Place::Elsewhere), at(2, Place::Elsewhere), member(3), member(4)]);
    assert_eq!((why(&fleet, 3), why(&fleet, 4)), ("granted", reason::QUEUED));
    assert_eq!(fleet.counts().elsewhere, 2);
    let waits = Member { depends_on: vec![AgentName::new(member(1).name).unwrap()], ..member(5) };
    let fleet = fleet_with(1, 1, [at(1, Place::Elsewhere), waits]);
    assert_eq!(why(&fleet, 5), reason::DEPENDENCY_PENDING, "it has not completed");
    let status = |attempt, installation: Option<&str>| AgentStatus {
        attempt,
        between_attempts: attempt > 0,
        installation: installation.map(str::to_owned),
        ..AgentStatus::default()
    };
    for (expected, status) in
        [(Place::Elsewhere, status(1, Some("there"))), (Place::Waiting, status(1, Some("here"))), (Place::Waiting, status(0, None))]
    {
        assert_eq!(place_seen_from(Some("here"), &status), expected);
    }
    assert_eq!(place_seen_from(None, &status(1, Some("there"))), Place::Waiting, "who sees all sees this too");
}

#[test]
fn the_caps_on_running_and_on_starting_hold() {
    let fleet = fleet_with(3, 1, [at(1, Place::Starting), member(2), member(3)]);
    assert_eq!((why(&fleet, 2), why(&fleet, 3)), (reason::STARTING_LIMIT, reason::STARTING_LIMIT));
    let fleet = fleet_with(3, 2, [at(1, Place::Starting), member(2), member(3)]);
    assert_eq!((why(&fleet, 2), why(&fleet, 3)), ("granted", reason::QUEUED));
    let fleet = fleet_with(2, 5, [at(1, Place::Running), at(2, Place::Running), member(3)]);
    assert_eq!((why(&fleet, 1), why(&fleet, 3)), ("granted", reason::QUEUED));
}

#[test]
fn who_waits_for_others_takes_no_place() {
    let mut fleet = fleet_with(1, 1, [depending(1, &["agent-2"]), member(2)]);
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), (reason::DEPENDENCY_PENDING, "granted"));
    let woken = fleet.upsert(at(2, Place::Completed));
    assert_eq!((why(&fleet, 1), woken), ("granted", BTreeSet::from([uid(1)])));
    fleet.upsert(at(2, Place::Failed));
    assert_eq!(why(&fleet, 1), reason::DEPENDENCY_FAILED);
    fleet.remove(&uid(2));
    assert_eq!(why(&fleet, 1), reason::DEPENDENCY_MISSING);
}

#[test]
fn a_dependency_that_is_deleted_after_the_start_takes_nothing_back() {
    let begun = Member { begun: true, ..depending(1, &["agent-2"]) };
    assert_eq!(why(&fleet_with(1, 1, [begun]), 1), "granted");
}

#[test]
fn a_cycle_is_refused_and_named() {
    let fleet =
        fleet_with(9, 9, [depending(1, &["agent-2"]), depending(2, &["agent-3"]), depending(3, &["agent-1"]), depending(4, &["agent-3"])]);
    for number in 1..=3 {
        assert_eq!(why(&fleet, number), reason::DEPENDENCY_CYCLE, "{number}");
    }
    assert_eq!(why(&fleet, 4), reason::DEPENDENCY_PENDING, "it waits for a cycle and is in none");
    let Permit::Waiting { message, refused: true, .. } = fleet.permit(&uid(1)) else { panic!("not refused") };
    assert!(message.contains("agent-1 -> agent-2 -> agent-3 -> agent-1"), "{message}");
}

#[test]
fn a_task_and_a_branch_belong_to_the_older_one_until_it_goes() {
    let same_task = |number| Member { task_id: "task".into(), ..member(number) };
    let mut fleet = fleet_with(9, 9, [same_task(1), same_task(2)]);
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), ("granted", reason::TASK_ID_TAKEN));
    fleet.upsert(Member { place: Place::Completed, begun: true, ..same_task(1) });
    assert_eq!(why(&fleet, 2), reason::TASK_ID_TAKEN, "the binding outlives the end");
    fleet.upsert(Member { rerun_of: Some(uid(1).to_string()), ..same_task(2) });
    assert_eq!(why(&fleet, 2), "granted", "unless it says that it runs it again");
    fleet.upsert(same_task(2));
    assert_eq!(fleet.remove(&uid(1)), BTreeSet::from([uid(2)]));
    assert_eq!(why(&fleet, 2), "granted");

    let same_branch = |number| Member { target: ("file:///one".into(), "branch".into()), ..member(number) };
    let mut fleet = fleet_with(9, 9, [same_branch(1), same_branch(2)]);
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), ("granted", reason::BRANCH_TAKEN));
    assert_eq!(fleet.upsert(Member { place: Place::Completed, begun: true, ..same_branch(1) }), BTreeSet::from([uid(2)]));
    assert_eq!(why(&fleet, 2), "granted");
}

#[test]
fn who_has_begun_keeps_task_and_branch_from_one_that_looks_older() {
    let young = Member { task_id: "task".into(), begun: true, place: Place::Waiting, ..member(5) };
    let older = Member { task_id: "task".into(), ..member(1) };
    let fleet = fleet_with(9, 9, [young, older]);
    assert_eq!((why(&fleet, 5), why(&fleet, 1)), ("granted", reason::TASK_ID_TAKEN));
}

#[test]
fn suspended_refused_and_deleted_agents_hold_no_place_in_the_queue() {
    let fleet = fleet_with(
        1,
        1,
        [Member { suspend: true, ..member(1) }, Member { refused: true, ..member(2) }, Member { deleting: true, ..member(3) }, member(4)],
    );
    assert_eq!(why(&fleet, 4), "granted");
    assert_eq!(fleet.queue(9).map(|m| m.name.as_str()).collect::<Vec<_>>(), ["agent-4"]);
}

#[test]
fn a_halt_stops_what_it_matches_and_unreadable_halts_stop_all() {
    let team = |number: u32, team: &str| Member { labels: BTreeMap::from([("team".to_owned(), team.to_owned())]).into(), ..member(number) };
    let mut fleet = fleet_with(9, 9, [team(1, "red"), team(2, "blue"), at(3, Place::Completed)]);
    let halt = |namespace: Option<&str>, labels: &[(&str, &str)]| HaltInForce {
        name: "stop".into(),
        namespace: namespace.map(str::to_owned),
        match_labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        reason: "test".into(),
    };
    let woken = fleet.set_halts(Some(vec![halt(None, &[("team", "red")])]));
    assert_eq!(woken, [uid(1), uid(2)], "everybody who lives");
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), (reason::HALTED, "granted"));
    let _ = fleet.set_halts(Some(vec![halt(Some("other"), &[])]));
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), ("granted", "granted"));
    let _ = fleet.set_halts(Some(vec![halt(Some("default"), &[])]));
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), (reason::HALTED, reason::HALTED));
    let _ = fleet.set_halts(None);
    assert_eq!((why(&fleet, 1), why(&fleet, 2)), (reason::HALTED, reason::HALTED));
    let mut unread = Fleet::new(FleetLimits { running_max: 9, starting_max: 9 });
    unread.upsert(member(1));
    assert_eq!(why(&unread, 1), reason::HALTED, "before the halts were read");
}

#[test]
fn a_watched_version_that_is_older_is_no_news() {
    let fleet = fleet_with(9, 9, [Member { version: 7, ..member(1) }]);
    assert!(!fleet.is_news(&uid(1), 6) && !fleet.is_news(&uid(1), 7) && fleet.is_news(&uid(1), 8));
    assert!(fleet.is_news(&uid(2), 1), "a new one");
}

/// One change of a small fleet.
#[derive(Debug, Clone)]
enum Change {
    Put(Box<Member>),
    Gone(u32),
    Halts(Option<Vec<HaltInForce>>),
}

fn any_member() -> impl Strategy<Value = Member> {
    let place = prop_oneof![
        4 => Just(Place::Waiting),
        1 => Just(Place::Starting),
        1 => Just(Place::Running),
        1 => Just(Place::Completed),
        1 => Just(Place::Failed)
    ];
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1), any::<bool>(), prop::bool::weighted(0.2));
    let names = (0..6_u32, 0..4_u8, 0..4_u8, prop::collection::btree_set(0..6_u32, 0..3));
    (names, 1..11_u8, place, flags).prop_map(
        |((number, task, branch, needs), priority, place, (suspend, refused, deleting, begun, rerun))| {
            let others = needs.into_iter().filter(|other| *other != number);
            Member {
                priority,
                place,
                suspend,
                refused,
                deleting,
                begun: begun || place != Place::Waiting,
                task_id: format!("task-{task}"),
                target: ("file:///one".into(), format!("branch-{branch}")),
                depends_on: others.map(|other| AgentName::new(format!("agent-{other}")).unwrap()).collect(),
                rerun_of: rerun.then(|| "somebody".to_owned()),
                labels: BTreeMap::from([("team".to_owned(), (number % 2).to_string())]).into(),
                // Several of the same age: the uid decides.
                created_at: Timestamp::from_second(1000 + i64::from(number / 2)).unwrap(),
                ..member(number)
            }
        },
    )
}

fn any_change() -> impl Strategy<Value = Change> {
    let halt = HaltInForce {
        name: "stop".into(),
        namespace: None,
        match_labels: BTreeMap::from([("team".to_owned(), "1".to_owned())]),
        reason: String::new(),
    };
    prop_oneof![
        8 => any_member().prop_map(|member| Change::Put(Box::new(member))),
        2 => (0..6_u32).prop_map(Change::Gone),
        1 => prop_oneof![Just(None), Just(Some(Vec::new())), Just(Some(vec![halt]))].prop_map(Change::Halts),
    ]
}

fn permits(fleet: &Fleet) -> BTreeMap<u32, Permit> {
    (0..6).filter(|n| fleet.member(&uid(*n)).is_some()).map(|n| (n, fleet.permit(&uid(n)))).collect()
}

/// A permit as far as an agent acts on it: the words of a queue may change without waking anybody.
fn kind(permit: &Permit) -> (u8, &'static str) {
    match permit {
        Permit::Granted => (0, ""),
        Permit::Waiting { reason: reason::QUEUED | reason::STARTING_LIMIT, .. } => (1, "in the queue"),
        Permit::Waiting { reason, .. } => (2, reason),
        Permit::Halted { .. } => (3, ""),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_fleet_kept_up_to_date_equals_one_built_from_scratch(changes in prop::collection::vec(any_change(), 1..40)) {
        let limits = FleetLimits { running_max: 2, starting_max: 1 };
        let mut fleet = Fleet::new(limits);
        let mut members: BTreeMap<u32, Member> = BTreeMap::new();
        let mut halts = None;
        for change in changes {
            let before = permits(&fleet);
            let (woken, own): (BTreeSet<Uid>, Option<Uid>) = match change {
                Change::Put(member) => {
                    let number = member.name.trim_start_matches("agent-").parse().unwrap();
                    members.insert(number, (*member).clone());
                    let own = member.uid.clone();
                    (fleet.upsert(*member), Some(own))
                }
                Change::Gone(number) => {
                    members.remove(&number);
                    (fleet.remove(&uid(number)), Some(uid(number)))
                }
                Change::Halts(all) => {
                    halts.clone_from(&all);
                    (fleet.set_halts(all).into_iter().collect(), None)
                }
            };
            let mut fresh = Fleet::new(limits);
            let _ = fresh.set_halts(halts.clone());
            for member in members.values() {
                fresh.upsert(member.clone());
            }
            let after = permits(&fleet);
            prop_assert_eq!(&after, &permits(&fresh));
            prop_assert_eq!(fleet.counts(), fresh.counts());
            prop_assert_eq!(fleet.queue(9).collect::<Vec<_>>(), fresh.queue(9).collect::<Vec<_>>());
            for (number, permit) in &after {
                let changed = before.get(number).is_some_and(|old| kind(old) != kind(permit));
                let told = woken.contains(&uid(*number)) || own == Some(uid(*number));
                let lives = !matches!(members[number].place, Place::Completed | Place::Failed);
                let loses_its_place = before.get(number) == Some(&Permit::Granted) && kind(permit).0 == 1;
                prop_assert!(!changed || told || !lives || loses_its_place, "agent-{} was not woken: {:?} -> {:?}", number, before.get(number), permit);
            }
            let active = fleet.counts().starting + fleet.counts().running;
            let begin = after.iter().filter(|(n, p)| **p == Permit::Granted && members[n].place == Place::Waiting && !members[n].refused).count();
            prop_assert!(begin <= limits.running_max.saturating_sub(active));
            prop_assert!(begin <= limits.starting_max.saturating_sub(fleet.counts().starting));
        }
    }
}
