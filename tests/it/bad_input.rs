//! Bad input and the exact words that answer it: every field of a spec, the gates file, HTTP, command line and settings.
//!
//! The tables are `bad_input/*.json`. `UPDATE_TEXTS=1` writes what is said now into them, for a person to read: each text must say what is
//! wrong, where, and what would do.

use crate::e2e::harness::{Mosaic, Remote, condition, gates, program, task};
use mosaic::api::agent::GateProfile;
use mosaic::gates::{GATES_FILE, TrustedTree, gate_set};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// Fewer cases than this are a broken table.
const CASES_MIN: usize = 60;

/// Runs every case of a table; what is answered otherwise is listed whole.
fn hold_against(table: &str, answer: impl Fn(&Value) -> String) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/bad_input").join(format!("{table}.json"));
    let mut cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut different = Vec::new();
    for case in &mut cases {
        let said = answer(case);
        if case["text"] != said.as_str() {
            different.push(format!("{}\n  expected: {}\n  answered: {said}", case["name"], case["text"]));
            case["text"] = said.into();
        }
    }
    if std::env::var_os("UPDATE_TEXTS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&cases).unwrap() + "\n").unwrap();
    } else {
        assert!(different.is_empty(), "{table}:\n{}", different.join("\n"));
    }
    cases.len()
}

/// A server with a repository and one suspended agent, `one`.
struct World {
    mosaic: Mosaic,
    remote: Remote,
}

impl World {
    fn new() -> Self {
        let mosaic = Mosaic::start(&[]);
        let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
        let world = Self { mosaic, remote };
        let mut spec = task(&world.remote, "one", "true");
        spec["suspend"] = json!(true);
        let (status, answer) = world.mosaic.call("PUT", "/agents/one", Some(&object("one", &spec)));
        assert_eq!(status, 201, "{answer}");
        world
    }

    /// What differs from run to run, named.
    fn named(&self, text: &str) -> String {
        let server = std::fs::read_to_string(self.mosaic.state().join("server")).unwrap();
        let folder = self.mosaic.folder.path().to_str().unwrap();
        let port = server.trim().rsplit(':').next().unwrap().trim_end_matches('/');
        text.replace(server.trim(), "SERVER").replace(folder, "FOLDER").replace(port, "PORT").trim().to_owned()
    }

    fn cli(&self, args: &[&str], input: Option<&str>, env: &Value) -> (i32, String) {
        let mut command = program();
        command.args(args).env("MOSAIC_STATE", self.mosaic.state()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in env.as_object().into_iter().flatten() {
            command.env(name, value.as_str().unwrap());
        }
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read is none of our business.
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), self.named(&text))
    }
}

/// A whole object, as a file has it.
fn object(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "mosaicstack.dev/v1alpha1", "kind": "Agent", "metadata": { "name": name }, "spec": spec })
}

/// A problem as one text: every mistake, or the detail; then the hint.
fn said(answer: &Value) -> String {
    let errors: Vec<&str> = answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let what =
        if errors.is_empty() { answer["detail"].as_str().map_or_else(|| answer.to_string(), str::to_owned) } else { errors.join("; ") };
    let hint = answer["hint"].as_str().map(|hint| format!(" -> {hint}"));
    what + &hint.unwrap_or_default()
}

/// Puts a patch over a value: objects field by field, null takes away, `{"$repeat": [part, n]}` is a text or list of that many parts.
fn merge(value: &mut Value, patch: &Value) {
    if let Some([part, times]) = patch["$repeat"].as_array().map(Vec::as_slice) {
        let times = usize::try_from(times.as_u64().unwrap()).unwrap();
        *value = part.as_str().map_or_else(|| json!(vec![&part[0]; times]), |text| json!(text.repeat(times)));
        return;
    }
    let (Some(patch), true) = (patch.as_object(), value.is_object() || patch.is_object()) else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (name, part) in patch {
        if part.is_null() {
            value.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut value[name.as_str()], part);
        }
    }
}

#[test]
fn every_field_of_a_spec_says_the_same_however_it_comes() {
    let world = World::new();
    let count = hold_against("spec", |case| {
        let mut spec = task(&world.remote, "bad-input", "true");
        merge(&mut spec, &case["patch"]);
        let (status, spawned) = world.mosaic.call("POST", "/agents/spawn", Some(&spec));
        assert!((400..500).contains(&status), "{}: spawn answered {status}: {spawned}", case["name"]);
        let text = world.named(&said(&spawned));
        // Without a task id the name of the record is the task's.
        if case["name"] != "taskId missing" {
            let object = object("bad-input", &spec);
            let (status, applied) = world.mosaic.call("PUT", "/agents/bad-input", Some(&object));
            if status == 201 {
                // It takes more than the object to see it: the record stands, refused, with the same words.
                let uid = applied["agentId"].as_str().unwrap();
                let refused = world.mosaic.wait(uid, "a refusal", |object| condition(object, "Admitted") == "False");
                let conditions = refused["status"]["conditions"].as_array().unwrap();
                let admitted = conditions.iter().find(|c| c["type"] == "Admitted").unwrap();
                assert_eq!(world.named(admitted["message"].as_str().unwrap()), text, "{}: applied", case["name"]);
                let (status, answer) = world.mosaic.call("DELETE", &format!("/agents/{uid}"), None);
                assert!(status == 200 || status == 202, "{answer}");
                crate::e2e::harness::eventually("its record to go", || {
                    let (_, all) = world.mosaic.call("GET", "/agents?name=bad-input", None);
                    all["items"] == json!([])
                });
                return format!("Admitted=False: {text}");
            }
            assert_eq!(world.named(&said(&applied)), text, "{}: applied over HTTP", case["name"]);
            let (code, shown) = world.cli(&["apply", "-f", "-"], Some(&object.to_string()), &Value::Null);
            assert_eq!(code, 1, "{shown}");
            for part in text.split(" -> ").flat_map(|text| text.split("; ")) {
                assert!(shown.contains(part), "{}: {part:?} is not in what the command line says:\n{shown}", case["name"]);
            }
        }
        text
    });
    assert!(count >= CASES_MIN, "{count} cases");
}

#[test]
fn gates_files_are_refused_with_their_line() {
    hold_against("gates", |case| {
        let bytes = case["file"].as_str().unwrap().replace("\\xff", "\u{ff}").into_bytes();
        // The one byte that is no UTF-8 is spelt as the character of that number.
        let bytes: Vec<u8> = if case["name"] == "not UTF-8" { bytes.into_iter().filter(|byte| *byte != 0xc3).collect() } else { bytes };
        let read = |path: &str| Ok((path == GATES_FILE).then(|| bytes.clone()));
        let tree = TrustedTree { root_files: &[], read: &read };
        let error = gate_set(&tree, GateProfile::Standard, &[]).expect_err("it is wrong");
        format!("{}: {}", error.reason, error.message)
    });
}

#[test]
fn requests_are_refused_with_problem_details() {
    let world = World::new();
    let server = std::fs::read_to_string(world.mosaic.state().join("server")).unwrap();
    let token = std::fs::read_to_string(world.mosaic.state().join("token")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = reqwest::Client::new();
    hold_against("http", |case| {
        let method: reqwest::Method = case["method"].as_str().unwrap().parse().unwrap();
        let mut request = client.request(method, format!("{}{}", server.trim(), case["path"].as_str().unwrap()));
        let headers = case["headers"].as_object().unwrap();
        if !headers.contains_key("authorization") {
            request = request.bearer_auth(token.trim());
        }
        for (name, value) in headers {
            request = request.header(name, value.as_str().unwrap());
        }
        if let Some(raw) = case["raw"].as_str() {
            let bytes: Vec<u8> = if case["name"] == "not UTF-8" { vec![0xff, 0xfe] } else { raw.as_bytes().to_vec() };
            request = if headers.contains_key("content-type") { request } else { request.header("content-type", "application/json") };
            request = request.body(bytes);
        } else if !case["body"].is_null() {
            request = request.json(&case["body"]);
        }
        let (status, kind, body) = runtime.block_on(async {
            let answer = request.send().await.unwrap();
            let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            (answer.status().as_u16(), kind.unwrap_or_default(), answer.text().await.unwrap())
        });
        assert!((400..500).contains(&status), "{}: {status} {body}", case["name"]);
        assert_eq!(kind, "application/problem+json", "{}: {body}", case["name"]);
        format!("{status} {}", world.named(&said(&serde_json::from_str(&body).unwrap())))
    });
}

#[test]
fn commands_say_what_is_wrong_and_end_with_1_or_2() {
    let world = World::new();
    hold_against("cli", |case| {
        let args: Vec<&str> = case["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
        let (code, text) = world.cli(&args, case["stdin"].as_str(), &case["env"]);
        assert!(code == 1 || code == 2, "{}: {code}: {text}", case["name"]);
        format!("{code} {text}")
    });
}

#[test]
fn settings_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    hold_against("config", |case| {
        let args: Vec<&str> = case["args"].as_array().unwrap().iter().filter_map(Value::as_str).filter(|arg| !arg.is_empty()).collect();
        let mut command = program();
        command.arg("up").args(args).arg("--state").arg(folder.path().join("state")).stdin(Stdio::null());
        if let Some(text) = case["file"].as_str() {
            std::fs::write(folder.path().join("mosaic.toml"), text).unwrap();
            std::fs::set_permissions(folder.path().join("mosaic.toml"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            command.arg("--config").arg(folder.path().join("mosaic.toml"));
        }
        for (name, value) in case["env"].as_object().into_iter().flatten() {
            command.env(name, value.as_str().unwrap());
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).replace(folder.path().to_str().unwrap(), "FOLDER");
        let code = output.status.code().unwrap();
        assert!(code == 1 || code == 2, "{}: {code}: {text}", case["name"]);
        format!("{code} {}", text.trim())
    });
}
