//! A state folder, a remote with a history, and what an agent and a person would do by hand.

use k8s_openapi::jiff::Timestamp;
use mosaic::api::names::{Attempt, Branch, CommitId, Namespace, Uid};
use mosaic::plan::observed::{Integrated, Pushed, Snapshot};
use mosaic::workspace::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Overlays, device nodes and files of other users need root; everything else is tested as whoever runs this.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn sandbox_uid() -> u32 {
    if is_root() { 64_100 } else { rustix::process::geteuid().as_raw() }
}

pub struct World {
    pub ws: Workspaces,
    pub repos: PathBuf,
    pub state: PathBuf,
    pub remote: String,
    _folder: Option<Folder>,
}

/// Unmounts what a failed test left, so that its folder can go.
pub struct Folder(pub tempfile::TempDir);

impl Drop for Folder {
    fn drop(&mut self) {
        for mount in mounts_below(self.0.path()) {
            Command::new("umount").arg("-l").arg(mount).status().ok();
        }
    }
}

pub fn git(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("git")
        .args(["-c", "safe.directory=*", "-c", "user.name=Person", "-c", "user.email=person@example.org", "-c", "init.defaultBranch=main"])
        .args(["-c", "commit.gpgsign=false", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

pub fn git_ok(folder: &Path, arguments: &[&str]) -> String {
    let output = git(folder, arguments);
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub fn mounts_below(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " ").replace("\\134", "\\"));
    points.filter(|point| Path::new(point).starts_with(folder)).collect()
}

pub fn branch(name: &str) -> Branch {
    Branch::new(name).unwrap()
}

pub fn namespace() -> Namespace {
    Namespace::new("default").unwrap()
}

pub fn uid(number: u32) -> Uid {
    Uid::new(format!("{number:08}-0000-4000-8000-000000000000")).unwrap()
}

pub fn date() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

pub fn write(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

pub fn config(state: &Path, repos: &Path, mode: TreeModeWish) -> WorkspaceConfig {
    WorkspaceConfig {
        state: state.to_owned(),
        sandbox_uid: sandbox_uid(),
        sandbox_gid: if is_root() { sandbox_uid() } else { rustix::process::getegid().as_raw() },
        local_repos: vec![repos.to_owned()],
        author_name: "Mosaic".into(),
        author_email: "mosaic@example.org".into(),
        trusted_branches: Vec::new(),
        tree_mode: if is_root() { mode } else { TreeModeWish::Checkout },
        remote_timeout: Duration::from_secs(60),
        remote_silence: Duration::from_secs(30),
        remotes: Vec::new(),
        askpass: PathBuf::from(env!("CARGO_BIN_EXE_mosaic")),
        limits: SnapshotLimits::default(),
        cleanups: mosaic::cleanups::Cleanups::default(),
    }
}

impl World {
    pub fn new(mode: TreeModeWish) -> Self {
        Self::with(mode, |_| {})
    }

    pub fn with(mode: TreeModeWish, change: impl FnOnce(&mut WorkspaceConfig)) -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        let root = folder.0.path().canonicalize().unwrap();
        // Commas, colons, spaces and backslashes are what mount options trip over.
        let (state, repos) = (root.join("st,a:t e\\x"), root.join("repos"));
        for path in [&state, &repos] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
        let remote = repos.join("remote.git");
        git_ok(&repos, &["init", "--bare", "--quiet", "remote.git"]);
        git_ok(&repos, &["clone", "--quiet", "remote.git", "person"]);
        let mut config = config(&state, &repos, mode);
        change(&mut config);
        let world =
            Self { ws: Workspaces::open(config).unwrap(), repos, state, remote: remote.to_str().unwrap().into(), _folder: Some(folder) };
        world.commit(&[
            ("README.md", "one\ntwo\nthree\n"),
            ("src/main.txt", "main\n"),
            ("src/deep/er/file.txt", "deep\n"),
            (".gitignore", "target/\n*.log\n"),
            ("kept.log", "tracked although ignored\n"),
        ]);
        world
    }

    /// What another process made; it stays when this one ends.
    pub fn existing(state: &Path, repos: &Path, mode: TreeModeWish) -> Self {
        let ws = Workspaces::open(config(state, repos, mode)).unwrap();
        let remote = repos.join("remote.git").to_str().unwrap().to_owned();
        Self { ws, repos: repos.to_owned(), state: state.to_owned(), remote, _folder: None }
    }

    pub fn reopen(&mut self, mode: TreeModeWish) {
        self.ws = Workspaces::open(config(&self.state, &self.repos, mode)).unwrap();
    }

    pub fn person(&self) -> PathBuf {
        self.repos.join("person")
    }

    /// A person commits and pushes to main.
    pub fn commit(&self, files: &[(&str, &str)]) -> CommitId {
        let person = self.person();
        for (path, content) in files {
            write(&person.join(path), content);
        }
        self.push_all("change")
    }

    pub fn push_all(&self, message: &str) -> CommitId {
        let person = self.person();
        git_ok(&person, &["add", "-A", "-f"]);
        git_ok(&person, &["commit", "--quiet", "-m", message]);
        git_ok(&person, &["push", "--quiet", "origin", "HEAD:main"]);
        CommitId::new(git_ok(&person, &["rev-parse", "HEAD"])).unwrap()
    }

    pub fn remote_ref(&self, name: &str) -> Option<String> {
        let text = git_ok(&self.repos, &["ls-remote", &self.remote, &format!("refs/heads/{name}")]);
        text.split('\t').next().filter(|sha| !sha.is_empty()).map(str::to_owned)
    }

    /// A file of a commit on the remote, as git has it there.
    pub fn remote_file(&self, name: &str, path: &str) -> String {
        git_ok(Path::new(&self.remote), &["show", &format!("refs/heads/{name}:{path}")])
    }

    pub fn resolve(&self) -> ResolvedRepository {
        self.ws.resolve(&namespace(), &self.remote, None, &branch("mosaic/x")).unwrap()
    }

    pub fn tree_spec(&self, number: u32, base: &CommitId) -> TreeSpec {
        TreeSpec {
            namespace: namespace(),
            repository: self.remote.clone(),
            uid: uid(number),
            agent: format!("default/task-{number}"),
            name: format!("agent-{}-task-{number}", uid(number)),
            attempt: Attempt(1),
            base: base.clone(),
            content: None,
            branch_for_head: branch("mosaic/some/task"),
        }
    }

    /// Resolves and lays out; the base and the tree.
    pub fn tree(&self, number: u32) -> (CommitId, TreePaths) {
        let base = self.resolve().base;
        let paths = self.ws.ensure_tree(&self.tree_spec(number, &base)).unwrap();
        (base, paths)
    }

    pub fn snapshot_spec<'a>(&self, number: u32, base: &CommitId, conflicts: &'a [String]) -> SnapshotSpec<'a> {
        SnapshotSpec {
            namespace: namespace(),
            repository: self.remote.clone(),
            uid: uid(number),
            base: base.clone(),
            conflicts,
            message: "The agent's work".into(),
            date: date(),
        }
    }

    pub fn snapshot(&self, number: u32, base: &CommitId) -> Snapshot {
        self.ws.snapshot(&self.snapshot_spec(number, base, &[])).unwrap()
    }

    pub fn candidate(&self, number: u32, base: &CommitId) -> CommitId {
        match self.snapshot(number, base) {
            Snapshot::Candidate(commit) => commit,
            other => panic!("no candidate: {other:?}"),
        }
    }

    pub fn refused(&self, number: u32, base: &CommitId) -> Vec<String> {
        match self.snapshot(number, base) {
            Snapshot::Refused(lines) => lines,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn integrate(&self, candidate: &CommitId, candidate_base: &CommitId) -> Integrated {
        let spec = IntegrateSpec {
            namespace: namespace(),
            repository: self.remote.clone(),
            base_branch: branch("main"),
            candidate: candidate.clone(),
            candidate_base: candidate_base.clone(),
            message: "Merge".into(),
            date: date(),
        };
        self.ws.integrate(&spec).unwrap()
    }

    pub fn push_spec(&self, number: u32, base: &CommitId, head: &CommitId, target: &str) -> PushSpec {
        PushSpec {
            namespace: namespace(),
            repository: self.remote.clone(),
            uid: uid(number),
            base_branch: branch("main"),
            base: base.clone(),
            head: head.clone(),
            target: branch(target),
            expected_old: None,
        }
    }

    pub fn push(&self, number: u32, base: &CommitId, head: &CommitId, target: &str) -> Pushed {
        self.ws.push(&self.push_spec(number, base, head, target)).unwrap()
    }

    /// `work.git` of the one repository.
    pub fn work(&self) -> PathBuf {
        let mut all = std::fs::read_dir(self.state.join("repositories")).unwrap().map(|entry| entry.unwrap().path());
        all.find(|path| path.is_dir()).unwrap().join("work.git")
    }

    /// Files of a commit in our work repository: mode and path.
    pub fn files_of(&self, commit: &CommitId) -> Vec<String> {
        let text = git_ok(&self.work(), &["ls-tree", "-r", commit.as_str()]);
        text.lines().map(|line| format!("{} {}", &line[..6], line.split('\t').nth(1).unwrap())).collect()
    }

    pub fn file_of(&self, commit: &CommitId, path: &str) -> String {
        String::from_utf8(git(&self.work(), &["show", &format!("{commit}:{path}")]).stdout).unwrap()
    }
}

/// The `git` program as an agent runs it in its tree; the base's objects are where its sandbox would have them.
pub fn agent_git(paths: &TreePaths, arguments: &[&str]) -> Output {
    Command::new("git")
        .args(["-c", "safe.directory=*"])
        .args(arguments)
        .current_dir(&paths.tree)
        .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", quoted(&paths.base_objects))
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

/// A path with a colon must be quoted in that variable.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_str().unwrap().replace('\\', "\\\\"))
}

pub const BOTH: [TreeModeWish; 2] = [TreeModeWish::Overlay, TreeModeWish::Checkout];
