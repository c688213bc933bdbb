//! The commands, run as people run them: the built program against a real server.

use crate::http::front::{Front, finished};
use mosaic::api::agent::Phase;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest time of one command.
const WAIT: Duration = Duration::from_secs(30);

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mosaic"));
    // Nothing of the tester's own settings.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MOSAIC_") && name != "MOSAIC_INIT") {
        command.env_remove(name);
    }
    command.args(args).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn finish(mut command: Command, input: Option<&str>) -> Ran {
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap();
    if let Some(input) = input {
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    }
    let output = tokio::time::timeout(WAIT, child.wait_with_output()).await.expect("the command ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Front {
    async fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, None).await
    }

    async fn run_with(&self, args: &[&str], input: Option<&str>) -> Ran {
        let mut command = command(args);
        command.env("MOSAIC_SERVER", self.url("")).env("MOSAIC_TOKEN", self.token.expose());
        finish(command, input).await
    }

    async fn spawn(&self, task: &str) -> String {
        let ran = self.run(&["spawn", "--repo", "/srv/repository", "--task-id", task, "--", "true"]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.out.split_whitespace().next().unwrap().trim_start_matches("agent/").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_exits_with_2_and_failure_with_1() {
    for args in [
        &["fly"][..],
        &["spawn"],
        &["spawn", "--repo", "."],
        &["kill"],
        &["kill", "a", "--all"],
        &["wait", "a", "--for", "happiness"],
        &["get", "-o", "xml"],
    ] {
        let ran = finish(command(args), None).await;
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.err);
    }
    let ran = finish(command(&["get", "--server", "http://127.0.0.1:1", "--state", "/nonexistent"]), None).await;
    assert_eq!(ran.code, Some(1));
    let mut unreachable = command(&["get", "--server", "http://127.0.0.1:1"]);
    unreachable.env("MOSAIC_TOKEN", "x".repeat(64));
    let ran = finish(unreachable, None).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no answer from http://127.0.0.1:1") && ran.err.contains("mosaic up"), "{}", ran.err);
    let ran = finish(command(&["up", "--listen", "0.0.0.0:1", "--lease", "1h", "--state", "/tmp/never-made"]), None).await;
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("listen:") && ran.err.contains("lease:"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_explained() {
    let front = Front::start().await;
    let mut wrong = command(&["get"]);
    wrong.env("MOSAIC_SERVER", front.url("")).env("MOSAIC_TOKEN", "0".repeat(64));
    let ran = finish(wrong, None).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("not the one of this server") && ran.err.contains("hint:"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_an_exit_code_for_health_checks() {
    let front = Front::start().await;
    let ran = front.run(&["health"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.starts_with("healthy, up for "), "{}", ran.out);
    let mut nobody = command(&["health", "--server", "http://127.0.0.1:1"]);
    nobody.env("MOSAIC_TOKEN", "x".repeat(64));
    assert_eq!(finish(nobody, None).await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_finds_server_and_token_in_the_state_folder() {
    let front = Front::start().await;
    let state = tempfile::tempdir().unwrap();
    let get = || command(&["get", "--state", state.path().to_str().unwrap()]);
    let ran = finish(get(), None).await;
    assert!(ran.code == Some(1) && ran.err.contains("no server has run"), "{}", ran.err);
    std::fs::write(state.path().join("server"), format!("{}\n", front.url(""))).unwrap();
    let token = state.path().join("token");
    std::fs::write(&token, front.token.expose()).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(finish(get(), None).await.err.contains("chmod 600"));
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let ran = finish(get(), None).await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), "No agents found in namespace default.\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_shown_as_kubectl_shows_things() {
    let front = Front::start().await;
    let name = front.spawn("shown").await;
    let table = front.run(&["get"]).await.out;
    let mut lines = table.lines();
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["NAME", "TYPE", "PHASE", "REASON", "GATES", "AGE"]);
    assert!(lines.next().unwrap().starts_with(&format!("{name}   worker   Pending")), "{table}");
    let wide = front.run(&["get", &name, "-o", "wide"]).await.out;
    assert!(wide.contains("REPOSITORY") && wide.contains("/srv/repository"), "{wide}");
    let all = front.run(&["get", "-A"]).await.out;
    assert!(all.starts_with("NAMESPACE"), "{all}");
    assert_eq!(front.run(&["get", "-o", "name"]).await.out, format!("agent/{name}\n"));
    let one: serde_json::Value = serde_json::from_str(&front.run(&["get", &name, "-o", "json"]).await.out).unwrap();
    assert_eq!((&one["kind"], &one["metadata"]["name"]), (&"Agent".into(), &name.as_str().into()));
    let list: serde_json::Value = serde_json::from_str(&front.run(&["get", "-o", "json"]).await.out).unwrap();
    assert_eq!(list["kind"], "List");
    let described = front.run(&["describe", &name]).await.out;
    assert!(described.contains("Task id:") && described.contains("shown"), "{described}");
    assert!(front.run(&["-n", "elsewhere", "get"]).await.err.contains("No agents found in namespace elsewhere"));
    let missing = front.run(&["get", "none"]).await;
    assert!(missing.code == Some(1) && missing.err.contains("there is no agent \"none\""), "{}", missing.err);
    assert_eq!(front.run(&["queue"]).await.out.lines().next(), Some("pending 1, active 0, completed 0, failed 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn spawn_says_where_and_with_how_much_an_agent_runs() {
    let front = Front::start().await;
    let flags = ["--driver", "docker", "--image", "debian:bookworm-slim", "--cpu", "500m", "--memory", "1Gi"];
    let args = [&["spawn", "--repo", "/srv/repository", "--task-id", "placed"][..], &flags, &["--", "true"]].concat();
    let ran = front.run(&args).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let name = ran.out.split_whitespace().next().unwrap().trim_start_matches("agent/").to_owned();
    let object: serde_json::Value = serde_json::from_str(&front.run(&["get", &name, "-o", "json"]).await.out).unwrap();
    let wanted = serde_json::json!({"driver": "docker", "image": "debian:bookworm-slim", "cpu": "500m", "memory": "1Gi"});
    assert_eq!(object["spec"]["sandbox"], wanted, "{object:#}");
    let ran = front.run(&["spawn", "--repo", "/srv/repository", "--driver", "moon", "--", "true"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("driver"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_id_with_another_request_fails_with_a_hint() {
    let front = Front::start().await;
    front.spawn("twice").await;
    front.spawn("twice").await;
    let ran = front.run(&["spawn", "--repo", "/srv/repository", "--task-id", "twice", "--", "false"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("another body") && ran.err.contains("hint:"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_get_prints_can_be_edited_and_applied() {
    let front = Front::start().await;
    let name = front.spawn("edited").await;
    let yaml = front.run(&["get", &name, "-o", "yaml"]).await.out;
    let ran = front.run_with(&["apply", "-f", "-"], Some(&yaml)).await;
    assert_eq!((ran.code, ran.out), (Some(0), format!("agent/{name} unchanged\n")), "{}", ran.err);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.yaml"),
        format!("{}---\n{}", yaml.replace("spec:", "spec:\n  priority: 9"), yaml.replace(&name, "second")),
    )
    .unwrap();
    std::fs::write(folder.path().join("note.txt"), "no object").unwrap();
    let ran = front.run(&["apply", "-f", folder.path().to_str().unwrap()]).await;
    assert_eq!((ran.code, ran.out), (Some(0), format!("agent/{name} configured\nagent/second created\n")), "{}", ran.err);
    let wrong = yaml.replace("repository: /srv", "repository: /other");
    let ran = front.run_with(&["apply", "-f", "-"], Some(&wrong)).await;
    assert!(ran.code == Some(1) && ran.err.contains("only spec.priority and spec.suspend can be changed"), "{}", ran.err);
    for (input, word) in [("kind: Job\nmetadata: {name: a}", "only Agent"), ("a: [", "standard input"), ("", "no object")] {
        let ran = front.run_with(&["apply", "-f", "-"], Some(input)).await;
        assert!(ran.code == Some(2) && ran.err.contains(word), "{input}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_when_it_is_so_and_fails_when_it_cannot_be() {
    let front = Front::start().await;
    let name = front.spawn("awaited").await;
    let ran = front.run(&["wait", &name, "--for", "phase=Completed", "--timeout", "500ms"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("timed out"), "{}", ran.err);
    let args = ["wait", &name, "--for", "phase=Completed", "--timeout", "20s"];
    let completed = finished(Phase::Completed);
    let (ran, ()) = tokio::join!(front.run(&args), front.set_status(&name, &completed));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let other = front.spawn("failing").await;
    front.set_status(&other, &finished(Phase::Failed)).await;
    let ran = front.run(&["wait", &other, "--for", "condition=Pushed", "--timeout", "20s"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("is failed: over"), "{}", ran.err);
    let again = front.run(&["spawn", "--repo", "/srv/repository", "--task-id", "failing", "--wait", "--", "true"]).await;
    assert!(again.code == Some(1) && again.err.contains("is failed"), "{}", again.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_delete_and_halts_tell_what_was_seen() {
    let front = Front::start().await;
    let _controller = front.tear_down_deleted();
    let (one, two) = (front.spawn("one").await, front.spawn("two").await);
    let ran = front.run(&["kill", &one]).await;
    assert!(ran.code == Some(0) && ran.out.starts_with(&format!("agent/{one} killed (verified, ")), "{}{}", ran.out, ran.err);
    assert_eq!(front.run(&["wait", &one, "--for", "delete", "--timeout", "5s"]).await.code, Some(0));
    let again = front.run(&["kill", &one]).await;
    assert!(again.code == Some(0) && again.out.contains("nothing to kill"), "{}", again.out);
    let ran = front.run(&["delete", &two]).await;
    assert_eq!((ran.code, ran.out), (Some(0), format!("agent/{two} deleted\n")));
    front.spawn("three").await;
    let ran = front.run(&["kill", "--all", "--hold", "--reason", "drill"]).await;
    assert!(ran.code == Some(0) && ran.out.contains("killed (verified") && ran.err.contains("halt release"), "{}{}", ran.out, ran.err);
    let halts = front.run(&["halt", "list"]).await.out;
    let name = halts.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(halts.contains("drill"));
    assert_eq!(front.run(&["halt", "release", &name]).await.out, format!("halt/{name} released\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn priority_and_suspend_can_be_changed() {
    let front = Front::start().await;
    let name = front.spawn("changed").await;
    assert_eq!(front.run(&["patch", &name, "--priority", "9"]).await.out, format!("agent/{name} patched\n"));
    assert_eq!(front.run(&["suspend", &name]).await.out, format!("agent/{name} suspended\n"));
    let yaml = front.run(&["get", &name, "-o", "yaml"]).await.out;
    assert!(yaml.contains("priority: 9") && yaml.contains("suspend: true"), "{yaml}");
    assert_eq!(front.run(&["resume", &name]).await.out, format!("agent/{name} resumed\n"));
    assert_eq!(front.run(&["patch", &name, "--priority", "11"]).await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn printing_commands_need_no_server() {
    let crd = finish(command(&["crd"]), None).await;
    assert!(crd.code == Some(0) && crd.out.contains("kind: CustomResourceDefinition") && crd.out.contains("halts.mosaicstack.dev"));
    assert_eq!(finish(command(&["version"]), None).await.out, format!("mosaic {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let ran = finish(command(&["completions", shell]), None).await;
        assert!(ran.code == Some(0) && ran.out.contains("mosaic"), "{shell}");
    }
}

/// Runs the demo on a state home of its own, and gives what it printed.
async fn demo(home: &std::path::Path) -> String {
    let mut demo = command(&["demo", "--timeout", "3m"]);
    demo.arg("--state").arg(home);
    let ran = tokio::time::timeout(Duration::from_secs(200), demo.output()).await.expect("the demo ends").unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout).into_owned(), String::from_utf8_lossy(&ran.stderr).into_owned());
    assert!(ran.status.success(), "{out}\n{err}");
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_pushes_what_a_gate_passed_and_does_so_again() {
    let home = tempfile::tempdir().unwrap();
    for round in 1..=2 {
        let out = demo(home.path()).await;
        for part in
            ["gate tests: fail", "wrong: 4 is IV, not IIII", "round 2", "gate tests: pass", "pushed and verified", "What to try next"]
        {
            assert!(out.contains(part), "{part} is missing in:\n{out}");
        }
        let mut demos: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().path()).collect();
        demos.sort_unstable();
        assert_eq!(demos.len(), round);
        let newest = demos.last().unwrap();
        let remote = git2::Repository::open_bare(newest.join("sample/roman.git")).unwrap();
        let branches: Vec<String> = remote.references_glob("refs/heads/mosaic/*").unwrap().names().map(|n| n.unwrap().to_owned()).collect();
        assert_eq!(branches.len(), 1);
        let commit = remote.find_reference(&branches[0]).unwrap().peel_to_commit().unwrap();
        assert!(out.contains(&format!("pushed and verified: {} = {}", branches[0], commit.id())), "{out}");
        let library = commit.tree().unwrap().get_path(std::path::Path::new("src/lib.rs")).unwrap().to_object(&remote).unwrap();
        let text = String::from_utf8(library.peel_to_blob().unwrap().content().to_vec()).unwrap();
        assert!(text.contains("(4, \"IV\")") && text.contains("(900, \"CM\")"), "{text}");
        assert_eq!(commit.parent_count(), 1);
        assert!(!newest.join("state/server").exists(), "the server of the demo is gone");
    }
}

#[tokio::test]
async fn the_audit_log_has_the_callers_request_id_and_is_checked_from_outside() {
    let front = Front::start().await;
    let spawn = front.http.post(front.url("/agents/spawn")).bearer_auth(front.token.expose()).header("x-request-id", "ticket-4711");
    let answer = spawn.json(&crate::http::front::request("audited")).send().await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "ticket-4711");
    front.spawn("unnamed").await;
    let state = front.state.path().to_str().unwrap();
    let file = front.state.path().join("audit/test.jsonl");
    let entries = || std::fs::read_to_string(&file).unwrap_or_default();
    // A request is answered before its entry is on the disk.
    let started = Instant::now();
    while entries().matches("\"requestId\":").count() < 2 && started.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let written = entries();
    assert_eq!(written.matches("\"requestId\":\"ticket-4711\"").count(), 1, "{written}");
    assert_eq!(written.matches("\"requestId\":").count(), 2, "one that has none is given one: {written}");
    let whole = finish(command(&["--state", state, "audit", "verify"]), None).await;
    assert!(whole.code == Some(0) && whole.out.contains("whole"), "{}{}", whole.out, whole.err);
    std::fs::write(&file, written.replace("ticket-4711", "ticket-4712")).unwrap();
    let broken = finish(command(&["--state", state, "audit", "verify"]), None).await;
    assert!(
        broken.code == Some(1) && broken.out.contains("broken at") && broken.out.contains("test.jsonl:1"),
        "{}{}",
        broken.out,
        broken.err
    );
    let none = finish(command(&["--state", "/nonexistent", "audit", "verify"]), None).await;
    assert!(none.code == Some(1) && none.err.contains("there is no audit log at /nonexistent/audit"), "{}", none.err);
}
