//! Tampering: a change of what decides a verdict. A gate runs the head's own scripts, so these are compared with the base.
//!
//! Flow: changed paths of head against base + commands of the gates + `protect` of the trusted gates file -> what was tampered with, and why.
//! Pure: contents are read through a function that the caller gives. Dependencies, new tests and ordinary sources are free.
//!
//! Stated heuristics, in `tests_of` and `is_test`: what a test file is goes by its path; a deleted one counts unless the same content is
//! under another test's name; fewer tests or more skip marks than before count in files that were there. A clever agent can weaken a test
//! within its body: that is for reviewers, not for this.

use crate::api::agent::GateDefinition;
use ignore::gitignore::GitignoreBuilder;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Name of the verdict.
pub const TAMPER: &str = "tamper";
/// Most changes that the evidence lists.
const TOLD_MAX: usize = 20;

/// One changed path; contents by their object ids, `None` where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root of the tree.
    pub path: String,
    /// In the base.
    pub before: Option<String>,
    /// In the head.
    pub after: Option<String>,
}

/// What decides verdicts besides the contents.
pub struct Judges<'a> {
    /// The gates that must pass.
    pub gates: &'a [GateDefinition],
    /// Globs of the trusted gates file, as in `.gitignore`.
    pub protect: &'a [String],
}

impl Judges<'_> {
    /// Hash of all of it: a verdict is for one definition.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let texts = self.gates.iter().map(|gate| &gate.digest).chain(self.protect);
        for text in std::iter::once(&"mosaic tamper 1".to_owned()).chain(texts) {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Returns each change that decides a verdict, with the reason. `read` gives the content of an object.
/// # Errors
/// A content could not be read: nothing was found out.
pub fn tampering<E>(
    judges: &Judges<'_>,
    changes: &[Change],
    read: &dyn Fn(&str) -> Result<Vec<u8>, E>,
) -> Result<Vec<(Change, &'static str)>, E> {
    let text = |id: &Option<String>| -> Result<Option<String>, E> {
        id.as_deref().map(|id| read(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())).transpose()
    };
    let mut builder = GitignoreBuilder::new("");
    judges.protect.iter().for_each(|glob| drop(builder.add_line(None, glob)));
    let protect = builder.build().unwrap_or_else(|_| ignore::gitignore::Gitignore::empty());
    let called = called_files(judges.gates);
    let added: BTreeSet<&String> =
        changes.iter().filter(|c| c.before.is_none() && is_test(&c.path)).filter_map(|c| c.after.as_ref()).collect();
    let mut found = Vec::new();
    for change in changes {
        let moved = change.before.as_ref().is_some_and(|before| added.contains(before));
        let by_path = decides(&change.path).or_else(|| {
            if protect.matched_path_or_any_parents(&change.path, false).is_ignore() {
                Some("it is protected by the gates file")
            } else if called.contains(change.path.as_str()) || is_target_file(&change.path, judges.gates) {
                Some("a gate's command calls it")
            } else if change.after.is_none() && is_test(&change.path) && !moved {
                Some("a test was deleted")
            } else {
                None
            }
        });
        let why = match by_path {
            Some(why) => Some(why),
            None if needs_content(&change.path) => by_content(&change.path, text(&change.before)?, text(&change.after)?),
            None => None,
        };
        found.extend(why.map(|why| (change.clone(), why)));
    }
    Ok(found)
}

/// The evidence of a failing verdict, for the agent and for people.
#[must_use]
pub fn evidence(found: &[(Change, &'static str)], head: &str) -> String {
    let mut lines: Vec<String> = found.iter().take(TOLD_MAX).map(|(change, why)| format!("{}: {why}", change.path)).collect();
    if found.len() > TOLD_MAX {
        lines.push(format!("and {} more", found.len() - TOLD_MAX));
    }
    format!(
        "the change touches what decides the gates' verdicts; undo these parts and leave the rest:\n{}\na person who wants them annotates the \
         agent with {}={head}",
        lines.join("\n"),
        crate::api::names::ANNOTATION_APPROVE_TAMPER
    )
}

/// Files that decide by their place alone: gate definitions, CI, and configuration of test runners, coverage, linters and toolchains.
fn decides(path: &str) -> Option<&'static str> {
    const FOLDERS: &[&str] = &[
        ".github/workflows/",
        ".github/actions/",
        ".gitlab/",
        ".circleci/",
        ".buildkite/",
        ".woodpecker/",
        ".forgejo/",
        ".gitea/",
        ".ci/",
    ];
    const CI: &[&str] = &[".gitlab-ci.yml", "Jenkinsfile", ".travis.yml", "azure-pipelines.yml", ".drone.yml", ".woodpecker.yml"];
    const NAMES: &str = "pytest.ini .pytest.ini tox.ini noxfile.py .coveragerc codecov.yml .codecov.yml rust-toolchain rust-toolchain.toml \
         clippy.toml .clippy.toml rustfmt.toml .rustfmt.toml deny.toml nextest.toml tarpaulin.toml ruff.toml .ruff.toml mypy.ini .mypy.ini \
         .flake8 .pylintrc pyrightconfig.json biome.json .eslintignore .golangci.yml .golangci.yaml .golangci.toml";
    const STEMS: &[&str] = &[
        "jest.config.",
        "vitest.config.",
        "karma.conf.",
        "playwright.config.",
        ".mocharc",
        ".nycrc",
        ".c8rc",
        ".eslintrc",
        "eslint.config.",
    ];
    let name = path.rsplit('/').next().unwrap_or_default();
    if path.starts_with(".mosaic/") {
        Some("it defines the gates")
    } else if FOLDERS.iter().any(|folder| path.starts_with(folder)) || CI.contains(&path) {
        Some("it is part of the CI")
    } else if NAMES.split_whitespace().any(|known| known == name)
        || STEMS.iter().any(|stem| name.starts_with(stem))
        || (name.starts_with("tsconfig") && name.ends_with(".json"))
        || path.ends_with(".cargo/config.toml")
        || path.ends_with(".cargo/config")
    {
        Some("it configures tests, coverage, lints or the toolchain")
    } else {
        None
    }
}

/// Files that a command runs: its first word, or the first argument of an interpreter.
fn called_files(gates: &[GateDefinition]) -> BTreeSet<&str> {
    const INTERPRETERS: &[&str] =
        &["sh", "bash", "dash", "zsh", "python", "python3", "node", "ruby", "perl", "php", ".", "source", "exec", "env"];
    let mut found = BTreeSet::new();
    for part in gates.iter().flat_map(|gate| gate.command.split([';', '&', '|', '(', ')', '\n', '`', '{', '}'])) {
        let words = part.split_whitespace().map(|word| word.trim_matches(['"', '\'']));
        let mut words = words.skip_while(|word| word.contains('=') || INTERPRETERS.contains(word) || *word == "!");
        // An option of an interpreter (`-m`, `-c`) means that what follows is no file; `-e` and the like are passed over.
        let first = words.find(|word| !word.starts_with('-') || matches!(*word, "-m" | "-c"));
        found.extend(first.map(|word| word.trim_start_matches("./")).filter(|word| !word.starts_with('-')));
    }
    found
}

/// Makefiles and justfiles, if a gate calls `make` or `just`.
fn is_target_file(path: &str, gates: &[GateDefinition]) -> bool {
    let calls = |program: &str| {
        let words = |gate: &GateDefinition| gate.command.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == program);
        gates.iter().any(words)
    };
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let make = ["makefile", "gnumakefile"].contains(&name.as_str()) || name.ends_with(".mk");
    let just = ["justfile", ".justfile"].contains(&name.as_str()) || name.ends_with(".just");
    (make && calls("make")) || (just && calls("just"))
}

fn needs_content(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    ["package.json", "Cargo.toml", "pyproject.toml", "setup.cfg", "conftest.py"].contains(&name) || is_test(path) || name.ends_with(".rs")
}

/// Files of which only a part decides.
fn by_content(path: &str, before: Option<String>, after: Option<String>) -> Option<&'static str> {
    let (old, new) = (before.as_deref().unwrap_or_default(), after.as_deref().unwrap_or_default());
    let differs = |part: &dyn Fn(&str) -> String| part(old) != part(new);
    match path.rsplit('/').next().unwrap_or_default() {
        "package.json" => differs(&json_part).then_some("its scripts or its test and lint settings changed"),
        "Cargo.toml" => differs(&cargo_part).then_some("its lints, test targets or profiles changed"),
        "pyproject.toml" => differs(&pyproject_part).then_some("its settings of tests, coverage or lints changed"),
        "setup.cfg" => differs(&setup_part).then_some("its settings of tests, coverage or lints changed"),
        "conftest.py" => more(COLLECTION_MARKS, old, new).then_some("it changes which tests run"),
        _ if before.is_none() || after.is_none() => None,
        _ if more(SKIP_MARKS, old, new) => Some("tests are skipped that were not"),
        _ if count(TEST_MARKS, new) < count(TEST_MARKS, old) => Some("it has fewer tests than before"),
        _ => None,
    }
}

const COLLECTION_MARKS: &[&str] =
    &["collect_ignore", "pytest_collection", "pytest_ignore_collect", "pytest_runtest", "pytest_session", "skip"];
const SKIP_MARKS: &[&str] = &[
    concat!("#[", "ignore"),
    "mark.skip",
    "pytest.skip(",
    "unittest.skip",
    ".skipTest(",
    "mark.xfail",
    "it.skip(",
    "test.skip(",
    "describe.skip(",
    "xit(",
    "xdescribe(",
    "it.only(",
    "test.only(",
    "describe.only(",
    "test.todo(",
    "t.Skip",
];
const TEST_MARKS: &[&str] =
    &["#[test]", "::test]", "::test(", "def test_", "func Test", "it('", "it(\"", "it(`", "test('", "test(\"", "test(`"];

fn count(marks: &[&str], text: &str) -> usize {
    marks.iter().map(|mark| text.matches(mark).count()).sum()
}

fn more(marks: &[&str], old: &str, new: &str) -> bool {
    count(marks, new) > count(marks, old)
}

/// What cannot be parsed is its own part: any change of it then counts.
fn json_part(text: &str) -> String {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return text.to_owned() };
    let keys = ["scripts", "jest", "vitest", "mocha", "ava", "nyc", "c8", "eslintConfig", "type"];
    keys.iter().map(|key| format!("{key}={};", value.get(key).unwrap_or(&serde_json::Value::Null))).collect()
}

fn toml_part(text: &str, paths: &[&[&str]]) -> String {
    let Ok(table) = text.parse::<toml::Table>() else { return text.to_owned() };
    let value = toml::Value::Table(table);
    let at = |path: &[&str]| path.iter().try_fold(&value, |value, key| value.get(key)).map(ToString::to_string).unwrap_or_default();
    paths.iter().map(|path| format!("{}={};", path.join("."), at(path))).collect()
}

fn cargo_part(text: &str) -> String {
    let paths: &[&[&str]] = &[
        &["lints"],
        &["workspace", "lints"],
        &["profile"],
        &["test"],
        &["package", "autotests"],
        &["package", "build"],
        &["lib", "test"],
        &["lib", "doctest"],
        &["lib", "harness"],
    ];
    toml_part(text, paths)
}

fn pyproject_part(text: &str) -> String {
    let tools = ["pytest", "coverage", "ruff", "mypy", "tox", "nox", "pylint", "flake8", "pyright", "hatch", "poe", "pdm"];
    let paths: Vec<[&str; 2]> = tools.iter().map(|tool| ["tool", *tool]).collect();
    toml_part(text, &paths.iter().map(<[&str; 2]>::as_slice).collect::<Vec<_>>())
}

/// The lines of the sections that set up tools.
fn setup_part(text: &str) -> String {
    let tools = ["[tool:pytest", "[flake8", "[mypy", "[coverage", "[pylint", "[tox"];
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        if line.starts_with('[') {
            inside = tools.iter().any(|tool| line.starts_with(tool));
        }
        inside
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a path is that of tests, by the customs of the languages that gates are detected for.
fn is_test(path: &str) -> bool {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let source = [".py", ".rs", ".go", ".js", ".jsx", ".ts", ".tsx", ".mjs", ".sh"].iter().any(|end| name.ends_with(end));
    let stem = name.split('.').next().unwrap_or_default();
    let in_folder = folders.split('/').any(|folder| ["tests", "test", "__tests__", "spec"].contains(&folder));
    let by_name = stem.starts_with("test_") || stem.ends_with("_test") || name.contains(".test.") || name.contains(".spec.");
    source && (in_folder || by_name)
}
