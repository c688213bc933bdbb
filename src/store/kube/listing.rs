//! Lists, in pages of one moment: the API server's tokens go on from the version of the first page.

use super::call::{Api, CallError, Method};
use super::wire::{Page, encode, everywhere};
use crate::store::{Kind, Listing, Record, StoreError, StoreResult};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// Most records of one page.
const PAGE_RECORDS: usize = 500;
/// How often a list begins anew because its moment is not kept any more.
const TRIES_MAX: usize = 3;

/// All records of a kind at one version.
pub(super) async fn list(api: &Api, kind: Kind) -> StoreResult<(Vec<Record>, u64)> {
    let mut tries = 0;
    'anew: loop {
        tries += 1;
        let (mut records, version, mut next) = page(api, kind, PAGE_RECORDS, None).await.map_err(trouble(kind))?;
        while let Some(token) = next {
            match page(api, kind, PAGE_RECORDS, Some(&token)).await {
                Ok((more, _, after)) => {
                    records.extend(more);
                    next = after;
                }
                Err(error) if error.is_too_old() && tries < TRIES_MAX => continue 'anew,
                Err(error) => return Err(trouble(kind)(error)),
            }
        }
        return Ok((records, version));
    }
}

/// The same page by page.
pub(super) async fn stream(api: Arc<Api>, kind: Kind) -> StoreResult<(Listing, u64)> {
    let (records, version, next) = page(&api, kind, PAGE_RECORDS, None).await.map_err(trouble(kind))?;
    let rest = futures::stream::try_unfold(next, move |next| {
        let api = api.clone();
        async move {
            let Some(token) = next else { return Ok::<_, StoreError>(None) };
            let (records, _, after) = page(&api, kind, PAGE_RECORDS, Some(&token)).await.map_err(|error| match error {
                error if error.is_too_old() => StoreError::TooOld(version),
                error => trouble(kind)(error),
            })?;
            Ok(Some((futures::stream::iter(records.into_iter().map(Ok)), after)))
        }
    });
    Ok((futures::stream::iter(records.into_iter().map(Ok)).chain(rest.try_flatten()).boxed(), version))
}

/// How far the store is, now.
pub(super) async fn version(api: &Api, kind: Kind) -> Result<u64, CallError> {
    page(api, kind, 1, None).await.map(|(_, version, _)| version)
}

fn trouble(kind: Kind) -> impl Fn(CallError) -> StoreError {
    move |error| error.into_trouble(&format!("list {kind:?} records"))
}

type Read = (Vec<Record>, u64, Option<String>);

async fn page(api: &Api, kind: Kind, limit: usize, token: Option<&str>) -> Result<Read, CallError> {
    let mut path = format!("{}?limit={limit}", everywhere(kind));
    if let Some(token) = token {
        path = format!("{path}&continue={}", encode(token));
    }
    let page: Page = api.call(Method::GET, &path, None).await?;
    let version = page.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
    let version = version.ok_or_else(|| CallError::Odd(serde::de::Error::custom("the list has no numeric resourceVersion")))?;
    let records = page.items.into_iter().map(|object| object.into_record(kind)).collect();
    Ok((records, version, page.metadata.continue_.filter(|token| !token.is_empty())))
}
