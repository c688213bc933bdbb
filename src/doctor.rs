//! What this machine can do for sandboxes: every primitive of isolation and every limit, looked at by really making a sandbox.
//!
//! A sandbox is made in a state folder of its own, with everything allowed to be missing that an operator may allow; what its init saw from
//! inside is held against the tables (`confine::PRIMITIVES`, `limits::LIMITS`), and what is not there is told with its remedy. Nothing of a
//! running server is touched. It decides nothing: what refuses a start is decided by the driver, by the same tables.

use crate::api::agent::Driver;
use crate::causes;
use crate::config::Config;
use crate::inside::confine::{Need, PRIMITIVES, Primitive};
use crate::inside::system;
use crate::kill::drill;
use crate::kill::matrix::{self, Mode};
use crate::sandbox::docker::{Docker, DockerConfig};
use crate::sandbox::limits::{LIMITS, LimitRow, remedy};
use crate::sandbox::{Drivers, SandboxConfig, SandboxIds};
use crate::tools;
use crate::up::{docker_config, sandbox_config, workspace_config};
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

/// Looks at this machine. The state folder of the configuration must be empty and is not needed afterwards; `state` is the one of the
/// controller, of which nothing is touched.
#[must_use]
pub fn examine(config: &Config, state: &Path) -> Report {
    let mut sections = vec![Section { title: "machine", rows: machine(config) }];
    let settings = sandbox_config(config, "doctor".to_owned()).and_then(|sandboxes| Ok((sandboxes, docker_config(config)?)));
    match settings {
        Ok((settings, docker)) => {
            let tools = settings.tool_roots.clone();
            sections.extend(sandboxes(settings, docker));
            let detail = |root: &tools::ToolRoot| Row::ok(&root.name, root.host.display().to_string());
            sections.push(Section { title: "tools in sandboxes", rows: tools.iter().map(detail).collect() });
        }
        Err(error) => sections.push(Section { title: "isolation", rows: vec![Row::missing("sandbox", causes::one_line(&error), "")] }),
    }
    if let Some(pods) = &config.pods {
        let row = match crate::sandbox::pod::examine(pods) {
            Ok(seen) => Row::ok("cluster", seen),
            Err(why) => Row::missing("cluster", why, "without --link-address agents run here, in containers or processes"),
        };
        sections.push(Section { title: "pods", rows: vec![row] });
    }
    sections.push(Section { title: "kill", rows: kill_rows(state) });
    Report { sections }
}

/// What a kill can do from here, and when that was last tried.
fn kill_rows(state: &Path) -> Vec<Row> {
    let mode = Mode::here();
    let mut rows = vec![Row::ok("mode", mode.as_str())];
    rows.extend(matrix::Path::ALL.into_iter().map(|path| Row::ok(path.as_str(), matrix::words(matrix::reach(mode, path)))));
    rows.push(match drill::age(state) {
        Some(age) => Row::ok("last drill", format!("{} s ago", age.as_secs())),
        None => Row::weak("last drill", "never", "mosaic doctor --drill kills a canary by each path"),
    });
    rows
}

/// Kills a canary by each path.
/// # Errors
/// The settings cannot be used, in words.
pub fn drills(config: &Config) -> Result<Vec<drill::Drilled>, String> {
    let words = |error: crate::up::UpError| causes::one_line(&error);
    let (settings, docker) = (sandbox_config(config, "drill".to_owned()).map_err(words)?, docker_config(config).map_err(words)?);
    let open = |settings| Drivers::open(settings, docker.clone(), Driver::Process).map_err(|e| causes::one_line(&e));
    Ok(drill::drill(&settings, &open))
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
fn sandboxes(config: SandboxConfig, docker: DockerConfig) -> Vec<Section> {
    let allowed = config.allow_missing.clone();
    let optional = PRIMITIVES.iter().filter(|primitive| primitive.can_be_allowed()).map(|primitive| primitive.name);
    let allow_missing = optional.chain(LIMITS.iter().map(|limit| limit.name)).map(str::to_owned).collect();
    let image = docker.image.clone();
    let drivers = match Drivers::open(SandboxConfig { allow_missing, ..config }, docker, Driver::Process) {
        Ok(drivers) => drivers,
        Err(error) => return vec![Section { title: "isolation", rows: vec![Row::missing("sandbox", causes::one_line(&error), "")] }],
    };
    let mut sections = match drivers.test(Driver::Process) {
        Ok(()) => of_driver(&drivers, Driver::Process, ["isolation", "limits"], &allowed),
        Err(error) => vec![Section { title: "isolation", rows: vec![Row::missing("sandbox", causes::one_line(&error), "")] }],
    };
    sections.push(Section { title: "container engine", rows: engine(drivers.docker(), &image) });
    match drivers.test(Driver::Docker) {
        Ok(()) if !drivers.verified(Driver::Docker).is_empty() => {
            sections.extend(of_driver(&drivers, Driver::Docker, ["isolation of containers", "limits of containers"], &allowed));
        }
        // What is missing for containers is told above, and keeps nobody from using processes.
        Ok(()) | Err(_) => {}
    }
    sections
}

fn of_driver(drivers: &Drivers, driver: Driver, titles: [&'static str; 2], allowed: &[String]) -> Vec<Section> {
    let verified = drivers.verified(driver);
    let has = |primitive: &&Primitive| need_of(primitive, driver) != Need::Never;
    let primitives = PRIMITIVES.iter().filter(has).map(|primitive| isolation_row(primitive, driver, &verified, allowed)).collect();
    let limits = LIMITS.iter().map(|limit| limit_row(limit, driver, &verified, allowed)).collect();
    let [isolation, bounds] = titles;
    vec![Section { title: isolation, rows: primitives }, Section { title: bounds, rows: limits }]
}

/// What a container engine is here. None is needed: agents run in processes then.
fn engine(docker: &Docker, image: &str) -> Vec<Row> {
    let facts = match docker.look_at_engine() {
        Ok(facts) => facts,
        Err(error) => {
            return vec![Row::weak(
                "engine",
                causes::one_line(&error),
                "start one, or name it by DOCKER_HOST, to run agents in containers",
            )];
        }
    };
    let mut rows = vec![
        Row::ok("engine", format!("{} (API {}) at {}", facts.version, facts.api, docker.host())),
        Row::ok("control groups", format!("version {}", facts.cgroups)),
        Row::ok("runtimes", facts.runtimes.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    ];
    rows.push(match facts.known_escape() {
        Some(version) => Row::weak("runc", format!("{version} has known ways out of a container"), "runc 1.2.8, 1.3.3, 1.4.0 or newer"),
        None => Row::ok("runc", facts.runc.as_deref().unwrap_or("its version is not told")),
    });
    rows.push(match facts.filters_calls {
        true => Row::ok("default seccomp", "on"),
        false => Row::weak("default seccomp", "off: init's own filter is all there is", "a kernel and engine with seccomp"),
    });
    rows.push(match docker.has_default_image() {
        Ok(true) => Row::ok("image", image),
        Ok(false) => Row::weak("image", format!("{image} is not there"), "make image, or --sandbox-image"),
        Err(error) => Row::weak("image", causes::one_line(&error), ""),
    });
    rows
}

fn need_of(primitive: &Primitive, driver: Driver) -> Need {
    match driver {
        Driver::Docker => primitive.docker,
        Driver::Pod => primitive.pod,
        Driver::Process | Driver::Auto => primitive.process,
    }
}

fn isolation_row(primitive: &Primitive, driver: Driver, verified: &[String], allowed: &[String]) -> Row {
    let Primitive { name, help, .. } = primitive;
    let need = need_of(primitive, driver);
    if verified.iter().any(|found| found == name) {
        Row::ok(name, "holds, seen from inside")
    } else if need == Need::WherePossible {
        Row::weak(name, "does not hold; it is there where the kernel can do it", "a newer kernel")
    } else if allowed.iter().any(|found| found == name) {
        Row::weak(name, "does not hold; allowed to be missing", *help)
    } else {
        Row::missing(name, "does not hold", *help)
    }
}

fn limit_row(limit: &LimitRow, driver: Driver, verified: &[String], allowed: &[String]) -> Row {
    let LimitRow { name, required, .. } = limit;
    let remedy = remedy(limit, driver);
    let bound = verified.iter().find_map(|found| found.strip_prefix(name)?.strip_prefix(':')).unwrap_or("none");
    let none = format!("nothing bounds it with the {driver:?} driver").to_lowercase();
    match bound {
        "none" if !required => Row::weak(name, none, remedy),
        "none" if allowed.iter().any(|found| found == name) => Row::weak(name, format!("{none}; allowed to be missing"), remedy),
        "none" => Row::missing(name, none, remedy),
        "watchdog" => Row::ok(name, "watchdog: can be exceeded for moments"),
        bound => Row::ok(name, bound),
    }
}
