//! Toolchains that are in use on this host and live outside what every sandbox sees anyway.
//!
//! Each program is asked where it lives: what PATH shows may be a shim (rustup, pyenv) that is useless without its home.

use super::{SEARCH_PATH_STANDARD, ToolRoot};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to say where it lives.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has answered.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// Longest answer that is read, in bytes.
const PROBE_BYTES_MAX: u64 = 64 * 1024;

/// The folders of a program's prefix that it can need. Never its files: those are settings, at times with a token.
pub(super) const PREFIX_FOLDERS: [&str; 7] = ["bin", "lib", "lib64", "libexec", "include", "share", "pkg"];
/// The same of a Go installation, which keeps the standard library as sources.
const GO_FOLDERS: [&str; 5] = ["bin", "lib", "pkg", "src", "misc"];

/// Finds Rust, Node, Python and Go.
pub(super) fn find() -> Vec<ToolRoot> {
    let prefix = prefix_outside_standard;
    let rust = prefix("rustc", &["--print", "sysroot"]);
    let python = prefix("python3", &["-c", "import sys; print(sys.base_prefix)"]);
    let go = prefix("go", &["env", "GOROOT"]);
    let node = prefix("node", &["-p", "require('path').dirname(require('path').dirname(process.execPath))"]);
    let mut roots = Vec::new();
    roots.extend(rust.map(|host| ToolRoot::new("rust", &host, &PREFIX_FOLDERS).with_programs()));
    roots.extend(node.map(|host| ToolRoot::new("node", &host, &PREFIX_FOLDERS).with_programs()));
    roots.extend(python.map(|host| python_root(&host)));
    roots.extend(go.map(|host| ToolRoot::new("go", &host, &GO_FOLDERS).with_programs()));
    roots
}

/// A Python that was built with a shared library finds it by an absolute path of the host, which is not there inside.
fn python_root(host: &Path) -> ToolRoot {
    let mut root = ToolRoot::new("python", host, &PREFIX_FOLDERS).with_programs();
    if has_only_its_own_libraries(&host.join("lib")) {
        root.env.insert("LD_LIBRARY_PATH".to_owned(), root.inside("lib").display().to_string());
    }
    root
}

/// Whether the shared libraries of a folder are Python's alone: with others in it the search path would change other programs too.
fn has_only_its_own_libraries(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let libraries: Vec<String> = names.filter(|name| name.contains(".so")).collect();
    !libraries.is_empty() && libraries.iter().all(|name| name.starts_with("libpython"))
}

/// Where a program on PATH says it lives, unless every sandbox can run it anyway.
fn prefix_outside_standard(program: &str, args: &[&str]) -> Option<PathBuf> {
    let found = find_program(program)?;
    let prefix = PathBuf::from(ask(&found, args)?);
    let prefix = prefix.canonicalize().ok()?;
    let runs_anyway = is_standard(&prefix.join("bin")) || (found.parent().is_some_and(is_standard) && prefix.starts_with("/usr"));
    (!runs_anyway && prefix.parent().is_some() && prefix.join("bin").is_dir()).then_some(prefix)
}

fn is_standard(folder: &Path) -> bool {
    SEARCH_PATH_STANDARD.split(':').any(|standard| Path::new(standard) == folder)
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(program)).find(|file| {
        let metadata = std::fs::metadata(file);
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// The first line that a program prints, if it ends well in time. It runs in `/`: a project's own settings must not choose the toolchain.
fn ask(program: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let deadline = Instant::now() + PROBE_DEADLINE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(PROBE_INTERVAL),
            Ok(None) | Err(_) => {
                // Nothing to do about a failure here: the answer is not used, and the child is ours to reap either way.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut answer = String::new();
    child.stdout.take()?.take(PROBE_BYTES_MAX).read_to_string(&mut answer).ok()?;
    let line = answer.lines().next().unwrap_or_default().trim();
    (status.success() && line.starts_with('/')).then(|| line.to_owned())
}
