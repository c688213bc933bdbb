//! Trees: laid out, mounted again, given to gates, removed.

use super::fixture::*;
use crate::e2e::harness::unmount;
use mosaic::api::names::Attempt;
use mosaic::workspace::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

#[test]
fn a_tree_shows_exactly_the_base_and_its_git_is_clean() {
    for mode in BOTH {
        let world = World::new(mode);
        let person = world.person();
        std::os::unix::fs::symlink("main.txt", person.join("src/link")).unwrap();
        write(&person.join("run.sh"), "#!/bin/sh\n");
        std::fs::set_permissions(person.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
        write(&person.join("crlf.txt"), "a\r\nb\r\n");
        write(&person.join(".gitattributes"), "* text=auto eol=crlf\n*.txt filter=evil\n");
        world.push_all("more");
        let (base, paths) = world.tree(1);
        assert_eq!(std::fs::read_to_string(paths.tree.join("src/deep/er/file.txt")).unwrap(), "deep\n");
        assert_eq!(std::fs::read_link(paths.tree.join("src/link")).unwrap(), Path::new("main.txt"));
        assert_eq!(std::fs::metadata(paths.tree.join("run.sh")).unwrap().mode() & 0o777, 0o755);
        for inside in ["", "src", "src/main.txt", ".git", ".git/HEAD", ".git/index", ".git/objects/info/alternates"] {
            assert_eq!(std::fs::symlink_metadata(paths.tree.join(inside)).unwrap().uid(), sandbox_uid(), "{inside}");
        }
        assert_eq!(std::fs::metadata(&paths.home).unwrap().uid(), sandbox_uid());
        let status = agent_git(&paths, &["-c", "core.attributesFile=/dev/null", "status", "--porcelain"]);
        assert_eq!(String::from_utf8_lossy(&status.stdout), "", "{mode:?}");
        let head = agent_git(&paths, &["rev-parse", "HEAD", "mosaic/some/task"]);
        assert_eq!(String::from_utf8_lossy(&head.stdout), format!("{base}\n{base}\n"));
        write(&paths.tree.join("src/main.txt"), "niam\n");
        let status = agent_git(&paths, &["status", "--porcelain"]);
        assert_eq!(String::from_utf8_lossy(&status.stdout), " M src/main.txt\n", "same size, another second");
        agent_git(&paths, &["commit", "-qam", "mine"]);
        let log = agent_git(&paths, &["log", "--format=%s"]);
        assert_eq!(String::from_utf8_lossy(&log.stdout), "mine\nmore\nchange\n");
    }
}

#[test]
fn work_stays_between_attempts_and_goes_with_another_base() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        write(&paths.tree.join("work.txt"), "work\n");
        write(&paths.home.join("session"), "session\n");
        let mut spec = world.tree_spec(1, &base);
        spec.attempt = Attempt(2);
        assert_eq!(world.ws.ensure_tree(&spec).unwrap(), paths);
        assert!(paths.tree.join("work.txt").exists());
        spec.attempt = Attempt(1);
        assert!(matches!(world.ws.ensure_tree(&spec), Err(WorkspaceError::OlderAttempt { .. })));
        let next = world.commit(&[("README.md", "next\n")]);
        world.resolve();
        spec.attempt = Attempt(3);
        spec.base = next.clone();
        world.ws.ensure_tree(&spec).unwrap();
        assert!(!paths.tree.join("work.txt").exists());
        assert_eq!(std::fs::read_to_string(paths.tree.join("README.md")).unwrap(), "next\n");
        assert!(paths.home.join("session").exists(), "HOME stays");
        let kept = git_ok(&world.work(), &["show", &format!("refs/rescue/{}/1:work.txt", uid(1))]);
        assert_eq!(kept, "work");
        assert_eq!(world.ws.observe_tree(&uid(1)).unwrap().unwrap().base, next);
    }
}

#[test]
fn ten_trees_at_once_on_one_repository_do_not_meet() {
    for mode in BOTH {
        let world = World::new(mode);
        std::thread::scope(|scope| {
            for number in 1..=10 {
                let world = &world;
                scope.spawn(move || {
                    let (base, paths) = world.tree(number);
                    write(&paths.tree.join(format!("only-{number}")), "x\n");
                    std::fs::remove_file(paths.tree.join("src/main.txt")).unwrap();
                    let candidate = world.candidate(number, &base);
                    let only: Vec<_> = world.files_of(&candidate).into_iter().filter(|file| file.contains("only-")).collect();
                    assert_eq!(only, [format!("100644 only-{number}")]);
                });
            }
        });
        let inventory = world.ws.inventory().unwrap();
        assert_eq!(inventory.trees.len(), 10);
        for number in 1..=10 {
            world.ws.remove(&uid(number)).unwrap();
        }
        assert_eq!(mounts_below(&world.state), Vec::<String>::new());
        assert_eq!(world.ws.inventory().unwrap(), TreeInventory::default());
    }
}

#[test]
fn a_renamed_folder_of_the_base_is_a_plain_rename() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    std::fs::rename(paths.tree.join("src"), paths.tree.join("lib")).unwrap();
    let files = world.files_of(&world.candidate(1, &base));
    assert_eq!(files, ["100644 .gitignore", "100644 README.md", "100644 kept.log", "100644 lib/deep/er/file.txt", "100644 lib/main.txt"]);
}

#[test]
fn after_a_reboot_the_tree_is_mounted_again_with_its_changes() {
    if !is_root() {
        return;
    }
    let mut world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("src/main.txt"), "changed\n");
    std::fs::remove_file(paths.tree.join("README.md")).unwrap();
    let before = world.candidate(1, &base);
    unmount(&paths.tree);
    // Another boot, after a loss of power that emptied a file of the shared checkout.
    let hash = std::fs::read_dir(world.state.join("checkouts")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(hash.join(base.as_str()).join("boot"), "before").unwrap();
    std::fs::write(hash.join(base.as_str()).join("root/src/deep/er/file.txt"), "").unwrap();
    world.reopen(TreeModeWish::Overlay);
    let seen = world.ws.observe_tree(&uid(1)).unwrap().unwrap();
    assert!(!seen.ready);
    assert_eq!(world.ws.ensure_tree(&world.tree_spec(1, &base)).unwrap(), paths);
    assert!(world.ws.observe_tree(&uid(1)).unwrap().unwrap().ready);
    assert_eq!(std::fs::read_to_string(paths.tree.join("src/main.txt")).unwrap(), "changed\n");
    assert_eq!(std::fs::read_to_string(paths.tree.join("src/deep/er/file.txt")).unwrap(), "deep\n");
    assert!(!paths.tree.join("README.md").exists());
    assert_eq!(world.candidate(1, &base), before);
}

#[test]
fn a_tree_keeps_its_kind_when_the_operator_changes_the_setting() {
    let mut world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("new"), "new\n");
    world.reopen(TreeModeWish::Checkout);
    assert_eq!(world.ws.ensure_tree(&world.tree_spec(1, &base)).unwrap(), paths);
    assert!(paths.tree.join("new").exists());
    world.ws.remove(&uid(1)).unwrap();
    assert_eq!(mounts_below(&world.state), Vec::<String>::new());
}

#[test]
fn a_half_done_layout_is_done_again_and_a_half_done_removal_goes_on() {
    for mode in BOTH {
        let mut world = World::new(mode);
        let (base, paths) = world.tree(1);
        let folder = paths.tree.parent().unwrap().to_owned();
        let meta = folder.join("meta.json");
        let text = std::fs::read_to_string(&meta).unwrap();
        // As if the controller had died in the middle of the layout.
        std::fs::write(&meta, text.replace("\"ready\"", "\"partial\"")).unwrap();
        std::fs::remove_file(paths.tree.join("README.md")).unwrap();
        world.reopen(mode);
        assert!(!world.ws.observe_tree(&uid(1)).unwrap().unwrap().ready);
        world.ws.ensure_tree(&world.tree_spec(1, &base)).unwrap();
        assert!(paths.tree.join("README.md").exists());
        // As if it had died in the middle of the removal: mounted or not, parts gone.
        std::fs::write(&meta, text.replace("\"ready\"", "\"partial\"")).unwrap();
        std::fs::remove_dir_all(folder.join("home")).unwrap();
        world.ws.remove(&uid(1)).unwrap();
        assert!(!folder.exists());
        world.ws.remove(&uid(1)).unwrap();
        assert_eq!(mounts_below(&world.state), Vec::<String>::new());
        assert_eq!(world.ws.observe_tree(&uid(1)).unwrap(), None);
        // As if it had died before the tree could remember anything.
        std::fs::create_dir_all(folder.join("tree")).unwrap();
        world.reopen(mode);
        assert!(!folder.exists());
    }
}

#[test]
fn removal_follows_no_link_and_manages_any_depth() {
    for mode in BOTH {
        let world = World::new(mode);
        let (_, paths) = world.tree(1);
        let precious = world.repos.join("precious");
        write(&precious.join("file"), "precious\n");
        std::os::unix::fs::symlink(&precious, paths.tree.join("link")).unwrap();
        std::os::unix::fs::symlink(&precious, paths.home.join("link")).unwrap();
        let deep = "for i in $(seq 1500); do mkdir d d2 && touch d2/f && cd d || exit 1; done; chmod 000 .";
        assert!(Command::new("sh").args(["-c", deep]).current_dir(&paths.tree).status().unwrap().success());
        world.ws.remove(&uid(1)).unwrap();
        assert!(precious.join("file").exists());
        assert!(!paths.tree.parent().unwrap().exists());
    }
}

/// That the tree is gone says that everything of the agent is: what nobody would look for must go before it.
#[test]
fn trees_of_gates_go_before_the_tree_that_is_looked_for() {
    if !is_root() {
        return;
    }
    let world = World::new(TreeModeWish::Checkout);
    let (base, _) = world.tree(1);
    let spec = GateTreeSpec {
        namespace: namespace(),
        repository: world.remote.clone(),
        uid: uid(1),
        attempt: Attempt(1),
        key: "tests".to_owned(),
        head: base,
    };
    let stuck = world.ws.ensure_gate_tree(&spec).unwrap().parent().unwrap().join("stuck");
    std::fs::create_dir(&stuck).unwrap();
    rustix::mount::mount("test", &stuck, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    assert!(world.ws.remove(&uid(1)).is_err());
    assert!(world.ws.observe_tree(&uid(1)).unwrap().is_some(), "the agent counts as cleaned up, and a gate's tree is left");
    unmount(&stuck);
    world.ws.remove(&uid(1)).unwrap();
    assert!(world.ws.observe_tree(&uid(1)).unwrap().is_none());
    assert_eq!(world.ws.inventory().unwrap().gate_trees, Vec::new());
}

#[test]
fn a_gate_sees_the_exact_commit_and_changes_nothing_for_others() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        write(&paths.tree.join("src/main.txt"), "candidate\n");
        let head = world.candidate(1, &base);
        write(&paths.tree.join("late"), "written after the snapshot\n");
        let spec = |key: &str| GateTreeSpec {
            namespace: namespace(),
            repository: world.remote.clone(),
            uid: uid(1),
            attempt: Attempt(1),
            key: key.to_owned(),
            head: head.clone(),
        };
        let (tests, lint) = (world.ws.ensure_gate_tree(&spec("tests")).unwrap(), world.ws.ensure_gate_tree(&spec("lint")).unwrap());
        assert_eq!(std::fs::read_to_string(tests.join("src/main.txt")).unwrap(), "candidate\n");
        assert!(!tests.join("late").exists());
        assert_eq!(std::fs::metadata(tests.join("src/main.txt")).unwrap().uid(), sandbox_uid());
        write(&tests.join("src/main.txt"), "a gate changes its own\n");
        assert_eq!(std::fs::read_to_string(lint.join("src/main.txt")).unwrap(), "candidate\n");
        let inside = TreePaths { tree: lint.clone(), ..paths.clone() };
        let told = agent_git(&inside, &["log", "--format=%H"]);
        let log = String::from_utf8_lossy(&told.stdout).into_owned();
        assert_eq!(log.lines().collect::<Vec<_>>(), [head.as_str(), base.as_str()], "{}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(String::from_utf8_lossy(&agent_git(&inside, &["status", "--porcelain"]).stdout), "");
        assert_eq!(world.ws.inventory().unwrap().gate_trees.len(), 2);
        world.ws.remove_gate_tree(&uid(1), "tests").unwrap();
        world.ws.remove_gate_tree(&uid(1), "tests").unwrap();
        assert!(!tests.exists() && lint.join("README.md").exists());
        world.ws.remove(&uid(1)).unwrap();
        assert_eq!(mounts_below(&world.state), Vec::<String>::new());
        assert!(world.ws.ensure_gate_tree(&spec("../x")).is_err());
    }
}

#[test]
fn shared_checkouts_are_few_and_never_go_under_a_tree() {
    if !is_root() {
        return;
    }
    let world = World::new(TreeModeWish::Overlay);
    let (_, oldest) = world.tree(1);
    for number in 2..=9 {
        world.commit(&[("README.md", &format!("{number}\n"))]);
        world.tree(number);
        world.ws.remove(&uid(number)).unwrap();
    }
    let folder = std::fs::read_dir(world.state.join("checkouts")).unwrap().next().unwrap().unwrap().path();
    let count = std::fs::read_dir(&folder).unwrap().count();
    assert!(count <= 5, "{count} checkouts");
    assert_eq!(std::fs::read_to_string(oldest.tree.join("README.md")).unwrap(), "one\ntwo\nthree\n");
}

#[test]
fn copies_that_were_lost_are_fetched_again() {
    let world = World::new(TreeModeWish::Overlay);
    let base = world.resolve().base;
    std::fs::remove_dir_all(world.state.join("repositories")).unwrap();
    std::fs::create_dir(world.state.join("repositories")).unwrap();
    let mut world = world;
    world.reopen(TreeModeWish::Overlay);
    let paths = world.ws.ensure_tree(&world.tree_spec(1, &base)).unwrap();
    assert!(paths.tree.join("README.md").exists());
}
