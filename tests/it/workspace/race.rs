//! A tree that changes while it is read. The controller reads after everything of the agent is dead; this is for the day when it is not.

use super::fixture::*;
use mosaic::plan::observed::Snapshot;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Snapshots per kind of tree.
const SNAPSHOTS: usize = 150;
/// What a file may hold, whole; anything between the two was never there.
const STATES: [&str; 2] = ["one\n", "two, and longer\n"];

/// Puts file, folder, pipe and links in each other's place, each by one rename, until told to stop.
fn swap(tree: &Path, secret: &Path, over: &AtomicBool) {
    let (aside, place, kept) = (tree.join(".git/aside"), tree.join("src/place"), tree.join("src/kept"));
    let mut turn = 0;
    while !over.load(Ordering::Relaxed) {
        let _ = fs::remove_dir_all(&aside).or_else(|_| fs::remove_file(&aside));
        match turn % 6 {
            0 | 3 => fs::write(&aside, STATES[turn % 2]).unwrap(),
            1 => symlink(secret, &aside).unwrap(),
            2 => rustix::fs::mkfifoat(rustix::fs::CWD, &aside, 0o644.into()).unwrap(),
            4 => symlink(secret.parent().unwrap(), &aside).unwrap(),
            _ => {
                fs::create_dir(&aside).unwrap();
                fs::write(aside.join("secret"), STATES[0]).unwrap();
            }
        }
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        let _ = rustix::fs::renameat_with(rustix::fs::CWD, &aside, rustix::fs::CWD, &place, exchange);
        // The same file, longer and shorter in place.
        fs::write(&kept, STATES[turn % 2].repeat(1000)).unwrap();
        turn += 1;
    }
}

#[test]
fn a_tree_that_changes_under_the_reader_gives_nothing_that_was_not_in_it() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        let outside = tempfile::tempdir().unwrap();
        write(&outside.path().join("secret"), "the secret of the host\n");
        for name in ["place", "kept"] {
            write(&paths.tree.join("src").join(name), "");
        }
        let over = AtomicBool::new(false);
        let (mut commits, mut refused) = (Vec::new(), 0);
        std::thread::scope(|scope| {
            let swapper = scope.spawn(|| swap(&paths.tree, &outside.path().join("secret"), &over));
            for _ in 0..SNAPSHOTS {
                match world.ws.snapshot(&world.snapshot_spec(1, &base, &[])) {
                    Ok(Snapshot::Candidate(commit)) => commits.push(commit),
                    Ok(Snapshot::Refused(_)) => refused += 1,
                    other => {
                        over.store(true, Ordering::Relaxed);
                        panic!("{other:?}");
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
            swapper.join().unwrap();
        });
        commits.dedup();
        for commit in &commits {
            let files = world.files_of(commit);
            for file in files.iter().filter(|file| file.starts_with("src/place")) {
                let content = git_ok(&world.work(), &["cat-file", "blob", &format!("{commit}:{file}")]);
                let link = content.starts_with('/');
                assert!(
                    link || content.is_empty() || STATES.contains(&format!("{}\n", content.trim_end()).as_str()),
                    "{file}: {content:?}"
                );
            }
        }
        println!("{mode:?}: {} commits, {refused} refused", commits.len());
        assert!(!commits.is_empty() && refused > 0, "{} commits, {refused} refused", commits.len());
        let objects = git(&world.work(), &["cat-file", "--batch-all-objects", "--batch"]).stdout;
        assert!(!objects.windows(18).any(|part| part == b"the secret of the "), "something outside was read");
    }
}
