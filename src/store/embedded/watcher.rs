//! A watch: a cursor in the table of changes that waits for commits. It holds nobody up and keeps one small part in memory.

use super::{BLOCKING_CALL, Shared};
use crate::store::{Kind, StoreError, StoreResult, Watch, WatchEvent, on_blocking_thread};
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// Most changes that one look reads.
const LOOK_CHANGES_MAX: usize = 128;

struct Watcher {
    shared: Arc<Shared>,
    committed: watch::Receiver<u64>,
    kind: Kind,
    /// Everything up to this version was read.
    cursor: u64,
    /// Read but not yet taken.
    events: VecDeque<WatchEvent>,
    bookmark_at: Instant,
}

/// The stream of a watch. Ends after an error.
pub(super) fn stream(shared: Arc<Shared>, kind: Kind, from: u64) -> Watch {
    let committed = shared.committed.subscribe();
    let bookmark_at = Instant::now() + shared.options.bookmark_interval;
    let watcher = Watcher { shared, committed, kind, cursor: from, events: VecDeque::new(), bookmark_at };
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
                self.bookmark_at = Instant::now() + self.shared.options.bookmark_interval;
                return Ok(event);
            }
            if self.shared.file.is_closed() {
                return Err(StoreError::Unavailable { what: "the store was closed".to_owned(), source: None });
            }
            // Marked as seen before the look: a commit during the look is not waited for in vain.
            let last = *self.committed.borrow_and_update();
            if last > self.cursor {
                self.look().await?;
            } else if tokio::time::timeout_at(self.bookmark_at, self.committed.changed()).await.is_err() {
                // A commit that failed may be on the disk all the same, and nobody announced it.
                self.look().await?;
                self.bookmark_at = Instant::now() + self.shared.options.bookmark_interval;
                if self.events.is_empty() {
                    return Ok(WatchEvent::Bookmark(self.cursor));
                }
            } else if self.bookmark_at <= Instant::now() {
                self.bookmark_at = Instant::now() + self.shared.options.bookmark_interval;
                return Ok(WatchEvent::Bookmark(self.cursor));
            }
        }
    }

    async fn look(&mut self) -> StoreResult<()> {
        let (shared, kind, from) = (Arc::clone(&self.shared), self.kind, self.cursor);
        let changes = on_blocking_thread(BLOCKING_CALL, move || {
            shared.file.read("read changes", |snapshot| {
                // Floor and changes come from one snapshot: none can be forgotten between the two looks.
                let is_kept = snapshot.changes_floor()? <= from;
                if is_kept { snapshot.changes(kind, from, LOOK_CHANGES_MAX).map(Some) } else { Ok(None) }
            })
        });
        let changes = changes.await?.ok_or(StoreError::TooOld(from))?;
        self.cursor = changes.cursor;
        self.events.extend(changes.events);
        Ok(())
    }
}
