//! The base moves while an agent works.

use super::fixture::*;
use mosaic::api::names::{Attempt, CommitId};
use mosaic::plan::observed::{Integrated, Pushed, Snapshot};
use mosaic::workspace::*;

fn conflict(integrated: Integrated) -> (CommitId, CommitId, Vec<String>, String) {
    match integrated {
        Integrated::Conflict { base, content, paths, hunks } => (base, content, paths, hunks),
        other => panic!("no conflict: {other:?}"),
    }
}

#[test]
fn an_unmoved_base_needs_no_merge() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("new"), "new\n");
    let candidate = world.candidate(1, &base);
    assert_eq!(world.integrate(&candidate, &base), Integrated::Head { head: candidate.clone(), base });
}

#[test]
fn a_moved_base_is_merged_the_same_way_each_time() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("README.md"), "one\ntwo\nthree\nagent\n");
    let candidate = world.candidate(1, &base);
    let tip = world.commit(&[("README.md", "person\none\ntwo\nthree\n"), ("other", "other\n")]);
    let Integrated::Head { head, base: on } = world.integrate(&candidate, &base) else { panic!("no head") };
    assert_eq!(on, tip);
    assert_eq!(world.integrate(&candidate, &base), Integrated::Head { head: head.clone(), base: tip.clone() });
    assert_eq!(git_ok(&world.work(), &["log", "-1", "--format=%P", head.as_str()]), format!("{tip} {candidate}"));
    assert_eq!(world.file_of(&head, "README.md"), "person\none\ntwo\nthree\nagent\n");
    assert_eq!(world.file_of(&head, "other"), "other\n");
    assert_eq!(world.push(1, &tip, &head, "mosaic/x"), Pushed::Verified(head.clone()));
    assert_eq!(world.remote_ref("mosaic/x").unwrap(), head.as_str());
    git_ok(&world.work(), &["fsck", "--strict", "--no-dangling"]);
}

#[test]
fn a_change_that_the_base_has_already_is_empty() {
    let world = World::new(TreeModeWish::Overlay);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("README.md"), "same\n");
    let candidate = world.candidate(1, &base);
    let tip = world.commit(&[("README.md", "same\n")]);
    assert_eq!(world.integrate(&candidate, &base), Integrated::Empty { base: tip });
}

#[test]
fn a_rewritten_branch_does_not_get_its_dropped_commits_back() {
    let world = World::new(TreeModeWish::Overlay);
    world.commit(&[("secret.txt", "must go\n")]);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("new"), "new\n");
    let candidate = world.candidate(1, &base);
    let person = world.person();
    git_ok(&person, &["reset", "--quiet", "--hard", "HEAD~1"]);
    git_ok(&person, &["push", "--quiet", "--force", "origin", "HEAD:main"]);
    let Integrated::Head { head, base: tip } = world.integrate(&candidate, &base) else { panic!("no head") };
    assert_eq!(git_ok(&world.work(), &["log", "-1", "--format=%P", head.as_str()]), tip.as_str());
    let files = world.files_of(&head);
    assert!(files.contains(&"100644 new".to_owned()) && !files.iter().any(|file| file.contains("secret")), "{files:?}");
}

#[test]
fn a_conflict_goes_round_to_the_agent_and_is_resolved() {
    for mode in BOTH {
        let world = World::new(mode);
        let (base, paths) = world.tree(1);
        write(&paths.tree.join("README.md"), "one\nagent\nthree\n");
        write(&paths.tree.join("new"), "new\n");
        let candidate = world.candidate(1, &base);
        let tip = world.commit(&[("README.md", "one\nperson\nthree\n")]);
        let (on, content, conflicts, hunks) = conflict(world.integrate(&candidate, &base));
        assert_eq!((&on, conflicts.as_slice()), (&tip, ["README.md".to_owned()].as_slice()));
        let marked = "<<<<<<< main\nperson\n=======\nagent\n>>>>>>> this change\n";
        assert_eq!(hunks, format!("README.md\nline 2:\n{marked}"));
        let mut spec = world.tree_spec(1, &tip);
        (spec.attempt, spec.content) = (Attempt(2), Some(content.clone()));
        world.ws.ensure_tree(&spec).unwrap();
        assert_eq!(std::fs::read_to_string(paths.tree.join("README.md")).unwrap(), format!("one\n{marked}three\n"));
        assert_eq!(world.ws.observe_tree(&uid(1)).unwrap().unwrap().content, Some(content));
        let status = String::from_utf8(agent_git(&paths, &["status", "--porcelain"]).stdout).unwrap();
        assert_eq!(status, " M README.md\n?? new\n");
        let again = |conflicts| world.ws.snapshot(&world.snapshot_spec(1, &tip, conflicts)).unwrap();
        assert_eq!(again(&conflicts), Snapshot::Unresolved(conflicts.clone()));
        write(&paths.tree.join("README.md"), "one\nboth\nthree\n");
        let Snapshot::Candidate(fixed) = again(&conflicts) else { panic!("no candidate") };
        assert_eq!(world.integrate(&fixed, &tip), Integrated::Head { head: fixed.clone(), base: tip.clone() });
        assert_eq!(world.push(1, &tip, &fixed, "mosaic/x"), Pushed::Verified(fixed));
        assert_eq!(world.remote_file("mosaic/x", "README.md"), "one\nboth\nthree");
    }
}

#[test]
fn deletions_additions_binaries_and_folders_in_conflict_are_laid_out() {
    let world = World::new(TreeModeWish::Checkout);
    world.commit(&[("gone-there", "old\n"), ("gone-here", "old\n"), ("binary", "\0old"), ("way", "old\n")]);
    let (base, paths) = world.tree(1);
    write(&paths.tree.join("gone-there"), "agent\n");
    std::fs::remove_file(paths.tree.join("gone-here")).unwrap();
    write(&paths.tree.join("binary"), "\0agent");
    write(&paths.tree.join("added"), "agent\n");
    write(&paths.tree.join("way"), "agent\n");
    let candidate = world.candidate(1, &base);
    let person = world.person();
    for gone in ["gone-there", "way"] {
        std::fs::remove_file(person.join(gone)).unwrap();
    }
    let tip = world.commit(&[("gone-here", "person\n"), ("binary", "\0person"), ("added", "person\n"), ("way/inside", "person\n")]);
    let (on, content, paths, hunks) = conflict(world.integrate(&candidate, &base));
    assert_eq!(on, tip);
    assert_eq!(git_ok(&world.work(), &["log", "-1", "--format=%P", content.as_str()]), tip.as_str());
    assert_eq!(world.file_of(&content, "gone-there"), "<<<<<<< main (deleted)\n=======\nagent\n>>>>>>> this change\n");
    assert_eq!(world.file_of(&content, "gone-here"), "<<<<<<< main\nperson\n=======\n>>>>>>> this change (deleted)\n");
    assert_eq!(world.file_of(&content, "added"), "<<<<<<< main\nperson\n=======\nagent\n>>>>>>> this change\n");
    assert_eq!(world.file_of(&content, "binary"), "\0agent");
    assert_eq!(world.file_of(&content, "way/inside"), "person\n");
    assert_eq!(world.file_of(&content, "way~conflict"), "<<<<<<< main (deleted)\n=======\nagent\n>>>>>>> this change\n");
    let mut sorted = paths;
    sorted.sort();
    assert_eq!(sorted, ["added", "binary", "gone-here", "gone-there", "way~conflict"]);
    assert!(hunks.contains("binary\nno lines to merge"), "{hunks}");
    git_ok(&world.work(), &["fsck", "--strict", "--no-dangling"]);
}

#[test]
fn hunks_are_capped() {
    let world = World::new(TreeModeWish::Checkout);
    let text = |word: &str| format!("{word} é\n").repeat(20_000);
    let files: Vec<_> = (0..10).map(|number| format!("file{number}")).collect();
    let all = |word: &str| files.iter().map(|file| (file.clone(), text(word))).collect::<Vec<_>>();
    let commit = |word: &str| {
        let all = all(word);
        world.commit(&all.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect::<Vec<_>>())
    };
    commit("old");
    let (base, paths) = world.tree(1);
    for (file, text) in all("agent") {
        write(&paths.tree.join(file), &text);
    }
    let candidate = world.candidate(1, &base);
    commit("person");
    let (_, _, paths, hunks) = conflict(world.integrate(&candidate, &base));
    assert_eq!(paths.len(), 10);
    assert!(hunks.len() < 17 << 10 && hunks.contains("file3"), "{}", hunks.len());
}
