//! Sandboxes that the kernel shows and no folder tells of: somebody emptied or removed the folder of their run while no controller remembers
//! them. They are known by what is mounted in them: `/mosaic/out` is the folder of a run of this state folder, whatever became of it since.

use crate::inside::system;
use crate::inside::wire::{FOLDER_OUT, Identity, OUT_INSIDE};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    /// Its init.
    pub(super) identity: Identity,
    /// Name that its run's folder has or had.
    pub(super) folder: String,
    /// What is mounted in it, as the kernel says: the paths of its tree and HOME are among that.
    pub(super) mounts: String,
}

/// Looks at every process of the host; sandboxes in a `known` pid namespace are left out.
/// # Errors
/// Could not look.
pub(super) fn find(state: &Path, known: &BTreeSet<u64>) -> io::Result<Vec<Lost>> {
    let runs = within_its_file_system(&fs::canonicalize(state)?.join("runs"))?;
    let mut looked = known.clone();
    looked.insert(system::namespace_of("self", "pid")?);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // What ends while we look is none, and what we may not look at is no sandbox of ours.
        let Ok(namespace) = system::namespace_of(&pid.to_string(), "pid") else { continue };
        if looked.contains(&namespace) {
            continue;
        }
        let Ok(mounts) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        looked.insert(namespace);
        let Some(folder) = folder_of(&mounts, &runs) else { continue };
        if let Some(identity) = init_of(namespace)? {
            found.push(Lost { identity, folder, mounts });
        }
    }
    Ok(found)
}

/// The path of a folder as mounts name it: from the root of its file system.
fn within_its_file_system(path: &Path) -> io::Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = escaped(path);
    let within = |line: &str| {
        let (root, point) = root_and_point(line)?;
        let rest = path.strip_prefix(point.trim_end_matches('/'))?;
        // The last of the longest covers the others.
        rest.starts_with('/').then(|| (point.len(), format!("{}{rest}", root.trim_end_matches('/'))))
    };
    let found = mounts.lines().filter_map(within).max_by_key(|(length, _)| *length);
    found.map(|(_, path)| path).ok_or_else(|| io::Error::other("the state folder is on no mounted file system"))
}

/// As the kernel writes paths in lists.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

fn root_and_point(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split(' ').skip(3);
    Some((fields.next()?, fields.next()?))
}

/// Name of the run's folder that is mounted where a sandbox has it. One that was removed is told as such behind its path.
fn folder_of(mounts: &str, runs: &str) -> Option<String> {
    mounts.lines().filter_map(root_and_point).filter(|(_, point)| *point == OUT_INSIDE).find_map(|(root, _)| {
        let (folder, rest) = root.strip_prefix(runs)?.strip_prefix('/')?.split_once('/')?;
        rest.starts_with(FOLDER_OUT).then(|| folder.to_owned())
    })
}

/// PID 1 of a namespace; `None`: it has ended.
fn init_of(namespace: u64) -> io::Result<Option<Identity>> {
    for pid in crate::sandbox::kill::members(namespace)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let own = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        if own.and_then(|numbers| numbers.split_whitespace().last()) == Some("1") {
            return system::identity_of(pid).map(Some).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(e) });
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_told_by_what_is_mounted_although_it_is_gone() {
        let mounts = "22 1 254:0 / / ro - ext4 /dev/vda rw\n\
                      31 22 254:0 /srv/state/trees/a/home /home/agent rw - ext4 /dev/vda rw\n\
                      32 22 254:0 /srv/state/runs/0123456789abcdef/out//deleted /mosaic/out rw - ext4 /dev/vda rw\n";
        assert_eq!(folder_of(mounts, "/srv/state/runs").as_deref(), Some("0123456789abcdef"));
        assert_eq!(folder_of(mounts, "/srv/other/runs"), None, "another state folder's");
        assert_eq!(folder_of(&mounts.replace("/mosaic/out", "/mnt"), "/srv/state/runs"), None, "somebody who looks at it");
    }

    #[test]
    fn a_path_is_told_from_the_root_of_its_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = within_its_file_system(&folder.path().canonicalize().unwrap()).unwrap();
        assert!(path.ends_with(&escaped(folder.path().file_name().unwrap().as_ref())), "{path}");
    }
}
