//! From a hostile tree to a commit.

use super::fixture::*;
use mosaic::plan::observed::Snapshot;
use mosaic::workspace::*;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn the_same_tree_gives_the_same_commit() {
    let ids: Vec<_> = BOTH
        .iter()
        .flat_map(|mode| {
            let world = World::new(*mode);
            let (base, paths) = world.tree(1);
            write(&paths.tree.join("new/file.txt"), "new\n");
            let (first, again) = (world.candidate(1, &base), world.candidate(1, &base));
            assert_eq!(first, again);
            assert_eq!(
                git_ok(&world.work(), &["log", "-1", "--format=%an <%ae> %at %cn %s", first.as_str()]),
                "Mosaic <mosaic@example.org> 1767323045 Mosaic The agent's work"
            );
            git_ok(&world.work(), &["fsck", "--strict", "--no-dangling"]);
            [
                git_ok(&world.work(), &["rev-parse", &format!("{first}^{{tree}}")]),
                git_ok(&world.work(), &["rev-parse", &format!("{again}^{{tree}}")]),
            ]
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn an_untouched_tree_is_unchanged() {
    for mode in BOTH {
        let world = World::new(mode);
        std::fs::create_dir(world.person().join("empty")).unwrap();
        let (base, paths) = world.tree(1);
        std::fs::create_dir_all(paths.tree.join("an/empty/folder")).unwrap();
        assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
    }
}

#[test]
fn modes_links_and_deletions_are_taken_and_links_are_never_followed() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        std::os::unix::fs::symlink("/etc/passwd", paths.tree.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", paths.tree.join("folder-out")).unwrap();
        write(&paths.tree.join("run.sh"), "#!/bin/sh\n");
        std::fs::set_permissions(paths.tree.join("run.sh"), PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::remove_file(paths.tree.join("README.md")).unwrap();
        std::fs::remove_dir_all(paths.tree.join("src")).unwrap();
        std::os::unix::fs::symlink("/root", paths.tree.join("src")).unwrap();
        let commit = world.candidate(1, &base);
        let files = world.files_of(&commit);
        assert_eq!(files, ["100644 .gitignore", "120000 folder-out", "100644 kept.log", "120000 out", "100755 run.sh", "120000 src"]);
        assert_eq!(world.file_of(&commit, "out"), "/etc/passwd");
    }
}

#[test]
fn ignored_files_stay_out_and_tracked_ones_never_do() {
    let world = World::new(TreeModeWish::Overlay);
    world.commit(&[
        ("src/.gitignore", "*.tmp\n!keep.tmp\n/only-here\n"),
        ("target/tracked.txt", "tracked\n"),
        ("target/deep/tracked.txt", "tracked\n"),
    ]);
    let (base, paths) = world.tree(1);
    for file in [
        "target/out.bin",
        "target/deep/out.bin",
        "x.log",
        "src/a.tmp",
        "src/keep.tmp",
        "a.tmp",
        "src/only-here",
        "src/deep/only-here",
        "deep/target/x",
    ] {
        write(&paths.tree.join(file), "untracked\n");
    }
    write(&paths.tree.join("kept.log"), "changed\n");
    write(&paths.tree.join("target/tracked.txt"), "changed\n");
    // Hiding something by an ignore file of its own does not work.
    write(&paths.tree.join(".gitignore"), "*\n");
    write(&paths.tree.join("hidden.txt"), "hidden\n");
    // A repository in an ignored folder is nobody's business.
    std::fs::create_dir_all(paths.tree.join("target/dependency/.git")).unwrap();
    let commit = world.candidate(1, &base);
    let changed = git_ok(&world.work(), &["diff", "--name-status", base.as_str(), commit.as_str()]);
    let expected = "M\t.gitignore\nA\ta.tmp\nA\thidden.txt\nM\tkept.log\nA\tsrc/deep/only-here\nA\tsrc/keep.tmp\nM\ttarget/tracked.txt";
    assert_eq!(changed, expected);
}

#[test]
fn what_no_commit_may_have_is_refused_by_name() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        for (number, (path, words)) in
            [("sub/.git/config", "sub/.git: a repository"), ("a/.GIT/x", "a/.GIT: a repository"), ("b/git~1/x", "b/git~1: a repository")]
                .into_iter()
                .enumerate()
        {
            write(&paths.tree.join(path), "x");
            let lines = world.refused(1, &base);
            assert!(lines.iter().any(|line| line.contains(words)), "{number}: {lines:?}");
            std::fs::remove_dir_all(paths.tree.join(path.split('/').next().unwrap())).unwrap();
        }
        for (command, words) in [
            ("mkfifo pipe", "pipe: a named pipe"),
            ("mknod null c 1 3", "null: a device"),
            ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'", "sock: a socket"),
            ("touch \"$(printf 'a\\nb')\"", "a?b: the name"),
            ("touch \"$(printf 'a\\377')\"", "the name is not readable"),
            ("truncate -s 8T giant", "giant: it has"),
            ("mkdir x; ln -s y x/.gitmodules", ".gitmodules must be a plain file"),
        ] {
            if command.starts_with("mknod") && !is_root() {
                continue;
            }
            assert!(Command::new("sh").args(["-c", command]).current_dir(&paths.tree).status().unwrap().success(), "{command}");
            let lines = world.refused(1, &base);
            assert!(lines.iter().any(|line| line.contains(words)), "{command}: {lines:?}");
            let clean = "rm -rf -- pipe null sock a* giant x";
            assert!(Command::new("sh").args(["-c", clean]).current_dir(&paths.tree).status().unwrap().success());
        }
        assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
    }
}

#[test]
fn limits_of_number_size_length_and_depth_hold() {
    let limits = SnapshotLimits { files_max: 20, bytes_max: 10_000, file_bytes_max: 5_000, path_bytes_max: 60, depth_max: 5 };
    let world = World::with(TreeModeWish::Overlay, |config| config.limits = limits);
    let (base, paths) = world.tree(1);
    for (command, words) in [
        ("for i in $(seq 30); do echo $i > x$i; done", "more than 20 files"),
        ("for i in 1 2 3; do head -c 4000 /dev/zero > x$i; done", "more than 10000 bytes"),
        ("head -c 6000 /dev/zero > x", "it has 6000 bytes"),
        ("touch x123456789012345678901234567890123456789012345678901234567890", "longer than 60"),
        ("mkdir -p x/a/b/c/d/e/f; touch x/a/b/c/d/e/f/g", "deeper than 5"),
        ("for i in $(seq 100); do mkdir -p x/$i; done", "more than 80 entries"),
    ] {
        assert!(Command::new("sh").args(["-c", command]).current_dir(&paths.tree).status().unwrap().success());
        let lines = world.refused(1, &base);
        assert!(lines.iter().any(|line| line.contains(words)), "{command}: {lines:?}");
        assert!(Command::new("sh").args(["-c", "rm -rf x*"]).current_dir(&paths.tree).status().unwrap().success());
    }
    assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
}

#[test]
fn whatever_the_agent_does_to_its_git_changes_nothing() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        write(&paths.tree.join("new.txt"), "new\n");
        let honest = world.candidate(1, &base);
        let canary = world.repos.join("canary");
        let config = paths.tree.join(".git/config");
        std::fs::write(
            &config,
            format!("[core]\n\tfsmonitor = touch {0}\n\thooksPath = hooks\n[filter \"evil\"]\n\tclean = touch {0}\n[url \"/x\"]\n\tinsteadOf = /\n", canary.display()),
        )
        .unwrap();
        write(&paths.tree.join(".git/info/exclude"), "*\n");
        write(&paths.tree.join(".git/info/attributes"), "* filter=evil\n");
        assert_eq!(world.candidate(1, &base), honest);
        std::fs::remove_dir_all(paths.tree.join(".git")).unwrap();
        assert_eq!(world.candidate(1, &base), honest);
        std::os::unix::fs::symlink(world.work(), paths.tree.join(".git")).unwrap();
        assert_eq!(world.candidate(1, &base), honest);
        std::fs::remove_file(paths.tree.join(".git")).unwrap();
        assert!(Command::new("mkfifo").arg(paths.tree.join(".git")).status().unwrap().success());
        assert_eq!(world.candidate(1, &base), honest);
        assert!(!canary.exists());
        write(&paths.tree.join(".gitattributes"), "* filter=evil text eol=crlf\n");
        let commit = world.candidate(1, &base);
        assert_eq!(world.file_of(&commit, "new.txt"), "new\n");
        assert!(!canary.exists());
    }
}

#[test]
fn submodules_of_the_base_stay_as_they_are() {
    for mode in BOTH {
        let world = World::new(mode);
        let person = world.person();
        let sha = world.remote_ref("main").unwrap();
        git_ok(&person, &["update-index", "--add", "--cacheinfo", &format!("160000,{sha},vendor/sub")]);
        write(&person.join(".gitmodules"), "[submodule \"s\"]\n\tpath = vendor/sub\n\turl = ../x\n");
        git_ok(&person, &["add", ".gitmodules"]);
        git_ok(&person, &["commit", "--quiet", "-m", "submodule"]);
        git_ok(&person, &["push", "--quiet", "origin", "HEAD:main"]);
        let (base, paths) = world.tree(1);
        assert!(paths.tree.join("vendor/sub").is_dir());
        assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
        std::fs::remove_dir(paths.tree.join("vendor/sub")).unwrap();
        assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
        std::fs::remove_dir(paths.tree.join("vendor")).unwrap();
        assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
        write(&paths.tree.join("vendor/sub/file"), "x");
        assert!(world.refused(1, &base)[0].contains("vendor/sub: it is a submodule"));
    }
}

#[test]
fn messages_are_cleaned() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("new.txt"), "new\n");
    let mut spec = world.snapshot_spec(1, &base, &[]);
    spec.message = format!("  Title\u{1b}[31m\0\n\n{}", "x".repeat(100_000));
    let Snapshot::Candidate(commit) = world.ws.snapshot(&spec).unwrap() else { panic!("no candidate") };
    let message = git_ok(&world.work(), &["log", "-1", "--format=%B", commit.as_str()]);
    assert!(message.starts_with("Title[31m\n\nxxx") && message.len() <= 16 << 10, "{}", message.len());
}

#[test]
fn a_name_that_the_base_has_already_is_no_fault_of_the_agent() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new(TreeModeWish::Overlay);
    std::fs::write(world.person().join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "latin\n").unwrap();
    world.push_all("latin");
    let (base, paths) = world.tree(1);
    assert_eq!(world.snapshot(1, &base), Snapshot::Unchanged);
    write(&paths.tree.join("new"), "new\n");
    let commit = world.candidate(1, &base);
    assert_eq!(git_ok(&world.work(), &["diff", "--name-status", base.as_str(), commit.as_str()]), "A\tnew");
}
