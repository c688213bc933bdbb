//! Tool roots: what is found on this machine, what of a named folder is shown, and what never is.

use mosaic::tools::{self, ToolRoot, ToolsError};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes files (their parents, too) in a new folder.
fn folder_of(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "content").unwrap();
    }
    folder
}

fn root_of(folder: &Path) -> ToolRoot {
    tools::resolve(&[folder.to_owned()]).unwrap().remove(0)
}

/// Every file beneath what is mounted, as the sandbox would see it.
fn shown(root: &ToolRoot) -> Vec<String> {
    let mut files = Vec::new();
    for mount in tools::mounts(std::slice::from_ref(root)) {
        let mut folders = vec![mount.host.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(mount.inside.join(path.strip_prefix(&mount.host).unwrap()).display().to_string());
                }
            }
        }
    }
    files.sort();
    files
}

#[test]
fn found_toolchains_exist_and_are_outside_what_sandboxes_see_anyway() {
    let roots = tools::resolve(&[]).unwrap();
    for root in &roots {
        assert!(!root.folders.is_empty(), "{} has nothing to mount", root.name);
        assert!(root.host.join("bin").is_dir(), "{}", root.host.display());
        assert_ne!(root.host, Path::new("/usr"));
    }
    assert!(tools::mounts(&roots).iter().all(|mount| mount.host.is_dir() && mount.inside.starts_with("/mosaic/tools")));
    assert_eq!(tools::report(&roots).len(), roots.len());
    // The toolchain that builds this test is found where it really is.
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).current_dir("/").output().unwrap().stdout;
    let sysroot = PathBuf::from(String::from_utf8(sysroot).unwrap().trim()).canonicalize().unwrap();
    let rust = roots.iter().find(|root| root.name == "rust");
    assert_eq!(rust.is_some(), !sysroot.starts_with("/usr"));
    assert!(rust.is_none_or(|root| root.host == sysroot && root.host.join("bin/cargo").is_file()));
}

#[test]
fn cargo_home_shows_crates_and_no_credentials() {
    let home = folder_of(&[
        "registry/cache/a.crate",
        "registry/index/b",
        "registry/src/c",
        "git/db/d",
        "credentials.toml",
        "config.toml",
        "bin/cargo",
    ]);
    let root = root_of(home.path());
    assert_eq!(
        shown(&root),
        ["/mosaic/tools/cargo/git/db/d", "/mosaic/tools/cargo/registry/cache/a.crate", "/mosaic/tools/cargo/registry/index/b"]
    );
    assert!(root.bin.is_empty());
    let registry = root_of(&home.path().join("registry"));
    assert_eq!(shown(&registry), ["/mosaic/tools/cargo/registry/cache/a.crate", "/mosaic/tools/cargo/registry/index/b"]);
}

#[test]
fn npm_cache_go_path_and_wheels_show_packages_only() {
    let npm = folder_of(&["_cacache/index-v5/a", "_cacache/content-v2/b", "_cacache/tmp/c", "_logs/d", ".npmrc"]);
    assert_eq!(shown(&root_of(npm.path())), ["/mosaic/tools/npm/_cacache/content-v2/b", "/mosaic/tools/npm/_cacache/index-v5/a"]);
    let go = folder_of(&["pkg/mod/cache/download/x/@v/list", "pkg/mod/cache/vcs/config", "bin/tool"]);
    let root = root_of(go.path());
    assert_eq!(shown(&root), ["/mosaic/tools/go-modules/pkg/mod/cache/download/x/@v/list"]);
    let environment = tools::environment(&[root]);
    assert_eq!(environment["GOPROXY"], "file:///mosaic/tools/go-modules/pkg/mod/cache/download");
    let wheels = folder_of(&["a-1.0-py3-none-any.whl"]);
    assert_eq!(shown(&root_of(wheels.path())), ["/mosaic/tools/wheels/a-1.0-py3-none-any.whl"]);
}

#[test]
fn toolchain_shows_its_folders_and_comes_first_in_path() {
    let prefix = folder_of(&["node-22/bin/node", "node-22/lib/x", "node-22/etc/npmrc", "node-22/.npmrc"]);
    let roots = tools::resolve(&[prefix.path().join("node-22")]).unwrap();
    assert_eq!(shown(&roots[0]), ["/mosaic/tools/node-22/bin/node", "/mosaic/tools/node-22/lib/x"]);
    assert!(tools::search_path(&roots).starts_with("/mosaic/tools/node-22/bin:"));
    assert!(tools::search_path(&roots).ends_with(":/usr/bin:/sbin:/bin"));
}

#[test]
fn folder_that_cannot_be_used_is_refused_with_its_name() {
    let refused = |paths: &[PathBuf]| tools::resolve(paths).unwrap_err();
    assert!(matches!(refused(&[PathBuf::from("/nonexistent/cache")]), ToolsError::Unreadable { .. }));
    let other = folder_of(&["a.whl", "token.txt"]);
    let error = refused(&[other.path().to_owned()]);
    assert!(error.to_string().contains(&other.path().display().to_string()) && matches!(error, ToolsError::Unknown(_)));
    assert!(matches!(refused(&[PathBuf::from("/usr")]), ToolsError::Unknown(_)));
    assert!(matches!(refused(&[PathBuf::from("/")]), ToolsError::Unknown(_)));
    let npm = folder_of(&["_cacache/index-v5/a"]);
    assert!(matches!(refused(&[npm.path().to_owned(), npm.path().to_owned()]), ToolsError::Twice { .. }));
    assert!(matches!(refused(&vec![PathBuf::from("/"); tools::EXTRA_ROOTS_MAX + 1]), ToolsError::TooMany(17)));
}
