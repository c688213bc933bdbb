//! The agent contract's example keeps the contract: run as it is, by the system's shell, in a layout like a sandbox's.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// What a sandbox gives: tree, `/mosaic` and HOME.
struct Layout {
    folder: tempfile::TempDir,
}

impl Layout {
    fn new(task: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["workspace", "mosaic/out", "home"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("mosaic/task.json"), serde_json::to_vec(task).unwrap()).unwrap();
        Self { folder }
    }

    fn run(&self) -> Output {
        let _ = fs::remove_file(self.folder.path().join("mosaic/out/result.json"));
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/agent.sh"));
        command.env("AGENT_WORKSPACE", at("workspace")).env("AGENT_MOSAIC", at("mosaic")).env("HOME", at("home"));
        command.current_dir("/").output().unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn result(&self) -> Value {
        serde_json::from_str(&self.read("mosaic/out/result.json")).unwrap()
    }
}

/// A task file with all of its fields, as the controller writes it.
fn task(instructions: &str, feedback: &Value) -> Value {
    json!({
        "taskId": "t-1", "agentType": "worker", "attempt": 1, "workItems": [{"instructions": "a nested one"}], "skills": [],
        "repository": "file:///srv/a.git", "branch": "main", "targetBranch": "mosaic/a", "feedback": feedback, "instructions": instructions,
    })
}

#[test]
fn example_agent_changes_the_tree_and_reports() {
    let text = "say \"hi\" to \\ C:\\new, bell \u{7}, ünï";
    let layout = Layout::new(&task(&format!("{text}\nsecond line\ttab"), &json!([])));
    let output = layout.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(layout.read("workspace/NOTES.md"), format!("- {text}\n"));
    let text = text.replace('\u{7}', "");
    assert_eq!(layout.result(), json!({"summary": format!("noted: {text}"), "commitMessage": format!("Note: {text}")}));
    let lines = String::from_utf8(output.stdout).unwrap();
    let progress: Vec<Value> = lines.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(progress.first().unwrap()["progress"], json!({"fraction": 0.1, "message": "read the task t-1"}));
    assert_eq!(progress.last().unwrap()["progress"]["fraction"], 1);
}

#[test]
fn example_agent_says_why_it_changes_nothing() {
    let layout = Layout::new(&task("a note", &json!([{"attempt": 1, "kind": "gate", "summary": "tests: exit code 1", "details": "x"}])));
    assert!(layout.run().status.success());
    let before = layout.read("workspace/NOTES.md");
    let output = layout.run();
    assert!(output.status.success());
    assert_eq!(layout.read("workspace/NOTES.md"), before);
    assert_eq!(layout.result()["summary"], "NOTES.md has this note already");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.contains("this is run 2"), "HOME is kept between attempts");
    assert!(lines.contains("earlier rounds were refused"));
}

#[test]
fn example_agent_resolves_conflicts() {
    let layout = Layout::new(&task("a note", &json!([{"attempt": 1, "kind": "conflict", "summary": "x", "details": null}])));
    layout.write("workspace/NOTES.md", "- a note\n");
    layout.write("workspace/my file", "one\n<<<<<<< ours\ntheirs\n||||||| base\nold\n=======\nmine\n>>>>>>> theirs\nend\n");
    assert!(layout.run().status.success());
    assert_eq!(layout.read("workspace/my file"), "one\ntheirs\nmine\nend\n");
    assert_eq!(layout.result()["commitMessage"], "Note: a note");
}

#[test]
fn example_agent_fails_without_a_task() {
    let without = Layout::new(&json!({"taskId": "t", "workItems": [{"instructions": "nested"}]}));
    let output = without.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no instructions"));
    let broken = Layout::new(&json!({}));
    broken.write("mosaic/task.json", "{\"instructions\": \"never ends");
    assert_eq!(broken.run().status.code(), Some(1));
}
