//! Snapshot: the commit of what an agent changed, over `git add --all && git commit` of the same changes.
//!
//! Floor: the `git` program in a worktree of the same commit, by the two commands that anybody would type. Ours: `Workspaces::snapshot`:
//! the tree is read without following a link or running what it holds, every rule on names, sizes and kinds is kept, and a commit is
//! written from the record's message and date. Both sides are synced before the time is taken.

use crate::table::{Figure, Part};
use crate::workspace::{Side, git, namespace, path_text, sample_repository, unmount_all};
use mosaic::plan::observed::Snapshot;
use mosaic::workspace::{SnapshotSpec, Workspaces};
use std::path::Path;

/// Turns.
const TURNS: usize = 15;
/// Files of the tree that are changed; as many of ten are new, and as many are gone.
const CHANGED: usize = 100;

/// Measures the part.
pub fn measure() -> Part {
    if !rustix::process::geteuid().is_root() {
        return Part { figures: Vec::new(), foot: vec!["snapshot: not measured, overlay mounts need root".to_owned()] };
    }
    let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
    let remote = sample_repository(folder.path());
    let mut side = Side::new(folder.path(), "snapshot", &remote);
    let (mut overlay, mut checkout, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        let times = (ours(&mut side, false), ours(&mut side, true), floor_of(&mut side));
        // The first of each warms up.
        if turn > 0 {
            checkout.push(times.0);
            overlay.push(times.1);
            floor.push(times.2);
        }
    }
    let figures = vec![
        Figure::of_seconds("snapshot of an overlay / git add, git commit", Some(1.0), &overlay, &floor),
        Figure::of_seconds("snapshot of a checkout / git add, git commit", Some(1.0), &checkout, &floor),
    ];
    let foot = vec![format!(
        "snapshot: a tree of 5000 files with {CHANGED} changed, {0} new and {0} gone; floor = git add --all && git commit in a worktree of \
         the same commit.",
        CHANGED / 10
    )];
    drop(side);
    unmount_all(folder.path());
    Part { figures, foot }
}

fn ours(side: &mut Side, overlay: bool) -> f64 {
    let spec = side.spec();
    let workspaces: &Workspaces = if overlay { &side.overlay } else { &side.checkout };
    let tree = workspaces.ensure_tree(&spec).expect("a tree").tree;
    change(&tree);
    let snapshot = SnapshotSpec {
        namespace: namespace(),
        repository: spec.repository,
        uid: spec.uid,
        base: spec.base,
        conflicts: &[],
        message: "work".to_owned(),
        date: k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
    };
    side.timed(|_| match workspaces.snapshot(&snapshot) {
        Ok(Snapshot::Candidate(_)) => {}
        other => panic!("no commit: {other:?}"),
    })
}

fn floor_of(side: &mut Side) -> f64 {
    let path = side.worktree();
    change(&path);
    let started = side.synced();
    git(&path, &["add", "--all"]);
    git(&path, &["commit", "--quiet", "--message=work"]);
    started.elapsed().as_secs_f64()
}

/// What an agent does to its tree, the same on either side.
fn change(tree: &Path) {
    let mut files = Vec::new();
    for part in std::fs::read_dir(tree).expect("a tree").flatten().filter(|entry| entry.file_name() != ".git") {
        for module in std::fs::read_dir(part.path()).expect("a folder").flatten() {
            files.extend(std::fs::read_dir(module.path()).expect("a folder").flatten().map(|entry| entry.path()));
        }
    }
    files.sort();
    let step = files.len() / CHANGED;
    for (number, path) in files.iter().step_by(step).enumerate() {
        std::fs::write(path, format!("{} changed\n", path_text(path)).repeat(100)).expect("a file");
        if number % 10 == 0 {
            std::fs::write(path.with_extension("new"), "new\n".repeat(1000)).expect("a file");
        }
        if number % 10 == 5 {
            std::fs::remove_file(path).expect("a file");
        }
    }
}
