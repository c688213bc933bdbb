//! A watch: requests of a limited time, one after the other, each going on from the last version that was told.
//!
//! Before each request the store's version is asked for: an API server waits for a version that is yet to come without a word, and one whose
//! cluster was restored from an older copy would tell nothing for a long time. Bookmarks carry the version along where nothing happens.

use super::call::{Api, CALL_TIME_MAX, CallError, Method, request};
use super::listing;
use super::wire::{Object, everywhere};
use crate::store::{Kind, Record, StoreError, StoreResult, Watch, WatchEvent};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kube::api::WatchEvent as Told;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So much longer than its request may last, a connection that says nothing is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// Shortest time between two requests of one watch.
const REQUEST_INTERVAL: Duration = Duration::from_millis(500);

type Events = BoxStream<'static, Result<Told<Object>, kube::Error>>;

struct Watcher {
    api: Arc<Api>,
    window: Duration,
    kind: Kind,
    /// Everything up to this version was told.
    cursor: u64,
    events: Option<Events>,
    requested: Instant,
}

/// Starts a watch. Its stream ends after an error.
pub(super) async fn start(api: Arc<Api>, window: Duration, kind: Kind, from: u64) -> StoreResult<Watch> {
    let mut watcher = Watcher { api, window, kind, cursor: from, events: None, requested: Instant::now() };
    watcher.request().await?;
    let steps = futures::stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(event) => Some((Ok(event), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(steps.boxed())
}

impl Watcher {
    async fn next(&mut self) -> StoreResult<WatchEvent> {
        loop {
            let Some(events) = &mut self.events else {
                tokio::time::sleep_until(self.requested + REQUEST_INTERVAL).await;
                self.request().await?;
                continue;
            };
            let silence = self.window + SILENCE;
            let Ok(told) = tokio::time::timeout(silence, events.try_next()).await else {
                return Err(self.broken(CallError::Silent(silence)));
            };
            match told.map_err(|error| self.broken(error.into()))? {
                None => self.events = None,
                Some(Told::Added(object) | Told::Modified(object)) => return Ok(self.told(WatchEvent::Applied, object)),
                Some(Told::Deleted(object)) => return Ok(self.told(WatchEvent::Deleted, object)),
                Some(Told::Bookmark(mark)) => {
                    self.cursor = mark.metadata.resource_version.parse().unwrap_or(self.cursor);
                    return Ok(WatchEvent::Bookmark(self.cursor));
                }
                Some(Told::Error(status)) => return Err(self.broken(CallError::Refused(status))),
            }
        }
    }

    fn told(&mut self, how: impl Fn(Record) -> WatchEvent, object: Object) -> WatchEvent {
        let record = object.into_record(self.kind);
        let version: Option<u64> = record.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        self.cursor = version.unwrap_or_default().max(self.cursor);
        how(record)
    }

    async fn request(&mut self) -> StoreResult<()> {
        self.requested = Instant::now();
        let now = listing::version(&self.api, self.kind).await.map_err(|error| self.broken(error))?;
        if self.cursor > now {
            return Err(StoreError::TooOld(self.cursor));
        }
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            everywhere(self.kind),
            self.cursor,
            self.window.as_secs()
        );
        let asked = self.api.client().request_events::<Object>(request(&Method::GET, &path, None));
        let answered = tokio::time::timeout(CALL_TIME_MAX, asked).await.map_err(|_| self.broken(CallError::Silent(CALL_TIME_MAX)))?;
        self.events = Some(answered.map_err(|error| self.broken(error.into()))?.boxed());
        Ok(())
    }

    fn broken(&self, error: CallError) -> StoreError {
        if error.is_too_old() {
            return StoreError::TooOld(self.cursor);
        }
        error.into_trouble(&format!("watch {:?} records", self.kind))
    }
}
