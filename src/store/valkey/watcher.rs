//! A watch: a cursor in the stream of changes that waits for the feed. It holds nobody up and keeps one small part in memory.

use super::Shared;
use super::changes::{self, Gap};
use super::feed::State;
use crate::store::{Kind, StoreError, StoreResult, Watch, WatchEvent};
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

struct Watcher {
    shared: Arc<Shared>,
    feed: watch::Receiver<State>,
    generation: u64,
    kind: Kind,
    /// Everything up to this version was read.
    cursor: u64,
    /// Read but not yet taken.
    events: VecDeque<WatchEvent>,
    bookmark_at: Instant,
}

/// The stream of a watch. Ends after an error. `generation` is the feed's before the store's position was looked at.
pub(super) fn stream(shared: Arc<Shared>, feed: watch::Receiver<State>, generation: u64, kind: Kind, from: u64) -> Watch {
    let bookmark_at = Instant::now() + shared.options.bookmark_interval;
    let watcher = Watcher { shared, feed, generation, kind, cursor: from, events: VecDeque::new(), bookmark_at };
    let steps = futures::stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(event) => Some((Ok(event), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    });
    steps.boxed()
}

impl Watcher {
    async fn next(&mut self) -> StoreResult<WatchEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                self.postpone_bookmark();
                return Ok(event);
            }
            let state = self.feed.borrow_and_update().clone();
            if state.generation != self.generation {
                return Err(StoreError::Unavailable { what: format!("the watch was broken off: {}", state.why), source: None });
            }
            if state.read_to > self.cursor {
                self.look().await?;
            } else {
                match tokio::time::timeout_at(self.bookmark_at, self.feed.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(StoreError::Unavailable { what: "the store was closed".to_owned(), source: None }),
                    Err(_) => {
                        self.postpone_bookmark();
                        return Ok(WatchEvent::Bookmark(self.cursor));
                    }
                }
            }
        }
    }

    fn postpone_bookmark(&mut self) {
        self.bookmark_at = Instant::now() + self.shared.options.bookmark_interval;
    }

    async fn look(&mut self) -> StoreResult<()> {
        let from = self.cursor;
        let too_old = |gap| match gap {
            Gap::Lost(_) => StoreError::TooOld(from),
            Gap::Link(error) => self.shared.failed("read changes", error),
        };
        let changes = match self.shared.ring.behind(from) {
            Some(changes) => changes,
            None => changes::read(&self.shared, from).await.map_err(too_old)?.into_iter().map(Arc::new).collect(),
        };
        // The feed has seen changes that are not there any more.
        self.cursor = changes.last().ok_or(StoreError::TooOld(from))?.version;
        let wanted = changes.iter().filter(|change| change.kind == self.kind);
        let events = wanted.map(|change| change.event().map_err(too_old)).collect::<StoreResult<Vec<_>>>()?;
        self.events.extend(events);
        Ok(())
    }
}
