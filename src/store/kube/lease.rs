//! The Kubernetes form of the leader lease: a `Lease` object with a fencing epoch that never goes back.
//!
//! Clocks of different machines are never compared: whoever does not lead takes the lease over once it has not *seen* it change for as long as
//! it lasts, by its own clock, and whoever leads counts from before it asked (`controller::leadership`). Each change is a compare-and-set on the
//! resourceVersion. The epoch is an annotation of the object and, besides, in the state folder: an object that was deleted brings none back.
//! A predecessor on the same state folder need not be waited for: whoever has the folder's lock knows that it is dead. A wish to lead is another
//! annotation, which its wisher changes again and again: it stands as long as whoever asks has seen that. So is the word of each that stands by that
//! it lives. Who leads may find by them that the lease was changed, and then reads and renews it anew at once.

use super::call::{Api, CallError, Method};
use super::wire::stamp;
use super::{KubeStore, installation};
use crate::api::names::Epoch;
use crate::store::lease::{Acquired, EpochFile, Lease, LeaseError, PRESENCE_TIME, WISH_TIME, since_boot};
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{Timestamp, Unit};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;

/// Name of the lease, in the installation's namespace.
pub(super) const NAME: &str = "mosaic";
/// How long a lease lasts without renewal. A leader that was killed is replaced within 6 s, the next one's questions included.
pub const LEASE_TIME: Duration = Duration::from_secs(4);
/// Longest that the lease of somebody else may say that it lasts.
const FOREIGN_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest wait for an answer about the lease.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(3);
/// How often it is decided anew because the lease changed meanwhile.
const TRIES_MAX: usize = 4;
/// Annotation: the epoch of whoever leads, or led last.
const EPOCH: &str = "mosaicstack.dev/epoch";
/// Annotation: who wishes to lead, and when it has said so last.
const WISH: &str = "mosaicstack.dev/wishes-to-lead";
/// Annotations, each with the id of a candidate behind it: when that, standing by, has last said that it lives.
const PRESENT: &str = "mosaicstack.dev/present-";
/// Stands between the two.
const SAID: &str = "; said ";

/// The Kubernetes form.
pub struct KubeLease {
    api: Arc<Api>,
    /// Names this candidate's state folder.
    id: String,
    /// Tells this candidate from every other one, for people too.
    holder: String,
    epoch_file: Option<EpochFile>,
    state: Mutex<State>,
    present: std::sync::Mutex<Present>,
}

/// What candidates that stand by have said of themselves, by their ids, when it was seen to change last, and when that was.
#[derive(Default)]
struct Present(BTreeMap<String, (String, Duration)>);

#[derive(Default)]
struct State {
    /// The lease as we wrote it last, while we lead.
    held: Option<(Epoch, Object)>,
    /// What somebody else's lease said when it changed last, and when that was seen.
    seen: Option<(LeaseSpec, Duration)>,
    /// What the wish said when it changed last, and when that was seen.
    wish: Option<(String, Duration)>,
}

impl KubeLease {
    /// A candidate for the lease of a store's installation. `id` is nobody else's: whoever led with it before is dead, and its lease is free.
    /// With a state folder, the epoch is kept there as well.
    #[must_use]
    pub fn new(store: &KubeStore, id: &str, state: Option<&Path>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let since = stamp(Timestamp::now());
        Self {
            api: store.api.clone(),
            id: id.to_owned(),
            holder: format!("pid {}, on {host}, since {since}, {id}", std::process::id()),
            epoch_file: state.map(|state| EpochFile::new(state.join("kube-epoch"))),
            state: Mutex::default(),
            present: std::sync::Mutex::default(),
        }
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.api.namespace)
    }

    async fn ask(&self, method: Method, path: &str, lease: Option<&Object>) -> Result<Object, CallError> {
        let body = lease.map(|lease| serde_json::to_value(lease).expect("a lease is plain data"));
        let answer = self.api.call_within(ANSWER_WAIT_MAX, method, path, body.as_ref()).await;
        answer.map(|lease: Object| Object { metadata: ObjectMeta { managed_fields: None, ..lease.metadata }, ..lease })
    }

    /// `None`: nobody ever led here, or the lease was deleted.
    async fn read(&self) -> Result<Option<Object>, LeaseError> {
        match self.ask(Method::GET, &format!("{}/{NAME}", self.collection()), None).await {
            Ok(lease) => {
                self.present().look(&lease, since_boot());
                Ok(Some(lease))
            }
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(failed("read the leader lease", error)),
        }
    }

    fn present(&self) -> std::sync::MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the lease if it still is the one that was read; `None`: it is not.
    async fn write(&self, lease: &Object) -> Result<Option<Object>, LeaseError> {
        let (method, path) = match lease.metadata.resource_version {
            Some(_) => (Method::PUT, format!("{}/{NAME}", self.collection())),
            None => (Method::POST, self.collection()),
        };
        match self.ask(method, &path, Some(lease)).await {
            Ok(written) => Ok(Some(written)),
            Err(error) if error.is_conflict() || error.is_absent() => Ok(None),
            Err(error) => Err(failed("write the leader lease", error)),
        }
    }

    /// Takes the lease, which nobody holds any more. `None`: somebody else was faster.
    async fn take(&self, state: &mut State, found: Option<Object>, floor: Epoch) -> Result<Option<Epoch>, LeaseError> {
        let is_first = found.is_none();
        let known = self.epoch_file.as_ref().map_or(Ok(Epoch(0)), EpochFile::read)?;
        let stored = found.as_ref().map_or(Ok(Epoch(0)), epoch_of)?;
        let epoch = Epoch(floor.max(known).max(stored).0 + 1);
        let mut lease = found.unwrap_or_else(|| Object {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), namespace: Some(self.api.namespace.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(EPOCH.to_owned(), epoch.0.to_string());
        annotations.remove(WISH);
        annotations.remove(&format!("{PRESENT}{}", self.id));
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.holder.clone());
        spec.lease_duration_seconds = Some(i32::try_from(LEASE_TIME.as_secs()).expect("a few seconds"));
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        spec.acquire_time = Some(now());
        spec.renew_time = spec.acquire_time.clone();
        let Some(lease) = self.write(&lease).await? else { return Ok(None) };
        if is_first {
            // Two that install themselves at once see each other here, whoever came first.
            installation::expect_alone(&self.api).await.map_err(LeaseError::Store)?;
        }
        self.epoch_file.as_ref().map_or(Ok(()), |file| file.write(epoch))?;
        *state = State { held: Some((epoch, lease)), ..State::default() };
        Ok(Some(epoch))
    }
}

impl Lease for KubeLease {
    fn acquire(&self, floor: Epoch) -> BoxFuture<'_, Result<Acquired, LeaseError>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let mut by = String::new();
            for _ in 0..TRIES_MAX {
                let found = self.read().await?;
                if let (Some((epoch, _)), Some(lease)) = (&state.held, &found)
                    && holder(lease) == Some(&self.holder)
                {
                    return Ok(Acquired::Leads(*epoch));
                }
                state.held = None;
                let first = found.as_ref().and_then(|lease| state.wisher(lease, &self.id));
                let other = found.as_ref().and_then(holder);
                // One of this state folder is a process that is dead: its lease is ours. Where it is this very one a release has failed, and whoever
                // wishes goes first.
                let is_ours = other.is_some_and(|other| other.ends_with(&self.id) && (*other != self.holder || first.is_none()));
                if !is_ours {
                    let held = other.filter(|_| !state.has_run_out(found.as_ref())).cloned();
                    if let Some(by) = held.or(first) {
                        return Ok(Acquired::Held { by });
                    }
                }
                by = other.cloned().unwrap_or_default();
                if let Some(epoch) = self.take(&mut state, found, floor).await? {
                    return Ok(Acquired::Leads(epoch));
                }
            }
            Ok(Acquired::Held { by })
        })
    }

    fn renew(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<String>, LeaseError>> {
        Box::pin(async move {
            let lost = |why: String| LeaseError::Lost { epoch, why };
            let mut state = self.state.lock().await;
            for _ in 0..TRIES_MAX {
                let Some((_, lease)) = state.held.as_ref().filter(|(held, _)| *held == epoch) else {
                    return Err(lost("it was released".to_owned()));
                };
                let mut lease = lease.clone();
                let wisher = state.wisher(&lease, &self.id);
                if wisher.is_none() {
                    lease.metadata.annotations.get_or_insert_default().remove(WISH);
                }
                self.present().clear_lapsed(&mut lease, since_boot());
                lease.spec.get_or_insert_default().renew_time = Some(now());
                if let Some(written) = self.write(&lease).await? {
                    state.held = Some((epoch, written));
                    return Ok(wisher);
                }
                // It was changed: by somebody who leads now or wishes to, by a renewal of ours whose answer never came, or by hand.
                match self.read().await? {
                    Some(found) if holder(&found) == Some(&self.holder) => state.held = Some((epoch, found)),
                    found => {
                        state.held = None;
                        let other = found.as_ref().and_then(holder).map(|other| format!("now leads {other}"));
                        return Err(lost(other.unwrap_or_else(|| "it was released or deleted by somebody else".to_owned())));
                    }
                }
            }
            Err(failed("renew the leader lease, which changes all the time", CallError::Silent(ANSWER_WAIT_MAX)))
        })
    }

    fn wish(&self) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let Some(mut lease) = self.read().await? else { return Ok(()) };
            let is_elsewhere = holder(&lease).is_some_and(|other| !other.ends_with(&self.id));
            if is_elsewhere && state.wisher(&lease, &self.id).is_none() {
                lease
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(WISH.to_owned(), format!("{}{SAID}{}", self.holder, stamp(Timestamp::now())));
                // One that comes too late is repeated.
                self.write(&lease).await?;
            }
            Ok(())
        })
    }

    fn say_present(&self) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            // Nobody who asks for the lease or leads is in between.
            let _state = self.state.lock().await;
            for _ in 0..TRIES_MAX {
                let Some(mut lease) = self.read().await? else { return Ok(()) };
                lease.metadata.annotations.get_or_insert_default().insert(format!("{PRESENT}{}", self.id), stamp(Timestamp::now()));
                if self.write(&lease).await?.is_some() {
                    return Ok(());
                }
            }
            Err(failed("annotate the leader lease, which changes all the time", CallError::Silent(ANSWER_WAIT_MAX)))
        })
    }

    fn is_present(&self, installation: &str) -> bool {
        self.present().has(installation, since_boot())
    }

    fn release(&self, epoch: Epoch) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let Some((_, mut lease)) = state.held.take_if(|(held, _)| *held == epoch) else { return Ok(()) };
            for _ in 0..TRIES_MAX {
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = None;
                spec.renew_time = Some(now());
                if self.write(&lease).await?.is_some() {
                    return Ok(());
                }
                match self.read().await? {
                    Some(found) if holder(&found) == Some(&self.holder) => lease = found,
                    Some(_) | None => return Ok(()),
                }
            }
            Err(failed("release the leader lease, which changes all the time", CallError::Silent(ANSWER_WAIT_MAX)))
        })
    }

    fn ttl(&self) -> Option<Duration> {
        Some(LEASE_TIME)
    }
}

impl Present {
    fn look(&mut self, lease: &Object, now: Duration) {
        let said = lease.metadata.annotations.iter().flatten().filter_map(|(name, text)| Some((name.strip_prefix(PRESENT)?, text)));
        let before = std::mem::take(&mut self.0);
        let seen = |id: &str, text: &String| before.get(id).filter(|(known, _)| known == text).map_or(now, |(_, at)| *at);
        self.0 = said.map(|(id, text)| (id.to_owned(), (text.clone(), seen(id, text)))).collect();
    }

    fn has(&self, id: &str, now: Duration) -> bool {
        self.0.get(id).is_some_and(|(_, at)| now.saturating_sub(*at) < PRESENCE_TIME)
    }

    /// Takes away what nobody has repeated.
    fn clear_lapsed(&self, lease: &mut Object, now: Duration) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.retain(|name, _| name.strip_prefix(PRESENT).is_none_or(|id| self.has(id, now)));
    }
}

impl State {
    /// Who wishes to lead, beside the candidate `id`: by a wish that was seen to change within the time that it stands.
    fn wisher(&mut self, lease: &Object, id: &str) -> Option<String> {
        let wish = lease.metadata.annotations.as_ref().and_then(|all| all.get(WISH));
        let Some(text) = wish else {
            self.wish = None;
            return None;
        };
        let now = since_boot();
        let (_, at) = self.wish.take_if(|(seen, _)| seen == text).unwrap_or_else(|| (text.clone(), now));
        self.wish = Some((text.clone(), at));
        let who = text.rsplit_once(SAID).map_or(text.as_str(), |(who, _)| who);
        (now.saturating_sub(at) < WISH_TIME && !who.ends_with(id)).then(|| who.to_owned())
    }

    /// Whether somebody else's lease was seen unchanged for as long as it lasts.
    fn has_run_out(&mut self, lease: Option<&Object>) -> bool {
        let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let said = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(LEASE_TIME, Duration::from_secs);
        let lasts = said.clamp(LEASE_TIME, FOREIGN_TIME_MAX);
        let now = since_boot();
        match &self.seen {
            Some((seen, at)) if *seen == spec => now.saturating_sub(*at) >= lasts,
            _ => {
                self.seen = Some((spec, now));
                false
            }
        }
    }
}

fn holder(lease: &Object) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

fn epoch_of(lease: &Object) -> Result<Epoch, LeaseError> {
    let Some(text) = lease.metadata.annotations.as_ref().and_then(|all| all.get(EPOCH)) else { return Ok(Epoch(0)) };
    text.parse().map(Epoch).map_err(|_| {
        let help = "Write the highest epoch that was in use there, or remove the annotation if state folders remember it";
        LeaseError::Unusable(format!("the annotation {EPOCH} of the lease {NAME} holds {text:?} instead of a number. {help}"))
    })
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now().round(Unit::Microsecond).expect("the present is far from the ends of time"))
}

fn failed(what: &str, error: CallError) -> LeaseError {
    LeaseError::Store(error.into_trouble(what))
}
