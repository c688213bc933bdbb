//! What counts as changing one's own judges, and what is free.

use mosaic::api::agent::GateDefinition;
use mosaic::gates::tamper::{Change, Judges, evidence, tampering};
use mosaic::gates::{GATES_FILE, protected};
use std::convert::Infallible;

/// Judges one change whose object ids are the contents themselves.
fn why(command: &str, protect: &[&str], path: &str, before: Option<&str>, after: Option<&str>) -> Option<&'static str> {
    let gates = [GateDefinition { name: "tests".into(), command: command.into(), ..GateDefinition::default() }];
    let protect: Vec<String> = protect.iter().map(|glob| (*glob).to_owned()).collect();
    let change = Change { path: path.into(), before: before.map(Into::into), after: after.map(Into::into), link: false };
    let found = tampering(&Judges { gates: &gates, protect: &protect }, &[change], &|id| Ok::<_, Infallible>(id.as_bytes().to_vec()));
    found.unwrap().first().map(|(_, why)| *why)
}

#[test]
fn what_decides_a_verdict_is_found_whatever_the_change() {
    for path in [
        ".mosaic/gates.toml",
        ".mosaic/new",
        ".github/workflows/ci.yml",
        ".gitlab-ci.yml",
        "Jenkinsfile",
        ".circleci/config.yml",
        "pytest.ini",
        "sub/tox.ini",
        ".coveragerc",
        "jest.config.js",
        "web/vitest.config.ts",
        "rust-toolchain.toml",
        ".cargo/config.toml",
        "clippy.toml",
        "a/.cargo/config",
        "tsconfig.build.json",
        ".eslintrc.json",
        "ruff.toml",
        ".golangci.yml",
    ] {
        for (before, after) in [(None, Some("a")), (Some("a"), Some("b")), (Some("a"), None)] {
            assert!(why("true", &[], path, before, after).is_some(), "{path} {before:?} {after:?}");
        }
    }
}

#[test]
fn what_the_gates_call_and_the_gates_file_protects_is_found() {
    let changed = |command: &str, path: &str| why(command, &[], path, Some("a"), Some("b")).is_some();
    for (command, path) in [
        ("./check.sh", "check.sh"),
        ("sh -eu scripts/test.sh --fast", "scripts/test.sh"),
        ("cd x && bash ci/run", "ci/run"),
        ("A=1 python3 tools/check.py", "tools/check.py"),
        ("make test", "Makefile"),
        ("make test", "build/rules.mk"),
        ("just test", "justfile"),
        ("cargo test; (node tools/lint.mjs)", "tools/lint.mjs"),
    ] {
        assert!(changed(command, path), "{command}: {path}");
    }
    for (command, path) in
        [("grep -q right answer.txt", "answer.txt"), ("cargo test", "Makefile"), ("python3 -m pytest", "pytest"), ("cmake .", "Makefile")]
    {
        assert!(!changed(command, path), "{command}: {path}");
    }
    assert!(why("true", &["deploy/**", "*.lock"], "deploy/prod.yaml", Some("a"), Some("b")).is_some());
    assert!(why("true", &["*.lock"], "sub/x.lock", None, Some("b")).is_some());
    assert!(why("true", &["deploy/**"], "src/deploy.rs", Some("a"), Some("b")).is_none());
}

#[test]
fn tests_that_are_deleted_skipped_or_fewer_are_found_and_new_ones_are_free() {
    let of = |path: &str, before: Option<&str>, after: Option<&str>| why("true", &[], path, before, after);
    assert!(of("tests/test_a.py", Some("def test_a(): pass"), None).is_some());
    assert!(of("pkg/a_test.go", Some("func TestA"), Some("func TestA\nt.Skip()")).is_some());
    assert!(of("src/lib.rs", Some("#[test] fn a() {}"), Some(concat!("#[test] #[", "ignore] fn a() {}"))).is_some());
    assert!(of("src/lib.rs", Some("#[test] fn a() {} #[test] fn b() {}"), Some("#[test] fn a() {}")).is_some());
    assert!(of("web/a.test.ts", Some("it('a')"), Some("it.skip('a')")).is_some());
    assert!(of("conftest.py", None, Some("collect_ignore = ['tests']")).is_some());
    for (path, before, after) in [
        ("tests/test_new.py", None, Some("def test_a(): pass")),
        ("tests/test_a.py", Some("def test_a(): pass"), Some("def test_a(): pass\ndef test_b(): pass")),
        ("conftest.py", Some("import x"), Some("import x, y")),
        ("src/main.rs", Some("fn main() {}"), None),
        ("README.md", Some("it.skip("), Some("it.skip( it.skip(")),
    ] {
        assert_eq!(of(path, before, after), None, "{path}");
    }
    // Moved, not deleted: the same content is under another test's name.
    let moved = [
        Change { path: "tests/old.rs".into(), before: Some("x".into()), after: None, link: false },
        Change { path: "tests/new.rs".into(), before: None, after: Some("x".into()), link: false },
    ];
    let judges = Judges { gates: &[], protect: &[] };
    assert!(tampering(&judges, &moved, &|id| Ok::<_, Infallible>(id.as_bytes().to_vec())).unwrap().is_empty());
}

#[test]
fn of_manifests_only_the_part_that_decides_counts() {
    let of = |path: &str, before: &str, after: &str| why("npm test", &[], path, Some(before), Some(after)).is_some();
    assert!(of("package.json", r#"{"scripts":{"test":"jest"}}"#, r#"{"scripts":{"test":"true"}}"#));
    assert!(!of("package.json", r#"{"scripts":{"test":"jest"}}"#, r#"{"scripts":{"test":"jest"},"dependencies":{"a":"1"}}"#));
    assert!(of("package.json", r#"{"scripts":{}}"#, "{"));
    assert!(of("Cargo.toml", "[lints.clippy]\nall = 'deny'\n", "[dependencies]\n"));
    assert!(!of("Cargo.toml", "[package]\nname='x'\n", "[package]\nname='x'\n[dependencies]\na='1'\n"));
    assert!(of("pyproject.toml", "[project]\n", "[project]\n[tool.pytest.ini_options]\naddopts='-k none'\n"));
    assert!(!of("pyproject.toml", "[project]\n", "[project]\ndependencies=['x']\n"));
    assert!(of("setup.cfg", "[metadata]\n", "[metadata]\n[tool:pytest]\naddopts=-x\n"));
    assert!(!of("setup.cfg", "[metadata]\nname=a\n", "[metadata]\nname=b\n"));
}

#[test]
fn evidence_names_path_reason_and_the_way_to_approve_and_another_definition_is_another_verdict() {
    let change = Change { path: "pytest.ini".into(), before: None, after: Some("a".into()), link: false };
    let text = evidence(&vec![(change, "why"); 30], "abc");
    assert!(
        text.contains("pytest.ini: why") && text.contains("and 10 more") && text.contains("mosaicstack.dev/approve-tamper=abc"),
        "{text}"
    );
    let digest = |protect: &[String]| Judges { gates: &[], protect }.digest();
    assert_ne!(digest(&[]), digest(&["x".to_owned()]));
}

#[test]
fn protect_is_read_from_the_gates_file_and_what_is_no_glob_is_refused_with_its_line() {
    let read = |text: &str| protected(Some(text.as_bytes())).map_err(|error| error.message);
    let tests = "[[gate]]\nname = 'tests'\ncommand = 'true'\n";
    assert_eq!(read(&format!("protect = ['ci/**', '*.lock']\n{tests}")).unwrap(), ["ci/**", "*.lock"]);
    assert_eq!(protected(None).unwrap(), Vec::<String>::new());
    for wrong in ["'ci/**'", "[1]", "['']", "['!ci']", "['#x']"] {
        let message = read(&format!("protect = {wrong}\n{tests}")).unwrap_err();
        assert!(message.contains(&format!("{GATES_FILE} line 1")), "{message}");
    }
    assert!(read("[[gate]]\nname = 'tamper'\ncommand = 'true'\n").unwrap_err().contains("verdict of its own"));
}

#[test]
fn what_stands_in_for_a_gates_tool_is_found() {
    let added = |command: &str, path: &str| why(command, &[], path, None, Some("a")).is_some();
    for (command, path) in [
        // The interpreter looks for a module in the tree before anywhere else.
        ("python3 -c 'import pytest' || exit 127; python3 -m pytest -q", "pytest.py"),
        ("python3 -m pytest -q", "pytest/__main__.py"),
        ("python3 -m pytest -q", "_pytest/__init__.py"),
        ("python3 -m unittest discover -s tests", "unittest/__init__.py"),
        ("python3 -Im compileall -q .", "compileall.py"),
        ("cd sub && python3 -m flake8 .", "sub/flake8.py"),
        // npm puts this folder before the rest of PATH, and does in this file what it is told.
        ("npm test", "node_modules/.bin/jest"),
        ("npm test", "web/node_modules/.bin/jest"),
        ("npm test", "node_modules/jest/package.json"),
        ("npm test", ".npmrc"),
        ("yarn test", ".yarnrc.yml"),
        ("pnpm test", ".pnpmfile.cjs"),
        ("bun test", "bunfig.toml"),
        ("go test ./...", "go.work"),
        ("python3 -m pytest", "pytest.toml"),
        ("python3 -m pytest", "sub/.pytest.toml"),
    ] {
        assert!(added(command, path), "{command}: {path}");
    }
    for (command, path) in [("python3 -m pytest", "app/main.py"), ("python3 -m pytest", "pytest_helpers.py"), ("cargo test", "pytest.py")] {
        assert!(!added(command, path), "{command}: {path}");
    }
}

#[test]
fn tests_that_are_moved_to_where_nothing_runs_them_are_found() {
    let moved = |from: &str, to: &str| {
        let changes = [
            Change { path: from.into(), before: Some("x".into()), after: None, link: false },
            Change { path: to.into(), before: None, after: Some("x".into()), link: false },
        ];
        let judges = Judges { gates: &[], protect: &[] };
        !tampering(&judges, &changes, &|id| Ok::<_, Infallible>(id.as_bytes().to_vec())).unwrap().is_empty()
    };
    for (from, to) in [
        // A file in a folder of `tests` is no target of cargo's, a name without `test` is none of pytest's, go's or jest's.
        ("tests/roman.rs", "tests/old/roman.rs"),
        ("tests/roman.rs", "src/test/roman.rs"),
        ("tests/test_roman.py", "tests/roman.py"),
        ("roman_test.go", "tests/roman.go"),
        ("web/roman.test.ts", "web/tests/roman.ts"),
    ] {
        assert!(moved(from, to), "{from} -> {to}");
    }
    for (from, to) in [
        ("tests/roman.rs", "tests/numerals.rs"),
        ("tests/test_roman.py", "tests/unit/test_numerals.py"),
        ("a_test.go", "b/a_test.go"),
        ("web/a.test.ts", "web/deep/b.spec.ts"),
        ("crates/a/tests/x.rs", "crates/b/tests/x.rs"),
    ] {
        assert!(!moved(from, to), "{from} -> {to}");
    }
}

#[test]
fn parts_of_manifests_that_choose_what_is_tested_are_found() {
    let of = |path: &str, before: &str, after: &str| why("cargo test --workspace", &[], path, Some(before), Some(after)).is_some();
    let workspace = |text: &str| of("Cargo.toml", "[workspace]\nmembers = ['a', 'b']\n", text);
    assert!(workspace("[workspace]\nmembers = ['a']\n") && workspace("[workspace]\nmembers = ['a', 'b']\nexclude = ['b']\n"));
    assert!(workspace("[workspace]\nmembers = ['a', 'b']\ndefault-members = ['a']\n"));
    assert!(!workspace("[workspace]\nmembers = ['a', 'b', 'c']\n"), "a new member is free");
    assert!(of("Cargo.toml", "[package]\nname = 'x'\n", "[package]\nname = 'x'\n[lib]\npath = 'src/empty.rs'\n"));
    let hook = |text: &str| why("python3 -m pytest", &[], "conftest.py", None, Some(text)).is_some();
    for text in [
        "def pytest_cmdline_main(config): return 0",
        "def pytest_configure(config): pass",
        "pytest_plugins = ['x']",
        "@pytest.hookimpl(specname='x')",
    ] {
        assert!(hook(text), "{text}");
    }
    assert!(!hook("import pytest, pytest_asyncio\n@pytest.fixture\ndef a(): return 1"));
    assert!(why("true", &[], "app/tests.py", Some("def test_a(): pass"), None).is_some(), "tests of a module named tests");
}

#[test]
fn links_in_the_place_of_what_decides_are_found() {
    let judges = Judges { gates: &[], protect: &[] };
    let linked = |path: &str, link: bool| {
        let change = Change { path: path.into(), before: None, after: Some("elsewhere".into()), link };
        !tampering(&judges, &[change], &|id| Ok::<_, Infallible>(id.as_bytes().to_vec())).unwrap().is_empty()
    };
    // cargo reads its configuration through a link, and pytest a conftest.py.
    for path in
        [".cargo", "sub/.cargo", ".mosaic", ".github", ".github/workflows", ".ci", "conftest.py", "tests/conftest.py", "sub/Cargo.toml"]
    {
        assert!(linked(path, true), "{path}");
    }
    for path in ["docs", "latest.txt", "src/lib.rs", "cargo"] {
        assert!(!linked(path, true), "{path}");
    }
    assert!(!linked("conftest.py", false));
}
