//! Publishing: what the remote then has is what counts.

use super::fixture::*;
use mosaic::api::condition::reason;
use mosaic::api::names::CommitId;
use mosaic::plan::observed::Pushed;
use mosaic::workspace::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn hook(remote: &str, name: &str, script: &str) {
    let path = Path::new(remote).join("hooks").join(name);
    write(&path, &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn candidate(world: &World) -> (CommitId, CommitId) {
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("new.txt"), "new\n");
    let candidate = world.candidate(1, &base);
    (base, candidate)
}

#[test]
fn a_push_is_verified_and_doing_it_again_changes_nothing() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    hook(&world.remote, "post-receive", "echo again >> pushes");
    for _ in 0..3 {
        assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head.clone()));
    }
    assert_eq!(world.remote_ref("mosaic/x").unwrap(), head.as_str());
    assert_eq!(world.remote_file("mosaic/x", "new.txt"), "new");
    assert_eq!(std::fs::read_to_string(Path::new(&world.remote).join("pushes")).unwrap(), "again\n");
    git_ok(Path::new(&world.remote), &["fsck", "--strict"]);
}

#[test]
fn a_lost_reply_is_answered_by_looking() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    // The ref is updated, then the connection breaks.
    hook(&world.remote, "post-receive", "kill -9 $PPID");
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head));
}

#[test]
fn a_remote_that_refuses_is_quoted() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    hook(&world.remote, "pre-receive", "echo 'no pushes on Fridays' >&2; exit 1");
    let Pushed::Rejected(words) = world.push(1, &base, &head, "mosaic/x") else { panic!("not rejected") };
    assert!(words.contains("no pushes on Fridays") && words.contains("pre-receive hook declined"), "{words}");
    assert_eq!(world.remote_ref("mosaic/x"), None);
}

#[test]
fn a_checked_out_branch_is_refused_with_advice_and_another_one_is_not() {
    let mut world = World::new(TreeModeWish::Overlay);
    world.remote = world.person().to_str().unwrap().to_owned();
    let (base, head) = candidate(&world);
    let Pushed::Rejected(words) = world.push(1, &base, &head, "main") else { panic!("not rejected") };
    assert!(words.contains("checked out") && words.contains("another target branch"), "{words}");
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head.clone()));
    assert_eq!(world.remote_ref("main").unwrap(), base.as_str());
}

#[test]
fn the_base_branch_itself_can_be_the_target() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    assert_eq!(world.push(1, &base, &head, "main"), Pushed::Verified(head.clone()));
    assert_eq!(world.remote_ref("main").unwrap(), head.as_str());
    assert_eq!(world.push(1, &base, &head, "main"), Pushed::Verified(head));
}

#[test]
fn a_moved_base_stops_the_push() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    let tip = world.commit(&[("other", "other\n")]);
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::BaseMoved(tip.clone()));
    assert_eq!(world.push(1, &base, &head, "main"), Pushed::BaseMoved(tip));
    assert_eq!(world.remote_ref("mosaic/x"), None);
}

#[test]
fn a_ref_of_somebody_else_is_never_overwritten() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    git_ok(&world.person(), &["push", "--quiet", "origin", "HEAD:refs/heads/mosaic/x"]);
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::RefTaken(Some(base.clone())));
    // With the value that was seen at admission it may move on from there.
    let mut spec = world.push_spec(1, &base, &head, "mosaic/x");
    spec.expected_old = Some(base.clone());
    assert_eq!(world.ws.push(&spec).unwrap(), Pushed::Verified(head.clone()));
    // Deleted, or moved by somebody else afterwards: not ours any more.
    git_ok(Path::new(&world.remote), &["update-ref", "-d", "refs/heads/mosaic/x"]);
    assert_eq!(world.ws.push(&spec).unwrap(), Pushed::RefTaken(None));
}

#[test]
fn a_ref_that_moves_during_the_push_is_caught_by_the_lease() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    // Between our look and the remote's update somebody else makes the ref.
    hook(&world.remote, "pre-receive", &format!("unset GIT_QUARANTINE_PATH; git update-ref refs/heads/mosaic/x {base}"));
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::RefTaken(Some(base)));
}

#[test]
fn a_remote_that_hangs_is_stopped_with_all_its_processes() {
    let world = World::with(TreeModeWish::Overlay, |config| config.remote_timeout = Duration::from_secs(3));
    let (base, head) = candidate(&world);
    hook(&world.remote, "pre-receive", "echo $$ > running; exec sleep 600");
    let error = world.ws.push(&world.push_spec(1, &base, &head, "mosaic/x")).unwrap_err();
    assert_eq!(error.reason(), reason::REMOTE_UNAVAILABLE);
    assert!(!error.is_invalid() && error.to_string().contains("3s"), "{error}");
    let pid = std::fs::read_to_string(Path::new(&world.remote).join("running")).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
    assert_eq!(world.remote_ref("mosaic/x"), None);
}

#[test]
fn ten_agents_push_to_one_remote_at_once() {
    let world = World::new(TreeModeWish::Overlay);
    std::thread::scope(|scope| {
        for number in 1..=10 {
            let world = &world;
            scope.spawn(move || {
                let (base, paths) = world.tree(number);
                write(&paths.tree.join("new.txt"), &format!("{number}\n"));
                let head = world.candidate(number, &base);
                assert_eq!(world.push(number, &base, &head, &format!("mosaic/{number}")), Pushed::Verified(head));
            });
        }
    });
    for number in 1..=10 {
        assert_eq!(world.remote_file(&format!("mosaic/{number}"), "new.txt"), number.to_string());
    }
}

#[test]
fn hooks_and_settings_of_a_user_do_not_run_ours() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    // A hook planted in our own repository (it is ours, so this is a disaster already) still does not run.
    let canary = world.repos.join("canary");
    let hooks = world.work().join("hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    std::fs::write(hooks.join("pre-push"), format!("#!/bin/sh\ntouch {}\n", canary.display())).unwrap();
    std::fs::set_permissions(hooks.join("pre-push"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head));
    assert!(!canary.exists());
}

#[test]
fn a_repository_of_another_user_is_served_as_that_user() {
    if !is_root() {
        return;
    }
    let world = World::new(TreeModeWish::Overlay);
    std::fs::set_permissions(world.repos.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    hook(&world.remote, "post-receive", "id -u > who");
    let chown = std::process::Command::new("chown").args(["-R", "12345:12345", &world.remote]).status().unwrap();
    assert!(chown.success());
    let (base, head) = candidate(&world);
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head));
    assert_eq!(std::fs::read_to_string(Path::new(&world.remote).join("who")).unwrap(), "12345\n");
    let foreign = std::process::Command::new("find").args([&world.remote, "!", "-uid", "12345"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&foreign.stdout), "", "files of root in somebody else's repository");
}

#[test]
fn locks_that_a_killed_process_left_do_not_stop_anything() {
    let mut world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    let base_git = world.work().with_file_name("base.git");
    for lock in ["packed-refs.lock", "refs/remotes/origin/main.lock", "objects/pack/tmp_pack_abcdef"] {
        write(&base_git.join(lock), "");
    }
    write(&world.work().join(format!("refs/pushed/{}.lock", uid(1))), "");
    world.reopen(TreeModeWish::Overlay);
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head));
    let tip = world.commit(&[("README.md", "next\n")]);
    assert_eq!(world.resolve().base, tip);
}

#[test]
fn a_remote_that_cannot_store_is_no_refusal() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, head) = candidate(&world);
    let lock = Path::new(&world.remote).join("refs/heads/mosaic/x.lock");
    write(&lock, "");
    let broken = world.ws.push(&world.push_spec(1, &base, &head, "mosaic/x")).unwrap_err();
    assert!(!broken.is_invalid() && broken.reason() == reason::REMOTE_UNAVAILABLE, "{broken}");
    assert!(mosaic::causes::one_line(&broken).contains("cannot lock ref"), "{broken}");
    std::fs::remove_file(lock).unwrap();
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head));
}

#[test]
fn a_branch_that_cannot_exist_beside_another_is_refused_at_once() {
    let world = World::new(TreeModeWish::Overlay);
    git_ok(Path::new(&world.remote), &["branch", "mosaic", "main"]);
    let refused = |target: &str| world.ws.resolve(&namespace(), &world.remote, None, &branch(target)).map(|_| ());
    let error = refused("mosaic/x").unwrap_err();
    assert!(error.is_invalid() && error.reason() == reason::BRANCH_TAKEN, "{error}");
    assert!(error.to_string().contains("targetBranch"), "{error}");
    assert!(refused("main/x").is_err());
    refused("mosaics/x").unwrap();
    refused("main").unwrap();
}

#[test]
fn a_shallow_remote_is_worked_on_like_any_other() {
    let mut world = World::new(TreeModeWish::Overlay);
    world.commit(&[("second.txt", "second\n")]);
    let shallow = world.repos.join("shallow.git");
    let source = format!("file://{}", world.remote);
    git_ok(&world.repos, &["clone", "--quiet", "--bare", "--depth", "1", &source, shallow.to_str().unwrap()]);
    world.remote = shallow.to_str().unwrap().to_owned();
    let (base, paths) = world.tree(1);
    assert_eq!(agent_git(&paths, &["log", "--oneline"]).stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    write(&paths.tree.join("new.txt"), "new\n");
    let head = world.candidate(1, &base);
    let spec = GateTreeSpec {
        namespace: namespace(),
        repository: world.remote.clone(),
        uid: uid(1),
        attempt: mosaic::api::names::Attempt(1),
        key: "tests".to_owned(),
        head: head.clone(),
    };
    world.ws.ensure_gate_tree(&spec).unwrap();
    assert_eq!(world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head));
    assert_eq!(world.remote_file("mosaic/x", "new.txt"), "new");
}
