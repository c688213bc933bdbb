//! Whose repository a path is, when we are root and it is not root's.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// User and group of a local repository that root should serve as its owner; `None`: serve it as ourselves.
///
/// Only if that user can reach it: a repository beneath a folder that is closed to its owner is still root's to serve.
pub(super) fn other_owner(path: &Path) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let seen = std::fs::symlink_metadata(path).ok()?;
    let (uid, gid) = (seen.uid(), seen.gid());
    let reachable = path.ancestors().all(|part| std::fs::symlink_metadata(part).is_ok_and(|seen| may_enter(&seen, uid, gid)));
    (uid != 0 && reachable).then_some((uid, gid))
}

fn may_enter(seen: &Metadata, uid: u32, gid: u32) -> bool {
    let bit = if seen.uid() == uid {
        0o100
    } else if seen.gid() == gid {
        0o010
    } else {
        0o001
    };
    seen.mode() & bit != 0
}
