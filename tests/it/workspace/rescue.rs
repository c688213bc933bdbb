//! Nothing an agent made is lost; and what people see of it.

use super::fixture::*;
use mosaic::api::names::CommitId;
use mosaic::workspace::*;

fn rescue(world: &World, number: u32, commits: &[CommitId]) -> Option<String> {
    let spec = RescueSpec { namespace: namespace(), repository: world.remote.clone(), uid: uid(number), base: None, commits, date: date() };
    world.ws.rescue(&spec).unwrap()
}

#[test]
fn unpushed_work_is_kept_once_and_outlives_the_tree() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        assert_eq!(rescue(&world, 1, &[]), None, "nothing was done yet");
        write(&paths.tree.join("work.txt"), "work\n");
        assert!(std::process::Command::new("mkfifo").arg(paths.tree.join("pipe")).status().unwrap().success());
        let kept = rescue(&world, 1, &[]).unwrap();
        assert_eq!(kept, format!("refs/rescue/{}/1", uid(1)));
        assert_eq!(rescue(&world, 1, &[]), Some(kept.clone()));
        write(&paths.tree.join("work.txt"), "more\n");
        let second = rescue(&world, 1, &[]).unwrap();
        assert_eq!(second, format!("refs/rescue/{}/2", uid(1)));
        world.ws.remove(&uid(1)).unwrap();
        assert_eq!(git_ok(&world.work(), &["show", &format!("{kept}:work.txt")]), "work");
        assert_eq!(git_ok(&world.work(), &["log", "-1", "--format=%P", &second]), base.as_str());
        assert_eq!(rescue(&world, 1, &[]), None, "no tree any more");
    }
}

#[test]
fn a_candidate_is_kept_and_a_delivered_one_is_not() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("work.txt"), "work\n");
    let head = world.candidate(1, &base);
    let kept = rescue(&world, 1, std::slice::from_ref(&head)).unwrap();
    assert_eq!(git_ok(&world.work(), &["rev-parse", &kept]), head.as_str());
    world.ws.remove(&uid(1)).unwrap();
    assert_eq!(rescue(&world, 1, &[head]), Some(kept));

    let (base, paths) = world.tree(2);
    write(&paths.tree.join("work.txt"), "delivered\n");
    let head = world.candidate(2, &base);
    world.push(2, &base, &head, "mosaic/x");
    assert_eq!(rescue(&world, 2, &[head]), None);
}

#[test]
fn work_is_kept_even_when_the_remote_is_gone() {
    let world = World::new(TreeModeWish::Overlay);
    let (_, paths) = world.tree(1);
    write(&paths.tree.join("work.txt"), "work\n");
    std::fs::rename(&world.remote, world.repos.join("elsewhere")).unwrap();
    assert!(rescue(&world, 1, &[]).is_some());
    world.ws.remove(&uid(1)).unwrap();
}

#[test]
fn a_diff_is_unified_and_capped() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("README.md"), "one\nTWO\nthree\n");
    write(&paths.tree.join("big"), &"line\n".repeat(10_000));
    let head = world.candidate(1, &base);
    let diff = |bytes_max| world.ws.diff(&namespace(), &world.remote, &base, &head, bytes_max).unwrap();
    assert!(diff(1 << 20).contains("-two\n+TWO\n"));
    let cut = diff(1000);
    assert!(cut.len() < 1100 && cut.ends_with("(cut: the diff is longer)\n"), "{}", cut.len());
}
