//! The sample project: a small Rust library without dependencies, its gates, and the task for the agent. Made without the `git` program.

use git2::{Commit, IndexAddOption, Repository, RepositoryInitOptions, Signature};
use serde_json::{Value, json};
use std::path::Path;

/// Files of the project. They are kept under other names here, so that no tool takes them for a project of ours.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("sample/manifest.toml")),
    ("Cargo.lock", include_str!("sample/lock.toml")),
    ("src/lib.rs", include_str!("sample/lib.rs")),
    ("tests/roman.rs", include_str!("sample/tests.rs")),
    (".mosaic/gates.toml", include_str!("sample/gates.toml")),
    ("README.md", include_str!("sample/readme.md")),
];
/// The agent.
const AGENT: &str = include_str!("agent.sh");
/// What it is asked for.
const INSTRUCTIONS: &str = "Write the function to_roman of src/lib.rs, so that the tests pass.";

/// Makes the project with one commit on `main`, and a bare remote beside it that has the same.
/// # Errors
/// The folders cannot be written.
pub(super) fn make(project: &Path, remote: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for (name, text) in FILES {
        let path = project.join(name);
        std::fs::create_dir_all(path.parent().expect("every file has a folder"))?;
        std::fs::write(path, text)?;
    }
    std::fs::write(project.join(".gitignore"), "/target\n")?;
    let options = |bare| {
        let mut options = RepositoryInitOptions::new();
        options.bare(bare).initial_head("main").external_template(false);
        options
    };
    let repository = Repository::init_opts(project, &options(false))?;
    Repository::init_opts(remote, &options(true))?;
    let mut index = repository.index()?;
    index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
    index.write()?;
    let tree = repository.find_tree(index.write_tree()?)?;
    let author = Signature::now("A. Person", "person@example.org")?;
    let parents: [&Commit<'_>; 0] = [];
    repository.commit(Some("HEAD"), &author, &author, "Begin a library of Roman numerals", &tree, &parents)?;
    let url = remote.to_str().ok_or("the folder's name is no text")?;
    repository.remote("origin", url)?.push(&["refs/heads/main"], None)?;
    Ok(())
}

/// The request that spawns the agent.
pub(super) fn request(remote: &str) -> Value {
    json!({
        "taskId": "roman-numerals",
        "agentType": "worker",
        "context": { "repository": remote, "branch": "main", "workItems": ["to_roman"], "instructions": INSTRUCTIONS },
        "runtime": { "command": { "args": ["sh", "-c", AGENT] } },
        "gates": { "profile": "standard" },
        "options": { "timeout": 300, "maxRetries": 2 },
        // A person is watching.
        "backoff": { "initial": "1s", "max": "5s" },
    })
}
