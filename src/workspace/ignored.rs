//! Which untracked files stay out of a commit: the `.gitignore` files of the BASE commit, nested ones too, and nothing else.
//!
//! The agent's own ignore files count only from the next base on: otherwise it could hide what it leaves behind.

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::path::Path;

/// Larger ignore files are not heeded.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The ignore files from the root down to one folder.
#[derive(Default)]
pub(super) struct Ignored {
    levels: Vec<(usize, Gitignore)>,
}

impl Ignored {
    /// Enters a folder whose path has `prefix` bytes (with its final slash), with the content of its ignore file in the base.
    pub(super) fn enter(&mut self, prefix: usize, content: Option<&[u8]>) {
        let mut builder = GitignoreBuilder::new("");
        for line in String::from_utf8_lossy(content.filter(|c| c.len() <= FILE_BYTES_MAX).unwrap_or_default()).lines() {
            // A line that cannot be understood ignores nothing, as in git.
            let _ = builder.add_line(None, line);
        }
        self.levels.push((prefix, builder.build().unwrap_or_else(|_| Gitignore::empty())));
    }

    /// Leaves the folder entered last.
    pub(super) fn leave(&mut self) {
        self.levels.pop();
    }

    /// Whether an untracked path is ignored: the deepest file that has a word on it decides.
    pub(super) fn matches(&self, path: &str, is_folder: bool) -> bool {
        for (prefix, rules) in self.levels.iter().rev() {
            let matched = rules.matched(Path::new(&path[*prefix..]), is_folder);
            if !matched.is_none() {
                return matched.is_ignore();
            }
        }
        false
    }
}
