//! A list that is told record by record, from one snapshot: a blocking thread reads a little ahead of whoever listens.

use super::{BLOCKING_CALL, Shared};
use crate::store::{Kind, Listing, StoreError, StoreResult, on_blocking_thread};
use futures::StreamExt;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Most records that are read ahead.
const AHEAD_MAX: usize = 32;

/// The stream, and the resource version of its moment.
pub(super) async fn stream(shared: Arc<Shared>, kind: Kind) -> StoreResult<(Listing, u64)> {
    let (version_sender, version) = oneshot::channel();
    let (records_sender, records) = mpsc::channel(AHEAD_MAX);
    let reading = on_blocking_thread(BLOCKING_CALL, move || {
        let read = shared.file.read("list records", |snapshot| {
            // Who no longer listens needs no more.
            let _ = version_sender.send(snapshot.last_version()?);
            snapshot.each(kind, |record| records_sender.blocking_send(Ok(record)).is_ok())
        });
        read.inspect_err(|error| {
            let copy = StoreError::Unavailable { what: error.to_string(), source: None };
            let _ = records_sender.blocking_send(Err(copy));
        })
    });
    let reading = tokio::spawn(reading);
    match version.await {
        Ok(version) => Ok((ReceiverStream::new(records).boxed(), version)),
        // It failed before there was anything to tell.
        Err(_) => match reading.await {
            Ok(Err(error)) => Err(error),
            _ => Err(StoreError::Unavailable { what: "a list was broken off".to_owned(), source: None }),
        },
    }
}
