//! The two bare repositories per (namespace, remote), both the controller's own and made by libgit2.
//!
//! `base.git` holds only what was fetched from the remote; sandboxes see its objects read-only. `work.git` borrows from it and holds
//! candidates, merges and rescues; no sandbox sees it. Neither is ever collected: what a record names must stay.

use super::Workspaces;
use super::address::{self, Remote};
use super::error::{WorkspaceError, git, io};
use super::files;
use crate::api::names::{CommitId, Namespace};
use crate::cleanups::{Cleanups, Stray};
use git2::{ObjectType, Odb, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags, Signature, Time};
use k8s_openapi::jiff::Timestamp;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Most bytes of a commit message.
const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Up to so many new objects are synced one by one; beyond, the whole file system is.
const SYNC_EACH_MAX: usize = 500;
/// Threads that make objects durable at once.
const SYNC_THREADS: usize = 8;

/// The two repositories of one remote in one namespace.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// Folder name of both.
    pub(super) hash: String,
    /// What was fetched.
    pub(super) base: PathBuf,
    /// What was made here.
    pub(super) work: PathBuf,
    /// As the record has it, for messages.
    pub(super) repository: String,
}

/// Settings of libgit2 for the whole process, once.
pub(super) fn prepare_library() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Objects were hashed when they came in (git's index-pack) or were made (here); hashing each again whenever it is read doubles
        // the cost of laying out a tree. The `git` program does not either; every compressed stream still has its checksum.
        git2::opts::strict_hash_verification(false);
        // SAFETY: these change process-wide settings of libgit2 and are called once, before any repository is opened here.
        unsafe {
            // The state folder may belong to another user than the one that the controller runs as (a volume, a container). Only our own
            // bare repositories are ever opened, by their exact path, so the check guards nothing.
            git2::opts::set_verify_owner_validation(false).expect("libgit2 knows this option");
            // No configuration but that of our own repositories counts.
            for level in [git2::ConfigLevel::System, git2::ConfigLevel::Global, git2::ConfigLevel::XDG, git2::ConfigLevel::ProgramData] {
                git2::opts::set_search_path(level, "").expect("libgit2 knows this option");
            }
        }
    });
}

impl Pair {
    /// Where the repositories of a remote are, whether they exist or not.
    pub(super) fn of(workspaces: &Workspaces, namespace: &Namespace, repository: &str) -> Self {
        let spelling = address::spelling(&workspaces.allowed, repository);
        let digest = Sha256::digest(format!("{namespace}\0{spelling}").as_bytes());
        let hash: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self::of_hash(workspaces, &hash, repository)
    }

    /// As [`Pair::of`], from what a tree remembers.
    pub(super) fn of_hash(workspaces: &Workspaces, hash: &str, repository: &str) -> Self {
        let folder = workspaces.folders.repositories.join(hash);
        Self { hash: hash.to_owned(), base: folder.join("base.git"), work: folder.join("work.git"), repository: repository.to_owned() }
    }

    /// Makes both, if they are not there. A half-made one never shows under its name.
    pub(super) fn ensure(&self, workspaces: &Workspaces) -> Result<(), WorkspaceError> {
        workspaces.locks.with(&format!("repository/{}", self.hash), || {
            self.make(&self.base, None)?;
            self.make(&self.work, Some("../../base.git/objects\n"))?;
            // Where a shallow remote ends, our history ends in both.
            match std::os::unix::fs::symlink("../base.git/shallow", self.work.join("shallow")) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(io("link the end of history in", &self.work)(error)),
                _ => Ok(()),
            }
        })
    }

    fn make(&self, path: &Path, alternates: Option<&str>) -> Result<(), WorkspaceError> {
        if path.is_dir() {
            return Ok(());
        }
        let folder = path.parent().expect("a repository is in its own folder");
        files::make_folder(folder).map_err(io("make", folder))?;
        let part = path.with_extension("part");
        crate::beneath::remove_all(folder, &part.file_name().expect("it has a name").to_string_lossy()).map_err(io("remove", &part))?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).no_reinit(true).initial_head("none");
        let made = Repository::init_opts(&part, &options).map_err(git("make a repository", &self.repository))?;
        // Sandboxes read these objects as another user, whatever our umask is.
        let mut config = made.config().map_err(git("configure a repository", &self.repository))?;
        config.set_str("core.sharedRepository", "0644").map_err(git("configure a repository", &self.repository))?;
        for inner in ["objects", "objects/info", "objects/pack"] {
            let inner = part.join(inner);
            std::fs::set_permissions(&inner, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(io("open up", &inner))?;
        }
        if let Some(alternates) = alternates {
            let file = part.join("objects/info/alternates");
            std::fs::write(&file, alternates).map_err(io("write", &file))?;
        }
        std::fs::rename(&part, path).map_err(io("rename", &part))
    }

    /// Opens the base repository.
    pub(super) fn open_base(&self) -> Result<Repository, WorkspaceError> {
        self.open(&self.base)
    }

    /// Opens the work repository, which sees the base's objects too.
    pub(super) fn open_work(&self) -> Result<Repository, WorkspaceError> {
        self.open(&self.work)
    }

    fn open(&self, path: &Path) -> Result<Repository, WorkspaceError> {
        let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::NO_DOTGIT | RepositoryOpenFlags::BARE;
        Repository::open_ext(path, flags, std::iter::empty::<&Path>()).map_err(git("open a repository", &self.repository))
    }

    /// Fetches unless every commit is here already.
    pub(super) fn fetch_missing(&self, workspaces: &Workspaces, remote: &Remote, wanted: &[&CommitId]) -> Result<(), WorkspaceError> {
        if self.base_has(wanted)? {
            return Ok(());
        }
        workspaces.locks.with(&format!("repository/{}", self.hash), || {
            // Somebody else may have fetched them while we waited.
            if self.base_has(wanted)? {
                return Ok(());
            }
            // A fetch that was killed at its deadline may have left locks; nobody else fetches here.
            sweep_locks(&self.base, &workspaces.config.cleanups).map_err(io("sweep", &self.base))?;
            workspaces.git.fetch(&self.base, remote)
        })?;
        match self.base_has(wanted)? {
            true => Ok(()),
            false => {
                let words = "a branch moved while it was fetched, or no branch has the commit any more".to_owned();
                Err(WorkspaceError::Remote { what: "fetch from", repository: self.repository.clone(), words })
            }
        }
    }

    /// Whether every commit was fetched.
    pub(super) fn base_has(&self, wanted: &[&CommitId]) -> Result<bool, WorkspaceError> {
        let base = self.open_base()?;
        Ok(wanted.iter().all(|commit| base.find_commit(oid(commit)).is_ok()))
    }

    /// A commit that must be here.
    pub(super) fn commit<'r>(&self, opened: &'r Repository, commit: &CommitId) -> Result<git2::Commit<'r>, WorkspaceError> {
        opened
            .find_commit(oid(commit))
            .map_err(|_| WorkspaceError::CommitMissing { repository: self.repository.clone(), commit: commit.clone() })
    }

    /// Adds what was tried in this repository.
    pub(super) fn git(&self, what: &'static str) -> impl FnOnce(git2::Error) -> WorkspaceError + use<> {
        git(what, &self.repository)
    }
}

/// Takes away what a killed process left in the repositories: locks of refs and files, half-written objects. Called before anybody works.
pub(super) fn sweep(workspaces: &Workspaces) -> Result<(), WorkspaceError> {
    let repositories = &workspaces.folders.repositories;
    for hash in files::names_in(repositories).map_err(io("read", repositories))? {
        for name in ["base.git", "work.git"] {
            let path = repositories.join(&hash).join(name);
            if !path.is_dir() {
                continue;
            }
            sweep_locks(&path, &workspaces.config.cleanups).map_err(io("sweep", &path))?;
        }
    }
    Ok(())
}

fn sweep_locks(repository: &Path, cleanups: &Cleanups) -> std::io::Result<()> {
    let mut folders = vec![repository.join("refs")];
    let half_written = |name: &str| name.starts_with("tmp_") || name.starts_with("pack_git2_");
    for (folder, is_left) in [
        (repository.to_owned(), (&|name: &str| name.ends_with(".lock")) as &dyn Fn(&str) -> bool),
        (repository.join("objects"), &half_written),
        (repository.join("objects/pack"), &half_written),
    ] {
        for name in files::names_in(&folder)?.iter().filter(|name| is_left(name)) {
            crate::beneath::remove_all(&folder, name)?;
            cleanups.tell(Stray::RepositoryFile, &folder.join(name).display().to_string());
        }
    }
    while let Some(folder) = folders.pop() {
        for name in files::names_in(&folder)? {
            let path = folder.join(&name);
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".lock") {
                crate::beneath::remove_all(&folder, &name)?;
                cleanups.tell(Stray::RepositoryFile, &path.display().to_string());
            }
        }
    }
    Ok(())
}

/// Libgit2's form of a commit id.
pub(super) fn oid(commit: &CommitId) -> Oid {
    Oid::from_str(commit.as_str()).expect("a commit id is 40 hexadecimal digits")
}

/// Our form of an object id.
pub(super) fn commit_id(oid: Oid) -> CommitId {
    CommitId::new(oid.to_string()).expect("libgit2 writes 40 lower-case hexadecimal digits")
}

/// Author and committer of all we make, at a time that the record gives.
pub(super) fn signature(workspaces: &Workspaces, seconds: i64) -> Result<Signature<'static>, WorkspaceError> {
    Signature::new(&workspaces.config.author_name, &workspaces.config.author_email, &Time::new(seconds, 0))
        .map_err(|e| WorkspaceError::Unusable(format!("the author's name or address is not usable: {}", e.message())))
}

/// Seconds of a timestamp, as a commit keeps them.
pub(super) fn seconds(date: Timestamp) -> i64 {
    date.as_second()
}

/// A message as a commit may have it: no control characters, one end of line at its end, capped.
pub(super) fn clean_message(message: &str) -> String {
    let mut out = String::new();
    for c in message.trim().chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()) {
        if out.len() + c.len_utf8() > MESSAGE_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    if out.is_empty() {
        out.push_str("Work of an agent");
    }
    out.push('\n');
    out
}

/// Whether these bytes are that object. Almost all files of a tree are the base's, and this hash takes a third of the time of libgit2's, which
/// looks for crafted collisions as well: to pass for an object that was there before takes a second preimage, which nobody can craft.
fn is_object(kind: ObjectType, bytes: &[u8], id: Oid) -> bool {
    let mut hash = Sha1::new_with_prefix(format!("{kind} {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().as_slice() == id.as_bytes()
}

/// Writes objects into the work repository and remembers which are new, to make them durable before a record names them.
pub(super) struct Writer<'r> {
    odb: Odb<'r>,
    objects: PathBuf,
    repository: String,
    new: BTreeSet<Oid>,
}

impl<'r> Writer<'r> {
    /// A writer into `opened`, which is `pair.work`.
    pub(super) fn new(pair: &Pair, opened: &'r Repository) -> Result<Self, WorkspaceError> {
        let odb = opened.odb().map_err(pair.git("open the objects"))?;
        Ok(Self { odb, objects: pair.work.join("objects"), repository: pair.repository.clone(), new: BTreeSet::new() })
    }

    /// Writes one object, unless it is `known` to exist or is there.
    pub(super) fn put(&mut self, kind: ObjectType, bytes: &[u8], known: Option<Oid>) -> Result<Oid, WorkspaceError> {
        if let Some(known) = known.filter(|known| is_object(kind, bytes, *known)) {
            return Ok(known);
        }
        let id = Oid::hash_object(kind, bytes).map_err(git("hash an object", &self.repository))?;
        if self.odb.exists(id) {
            return Ok(id);
        }
        self.odb.write(kind, bytes).map_err(git("write an object", &self.repository))?;
        self.new.insert(id);
        Ok(id)
    }

    /// Writes a commit.
    pub(super) fn commit(
        &mut self,
        opened: &Repository,
        signature: &Signature<'_>,
        message: &str,
        tree: Oid,
        parents: &[&git2::Commit<'_>],
    ) -> Result<CommitId, WorkspaceError> {
        let tree = opened.find_tree(tree).map_err(git("find a tree", &self.repository))?;
        let buffer =
            opened.commit_create_buffer(signature, signature, message, &tree, parents).map_err(git("make a commit", &self.repository))?;
        Ok(commit_id(self.put(ObjectType::Commit, &buffer, None)?))
    }

    /// Notes what libgit2 itself may have written of a merged tree: all that differs from one of its sides.
    pub(super) fn note_tree(&mut self, opened: &Repository, tree: Oid, side: &git2::Commit<'_>) -> Result<(), WorkspaceError> {
        let failed = || git("read a tree", &self.repository);
        let mut pairs = vec![(tree, side.tree().ok())];
        while let Some((id, old)) = pairs.pop() {
            self.new.insert(id);
            for entry in &opened.find_tree(id).map_err(failed())? {
                let before = old.as_ref().and_then(|old| old.get_name_bytes(entry.name_bytes()));
                if before.as_ref().is_some_and(|before| before.id() == entry.id()) {
                    continue;
                }
                match entry.kind() {
                    Some(ObjectType::Tree) => pairs.push((entry.id(), before.and_then(|before| opened.find_tree(before.id()).ok()))),
                    _ => {
                        self.new.insert(entry.id());
                    }
                }
            }
        }
        Ok(())
    }

    /// Sees to it that a loss of power takes nothing of it away.
    pub(super) fn sync(self) -> Result<(), WorkspaceError> {
        if self.new.len() > SYNC_EACH_MAX {
            let folder = crate::beneath::open_folder(&self.objects).map_err(io("open", &self.objects))?;
            return rustix::fs::syncfs(folder).map_err(io("sync", &self.objects));
        }
        // Side by side, because a journal writes what waits for it in one go.
        let ids: Vec<Oid> = self.new.into_iter().collect();
        let objects = &self.objects;
        std::thread::scope(|scope| {
            let parts = ids.chunks(ids.len().div_ceil(SYNC_THREADS).max(1));
            let started: Vec<_> = parts.map(|part| scope.spawn(move || part.iter().try_for_each(|id| sync_object(objects, *id)))).collect();
            started.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
        })
    }
}

fn sync_object(objects: &Path, id: Oid) -> Result<(), WorkspaceError> {
    let text = id.to_string();
    let path = objects.join(&text[..2]).join(&text[2..]);
    match std::fs::File::open(&path) {
        Ok(file) => file.sync_all().map_err(io("sync", &path)),
        // It was there before, in a pack or in the base.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io("open", &path)(error)),
    }
}
