//! Labels of a member in one text: a map of two labels takes ten times the memory, and the fleet holds them for every agent.

use std::collections::BTreeMap;

/// Labels, packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(Box<str>);

impl From<BTreeMap<String, String>> for Labels {
    /// Neither keys nor values of labels have control characters: the store refuses them.
    fn from(labels: BTreeMap<String, String>) -> Self {
        let lines: Vec<String> = labels.iter().map(|(key, value)| format!("{key}\t{value}")).collect();
        Self(lines.join("\n").into())
    }
}

impl Labels {
    /// As a map.
    #[must_use]
    pub fn unpack(&self) -> BTreeMap<String, String> {
        self.0.lines().filter_map(|line| line.split_once('\t')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}
