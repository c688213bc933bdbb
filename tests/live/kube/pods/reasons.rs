//! Pods that never come: each a reason, with the cluster's own words.

use super::{assert_no_objects_left, with_pods};
use crate::harness::{Mosaic, Remote, eventually, gates, task};
use serde_json::{Value, json};

fn waits_for(mosaic: &Mosaic, uid: &str, reason: &str) -> String {
    let object = mosaic.wait(uid, reason, |object| {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["reason"] == reason) || object["status"]["reason"] == reason
    });
    object["status"].to_string()
}

#[test]
fn what_keeps_a_pod_from_coming_is_told_in_the_clusters_words() {
    let test = "kube::pods::reasons::what_keeps_a_pod_from_coming_is_told_in_the_clusters_words";
    let Some((cluster, runtime, place)) = with_pods(test) else { return };
    let mosaic = place.start(&["--pod-pending-max", "10s"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let spawn = |name: &str, sandbox: Value| {
        let mut body = task(&remote, name, "true");
        body["sandbox"] = sandbox;
        mosaic.spawn(&body)
    };
    // Nothing is pulled, and no node has it.
    let image = spawn("image", json!({ "image": "registry.example.org/none:1" }));
    let said = waits_for(&mosaic, &image, "ImageNotFound");
    assert!(said.contains("registry.example.org/none:1") && said.contains("ErrImageNeverPull"), "{said}");
    // No node is so large.
    let large = spawn("large", json!({ "memory": "4000Gi" }));
    let said = waits_for(&mosaic, &large, "Unschedulable");
    assert!(said.contains("Insufficient memory"), "{said}");
    let class = spawn("class", json!({ "runtimeClass": "no-such-class" }));
    let said = waits_for(&mosaic, &class, "RuntimeNotFound");
    assert!(said.contains("no-such-class"), "{said}");
    eventually("an event tells it as well", || {
        let events = runtime.block_on(cluster.ask("GET", "/api/v1/namespaces/default/events", None)).unwrap();
        events["items"].as_array().unwrap().iter().any(|event| {
            let (is_warning, about) = (event["type"] == "Warning", event["involvedObject"]["uid"] == json!(class));
            is_warning && about && event["reason"] == "RuntimeNotFound" && event["message"].to_string().contains("no-such-class")
        })
    });
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "none" }, "spec": { "hard": { "pods": "0" } } });
    runtime.block_on(cluster.ask("POST", "/api/v1/namespaces/default/resourcequotas", Some(&quota))).unwrap();
    eventually("the quota is counted", || {
        let found = runtime.block_on(cluster.ask("GET", "/api/v1/namespaces/default/resourcequotas/none", None)).unwrap();
        found["status"]["hard"]["pods"] == "0"
    });
    let quota = spawn("quota", json!({}));
    let said = waits_for(&mosaic, &quota, "QuotaExceeded");
    runtime.block_on(cluster.ask("DELETE", "/api/v1/namespaces/default/resourcequotas/none", None)).unwrap();
    assert!(said.contains("exceeded quota"), "{said}");
    mosaic.call("POST", "/agents/kill-all", Some(&json!({})));
    mosaic.assert_nothing_left();
    assert_no_objects_left(&cluster, &runtime);
}
