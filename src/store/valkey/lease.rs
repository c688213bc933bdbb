//! The Valkey form of the leader lease: a key that goes by itself, and a fencing epoch that is kept apart from it and never goes back.
//!
//! The server's clock decides how long a lease lasts; whoever leads must count from before it asked (`controller::leadership`). The epoch
//! is in the store, on its disk where writes are durable, and in the state folder: a store that was emptied or restored brings none back.
//! The lease has a connection of its own, so that no write or list holds a renewal up.

use super::link::{ANSWER_WAIT_MAX, Link, LinkError};
use super::script::{Call, LEASE, Reply};
use super::{Shared, ValkeyStore, open, writes};
use crate::api::names::Epoch;
use crate::store::StoreError;
use crate::store::lease::{Acquired, EpochFile, Lease, LeaseError, WISH_TIME};
use fred::types::Value;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a lease lasts without renewal. A leader that was killed is replaced within 6 s, the next one's question and the server's
/// disk included; a slow server (2 s per answer) still lets its leader renew in time.
pub const LEASE_TTL: Duration = Duration::from_millis(4500);

/// The Valkey form.
pub struct ValkeyLease {
    shared: Arc<Shared>,
    durable: bool,
    link: Link,
    /// Tells this candidate from every other one, also of the same process.
    holder: String,
    /// The same for people.
    who: String,
    epoch_file: Option<EpochFile>,
}

impl ValkeyLease {
    /// A candidate for the lease of a store. With a state folder, the epoch is kept there as well.
    #[must_use]
    pub fn new(store: &ValkeyStore, state: Option<&Path>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let since = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        Self {
            shared: store.shared.clone(),
            durable: store.durable.is_ok(),
            link: Link::new(store.shared.url.clone()),
            holder: uuid::Uuid::new_v4().to_string(),
            who: format!("pid {}, on {host}, since {since}", std::process::id()),
            epoch_file: state.map(|state| EpochFile::new(state.join("valkey-epoch"))),
        }
    }

    /// `verb`: acquire, renew, release or wish; `more` is what it needs beyond what all of them do.
    async fn ask(&self, verb: &'static str, more: Vec<Value>, durable: bool) -> Result<Reply, LeaseError> {
        let lasts = if verb == "wish" { WISH_TIME } else { LEASE_TTL };
        let ttl = i64::try_from(lasts.as_millis()).expect("a few seconds");
        let args: Vec<Value> = vec![self.shared.id().into(), verb.into(), self.holder.clone().into(), ttl.into()];
        let args = args.into_iter().chain(more).collect();
        let keys = vec![self.shared.keys.meta(), self.shared.keys.lease(), self.shared.keys.wish()];
        let call = Call { script: &LEASE, keys, args };
        let slot = self.shared.keys.slot();
        let answered = if durable {
            let ask = |client| async move { writes::write(&client, std::slice::from_ref(&call), slot).await };
            self.link.call(ANSWER_WAIT_MAX, ask).await.and_then(|mut answers| answers.remove(0))
        } else {
            let value = self.link.call(ANSWER_WAIT_MAX, |client| async move { call.run(&client).await }).await;
            value.and_then(|value| Reply::read(value).ok_or_else(|| LinkError::Broken("an odd answer".to_owned())))
        };
        answered.map_err(|error| LeaseError::Store(self.shared.failed(&format!("{verb} the leader lease"), error)))
    }

    async fn replaced(&self, what: &str) -> StoreError {
        self.shared.failed(what, open::replaced(&self.shared, "").await)
    }
}

impl Lease for ValkeyLease {
    fn acquire(&self, floor: Epoch) -> BoxFuture<'_, Result<Acquired, LeaseError>> {
        Box::pin(async move {
            let known = self.epoch_file.as_ref().map_or(Ok(Epoch(0)), EpochFile::read)?;
            let floor = i64::try_from(floor.max(known).0).unwrap_or(i64::MAX);
            let reply = self.ask("acquire", vec![self.who.clone().into(), floor.into()], self.durable).await?;
            let text = String::from_utf8_lossy(reply.first()).into_owned();
            match reply.word.as_str() {
                "held" => Ok(Acquired::Held { by: text }),
                "leads" => {
                    let epoch =
                        text.parse().map(Epoch).map_err(|_| LeaseError::Unusable(format!("the lease has {text:?} for an epoch")))?;
                    if epoch > known {
                        self.epoch_file.as_ref().map_or(Ok(()), |file| file.write(epoch))?;
                    }
                    Ok(Acquired::Leads(epoch))
                }
                _ => Err(LeaseError::Store(self.replaced("acquire the leader lease").await)),
            }
        })
    }

    fn renew(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<String>, LeaseError>> {
        Box::pin(async move {
            let reply = self.ask("renew", vec![epoch.0.to_string().into()], false).await?;
            let why = match reply.word.as_str() {
                "leads" => return Ok(reply.more.get(1).map(|wisher| String::from_utf8_lossy(wisher).into_owned())),
                "held" => format!("now leads {}", String::from_utf8_lossy(reply.first())),
                "gone" => "it was not renewed in time, or was released".to_owned(),
                _ => self.replaced("renew the leader lease").await.to_string(),
            };
            Err(LeaseError::Lost { epoch, why })
        })
    }

    fn wish(&self) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move { self.ask("wish", vec![self.who.clone().into()], false).await.map(drop) })
    }

    fn release(&self, epoch: Epoch) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move { self.ask("release", vec![epoch.0.to_string().into()], false).await.map(drop) })
    }

    fn ttl(&self) -> Option<Duration> {
        Some(LEASE_TTL)
    }
}
