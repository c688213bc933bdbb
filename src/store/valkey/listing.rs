//! Lists, in pages. A server must not be held up by ten thousand records at once, so a list is scanned page by page while others write.
//!
//! `list` puts the pages right afterwards: what changed since the version before the scan is read from the stream of changes and applied, which
//! makes the list one of exactly the version of the last change applied. `stream` tells each page as it comes, with the version from before
//! the scan: a record that nobody touches meanwhile is told exactly once or more, one that is touched may be told in its later state or not at
//! all, and the watch from that version tells it again.

use super::Shared;
use super::changes::{self, Gap};
use super::link::{ANSWER_WAIT_MAX, LinkError};
use super::stored::decode_leniently;
use crate::store::{Kind, Listing, Record, StoreError, StoreResult, WatchEvent};
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// About how many records one page has.
const PAGE_RECORDS: i64 = 256;
/// How often a list begins anew because more changed meanwhile than is kept.
const TRIES_MAX: usize = 5;

/// All records of a kind at one version, by address.
pub(super) async fn list(shared: &Shared, kind: Kind) -> StoreResult<(Vec<Record>, u64)> {
    for _ in 0..TRIES_MAX {
        let before = shared.position().await.map_err(|error| shared.failed("list records", error))?.version;
        let mut found = BTreeMap::new();
        let mut cursor = START.to_owned();
        loop {
            let (next, records) = page(shared, kind, &cursor).await?;
            found.extend(records.into_iter().map(|record| (record.key(), record)));
            if next == START {
                break;
            }
            cursor = next;
        }
        match catch_up(shared, kind, before, &mut found).await {
            Ok(version) => return Ok((found.into_values().collect(), version)),
            Err(Gap::Lost(_)) => {}
            Err(Gap::Link(error)) => return Err(shared.failed("list records", error)),
        }
    }
    let what = format!("records in {} changed faster than they could be listed, {TRIES_MAX} times", shared.url);
    Err(StoreError::Unavailable { what, source: None })
}

/// Applies what changed since `version`. Returns the version of the last change.
async fn catch_up(shared: &Shared, kind: Kind, mut version: u64, found: &mut BTreeMap<crate::store::Key, Record>) -> Result<u64, Gap> {
    loop {
        let changes = changes::read(shared, version).await?;
        let is_last = changes.len() < changes::LOOK_CHANGES_MAX;
        version = changes.last().map_or(version, |change| change.version);
        for change in changes.iter().filter(|change| change.kind == kind) {
            match change.event()? {
                WatchEvent::Applied(record) => drop(found.insert(record.key(), record)),
                WatchEvent::Deleted(record) => drop(found.remove(&record.key())),
                WatchEvent::Bookmark(_) => {}
            }
        }
        if is_last {
            return Ok(version);
        }
    }
}

/// The records of a kind page by page, and the version from before the first.
pub(super) async fn stream(shared: Arc<Shared>, kind: Kind) -> StoreResult<(Listing, u64)> {
    let version = shared.position().await.map_err(|error| shared.failed("list records", error))?.version;
    let pages = futures::stream::try_unfold(Some(START.to_owned()), move |cursor| {
        let shared = shared.clone();
        async move {
            let Some(cursor) = cursor else { return Ok::<_, StoreError>(None) };
            let (next, records) = page(&shared, kind, &cursor).await?;
            Ok(Some((futures::stream::iter(records.into_iter().map(Ok)), (next != START).then_some(next))))
        }
    });
    Ok((pages.try_flatten().boxed(), version))
}

/// The server's word for the first page, and for that there is no further one.
const START: &str = "0";

/// One page and the cursor of the next.
async fn page(shared: &Shared, kind: Kind, cursor: &str) -> StoreResult<(String, Vec<Record>)> {
    let (key, slot) = (shared.keys.records(kind), shared.keys.slot());
    let command = CustomCommand::new_static("HSCAN", ClusterHash::Custom(slot), false);
    let args: Vec<Value> = vec![key.into(), cursor.into(), "COUNT".into(), PAGE_RECORDS.into()];
    let ask = |client: Client| async move { client.custom::<Value, _>(command, args).await };
    let answer = shared.reads.call(ANSWER_WAIT_MAX, ask).await.map_err(|error| shared.failed("list records", error))?;
    let odd = || shared.failed("list records", LinkError::Broken("an answer to HSCAN has another form".to_owned()));
    let Value::Array(parts) = answer else { return Err(odd()) };
    let [next, Value::Array(fields)] = &parts[..] else { return Err(odd()) };
    let decode = |pair: &[Value]| {
        let (Some(field), Some(value)) = (pair[0].as_string(), pair[1].as_bytes()) else { return Err(odd()) };
        decode_leniently(kind, &field, value).map_err(|why| StoreError::Unusable(format!("{}: {why}", shared.url)))
    };
    let records = fields.chunks_exact(2).map(decode).collect::<StoreResult<Vec<_>>>()?;
    Ok((next.as_string().ok_or_else(odd)?, records))
}
