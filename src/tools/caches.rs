//! Folders that the operator named: what kind each is, and which parts of it a tool needs.

use super::toolchains::PREFIX_FOLDERS;
use super::{EXTRA_ROOTS_MAX, ToolRoot, ToolsError};
use crate::api::names::slug;
use std::path::{Path, PathBuf};

/// Longest name of a toolchain that was named by its folder, in bytes.
const NAME_BYTES_MAX: usize = 40;
/// Most entries of a folder that are looked at to tell whether it holds wheels.
const WHEELS_MAX: usize = 10_000;

/// Returns the roots of the named folders, in their order.
pub(super) fn named(extra: &[PathBuf]) -> Result<Vec<ToolRoot>, ToolsError> {
    let mut roots: Vec<ToolRoot> = Vec::new();
    for path in extra {
        let unreadable = |source| ToolsError::Unreadable { path: path.clone(), source };
        let host = path.canonicalize().map_err(unreadable)?;
        std::fs::read_dir(&host).map_err(unreadable)?;
        let known = cargo(&host).or_else(|| go_modules(&host)).or_else(|| npm(&host)).or_else(|| wheels(&host));
        let root = match known {
            Some(cache) if roots.iter().any(|other| other.name == cache.name) => {
                return Err(ToolsError::Twice { path: path.clone(), kind: cache.name });
            }
            Some(cache) => cache,
            None => toolchain(&host, &roots).ok_or_else(|| ToolsError::Unknown(path.clone()))?,
        };
        roots.push(root);
    }
    Ok(roots)
}

/// A Cargo home, or its `registry`. Index and packed crates are read where they are; cargo unpacks what it needs into HOME, because
/// its own unpacked sources may have been cleared away while the crates are still there.
fn cargo(host: &Path) -> Option<ToolRoot> {
    let (home, registry) = match host.file_name() {
        Some(name) if name == "registry" && host.join("cache").is_dir() => (host.parent()?, host.to_owned()),
        _ => (host, host.join("registry")),
    };
    if !registry.join("cache").is_dir() || !registry.join("index").is_dir() {
        return None;
    }
    let folders: &[&str] =
        if registry == host { &["registry/index", "registry/cache"] } else { &["registry/index", "registry/cache", "git/db"] };
    Some(linked(ToolRoot::new("cargo", home, folders), ".cargo"))
}

/// A Go path or module cache: its downloads serve as the module proxy, and modules are unpacked into HOME.
fn go_modules(host: &Path) -> Option<ToolRoot> {
    let downloads = ["cache/download", "pkg/mod/cache/download"].into_iter().find(|folder| host.join(folder).is_dir())?;
    let mut root = ToolRoot::new("go-modules", host, &[downloads]);
    let url = format!("file://{}", root.inside(downloads).display());
    // go.sum is still checked; only the public database behind it cannot be asked.
    for (key, value) in [("GOPROXY", url.as_str()), ("GOSUMDB", "off"), ("GOFLAGS", "-modcacherw")] {
        root.env.insert(key.to_owned(), value.to_owned());
    }
    Some(root)
}

/// An npm cache. npm writes its temporary files and logs beside the two folders that it reads packages from.
fn npm(host: &Path) -> Option<ToolRoot> {
    host.join("_cacache/index-v5")
        .is_dir()
        .then(|| linked(ToolRoot::new("npm", host, &["_cacache/content-v2", "_cacache/index-v5"]), ".npm"))
}

/// A folder that holds Python packages and nothing else.
fn wheels(host: &Path) -> Option<ToolRoot> {
    let is_package = |name: &str| [".whl", ".tar.gz", ".zip"].iter().any(|end| name.ends_with(end));
    let entries: Vec<_> = std::fs::read_dir(host).ok()?.take(WHEELS_MAX + 1).flatten().collect();
    let all = entries.iter().all(|entry| is_package(&entry.file_name().to_string_lossy()));
    if entries.is_empty() || entries.len() > WHEELS_MAX || !all {
        return None;
    }
    let mut root = ToolRoot::new("wheels", host, &[""]);
    root.env.insert("PIP_FIND_LINKS".to_owned(), root.inside("").display().to_string());
    Some(root)
}

/// A toolchain of any kind: a prefix with `bin`. Its name is its folder's, or says nothing but is free.
fn toolchain(host: &Path, others: &[ToolRoot]) -> Option<ToolRoot> {
    host.parent().filter(|_| host.join("bin").is_dir() && !is_home_or_system(host))?;
    let base = slug(&host.file_name()?.to_string_lossy(), NAME_BYTES_MAX);
    let base = if base.is_empty() { "tool".to_owned() } else { base };
    let numbered = (2..=EXTRA_ROOTS_MAX + 1).map(|number| format!("{base}-{number}"));
    let name = std::iter::once(base.clone()).chain(numbered).find(|name| !others.iter().any(|other| other.name == *name))?;
    Some(ToolRoot::new(&name, host, &PREFIX_FOLDERS).with_programs())
}

/// A home has a `bin` at times and much that is nobody's business; `/usr` is there anyway.
fn is_home_or_system(host: &Path) -> bool {
    let home = std::env::var_os("HOME").and_then(|home| Path::new(&home).canonicalize().ok());
    home.is_some_and(|home| home.starts_with(host))
        || ["/usr", "/etc", "/var", "/root", "/home"].iter().any(|folder| Path::new(folder) == host)
}

/// Links all folders of a cache at the same place beneath `home_folder` in HOME.
fn linked(mut root: ToolRoot, home_folder: &str) -> ToolRoot {
    root.home_links = root.folders.iter().map(|folder| (Path::new(home_folder).join(folder), root.inside(folder))).collect();
    root
}
