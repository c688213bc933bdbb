//! Which repositories may be used, and what is said of the others.

use super::fixture::*;
use mosaic::api::condition::reason;
use mosaic::workspace::*;

fn refused(world: &World, repository: &str, name: Option<&str>) -> WorkspaceError {
    let name = name.map(branch);
    world.ws.resolve(&namespace(), repository, name.as_ref(), &branch("mosaic/x")).unwrap_err()
}

#[test]
fn every_plain_mistake_has_its_own_words() {
    let world = World::new(TreeModeWish::Checkout);
    let inside = |name: &str| world.repos.join(name).to_str().unwrap().to_owned();
    git_ok(&world.repos, &["init", "--quiet", "--bare", "empty.git"]);
    std::fs::create_dir(world.repos.join("folder")).unwrap();
    std::fs::write(world.repos.join("file"), "").unwrap();
    let outside = tempfile::tempdir().unwrap();
    git_ok(outside.path(), &["init", "--quiet"]);
    std::os::unix::fs::symlink(outside.path(), world.repos.join("link")).unwrap();
    std::fs::create_dir(world.repos.join("gitfile")).unwrap();
    std::fs::write(world.repos.join("gitfile/.git"), format!("gitdir: {}/.git\n", outside.path().display())).unwrap();
    world.resolve();
    let own = world.work();
    let cases = [
        (inside("missing"), reason::REPOSITORY_NOT_FOUND, "No such file"),
        (inside("folder"), reason::REPOSITORY_NOT_FOUND, "git init"),
        (inside("file"), reason::REPOSITORY_NOT_FOUND, ""),
        (inside("empty.git"), reason::REPOSITORY_EMPTY, "push a first commit"),
        (inside("link"), reason::REPOSITORY_NOT_ALLOWED, "--local-repos"),
        (inside("gitfile"), reason::REPOSITORY_NOT_ALLOWED, "--local-repos"),
        (inside("../st"), reason::REPOSITORY_NOT_ALLOWED, "--local-repos"),
        (own.to_str().unwrap().to_owned(), reason::REPOSITORY_NOT_ALLOWED, "state folder"),
        ("/etc".to_owned(), reason::REPOSITORY_NOT_ALLOWED, "--local-repos"),
        ("/does/not/exist".to_owned(), reason::REPOSITORY_NOT_ALLOWED, "--local-repos"),
        ("repos/remote.git".to_owned(), reason::INVALID_SPEC, "absolute path"),
        ("http://example.org/x".to_owned(), reason::INVALID_SPEC, "https://"),
        ("git://example.org/x".to_owned(), reason::INVALID_SPEC, "https://"),
        ("ext::sh -c id".to_owned(), reason::INVALID_SPEC, "remote helpers"),
        ("git@example.org:x/y".to_owned(), reason::INVALID_SPEC, "ssh://"),
        ("https://me:secret@example.org/x".to_owned(), reason::INVALID_SPEC, "credentials"),
        ("ssh://-oProxyCommand=id/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("ssh://git@-oProxyCommand=id/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("ssh://-lroot@example.org/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("ssh://git@example.org:22;id/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("ssh://git@example.org:0/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("ssh://git@example.org/$(id)".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("https://example.org/team/../other".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("https://example.org/team/%2e%2E/other".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("https://example.org/x?token=y".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("https://example.org//x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("https://exa\u{200b}mple.org/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("https://[::1/x".to_owned(), reason::INVALID_SPEC, "plain characters"),
        ("--upload-pack=id".to_owned(), reason::INVALID_SPEC, "absolute path"),
        ("/x\n/y".to_owned(), reason::INVALID_SPEC, "absolute path"),
    ];
    for (repository, expected, words) in cases {
        let error = refused(&world, &repository, None);
        assert_eq!(error.reason(), expected, "{repository}: {error}");
        assert!(error.is_invalid(), "{repository}: {error}");
        assert!(error.to_string().contains(words), "{repository}: {error}");
    }
}

#[test]
fn a_missing_branch_names_the_default_and_some_that_exist() {
    let world = World::new(TreeModeWish::Checkout);
    git_ok(&world.person(), &["push", "--quiet", "origin", "HEAD:release"]);
    let error = refused(&world, &world.remote, Some("nope"));
    assert_eq!(error.reason(), reason::BRANCH_NOT_FOUND);
    let text = error.to_string();
    assert!(text.contains("nope") && text.contains("default branch is main") && text.contains("release"), "{text}");
}

#[test]
fn without_folders_of_the_operator_no_path_is_a_remote() {
    let world = World::with(TreeModeWish::Checkout, |_| {});
    let mut other = config(&world.state, &world.repos, TreeModeWish::Checkout);
    other.local_repos.clear();
    let error = Workspaces::open(other).unwrap().resolve(&namespace(), &world.remote, None, &branch("x")).unwrap_err();
    assert_eq!(error.reason(), reason::REPOSITORY_NOT_ALLOWED);
}

#[test]
fn every_spelling_of_a_local_repository_works_and_is_one_remote() {
    let world = World::new(TreeModeWish::Checkout);
    let tip = world.remote_ref("main").unwrap();
    let person = world.person();
    let expected = person.to_str().unwrap().to_owned();
    for spelling in [
        expected.clone(),
        format!("{expected}/"),
        format!("{expected}/.git"),
        format!("file://{expected}"),
        format!("file://localhost{expected}"),
        format!("{expected}/../person"),
    ] {
        let found = world.ws.resolve(&namespace(), &spelling, None, &branch("x")).unwrap();
        assert_eq!((found.remote, found.base.to_string()), (expected.clone(), tip.clone()), "{spelling}");
    }
    git_ok(&person, &["worktree", "add", "--quiet", "-b", "side", "../side"]);
    let found = world.ws.resolve(&namespace(), world.repos.join("side").to_str().unwrap(), None, &branch("x")).unwrap();
    assert_eq!(found.default_branch, branch("side"));
}

#[test]
fn a_repository_of_another_user_is_served() {
    if !is_root() {
        return;
    }
    let world = World::new(TreeModeWish::Checkout);
    for entry in [world.remote.clone(), format!("{}/objects", world.remote), format!("{}/refs", world.remote)] {
        std::os::unix::fs::chown(entry, Some(12_345), Some(12_345)).unwrap();
    }
    world.resolve();
}

#[test]
fn gates_come_from_the_default_branch_unless_the_operator_trusts_another() {
    let world = World::new(TreeModeWish::Checkout);
    let main = world.remote_ref("main").unwrap();
    git_ok(&world.person(), &["checkout", "--quiet", "-b", "feature"]);
    write(&world.person().join("new"), "new\n");
    git_ok(&world.person(), &["add", "-A"]);
    git_ok(&world.person(), &["commit", "--quiet", "-m", "feature"]);
    git_ok(&world.person(), &["push", "--quiet", "origin", "feature"]);
    let feature = world.remote_ref("feature").unwrap();
    let found = world.ws.resolve(&namespace(), &world.remote, Some(&branch("feature")), &branch("main")).unwrap();
    assert_eq!((found.base.as_str(), found.trusted.as_str()), (feature.as_str(), main.as_str()));
    assert_eq!(found.target.unwrap().as_str(), main);
    let mut config = config(&world.state, &world.repos, TreeModeWish::Checkout);
    config.trusted_branches = vec![branch("feature")];
    let trusting = Workspaces::open(config).unwrap();
    let found = trusting.resolve(&namespace(), &world.remote, Some(&branch("feature")), &branch("x")).unwrap();
    assert_eq!(found.trusted.as_str(), feature);
}

#[test]
fn files_of_a_commit_are_read_and_nothing_else() {
    let world = World::new(TreeModeWish::Checkout);
    std::os::unix::fs::symlink("/etc/passwd", world.person().join("link")).unwrap();
    world.push_all("link");
    let base = world.resolve().base;
    let read = |path: &str, bytes_max| world.ws.read_file(&namespace(), &world.remote, &base, path, bytes_max);
    assert_eq!(read("src/main.txt", 100).unwrap().unwrap(), b"main\n");
    assert_eq!(read("absent", 100).unwrap(), None);
    assert_eq!(read("src/absent/x", 100).unwrap(), None);
    assert!(read("src/main.txt", 2).unwrap_err().to_string().contains("most"));
    assert!(read("src", 100).unwrap_err().to_string().contains("plain file"));
    assert!(read("link", 100).unwrap_err().to_string().contains("plain file"));
    let names = world.ws.list_root(&namespace(), &world.remote, &base).unwrap();
    assert_eq!(names, [".gitignore", "README.md", "kept.log", "link", "src"]);
}

#[test]
fn the_namespace_parts_repositories_of_one_remote() {
    let world = World::new(TreeModeWish::Checkout);
    let base = world.resolve().base;
    let other = mosaic::api::names::Namespace::new("other").unwrap();
    assert!(world.ws.list_root(&other, &world.remote, &base).is_err());
}
