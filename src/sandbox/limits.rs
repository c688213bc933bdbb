//! The one table of limits: every limit of a sandbox, and what bounds it with each driver on this host.
//!
//! A driver says what means it has (`Means`), the table says what that comes to. What lands in the record's `isolation` and what refuses a
//! start are both read from here, so that neither can promise what the other does not hold.

use crate::api::agent::Driver;
use crate::api::validate::Limits;

/// Each tmpfs of a sandbox has at least so much,
const TMP_BYTES_MIN: u64 = 64 << 20;
/// and at most so much: it is memory of the host until limits are enforced.
const TMP_BYTES_MAX: u64 = 2 << 30;

/// What bounds a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The kernel: it cannot be exceeded.
    Kernel,
    /// init, through which all of it passes: it cannot be exceeded.
    Init,
    /// The controller looks at it again and again and ends what exceeds it: it can be exceeded for moments.
    Watchdog,
    /// Nothing.
    None,
}

impl Bound {
    /// Its name in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Watchdog => "watchdog",
            Self::None => "none",
        }
    }
}

/// What a driver has on this host for the limits that depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// What bounds memory.
    pub memory: Bound,
    /// What bounds processes.
    pub pids: Bound,
    /// What bounds CPU.
    pub cpu: Bound,
}

/// One limit.
pub struct LimitRow {
    /// Its name in the record.
    pub name: &'static str,
    /// Without it nothing starts, unless the operator allows that.
    pub required: bool,
    /// What bounds it with a driver that has these means.
    bound: fn(Driver, &Means) -> Bound,
    /// What would help where nothing does, with the process driver.
    pub remedy: &'static str,
}

const REMEDY_GROUPS: &str = "mount the control groups at /sys/fs/cgroup with the controllers memory, pids and cpu, and let mosaic write there \
    (in a systemd service: Delegate=yes, DelegateSubgroup=mosaic-controller and KillMode=process; in a container: a writable /sys/fs/cgroup)";
const REMEDY_ENGINE: &str = "the engine's host needs the control groups for it (`docker info` warns of what is missing)";
const REMEDY_NONE: &str = "nothing: every host of this driver has it";

const fn row(name: &'static str, required: bool, bound: fn(Driver, &Means) -> Bound, remedy: &'static str) -> LimitRow {
    LimitRow { name, required, bound, remedy }
}

/// Every limit.
pub const LIMITS: &[LimitRow] = &[
    row("memory", true, |_, means| means.memory, REMEDY_GROUPS),
    row("pids", true, |_, means| means.pids, REMEDY_GROUPS),
    row("cpu", false, |_, means| means.cpu, REMEDY_GROUPS),
    row("disk", false, |_, _| Bound::Watchdog, REMEDY_NONE),
    // Nobody counts the files of a pod from outside.
    row("inodes", false, |driver, _| if driver == Driver::Pod { Bound::None } else { Bound::Watchdog }, REMEDY_NONE),
    row("tmp", false, |_, _| Bound::Kernel, REMEDY_NONE),
    row("file-size", false, |_, _| Bound::Kernel, REMEDY_NONE),
    row("open-files", false, |_, _| Bound::Kernel, REMEDY_NONE),
    row("core-dumps", false, |_, _| Bound::Kernel, REMEDY_NONE),
    row("output", false, |_, _| Bound::Init, REMEDY_NONE),
];

/// What bounds a limit with a driver; a choice that was not made bounds nothing.
#[must_use]
pub fn bound(limit: &LimitRow, driver: Driver, means: &Means) -> Bound {
    if driver == Driver::Auto { Bound::None } else { (limit.bound)(driver, means) }
}

/// What would help where nothing bounds a limit with a driver.
#[must_use]
pub fn remedy(limit: &LimitRow, driver: Driver) -> &'static str {
    match driver {
        Driver::Docker if limit.required || limit.remedy == REMEDY_GROUPS => REMEDY_ENGINE,
        Driver::Docker | Driver::Process | Driver::Auto | Driver::Pod => limit.remedy,
    }
}

/// Size of each tmpfs of a sandbox.
#[must_use]
pub fn tmp_bytes_max(limits: &Limits) -> u64 {
    (limits.memory_bytes / 2).clamp(TMP_BYTES_MIN, TMP_BYTES_MAX)
}

/// All limits with what bounds them, for the record: `memory:kernel`.
#[must_use]
pub fn enforced(driver: Driver, means: &Means) -> Vec<String> {
    LIMITS.iter().map(|limit| format!("{}:{}", limit.name, bound(limit, driver, means).as_str())).collect()
}

/// Why nothing may start: one sentence for each required limit that nothing bounds and that the operator does not allow to be missing.
#[must_use]
pub fn refusals(driver: Driver, means: &Means, allow_missing: &[String]) -> Vec<String> {
    let is_missing = |limit: &&LimitRow| limit.required && bound(limit, driver, means) == Bound::None;
    let is_allowed = |limit: &&LimitRow| allow_missing.iter().any(|name| name == limit.name);
    let sentence = |limit: &LimitRow| {
        let (name, remedy) = (limit.name, remedy(limit, driver));
        format!("nothing here can bound the {name} of an agent; {remedy}, or start with --allow-missing {name} if you trust all agents")
    };
    LIMITS.iter().filter(is_missing).filter(|limit| !is_allowed(limit)).map(sentence).collect()
}
