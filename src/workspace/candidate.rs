//! The check of a candidate's tree, before the commit exists: the one place where what an agent made is judged by its content.
//!
//! A scanner for secrets belongs here, as another check of the same changed files. Count, size, depth and names are held by the reader while
//! it reads. What is here already: a `.gitmodules` that `git` itself would refuse or act upon. One such file on an agent's branch would
//! poison every later clone and fetch of the remote.

use super::error::WorkspaceError;
use super::repository::Pair;
use git2::{Delta, Repository, Tree};

/// Largest `.gitmodules`, in bytes: about a thousand submodules.
const GITMODULES_BYTES_MAX: usize = 128 << 10;

/// Judges every file that the candidate adds or changes; one line for each refusal.
pub(super) fn check(pair: &Pair, opened: &Repository, base: &Tree<'_>, made: &Tree<'_>) -> Result<Vec<String>, WorkspaceError> {
    let diff = opened.diff_tree_to_tree(Some(base), Some(made), None).map_err(pair.git("compare commits"))?;
    let mut refused = Vec::new();
    for delta in diff.deltas().filter(|delta| delta.status() != Delta::Deleted) {
        let file = delta.new_file();
        let path = String::from_utf8_lossy(file.path_bytes().unwrap_or_default()).into_owned();
        let name = path.rsplit('/').next().unwrap_or_default();
        if !is_gitmodules(name) {
            continue;
        }
        if name != ".gitmodules" {
            refused.push(format!("{path:?}: some systems read this name as .gitmodules; choose another"));
            continue;
        }
        let blob = opened.find_blob(file.id()).map_err(pair.git("read a file"))?;
        if let Some(why) = refuse_gitmodules(blob.content()) {
            refused.push(format!("{path}: {why}"));
        }
    }
    Ok(refused)
}

/// `.gitmodules` as git, HFS+ and NTFS read it.
fn is_gitmodules(name: &str) -> bool {
    let plain: String = name.chars().filter(|c| c.is_ascii()).collect::<String>().to_ascii_lowercase();
    let stem = plain.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    stem == ".gitmodules" || stem.starts_with("gitmod~") || (stem.starts_with("gi7eba~") && stem.len() == 8)
}

/// Why a `.gitmodules` is refused: anything but plain sections with plain values.
fn refuse_gitmodules(content: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(content).ok().filter(|text| text.len() <= GITMODULES_BYTES_MAX);
    let Some(text) = text else { return Some(format!("it must be text of at most {GITMODULES_BYTES_MAX} bytes")) };
    let wrong = text.lines().enumerate().find(|(_, line)| !is_plain_line(line.trim()))?;
    Some(format!("line {}: only plain submodules are allowed (path, url by https, ssh or a relative path, branch)", wrong.0 + 1))
}

fn is_plain_line(line: &str) -> bool {
    let plain = |text: &str| {
        let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@:~".contains(&b));
        letters && !text.is_empty() && !text.starts_with('-') && !text.contains("::")
    };
    let inside = |text: &str| plain(text) && !text.split('/').any(|part| part == "..");
    if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
        return true;
    }
    if let Some(name) = line.strip_prefix("[submodule \"").and_then(|rest| rest.strip_suffix("\"]")) {
        return inside(name);
    }
    let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else { return false };
    match key.to_ascii_lowercase().as_str() {
        "path" => inside(value) && !value.starts_with('/'),
        "url" => plain(value) && ["https://", "ssh://", "./", "../", "git@"].iter().any(|start| value.starts_with(start)),
        "branch" => plain(value),
        "update" => ["checkout", "rebase", "merge", "none"].contains(&value),
        "ignore" | "shallow" | "fetchrecursesubmodules" => plain(value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_submodules_pass_and_others_do_not() {
        let plain = "# ours\n[submodule \"lib/a\"]\n\tpath = lib/a\n\turl = https://example.org/a.git\n\tbranch = main\n";
        assert_eq!(refuse_gitmodules(plain.as_bytes()), None);
        for line in [
            "update = !id",
            "url = ext::sh -c id",
            "url = -oProxyCommand=id",
            "url = file:///etc",
            "path = ../x",
            "path = -u",
            "[submodule \"../../hooks\"]",
            "[submodule \"-c\"]",
            "[include]",
            "url = \"https://x\\ny\"",
        ] {
            assert!(refuse_gitmodules(line.as_bytes()).is_some(), "{line}");
        }
        for name in [".gitmodules", ".GitModules", ".gitmodules.", "GITMOD~1", "gi7eba~1", ".git\u{200c}modules", ".gitmodules:x"] {
            assert!(is_gitmodules(name), "{name}");
        }
        assert!(!is_gitmodules("gitmodules") && !is_gitmodules(".gitmodules.md"));
    }
}
