//! What this machine can do for sandboxes: every primitive of isolation and every limit, looked at by really making a sandbox.
//!
//! A sandbox is made in a state folder of its own, with everything allowed to be missing that an operator may allow; what its init saw from
//! inside is held against the tables (`confine::PRIMITIVES`, `limits::LIMITS`), and what is not there is told with its remedy. Nothing of a
//! running server is touched. It decides nothing: what refuses a start is decided by the driver, by the same tables.

use crate::causes;
use crate::config::Config;
use crate::inside::confine::{Need, PRIMITIVES, Primitive};
use crate::inside::system;
use crate::sandbox::limits::{LIMITS, LimitRow};
use crate::sandbox::process::{ProcessConfig, ProcessSandbox, SandboxIds};
use crate::tools;
use crate::up::{process_config, workspace_config};
use crate::workspace::{TreeMode, Workspaces};
use serde::Serialize;
use std::path::Path;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but holds less than it could, or the operator has allowed that it is missing.
    Weak,
    /// Nothing starts because of it.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What.
    pub name: String,
    /// How well it is.
    pub verdict: Verdict,
    /// What was seen, in a few words.
    pub detail: String,
    /// What helps; empty where nothing is needed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Row {
    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn weak(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Weak, detail: detail.into(), remedy: remedy.into() }
    }

    fn missing(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Missing, detail: detail.into(), remedy: remedy.into() }
    }
}

/// Things that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// Its title.
    pub title: &'static str,
    /// What was looked at.
    pub rows: Vec<Row>,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which they are shown.
    pub sections: Vec<Section>,
}

impl Report {
    /// Whether agents can start here.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.sections.iter().flat_map(|section| &section.rows).all(|row| row.verdict != Verdict::Missing)
    }
}

/// Looks at this machine. The state folder of the configuration must be empty and is not needed afterwards.
#[must_use]
pub fn examine(config: &Config) -> Report {
    let mut sections = vec![Section { title: "machine", rows: machine(config) }];
    match process_config(config, "doctor".to_owned()) {
        Ok(process) => {
            let tools = process.tool_roots.clone();
            sections.extend(sandboxes(process));
            let detail = |root: &tools::ToolRoot| Row::ok(&root.name, root.host.display().to_string());
            sections.push(Section { title: "tools in sandboxes", rows: tools.iter().map(detail).collect() });
        }
        Err(error) => sections.push(Section { title: "isolation", rows: vec![Row::missing("sandbox", causes::one_line(&error), "")] }),
    }
    Report { sections }
}

fn machine(config: &Config) -> Vec<Row> {
    let release = system::read_small("/proc/sys/kernel/osrelease").unwrap_or_default();
    let ids = SandboxIds::of(config.sandbox_uid);
    let user = if ids.unprivileged {
        let remedy = "run as root, or as a user made for it: sandboxes then have ids that nobody else has";
        Row::weak("user", format!("ordinary user {}: sandboxes have its ids, in a user namespace", ids.uid), remedy)
    } else {
        Row::ok("user", format!("root; sandboxes run as {}", ids.uid))
    };
    let mut rows = vec![Row::ok("kernel", release.trim()), user];
    match Workspaces::open(workspace_config(config)) {
        Ok(workspaces) => rows.extend([Row::ok("git", "2.32 or newer"), trees(workspaces.tree_mode(), &config.state)]),
        Err(error) => rows.push(Row::missing("workspaces", causes::one_line(&error), "")),
    }
    rows
}

fn trees(mode: TreeMode, state: &Path) -> Row {
    match mode {
        TreeMode::Overlay => Row::ok("trees", "overlay: one checkout is shared by all agents of a commit"),
        TreeMode::Checkout => {
            let remedy = format!("overlay mounts need root and a file system like ext4 or xfs under {}", state.display());
            Row::weak("trees", "checkout: every agent has files of its own", remedy)
        }
    }
}

/// Makes a sandbox with everything allowed to be missing, and holds what was seen against what the operator wants.
fn sandboxes(config: ProcessConfig) -> Vec<Section> {
    let allowed = config.allow_missing.clone();
    let optional = PRIMITIVES.iter().filter(|primitive| primitive.need == Need::UnlessAllowed).map(|primitive| primitive.name);
    let allow_missing = optional.chain(LIMITS.iter().map(|limit| limit.name)).map(str::to_owned).collect();
    match ProcessSandbox::open(ProcessConfig { allow_missing, ..config }) {
        Ok(sandbox) => {
            let verified = sandbox.verified();
            let primitives = PRIMITIVES.iter().map(|primitive| isolation_row(primitive, verified, &allowed)).collect();
            let limits = LIMITS.iter().map(|limit| limit_row(limit, verified, &allowed)).collect();
            vec![Section { title: "isolation", rows: primitives }, Section { title: "limits", rows: limits }]
        }
        Err(error) => vec![Section { title: "isolation", rows: vec![Row::missing("sandbox", causes::one_line(&error), "")] }],
    }
}

fn isolation_row(primitive: &Primitive, verified: &[String], allowed: &[String]) -> Row {
    let Primitive { name, need, help, .. } = primitive;
    if verified.iter().any(|found| found == name) {
        Row::ok(name, "holds, seen from inside")
    } else if *need == Need::WherePossible {
        Row::weak(name, "does not hold; it is there where the kernel can do it", "a newer kernel")
    } else if allowed.iter().any(|found| found == name) {
        Row::weak(name, "does not hold; allowed to be missing", *help)
    } else {
        Row::missing(name, "does not hold", *help)
    }
}

fn limit_row(limit: &LimitRow, verified: &[String], allowed: &[String]) -> Row {
    let LimitRow { name, required, remedy, .. } = limit;
    let bound = verified.iter().find_map(|found| found.strip_prefix(name)?.strip_prefix(':')).unwrap_or("none");
    let none = "nothing bounds it with the process driver";
    match bound {
        "none" if !required => Row::weak(name, none, *remedy),
        "none" if allowed.iter().any(|found| found == name) => Row::weak(name, format!("{none}; allowed to be missing"), *remedy),
        "none" => Row::missing(name, none, *remedy),
        "watchdog" => Row::ok(name, "watchdog: can be exceeded for moments"),
        bound => Row::ok(name, bound),
    }
}
