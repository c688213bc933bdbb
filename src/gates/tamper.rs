//! Tampering: a change of what decides a verdict. A gate runs the head's own scripts, so these are compared with the base.
//!
//! Flow: changed paths of head against base + commands of the gates + `protect` of the trusted gates file -> what was tampered with, and why.
//! Pure: contents are read through a function that the caller gives. Dependencies, new tests and ordinary sources are free.
//!
//! Stated heuristics: what a test file is goes by its path (`is_test`); a deleted one counts unless the same content is where it still runs
//! (`still_runs`); fewer tests or more skip marks than before count in files that were there; a new file where a gate's own tool is looked
//! for counts (`stands_in_for_a_tool`). What a gate runs is the agent's code all the same: one that weakens a test within its body, or ends
//! the test's process with a success, is for reviewers, not for this.

use crate::api::agent::GateDefinition;
use ignore::gitignore::GitignoreBuilder;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the verdict.
pub const TAMPER: &str = "tamper";
/// Most changes that the evidence lists.
const TOLD_MAX: usize = 20;
/// Most new tests of one content that are looked at for where a deleted one went.
const SAME_MAX: usize = 100;

/// One changed path; contents by their object ids, `None` where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root of the tree.
    pub path: String,
    /// In the base.
    pub before: Option<String>,
    /// In the head.
    pub after: Option<String>,
    /// Whether the head has a symbolic link there.
    pub link: bool,
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
    let mut added: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for change in changes.iter().filter(|c| c.before.is_none() && is_test(&c.path)) {
        added.entry(change.after.as_deref().unwrap_or_default()).or_default().push(&change.path);
    }
    let mut found = Vec::new();
    for change in changes {
        let mut same = change.before.as_deref().and_then(|before| added.get(before)).into_iter().flatten().take(SAME_MAX);
        let by_path = decides(&change.path).or_else(|| {
            if protect.matched_path_or_any_parents(&change.path, false).is_ignore() {
                Some("it is protected by the gates file")
            } else if called.contains(change.path.as_str()) || is_target_file(&change.path, judges.gates) {
                Some("a gate's command calls it")
            } else if change.before.is_none() && stands_in_for_a_tool(&change.path, judges.gates) {
                Some("a gate would take it for its own tool")
            } else if change.after.is_none() && is_test(&change.path) && !same.any(|new| still_runs(&change.path, new)) {
                Some("a test was deleted")
            } else {
                None
            }
        });
        let why = match by_path {
            Some(why) => Some(why),
            None if change.link && is_manifest(&change.path) => Some("a link hides what decides there"),
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
    const CI: &[&str] =
        &[".github", ".gitlab-ci.yml", "Jenkinsfile", ".travis.yml", "azure-pipelines.yml", ".drone.yml", ".woodpecker.yml"];
    const NAMES: &str = "pytest.ini .pytest.ini tox.ini noxfile.py .coveragerc codecov.yml .codecov.yml rust-toolchain rust-toolchain.toml \
         clippy.toml .clippy.toml rustfmt.toml .rustfmt.toml deny.toml nextest.toml tarpaulin.toml ruff.toml .ruff.toml mypy.ini .mypy.ini \
         .flake8 .pylintrc pyrightconfig.json biome.json .eslintignore .golangci.yml .golangci.yaml .golangci.toml \
         pytest.toml .pytest.toml .npmrc .yarnrc .yarnrc.yml .pnpmfile.cjs pnpm-workspace.yaml bunfig.toml go.work";
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
    // A link in the place of a folder has the folder's name, and tools follow it.
    let within = |folder: &str| path.starts_with(folder) || Some(path) == folder.strip_suffix('/');
    if within(".mosaic/") {
        Some("it defines the gates")
    } else if FOLDERS.iter().any(|folder| within(folder)) || CI.contains(&path) {
        Some("it is part of the CI")
    } else if NAMES.split_whitespace().any(|known| known == name)
        || STEMS.iter().any(|stem| name.starts_with(stem))
        || (name.starts_with("tsconfig") && name.ends_with(".json"))
        || name == ".cargo"
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

/// Whether a gate's command names a program or a module.
fn calls(gates: &[GateDefinition], name: &str) -> bool {
    let words = |gate: &GateDefinition| gate.command.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == name);
    gates.iter().any(words)
}

/// Whether a gate's tool would be looked for at this path before where it really is: `python3 -m` takes modules of the working directory
/// first, and npm and its like put `node_modules/.bin` before the rest of PATH.
fn stands_in_for_a_tool(path: &str, gates: &[GateDefinition]) -> bool {
    const MODULES: &[&str] =
        &["pytest", "unittest", "compileall", "doctest", "mypy", "flake8", "ruff", "pylint", "black", "isort", "coverage", "tox", "nox"];
    const RUNNERS: &[&str] = &["npm", "npx", "yarn", "pnpm", "bun", "node"];
    let is_named = |module: &str| {
        let parts = path.split('/').map(|part| part.split('.').next().unwrap_or_default());
        parts.map(|part| part.strip_prefix('_').unwrap_or(part)).any(|part| part == module)
    };
    MODULES.iter().any(|module| is_named(module) && calls(gates, module))
        || (path.split('/').any(|part| part == "node_modules") && RUNNERS.iter().any(|runner| calls(gates, runner)))
}

/// Makefiles and justfiles, if a gate calls `make` or `just`.
fn is_target_file(path: &str, gates: &[GateDefinition]) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let make = ["makefile", "gnumakefile"].contains(&name.as_str()) || name.ends_with(".mk");
    let just = ["justfile", ".justfile"].contains(&name.as_str()) || name.ends_with(".just");
    (make && calls(gates, "make")) || (just && calls(gates, "just"))
}

/// Files of which a part decides, by their names.
fn is_manifest(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    ["package.json", "Cargo.toml", "pyproject.toml", "setup.cfg", "conftest.py"].contains(&name)
}

fn needs_content(path: &str) -> bool {
    is_manifest(path) || is_test(path) || path.ends_with(".rs")
}

/// Files of which only a part decides.
fn by_content(path: &str, before: Option<String>, after: Option<String>) -> Option<&'static str> {
    let (old, new) = (before.as_deref().unwrap_or_default(), after.as_deref().unwrap_or_default());
    let differs = |part: &dyn Fn(&str) -> String| part(old) != part(new);
    match path.rsplit('/').next().unwrap_or_default() {
        "package.json" => differs(&json_part).then_some("its scripts or its test and lint settings changed"),
        "Cargo.toml" if differs(&cargo_part) => Some("its lints, test targets or profiles changed"),
        "Cargo.toml" => leaves_members_out(old, new).then_some("it leaves members of the workspace out"),
        "pyproject.toml" => differs(&pyproject_part).then_some("its settings of tests, coverage or lints changed"),
        "setup.cfg" => differs(&setup_part).then_some("its settings of tests, coverage or lints changed"),
        "conftest.py" => more(COLLECTION_MARKS, old, new).then_some("it changes which tests run"),
        _ if before.is_none() || after.is_none() => None,
        _ if more(SKIP_MARKS, old, new) => Some("tests are skipped that were not"),
        _ if count(TEST_MARKS, new) < count(TEST_MARKS, old) => Some("it has fewer tests than before"),
        _ => None,
    }
}

const COLLECTION_MARKS: &[&str] = &[
    "collect_ignore",
    "pytest_collection",
    "pytest_ignore_collect",
    "pytest_runtest",
    "pytest_session",
    "def pytest_",
    "pytest_plugins",
    "hookimpl",
    "skip",
];
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
        &["workspace", "default-members"],
        &["profile"],
        &["test"],
        &["package", "autotests"],
        &["package", "build"],
        &["lib", "path"],
        &["lib", "test"],
        &["lib", "doctest"],
        &["lib", "harness"],
    ];
    toml_part(text, paths)
}

/// Whether members that were in the workspace no longer are, so that nobody tests them; new ones are free.
fn leaves_members_out(old: &str, new: &str) -> bool {
    let list = |text: &str, key: &str| -> BTreeSet<String> {
        let table = text.parse::<toml::Table>().unwrap_or_default();
        let items = table.get("workspace").and_then(|workspace| workspace.get(key)).and_then(toml::Value::as_array);
        items.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect()
    };
    !list(old, "members").is_subset(&list(new, "members")) || !list(new, "exclude").is_subset(&list(old, "exclude"))
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
    let in_folder = folders.split('/').any(|folder| ["tests", "test", "__tests__", "spec"].contains(&folder));
    source && (in_folder || is_test_name(name))
}

/// Whether test runners find a file by its name.
fn is_test_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let known = stem.starts_with("test_") || stem.ends_with("_test") || ["test", "tests"].contains(&stem);
    known || name.contains(".test.") || name.contains(".spec.")
}

/// Whether a test that was moved is still found by what found it: by its name, or, in Rust, as a file directly in `tests`.
fn still_runs(from: &str, to: &str) -> bool {
    let has_name = |path: &str| is_test_name(path.rsplit('/').next().unwrap_or_default());
    let is_target = |path: &str| path.ends_with(".rs") && path.rsplit('/').nth(1) == Some("tests");
    (!is_target(from) || is_target(to)) && (!has_name(from) || has_name(to))
}
