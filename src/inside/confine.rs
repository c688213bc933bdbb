//! Giving up privileges, and looking from inside what is in force.
//!
//! `PRIMITIVES` is the one table of what a sandbox is made of, with a column for each driver: init looks at each before it asks for its grant (and tries
//! is forbidden, see `selftest`), and one that is needed and does not hold ends it, unless the operator allowed that. What holds lands in the
//! record's `isolation`; limits are in `limits`.

use crate::inside::selftest::{Confinement, Trial};
use crate::inside::system;
use crate::inside::wire::LaunchSpec;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::fs;

/// Namespaces that are made with init, and the primitive that each is.
pub const CLONED: [(&str, libc::c_int); 5] = [
    ("pid-namespace", libc::CLONE_NEWPID),
    ("mount-namespace", libc::CLONE_NEWNS),
    ("network-namespace", libc::CLONE_NEWNET),
    ("ipc-namespace", libc::CLONE_NEWIPC),
    ("uts-namespace", libc::CLONE_NEWUTS),
];
/// Namespaces that are new in every sandbox.
pub const NAMESPACES: [&str; 6] = ["user", "pid", "mnt", "net", "ipc", "uts"];
/// What ids look like that a user namespace does not know.
const OVERFLOW_ID: u32 = 65_534;
/// No kernel has more capabilities than this.
const CAPABILITIES_MAX: u32 = 63;
/// What no process inside may make, so that it cannot become privileged within namespaces of its own.
const INNER_NAMESPACES: [&str; 8] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];

/// One primitive of isolation.
pub struct Primitive {
    /// Its name in the record.
    pub name: &'static str,
    /// Whether a process sandbox may start where it does not hold.
    pub process: Need,
    /// Whether a container may.
    pub docker: Need,
    /// Whether a pod may.
    pub pod: Need,
    /// Looks whether it holds, from inside.
    pub holds: fn(&Evidence) -> bool,
    /// What helps where it is missing.
    pub help: &'static str,
}

impl Primitive {
    /// What engines and kubelets make only where they are set up for it.
    const fn where_possible_in_containers(mut self) -> Self {
        self.docker = Need::WherePossible;
        self.pod = Need::WherePossible;
        self
    }

    /// What only a pod can have.
    const fn of_pods(mut self) -> Self {
        self.process = Need::Never;
        self.docker = Need::Never;
        self
    }

    /// Whether an operator can do without it, with some driver.
    #[must_use]
    pub fn can_be_allowed(&self) -> bool {
        [self.process, self.docker, self.pod].contains(&Need::UnlessAllowed)
    }
}

/// How much a sandbox needs a primitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The driver itself stands on it: nothing starts without.
    Always,
    /// Nothing starts without, unless the operator names it in `--allow-missing`.
    UnlessAllowed,
    /// It is there where the kernel can do it.
    WherePossible,
    /// The driver has no such thing.
    Never,
}

/// Whether a primitive may be missing where the operator allows these.
#[must_use]
pub fn may_miss(name: &str, allow_missing: &[String]) -> bool {
    let allowed = |p: &Primitive| p.name == name && p.can_be_allowed();
    allow_missing.iter().any(|allowed| allowed == name) && PRIMITIVES.iter().any(allowed)
}

const HELP_ROOT: &str = "mosaic needs root with CAP_SYS_ADMIN: within a container start that with --privileged, or run mosaic on the host";
const HELP_OWN: &str = "init sets this itself: a seccomp profile of the container or service that mosaic runs in may refuse it";

/// Everything that isolation is made of.
pub const PRIMITIVES: &[Primitive] = &[
    always("user-namespace", |e| e.is_new("user") && e.has_single_id(), HELP_USER_NAMESPACE).where_possible_in_containers(),
    always("pid-namespace", |e| e.is_new("pid") && e.pid == 1, HELP_ROOT),
    always("mount-namespace", |e| e.is_new("mnt") && e.root_is_read_only, HELP_ROOT),
    unless_allowed("network-namespace", |e| e.is_new("net") && (e.pod || e.interfaces == ["lo"]), HELP_ROOT),
    unless_allowed(
        "network-policy",
        |e| e.closed,
        "the pod could reach the API server: the cluster's network plugin must enforce NetworkPolicy (Calico, Cilium, …)",
    )
    .of_pods(),
    unless_allowed("ipc-namespace", |e| e.is_new("ipc"), HELP_ROOT),
    unless_allowed("uts-namespace", |e| e.is_new("uts"), HELP_ROOT),
    always("unprivileged-uid", Evidence::has_own_ids, HELP_OWN),
    always("no-capabilities", Evidence::has_no_capabilities, HELP_OWN),
    always("no-new-privileges", |e| e.status_field("NoNewPrivs") == "1", HELP_OWN),
    always("init-not-dumpable", |e| !e.dumpable, HELP_OWN),
    unless_allowed(
        "seccomp",
        |e| e.trial.seccomp,
        "the kernel needs CONFIG_SECCOMP_FILTER, and a container's own seccomp profile must allow the call seccomp",
    ),
    unless_allowed(
        "landlock",
        |e| e.trial.landlock,
        "it needs Linux 5.19 with CONFIG_SECURITY_LANDLOCK and `landlock` in the boot parameter lsm= (see /sys/kernel/security/lsm); a container's seccomp profile must allow its calls",
    )
    .where_possible_in_containers(),
    always("init-untouchable", |e| e.trial.untouchable, "the sysctl fs.suid_dumpable must be 0 or 2, and /proc that of the sandbox"),
    unless_allowed("no-core-dumps", |e| e.core_bytes_max == Some(0), HELP_OWN),
    unless_allowed(
        "no-nested-namespaces",
        // In a container the filter refuses to make any.
        |e| e.nested_namespaces_max == "0" || (e.contained && e.trial.seccomp),
        "the kernel needs CONFIG_SYSCTL, and /proc/sys must be writable where mosaic runs",
    ),
    where_possible("init-hidden", |e| e.trial.hidden),
    where_possible("signals-scoped", |e| e.trial.signals),
];

/// What makes user namespaces impossible, as far as settings can.
pub const HELP_USER_NAMESPACE: &str = "the sysctls user.max_user_namespaces must be above 0 and kernel.unprivileged_userns_clone 1 where it exists; on Ubuntu kernel.apparmor_restrict_unprivileged_userns must be 0 or a profile allow it; a container's seccomp profile must allow unshare";

const fn always(name: &'static str, holds: fn(&Evidence) -> bool, help: &'static str) -> Primitive {
    Primitive { name, process: Need::Always, docker: Need::Always, pod: Need::Always, holds, help }
}

const fn unless_allowed(name: &'static str, holds: fn(&Evidence) -> bool, help: &'static str) -> Primitive {
    Primitive { name, process: Need::UnlessAllowed, docker: Need::UnlessAllowed, pod: Need::UnlessAllowed, holds, help }
}

const fn where_possible(name: &'static str, holds: fn(&Evidence) -> bool) -> Primitive {
    Primitive { name, process: Need::WherePossible, docker: Need::WherePossible, pod: Need::WherePossible, holds, help: "" }
}

/// Enters a user namespace in which an ordinary user may make the other namespaces and mounts: the launcher itself is in it, and what it
/// makes belongs to it. The agent's own is made within, so that no capability that could be had inside reaches a mount.
/// # Errors
/// The kernel or a setting refuses user namespaces.
pub fn enter_outer_user_namespace(uid: u32, gid: u32) -> Result<(), String> {
    // A program that its user may execute but not read is not dumpable, and its files in /proc are root's then.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
    unshare_user()?;
    for (file, text) in [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))] {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("failed to write my {file}: {e}: {HELP_USER_NAMESPACE}"))?;
    }
    Ok(())
}

fn unshare_user() -> Result<(), String> {
    // SAFETY: one thread only, and no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .map_err(|e| format!("failed to make a user namespace: {e}: {HELP_USER_NAMESPACE}"))
}

/// Enters a user namespace of its own. Its ids are mapped by the launcher; until then nobody is anybody in it.
/// # Errors
/// The kernel or a setting refuses user namespaces.
pub fn enter_user_namespace(unprivileged: bool) -> Result<(), String> {
    // An ordinary user cannot leave its groups; there is nothing of theirs in the sandbox.
    if !unprivileged {
        rustix::thread::set_thread_groups(&[]).map_err(|e| format!("failed to drop all groups: {e}"))?;
    }
    // Kernels without keyrings have nothing to leave.
    let _ = system::join_empty_keyring();
    unshare_user()
}

/// Becomes the sandbox's user, for ever and without any capability. The ids must be mapped.
/// # Errors
/// Says what the kernel refused.
pub fn drop_privileges(spec: &LaunchSpec) -> Result<(), String> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(|e| format!("failed to forbid core dumps: {e}"))?;
    for kind in INNER_NAMESPACES {
        // Kernels without one of the kinds cannot make it either; `PRIMITIVES` looks at the one that matters.
        let _ = fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), "0");
    }
    for number in 0..=CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    let (uid, gid) = (rustix::process::Uid::from_raw(spec.uid), rustix::process::Gid::from_raw(spec.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| format!("failed to become group {}: {e}", spec.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| format!("failed to become user {}: {e}", spec.uid))?;
    rustix::thread::clear_ambient_capability_set().map_err(|e| format!("failed to drop ambient capabilities: {e}"))?;
    let empty =
        CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, empty).map_err(|e| format!("failed to drop capabilities: {e}"))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| format!("failed to refuse new privileges: {e}"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| format!("failed to hide memory: {e}"))
}

/// The namespaces in which every Linux begins and that have the same inode everywhere (`include/linux/proc_ns.h`).
#[must_use]
pub fn first_namespaces() -> Vec<(String, u64)> {
    let known = [("ipc", 0xEFFF_FFFF), ("uts", 0xEFFF_FFFE), ("user", 0xEFFF_FFFD), ("pid", 0xEFFF_FFFC)];
    known.map(|(kind, inode)| (kind.to_owned(), inode)).into()
}

/// Inodes of the launcher's namespaces, to compare with.
/// # Errors
/// `/proc` cannot be read.
pub fn host_namespaces() -> Result<Vec<(String, u64)>, String> {
    let look = |kind: &str| system::namespace_of("self", kind).map(|inode| (kind.to_owned(), inode));
    NAMESPACES.into_iter().map(look).collect::<Result<_, _>>().map_err(|e| format!("failed to look at my namespaces: {e}"))
}

/// What was seen from inside.
pub struct Evidence {
    host: Vec<(String, u64)>,
    mine: Vec<(String, u64)>,
    status: String,
    uid_map: String,
    uid: u32,
    gid: u32,
    unprivileged: bool,
    contained: bool,
    pod: bool,
    closed: bool,
    pid: i32,
    interfaces: Vec<String>,
    root_is_read_only: bool,
    dumpable: bool,
    core_bytes_max: Option<u64>,
    nested_namespaces_max: String,
    trial: Trial,
    landlock_missing: Option<String>,
}

impl Evidence {
    /// Looks, and tries.
    /// # Errors
    /// Something could not be looked at: nothing may start.
    pub fn collect(host: Vec<(String, u64)>, spec: &LaunchSpec, confinement: &Confinement, closed: bool) -> Result<Self, String> {
        let read = |path: &str| system::read_small(path).map_err(|e| format!("failed to read {path}: {e}"));
        let devices = read("/proc/net/dev")?;
        let name_of = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
        let root = rustix::fs::statvfs("/").map_err(|e| format!("failed to look at /: {e}"))?;
        Ok(Self {
            host,
            mine: host_namespaces()?,
            status: read("/proc/self/status")?,
            uid_map: read("/proc/self/uid_map")?,
            uid: spec.uid,
            gid: spec.gid,
            unprivileged: spec.unprivileged,
            contained: spec.contained,
            pod: spec.pod,
            closed,
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            interfaces: devices.lines().filter_map(name_of).collect(),
            root_is_read_only: root.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            dumpable: rustix::process::dumpable_behavior() != Ok(DumpableBehavior::NotDumpable),
            core_bytes_max: rustix::process::getrlimit(Resource::Core).maximum,
            nested_namespaces_max: read("/proc/sys/user/max_user_namespaces")?.trim().to_owned(),
            trial: Trial::run(confinement).map_err(|e| format!("failed to try what is forbidden: {e}"))?,
            landlock_missing: confinement.landlock_missing.clone(),
        })
    }

    fn is_new(&self, kind: &str) -> bool {
        let find = |list: &[(String, u64)]| list.iter().find(|(k, _)| *k == kind).map(|(_, inode)| *inode);
        match (find(&self.host), find(&self.mine)) {
            (Some(host), Some(mine)) => host != mine,
            // Of a pod's host only those are known that are the same on every host; there is no pod without the others.
            (None, Some(_)) => self.pod,
            (_, None) => false,
        }
    }

    fn status_field(&self, name: &str) -> &str {
        let value_of = |line: &'_ str| -> Option<usize> { line.strip_prefix(name)?.strip_prefix(':').map(str::len) };
        self.status.lines().find_map(|line| value_of(line).map(|length| line[line.len() - length..].trim())).unwrap_or_default()
    }

    fn has_single_id(&self) -> bool {
        let uid = self.uid.to_string();
        self.uid_map.split_whitespace().eq([uid.as_str(), uid.as_str(), "1"])
    }

    fn has_own_ids(&self) -> bool {
        let all = |field: &str, id: u32| self.status_field(field).split_whitespace().all(|text| text.parse() == Ok(id));
        // Groups that an ordinary user could not leave are shown as nobody's.
        let nobody = if self.unprivileged { OVERFLOW_ID } else { self.gid };
        // An engine names the group once more.
        let is_own = self.unprivileged || self.contained;
        let is_nobodys = |text: &str| is_own && [Ok(self.gid), Ok(nobody)].contains(&text.parse());
        self.uid != 0 && all("Uid", self.uid) && all("Gid", self.gid) && self.status_field("Groups").split_whitespace().all(is_nobodys)
    }

    fn has_no_capabilities(&self) -> bool {
        let is_empty = |field: &&str| u64::from_str_radix(self.status_field(field), 16) == Ok(0);
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(is_empty)
    }

    /// What the trial found.
    #[must_use]
    pub fn trial(&self) -> Trial {
        self.trial
    }

    /// Names of what is in force.
    /// # Errors
    /// A primitive is not in force, and the operator has not allowed that. Says what helps.
    pub fn isolation(&self, allow_missing: &[String]) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        for Primitive { name, process, docker, pod, holds, help } in PRIMITIVES {
            let need = match (self.pod, self.contained) {
                (true, _) => pod,
                (false, true) => docker,
                (false, false) => process,
            };
            let may_miss = matches!(need, Need::WherePossible | Need::Never) || may_miss(name, allow_missing);
            if holds(self) {
                names.push((*name).to_owned());
            } else if !may_miss {
                let detail = self.landlock_missing.as_ref().filter(|_| *name == "landlock").map(|text| format!(" ({text})"));
                return Err(format!("isolation is not in force: {name}{}: {help}", detail.unwrap_or_default()));
            }
        }
        Ok(names)
    }
}
