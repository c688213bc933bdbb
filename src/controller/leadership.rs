//! Who leads: asks for the lease, holds it on, and knows at every moment whether it is still held.
//!
//! `epoch()` is asked before each pass and each effect. It looks at a clock and not at what the renewing task believes: a process that was
//! stopped for a minute, or whose store fell silent, finds on its first question that its lease has run out, long before it could ask the
//! store. The time is counted from before each question, so that it never outlasts the server's; suspended time counts. Whoever gained the
//! lease, or got it confirmed after a lapse, is told, because passes that found no epoch have done nothing.

use crate::api::names::Epoch;
use crate::store::lease::{Acquired, Lease, LeaseError};
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often who does not lead asks for the lease.
const ASK_INTERVAL: Duration = Duration::from_millis(300);
/// How often who leads makes sure of it where the lease does not run out by itself.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
/// How many renewals fit into the time that a lease lasts.
const RENEWALS_PER_TTL: u32 = 4;
/// So much earlier than the server a leader stops believing in its lease.
const MARGIN: Duration = Duration::from_millis(100);

/// A lease that was held when it was asked for last.
#[derive(Debug, Clone, Copy)]
struct Term {
    epoch: Epoch,
    /// Time since boot after which it may be somebody else's; `None`: it does not run out by itself.
    until: Option<Duration>,
}

impl Term {
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| since_boot() >= until)
    }
}

#[derive(Debug, Default)]
struct State {
    term: Option<Term>,
    /// Who leads instead, or why that is not known.
    other: String,
}

/// This controller's part in deciding who leads.
pub struct Leadership {
    lease: Arc<dyn Lease>,
    /// Highest epoch that was seen elsewhere.
    floor: Epoch,
    state: Mutex<State>,
}

impl Leadership {
    /// A candidate. `floor` is the highest epoch that was seen elsewhere, such as on labels of live sandboxes.
    #[must_use]
    pub fn new(lease: Arc<dyn Lease>, floor: Epoch) -> Self {
        Self { lease, floor, state: Mutex::default() }
    }

    /// Epoch of the lease while it is certain to be held.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.state().term.filter(|term| !term.is_over()).map(|term| term.epoch)
    }

    /// In a sentence, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.epoch() {
            Some(epoch) => format!("this controller leads, with epoch {}", epoch.0),
            None => format!("this controller stands by: {}", self.state().other),
        }
    }

    /// Asks for the lease once.
    /// # Errors
    /// As `Lease::acquire`.
    pub async fn ask(&self) -> Result<Acquired, LeaseError> {
        let asked = since_boot();
        let answer = self.lease.acquire(self.floor).await;
        let mut state = self.state();
        match &answer {
            Ok(Acquired::Leads(epoch)) => state.term = Some(Term { epoch: *epoch, until: self.until(asked) }),
            Ok(Acquired::Held { by }) => *state = State { term: None, other: format!("{by} leads") },
            Err(error) => *state = State { term: None, other: crate::causes::one_line(error) },
        }
        answer
    }

    /// Asks and holds on for ever. `gained` is called whenever epochs are given again after a time without.
    pub async fn run(&self, gained: impl Fn() -> BoxFuture<'static, ()>) {
        loop {
            let (asked, had) = (since_boot(), self.epoch());
            let interval = match self.term() {
                None => self.candidate().await,
                Some(term) => self.confirm(term, asked).await,
            };
            if had.is_none() && self.epoch().is_some() {
                gained().await;
            }
            tokio::time::sleep((asked + interval).saturating_sub(since_boot())).await;
        }
    }

    /// Gives the lease back, so that the next one leads at once.
    pub async fn resign(&self) {
        let Some(term) = self.state().term.take() else { return };
        if let Err(error) = self.lease.release(term.epoch).await {
            tracing::warn!(error = crate::causes::one_line(&error), "could not release the lease; it ends by itself");
        }
    }

    async fn candidate(&self) -> Duration {
        let before = self.state().other.clone();
        match self.ask().await {
            Ok(Acquired::Leads(epoch)) => tracing::info!(epoch = epoch.0, "this controller leads"),
            Ok(Acquired::Held { .. }) | Err(_) => {
                let now = self.state().other.clone();
                if now != before {
                    tracing::info!(why = now, "this controller stands by");
                }
            }
        }
        ASK_INTERVAL
    }

    async fn confirm(&self, term: Term, asked: Duration) -> Duration {
        match self.lease.renew(term.epoch).await {
            Ok(()) => self.state().term = Some(Term { until: self.until(asked), ..term }),
            Err(error @ LeaseError::Lost { .. }) => {
                tracing::warn!(error = crate::causes::one_line(&error), "this controller leads no longer");
                *self.state() = State { term: None, other: error.to_string() };
                return Duration::ZERO;
            }
            Err(error) => {
                let text = crate::causes::one_line(&error);
                tracing::warn!(error = text, epoch = term.epoch.0, "the lease could not be renewed; trying again");
                self.state().other = text;
            }
        }
        self.lease.ttl().map_or(CONFIRM_INTERVAL, |ttl| ttl / RENEWALS_PER_TTL)
    }

    fn until(&self, asked: Duration) -> Option<Duration> {
        self.lease.ttl().map(|ttl| asked + ttl.saturating_sub(MARGIN))
    }

    fn term(&self) -> Option<Term> {
        self.state().term
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time since the machine was started, suspended time included.
fn since_boot() -> Duration {
    Duration::from_millis(crate::inside::system::boot_millis())
}
