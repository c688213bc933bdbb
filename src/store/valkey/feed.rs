//! One connection that waits for changes on behalf of all watches, in finite blocking reads from an explicit version.
//!
//! The last changes are kept in a small ring that watches take them from; who is further behind reads for itself. Any doubt ends all watches:
//! a broken connection, a gap, a store that went back or is another one. A watch that ended is followed by a list, which is never wrong;
//! a watch that went on over a server that came back from an older copy would be.

use super::Shared;
use super::changes::{self, Change, Gap, LOOK_CHANGES_MAX};
use super::link::{ANSWER_WAIT_MAX, Link};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Longest blocking read. After one without news it is looked whether the store is still the same.
const BLOCK: Duration = Duration::from_secs(2);
/// Pause before a broken feed begins anew.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Pause between two reads that brought something: a hundred changes a moment are one read, and a lone one is told at once all the same.
const READ_PAUSE: Duration = Duration::from_millis(5);
/// Most changes in the ring; never more than half of what the server keeps.
const RING_CHANGES_MAX: u64 = 256;
/// Most bytes of records in the ring.
const RING_BYTES_MAX: usize = 4 << 20;

/// How far the feed is.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Counts doubts: a watch of an earlier one ends.
    pub(super) generation: u64,
    /// Every change up to here was read.
    pub(super) read_to: u64,
    /// The last doubt.
    pub(super) why: String,
}

/// The last changes, oldest first, without a gap.
#[derive(Debug, Default)]
pub(super) struct Ring {
    changes: Mutex<VecDeque<Arc<Change>>>,
}

impl Ring {
    /// The changes behind a version, at most as many as one look takes; `None`: the ring has not
    /// the next one.
    pub(super) fn behind(&self, from: u64) -> Option<Vec<Arc<Change>>> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let first = changes.front()?.version;
        let skip = usize::try_from((from + 1).checked_sub(first)?).ok()?;
        let behind: Vec<_> = changes.iter().skip(skip).take(LOOK_CHANGES_MAX).cloned().collect();
        (!behind.is_empty()).then_some(behind)
    }

    fn push(&self, change: Change, count_max: u64) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.push_back(Arc::new(change));
        while changes.len() as u64 > count_max || changes.iter().map(|change| change.bytes()).sum::<usize>() > RING_BYTES_MAX {
            changes.pop_front();
        }
    }

    fn clear(&self) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Feeds for ever; ends when it is aborted.
pub(super) async fn run(shared: Arc<Shared>, link: Link, state: watch::Sender<State>) {
    loop {
        let why = match follow(&shared, &link, &state).await {
            Gap::Lost(why) => why,
            Gap::Link(error) => error.to_string(),
        };
        shared.ring.clear();
        state.send_modify(|state| *state = State { generation: state.generation + 1, read_to: state.read_to, why: why.clone() });
        tracing::warn!(why, server = %shared.url, "watches of the Valkey store are broken off; they begin anew");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn follow(shared: &Shared, link: &Link, state: &watch::Sender<State>) -> Gap {
    let before = state.borrow().read_to;
    let mut read_to = match begin(shared, before).await {
        Ok(read_to) => read_to,
        Err(gap) => return gap,
    };
    state.send_modify(|state| {
        state.read_to = read_to;
        // A watch that began while the feed was away may be further than the store that the feed finds now.
        if state.generation > 0 {
            state.generation += 1;
            "it began while nobody followed the store's changes".clone_into(&mut state.why);
        }
    });
    loop {
        match step(shared, link, read_to).await {
            Ok(version) if version == read_to => {}
            Ok(version) => {
                read_to = version;
                state.send_modify(|state| state.read_to = read_to);
                tokio::time::sleep(READ_PAUSE).await;
            }
            Err(gap) => return gap,
        }
    }
}

async fn begin(shared: &Shared, before: u64) -> Result<u64, Gap> {
    let position = shared.position().await?;
    // A watch that began while the feed was broken must not wait for versions that will come a second time.
    if position.version < before { Err(Gap::Lost("the store went back".to_owned())) } else { Ok(position.version) }
}

/// One blocking read. Returns how far it got.
async fn step(shared: &Shared, link: &Link, from: u64) -> Result<u64, Gap> {
    let ask = |client| async move { changes::wait(shared, &client, from, BLOCK).await };
    let entries = link.call(BLOCK + ANSWER_WAIT_MAX, ask).await?;
    let read = changes::in_order(shared, from, entries)?;
    let Some(last) = read.last().map(|change| change.version) else {
        let position = shared.position().await?;
        return if position.version < from { Err(Gap::Lost("the store went back".to_owned())) } else { Ok(from) };
    };
    let count_max = RING_CHANGES_MAX.min(shared.options.changes_max / 2).max(1);
    read.into_iter().for_each(|change| shared.ring.push(change, count_max));
    Ok(last)
}
