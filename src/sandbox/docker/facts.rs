//! What an engine is and can do, as it says itself; and what speaks against using it.

use crate::sandbox::limits::{Bound, Means};
use crate::sandbox::{Refusal, SandboxError};
use bollard::models::{SystemInfo, SystemVersion};
use std::collections::BTreeSet;

/// What bounds sandboxes of an engine that was not asked yet.
pub(super) const MEANS_UNKNOWN: Means = Means { memory: Bound::None, pids: Bound::None, cpu: Bound::None };
/// First versions without known ways out of a container (CVE-2024-21626; CVE-2025-31133, -52565 and -52881).
const RUNC_SAFE: [[u32; 3]; 3] = [[1, 2, 8], [1, 3, 3], [1, 4, 0]];

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Version of the engine.
    pub version: String,
    /// Version of its API.
    pub api: String,
    /// Version of the runtime that makes containers, as far as it is told.
    pub runc: Option<String>,
    /// Version of the control groups: `1` or `2`.
    pub cgroups: String,
    /// Names of runtimes.
    pub runtimes: BTreeSet<String>,
    /// The usual one.
    pub default_runtime: String,
    /// `seccomp`, `apparmor`, `rootless`, `userns`, `cgroupns`, …
    pub security: BTreeSet<String>,
    /// Whether the default filter of system calls is on.
    pub filters_calls: bool,
    os: String,
    architecture: String,
    memory: bool,
    pids: bool,
    cpu: bool,
}

impl Facts {
    /// Reads what the engine said.
    #[must_use]
    pub fn of(version: SystemVersion, info: SystemInfo) -> Self {
        let components = version.components.unwrap_or_default();
        let runc = components.into_iter().find(|component| component.name == "runc").map(|component| component.version);
        let options = info.security_options.unwrap_or_default();
        let name_of = |option: &String| option.split(',').find_map(|part| part.strip_prefix("name=").map(str::to_owned));
        // Newer engines call the default profile builtin.
        let filters_calls = options.iter().any(|option| option.starts_with("name=seccomp") && !option.contains("profile=unconfined"));
        Self {
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            runc,
            cgroups: info.cgroup_version.map_or_else(|| "1".to_owned(), |version| version.to_string()),
            runtimes: info.runtimes.unwrap_or_default().into_keys().collect(),
            default_runtime: info.default_runtime.unwrap_or_default(),
            security: options.iter().filter_map(name_of).collect(),
            filters_calls,
            os: version.os.or(info.os_type).unwrap_or_default(),
            architecture: version.arch.unwrap_or_default(),
            memory: info.memory_limit.unwrap_or_default(),
            pids: info.pids_limit.unwrap_or_default(),
            cpu: info.cpu_cfs_quota.unwrap_or_default() && info.cpu_cfs_period.unwrap_or_default(),
        }
    }

    /// Operating system and machine, as images name them.
    #[must_use]
    pub fn machine(&self) -> (String, String) {
        (self.os.clone(), self.architecture.clone())
    }

    /// What bounds sandboxes.
    #[must_use]
    pub fn means(&self) -> Means {
        let by = |has: bool| if has { Bound::Kernel } else { Bound::None };
        Means { memory: by(self.memory), pids: by(self.pids), cpu: by(self.cpu) }
    }

    /// Why this engine cannot be used with our files; `None`: nothing speaks against it.
    #[must_use]
    pub fn refusal(&self, host: &str) -> Option<String> {
        let has = |name: &str| self.security.contains(name);
        if self.os != "linux" {
            return Some(format!("the engine at {host} runs containers of {}, and sandboxes need Linux", self.os));
        }
        let remaps = [("rootless", "it is rootless"), ("userns", "it remaps user ids (userns-remap)")];
        let (_, why) = remaps.into_iter().find(|(name, _)| has(name))?;
        Some(format!("the engine at {host} sees our files under other ids: {why}; use an engine of the system without that"))
    }

    /// Whether the engine has a runtime.
    /// # Errors
    /// `RuntimeNotFound`, with those that it has.
    pub fn check_runtime(&self, runtime: Option<&str>, host: &str) -> Result<(), SandboxError> {
        match runtime {
            Some(name) if !self.runtimes.contains(name) => {
                let known: Vec<&str> = self.runtimes.iter().map(String::as_str).collect();
                let message = format!("the engine at {host} has no runtime {name:?}; it has {}", known.join(", "));
                Err(SandboxError::Refused { why: Refusal::RuntimeNotFound, message })
            }
            _ => Ok(()),
        }
    }

    /// The runtime's version, when there are known ways out of its containers.
    #[must_use]
    pub fn known_escape(&self) -> Option<&str> {
        let version = self.runc.as_deref()?;
        let numbers: Vec<u32> = version.split(|c: char| !c.is_ascii_digit()).take(3).filter_map(|part| part.parse().ok()).collect();
        let numbers = [*numbers.first()?, *numbers.get(1)?, *numbers.get(2)?];
        let is_candidate = version.contains("rc");
        let is_safe =
            RUNC_SAFE.iter().any(|safe| numbers[..2] == safe[..2] && numbers >= *safe) || numbers > RUNC_SAFE[RUNC_SAFE.len() - 1];
        (!is_safe || is_candidate).then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_with_known_escapes_are_told() {
        let escapes = |runc: &str| {
            let facts = Facts { runc: Some(runc.to_owned()), ..Facts::of(SystemVersion::default(), SystemInfo::default()) };
            facts.known_escape().is_some()
        };
        for version in ["1.1.5+ds1", "1.1.11", "1.1.12", "1.2.7", "1.3.2", "1.4.0-rc.2"] {
            assert!(escapes(version), "{version}");
        }
        for version in ["1.2.8", "1.3.3", "1.3.10", "1.4.0", "1.5.0", "2.0.0"] {
            assert!(!escapes(version), "{version}");
        }
    }

    #[test]
    fn engines_that_see_other_ids_are_refused() {
        let mut info = SystemInfo { security_options: Some(vec!["name=seccomp,profile=default".to_owned()]), ..SystemInfo::default() };
        let version = SystemVersion { os: Some("linux".to_owned()), ..SystemVersion::default() };
        assert_eq!(Facts::of(version.clone(), info.clone()).refusal("x"), None);
        for name in ["rootless", "userns"] {
            info.security_options = Some(vec![format!("name={name}")]);
            assert!(Facts::of(version.clone(), info.clone()).refusal("x").is_some());
        }
        assert!(Facts::of(SystemVersion { os: Some("windows".to_owned()), ..version }, SystemInfo::default()).refusal("x").is_some());
    }
}
