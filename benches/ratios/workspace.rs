//! Workspace: a tree that an agent could start in, over what `git worktree add` takes to lay the same commit out.
//!
//! Floor: the `git` program, `worktree add --quiet --detach <fresh path> <commit>` in a bare, packed repository: files, index, its
//! metadata; no branch, no owner change, no fsync. Ours: `Workspaces::ensure_tree`: the tree's memory on disk before and after (two
//! fsyncs), files or an overlay mount, the agent's own `.git` with an index, its branch, HOME, everything owned by the sandbox user.
//! The overlay's shared checkout is laid out once per commit, before the turns; what that costs is a line of its own.
//!
//! Both sides write to the same file system, into fresh names; nothing is deleted before the very end (on ext4 with `discard` a
//! deletion makes the next creations many times slower). It is synced before each sample, outside the time taken, so that no side waits
//! for pages that the other one wrote.

use crate::table::{Figure, Part, median};
use mosaic::api::names::{Attempt, Branch, CommitId, Namespace, Uid};
use mosaic::workspace::{SnapshotLimits, TreeModeWish, TreeSpec, WorkspaceConfig, Workspaces};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Files of the sample repository.
const FILES: usize = 5000;
/// Bytes of each of its files.
const FILE_BYTES: usize = 5400;
/// Turns.
const TURNS: usize = 9;
/// Trees that exist already in the lines on growth.
const EXISTING: usize = 300;
/// Samples of what takes milliseconds, per turn; their median counts.
const SHORT_SAMPLES: usize = 3;

/// One state folder of ours and one repository of git's, with as many trees each.
pub struct Side {
    /// Ours, by overlay mounts.
    pub overlay: Workspaces,
    /// Ours, by files.
    pub checkout: Workspaces,
    state: PathBuf,
    git: PathBuf,
    worktrees: PathBuf,
    remote: String,
    base: CommitId,
    made: u32,
}

/// Seconds of one turn.
struct Turn {
    git: f64,
    git_metadata: f64,
    checkout: f64,
    overlay: f64,
}

/// Measures the part.
pub fn measure() -> Part {
    if !rustix::process::geteuid().is_root() {
        return Part { figures: Vec::new(), foot: vec!["workspace: not measured, overlay mounts need root".to_owned()] };
    }
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    let remote = sample_repository(folder.path());
    let mut empty = Side::new(folder.path(), "empty", &remote);
    let mut full = Side::new(folder.path(), "full", &remote);
    let first = Instant::now();
    empty.sample_overlay();
    let shared = first.elapsed().as_secs_f64();
    full.grow();
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        eprintln!("  turn {} of {TURNS}", turn + 1);
        few.push(empty.turn());
        many.push(full.turn());
    }
    let column = |turns: &[Turn], of: fn(&Turn) -> f64| turns.iter().map(of).collect::<Vec<f64>>();
    let (git, git_many) = (column(&few, |t| t.git), column(&many, |t| t.git));
    let (checkout, checkout_many) = (column(&few, |t| t.checkout), column(&many, |t| t.checkout));
    let (overlay, overlay_many) = (column(&few, |t| t.overlay), column(&many, |t| t.overlay));
    let (metadata, metadata_many) = (column(&few, |t| t.git_metadata), column(&many, |t| t.git_metadata));
    let figures = vec![
        Figure::of_seconds("tree by checkout / git worktree add", Some(1.1), &checkout, &git),
        Figure::of_seconds("tree by overlay / git worktree add", Some(0.05), &overlay, &git),
        Figure::of_seconds("tree by checkout, 300 existing / none", Some(1.2), &checkout_many, &checkout),
        Figure::of_seconds("tree by overlay, 300 existing / none", Some(1.2), &overlay_many, &overlay),
        Figure::of_seconds("  git worktree add, 300 existing / none", None, &git_many, &git),
        Figure::of_seconds("  git worktree add --no-checkout, 300 / none", None, &metadata_many, &metadata),
    ];
    let foot = vec![
        format!(
            "workspace: {FILES} files of {FILE_BYTES} bytes, on {}; synced before each sample, fresh names, nothing deleted in between. \
             Ours = ensure_tree (fsynced memory, files or mount, .git with index, HOME, owner); floor = git worktree add --detach.",
            file_system(folder.path())
        ),
        format!("workspace: the overlay's shared checkout is made once per commit: {:.2} times git worktree add.", shared / median(&git)),
        format!(
            "workspace: existing trees are {EXISTING} mounted overlays of the same repository (ours), {EXISTING} worktrees without files (git); \
             `none` are those of the turns before, {} (ours) and {} (git) by the end.",
            1 + TURNS * (1 + SHORT_SAMPLES),
            2 * TURNS
        ),
    ];
    drop((empty, full));
    unmount_all(folder.path());
    Part { figures, foot }
}

impl Side {
    /// Both sides of a fresh state folder.
    pub fn new(folder: &Path, name: &str, remote: &Path) -> Self {
        let state = folder.join(name);
        let worktrees = folder.join(format!("{name}-worktrees"));
        for path in [&state, &worktrees] {
            std::fs::create_dir(path).expect("a fresh folder");
        }
        let git_folder = folder.join(format!("{name}.git"));
        // Through the transport, as ours is fetched: one pack on either side.
        git(folder, &["clone", "--quiet", "--bare", "--no-local", path_text(remote), path_text(&git_folder)]);
        let overlay = Workspaces::open(config(&state, folder, TreeModeWish::Overlay)).expect("overlays work here");
        let checkout = Workspaces::open(config(&state, folder, TreeModeWish::Checkout)).expect("the folder is fine");
        let remote = path_text(remote).to_owned();
        let target = Branch::new("mosaic/bench").expect("a branch");
        let found = overlay.resolve(&namespace(), &remote, None, &target).expect("the remote is there");
        Self { overlay, checkout, state, git: git_folder, worktrees, remote, base: found.base, made: 0 }
    }

    /// Makes the trees that exist already.
    fn grow(&mut self) {
        for _ in 0..EXISTING {
            self.sample_overlay();
            self.sample_git(&["--no-checkout"]);
        }
    }

    fn turn(&mut self) -> Turn {
        Turn {
            git: self.sample_git(&[]),
            checkout: self.sample_checkout(),
            overlay: short(|| self.sample_overlay()),
            git_metadata: self.sample_git(&["--no-checkout"]),
        }
    }

    /// A worktree of git's.
    pub fn worktree(&mut self) -> PathBuf {
        let number = self.next();
        let path = self.worktrees.join(format!("tree-{number}"));
        git(&self.git, &["worktree", "add", "--quiet", "--detach", path_text(&path), self.base.as_str()]);
        path
    }

    fn sample_git(&mut self, options: &[&str]) -> f64 {
        let number = self.next();
        let path = self.worktrees.join(format!("tree-{number}"));
        let mut arguments = vec!["worktree", "add", "--quiet", "--detach"];
        arguments.extend(options);
        arguments.extend([path_text(&path), self.base.as_str()]);
        self.timed(|this| git(&this.git, &arguments))
    }

    fn sample_checkout(&mut self) -> f64 {
        let spec = self.spec();
        self.timed(|this| drop(this.checkout.ensure_tree(&spec).expect("a tree by checkout")))
    }

    fn sample_overlay(&mut self) -> f64 {
        let spec = self.spec();
        self.timed(|this| drop(this.overlay.ensure_tree(&spec).expect("a tree by overlay")))
    }

    /// Seconds that the work takes, on a file system with nothing left to write.
    pub fn timed(&self, work: impl FnOnce(&Self)) -> f64 {
        let started = self.synced();
        work(self);
        started.elapsed().as_secs_f64()
    }

    /// Now, on a file system with nothing left to write.
    pub fn synced(&self) -> Instant {
        let opened = std::fs::File::open(&self.state).expect("the state folder");
        rustix::fs::syncfs(&opened).expect("a sync");
        Instant::now()
    }

    fn next(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    /// A tree of an agent that was never seen.
    pub fn spec(&mut self) -> TreeSpec {
        let uid = Uid::new(format!("{:08}-0000-4000-8000-000000000000", self.next())).expect("a uid");
        TreeSpec {
            namespace: namespace(),
            repository: self.remote.clone(),
            agent: "default/bench".to_owned(),
            name: format!("agent-{uid}-bench"),
            uid,
            attempt: Attempt(1),
            base: self.base.clone(),
            content: None,
            branch_for_head: Branch::new("mosaic/bench").expect("a branch"),
        }
    }
}

fn short(mut sample: impl FnMut() -> f64) -> f64 {
    let samples: Vec<f64> = (0..SHORT_SAMPLES).map(|_| sample()).collect();
    median(&samples)
}

/// The namespace of every bench.
pub fn namespace() -> Namespace {
    Namespace::new("default").expect("a namespace")
}

fn config(state: &Path, repositories: &Path, mode: TreeModeWish) -> WorkspaceConfig {
    WorkspaceConfig {
        state: state.to_owned(),
        sandbox_uid: 61_357,
        sandbox_gid: 61_357,
        local_repos: vec![repositories.to_owned()],
        author_name: "Mosaic".to_owned(),
        author_email: "mosaic@localhost".to_owned(),
        trusted_branches: Vec::new(),
        tree_mode: mode,
        remote_timeout: Duration::from_secs(300),
        remote_silence: Duration::from_secs(30),
        remotes: Vec::new(),
        askpass: PathBuf::from(env!("CARGO_BIN_EXE_mosaic")),
        limits: SnapshotLimits::default(),
        cleanups: mosaic::cleanups::Cleanups::default(),
    }
}

/// A bare remote whose one commit has files that compress about as well as source text does.
pub fn sample_repository(folder: &Path) -> PathBuf {
    let (seed, remote) = (folder.join("seed"), folder.join("remote.git"));
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for number in 0..FILES {
        let path = seed.join(format!("part{:02}/module{:02}/file{number:04}.txt", number % 25, number / 25 % 20));
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("a fresh folder");
        let mut text = String::with_capacity(FILE_BYTES + 20);
        while text.len() < FILE_BYTES {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(&format!("{:x} value\n", state >> 16));
        }
        text.truncate(FILE_BYTES);
        std::fs::write(path, text).expect("a fresh file");
    }
    git(folder, &["init", "--quiet", "--bare", "--initial-branch=main", path_text(&remote)]);
    git(folder, &["init", "--quiet", "--initial-branch=main", path_text(&seed)]);
    git(&seed, &["add", "--all"]);
    git(&seed, &["commit", "--quiet", "--message=sample"]);
    git(&seed, &["push", "--quiet", path_text(&remote), "main"]);
    remote
}

/// The git program with a clean environment; it must succeed.
pub fn git(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.current_dir(folder).args(["-c", "user.name=Bench", "-c", "user.email=bench@example.org", "-c", "safe.directory=*"]);
    command.args(arguments).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("LC_ALL", "C");
    let output = command.output().expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A path as text.
pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Type and options of the file system that holds a folder.
fn file_system(folder: &Path) -> String {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let holds = |line: &&str| line.split(' ').nth(4).is_some_and(|point| folder.starts_with(point));
    let nearest = text.lines().filter(holds).max_by_key(|line| line.split(' ').nth(4).map_or(0, str::len));
    let fields: Vec<&str> = nearest.and_then(|line| line.split_once(" - ")).map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    match fields[..] {
        [kind, _, options, ..] => format!("{kind} ({options})"),
        _ => "an unknown file system".to_owned(),
    }
}

/// So that the folder can be removed at the very end.
pub fn unmount_all(folder: &Path) {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(folder)) {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}
