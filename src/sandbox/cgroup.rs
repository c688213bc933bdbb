//! Control groups of runs: finding where they may be made, making, counting, killing and removing them.
//!
//! Each run has one group in every hierarchy that serves it, named from the installation and the run, beneath the group that this program
//! is in: what bounds the controller bounds its agents as well. Version 1 has a hierarchy for each controller, version 2 one for all; a host
//! may have both. Processes are never moved from here: the command enters by itself (`inside::limits`).
//!
//! With version 2 a group whose children have controllers may hold no process. Where this program has its group for itself (a service with
//! `Delegate=yes`, a container) it goes into a child of it; else the groups are made in the hierarchy's root, as container engines do.

use crate::api::names::RunId;
use crate::api::validate::Limits;
use crate::cleanups::{Cleanups, Stray};
use crate::inside::{limits, system};
use crate::sandbox::folder::{hash, short};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Controllers that sandboxes are bounded by.
pub const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Length of the accounting period of a CPU quota.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The least quota that the kernel takes.
const CPU_QUOTA_MICROS_MIN: u64 = 1_000;
/// Weight of a sandbox against the controller and everything else, where 1024 (100 in version 2) is usual: when the CPU is short, an agent
/// waits before the controller does.
const CPU_SHARES: u64 = 256;
const CPU_WEIGHT: u64 = 25;
/// Where this program goes when its group has to have none.
const OWN_GROUP: &str = "mosaic-controller";
/// Length of the id that an engine gives a container.
const CONTAINER_ID_CHARS: usize = 64;
/// Pause between two tries to remove a group whose last process is just going.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// Where groups can be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1: the folder for each controller.
    one: BTreeMap<&'static str, PathBuf>,
    /// Version 2: the folder, and the controllers that children have there. Without any it still serves to kill.
    two: Option<(PathBuf, BTreeSet<&'static str>)>,
    prefix: String,
}

impl Hierarchies {
    /// Looks where groups can be made, and prepares a version 2 hierarchy for it.
    #[must_use]
    pub fn find(installation: &str, state: &Path) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let places = Places::parse(&own, &mounts, &CONTROLLERS);
        // A state folder that was copied has the same installation, but not the same runs.
        let owner = [installation.as_bytes(), state.as_os_str().as_encoded_bytes()].join(&0);
        let prefix = format!("mosaic-{}-", &hash(&owner)[..12]);
        let mut one = places.one;
        one.retain(|_, place| is_writable(place, &format!("{prefix}probe")));
        let mut two = None;
        if let Some((root, own)) = places.two {
            let missing = CONTROLLERS.into_iter().filter(|controller| !one.contains_key(controller));
            two = prepare_two(&root, &own, &missing.collect());
        }
        two = two.filter(|(place, _)| is_writable(place, &format!("{prefix}probe")));
        Self { one, two, prefix }
    }

    /// Whether the runs' groups have this controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.one.contains_key(controller) || self.two.as_ref().is_some_and(|(_, controllers)| controllers.contains(controller))
    }

    /// The groups of a run; nothing is made.
    #[must_use]
    pub fn groups_of(&self, run: &RunId) -> Vec<PathBuf> {
        let name = format!("{}{}", self.prefix, short(run));
        // Hierarchies with several controllers are one place.
        let places: BTreeSet<&PathBuf> = self.one.values().chain(self.two.iter().map(|(place, _)| place)).collect();
        places.into_iter().map(|place| place.join(&name)).collect()
    }

    /// Makes the groups of a run and sets its limits. Those of an earlier try are taken over.
    /// # Errors
    /// The kernel refuses: nothing may be started.
    pub fn make(&self, run: &RunId, limits: &Limits) -> io::Result<()> {
        let name = format!("{}{}", self.prefix, short(run));
        for (controller, place) in &self.one {
            let group = make_folder(&place.join(&name))?;
            match *controller {
                "memory" => set_memory_one(&group, limits)?,
                "pids" => set(&group, "pids.max", u64::from(limits.pids_max))?,
                _ => {
                    set(&group, "cpu.cfs_period_us", CPU_PERIOD_MICROS)?;
                    match set(&group, "cpu.cfs_quota_us", quota_micros(limits)) {
                        // More than the group above has cannot be asked for; that one bounds the run then.
                        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                        outcome => outcome?,
                    }
                    set(&group, "cpu.shares", CPU_SHARES)?;
                }
            }
        }
        if let Some((place, controllers)) = &self.two {
            let group = make_folder(&place.join(&name))?;
            for controller in controllers {
                match *controller {
                    "memory" => {
                        set(&group, "memory.max", limits.memory_bytes)?;
                        set_if_there(&group, "memory.swap.max", 0)?;
                    }
                    "pids" => set(&group, "pids.max", u64::from(limits.pids_max))?,
                    _ => {
                        set(&group, "cpu.max", format!("{} {CPU_PERIOD_MICROS}", quota_micros(limits)))?;
                        set(&group, "cpu.weight", CPU_WEIGHT)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes every group of this installation whose run is not known; what still lives in one is ended first. What is known is asked
    /// after a group was found: who makes one is known before.
    pub fn sweep(&self, known: &dyn Fn() -> BTreeSet<String>, cleanups: &Cleanups) {
        let places: BTreeSet<&PathBuf> = self.one.values().chain(self.two.iter().map(|(place, _)| place)).collect();
        for place in places {
            let names = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let is_ours = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with(&self.prefix));
            let found: Vec<OsString> = names.filter(is_ours).collect();
            let known = if found.is_empty() { continue } else { known() };
            for name in found.iter().filter(|name| !known.contains(&name.to_string_lossy()[self.prefix.len()..])) {
                let group = [place.join(name)];
                kill(&group);
                match remove(&group, Duration::from_secs(1)) {
                    Ok(()) => cleanups.tell(Stray::Group, &group[0].display().to_string()),
                    Err(e) => tracing::warn!(group = %group[0].display(), error = %e, "a control group without a run could not be removed"),
                }
            }
        }
    }
}

fn quota_micros(limits: &Limits) -> u64 {
    (u64::from(limits.cpu_millis) * CPU_PERIOD_MICROS / 1000).max(CPU_QUOTA_MICROS_MIN)
}

fn set_memory_one(group: &Path, limits: &Limits) -> io::Result<()> {
    // With swap the limit would only bound how fast it grows. Kernels that do not count swap do not swap for this group.
    set(group, "memory.limit_in_bytes", limits.memory_bytes)?;
    if !set_if_there(group, "memory.memsw.limit_in_bytes", limits.memory_bytes)? {
        set_if_there(group, "memory.swappiness", 0)?;
    }
    Ok(())
}

fn set(group: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let path = group.join(file);
    fs::write(&path, value.to_string()).map_err(|e| io::Error::new(e.kind(), format!("failed to set {}: {e}", path.display())))
}

fn set_if_there(group: &Path, file: &str, value: u64) -> io::Result<bool> {
    if !group.join(file).exists() {
        return Ok(false);
    }
    set(group, file, value).map(|()| true)
}

fn make_folder(path: &Path) -> io::Result<PathBuf> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(e.kind(), format!("failed to make the control group {}: {e}", path.display())))
        }
        _ => Ok(path.to_owned()),
    }
}

fn is_writable(place: &Path, probe: &str) -> bool {
    let probe = place.join(probe);
    match fs::create_dir(&probe) {
        Ok(()) => {
            let _ = fs::remove_dir(&probe);
            true
        }
        Err(e) => e.kind() == io::ErrorKind::AlreadyExists,
    }
}

/// Ends everything in the groups where the kernel has a file for that (version 2 from 5.14 on); others are killed by their namespace.
pub fn kill(groups: &[PathBuf]) {
    for group in groups {
        // Absent is usual, and what is gone needs no kill.
        let _ =
            fs::OpenOptions::new().write(true).open(group.join("cgroup.kill")).and_then(|mut file| io::Write::write_all(&mut file, b"1"));
    }
}

/// Lets frozen groups of version 1 go on: a SIGKILL reaches what is frozen there only then. Absent is usual.
pub fn thaw(groups: &[PathBuf]) {
    for group in groups {
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(group.join("freezer.state"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"THAWED"));
    }
}

/// The groups of a container by a living process in it: of the controllers that bound sandboxes, the freezer, and version 2. Only what this
/// program sees, and whose name holds the container's id: any other is shared with somebody.
/// # Errors
/// It is gone, or `/proc` cannot be read.
pub fn groups_of_container(pid: i32, id: &str) -> io::Result<Vec<PathBuf>> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let places = Places::parse(&own, &fs::read_to_string("/proc/self/mountinfo")?, &[&CONTROLLERS[..], &["freezer"]].concat());
    let groups = places.one.into_values().chain(places.two.map(|(_, own)| own));
    let is_own = |group: &PathBuf| group.file_name().is_some_and(|name| name.to_string_lossy().contains(id)) && group.is_dir();
    Ok(groups.filter(is_own).collect::<BTreeSet<_>>().into_iter().collect())
}

/// Processes in the groups.
/// # Errors
/// Could not look.
pub fn members(groups: &[PathBuf]) -> io::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for group in groups {
        match fs::read_to_string(group.join("cgroup.procs")) {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Removes the groups of an ended run, waiting a little for what is just going.
/// # Errors
/// Something lives in one.
pub fn remove(groups: &[PathBuf], patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    loop {
        match limits::remove(groups) {
            Err(_) if Instant::now() < until => std::thread::sleep(REMOVE_PAUSE),
            outcome => return outcome,
        }
    }
}

/// Sends SIGKILL to what is in control groups of a container, by the engine's whole id of it.
/// # Errors
/// Could not look, or may not.
pub fn end_members_of_container(id: &str) -> io::Result<()> {
    let is_member = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(id));
    if id.len() != CONTAINER_ID_CHARS {
        return Ok(());
    }
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !is_member(pid) {
            continue;
        }
        let Some(handle) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        // The handle is fixed to one process now; if it is still a member, that is the one.
        if is_member(pid) {
            super::kill::kill(&handle)?;
        }
    }
    Ok(())
}

/// Where this program is, by the kernel's word.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    one: BTreeMap<&'static str, PathBuf>,
    /// Mount point and own group of the version 2 hierarchy.
    two: Option<(PathBuf, PathBuf)>,
}

impl Places {
    /// Reads `/proc/self/cgroup` and `/proc/self/mountinfo`.
    fn parse(own: &str, mounts: &str, controllers: &[&'static str]) -> Self {
        let mut places = Self::default();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
            let (Some(root), Some(point), Some(kind), Some(options)) = (left.get(3), left.get(4), right.first(), right.get(2)) else {
                continue;
            };
            let place = |path: &str| {
                // A container sees the path of its group on the host, or one that leads out of what is mounted.
                let beneath = if *root == "/" { Some(path) } else { path.strip_prefix(root) };
                let beneath = beneath.filter(|path| !path.contains("..")).unwrap_or_default();
                Path::new(point).join(beneath.trim_start_matches('/'))
            };
            for line in own.lines() {
                let mut fields = line.splitn(3, ':');
                let (Some(number), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
                if *kind == "cgroup2" && number == "0" {
                    places.two.get_or_insert_with(|| (PathBuf::from(point), place(path)));
                }
                for controller in controllers.iter().copied() {
                    let has = |list: &str| list.split(',').any(|name| name == controller);
                    if *kind == "cgroup" && has(names) && has(options) {
                        places.one.entry(controller).or_insert_with(|| place(path));
                    }
                }
            }
        }
        places
    }
}

/// Finds a folder of the version 2 hierarchy whose children have the wanted controllers, as many as can be had.
fn prepare_two(root: &Path, own: &Path, wanted: &BTreeSet<&'static str>) -> Option<(PathBuf, BTreeSet<&'static str>)> {
    // Sandboxes that outlive us keep the group above from taking processes: who starts us anew puts us into this child (systemd:
    // `DelegateSubgroup`).
    let own = own.parent().filter(|_| own.ends_with(OWN_GROUP)).unwrap_or(own);
    let offered = controllers_in(&own.join("cgroup.controllers"), wanted);
    if offered.is_empty() {
        return Some((own.to_owned(), BTreeSet::new()));
    }
    if enable(own, &offered) || (is_alone(own) && make_way(own).is_ok() && enable(own, &offered)) {
        return Some((own.to_owned(), offered));
    }
    let offered = controllers_in(&root.join("cgroup.controllers"), wanted);
    Some(if enable(root, &offered) { (root.to_owned(), offered) } else { (own.to_owned(), BTreeSet::new()) })
}

fn controllers_in(file: &Path, wanted: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let text = system::read_small(file).unwrap_or_default();
    wanted.iter().copied().filter(|controller| text.split_whitespace().any(|name| name == *controller)).collect()
}

/// Gives the controllers to the children of a group; false when it cannot.
fn enable(group: &Path, controllers: &BTreeSet<&'static str>) -> bool {
    let words: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    fs::write(group.join("cgroup.subtree_control"), words.join(" ")).is_ok()
}

fn is_alone(group: &Path) -> bool {
    members(&[group.to_owned()]).is_ok_and(|pids| pids.iter().all(|pid| i64::from(*pid) == i64::from(std::process::id())))
}

fn make_way(group: &Path) -> io::Result<()> {
    let own = make_folder(&group.join(OWN_GROUP))?;
    set(&own, "cgroup.procs", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_ONE: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        40 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn members_of_a_container_are_ended_and_nobody_else() {
        let id = hash(b"a container of this test");
        let folder = Path::new("/sys/fs/cgroup/pids").join(&id);
        if fs::create_dir(&folder).is_err() {
            eprintln!("no control groups of version 1 can be made here: not looked at");
            return;
        }
        let sleep = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (mut member, mut other) = (sleep(), sleep());
        fs::write(folder.join("cgroup.procs"), member.id().to_string()).unwrap();
        end_members_of_container(&id[..12]).unwrap();
        assert!(member.try_wait().unwrap().is_none(), "a part of an id is no id");
        end_members_of_container(&id).unwrap();
        assert!(!member.wait().unwrap().success() && other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        remove(&[folder], Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn version_one_places_are_beneath_the_own_group_of_each_controller() {
        let places = Places::parse("4:memory:/service/a\n2:cpuacct,cpu:/b\n1:name=systemd:/c\n0::/d\n", MOUNTS_ONE, &CONTROLLERS);
        assert_eq!(places.one["memory"], Path::new("/sys/fs/cgroup/memory/service/a"));
        assert_eq!(places.one["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct/b"));
        assert_eq!(places.one.get("pids"), None);
        assert_eq!(places.two, Some(("/sys/fs/cgroup/unified".into(), "/sys/fs/cgroup/unified/d".into())));
    }

    #[test]
    fn delegated_group_of_version_two_gives_its_controllers_to_the_runs() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("service");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        let all: BTreeSet<&'static str> = CONTROLLERS.into();
        let (place, controllers) = prepare_two(root.path(), &own, &all).unwrap();
        assert_eq!((&place, &controllers), (&own, &all));
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+cpu +memory +pids");
        // Whoever starts us anew puts us into our own child, because the group above takes no processes any more.
        let child = make_folder(&own.join(OWN_GROUP)).unwrap();
        assert_eq!(prepare_two(root.path(), &child, &all).unwrap().0, own);
        let hierarchies = Hierarchies { one: BTreeMap::new(), two: Some((place, controllers)), prefix: "mosaic-x-".to_owned() };
        let uid = crate::api::names::Uid::new("agent-0001").unwrap();
        let run = RunId { uid, attempt: crate::api::names::Attempt(1), role: crate::api::names::Role::Agent };
        let [group] = <[PathBuf; 1]>::try_from(hierarchies.groups_of(&run)).unwrap();
        fs::create_dir(&group).unwrap();
        fs::write(group.join("memory.swap.max"), "max").unwrap();
        hierarchies.make(&run, &Limits { cpu_millis: 1500, memory_bytes: 1 << 30, pids_max: 77, disk_bytes: 1 }).unwrap();
        let set = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!((set("memory.max"), set("memory.swap.max"), set("pids.max")), ((1 << 30).to_string(), "0".into(), "77".into()));
        assert_eq!((set("cpu.max"), set("cpu.weight")), ("150000 100000".into(), "25".into()));
        fs::write(group.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        fs::write(group.join("pids.events"), "max 5\n").unwrap();
        assert_eq!(limits::count(&[group]), limits::Counters { oom_kills: 2, pids_refused: 5 });
    }

    #[test]
    fn mounted_part_of_a_hierarchy_is_found_in_a_container() {
        let mounts = "40 31 0:40 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let two = |path: &str| Places::parse(&format!("0::{path}\n"), mounts, &CONTROLLERS).two.unwrap().1;
        assert_eq!(two("/docker/abc"), Path::new("/sys/fs/cgroup/"));
        assert_eq!(two("/docker/abc/x"), Path::new("/sys/fs/cgroup/x"));
        assert_eq!(two("/../other"), Path::new("/sys/fs/cgroup/"));
        assert_eq!(Places::parse("0::/\n", "", &CONTROLLERS), Places::default());
    }
}
