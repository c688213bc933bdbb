//! Git as the simulation sees it: commits are maps from path to text, a remote is a base branch and refs, a gate's verdict follows from
//! the content of the commit alone. Nothing here fails or is late: that is the world's part.

use mosaic::api::agent::GateDefinition;
use mosaic::api::names::CommitId;
use std::collections::BTreeMap;

/// Path -> text.
pub type Files = BTreeMap<String, String>;

/// Marker that a conflict leaves in a file.
pub const MARKER: &str = "<<<<<<<";

/// One commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub parents: Vec<CommitId>,
    pub files: Files,
}

/// One remote repository.
#[derive(Debug, Clone)]
pub struct Remote {
    pub base: CommitId,
    pub refs: BTreeMap<String, CommitId>,
    pub gates: Vec<GateDefinition>,
    /// False: not created yet.
    pub exists: bool,
    /// True: does not answer.
    pub down: bool,
    /// When a commit ceased to be the tip of the base branch, in elapsed milliseconds.
    pub moved_at: BTreeMap<CommitId, u64>,
}

/// All commits and remotes.
#[derive(Debug, Clone, Default)]
pub struct Git {
    pub commits: BTreeMap<CommitId, Commit>,
    pub remotes: BTreeMap<String, Remote>,
}

impl Git {
    /// Stores a commit; the same content and parents give the same id.
    pub fn commit(&mut self, parents: Vec<CommitId>, files: Files) -> CommitId {
        let id = commit_id(&parents, &files);
        self.commits.insert(id.clone(), Commit { parents, files });
        id
    }

    /// Content of a commit.
    pub fn files(&self, id: &CommitId) -> &Files {
        &self.commits[id].files
    }

    /// A new remote whose base branch has one commit.
    pub fn add_remote(&mut self, url: &str, gates: &[(&str, &[&str])]) {
        let base = self.commit(Vec::new(), Files::from([("readme".into(), url.into()), ("shared".into(), "start".into())]));
        let gates = gates
            .iter()
            .map(|(name, needs)| GateDefinition {
                name: (*name).to_owned(),
                command: format!("check {name}"),
                timeout_seconds: 60,
                needs: needs.iter().map(|need| (*need).to_owned()).collect(),
                digest: format!("digest-{name}"),
            })
            .collect();
        self.remotes
            .insert(url.to_owned(), Remote { base, refs: BTreeMap::new(), gates, exists: true, down: false, moved_at: BTreeMap::new() });
    }

    /// Somebody pushes to the base branch.
    pub fn move_base(&mut self, url: &str, path: &str, text: &str, elapsed: u64) {
        let base = self.remotes[url].base.clone();
        let mut files = self.files(&base).clone();
        files.insert(path.to_owned(), text.to_owned());
        let tip = self.commit(vec![base.clone()], files);
        let remote = self.remotes.get_mut(url).unwrap();
        if remote.base != tip {
            remote.moved_at.insert(base, elapsed);
            remote.base = tip;
        }
    }

    /// Three-way merge of a change on `from` with `tip`: the content and the paths in conflict.
    pub fn merge(&self, from: &CommitId, change: &CommitId, tip: &CommitId) -> (Files, Vec<String>) {
        let (old, ours, theirs) = (self.files(from), self.files(change), self.files(tip));
        let mut merged = theirs.clone();
        let mut conflicts = Vec::new();
        for path in ours.keys().chain(old.keys()).chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
            let (o, a, b) = (old.get(path), ours.get(path), theirs.get(path));
            if a == o || a == b {
                continue;
            }
            if b != o {
                conflicts.push(path.clone());
                merged.insert(path.clone(), format!("{MARKER} {} | {}", a.map_or("", |s| s), b.map_or("", |s| s)));
            } else if let Some(a) = a {
                merged.insert(path.clone(), a.clone());
            } else {
                merged.remove(path);
            }
        }
        (merged, conflicts)
    }

    /// What a gate truly says of a commit.
    pub fn judge(&self, gate: &str, id: &CommitId) -> bool {
        let files = self.files(id);
        let any = |word: &str| files.values().any(|text| text.starts_with(word));
        match gate {
            "lint" => !any("ugly"),
            _ => !(any("bad") || any("fragile") && files.contains_key("api")),
        }
    }
}

/// Forty hexadecimal digits that follow from the content.
fn commit_id(parents: &[CommitId], files: &Files) -> CommitId {
    let hash = |mut state: u64| {
        let parts = parents.iter().map(CommitId::as_str).chain(files.iter().flat_map(|(path, text)| [path.as_str(), text.as_str()]));
        for part in parts {
            for byte in part.bytes().chain([0]) {
                state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        state
    };
    let text = format!("{:016x}{:016x}{:08x}", hash(1), hash(0xcbf2_9ce4_8422_2325), hash(7) >> 32);
    CommitId::new(text).expect("forty hexadecimal digits")
}
