//! Names of files that are never laid out and never committed, because git or a file system would read them as something else.

/// Why a file name is refused; `None`: it is not.
pub(super) fn refusal(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" | b"." | b".." => Some("it is no file name"),
        _ if name.contains(&b'/') || name.contains(&0) => Some("it is no file name"),
        _ if is_dot_git(name) => Some("a repository within the repository cannot be part of a commit; remove it"),
        _ => None,
    }
}

/// Whether a name is text that can be shown and typed, and reads as what it is: nothing in it turns the direction of writing round.
pub(super) fn is_readable(name: &[u8]) -> bool {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    std::str::from_utf8(name).is_ok_and(|text| !text.chars().any(|c| c.is_control() || turns(c)))
}

/// `.git` as git, HFS+ and NTFS read it: any case, ignorable characters, trailing dots and spaces, streams, the short name.
fn is_dot_git(name: &[u8]) -> bool {
    let text: String = String::from_utf8_lossy(name).chars().filter(|c| !is_ignorable(*c)).collect::<String>().to_ascii_lowercase();
    let stem = text.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    matches!(stem, ".git" | "git~1")
}

/// Characters that HFS+ drops from names.
fn is_ignorable(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_nested_repository_is_refused() {
        for name in [".git", ".GIT", ".Git", ".git.", ".git ", ".git::$INDEX_ALLOCATION", "git~1", "GIT~1", ".g\u{200c}it", "\u{feff}.git"]
        {
            assert!(refusal(name.as_bytes()).is_some(), "{name:?}");
        }
        for name in [".gitignore", ".github", "git", "dot.git", ".gitmodules", "x.git", "..."] {
            assert_eq!(refusal(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn names_nobody_can_read_are_told_apart() {
        assert!(is_readable("übung.txt".as_bytes()));
        assert!(!is_readable(b"a\nb"));
        assert!(!is_readable(b"\xff\xfe"));
        assert!(is_readable("\u{627}\u{644}\u{633}.txt".as_bytes()));
        assert!(!is_readable("invoice\u{202e}txt.sh".as_bytes()) && !is_readable("a\u{2066}b".as_bytes()));
    }
}
