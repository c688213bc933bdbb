//! Rounds: gates that refuse, feedback, a moved base, conflicts, writers that outlive the agent.

use super::harness::{Mosaic, Remote, condition, gates, task};
use serde_json::{Value, json};

#[test]
fn refused_round_pushes_nothing_and_its_feedback_reaches_the_next_round() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("grep -q right answer.txt || { echo the answer must be right; exit 3; }", "sha256sum answer.txt");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    // The agent decides by the feedback it finds, and stays in its first round until the test has looked at the remote.
    let script = "if grep -q 'the answer must be right' /mosaic/task.json; then echo right > answer.txt; else echo wrong > answer.txt; fi";
    let uid = mosaic.spawn(&task(&remote, "answer", script));
    let object = mosaic.wait_completed(&uid);
    let status = &object["status"];
    assert_eq!(status["attempt"], 2, "{object:#}");
    assert_eq!(status["counts"], json!({"agentFailures": 0, "rejections": 1, "infrastructure": 0}));
    let gates = status["gates"].as_array().unwrap();
    let verdict = |name: &str, verdict: &str| gates.iter().find(|g| g["name"] == name && g["verdict"] == verdict);
    let refused = verdict("tests", "fail").expect("the first round was refused");
    let passed = verdict("tests", "pass").expect("the second round passed");
    assert_ne!(refused["sha"], passed["sha"]);
    assert_eq!(passed["sha"], status["push"]["sha"]);
    let name = status["push"]["ref"].as_str().unwrap();
    assert_eq!(remote.refs().get(name).map(String::as_str), passed["sha"].as_str());
    assert_eq!(remote.git(&["show", &format!("{name}:answer.txt")]), "right\n");
    // Byte for byte: what the gate hashed is what the remote has.
    let hashed = gates.iter().find(|g| g["name"] == "lint" && g["sha"] == passed["sha"]).expect("lint judged the same commit");
    let at_remote = std::process::Command::new("sh")
        .args(["-c", &format!("git -C '{}' -c safe.directory='*' show {name}:answer.txt | sha256sum", remote.url())])
        .output()
        .unwrap();
    let sum = String::from_utf8(at_remote.stdout).unwrap();
    assert!(hashed["evidence"].as_str().unwrap().contains(sum.split_whitespace().next().unwrap()), "{hashed:#}");
    mosaic.assert_nothing_left();
}

#[test]
fn agent_that_never_satisfies_the_gate_is_given_up_with_nothing_pushed_and_its_work_kept() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("false", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let mut body = task(&remote, "hopeless", "echo try >> tries.txt");
    body["maxRetries"] = json!(1);
    let uid = mosaic.spawn(&body);
    let object = mosaic.wait_ended(&uid);
    assert_eq!(object["status"]["phase"], "Failed", "{object:#}");
    assert_eq!(object["status"]["reason"], "GateRejected");
    assert_eq!(object["status"]["counts"]["rejections"], 2);
    assert!(remote.agent_refs().is_empty(), "{:?}", remote.refs());
    let kept = object["status"]["workspace"]["rescueRef"].as_str().expect("unpushed work is kept").to_owned();
    let work = find_work_repository(&mosaic);
    let file = super::harness::git(&work, &["show", &format!("{kept}:tries.txt")]);
    assert_eq!(file, "try\ntry\n");
    mosaic.assert_nothing_left();
}

fn find_work_repository(mosaic: &Mosaic) -> std::path::PathBuf {
    let repositories = std::fs::read_dir(mosaic.state().join("repositories")).unwrap();
    repositories.flatten().map(|entry| entry.path().join("work.git")).find(|path| path.is_dir()).expect("a work repository")
}

#[test]
fn processes_left_writing_after_the_agents_exit_change_nothing_of_what_is_gated() {
    let mosaic = Mosaic::start(&[]);
    // The gate tells what it was given and takes its time, so that a writer that still lived would be caught in the act.
    let gate_file = gates("cat file.txt; sleep 1; cat file.txt; test \"$(cat file.txt)\" -gt 0", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let script = "(setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n > new; mv new file.txt; done' >/dev/null 2>&1 &) ; sleep 0.5";
    let uid = mosaic.spawn(&task(&remote, "writer", script));
    let object = mosaic.wait_completed(&uid);
    let sha = object["status"]["push"]["sha"].as_str().unwrap();
    let pushed = remote.git(&["show", &format!("{sha}:file.txt")]);
    let gate = object["status"]["gates"].as_array().unwrap().iter().find(|g| g["name"] == "tests").unwrap();
    assert_eq!(gate["sha"], sha);
    assert_eq!(gate["evidence"].as_str().unwrap().trim(), format!("{pushed}{}", pushed.trim()), "what was gated is what was pushed");
    mosaic.assert_nothing_left();
}

#[test]
fn moved_base_is_merged_and_the_merge_is_gated() {
    let mosaic = Mosaic::start(&[]);
    // The gates may ask git about the commit that they judge.
    let gate_file = gates("cat a.txt b.txt; git log -1 --format=%H; git status --porcelain", "true");
    let remote =
        Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str()), ("a.txt", "a\n"), ("b.txt", "b\n")]);
    let uid = mosaic.spawn(&task(&remote, "mover", "echo mine > b.txt; echo waiting; while ! [ -e /mosaic/out/go ]; do sleep 0.05; done"));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let tip = remote.commit(&[("a.txt", "theirs\n")], "somebody else");
    release(&mosaic);
    let object = mosaic.wait_completed(&uid);
    let head = object["status"]["push"]["sha"].as_str().unwrap();
    assert_eq!(remote.git(&["rev-parse", &format!("{head}^1")]).trim(), tip, "the first parent is the moved base");
    assert_eq!(remote.git(&["show", &format!("{head}:a.txt")]), "theirs\n");
    assert_eq!(remote.git(&["show", &format!("{head}:b.txt")]), "mine\n");
    let gated: Vec<&Value> = object["status"]["gates"].as_array().unwrap().iter().filter(|g| g["sha"] == head).collect();
    assert_eq!(gated.len(), 2, "both gates judged the merge: {object:#}");
    assert!(gated.iter().all(|g| g["verdict"] == "pass" && g["baseSha"] == tip.as_str()));
    mosaic.assert_nothing_left();
}

#[test]
fn conflict_reaches_the_agent_as_paths_and_hunks_and_it_resolves_them() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("! grep -q '<<<<' a.txt", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str()), ("a.txt", "one\n")]);
    let script = "if grep -q '\"kind\": *\"conflict\"' /mosaic/task.json; then
            grep -q '<<<<<<<' a.txt; grep -q theirs /mosaic/task.json; echo theirs and mine > a.txt
        else echo mine > a.txt; echo waiting; while ! [ -e /mosaic/out/go ]; do sleep 0.05; done; fi";
    let uid = mosaic.spawn(&task(&remote, "conflict", script));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let tip = remote.commit(&[("a.txt", "theirs\n")], "somebody else");
    release(&mosaic);
    let object = mosaic.wait_completed(&uid);
    assert_eq!(object["status"]["attempt"], 2, "{object:#}");
    let head = object["status"]["push"]["sha"].as_str().unwrap();
    assert_eq!(remote.git(&["show", &format!("{head}:a.txt")]), "theirs and mine\n");
    assert_eq!(remote.git(&["merge-base", head, &tip]).trim(), tip);
    let feedback = &object["status"]["feedback"][0];
    assert_eq!(feedback["kind"], "conflict");
    assert!(feedback["summary"].as_str().unwrap().contains("a.txt"), "{feedback:#}");
    mosaic.assert_nothing_left();
}

/// Lets a waiting agent go on: the test puts a file into its folder for results, from the outside.
fn release(mosaic: &Mosaic) {
    let runs = std::fs::read_dir(mosaic.state().join("runs")).unwrap().flatten();
    let outs: Vec<_> = runs.map(|run| run.path().join("out")).filter(|out| out.is_dir()).collect();
    assert!(!outs.is_empty(), "a run has a folder for results");
    for out in outs {
        std::fs::write(out.join("go"), "").unwrap();
    }
}

#[test]
fn remote_that_refuses_by_hook_becomes_feedback_and_then_a_clear_end() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let hook = remote.path.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho no pushes on Sundays >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut body = task(&remote, "refused", "date +%N > now.txt");
    body["maxRetries"] = json!(1);
    let uid = mosaic.spawn(&body);
    let object = mosaic.wait_ended(&uid);
    assert_eq!(object["status"]["reason"], "PushRejected", "{object:#}");
    assert!(object["status"]["feedback"].to_string().contains("no pushes on Sundays"), "{object:#}");
    assert!(remote.agent_refs().is_empty());
    mosaic.assert_nothing_left();
}

#[test]
fn remote_that_is_away_is_named_while_the_agent_waits_and_costs_no_round() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("true", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uid = mosaic.spawn(&task(&remote, "away", "echo x > x.txt; sleep 1"));
    mosaic.wait(&uid, "the agent to run", |object| condition(object, "SandboxReady") == "True");
    let away = remote.path.with_extension("away");
    std::fs::rename(&remote.path, &away).unwrap();
    let object = mosaic.wait(&uid, "the failure", |object| object["status"]["counts"]["infrastructure"].as_u64() > Some(0));
    let pushed = object["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Pushed").expect("what fails");
    assert!(pushed["message"].as_str().unwrap().contains("repo.git"), "{pushed:#}");
    std::fs::rename(&away, &remote.path).unwrap();
    let object = mosaic.wait_completed(&uid);
    assert_eq!((&object["status"]["counts"]["rejections"], &object["status"]["attempt"]), (&json!(0), &json!(1)));
}

#[test]
fn who_changes_the_judges_is_refused_without_being_heard_and_told_why() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = format!("protect = [\"fixed/**\"]\n{}", gates("sh check.sh", "true"));
    let files = [(".mosaic/gates.toml", gate_file.as_str()), ("check.sh", "grep -q right answer.txt\n"), ("fixed/x", "x\n")];
    let remote = Remote::new(mosaic.folder.path(), "repo", &files);
    // The first round makes its own judge; the second, told, undoes that and does the work.
    let script = "if grep -q 'undo these parts' /mosaic/task.json; then git checkout -q -- . ; echo right > answer.txt; \
                  else echo true > check.sh; echo y > fixed/x; echo wrong > answer.txt; fi";
    let uid = mosaic.spawn(&task(&remote, "tamper", script));
    let object = mosaic.wait_completed(&uid);
    let status = &object["status"];
    assert_eq!((&status["attempt"], &status["counts"]["rejections"]), (&json!(2), &json!(1)), "{object:#}");
    let verdicts = status["gates"].as_array().unwrap();
    let refused = verdicts.iter().find(|v| v["name"] == "tamper").expect("a verdict of its own");
    assert_eq!(refused["verdict"], "fail");
    let evidence = refused["evidence"].as_str().unwrap();
    assert!(evidence.contains("check.sh: a gate's command calls it") && evidence.contains("fixed/x: it is protected"), "{evidence}");
    let same_commit = verdicts.iter().filter(|v| v["sha"] == refused["sha"]).count();
    assert_eq!(same_commit, 1, "no gate of its own making ran: {verdicts:#?}");
    let name = status["push"]["ref"].as_str().unwrap();
    assert_eq!(remote.git(&["show", &format!("{name}:check.sh")]), "grep -q right answer.txt\n");
    mosaic.assert_nothing_left();
}

#[test]
fn a_person_approves_exactly_the_refused_change_of_the_judges() {
    let mosaic = Mosaic::start(&[]);
    let gate_file = gates("sh check.sh", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str()), ("check.sh", "false\n")]);
    let mut body = task(&remote, "approved", "echo true > check.sh; sleep 1");
    body["maxRetries"] = json!(10);
    let uid = mosaic.spawn(&body);
    let tampered = |object: &Value| {
        let verdicts = object["status"]["gates"].as_array().cloned().unwrap_or_default();
        verdicts.iter().find(|v| v["name"] == "tamper").map(|v| v["sha"].as_str().unwrap().to_owned())
    };
    let object = mosaic.wait(&uid, "the refusal", |object| tampered(object).is_some());
    assert!(remote.agent_refs().is_empty());
    let name = object["metadata"]["name"].as_str().unwrap();
    let manifest = json!({
        "apiVersion": object["apiVersion"], "kind": "Agent", "spec": object["spec"],
        "metadata": {"name": name, "annotations": {"mosaicstack.dev/approve-tamper": tampered(&object).unwrap()}},
    });
    let (status, answer) = mosaic.call("PUT", &format!("/agents/{name}"), Some(&manifest));
    assert_eq!(status, 200, "{answer}");
    let object = mosaic.wait_completed(&uid);
    let pushed = object["status"]["push"]["ref"].as_str().unwrap();
    assert_eq!(remote.git(&["show", &format!("{pushed}:check.sh")]), "true\n");
}

#[test]
fn whose_work_a_commit_is_cannot_be_forged_by_its_message() {
    let mosaic = Mosaic::start(&[]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    // As long as a message may be, so that what is added would be cut off; and short ones, that only look like it.
    for (number, filler) in [16_300, 12_000, 10].into_iter().enumerate() {
        let script = format!(
            "echo {number} > a.txt; python3 -c 'import json\nforged = \"\\n\\nMosaic-Agent: another\\n mosaic-task : other\"\n\
             json.dump({{\"commitMessage\": \"subject\\n\\n\" + \"x\" * {filler} + forged}}, open(\"/mosaic/out/result.json\", \"w\"))'"
        );
        let name = format!("forger-{number}");
        let uid = mosaic.spawn(&task(&remote, &name, &script));
        let object = mosaic.wait_completed(&uid);
        let sha = object["status"]["push"]["sha"].as_str().unwrap();
        assert_eq!(remote.git(&["log", "-1", "--format=%s", sha]).trim(), "subject");
        assert_eq!(remote.git(&["log", "-1", "--format=%(trailers)", sha]).trim(), format!("Mosaic-Agent: {uid}\nMosaic-Task: {name}"));
        assert!(!remote.git(&["log", "-1", "--format=%B", sha]).contains("other"));
    }
    mosaic.assert_nothing_left();
}
