//! Of which agents a state folder holds a tree, read from its folders alone: without the repositories, without a store, changing nothing. For the
//! kill lane, which must know whom it ends although nothing of them runs at the moment: between their own run and their gates, while they
//! are merged or pushed.

use super::place::Place;
use crate::api::names::Uid;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Name of the folder of trees in the state folder.
pub(super) const FOLDER_TREES: &str = "trees";

/// An agent of which there is a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which agent.
    pub uid: Uid,
    /// `namespace/name` of it; the uid where an earlier version wrote none.
    pub agent: String,
    /// Folder of its tree.
    pub folder: PathBuf,
}

/// Agents that have a tree, and in words what could not be read.
/// # Errors
/// The folder cannot be listed: nothing can be said then.
pub fn held(state: &Path) -> io::Result<(Vec<Held>, Vec<String>)> {
    let parent = state.join(FOLDER_TREES);
    let entries = match fs::read_dir(&parent) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(<_>::default()),
        other => other?,
    };
    let (mut held, mut unreadable) = (Vec::new(), Vec::new());
    for entry in entries {
        let place = Place { parent: parent.clone(), name: entry?.file_name().to_string_lossy().into_owned() };
        match place.read() {
            Ok(Some(meta)) => {
                let agent = if meta.agent.is_empty() { meta.uid.to_string() } else { meta.agent };
                held.push(Held { uid: meta.uid, agent, folder: place.folder() });
            }
            // Nothing was laid out there yet.
            Ok(None) => {}
            Err(why) => unreadable.push(crate::causes::one_line(&why)),
        }
    }
    Ok((held, unreadable))
}
