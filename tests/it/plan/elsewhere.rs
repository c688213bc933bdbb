//! How long the controller that has begun an agent is waited for, and what is seen of it meanwhile.

use super::build::{agent_run, ended, running};
use mosaic::plan::elsewhere::{DELETED_PATIENCE, Elsewhere, Judged, judge};
use mosaic::plan::observed::{EndCause, Look, SandboxSeen};
use std::time::Duration;

const TAKEOVER: Duration = Duration::from_secs(300);

fn known(pods: Vec<SandboxSeen>, quiet: u64) -> Elsewhere<'static> {
    Elsewhere {
        installation: "there",
        why: "it is on another host",
        is_deleted: false,
        has_ended: false,
        has_only_pods: true,
        pods,
        is_attended: false,
        quiet: Duration::from_secs(quiet),
        takeover_after: TAKEOVER,
    }
}

fn gone() -> SandboxSeen {
    ended(agent_run(1), EndCause::Lost("its container ended".into()))
}

fn deleted(pods: Vec<SandboxSeen>, quiet: u64) -> Elsewhere<'static> {
    Elsewhere { is_deleted: true, ..known(pods, quiet) }
}

#[test]
fn what_lives_elsewhere_is_left_alone_however_long_and_ended_only_with_its_agent() {
    let all = vec![gone(), running(agent_run(1), 1)];
    assert_eq!(judge(known(all.clone(), 10_000)), Judged::unknown("it is on another host"));
    let ended = Elsewhere { has_ended: true, is_attended: true, ..known(all.clone(), 10_000) };
    // Whose record stays is its controller's to clean up: that has to see the end of each pod.
    for (ends, shown) in [(deleted(all.clone(), 10_000), all), (ended, vec![running(agent_run(1), 1)])] {
        let seen = judge(ends);
        assert_eq!(seen.sandboxes, Look::Seen(shown), "so that they are ended");
        assert!(matches!(seen.workspace, Look::Unknown(_)), "its tree is not given up while something runs");
    }
}

#[test]
fn what_may_run_elsewhere_than_in_pods_is_never_let_go() {
    for known in [known(vec![], 10_000), deleted(vec![], 10_000)] {
        assert_eq!(judge(Elsewhere { has_only_pods: false, ..known }), Judged::unknown("it is on another host"));
    }
}

#[test]
fn what_has_ended_is_its_own_controllers_until_the_patience_is_over() {
    let seen = judge(known(vec![gone()], 299));
    let Look::Unknown(text) = &seen.workspace else { panic!("{seen:?}") };
    assert!(text.contains("nothing of it runs any more") && text.contains("300 s to lead again"), "{text}");
    assert_eq!(seen.sandboxes, Look::Unknown(text.clone()), "nobody takes away what holds its work");
    let seen = judge(known(vec![gone()], 300));
    assert_eq!(seen.sandboxes, Look::Seen(vec![gone()]));
    assert!(matches!(&seen.workspace, Look::GivenUp(text) if text.contains("installation there")), "{seen:?}");
}

#[test]
fn a_controller_that_is_there_loses_none_of_its_agents() {
    let seen = judge(Elsewhere { is_attended: true, ..known(vec![gone()], 10_000) });
    let Look::Unknown(text) = &seen.workspace else { panic!("{seen:?}") };
    assert!(text.contains("nothing of it runs at the moment") && text.contains("goes on with it when it leads"), "{text}");
    assert_eq!(seen.sandboxes, Look::Unknown(text.clone()));
    let deleted = deleted(vec![gone()], DELETED_PATIENCE.as_secs());
    assert_eq!(judge(Elsewhere { is_attended: true, ..deleted.clone() }), judge(deleted), "a deletion does not wait for that");
}

#[test]
fn of_one_that_has_ended_the_rest_is_taken_away_and_nothing_begins_again() {
    let ended = Elsewhere { has_ended: true, ..known(vec![gone()], 299) };
    let Look::Unknown(text) = judge(ended.clone()).workspace else { panic!("it has its time") };
    assert!(text.ends_with("has 300 s to take it away"), "{text}");
    let Look::Unknown(text) = judge(Elsewhere { is_attended: true, ..ended.clone() }).workspace else { panic!("it is there") };
    assert!(text.ends_with("which is there, and takes the rest away"), "{text}");
    assert!(matches!(judge(Elsewhere { quiet: TAKEOVER, ..ended }).workspace, Look::GivenUp(_)));
}

#[test]
fn one_that_is_deleted_is_waited_for_for_a_minute() {
    let within = DELETED_PATIENCE.as_secs() - 1;
    let seen = judge(deleted(vec![gone()], within));
    assert_eq!(seen.sandboxes, Look::Seen(vec![]), "its death was seen; its pods are its controller's to take away");
    assert!(matches!(&seen.workspace, Look::Unknown(text) if text.contains("60 s to take it away")), "{seen:?}");
    let seen = judge(deleted(vec![gone()], within + 1));
    assert_eq!(seen.sandboxes, Look::Seen(vec![gone()]));
    assert!(matches!(seen.workspace, Look::GivenUp(_)));
}
