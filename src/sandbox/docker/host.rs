//! Paths as the engine's host sees them.
//!
//! The engine mounts by its host's paths. On the host they are ours; in a container of that engine they are what our own mounts say. Nothing
//! else makes a `HostPath`, so that no path of ours reaches the engine by mistake. That the mapping is right is proven by a container that
//! reads what we wrote (`drivers::proof`).

use bollard::models::MountPoint;
use std::path::{Path, PathBuf};

/// A path as the engine's host sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPath(String);

impl HostPath {
    /// For the engine.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How our paths are called on the engine's host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    /// Folders of ours, and what each is there; `None`: all are the same.
    mounts: Option<Vec<(PathBuf, PathBuf)>>,
}

impl HostPaths {
    /// We are on that host.
    #[must_use]
    pub fn same() -> Self {
        Self { mounts: None }
    }

    /// We are in a container with these mounts.
    #[must_use]
    pub fn of_container(mounts: Vec<MountPoint>) -> Self {
        let pair = |mount: MountPoint| {
            Some((PathBuf::from(mount.destination?), PathBuf::from(mount.source.filter(|path| path.starts_with('/'))?)))
        };
        Self { mounts: Some(mounts.into_iter().filter_map(pair).collect()) }
    }

    /// The path there of a path of ours; `None`: it is in none of our mounts, so the host does not have it, or it is no text.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<HostPath> {
        let there = match &self.mounts {
            None => path.to_owned(),
            Some(mounts) => {
                let (inner, outer) =
                    mounts.iter().filter(|(inner, _)| path.starts_with(inner)).max_by_key(|(inner, _)| inner.components().count())?;
                let rest = path.strip_prefix(inner).ok()?;
                if rest.as_os_str().is_empty() { outer.clone() } else { outer.join(rest) }
            }
        };
        there.to_str().filter(|text| text.starts_with('/')).map(|text| HostPath(text.to_owned()))
    }
}

/// The id of the container that we run in; `None`: we are in none.
#[must_use]
pub fn own_container() -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    id_in(&mounts)
}

/// Engines mount `/etc/hostname` from the folder of the container, which has its id as name.
fn id_in(mounts: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/etc/hostname"))?;
    let root = line.split(' ').nth(3)?;
    let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
    root.split('/').find(is_id).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, destination: &str) -> MountPoint {
        MountPoint { source: Some(source.to_owned()), destination: Some(destination.to_owned()), ..MountPoint::default() }
    }

    #[test]
    fn the_innermost_mount_says_where_a_path_is_on_the_host() {
        let paths = HostPaths::of_container(vec![
            mount("/srv/mosaic", "/var/lib/mosaic"),
            mount("/fast/trees", "/var/lib/mosaic/trees"),
            mount("", "/run"),
        ]);
        let of = |path: &str| paths.of(Path::new(path)).map(|path| path.as_str().to_owned());
        assert_eq!(of("/var/lib/mosaic"), Some("/srv/mosaic".to_owned()));
        assert_eq!(of("/var/lib/mosaic/runs/1"), Some("/srv/mosaic/runs/1".to_owned()));
        assert_eq!(of("/var/lib/mosaic/trees/a"), Some("/fast/trees/a".to_owned()));
        assert_eq!((of("/var/lib/mosaic-other"), of("/etc/x"), of("/run/x")), (None, None, None));
        assert_eq!(HostPaths::same().of(Path::new("/a/b")).unwrap().as_str(), "/a/b");
        assert_eq!(HostPaths::same().of(Path::new("a/b")), None);
    }

    #[test]
    fn own_container_is_told_by_the_mount_of_its_host_name() {
        let id = "0123456789abcdef".repeat(4);
        let line = |root: &str| format!("700 690 254:0 {root} /etc/hostname rw,relatime - ext4 /dev/vda rw\n");
        assert_eq!(id_in(&line(&format!("/var/lib/docker/containers/{id}/hostname"))), Some(id));
        assert_eq!(id_in(&line("/etc/hostname")), None);
        assert_eq!(id_in("22 1 254:0 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
