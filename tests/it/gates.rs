//! Gates: what a trusted branch defines, what is refused with which words, and what the end of a run says.

use crate::skip::skip;
use mosaic::api::agent::{GateDefinition, GateProfile, Verdict};
use mosaic::api::condition::reason;
use mosaic::api::names::GateName;
use mosaic::gates::{self, GateSet, GatesError, TrustedTree};
use mosaic::plan::gates::{EVIDENCE_BYTES_MAX, EVIDENCE_OF_PASS_BYTES_MAX, judge};
use mosaic::plan::observed::{EndCause, Limit, RunEnd};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A trusted tree held in memory.
fn gate_set_of(files: &[(&str, &str)], profile: GateProfile, required: &[&str]) -> Result<GateSet, GatesError> {
    let files: BTreeMap<String, Vec<u8>> = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
    let required: Vec<GateName> = required.iter().map(|name| GateName::new(*name).unwrap()).collect();
    gate_set_of_bytes(&files, profile, &required)
}

fn gate_set_of_bytes(files: &BTreeMap<String, Vec<u8>>, profile: GateProfile, required: &[GateName]) -> Result<GateSet, GatesError> {
    let mut root_files: Vec<String> = files.keys().filter_map(|path| path.split('/').next()).map(str::to_owned).collect();
    root_files.dedup();
    let read = |path: &str| Ok(files.get(path).cloned());
    gates::gate_set(&TrustedTree { root_files: &root_files, read: &read }, profile, required)
}

fn gates_file(text: &str) -> Result<GateSet, GatesError> {
    gate_set_of(&[(gates::GATES_FILE, text)], GateProfile::Minimal, &[])
}

fn names(set: &GateSet) -> Vec<&str> {
    set.gates.iter().map(|gate| gate.name.as_str()).collect()
}

fn command<'a>(set: &'a GateSet, name: &str) -> &'a str {
    &set.gates.iter().find(|gate| gate.name == name).unwrap_or_else(|| panic!("no gate {name}")).command
}

#[track_caller]
fn refused(result: Result<GateSet, GatesError>, reason: &str, words: &[&str]) {
    let error = result.expect_err("must be refused");
    assert_eq!(error.reason, reason, "{}", error.message);
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in: {}", error.message);
    }
}

#[test]
fn gates_file_gives_what_the_profile_asks_for_and_what_that_needs() {
    let text = r#"
        [[gate]]
        name = "tests"
        command = "make test"
        timeout = "1h30m"
        needs = ["compile"]
        [[gate]]
        name = "unrelated"
        command = "make unrelated"
        [[gate]]
        name = "compile"
        command = "make"
        timeout = 90
        [[gate]]
        name = "style"
        command = "make style"
        provides = ["lint"]
    "#;
    let set = gate_set_of(&[(gates::GATES_FILE, text)], GateProfile::Standard, &[]).unwrap();
    assert_eq!(set.source, ".mosaic/gates.toml");
    assert_eq!(names(&set), ["compile", "tests", "style"]);
    let seconds: Vec<u32> = set.gates.iter().map(|gate| gate.timeout_seconds).collect();
    assert_eq!(seconds, [90, 5400, 600]);
    assert_eq!(set.gates[1].needs, ["compile"]);
    assert_eq!(command(&set, "tests"), "make test");
}

#[test]
fn every_gate_that_provides_a_required_name_is_required() {
    let text = r#"
        gate = [
            { name = "unit", command = "make unit", provides = ["tests"] },
            { name = "integration", command = "make integration", provides = ["tests"] },
        ]
    "#;
    assert_eq!(names(&gates_file(text).unwrap()), ["unit", "integration"]);
}

#[test]
fn further_required_gates_are_added_to_the_profile() {
    let text = "[[gate]]\nname = 'tests'\ncommand = 'true'\n[[gate]]\nname = 'licences'\ncommand = 'true'\n";
    let set = gate_set_of(&[(gates::GATES_FILE, text)], GateProfile::Minimal, &["licences", "tests"]).unwrap();
    assert_eq!(names(&set), ["tests", "licences"]);
}

#[test]
fn wrong_gates_file_is_refused_with_its_line() {
    let tests = "[[gate]]\nname = 'tests'\ncommand = 'true'\n";
    let cases: &[(String, &[&str])] = &[
        ("[[gate]]\nname = \n".into(), &["line 2"]),
        (format!("{tests}[[gate]]\nname = 'tests'\ncommand = 'x'\n"), &["line 4", "`tests` is defined twice, first on line 1"]),
        (format!("{tests}needs = ['nothing']\n"), &["line 1", "needs `nothing`", "there are: tests"]),
        ("[[gate]]\nname = 'tests'\ncommand = '  '\n".into(), &["line 3", "`command` is empty"]),
        ("[[gate]]\nname = 'tests'\ncommand = ''\n".into(), &["line 3", "`command` is empty"]),
        ("[[gate]]\nname = 'tests'\n".into(), &["line 1", "`tests` has no `command`"]),
        ("[[gate]]\ncommand = 'true'\n".into(), &["line 1", "no `name`"]),
        ("[[gate]]\nname = 'Unit Tests'\ncommand = 'true'\n".into(), &["line 2", "a-z, 0-9"]),
        ("[[gate]]\nname = 7\ncommand = 'true'\n".into(), &["line 2", "must be text"]),
        ("[[gate]]\nname = 'tests'\ncommand = \"a\\u0000b\"\n".into(), &["line 3", "NUL"]),
        (format!("{tests}timeout = '10 minutes'\n"), &["line 4", "\"10m\""]),
        (format!("{tests}timeout = 0\n"), &["line 4", "at least 1"]),
        (format!("{tests}timeout = -5\n"), &["line 4", "at least 1"]),
        (format!("{tests}timeout = '3h'\n"), &["line 4", "7200"]),
        (format!("{tests}timeout = '99999999999999999999h'\n"), &["line 4"]),
        (format!("{tests}need = ['x']\n"), &["line 4", "unknown key `need` of a gate"]),
        (format!("{tests}needs = 'x'\n"), &["line 4", "must be a list"]),
        (format!("gates = []\n{tests}"), &["line 1", "unknown key `gates`"]),
        ("[gate]\nname = 'tests'\ncommand = 'true'\n".into(), &["[[gate]]"]),
        ("gate = [1]\n".into(), &["line 1", "a gate is a table"]),
    ];
    for (text, words) in cases {
        refused(gates_file(text), reason::INVALID_GATES, words);
    }
}

#[test]
fn gates_that_need_each_other_are_refused_with_their_circle() {
    let gate = |name: &str, need: &str| format!("[[gate]]\nname = '{name}'\ncommand = 'true'\nneeds = ['{need}']\n");
    let text = gate("tests", "one") + &gate("one", "two") + &gate("two", "three") + &gate("three", "one");
    refused(gates_file(&text), reason::INVALID_GATES, &["circle: one -> two -> three -> one"]);
    refused(gates_file(&gate("tests", "tests")), reason::INVALID_GATES, &["line 1", "circle: tests -> tests"]);
}

#[test]
fn gates_file_beyond_its_limits_is_refused() {
    let gate = |number: usize| format!("[[gate]]\nname = 'g{number}'\ncommand = 'true'\nprovides = ['tests']\n");
    let many = |count: usize| (0..count).map(gate).collect::<String>();
    assert_eq!(gates_file(&many(gates::GATES_MAX)).unwrap().gates.len(), gates::GATES_MAX);
    refused(gates_file(&many(gates::GATES_MAX + 1)), reason::INVALID_GATES, &["33 gates", "32"]);
    refused(gates_file(&"#".repeat(gates::GATES_FILE_BYTES_MAX + 1)), reason::INVALID_GATES, &["65537 bytes"]);
    let long = format!("[[gate]]\nname = 'tests'\ncommand = '{}'\n", "x".repeat(gates::COMMAND_BYTES_MAX + 1));
    refused(gates_file(&long), reason::INVALID_GATES, &["line 3", "script"]);
}

#[test]
fn what_is_not_built_is_refused_and_never_passed_over() {
    let tests = "[[gate]]\nname = 'tests'\ncommand = 'true'\n";
    for (text, line) in [
        (format!("{tests}[prepare]\ncommand = 'npm ci'\n"), "line 4"),
        (format!("{tests}[coverage]\nmin = 85\n"), "line 4"),
        (format!("{tests}[review]\nmin = 0.9\n"), "line 4"),
        (format!("{tests}[[gate]]\nname = 'coverage'\ncommand = 'true'\n"), "line 4"),
        (format!("{tests}[[gate]]\nname = 'mine'\ncommand = 'true'\nprovides = ['review']\n"), "line 4"),
    ] {
        refused(gates_file(&text), reason::NOT_SUPPORTED, &[line]);
    }
    let files = [(gates::GATES_FILE, tests)];
    refused(gate_set_of(&files, GateProfile::Strict, &[]), reason::NOT_SUPPORTED, &["strict", "coverage"]);
    refused(gate_set_of(&files, GateProfile::Minimal, &["coverage"]), reason::NOT_SUPPORTED, &["`coverage`"]);
    refused(gate_set_of(&files, GateProfile::Minimal, &["review"]), reason::NOT_SUPPORTED, &["`review`"]);
}

#[test]
fn required_gate_that_nothing_provides_says_what_exists_and_how_to_add_it() {
    let tests = "[[gate]]\nname = 'tests'\ncommand = 'true'\n";
    let files = [(gates::GATES_FILE, tests)];
    let words = ["`lint`", "it defines `tests`", "[[gate]]", "provides = [\"lint\"]"];
    refused(gate_set_of(&files, GateProfile::Standard, &[]), reason::GATE_MISSING, &words);
    // A gates file speaks for the whole repository: nothing is guessed beside it.
    let with_cargo = [(gates::GATES_FILE, tests), ("Cargo.toml", "[package]")];
    refused(gate_set_of(&with_cargo, GateProfile::Standard, &[]), reason::GATE_MISSING, &["`lint`"]);
    refused(gate_set_of(&[("README", "")], GateProfile::Minimal, &[]), reason::GATE_MISSING, &[".mosaic/gates.toml", "Cargo.toml"]);
}

#[test]
fn empty_gates_file_never_passes() {
    refused(gates_file(""), reason::GATE_MISSING, &["`tests`", "it defines none"]);
    refused(gates_file("gate = []"), reason::GATE_MISSING, &["`tests`"]);
}

#[test]
fn unreadable_tree_is_nobodys_mistake() {
    let read = |_: &str| Err("disk on fire".to_owned());
    let error = gates::gate_set(&TrustedTree { root_files: &[], read: &read }, GateProfile::Minimal, &[]).unwrap_err();
    assert!(error.is_infrastructure());
    assert!(error.message.contains("disk on fire"));
}

#[test]
fn digest_changes_with_each_part_of_the_definition_and_with_nothing_else() {
    let build = "[[gate]]\nname = 'build'\ncommand = 'make'\n[[gate]]\nname = 'other'\ncommand = 'make'\n";
    let digest = |gate: &str| {
        let set = gates_file(&format!("{build}[[gate]]\n{gate}")).unwrap();
        set.gates.into_iter().next_back().unwrap().digest
    };
    let base = digest("name = 'tests'\ncommand = 'x'\nneeds = ['build', 'other']");
    assert_eq!(base.len(), 64);
    assert_eq!(base, digest("needs = ['other', 'build', 'other']\ncommand = 'x'\nname = 'tests'\ntimeout = '10m'"));
    for other in [
        "name = 'unit'\nprovides = ['tests']\ncommand = 'x'\nneeds = ['build', 'other']",
        "name = 'tests'\ncommand = 'x '\nneeds = ['build', 'other']",
        "name = 'tests'\ncommand = 'x'\ntimeout = 599\nneeds = ['build', 'other']",
        "name = 'tests'\ncommand = 'x'\nneeds = ['build']",
    ] {
        assert_ne!(base, digest(other), "{other}");
    }
}

#[test]
fn rust_project_is_detected() {
    let set = gate_set_of(&[("Cargo.toml", "[package]\nname = 'x'")], GateProfile::Standard, &["typecheck", "build"]).unwrap();
    assert_eq!(set.source, "detected from Cargo.toml (typecheck, lint, tests, build)");
    assert_eq!(command(&set, "tests"), "cargo test --offline");
    assert!(command(&set, "lint").ends_with("cargo clippy --offline --all-targets -- -D warnings"));
    let workspace = [("Cargo.toml", "[workspace]\nmembers = ['a']"), ("Cargo.lock", "")];
    let set = gate_set_of(&workspace, GateProfile::Minimal, &[]).unwrap();
    assert_eq!(command(&set, "tests"), "cargo test --offline --locked --workspace");
}

#[test]
fn node_project_gives_the_scripts_that_it_has() {
    let manifest = r#"{"scripts": {"test": "node --test", "lint": "eslint .", "build": " "}}"#;
    let set = gate_set_of(&[("package.json", manifest)], GateProfile::Standard, &[]).unwrap();
    assert_eq!(set.source, "detected from package.json (lint, tests)");
    assert_eq!(command(&set, "tests"), "npm run --silent test");
    refused(gate_set_of(&[("package.json", manifest)], GateProfile::Minimal, &["build"]), reason::GATE_MISSING, &["`build`"]);
    let typed = [("package.json", manifest), ("tsconfig.json", "{}")];
    let set = gate_set_of(&typed, GateProfile::Minimal, &["typecheck"]).unwrap();
    assert!(command(&set, "typecheck").ends_with("tsc --noEmit"));
}

#[test]
fn placeholder_test_script_of_npm_counts_as_no_tests() {
    let manifest = r#"{"scripts": {"test": "echo \"Error: no test specified\" && exit 1"}}"#;
    refused(gate_set_of(&[("package.json", manifest)], GateProfile::Minimal, &[]), reason::GATE_MISSING, &["package.json (nothing)"]);
    refused(gate_set_of(&[("package.json", "{")], GateProfile::Minimal, &[]), reason::INVALID_GATES, &["package.json", "JSON"]);
}

#[test]
fn python_project_uses_the_tools_that_it_is_configured_for() {
    let set = gate_set_of(&[("pyproject.toml", ""), ("tests/test_a.py", "")], GateProfile::Standard, &[]).unwrap();
    assert_eq!(command(&set, "tests"), "python3 -m unittest discover -s tests");
    assert_eq!(command(&set, "lint"), "python3 -m compileall -q .");
    let package = [("setup.cfg", "[flake8]\n"), ("tests/__init__.py", ""), ("tests/test_a.py", "")];
    let set = gate_set_of(&package, GateProfile::Standard, &[]).unwrap();
    assert_eq!(command(&set, "tests"), "python3 -m unittest discover -s tests -t .");
    assert!(command(&set, "lint").ends_with("python3 -m flake8 ."));
    let configured = "[project]\ndependencies = []\n[project.optional-dependencies]\ndev = ['pytest>=8']\n[tool.ruff]\n[tool.mypy]\n";
    let set = gate_set_of(&[("pyproject.toml", configured)], GateProfile::Standard, &["typecheck"]).unwrap();
    assert!(command(&set, "tests").ends_with("python3 -m pytest -q"));
    assert_eq!(command(&set, "lint"), "ruff check .");
    assert!(command(&set, "typecheck").ends_with("mypy ."));
    refused(gate_set_of(&[("pyproject.toml", "")], GateProfile::Minimal, &["typecheck"]), reason::GATE_MISSING, &["`typecheck`"]);
}

#[test]
fn go_project_is_detected() {
    let set = gate_set_of(&[("go.mod", "module x\n")], GateProfile::Standard, &["build"]).unwrap();
    assert_eq!(command(&set, "tests"), "go test ./...");
    assert_eq!(command(&set, "lint"), "go vet ./...");
}

#[test]
fn several_projects_in_one_root_must_all_pass() {
    let files = [("go.mod", "module x\n"), ("package.json", r#"{"scripts": {"test": "node --test"}}"#), ("Cargo.toml", "")];
    let set = gate_set_of(&files, GateProfile::Standard, &[]).unwrap();
    let parts = "Cargo.toml (typecheck, lint, tests, build) and package.json (tests) and go.mod (typecheck, lint, tests, build)";
    assert_eq!(set.source, format!("detected from {parts}"));
    assert_eq!(command(&set, "tests"), "( cargo test --offline ) && ( npm run --silent test ) && ( go test ./... )");
}

/// Runs a detected gate for real in a folder, with these programs only.
fn run_gate(files: &[(&str, &str)], gate: &str, path: &str) -> i32 {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let set = gate_set_of(files, GateProfile::Standard, &[]).unwrap();
    let mut command_line = Command::new("/bin/sh");
    command_line.arg("-c").arg(command(&set, gate)).current_dir(folder.path()).env("PATH", path);
    command_line.output().unwrap().status.code().unwrap()
}

#[test]
fn missing_tool_is_an_error_of_the_machine_and_no_refusal() {
    let rust = [("Cargo.toml", "[package]\nname = 'x'\nversion = '1.0.0'")];
    let python = [("pyproject.toml", "[tool.ruff]\n[tool.pytest]\n")];
    for (files, gate) in [(&rust[..], "lint"), (&rust, "tests"), (&python, "lint"), (&python, "tests")] {
        let code = run_gate(files, gate, "/nonexistent");
        assert_eq!(code, 127, "{gate}");
        assert_eq!(judge(&ended(EndCause::Exited(code), "")).0, Verdict::Error);
    }
}

#[test]
fn detected_rust_gates_judge_a_real_project() {
    let path = std::env::var("PATH").unwrap();
    let project = |body: &'static str| [("Cargo.toml", "[package]\nname = 'x'\nversion = '1.0.0'\nedition = '2024'"), ("src/lib.rs", body)];
    assert_eq!(run_gate(&project("#[test]\nfn right() {}\n"), "tests", &path), 0);
    assert_ne!(run_gate(&project("#[test]\nfn wrong() { panic!() }\n"), "tests", &path), 0);
}

#[test]
fn detected_python_gates_judge_a_real_project() {
    let path = std::env::var("PATH").unwrap();
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("gates::detected_python_gates_judge_a_real_project", "python3 is not installed");
    }
    let project = |test: &'static str| [("pyproject.toml", ""), ("tests/test_a.py", test)];
    let test = "import unittest\n\n\nclass A(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(1, ";
    let (right, wrong) = (format!("{test}1)\n").leak(), format!("{test}2)\n").leak());
    assert_eq!(run_gate(&project(right), "tests", &path), 0);
    assert_eq!(run_gate(&project(wrong), "tests", &path), 1);
    assert_eq!(run_gate(&project(right), "lint", &path), 0);
    assert_eq!(run_gate(&project("def broken(:\n"), "lint", &path), 1);
}

fn ended(cause: EndCause, output: &str) -> RunEnd {
    RunEnd { cause, duration_millis: 61_500, output_tail: output.to_owned(), result: None }
}

#[test]
fn only_exit_code_zero_passes() {
    let text = || "why".to_owned();
    for (cause, verdict, word) in [
        (EndCause::Exited(0), Verdict::Pass, "the output"),
        (EndCause::Exited(1), Verdict::Fail, "exit code 1"),
        (EndCause::Exited(125), Verdict::Fail, "exit code 125"),
        (EndCause::Exited(126), Verdict::Error, "exit code 126"),
        (EndCause::Exited(127), Verdict::Error, "missing"),
        (EndCause::Exited(-1), Verdict::Fail, "exit code -1"),
        (EndCause::Signaled(11), Verdict::Fail, "signal 11"),
        (EndCause::TimedOut, Verdict::Fail, "timed out after 61 s"),
        (EndCause::LeaseExpired, Verdict::Error, "lease"),
        (EndCause::Stopped, Verdict::Skipped, "stopped"),
        (EndCause::NotStarted(text()), Verdict::Error, "why"),
        (EndCause::CannotExecute(text()), Verdict::Error, "why"),
        (EndCause::Lost(text()), Verdict::Error, "why"),
        (EndCause::LimitExceeded { limit: Limit::Memory, message: text() }, Verdict::Fail, "memory limit"),
    ] {
        let (got, evidence) = judge(&ended(cause.clone(), "the output\n"));
        let evidence = evidence.unwrap();
        assert_eq!(got, verdict, "{cause:?}");
        assert!(evidence.contains(word) && evidence.ends_with("the output"), "{evidence}");
    }
    assert_eq!(judge(&ended(EndCause::Exited(0), "\n")), (Verdict::Pass, None));
}

#[test]
fn evidence_is_the_capped_end_of_the_output() {
    let output = format!("{}the end", "ä".repeat(10_000));
    let (_, evidence) = judge(&ended(EndCause::Exited(1), &output));
    let evidence = evidence.unwrap();
    assert!(evidence.starts_with("exit code 1\n") && evidence.ends_with("the end"));
    assert!(evidence.len() <= EVIDENCE_BYTES_MAX && evidence.len() > EVIDENCE_BYTES_MAX - 4);
    let (_, evidence) = judge(&ended(EndCause::Lost("ö".repeat(5000)), &output));
    assert!(evidence.unwrap().len() <= EVIDENCE_BYTES_MAX);
    let (_, evidence) = judge(&ended(EndCause::Exited(0), &output));
    assert!(evidence.unwrap().len() <= EVIDENCE_OF_PASS_BYTES_MAX);
}

/// What must hold of every accepted set, whatever was asked.
fn check_set(set: &GateSet, required: &[GateName], provides: &BTreeMap<String, Vec<String>>) {
    assert!(!set.gates.is_empty());
    assert!(!set.source.is_empty());
    for (position, gate) in set.gates.iter().enumerate() {
        let before: Vec<&GateDefinition> = set.gates.iter().take(position).collect();
        assert!(before.iter().all(|other| other.name != gate.name), "`{}` twice", gate.name);
        for need in &gate.needs {
            assert!(before.iter().any(|other| other.name == *need), "`{}` runs before `{need}`", gate.name);
        }
        assert!(!gate.command.trim().is_empty());
        assert!((1..=gates::TIMEOUT_SECONDS_MAX).contains(&gate.timeout_seconds));
    }
    for wanted in required.iter().map(GateName::as_str).chain(["tests"]) {
        let provided = |gate: &GateDefinition| {
            gate.name == wanted || provides.get(&gate.name).is_some_and(|list| list.iter().any(|name| name == wanted))
        };
        assert!(set.gates.iter().any(provided), "nothing provides {wanted}");
    }
}

fn profile() -> impl Strategy<Value = GateProfile> {
    prop_oneof![Just(GateProfile::Minimal), Just(GateProfile::Standard), Just(GateProfile::Strict)]
}

fn gate_name() -> impl Strategy<Value = String> {
    prop_oneof![Just("tests".to_owned()), Just("lint".to_owned()), "[a-e]"]
}

prop_compose! {
    fn gate()(name in gate_name(), needs in prop::collection::vec(gate_name(), 0..2), provides in prop::collection::vec(gate_name(), 0..2), timeout in 0_u32..9000) -> (String, Vec<String>, Vec<String>, u32) {
        (name, needs, provides, timeout)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn accepted_set_is_ordered_and_holds_all_that_is_required(
        gates in prop::collection::vec(gate(), 0..7),
        profile in profile(),
        required in prop::collection::vec(gate_name(), 0..3),
    ) {
        let mut text = String::new();
        let mut provides = BTreeMap::new();
        for (name, needs, provided, timeout) in &gates {
            text.push_str(&format!("[[gate]]\nname = '{name}'\ncommand = 'true'\nneeds = {needs:?}\nprovides = {provided:?}\ntimeout = {timeout}\n"));
            provides.insert(name.clone(), provided.clone());
        }
        let files = BTreeMap::from([(gates::GATES_FILE.to_owned(), text.into_bytes())]);
        let required: Vec<GateName> = required.into_iter().map(|name| GateName::new(name).unwrap()).collect();
        let result = gate_set_of_bytes(&files, profile, &required);
        prop_assert_eq!(&result, &gate_set_of_bytes(&files, profile, &required));
        if let Ok(set) = result {
            check_set(&set, &required, &provides);
        }
    }

    #[test]
    fn no_tree_makes_it_panic(
        file in prop_oneof![any::<Vec<u8>>(), ".{0,200}".prop_map(String::into_bytes), "(\\[\\[gate\\]\\]|name|command|=|'a'|needs|\\[|\\]|\n|1h){0,40}".prop_map(String::into_bytes)],
        path in prop::sample::select(vec![gates::GATES_FILE, "Cargo.toml", "package.json", "pyproject.toml", "setup.cfg", "go.mod", "tox.ini"]),
        other in prop::sample::select(vec!["Cargo.toml", "package.json", "setup.py", "go.mod", "tests/__init__.py"]),
        profile in profile(),
    ) {
        let files = BTreeMap::from([(other.to_owned(), b"{}".to_vec()), (path.to_owned(), file)]);
        match gate_set_of_bytes(&files, profile, &[]) {
            Ok(set) => check_set(&set, &[], &BTreeMap::from([("tests".to_owned(), Vec::new())])),
            Err(error) => prop_assert!(!error.message.is_empty() && !error.is_infrastructure()),
        }
    }

    #[test]
    fn evidence_never_exceeds_its_limit(output in ".{0,3000}", code in any::<i32>()) {
        let (verdict, evidence) = judge(&ended(EndCause::Exited(code), &output));
        prop_assert_eq!(verdict == Verdict::Pass, code == 0);
        prop_assert!(evidence.is_none_or(|text| text.len() <= EVIDENCE_BYTES_MAX));
    }
}
