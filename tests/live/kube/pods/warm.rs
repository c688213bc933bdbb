//! Pods that are made ahead (`--warm`): looked at in the cluster and in the process table of its node.

use super::kills::{kill, repository, running};
use super::{Place, assert_no_objects_left, pods, processes, until, with_pods};
use crate::harness::{Mosaic, Remote, eventually, program, task};
use crate::jobs;
use crate::kube::cluster::{Cluster, kubectl_says};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use tokio::runtime::Runtime;

/// The pods of one role.
fn of_role(cluster: &Cluster, runtime: &Runtime, role: &str) -> Vec<Value> {
    let mut all = pods(cluster, runtime);
    all.retain(|pod| pod["metadata"]["labels"]["mosaicstack.dev/role"] == role);
    all
}

fn uid_of(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// A controller that keeps two, of the shape that `running` asks for; their uids.
fn with_two_prepared(cluster: &Cluster, runtime: &Runtime, place: &Place, name: &str) -> (Mosaic, Remote, BTreeSet<String>) {
    let mosaic = place.start(&["--warm", "2"]);
    assert!(mosaic.log().contains("pods are kept prepared: 2"), "{}", mosaic.log());
    let remote = repository(&mosaic);
    assert!(of_role(cluster, runtime, "prepared").is_empty(), "nobody has asked for any");
    let mark = format!("cold-{name}-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    assert_eq!(kill(&mosaic, &uid, &mark).0.0, 200);
    let prepared = two_prepared(cluster, runtime);
    (mosaic, remote, prepared)
}

/// Waits until two wait for a run.
fn two_prepared(cluster: &Cluster, runtime: &Runtime) -> BTreeSet<String> {
    let ready = || {
        let mut all = of_role(cluster, runtime, "prepared");
        all.retain(|pod| pod["status"]["containerStatuses"][0]["state"]["running"].is_object());
        all
    };
    eventually("two pods are prepared", || ready().len() == 2);
    // Its init asks some milliseconds after it runs.
    std::thread::sleep(std::time::Duration::from_secs(1));
    ready().iter().map(uid_of).collect()
}

#[test]
fn a_run_takes_a_pod_that_waits_and_is_like_any_other_then() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::a_run_takes_a_pod_that_waits_and_is_like_any_other_then") else {
        return;
    };
    for (name, place) in [("own", place.with_own_init()), ("brought", place)] {
        let (mut mosaic, remote, prepared) = with_two_prepared(&cluster, &runtime, &place, name);
        for pod in of_role(&cluster, &runtime, "prepared") {
            let metadata = &pod["metadata"];
            assert!(metadata["finalizers"].is_null() && metadata["ownerReferences"].is_null(), "of nobody: {metadata:#}");
        }
        let mark = format!("warm-{name}-{}-end", std::process::id());
        let uid = running(&mosaic, &remote, &mark);
        let pod = of_role(&cluster, &runtime, "agent").pop().expect("the agent's pod");
        assert!(prepared.contains(&uid_of(&pod)), "it was there before: {prepared:?}, {pod:#}");
        let (metadata, object) = (&pod["metadata"], mosaic.object(&uid));
        assert_eq!(metadata["finalizers"], json!(["mosaicstack.dev/end-seen"]));
        assert_eq!(metadata["ownerReferences"][0]["uid"], json!(uid));
        assert_eq!(metadata["labels"]["mosaicstack.dev/agent-uid"], json!(uid));
        assert_eq!(
            metadata["annotations"]["mosaicstack.dev/agent"],
            json!(format!("default/{}", object["metadata"]["name"].as_str().unwrap()))
        );
        let isolation = object["status"]["sandbox"]["isolation"].as_array().unwrap();
        assert!(isolation.contains(&json!("network-policy")), "{isolation:?}");
        // What is taken is made good.
        let later = two_prepared(&cluster, &runtime);
        assert!(!later.contains(&uid_of(&pod)) && !later.is_disjoint(&prepared), "{prepared:?}, {later:?}");

        // A controller that comes back knows it, and what was prepared before is swept.
        mosaic.sigkill();
        mosaic.up();
        let (answer, gone_after) = kill(&mosaic, &uid, &mark);
        assert_eq!((answer.0, &answer.1["verified"]), (200, &json!(true)), "{}", answer.1);
        assert!(gone_after <= 1000, "{gone_after} ms");
        mosaic.assert_nothing_left();
        eventually("what was prepared by the one that was killed goes", || {
            let all: BTreeSet<String> = pods(&cluster, &runtime).iter().map(uid_of).collect();
            all.is_disjoint(&later)
        });
        mosaic.sigterm();
        assert_no_objects_left(&cluster, &runtime);
    }
}

#[test]
fn a_job_in_pods_that_waited_goes_the_same_way() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::a_job_in_pods_that_waited_goes_the_same_way") else { return };
    let mut mosaic = place.start(&["--warm", "3"]);
    let (remote, object) = jobs::refused_then_delivered(&mosaic);
    jobs::is_known_after_its_end(&mosaic, &remote, &object);
    mosaic.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_kill_of_everything_ends_what_waits_as_well() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::a_kill_of_everything_ends_what_waits_as_well") else { return };
    let (mosaic, remote, _) = with_two_prepared(&cluster, &runtime, &place, "all");
    let mark = format!("all-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    two_prepared(&cluster, &runtime);
    let output = program().args(["kill", "--all", "--state"]).arg(mosaic.state()).stdin(Stdio::null()).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert_eq!(processes(&mark), 0, "{told}");
    mosaic.wait(&uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    // Nor does anything come back by itself.
    assert_no_objects_left(&cluster, &runtime);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(pods(&cluster, &runtime).is_empty());
}

/// Between these instants after a declaration a run takes a pod that waits, in milliseconds.
const CLAIM_MILLIS: std::ops::Range<u64> = 0..120;

#[test]
fn a_kill_at_any_instant_of_a_claim_leaves_nothing() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::a_kill_at_any_instant_of_a_claim_leaves_nothing") else { return };
    let (mut mosaic, remote, _) = with_two_prepared(&cluster, &runtime, &place, "instants");
    for millis in CLAIM_MILLIS.step_by(10) {
        two_prepared(&cluster, &runtime);
        let mark = format!("instant-{millis}-{}-end", std::process::id());
        let mut body = task(&remote, &mark, &super::kills::stubborn(&mark));
        body["sandbox"] = json!({ "cpu": "500m", "memory": "256Mi" });
        let uid = mosaic.spawn(&body);
        std::thread::sleep(std::time::Duration::from_millis(millis));
        let (code, answer) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
        assert_eq!((code, &answer["verified"]), (200, &json!(true)), "after {millis} ms: {answer}");
        assert_eq!(processes(&mark), 0, "after {millis} ms");
        mosaic.wait(&uid, "the record to say killed", |object| object["status"]["phase"] == "Killed");
    }
    mosaic.assert_nothing_left();
    eventually("no pod of an agent is left", || of_role(&cluster, &runtime, "agent").is_empty());
    mosaic.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn what_somebody_has_deleted_is_taken_by_nobody() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::what_somebody_has_deleted_is_taken_by_nobody") else { return };
    let (mut mosaic, remote, prepared) = with_two_prepared(&cluster, &runtime, &place, "deleted");
    kubectl_says(&["delete", "pods", "-l", "mosaicstack.dev/role=prepared", "--wait=false"]);
    let mark = format!("deleted-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    let pod = of_role(&cluster, &runtime, "agent").pop().expect("the agent's pod");
    assert!(!prepared.contains(&uid_of(&pod)), "{pod:#}");
    let object = mosaic.object(&uid);
    assert_eq!((&object["status"]["attempt"], &object["status"]["counts"]["infrastructure"]), (&json!(1), &json!(0)), "{object:#}");
    assert_eq!(kill(&mosaic, &uid, &mark).0.0, 200);
    mosaic.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn one_that_was_prepared_is_found_by_a_kill_that_has_no_folder_of_it() {
    let test = "kube::pods::warm::one_that_was_prepared_is_found_by_a_kill_that_has_no_folder_of_it";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let (mut mosaic, remote, prepared) = with_two_prepared(&cluster, &runtime, &place, "lost");
    let mark = format!("lost-warm-{}-end", std::process::id());
    let uid = running(&mosaic, &remote, &mark);
    let pod = of_role(&cluster, &runtime, "agent").pop().expect("the agent's pod");
    assert!(prepared.contains(&uid_of(&pod)), "{pod:#}");
    super::lost::take_run_folders(&mosaic);
    let (answer, _) = kill(&mosaic, &uid, &mark);
    assert_eq!((answer.0, &answer.1["verified"]), (200, &json!(true)), "{}", answer.1);
    mosaic.assert_nothing_left();
    eventually("its pod goes", || of_role(&cluster, &runtime, "agent").is_empty());
    two_prepared(&cluster, &runtime);
    mosaic.sigkill();
    // Nobody answers the others any more: they end by themselves.
    let gone_after = until("they end by themselves", || {
        of_role(&cluster, &runtime, "prepared").iter().all(|pod| pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object())
    });
    println!("without a controller what is prepared ended after {gone_after} ms");
    assert!(gone_after > 10_000, "it waits for a controller that comes back");
    kubectl_says(&["delete", "pods", "-l", "mosaicstack.dev/role=prepared", "--wait=false"]);
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn an_agent_that_finds_no_room_gets_that_of_those_that_wait() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::an_agent_that_finds_no_room_gets_that_of_those_that_wait") else {
        return;
    };
    let (mut mosaic, remote, prepared) = with_two_prepared(&cluster, &runtime, &place, "room");
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "two" }, "spec": { "hard": { "pods": "2" } } });
    runtime.block_on(cluster.ask("POST", "/api/v1/namespaces/default/resourcequotas", Some(&quota))).unwrap();
    eventually("the quota is counted", || {
        let found = runtime.block_on(cluster.ask("GET", "/api/v1/namespaces/default/resourcequotas/two", None)).unwrap();
        found["status"]["used"]["pods"] == "2"
    });
    // It asks for more than those have.
    let mut body = task(&remote, "room", "sleep 3; echo x > x.txt");
    body["sandbox"] = json!({ "cpu": "600m", "memory": "256Mi" });
    let uid = mosaic.spawn(&body);
    mosaic.wait(&uid, "the run", |object| object["status"]["phase"] == "Running");
    let object = mosaic.object(&uid);
    assert_eq!(object["status"]["counts"]["infrastructure"], 0, "nobody failed for them: {object:#}");
    let left: BTreeSet<String> = of_role(&cluster, &runtime, "prepared").iter().map(uid_of).collect();
    runtime.block_on(cluster.ask("DELETE", "/api/v1/namespaces/default/resourcequotas/two", None)).unwrap();
    assert!(left.is_disjoint(&prepared), "{left:?}");
    mosaic.wait_completed(&uid);
    mosaic.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn a_shape_of_which_nothing_comes_is_not_prepared_and_harms_no_other() {
    let test = "kube::pods::warm::a_shape_of_which_nothing_comes_is_not_prepared_and_harms_no_other";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let (mut mosaic, remote, prepared) = with_two_prepared(&cluster, &runtime, &place, "shape");
    let mut body = task(&remote, "no-image", "true");
    body["sandbox"] = json!({ "image": "registry.example.org/none:1" });
    let uid = mosaic.spawn(&body);
    mosaic.wait(&uid, "the refusal", |object| object["status"].to_string().contains("ImageNotFound"));
    eventually("nothing waits for that image", || {
        let all = of_role(&cluster, &runtime, "prepared");
        all.iter().all(|pod| pod["spec"]["containers"][0]["image"] != "registry.example.org/none:1")
    });
    assert_eq!(two_prepared(&cluster, &runtime), prepared);
    assert_eq!(mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({}))).0, 200);
    mosaic.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}

#[test]
fn what_is_left_over_goes_whoever_leads() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::warm::what_is_left_over_goes_whoever_leads") else { return };
    let (mut first, remote, prepared) = with_two_prepared(&cluster, &runtime, &place, "left");
    let mark = format!("left-over-{}-end", std::process::id());
    let uid = running(&first, &remote, &mark);
    let pod = of_role(&cluster, &runtime, "agent").pop().expect("the agent's pod");
    // Another pod with the mark of the same run, as it stays behind a claim whose answer was lost.
    let mut other = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": pod["metadata"].clone() });
    for name in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "ownerReferences", "generation"] {
        other["metadata"].as_object_mut().unwrap().remove(name);
    }
    let name = format!("left-over-{}", std::process::id());
    other["metadata"]["name"] = json!(name);
    other["spec"] = json!({ "nodeSelector": { "no-such": "node" }, "containers": [{ "name": "run", "image": "none:1" }] });
    let mut second = place.start(&[]);
    first.sigkill();
    eventually("the other one leads", || crate::controllers::says(&second, "this controller leads"));
    first.up();
    runtime.block_on(cluster.ask("POST", "/api/v1/namespaces/default/pods", Some(&other))).unwrap();
    eventually("what was prepared, and the other pod, go", || {
        let all = pods(&cluster, &runtime);
        all.iter().all(|pod| !prepared.contains(&uid_of(pod)) || pod["metadata"]["labels"]["mosaicstack.dev/role"] == "agent")
            && all.iter().all(|pod| pod["metadata"]["name"] != json!(name))
    });
    assert!(processes(&mark) > 0, "what runs goes on");
    assert!(crate::controllers::says(&second, "this controller leads"), "and for that nobody has to lead");
    let (answer, _) = kill(&second, &uid, &mark);
    assert!(matches!(answer.0, 200 | 202), "{}", answer.1);
    first.assert_nothing_left();
    second.sigterm();
    first.sigterm();
    assert_no_objects_left(&cluster, &runtime);
}
