//! What reviews would otherwise have to watch: sizes, file heads, marks of unfinished work, and who may run or know what.

use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a source file.
const FILE_LINES_MAX: usize = 600;
/// The one file of the program that runs git.
const GIT_MODULE: &str = "src/workspace/remote.rs";

struct Source {
    /// Path from the root of the package.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.starts_with("benches/")
    }

    /// This file, which names what it forbids.
    fn is_this(&self) -> bool {
        self.path == "tests/it/tidy.rs"
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files beneath some folders, and single files, that end with one of these; what is absent is no file.
fn files(places: &[&str], ends: &[&str]) -> Vec<Source> {
    let mut left: Vec<PathBuf> = places.iter().map(|place| root().join(place)).collect();
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if ends.iter().any(|end| path.to_string_lossy().ends_with(end)) && path.exists() {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push(Source { path: name, text: fs::read_to_string(path).unwrap() });
        }
    }
    found
}

fn rust_files() -> Vec<Source> {
    let found = files(&["src", "tests", "benches"], &[".rs"]);
    assert!(found.len() > 10, "the sources were not found");
    found
}

/// Every text file that people or tools read.
fn all_files() -> Vec<Source> {
    let places = ["src", "tests", "benches", "docs", "crds", "charts", ".ci", "Makefile", "Cargo.toml", "README.md", "ARCHITECTURE.md"];
    files(&places, &[""]).into_iter().filter(|file| !file.is_this()).collect()
}

/// Fails with all offenders at once.
#[track_caller]
fn none(rule: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

/// Lines of files that hold one of these texts, as `path:line: text`.
fn lines_with(files: &[Source], texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(text) = texts.iter().find(|text| line.contains(**text)) {
                found.push(format!("{}:{}: {text}", file.path, index + 1));
            }
        }
    }
    found
}

#[test]
fn no_source_file_is_too_long() {
    let long = rust_files().into_iter().map(|file| (file.text.lines().count(), file.path)).filter(|(lines, _)| *lines > FILE_LINES_MAX);
    none("at most 600 lines per file", long.map(|(lines, path)| format!("{path}: {lines}")).collect());
}

#[test]
fn modules_stand_beside_their_folders() {
    let wrong = rust_files().into_iter().map(|file| file.path).filter(|path| path.ends_with("/mod.rs"));
    none("use foo.rs beside foo/, not foo/mod.rs", wrong.collect());
}

#[test]
fn every_source_file_says_what_it_is() {
    let has_head = |file: &Source| file.text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 10);
    none(
        "a file begins with `//! ` and what it is",
        rust_files().into_iter().filter(|file| !has_head(file)).map(|file| file.path).collect(),
    );
}

#[test]
fn nothing_unfinished_or_dead_is_kept() {
    let marks = ["TODO", "FIXME", "// XXX", "# XXX", "todo!(", "unimplemented!(", "allow(dead_code)", "expect(dead_code)", "#[ignore"];
    // What another test plays in a child process is no test that was put aside.
    let played = "#[ignore = \"played by a child process of `";
    let without_played = |mut file: Source| {
        file.text = file.text.replace(played, "");
        file
    };
    let files: Vec<Source> = all_files().into_iter().map(without_played).collect();
    none("finish it or leave it out", lines_with(&files, &marks));
}

#[test]
fn git_is_run_in_one_place() {
    let others: Vec<Source> = files(&["src"], &[".rs"]).into_iter().filter(|file| file.path != GIT_MODULE).collect();
    none("only src/workspace/remote.rs runs git", lines_with(&others, &["Command::new(\"git\")", "Command::new(\"/usr/bin/git\")"]));
}

#[test]
fn pure_modules_have_no_clock_and_no_way_out() {
    let pure: Vec<Source> = files(&["src/plan", "src/plan.rs", "src/gates", "src/gates.rs"], &[".rs"]);
    assert!(pure.len() > 5);
    let banned = [
        "std::time::Instant",
        "SystemTime",
        "Timestamp::now",
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "std::thread",
        "tokio::",
        "async fn",
        ".await",
        "HashMap",
        "HashSet",
        "rand::",
        "println!",
    ];
    none("plan and gates are pure", lines_with(&pure, &banned));
    for module in ["src/gates.rs", "src/plan.rs"] {
        let text = fs::read_to_string(root().join(module)).unwrap();
        assert!(
            text.contains("#![deny(clippy::disallowed_methods, clippy::disallowed_types)]"),
            "{module} must deny what .clippy.toml lists"
        );
    }
}

#[test]
fn nothing_knows_the_machine_it_was_written_on() {
    none("no path of a machine", lines_with(&all_files(), &["/work/", "/root/.", "/home/runner"]));
}

#[test]
fn unwrap_is_for_tests_only() {
    let program: Vec<Source> = rust_files().into_iter().filter(|file| !file.is_test()).collect();
    let mut found = Vec::new();
    for file in program {
        // Unit tests stand at the end of a file.
        let code = file.text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        found.extend(lines_with(&[Source { path: file.path, text: code }], &[".unwrap()"]));
    }
    none("use expect(\"why it holds\") or an error", found);
}

/// Names of the Makefile's targets.
fn make_targets() -> Vec<String> {
    let text = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets = text.lines().filter(|line| !line.starts_with(['\t', ' ', '#', '.']) && !line.contains(":="));
    targets.filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_owned()).collect()
}

/// Names behind `make ` where a document shows a command: in backquotes, or at the start of a line (after `$`).
fn make_commands(text: &str) -> Vec<String> {
    let starts = text.lines().filter_map(|line| line.trim_start_matches(['$', ' ']).strip_prefix("make "));
    let quoted = text.split("`make ").skip(1);
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
    starts.chain(quoted).map(name).collect()
}

#[test]
fn every_make_command_in_the_documents_exists() {
    let targets = make_targets();
    for wanted in ["run", "test", "build", "watch", "lint", "fmt", "bench", "clean", "help"] {
        assert!(targets.iter().any(|target| target == wanted), "make {wanted}");
    }
    let documents = files(&["README.md", "ARCHITECTURE.md", "docs"], &[".md"]);
    let unknown = documents.iter().flat_map(|file| make_commands(&file.text).into_iter().map(|name| (file.path.as_str(), name)));
    let unknown = unknown.filter(|(_, name)| !targets.contains(name)).map(|(path, name)| format!("{path}: make {name}"));
    none("the document names a command that does not exist", unknown.collect());
}
