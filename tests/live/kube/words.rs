//! Everything by kubectl, and its words.

use super::cluster::{cluster_now, has_kubectl, kubectl, kubectl_says, kubectl_with};
use crate::harness::{Mosaic, Remote, eventually, gates};
use serde_json::{Value, json};

/// An agent that runs a shell script, as a file has it.
fn manifest(name: &str, remote: &Remote, script: &str) -> Value {
    json!({
        "apiVersion": "mosaicstack.dev/v1alpha1",
        "kind": "Agent",
        "metadata": { "name": name },
        "spec": {
            "taskId": format!("T-{name}"),
            "agentType": "worker",
            "context": { "repository": remote.url(), "branch": "main", "instructions": "Do it." },
            "runtime": { "command": { "args": ["sh", "-ec", script] } },
        },
    })
}

fn apply(object: &Value) -> (bool, String) {
    kubectl_with(&["apply", "-f", "-"], &object.to_string())
}

#[test]
fn an_agent_is_declared_followed_changed_and_explained_by_kubectl() {
    let test = "kube::words::an_agent_is_declared_followed_changed_and_explained_by_kubectl";
    let Some((_cluster, _runtime)) = cluster_now(test) else { return };
    if !has_kubectl(test) {
        return;
    }
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let gate_file = gates("grep -q right answer.txt || { echo the answer must be right; exit 3; }", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let script = "if grep -q 'the answer must be right' /mosaic/task.json; then echo right > answer.txt; else echo wrong > answer.txt; fi";
    let (done, said) = apply(&manifest("hello", &remote, script));
    assert!(done && said.contains("agent.mosaicstack.dev/hello created"), "{said}");
    kubectl(&["wait", "--for=condition=Pushed", "ag/hello", "--timeout=60s"]);
    kubectl(&["wait", "--for=jsonpath={.status.phase}=Completed", "ag/hello", "--timeout=60s"]);
    let table = kubectl(&["get", "ag", "hello", "-o", "wide"]);
    println!("$ kubectl get ag hello -o wide\n{table}");
    for word in ["NAME", "TYPE", "PHASE", "REASON", "GATES", "AGE", "ATTEMPT", "REPOSITORY", "REF", "worker", "Completed", "Delivered"] {
        assert!(table.contains(word), "{word} in {table}");
    }
    assert!(kubectl(&["get", "mosaic", "-o", "name"]).contains("agent.mosaicstack.dev/hello"), "by category");
    let selected = kubectl(&["get", "agents", "-A", "--field-selector", "spec.taskId=T-hello,status.phase=Completed", "-o", "name"]);
    assert_eq!(selected.trim(), "agent.mosaicstack.dev/hello");

    let mut described = String::new();
    eventually("the events tell the story", || {
        let said = kubectl(&["describe", "ag", "hello"]);
        let story =
            ["Admitted", "SandboxReady", "GateFailed", "RoundRefused", "GatePassed", "GatesPassed", "Pushed", "Completed", "CleanedUp"];
        story.iter().all(|word| said.contains(word))
    });
    described.push_str(&kubectl(&["describe", "ag", "hello"]));
    println!("$ kubectl describe ag hello\n{described}");
    assert!(described.contains("the answer must be right"), "{described}");

    let explained = kubectl(&["explain", "agent.spec.gates"]);
    println!("$ kubectl explain agent.spec.gates\n{explained}");
    assert!(explained.contains("Which gates must pass before anything is pushed") && explained.contains("profile"), "{explained}");
    // The HTTP API and the commands see the same.
    let (code, answer) = mosaic.call("GET", "/agents/hello", None);
    assert_eq!((code, &answer["state"]), (200, &json!("completed")), "{answer}");
    assert_eq!(remote.agent_refs().len(), 1);
    kubectl(&["delete", "ag", "hello", "--timeout=20s"]);
    mosaic.assert_nothing_left();
}

#[test]
fn priority_and_suspend_can_be_changed_and_nothing_else() {
    let test = "kube::words::priority_and_suspend_can_be_changed_and_nothing_else";
    let Some((_cluster, _runtime)) = cluster_now(test) else { return };
    if !has_kubectl(test) {
        return;
    }
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let mut object = manifest("later", &remote, "echo x > x.txt");
    object["spec"]["suspend"] = json!(true);
    assert!(apply(&object).0);
    let field = |path: &str| kubectl(&["get", "ag", "later", "-o", &format!("jsonpath={{{path}}}")]);
    eventually("it is suspended", || field(".status.reason") == "Suspended");
    let patch = |patch: &str| kubectl_says(&["patch", "ag", "later", "--type=merge", "-p", patch]);
    assert!(patch(r#"{"spec":{"priority":9}}"#).0);
    for refused in [
        r#"{"spec":{"timeout":"2h"}}"#,
        r#"{"spec":{"taskId":"other"}}"#,
        r#"{"spec":{"taskId":null}}"#,
        r#"{"spec":{"context":{"instructions":"other"}}}"#,
        r#"{"spec":{"runtime":{"command":{"args":["other"]}}}}"#,
    ] {
        let (done, said) = patch(refused);
        println!("$ kubectl patch ag later --type=merge -p '{refused}'\n{said}");
        assert!(!done && said.contains("only spec.priority and spec.suspend can be changed"), "{refused}: {said}");
    }
    let (done, said) = patch(r#"{"spec":{"priority":11}}"#);
    assert!(!done && said.contains("spec.priority") && said.contains("10"), "{said}");
    assert!(patch(r#"{"spec":{"suspend":false}}"#).0);
    kubectl(&["wait", "--for=condition=Pushed", "ag/later", "--timeout=60s"]);
    assert_eq!(field(".spec.priority"), "9");
}

#[test]
fn what_one_object_shows_is_refused_and_what_needs_others_is_said_in_its_status() {
    let test = "kube::words::what_one_object_shows_is_refused_and_what_needs_others_is_said_in_its_status";
    let Some((_cluster, _runtime)) = cluster_now(test) else { return };
    if !has_kubectl(test) {
        return;
    }
    let mosaic = Mosaic::start(&["--store", "kube"]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    // Refused by the API server and by our HTTP API in the same words, where the words are ours.
    let mut both = manifest("both", &remote, "true");
    both["spec"]["runtime"]["preset"] = json!("codex");
    let rule = "spec.runtime needs exactly one of claude, preset and command";
    let (done, said) = apply(&both);
    assert!(!done && said.contains(rule), "{said}");
    let (code, problem) = mosaic.call("PUT", "/agents/both", Some(&both));
    assert!(code == 422 && problem.to_string().contains(rule), "{problem}");
    // What needs others or the outside: the record is taken and says why it does not run.
    let mut left = manifest("left", &remote, "true");
    left["spec"]["dependsOn"] = json!(["right"]);
    assert!(apply(&left).0, "a reference forward");
    let cases = [
        ("no-repo", json!({ "context": { "repository": remote.path.with_extension("gone").to_str().unwrap() } }), "RepositoryNotFound"),
        ("no-branch", json!({ "context": { "branch": "nowhere" } }), "BranchNotFound"),
        ("circle", json!({ "dependsOn": ["circle"] }), "InvalidSpec"),
        ("right", json!({ "dependsOn": ["left"] }), "DependencyCycle"),
        ("no-gate", json!({ "gates": { "required": ["nowhere"] } }), "GateMissing"),
    ];
    for (name, patch, reason) in cases {
        let mut object = manifest(name, &remote, "true");
        for (field, value) in patch.as_object().unwrap() {
            match value.as_object() {
                Some(inner) => inner.iter().for_each(|(inner, value)| object["spec"][field][inner] = value.clone()),
                None => object["spec"][field] = value.clone(),
            }
        }
        let (done, said) = apply(&object);
        assert!(done, "{name}: {said}");
        let admitted = "jsonpath={.status.conditions[?(@.type==\"Admitted\")].status} {.status.reason}";
        eventually(name, || kubectl(&["get", "ag", name, "-o", admitted]) == format!("False {reason}"));
    }
    mosaic.assert_nothing_left();
}
