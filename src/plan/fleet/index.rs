//! Orders in which the fleet finds its members: by name, by task, by target. An entry is a pointer to the member, which holds the texts,
//! so that an index of ten thousand agents takes kilobytes.

use super::{ClaimOf, Member};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::Bound;
use std::sync::Arc;

/// What an index sorts by: two texts by which members are asked for, then their precedence.
type SortKey<'a> = (&'a str, &'a str, Option<ClaimOf>);

/// Which two texts.
pub(super) trait Order {
    /// The texts of a member.
    fn texts(member: &Member) -> (&str, &str);
}

/// Namespace and name.
#[derive(Debug, Clone)]
pub(super) struct ByName;
/// Namespace and task id.
#[derive(Debug, Clone)]
pub(super) struct ByTask;
/// Remote and branch.
#[derive(Debug, Clone)]
pub(super) struct ByTarget;

impl Order for ByName {
    fn texts(member: &Member) -> (&str, &str) {
        (&member.namespace, &member.name)
    }
}

impl Order for ByTask {
    fn texts(member: &Member) -> (&str, &str) {
        (&member.namespace, &member.task_id)
    }
}

impl Order for ByTarget {
    fn texts(member: &Member) -> (&str, &str) {
        (&member.target.0, &member.target.1)
    }
}

/// Members in one order.
#[derive(Debug, Clone)]
pub(super) struct Index<O: Order>(BTreeSet<Entry<O>>);

impl<O: Order> Index<O> {
    pub(super) fn new() -> Self {
        Self(BTreeSet::new())
    }

    pub(super) fn insert(&mut self, member: &Arc<Member>) {
        self.0.insert(Entry(member.clone(), PhantomData));
    }

    pub(super) fn remove(&mut self, member: &Arc<Member>) {
        self.0.remove(&Entry(member.clone(), PhantomData));
    }

    /// All members of these two texts, those of precedence first.
    pub(super) fn all<'a, 'b>(&'a self, first: &'b str, second: &'b str) -> impl Iterator<Item = &'a Arc<Member>> + use<'a, 'b, O> {
        let texts = (first, second);
        let from: Bound<&dyn Keyed> = Bound::Included(&texts);
        let found = self.0.range::<dyn Keyed, _>((from, Bound::Unbounded)).map(|entry| &entry.0);
        found.take_while(move |member| O::texts(member) == (first, second))
    }
}

#[derive(Debug, Clone)]
struct Entry<O>(Arc<Member>, PhantomData<O>);

/// Lets an index be asked by borrowed texts.
trait Keyed {
    fn key(&self) -> SortKey<'_>;
}

impl<O: Order> Keyed for Entry<O> {
    fn key(&self) -> SortKey<'_> {
        let (first, second) = O::texts(&self.0);
        (first, second, Some(self.0.claim()))
    }
}

/// Stands before all members of these texts.
impl Keyed for (&str, &str) {
    fn key(&self) -> SortKey<'_> {
        (self.0, self.1, None)
    }
}

impl<'a, O: Order + 'a> Borrow<dyn Keyed + 'a> for Entry<O> {
    fn borrow(&self) -> &(dyn Keyed + 'a) {
        self
    }
}

impl Ord for dyn Keyed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for dyn Keyed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Keyed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn Keyed + '_ {}

impl<O: Order> Ord for Entry<O> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<O: Order> PartialOrd for Entry<O> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<O: Order> PartialEq for Entry<O> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<O: Order> Eq for Entry<O> {}
