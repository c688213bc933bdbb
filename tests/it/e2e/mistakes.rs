//! Plain mistakes: each gets a clear error that says what to do, the same over HTTP beforehand and in `Admitted=False`.

use super::harness::{Mosaic, Remote, condition, gates, http, program, task};
use serde_json::{Value, json};

fn refused(mosaic: &Mosaic, body: &Value, words: &[&str]) {
    let (status, answer) = mosaic.call("POST", "/agents/spawn", Some(body));
    assert_eq!(status, 422, "{answer}");
    let text = answer.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

#[test]
fn wrong_repositories_branches_and_gates_are_refused_with_what_to_do() {
    let mosaic = Mosaic::start(&[]);
    let folder = mosaic.folder.path();
    let gate_file = gates("true", "true");
    let good = Remote::new(folder, "good", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let with = |repository: &str, branch: Option<&str>| {
        let mut body = task(&good, "mistake", "true");
        body["context"] = json!({"repository": repository, "branch": branch.unwrap_or("main")});
        body
    };
    let missing = folder.join("missing.git");
    refused(&mosaic, &with(missing.to_str().unwrap(), None), &["RepositoryNotFound", "missing.git"]);
    refused(&mosaic, &with("/etc", None), &["RepositoryNotAllowed", "--local-repos"]);
    refused(&mosaic, &with(good.url(), Some("nowhere")), &["BranchNotFound", "nowhere", "main"]);
    super::harness::git(folder, &["init", "-q", "--bare", "-b", "main", "empty.git"]);
    refused(&mosaic, &with(folder.join("empty.git").to_str().unwrap(), None), &["RepositoryEmpty"]);
    std::fs::create_dir(folder.join("plain")).unwrap();
    refused(&mosaic, &with(folder.join("plain").to_str().unwrap(), None), &["RepositoryNotFound"]);
    let bad = Remote::new(folder, "bad", &[(".mosaic/gates.toml", "[[gate]]\nname = \"tests\"\ncommand = 7\n")]);
    refused(&mosaic, &with(bad.url(), None), &["InvalidGates", "gates.toml"]);
    let lacking = Remote::new(folder, "lacking", &[(".mosaic/gates.toml", "[[gate]]\nname = \"tests\"\ncommand = \"true\"\n")]);
    refused(&mosaic, &with(lacking.url(), None), &["GateMissing", "lint"]);
    let bare = Remote::new(folder, "nothing", &[("README", "x\n")]);
    refused(&mosaic, &with(bare.url(), None), &["gates.toml"]);
    let mut strict = task(&good, "strict", "true");
    strict["gates"] = json!({"profile": "strict"});
    refused(&mosaic, &strict, &["NotSupported"]);
    let mut claude = task(&good, "claude", "true");
    claude["runtime"] = json!({"preset": "codex"});
    refused(&mosaic, &claude, &["not built"]);
    let mut both = task(&good, "both", "true");
    both["runtime"] = json!({"preset": "codex", "command": {"args": ["true"]}});
    refused(&mosaic, &both, &["exactly one"]);
    assert!(good.agent_refs().is_empty());
}

#[test]
fn agent_that_fails_or_changes_nothing_says_so_and_pushes_nothing() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let ended = |task_id: &str, script: &str, retries: u32| {
        let mut body = task(&remote, task_id, script);
        body["maxRetries"] = json!(retries);
        mosaic.wait_ended(&mosaic.spawn(&body))
    };
    let failed = ended("exit-3", "echo something is wrong; exit 3", 1);
    assert_eq!(failed["status"]["reason"], "AgentFailed", "{failed:#}");
    assert_eq!(failed["status"]["counts"]["agentFailures"], 2);
    assert!(failed["status"]["message"].as_str().unwrap().contains("exit code 3"), "{failed:#}");
    assert!(failed["status"]["feedback"].to_string().contains("something is wrong"));
    let silent = ended("silent", "true", 0);
    assert_eq!(silent["status"]["reason"], "NothingChanged", "{silent:#}");
    assert!(silent["status"]["message"].as_str().unwrap().contains("result.json"));
    let honest = ended("honest", "printf '{\"summary\":\"all is well already\"}' > /mosaic/out/result.json", 0);
    assert_eq!(
        (honest["status"]["phase"].as_str(), honest["status"]["reason"].as_str()),
        (Some("Completed"), Some("NoChanges")),
        "{honest:#}"
    );
    let absent = {
        let mut body = task(&remote, "absent", "");
        body["runtime"] = json!({"command": {"args": ["/no/such/program"]}});
        body["maxRetries"] = json!(0);
        mosaic.wait_ended(&mosaic.spawn(&body))
    };
    assert!(absent["status"]["message"].as_str().unwrap().contains("/no/such/program"), "{absent:#}");
    let slow = {
        let mut body = task(&remote, "slow", "sleep 600");
        body["timeout"] = json!("2s");
        mosaic.wait_ended(&mosaic.spawn(&body))
    };
    assert_eq!(slow["status"]["reason"], "Timeout", "{slow:#}");
    let idle = {
        let mut body = task(&remote, "idle", "sleep 600");
        body["idleTimeout"] = json!("1s");
        body["maxRetries"] = json!(0);
        mosaic.wait_ended(&mosaic.spawn(&body))
    };
    assert_eq!(idle["status"]["reason"], "IdleTimeout", "{idle:#}");
    assert!(remote.agent_refs().is_empty());
    mosaic.assert_nothing_left();
}

#[test]
fn task_ids_bind_for_ever_and_cycles_are_refused() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let body = task(&remote, "once", "echo x > x.txt");
    let uid = mosaic.spawn(&body);
    mosaic.wait_completed(&uid);
    assert_eq!(mosaic.call("POST", "/agents/spawn", Some(&body)).1["agentId"], uid.as_str());
    let (status, answer) = mosaic.call("POST", "/agents/spawn", Some(&task(&remote, "once", "echo y > y.txt")));
    assert_eq!(status, 409, "{answer}");
    assert!(answer.to_string().contains("rerunOf"), "{answer}");
    assert_eq!(remote.agent_refs().len(), 1);
    // Two that wait for each other, as `apply -f` brings them.
    for (name, other) in [("first", "second"), ("second", "first")] {
        let mut spec = task(&remote, name, "true");
        spec["dependsOn"] = json!([other]);
        let object = json!({"apiVersion": "mosaicstack.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let (status, answer) = mosaic.call("PUT", &format!("/agents/{name}"), Some(&object));
        assert!(status == 200 || status == 201, "{status}: {answer}");
    }
    let object = mosaic.wait("first", "the cycle to be seen", |object| object["status"]["reason"] == "DependencyCycle");
    assert_eq!(condition(&object, "Admitted"), "False");
    assert!(object["status"]["message"].as_str().unwrap().contains("second"), "{object:#}");
}

#[test]
fn second_up_busy_port_and_wrong_token_are_told_clearly() {
    let mosaic = Mosaic::start(&[]);
    let second = mosaic.command().output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("another mosaic") && text.contains(&mosaic.pid().to_string()), "{text}");
    let server = std::fs::read_to_string(mosaic.state().join("server")).unwrap();
    let address = server.trim().trim_start_matches("http://");
    let other = tempfile::tempdir().unwrap();
    let busy = program().args(["up", "--listen", address, "--state"]).arg(other.path().join("state")).output().unwrap();
    let text = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert!(!busy.status.success() && text.contains(address) && text.contains("--listen"), "{text}");
    let (status, answer) = http("GET", &format!("{}/agents", server.trim()), Some("wrong"), None).unwrap();
    assert_eq!(status, 401, "{answer}");
    let (status, _) = http("GET", &format!("{}/agents", server.trim()), None, None).unwrap();
    assert_eq!(status, 401);
}

#[test]
fn broken_store_file_is_refused_and_never_touched() {
    let mut mosaic = Mosaic::start(&[]);
    mosaic.sigterm();
    let path = mosaic.state().join("mosaic.redb");
    std::fs::write(&path, b"this is no store").unwrap();
    let out = mosaic.command().output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && text.contains("mosaic.redb"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), b"this is no store");
}
