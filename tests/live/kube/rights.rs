//! Under exactly the printed rights, and what is said where something is missing.

use super::cluster::{Cluster, cluster_now, has_kubectl, kubectl, kubectl_says, kubectl_with};
use crate::harness::{Mosaic, Remote, gates, program, task};
use mosaic::api::schema::crd_yaml;
use mosaic::store::Kind;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::runtime::Runtime;

/// A kubeconfig for the service account that `mosaic crd --rbac` describes, in a folder.
fn as_service_account(folder: &Path, account: &str) -> PathBuf {
    let token = kubectl(&["create", "token", account, "--duration=1h"]);
    let view = kubectl(&["config", "view", "--raw", "--minify", "-o", "json"]);
    let view: serde_json::Value = serde_json::from_str(&view).unwrap();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": view["clusters"][0]["cluster"] }],
        "users": [{ "name": "u", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u", "namespace": "default" } }],
        "current-context": "x",
    });
    let path = folder.join(format!("{account}.kubeconfig"));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn start(test: &str) -> Option<(Cluster, Runtime)> {
    let (cluster, runtime) = cluster_now(test)?;
    has_kubectl(test).then_some((cluster, runtime))
}

fn printed_rights() -> String {
    let out = program().args(["crd", "--rbac", "-n", "default"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_whole_job_a_kill_and_a_handover_need_no_more_than_the_printed_rights() {
    let test = "kube::rights::a_whole_job_a_kill_and_a_handover_need_no_more_than_the_printed_rights";
    let Some((_cluster, _runtime)) = start(test) else { return };
    let (done, said) = kubectl_with(&["apply", "-f", "-"], &printed_rights());
    assert!(done, "{said}");
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = as_service_account(folder.path(), "mosaic");
    let mut mosaic = Mosaic::prepare(&["--store", "kube"]);
    mosaic.environment = vec![("KUBECONFIG".to_owned(), kubeconfig.to_str().unwrap().to_owned())];
    mosaic.up();
    assert!(mosaic.log().contains("system:serviceaccount:default:mosaic"), "{}", mosaic.log());
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let delivered = mosaic.spawn(&task(&remote, "one", "echo one > one.txt"));
    mosaic.wait_completed(&delivered);
    let mut short = task(&remote, "short", "echo short > short.txt");
    short["ttlAfterFinished"] = json!("1s");
    let short = mosaic.spawn(&short);
    crate::harness::eventually("its time is over", || {
        let name = kubectl(&["get", "agents", "-o", "jsonpath={.items[*].metadata.uid}"]);
        !name.contains(&short) && mosaic.object(&short)["status"]["phase"] == "Completed"
    });
    let long = mosaic.spawn(&task(&remote, "long", "sleep 600"));
    mosaic.wait(&long, "the run", |object| object["status"]["phase"] == "Running");
    let (code, ending) = mosaic.call("POST", &format!("/agents/{long}/kill"), Some(&json!({})));
    assert_eq!((code, &ending["verified"]), (200, &json!(true)), "{ending}");
    let (code, answer) = mosaic.call("POST", "/agents/kill-all", Some(&json!({ "reason": "drill" })));
    assert_eq!(code, 200, "{answer}");
    crate::harness::eventually("the halt goes", || kubectl(&["get", "halts", "-o", "name"]).is_empty());
    mosaic.sigterm();
    mosaic.up();
    mosaic.assert_nothing_left();
    let log = mosaic.log();
    assert!(!log.contains("orbidden"), "nothing was asked for in vain: {log}");
    // Exactly these: nothing beyond.
    let may = |verb: &str, what: &str| kubectl_says(&["auth", "can-i", verb, what, "--as", "system:serviceaccount:default:mosaic"]).0;
    for (verb, what) in [
        ("get", "secrets"),
        ("list", "secrets"),
        ("update", "pods"),
        ("delete", "leases"),
        ("deletecollection", "agents"),
        ("update", "events"),
    ] {
        assert!(!may(verb, what), "{verb} {what}");
    }
    assert!(!may("get", "configmaps.other") && may("get", "configmaps"));
}

/// What `mosaic up` says when it cannot start.
fn refusal(kubeconfig: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command: Command = program();
    command.args(["up", "--store", "kube", "--listen", "127.0.0.1:0", "--state"]).arg(folder.path().join("state"));
    let out = command.env("KUBECONFIG", kubeconfig).output().unwrap();
    assert!(!out.status.success());
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let Some((_cluster, _runtime)) = start("kube::rights::what_is_missing_is_named_with_what_to_do") else { return };
    let folder = tempfile::tempdir().unwrap();
    // Nobody may anything.
    kubectl_says(&["create", "serviceaccount", "nobody"]);
    let nobody = as_service_account(folder.path(), "nobody");
    let said = refusal(nobody.to_str().unwrap());
    for words in
        ["system:serviceaccount:default:nobody may not", "update agents/status", "mosaic crd --rbac -n default | kubectl apply -f -"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Definitions of another version, and none at all.
    let admin = std::env::var("KUBECONFIG").unwrap();
    let yaml = crd_yaml(Kind::Agent);
    let mut definition: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    let status = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
    status.as_object_mut().unwrap().remove("push");
    definition["spec"]["versions"][0]["additionalPrinterColumns"] = json!([]);
    let (done, said) = kubectl_with(&["replace", "-f", "-"], &definition.to_string());
    assert!(done, "{said}");
    let said = refusal(&admin);
    assert!(said.contains("lacks status.push") && said.contains("mosaic crd | kubectl apply -f -"), "{said}");
    kubectl(&["delete", "crd", "agents.mosaicstack.dev"]);
    let said = refusal(&admin);
    assert!(
        said.contains("agents.mosaicstack.dev") && said.contains("is missing") && said.contains("mosaic crd | kubectl apply -f -"),
        "{said}"
    );
    let (done, said) = kubectl_with(&["apply", "-f", "-"], &yaml);
    assert!(done, "{said}");
    // No cluster.
    let said = refusal("/no/such/kubeconfig");
    assert!(said.contains("KUBECONFIG"), "{said}");
    let dead = folder.path().join("dead");
    let text = std::fs::read_to_string(&nobody).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    std::fs::write(&dead, text.replace(server, "https://127.0.0.1:1")).unwrap();
    let said = refusal(dead.to_str().unwrap());
    assert!(said.contains("cannot be reached") && said.contains("refused"), "{said}");
}
