//! What the engine is asked to make, and whether it did.
//!
//! Every mount is named here, from the run's own folders and the operator's tool roots; nothing in a spec leads to one, and none may lead to
//! the engine's socket. `Mounts`, never `Binds`: a source that is not there must fail. What is asked for is compared with what the engine says
//! it made before anything starts: an engine that leaves something out (a limit that its kernel lacks, an option that it is too old for) makes
//! no sandbox.

use super::host::HostPaths;
use super::image::FoundImage;
use super::not_shared;
use crate::api::validate::Limits;
use crate::inside::limits::OPEN_FILES_MAX;
use crate::inside::wire::{
    BASE_OBJECTS_INSIDE, CONTROL_INSIDE, FILE_TASK, FOLDER_CONTROL, FOLDER_LINK, FOLDER_OUT, HOME, INIT_INSIDE, LaunchSpec, OUT_INSIDE,
    ToolMount, USER, WORKSPACE,
};
use crate::sandbox::config::{SandboxConfig, SandboxIds};
use crate::sandbox::limits::{Bound, Means, tmp_bytes_max};
use crate::sandbox::{Refusal, SandboxError};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountPoint, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// init is one of the container's processes.
pub(super) const PIDS_OF_INIT: u64 = 1;
/// How much sooner than others everything in a container is ended when memory runs out (-1000 to 1000).
const OOM_SCORE: i64 = 500;
/// Weight of a container against everything else when the CPU is short, where 1024 is usual: an agent waits before the controller does.
const CPU_SHARES: i64 = 256;
/// Size of the small writable places that programs expect.
const SMALL_BYTES_MAX: u64 = 16 << 20;
/// Size of what only holds a place for a mount that comes later.
const PLACE_BYTES_MAX: u64 = 4096;
/// A tmpfs has one inode for so many bytes of its size: its inodes are memory as well.
const TMPFS_BYTES_PER_INODE: u64 = 16 * 1024;

/// Users of a container.
pub(super) fn passwd(ids: &SandboxIds) -> String {
    format!(
        "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n{USER}:x:{}:{}::{HOME}:/bin/sh\n",
        ids.uid, ids.gid
    )
}

/// Groups of a container.
pub(super) fn group(ids: &SandboxIds) -> String {
    format!("root:x:0:\nnogroup:x:65534:\n{USER}:x:{}:\n", ids.gid)
}

/// Where the users of containers with these ids are kept.
pub(super) fn passwd_beside(init: &Path, ids: &SandboxIds) -> PathBuf {
    init.with_file_name(format!("passwd-{}-{}", ids.uid, ids.gid))
}

/// Where the groups are.
pub(super) fn group_beside(init: &Path, ids: &SandboxIds) -> PathBuf {
    init.with_file_name(format!("group-{}-{}", ids.uid, ids.gid))
}

/// Places that are held for what is mounted later.
const PLACES_FOR_LATER: [&str; 3] = [WORKSPACE, HOME, BASE_OBJECTS_INSIDE];

/// Everything that a container is made of.
pub(super) struct Plan<'a> {
    pub(super) config: &'a SandboxConfig,
    pub(super) paths: &'a HostPaths,
    /// The copy of init.
    pub(super) init: &'a Path,
    /// The folder of the run, or of what is prepared.
    pub(super) folder: &'a Path,
    pub(super) labels: HashMap<String, String>,
    pub(super) image: &'a FoundImage,
    pub(super) runtime: Option<&'a str>,
    pub(super) limits: &'a Limits,
    pub(super) tools: &'a [ToolMount],
    pub(super) work: Work<'a>,
    /// What the engine can bound: the rest the operator allows to be missing.
    pub(super) means: Means,
    /// Where the engine is, for the words of a refusal.
    pub(super) host: &'a str,
    /// The engine's socket, by its real path.
    pub(super) socket: Option<PathBuf>,
}

/// What an agent works on.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    /// It is known.
    Of(&'a LaunchSpec),
    /// It is mounted later, into the places that are held for it (`graft`).
    Later,
}

impl Plan<'_> {
    /// The request.
    pub(super) fn body(&self) -> Result<ContainerCreateBody, SandboxError> {
        let ids = &self.config.ids;
        let text = str::to_owned;
        Ok(ContainerCreateBody {
            image: Some(self.image.id.clone()),
            user: Some(format!("{}:{}", ids.uid, ids.gid)),
            hostname: Some(text("mosaic")),
            entrypoint: Some(vec![text(INIT_INSIDE), text("contained")]),
            working_dir: Some(text(WORKSPACE)),
            labels: Some(self.labels.clone()),
            // An image's own check would run in the sandbox beside the agent.
            healthcheck: Some(HealthConfig { test: Some(vec![text("NONE")]), ..HealthConfig::default() }),
            stop_signal: Some(text("SIGKILL")),
            host_config: Some(self.host_config()?),
            ..ContainerCreateBody::default()
        })
    }

    fn host_config(&self) -> Result<HostConfig, SandboxError> {
        let limits = self.limits;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let has = |bound: Bound| bound == Bound::Kernel;
        let memory = has(self.means.memory).then(|| number(limits.memory_bytes));
        let ulimit =
            |name: &str, value: u64| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(number(value)), hard: Some(number(value)) };
        Ok(HostConfig {
            mounts: Some(self.mounts()?),
            tmpfs: Some(self.tmpfs()),
            shm_size: Some(number(tmp_bytes_max(limits))),
            memory,
            // Memory and swap together: no swap.
            memory_swap: memory,
            pids_limit: has(self.means.pids).then(|| number(u64::from(limits.pids_max) + PIDS_OF_INIT)),
            nano_cpus: has(self.means.cpu).then(|| i64::from(limits.cpu_millis) * 1_000_000),
            cpu_shares: Some(CPU_SHARES),
            ulimits: Some(vec![ulimit("nofile", OPEN_FILES_MAX), ulimit("core", 0)]),
            oom_score_adj: Some(OOM_SCORE),
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            network_mode: Some("none".to_owned()),
            ipc_mode: Some("private".to_owned()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            init: Some(false),
            auto_remove: Some(false),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            runtime: self.runtime.map(str::to_owned),
            ..HostConfig::default()
        })
    }

    fn tmpfs(&self) -> HashMap<String, String> {
        let (ids, tmp_bytes_max) = (&self.config.ids, tmp_bytes_max(self.limits));
        let options = |size: u64, exec: &str, mode: &str| {
            format!("rw,nosuid,nodev,{exec},size={size},nr_inodes={},mode={mode}", (size / TMPFS_BYTES_PER_INODE).max(1))
        };
        let mut places = HashMap::from([
            ("/tmp".to_owned(), options(tmp_bytes_max, "exec", "1777")),
            ("/var/tmp".to_owned(), options(SMALL_BYTES_MAX, "exec", "1777")),
            ("/run".to_owned(), options(SMALL_BYTES_MAX, "noexec", "1777")),
        ]);
        match self.work {
            Work::Of(LaunchSpec { home: Some(_), .. }) => {}
            Work::Of(LaunchSpec { home: None, .. }) => {
                places.insert(HOME.to_owned(), format!("{},uid={},gid={}", options(tmp_bytes_max, "exec", "0755"), ids.uid, ids.gid));
            }
            Work::Later => places.extend(PLACES_FOR_LATER.map(|place| {
                // Whatever is not mounted over it later shows nothing and takes nothing.
                (place.to_owned(), format!("ro,nosuid,nodev,noexec,size={PLACE_BYTES_MAX},nr_inodes=1,mode=0555"))
            })),
        }
        // A volume of the image would be a folder on the host without a limit.
        for volume in &self.image.volumes {
            places.entry(volume.clone()).or_insert_with(|| options(SMALL_BYTES_MAX, "exec", "1777"));
        }
        places
    }

    fn mounts(&self) -> Result<Vec<Mount>, SandboxError> {
        let folder = self.folder;
        let mut mounts = vec![
            self.mount(self.init, INIT_INSIDE, true)?,
            self.mount(&passwd_beside(self.init, &self.config.ids), "/etc/passwd", true)?,
            self.mount(&group_beside(self.init, &self.config.ids), "/etc/group", true)?,
            self.mount(&folder.join(FOLDER_OUT), OUT_INSIDE, false)?,
            self.mount(&folder.join(FOLDER_LINK), "/mosaic/link", true)?,
            // Read-only still lets init connect.
            self.mount(&folder.join(FOLDER_CONTROL), CONTROL_INSIDE, true)?,
        ];
        if let Work::Of(launch) = self.work {
            mounts.push(self.mount(&launch.tree, WORKSPACE, false)?);
            if let Some(home) = &launch.home {
                mounts.push(self.mount(home, HOME, false)?);
            }
            if let Some(objects) = &launch.base_objects {
                mounts.push(self.mount(objects, BASE_OBJECTS_INSIDE, true)?);
            }
        }
        if folder.join(FILE_TASK).exists() {
            mounts.push(self.mount(&folder.join(FILE_TASK), "/mosaic/task.json", true)?);
        }
        for tool in self.tools {
            mounts.push(self.mount(&tool.host, &tool.inside.to_string_lossy(), true)?);
        }
        Ok(mounts)
    }

    fn mount(&self, source: &Path, target: &str, read_only: bool) -> Result<Mount, SandboxError> {
        let refuse = |message: String| SandboxError::Refused { why: Refusal::FilesNotShared, message };
        let real = shown(source, self.socket.as_deref()).map_err(refuse)?;
        let there = self.paths.of(&real).ok_or_else(|| refuse(not_shared(self.host, &real)))?;
        Ok(Mount {
            typ: Some(MountType::BIND),
            source: Some(there.as_str().to_owned()),
            target: Some(target.to_owned()),
            read_only: Some(read_only),
            ..Mount::default()
        })
    }
}

/// The real path of what a container shall see: a link must not lead elsewhere on the host than here, and none leads to the engine's socket.
pub(super) fn shown(source: &Path, socket: Option<&Path>) -> Result<PathBuf, String> {
    let real = std::fs::canonicalize(source).map_err(|e| format!("cannot show {} to the container: {e}", source.display()))?;
    if socket.is_some_and(|socket| socket.starts_with(&real)) {
        return Err(format!("cannot show {} to the container: the engine's socket is in it", source.display()));
    }
    Ok(real)
}

/// What of the request is not in the container that the engine made; empty: it is as it was asked for.
pub(super) fn differences(wanted: &ContainerCreateBody, seen: &ContainerInspectResponse) -> Vec<String> {
    let (Some(wanted_host), Some(host), Some(config)) = (&wanted.host_config, &seen.host_config, &seen.config) else {
        return vec!["it does not say what it made".to_owned()];
    };
    let mut found = Vec::new();
    let mut same = |name: &str, is_same: bool| {
        if !is_same {
            found.push(format!("{name} is not as asked for"));
        }
    };
    same("the user", config.user == wanted.user);
    same("the program", config.entrypoint == wanted.entrypoint && config.cmd.as_ref().is_none_or(Vec::is_empty));
    same("the read-only root", host.readonly_rootfs == Some(true));
    same("the network", host.network_mode.as_deref() == Some("none"));
    same("the memory limit", wanted_host.memory.is_none() || host.memory == wanted_host.memory);
    same("the limit on processes", wanted_host.pids_limit.is_none() || host.pids_limit == wanted_host.pids_limit);
    same("the CPU limit", wanted_host.nano_cpus.is_none() || host.nano_cpus == wanted_host.nano_cpus);
    same("the limits on resources", sorted(host.ulimits.as_deref()) == sorted(wanted_host.ulimits.as_deref()));
    same(
        "the capabilities",
        host.cap_drop.as_deref().is_some_and(|caps| caps == ["ALL"]) && host.cap_add.as_ref().is_none_or(Vec::is_empty),
    );
    same("the privileges", host.privileged != Some(true));
    same("the security options", security_is_as_asked(host.security_opt.as_deref().unwrap_or_default()));
    same("the log", host.log_config.as_ref().and_then(|log| log.typ.as_deref()) == Some("none"));
    same("the restart policy", host.restart_policy.as_ref().is_none_or(|policy| policy.name != Some(RestartPolicyNameEnum::ALWAYS)));
    same("the runtime", wanted_host.runtime.is_none() || host.runtime == wanted_host.runtime);
    let shared = [host.pid_mode.as_deref(), host.uts_mode.as_deref(), host.userns_mode.as_deref()];
    same("the namespaces", shared.into_iter().flatten().all(|mode| mode != "host") && host.ipc_mode.as_deref() == Some("private"));
    same("the devices", host.devices.as_ref().is_none_or(Vec::is_empty) && host.binds.as_ref().is_none_or(Vec::is_empty));
    same("the mounts", mounts_are_as_asked(wanted_host, seen));
    same(
        "the labels",
        wanted.labels.as_ref().is_none_or(|labels| labels.iter().all(|(key, value)| has_label(config.labels.as_ref(), key, value))),
    );
    found
}

fn has_label(labels: Option<&HashMap<String, String>>, key: &str, value: &str) -> bool {
    labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == value)
}

fn sorted(limits: Option<&[ResourcesUlimits]>) -> Vec<(Option<String>, Option<i64>, Option<i64>)> {
    let mut all: Vec<_> = limits.unwrap_or_default().iter().map(|limit| (limit.name.clone(), limit.soft, limit.hard)).collect();
    all.sort();
    all
}

/// No new privileges, and nothing that an engine takes for "without a filter".
fn security_is_as_asked(options: &[String]) -> bool {
    options.iter().any(|option| option.starts_with("no-new-privileges")) && !options.iter().any(|option| option.contains("unconfined"))
}

/// Every mount that was asked for is there as it was asked for, and no other one of the host's.
fn mounts_are_as_asked(wanted: &HostConfig, seen: &ContainerInspectResponse) -> bool {
    let wanted: Vec<_> = wanted.mounts.iter().flatten().map(|m| (m.target.clone(), m.source.clone(), m.read_only == Some(true))).collect();
    let is_tmpfs = |m: &&MountPoint| m.typ.as_ref().is_some_and(|kind| kind == "tmpfs");
    let seen = seen.mounts.iter().flatten().filter(|m| !is_tmpfs(m));
    let mut seen: Vec<_> = seen.map(|m| (m.destination.clone(), m.source.clone(), m.rw == Some(false))).collect();
    let mut wanted = wanted;
    seen.sort();
    wanted.sort();
    seen == wanted
}
