//! Gates of a repository without a gates file, from what its trusted branch is: Rust, Node, Python, Go, or several of them at once.
//!
//! Only what the branch declares counts: a script that exists, a linter that is configured. Commands work without network, and a tool
//! that the machine does not have ends them with 127 ("could not judge"), never with a code that would be taken for a refusal.
//! Several projects in one root give one gate per name that runs all of their commands; the source says which project brought what.

use super::{GATES_FILE, Gate, GatesError, MANIFEST_BYTES_MAX, TIMEOUT_SECONDS_DEFAULT, TIMEOUT_SECONDS_MAX, TrustedTree, read_capped};
use crate::api::names::GateName;

/// Names that can be detected, in the order in which they are listed.
const DETECTED: [&str; 4] = ["typecheck", "lint", "tests", "build"];

/// What one kind of project brings: commands by gate name.
struct Project {
    manifest: &'static str,
    commands: Vec<(&'static str, String)>,
}

impl Project {
    fn command(&self, gate: &str) -> Option<&str> {
        self.commands.iter().find(|(name, _)| *name == gate).map(|(_, command)| command.as_str())
    }
}

/// Returns where the gates come from, for people, and the gates.
pub(super) fn detect(tree: &TrustedTree<'_>) -> Result<(String, Vec<Gate>), GatesError> {
    let look = Look { tree };
    let projects: Vec<Project> = [look.rust()?, look.node()?, look.python()?, look.go()].into_iter().flatten().collect();
    if projects.is_empty() {
        return Err(GatesError::missing(format!(
            "the trusted branch has no {GATES_FILE}, and no Cargo.toml, package.json, pyproject.toml, setup.cfg, setup.py or go.mod in its \
             root to tell the gates from; commit a {GATES_FILE} with [[gate]] tables (name and command), such as one with name = \"tests\""
        )));
    }
    let gates = DETECTED.into_iter().filter_map(|name| gate_of(name, &projects)).collect();
    let parts: Vec<String> = projects.iter().map(describe).collect();
    Ok((format!("detected from {}", parts.join(" and ")), gates))
}

fn describe(project: &Project) -> String {
    let names: Vec<&str> = DETECTED.into_iter().filter(|name| project.command(name).is_some()).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    format!("{} ({names})", project.manifest)
}

/// One gate that runs the commands of all projects, each in a shell of its own; the first refusal ends it.
fn gate_of(name: &'static str, projects: &[Project]) -> Option<Gate> {
    let commands: Vec<&str> = projects.iter().filter_map(|project| project.command(name)).collect();
    let command = match commands.as_slice() {
        [] => return None,
        [one] => (*one).to_owned(),
        several => several.iter().map(|command| format!("( {command} )")).collect::<Vec<_>>().join(" && "),
    };
    let parts = u32::try_from(commands.len()).unwrap_or(1);
    Some(Gate {
        name: GateName::new(name).expect("reserved names are labels"),
        command,
        timeout_seconds: (TIMEOUT_SECONDS_DEFAULT * parts).min(TIMEOUT_SECONDS_MAX),
        needs: Vec::new(),
        provides: Vec::new(),
    })
}

/// A command that is "not there" (127) when a program it relies on is not, instead of failing in the tool's own way.
fn needing(check: &str, command: &str) -> String {
    format!("{check} || exit 127; {command}")
}

/// Looks into the trusted tree's root.
struct Look<'a> {
    tree: &'a TrustedTree<'a>,
}

impl Look<'_> {
    fn has(&self, name: &str) -> bool {
        self.tree.root_files.iter().any(|file| file == name)
    }

    /// Text of a file in the root; what is not UTF-8 there is read as far as it can be.
    fn text(&self, name: &str) -> Result<Option<String>, GatesError> {
        if !self.has(name) {
            return Ok(None);
        }
        let content = read_capped(self.tree, name, MANIFEST_BYTES_MAX)?;
        Ok(content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn toml(&self, name: &str) -> Result<Option<toml::Table>, GatesError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        // A manifest that does not parse is no reason to refuse here: its own tool says what is wrong with it, in the gate.
        Ok(Some(text.parse().unwrap_or_default()))
    }

    fn rust(&self) -> Result<Option<Project>, GatesError> {
        let Some(manifest) = self.toml("Cargo.toml")? else { return Ok(None) };
        let mut options = String::from("--offline");
        // A lock file that is committed is part of what is judged: without `--locked` cargo would mend it in the gate's tree only.
        if self.has("Cargo.lock") {
            options.push_str(" --locked");
        }
        if manifest.contains_key("workspace") {
            options.push_str(" --workspace");
        }
        let clippy = format!("cargo clippy {options} --all-targets -- -D warnings");
        Ok(Some(Project {
            manifest: "Cargo.toml",
            commands: vec![
                ("typecheck", format!("cargo check {options} --all-targets")),
                ("lint", needing("command -v cargo-clippy >/dev/null", &clippy)),
                ("tests", format!("cargo test {options}")),
                ("build", format!("cargo build {options}")),
            ],
        }))
    }

    fn node(&self) -> Result<Option<Project>, GatesError> {
        let Some(text) = self.text("package.json")? else { return Ok(None) };
        let manifest: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| GatesError::invalid(format!("package.json of the trusted branch is not valid JSON: {error}")))?;
        // `npm init` writes a `test` that only prints an error: a project without tests, not one whose tests fail.
        let has_script = |name: &str| {
            let script = manifest.get("scripts").and_then(|scripts| scripts.get(name)).and_then(serde_json::Value::as_str);
            script.is_some_and(|script| !script.trim().is_empty() && !script.contains("no test specified"))
        };
        let mut commands = Vec::new();
        for (gate, script) in [("typecheck", "typecheck"), ("lint", "lint"), ("tests", "test"), ("build", "build")] {
            if has_script(script) {
                commands.push((gate, format!("npm run --silent {script}")));
            }
        }
        if !has_script("typecheck") && self.has("tsconfig.json") {
            commands.push(("typecheck", "PATH=\"$PWD/node_modules/.bin:$PATH\" tsc --noEmit".to_owned()));
        }
        Ok(Some(Project { manifest: "package.json", commands }))
    }

    fn python(&self) -> Result<Option<Project>, GatesError> {
        let Some(manifest) = ["pyproject.toml", "setup.cfg", "setup.py"].into_iter().find(|name| self.has(name)) else {
            return Ok(None);
        };
        let settings = PythonSettings::read(self)?;
        let mut commands = vec![("lint", settings.lint()), ("tests", settings.tests())];
        if settings.mypy {
            commands.push(("typecheck", needing("python3 -c 'import mypy'", "python3 -m mypy .")));
        }
        Ok(Some(Project { manifest, commands }))
    }

    fn go(&self) -> Option<Project> {
        // `-o /dev/null`: a main package would otherwise leave its program in the tree.
        let build = "go build -o /dev/null ./...";
        self.has("go.mod").then(|| Project {
            manifest: "go.mod",
            commands: vec![
                ("typecheck", build.to_owned()),
                ("lint", "go vet ./...".to_owned()),
                ("tests", "go test ./...".to_owned()),
                ("build", build.to_owned()),
            ],
        })
    }
}

/// Which Python tools the project is set up for.
struct PythonSettings {
    pytest: bool,
    ruff: bool,
    flake8: bool,
    mypy: bool,
    tests_folder: bool,
    tests_package: bool,
}

impl PythonSettings {
    fn read(look: &Look<'_>) -> Result<Self, GatesError> {
        let pyproject = look.toml("pyproject.toml")?.unwrap_or_default();
        let tool = |name: &str| pyproject.get("tool").and_then(|tool| tool.get(name)).is_some();
        let sections = [look.text("setup.cfg")?.unwrap_or_default(), look.text("tox.ini")?.unwrap_or_default()];
        let section = |name: &str| sections.iter().any(|text| text.lines().any(|line| line.trim() == name));
        let any_file = |names: &[&str]| names.iter().any(|name| look.has(name));
        Ok(Self {
            pytest: tool("pytest")
                || section("[tool:pytest]")
                || section("[pytest]")
                || any_file(&["pytest.ini", "conftest.py"])
                || names_pytest(&pyproject),
            ruff: tool("ruff") || any_file(&["ruff.toml", ".ruff.toml"]),
            flake8: section("[flake8]") || any_file(&[".flake8"]),
            mypy: tool("mypy") || section("[mypy]") || any_file(&["mypy.ini", ".mypy.ini"]),
            tests_folder: look.has("tests"),
            tests_package: look.has("tests") && read_capped(look.tree, "tests/__init__.py", MANIFEST_BYTES_MAX)?.is_some(),
        })
    }

    fn tests(&self) -> String {
        if self.pytest {
            return needing("python3 -c 'import pytest'", "python3 -m pytest -q");
        }
        // Without `-t .` relative imports of a package of tests fail; with it a plain folder is refused.
        match (self.tests_folder, self.tests_package) {
            (_, true) => "python3 -m unittest discover -s tests -t .".to_owned(),
            (true, false) => "python3 -m unittest discover -s tests".to_owned(),
            (false, false) => "python3 -m unittest discover".to_owned(),
        }
    }

    fn lint(&self) -> String {
        if self.ruff {
            "ruff check .".to_owned()
        } else if self.flake8 {
            needing("python3 -c 'import flake8'", "python3 -m flake8 .")
        } else {
            "python3 -m compileall -q .".to_owned()
        }
    }
}

/// Whether pyproject.toml lists pytest among its dependencies, of whatever kind.
fn names_pytest(pyproject: &toml::Table) -> bool {
    let project = pyproject.get("project");
    let lists = [
        project.and_then(|project| project.get("dependencies")),
        project.and_then(|project| project.get("optional-dependencies")),
        pyproject.get("dependency-groups"),
    ];
    lists.into_iter().flatten().any(lists_pytest)
}

/// A requirement `pytest`, alone or with extras and versions, in a list or in lists by name. `pytest-cov` alone is not it, but brings it.
fn lists_pytest(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(requirement) => requirement.trim_start().starts_with("pytest"),
        toml::Value::Array(items) => items.iter().any(lists_pytest),
        toml::Value::Table(table) => table.values().any(lists_pytest),
        _ => false,
    }
}
