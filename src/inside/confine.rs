//! Giving up privileges, and looking from inside what is in force.
//!
//! `PRIMITIVES` is the one table of what a sandbox of this driver is made of: init looks at each before it asks for its grant, and a
//! required one that does not hold ends it. What holds lands in the record's `isolation`; limits are in `limits`.

use crate::inside::system;
use crate::inside::wire::LaunchSpec;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::fs;

/// Namespaces that are new in every sandbox.
pub const NAMESPACES: [&str; 6] = ["user", "pid", "mnt", "net", "ipc", "uts"];
/// No kernel has more capabilities than this.
const CAPABILITIES_MAX: u32 = 63;
/// What no process inside may make, so that it cannot become privileged within namespaces of its own.
const INNER_NAMESPACES: [&str; 8] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];

/// One primitive of isolation.
pub struct Primitive {
    /// Its name in the record.
    pub name: &'static str,
    /// Without it nothing starts.
    pub required: bool,
    /// Looks whether it holds, from inside.
    pub holds: fn(&Evidence) -> bool,
}

/// Everything that isolation is made of.
pub const PRIMITIVES: &[Primitive] = &[
    Primitive { name: "user-namespace", required: true, holds: |e| e.is_new("user") && e.has_single_id() },
    Primitive { name: "pid-namespace", required: true, holds: |e| e.is_new("pid") && e.pid == 1 },
    Primitive { name: "mount-namespace", required: true, holds: |e| e.is_new("mnt") && e.root_is_read_only },
    Primitive { name: "network-namespace", required: true, holds: |e| e.is_new("net") && e.interfaces == ["lo"] },
    Primitive { name: "ipc-namespace", required: true, holds: |e| e.is_new("ipc") },
    Primitive { name: "uts-namespace", required: true, holds: |e| e.is_new("uts") },
    Primitive { name: "unprivileged-uid", required: true, holds: Evidence::has_own_ids },
    Primitive { name: "no-capabilities", required: true, holds: Evidence::has_no_capabilities },
    Primitive { name: "no-new-privileges", required: true, holds: |e| e.status_field("NoNewPrivs") == "1" },
    Primitive { name: "init-not-dumpable", required: true, holds: |e| !e.dumpable },
    Primitive { name: "no-core-dumps", required: true, holds: |e| e.core_bytes_max == Some(0) },
    Primitive { name: "no-nested-namespaces", required: true, holds: |e| e.nested_namespaces_max == "0" },
];

/// Enters a user namespace of its own. Its ids are mapped by the launcher; until then nobody is anybody in it.
/// # Errors
/// The kernel or a setting refuses user namespaces.
pub fn enter_user_namespace() -> Result<(), String> {
    rustix::thread::set_thread_groups(&[]).map_err(|e| format!("failed to drop all groups: {e}"))?;
    // Kernels without keyrings have nothing to leave.
    let _ = system::join_empty_keyring();
    // SAFETY: one thread only, and no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(|e| {
        format!(
            "failed to make a user namespace: {e} (sysctl user.max_user_namespaces must be above 0, kernel.unprivileged_userns_clone 1)"
        )
    })
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

/// Inodes of the launcher's namespaces, to compare with.
/// # Errors
/// `/proc` cannot be read.
pub fn host_namespaces() -> Result<Vec<(&'static str, u64)>, String> {
    let look = |kind| system::namespace_of("self", kind).map(|inode| (kind, inode));
    NAMESPACES.into_iter().map(look).collect::<Result<_, _>>().map_err(|e| format!("failed to look at my namespaces: {e}"))
}

/// What was seen from inside.
pub struct Evidence {
    host: Vec<(&'static str, u64)>,
    mine: Vec<(&'static str, u64)>,
    status: String,
    uid_map: String,
    uid: u32,
    gid: u32,
    pid: i32,
    interfaces: Vec<String>,
    root_is_read_only: bool,
    dumpable: bool,
    core_bytes_max: Option<u64>,
    nested_namespaces_max: String,
}

impl Evidence {
    /// Looks.
    /// # Errors
    /// Something could not be looked at: nothing may start.
    pub fn collect(host: Vec<(&'static str, u64)>, spec: &LaunchSpec) -> Result<Self, String> {
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
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            interfaces: devices.lines().filter_map(name_of).collect(),
            root_is_read_only: root.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            dumpable: rustix::process::dumpable_behavior() != Ok(DumpableBehavior::NotDumpable),
            core_bytes_max: rustix::process::getrlimit(Resource::Core).maximum,
            nested_namespaces_max: read("/proc/sys/user/max_user_namespaces")?.trim().to_owned(),
        })
    }

    fn is_new(&self, kind: &str) -> bool {
        let find = |list: &[(&str, u64)]| list.iter().find(|(k, _)| *k == kind).map(|(_, inode)| *inode);
        matches!((find(&self.host), find(&self.mine)), (Some(host), Some(mine)) if host != mine)
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
        self.uid != 0 && all("Uid", self.uid) && all("Gid", self.gid) && self.status_field("Groups").is_empty()
    }

    fn has_no_capabilities(&self) -> bool {
        let is_empty = |field: &&str| u64::from_str_radix(self.status_field(field), 16) == Ok(0);
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(is_empty)
    }

    /// Names of what is in force.
    /// # Errors
    /// A required primitive is not in force.
    pub fn isolation(&self) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        for primitive in PRIMITIVES {
            if (primitive.holds)(self) {
                names.push(primitive.name.to_owned());
            } else if primitive.required {
                return Err(format!("isolation is not in force: {}", primitive.name));
            }
        }
        Ok(names)
    }
}
