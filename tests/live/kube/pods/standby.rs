//! Several controllers on one cluster, each with a state folder and a link of its own, and agents in pods.

use super::kills::{cleaned_up, kill, repository, running};
use super::{assert_no_objects_left, init_of, pods, processes, with_pods};
use crate::controllers::{self, says, wait_until};
use crate::harness::{Remote, condition, gates, program, task};
use crate::kube::standby::ended_versions;
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

#[test]
fn a_stopped_leader_doubles_nothing_when_it_goes_on() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::standby::a_stopped_leader_doubles_nothing_when_it_goes_on") else {
        return;
    };
    let shared = tempfile::tempdir().unwrap();
    let repositories = ["--local-repos", shared.path().to_str().unwrap()];
    let controllers = [(); 3].map(|()| place.start(&repositories));
    controllers::stopped_leader_doubles_nothing(controllers, shared.path(), || ended_versions(&cluster, &runtime));
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn the_lease_is_handed_to_who_has_to_finish() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::standby::the_lease_is_handed_to_who_has_to_finish") else { return };
    let shared = tempfile::tempdir().unwrap();
    let controllers = [(); 2].map(|()| place.start(&["--local-repos", shared.path().to_str().unwrap()]));
    controllers::the_lease_is_handed_to_who_has_to_finish(controllers, shared.path(), Duration::from_secs(20));
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn an_agent_whose_controller_never_comes_back_begins_again_with_the_next_leader() {
    let test = "kube::pods::standby::an_agent_whose_controller_never_comes_back_begins_again_with_the_next_leader";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let shared = tempfile::tempdir().unwrap();
    let flags = ["--local-repos", shared.path().to_str().unwrap(), "--takeover-after", "10s"];
    let [mut first, mut second] = [(); 2].map(|()| place.start(&flags));
    let remote = Remote::new(shared.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let mark = format!("again-{}-end", std::process::id());
    let script = format!(r#"if grep -Eq '"attempt": *1,' /mosaic/task.json; then while :; do sleep 1; : {mark}; done; fi; echo x > x.txt"#);
    let uid = first.spawn(&task(&remote, "again", &script));
    first.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    first.sigkill();
    wait_until("the other one takes over", Duration::from_secs(10), || says(&second, "this controller leads"));
    // As long as its pod is there it is waited for: that may hold its work. Never do two of them live.
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(second.object(&uid)["status"]["attempt"], 1);
    assert!(processes(&mark) > 0, "and it is not ended");
    rustix::process::kill_process(init_of(&mark).expect("an init above the agent"), Signal::KILL).unwrap();
    let mut attempts = Vec::new();
    let began = std::time::Instant::now();
    wait_until("its end", Duration::from_secs(180), || {
        let object = second.object(&uid);
        let (attempt, own) = (object["status"]["attempt"].as_u64().unwrap(), processes(&mark));
        assert!(own == 0 || attempt == 1, "the first one lives beside attempt {attempt}");
        attempts.push(attempt);
        condition(&object, "CleanedUp") == "True"
    });
    println!("delivered by the next leader {:?} after the last one was gone for good", began.elapsed());
    let object = second.object(&uid);
    assert_eq!((attempts[0], &object["status"]["attempt"]), (1, &json!(2)));
    assert_eq!(object["status"]["counts"]["infrastructure"], 1, "nobody is blamed: {:#}", object["status"]);
    let name = object["status"]["push"]["ref"].as_str().unwrap();
    assert_eq!(object["status"]["push"]["sha"].as_str(), remote.refs().get(name).map(String::as_str));
    assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit");
    wait_until("its pods go", Duration::from_secs(20), || pods(&cluster, &runtime).is_empty());

    // Should it come back after all, it changes nothing, and takes away what it has once it leads.
    first.up();
    second.sigterm();
    first.assert_nothing_left();
    assert_eq!((&first.object(&uid), remote.agent_refs().len()), (&object, 1));
    assert_no_objects_left(&cluster, &runtime);
}

/// Longer than whoever leads would wait for one that is not there.
const BACKOFF_SECONDS: u64 = 50;

#[test]
fn an_agent_that_waits_stays_with_its_controller_while_that_stands_by() {
    let test = "kube::pods::standby::an_agent_that_waits_stays_with_its_controller_while_that_stands_by";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let shared = tempfile::tempdir().unwrap();
    let flags = ["--local-repos", shared.path().to_str().unwrap(), "--takeover-after", "10s"];
    let [first, second] = [(); 2].map(|()| place.start(&flags));
    let remote = Remote::new(shared.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let script = r#"if ! grep -Eq '"attempt": *2,' /mosaic/task.json; then exit 3; fi; echo x > x.txt"#;
    let mut again = task(&remote, "waits", script);
    again["backoff"] = json!({ "initial": format!("{BACKOFF_SECONDS}s") });
    let uid = first.spawn(&again);
    let before = first.wait(&uid, "the first failure", |object| object["status"]["counts"]["agentFailures"] == 1);
    let failed = std::time::Instant::now();
    wait_until("its pod goes", Duration::from_secs(20), || pods(&cluster, &runtime).is_empty());
    first.signal(Signal::STOP);
    wait_until("the other one leads", Duration::from_secs(10), || says(&second, "this controller leads"));
    first.signal(Signal::CONT);
    second.wait(&uid, "the word for it", |object| object.to_string().contains("goes on with it when it leads"));
    while failed.elapsed() < Duration::from_secs(BACKOFF_SECONDS - 10) {
        assert_eq!(second.object(&uid)["status"]["installation"], before["status"]["installation"]);
        std::thread::sleep(Duration::from_secs(1));
    }
    let done = second.wait_completed(&uid);
    assert_eq!(done["status"]["installation"], before["status"]["installation"], "nobody else has begun it again");
    assert_eq!((&done["status"]["attempt"], &done["status"]["counts"]["infrastructure"]), (&json!(2), &json!(0)), "{done:#}");
    assert_eq!(remote.agent_refs().len(), 1);
    wait_until("its pods go", Duration::from_secs(20), || pods(&cluster, &runtime).is_empty());
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_halt_ends_what_a_controller_has_begun_that_does_not_answer() {
    let test = "kube::pods::standby::a_halt_ends_what_a_controller_has_begun_that_does_not_answer";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let [mut first, mut second] = [(); 2].map(|()| place.start(&[]));
    let remote = repository(&first);
    let mark = format!("halted-{}-end", std::process::id());
    let uid = running(&first, &remote, &mark);
    first.signal(Signal::STOP);
    wait_until("the other one leads", Duration::from_secs(10), || says(&second, "this controller leads"));
    let halt = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Halt",
        "metadata": { "name": "halted-elsewhere" },
        "spec": { "reason": "stop it", "release": "whenDone" },
    });
    runtime.block_on(cluster.ask("POST", "/apis/mosaicstack.dev/v1alpha1/halts", Some(&halt))).unwrap();
    // Its own lease would end it as well, after 30 s without a word.
    let gone = wait_until("its process goes", Duration::from_secs(12), || processes(&mark) == 0);
    println!("halted by the next leader: process gone after {gone:?}");
    first.signal(Signal::CONT);
    second.wait(&uid, "its end", |object| condition(object, "CleanedUp") == "True" && object["status"]["phase"] == "Killed");
    wait_until("its pod goes", Duration::from_secs(30), || pods(&cluster, &runtime).is_empty());
    first.assert_nothing_left();
    first.sigterm();
    second.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn whoever_leads_next_ends_what_one_has_left_that_never_comes_back() {
    let test = "kube::pods::standby::whoever_leads_next_ends_what_one_has_left_that_never_comes_back";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let [mut first, mut second] = [(); 2].map(|()| place.start(&[]));
    let remote = repository(&first);
    let mark = format!("left-{}-end", std::process::id());
    // One whose pod never comes, of which no record says that it is one.
    let mut absent = task(&remote, "absent", "true");
    absent["sandbox"] = json!({ "image": "mosaic-test-absent:1" });
    let coming = first.spawn(&absent);
    wait_until("its pod", Duration::from_secs(10), || !pods(&cluster, &runtime).is_empty());
    let uid = running(&first, &remote, &mark);
    let name = first.object(&uid)["metadata"]["name"].as_str().unwrap().to_owned();
    let coming_name = first.object(&coming)["metadata"]["name"].as_str().unwrap().to_owned();
    first.sigkill();
    wait_until("the other one takes over", Duration::from_secs(10), || says(&second, "this controller leads"));
    let (answer, gone_after) = kill(&second, &uid, &mark);
    println!("killed by the next leader: process gone after {gone_after} ms: {answer:?}");
    assert!(gone_after <= 3000, "{gone_after} ms");
    let (code, coming_answer) = second.call("POST", &format!("/agents/{coming}/kill"), Some(&json!({})));
    assert_eq!((code, &coming_answer["verified"]), (202, &json!(false)), "{coming_answer}");
    // Its tree and what was not pushed are with the one that is gone, which gets its time.
    assert_eq!((answer.0, &answer.1["verified"]), (202, &json!(false)), "{}", answer.1);
    let object = second.object(&uid);
    assert_eq!(cleaned_up(&object), Some("CannotObserve"), "{:#}", object["status"]["conditions"]);
    assert!(object.to_string().contains("nothing of it runs any more"), "{:#}", object["status"]["conditions"]);
    // Whoever finishes that need not be who has begun it.
    second.sigkill();
    let mut third = place.start(&[]);
    let is_gone = |name: &str| runtime.block_on(cluster.agent(name)).is_none();
    let gone = wait_until("the records go", Duration::from_secs(120), || is_gone(&name) && is_gone(&coming_name));
    println!("record gone after {gone:?} more");
    assert!(gone > Duration::from_secs(30));
    assert!(
        third.object(&uid).to_string().contains("its tree may still be in the state folder of installation"),
        "{:#}",
        third.object(&uid)
    );
    assert_no_objects_left(&cluster, &runtime);
    assert!(remote.agent_refs().is_empty());

    // Should it come back after all, it begins nothing, and takes away what it has once it leads and somebody has said that the pod ended.
    first.up();
    for name in [&name, &coming_name] {
        let said = program().args(["kill", name, "--node-is-gone", "--state"]).arg(first.state()).output().unwrap();
        assert!(said.status.success(), "{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    }
    third.sigterm();
    first.assert_nothing_left();
    assert_eq!(processes(&mark), 0);
}
