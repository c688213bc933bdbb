//! Shared checkouts: one commit laid out once, owned by the sandbox user from the start, never written again.
//!
//! `checkouts/<hash>/<key>/root` appears by rename when it is complete. It is not synced: that would wait for whatever else is being
//! written on the file system. It counts only in the boot that it was made in instead, as a loss of power can leave empty files; after a
//! reboot nothing is mounted on it, so it is laid out again, the same, before the first tree is. Agents' overlays stand on it; a few that nobody
//! uses are kept for the next agent, the rest go when a tree is removed. A tree's record names its checkout before it is looked for, and
//! both happen under the checkout's lock, so none is taken away under a tree that is about to stand on it.

use super::Workspaces;
use super::error::{WorkspaceError, io};
use super::files;
use super::layout::Layout;
use super::place::Meta;
use super::repository::Pair;
use super::scratch::Scratch;
use super::types::TreeMode;
use crate::api::names::CommitId;
use crate::cleanups::Stray;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Unused checkouts that are kept per repository.
const UNUSED_MAX: usize = 4;

/// Lays the commit of a tree out in `root` (an empty folder of ours): its files, then its `.git`.
pub(super) fn lay_out(
    workspaces: &Workspaces,
    pair: &Pair,
    root: &Path,
    head: &CommitId,
    content: &CommitId,
) -> Result<(), WorkspaceError> {
    let opened = pair.open_work()?;
    let owner = workspaces.owner;
    // Two seconds ago: an agent's first change then has another time, whole seconds being all that the index compares.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let time = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(2);
    let folder = crate::beneath::open_folder(root).map_err(io("open", root))?;
    rustix::fs::fchmod(&folder, rustix::fs::Mode::from_raw_mode(0o755)).map_err(io("open up", root))?;
    owner.take(&folder).map_err(io("give away", root))?;
    let layout = Layout { pair, opened: &opened, owner, umask: workspaces.umask, time };
    let placed = layout.commit(content, &folder)?;
    let author = (workspaces.config.author_name.as_str(), workspaces.config.author_email.as_str());
    Scratch { pair, opened: &opened, owner, author, head, shown: content, time }.write(root, &placed)
}

/// The shared checkout that a tree stands on; laid out if it is not there.
pub(super) fn ensure(workspaces: &Workspaces, pair: &Pair, meta: &Meta) -> Result<PathBuf, WorkspaceError> {
    let key = meta.checkout_key();
    let folder = workspaces.folders.checkouts.join(&pair.hash);
    let place = folder.join(&key);
    let root = place.join("root");
    workspaces.locks.with(&format!("checkout/{}/{key}", pair.hash), || {
        if root.is_dir() && std::fs::read_to_string(place.join("boot")).is_ok_and(|boot| boot == workspaces.boot) {
            return Ok(root.clone());
        }
        let (part, trash) = (format!(".part-{key}"), format!(".trash-{key}"));
        for name in [&part, &trash] {
            crate::beneath::remove_all(&folder, name).map_err(io("remove", folder.join(name)))?;
        }
        let made = folder.join(&part);
        files::make_folder(&made.join("root")).map_err(io("make", &made))?;
        lay_out(workspaces, pair, &made.join("root"), meta.head(), meta.shown())?;
        std::fs::write(made.join("boot"), &workspaces.boot).map_err(io("write", made.join("boot")))?;
        if place.exists() {
            std::fs::rename(&place, folder.join(&trash)).map_err(io("rename", &place))?;
        }
        std::fs::rename(&made, &place).map_err(io("rename", &made))?;
        crate::beneath::remove_all(&folder, &trash).map_err(io("remove", folder.join(&trash)))?;
        Ok(root.clone())
    })
}

/// Removes checkouts of a repository that no tree stands on, but for the latest few.
pub(super) fn prune(workspaces: &Workspaces, hash: &str) -> Result<(), WorkspaceError> {
    let folder = workspaces.folders.checkouts.join(hash);
    let mut keys = Vec::new();
    for key in files::names_in(&folder).map_err(io("read", &folder))? {
        if !key.starts_with('.') {
            let path = folder.join(&key);
            keys.push((std::fs::metadata(&path).and_then(|seen| seen.modified()).map_err(io("look at", &path))?, key));
        }
    }
    if keys.len() <= UNUSED_MAX {
        return Ok(());
    }
    keys.sort();
    let excess = keys.len() - UNUSED_MAX;
    for (_, key) in keys.into_iter().take(excess) {
        let trash = format!(".trash-{key}");
        workspaces.locks.with(&format!("checkout/{hash}/{key}"), || {
            if is_used(workspaces, hash, &key)? {
                return Ok(());
            }
            crate::beneath::remove_all(&folder, &trash).map_err(io("remove", folder.join(&trash)))?;
            std::fs::rename(folder.join(&key), folder.join(&trash)).map_err(io("rename", folder.join(&key)))
        })?;
        crate::beneath::remove_all(&folder, &trash).map_err(io("remove", folder.join(&trash)))?;
    }
    Ok(())
}

/// Takes away checkouts that a crash left half made or half removed; called once, before anybody works here.
pub(super) fn sweep(workspaces: &Workspaces) -> Result<(), WorkspaceError> {
    let all = &workspaces.folders.checkouts;
    for hash in files::names_in(all).map_err(io("read", all))? {
        let folder = all.join(hash);
        for name in files::names_in(&folder).map_err(io("read", &folder))?.iter().filter(|name| name.starts_with('.')) {
            crate::beneath::remove_all(&folder, name).map_err(io("remove", folder.join(name)))?;
            workspaces.config.cleanups.tell(Stray::Folder, &format!("a checkout that is not whole, {}", folder.join(name).display()));
        }
    }
    Ok(())
}

fn is_used(workspaces: &Workspaces, hash: &str, key: &str) -> Result<bool, WorkspaceError> {
    let metas = super::place::all(workspaces)?;
    Ok(metas.iter().any(|meta| meta.mode == TreeMode::Overlay && meta.hash == hash && meta.checkout_key() == key))
}
