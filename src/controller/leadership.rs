//! Who leads: asks for the lease, holds it on, and knows at every moment whether it is still held.
//!
//! `epoch()` is asked before each pass and each effect. It looks at a clock and not at what the renewing task believes: a process that was
//! stopped for a minute, or whose store fell silent, finds on its first question that its lease has run out, long before it could ask the
//! store. The time is counted from before each question, so that it never outlasts the server's; suspended time counts. Whoever gained the
//! lease, or got it confirmed after a lapse, is told, because passes that found no epoch have done nothing; and whoever lost it, because passes
//! of one that stands by find what waits for it to lead. Then it wishes to, and whoever leads hands over (`handover`).

use super::handover;
use crate::api::names::Epoch;
use crate::store::lease::{Acquired, Lease, LeaseError, since_boot};
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
    /// Time since boot at which it began.
    since: Duration,
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
    /// Who wishes to lead instead, and since when.
    wished: Option<(String, Duration)>,
    /// When this candidate has wished last, and for how many agents.
    wish: Option<(Duration, usize)>,
    /// When this candidate has last said that it lives.
    said_present: Option<Duration>,
}

/// What leading has to do with the rest of a controller.
pub struct Business {
    /// How many agents wait for this controller to lead.
    pub waiting: Box<dyn Fn() -> usize + Send + Sync>,
    /// Whether effects are under way that should end before another one leads.
    pub is_busy: Box<dyn Fn() -> bool + Send + Sync>,
    /// Agents in pods can go on here: only those are taken over by others, and not while this candidate says that it lives.
    pub serves_pods: bool,
    /// Called whenever epochs are given again after a time without, and whenever they are given no longer.
    pub changed: Box<dyn Fn() + Send + Sync>,
}

impl Business {
    /// Of a candidate that does nothing else.
    #[must_use]
    pub fn none() -> Self {
        Self { waiting: Box::new(|| 0), is_busy: Box::new(|| false), serves_pods: false, changed: Box::new(|| ()) }
    }
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
        let epoch = self.epoch();
        let State { other, wished, wish, .. } = &*self.state();
        match (epoch, wished, wish) {
            (Some(epoch), None, _) => format!("this controller leads, with epoch {}", epoch.0),
            (Some(epoch), Some((next, _)), _) => {
                format!(
                    "this controller leads, with epoch {}, and soon hands the lease to {next}, which has agents of its own to finish",
                    epoch.0
                )
            }
            (None, _, None) => format!("this controller stands by: {other}"),
            (None, _, Some((_, agents))) => format!("this controller stands by: {other}; {agents} of its agents wait for it to lead"),
        }
    }

    /// Asks for the lease once.
    /// # Errors
    /// As `Lease::acquire`.
    pub async fn ask(&self) -> Result<Acquired, LeaseError> {
        let asked = since_boot();
        let answer = self.lease.acquire(self.floor).await;
        let mut state = self.state();
        let since = state.term.map_or(asked, |term| term.since);
        (state.term, state.wished) = (None, None);
        match &answer {
            Ok(Acquired::Leads(epoch)) => state.term = Some(Term { epoch: *epoch, until: self.until(asked), since }),
            Ok(Acquired::Held { by }) => state.other = format!("{by} leads"),
            Err(error) => state.other = crate::causes::one_line(error),
        }
        answer
    }

    /// Asks and holds on for ever; hands over to who wishes to lead, and wishes to where that is needed.
    pub async fn run(&self, business: &Business) {
        let mut led = self.epoch().is_some();
        loop {
            let (asked, had) = (since_boot(), self.epoch());
            let interval = match self.term() {
                None => self.candidate(business, asked).await,
                Some(term) => self.confirm(term, business, asked).await,
            };
            let leads = self.epoch().is_some();
            if leads != had.is_some() || leads != led {
                (business.changed)();
            }
            led = leads;
            tokio::time::sleep((asked + interval).saturating_sub(since_boot())).await;
        }
    }

    /// Whether the controller of an installation, which stands by, lives, as far as this one has seen: it goes on with what it has begun.
    #[must_use]
    pub fn is_present(&self, installation: &str) -> bool {
        self.lease.is_present(installation)
    }

    /// Gives the lease back, so that the next one leads at once. Whether that is so.
    pub async fn resign(&self) -> bool {
        let Some(term) = self.state().term.take() else { return true };
        let released = self.lease.release(term.epoch).await;
        if let Err(error) = &released {
            tracing::warn!(error = crate::causes::one_line(error), "could not release the lease; it ends by itself");
        }
        released.is_ok()
    }

    async fn candidate(&self, business: &Business, asked: Duration) -> Duration {
        let before = self.state().other.clone();
        let waiting = (business.waiting)();
        match self.ask().await {
            Ok(Acquired::Leads(epoch)) => {
                self.state().wish = None;
                tracing::info!(epoch = epoch.0, "this controller leads");
            }
            Ok(Acquired::Held { .. }) => {
                self.tell_other(&before);
                self.wish(waiting, asked).await;
                if business.serves_pods {
                    self.say_present(asked).await;
                }
            }
            Err(_) => self.tell_other(&before),
        }
        ASK_INTERVAL
    }

    fn tell_other(&self, before: &str) {
        let now = self.state().other.clone();
        if now != before {
            tracing::info!(why = now, "this controller stands by");
        }
    }

    /// Tells whoever leads that agents wait here, now and then.
    async fn wish(&self, waiting: usize, now: Duration) {
        let wish = self.state().wish;
        if waiting == 0 {
            self.state().wish = None;
        }
        if !handover::wishes(waiting, wish.map(|(at, _)| now.saturating_sub(at))) {
            return;
        }
        if wish.is_none() {
            tracing::info!(agents = waiting, "this controller asks for the lease: agents of its own wait for it to lead");
        }
        self.state().wish = Some((now, waiting));
        if let Err(error) = self.lease.wish().await {
            tracing::debug!(error = crate::causes::one_line(&error), "could not ask whoever leads to hand over; asking on");
        }
    }

    /// Tells whoever leads that what was begun here goes on, now and then.
    async fn say_present(&self, now: Duration) {
        let said = self.state().said_present;
        if said.is_some_and(|said| now.saturating_sub(said) < handover::PRESENCE_INTERVAL) {
            return;
        }
        self.state().said_present = Some(now);
        match tokio::time::timeout(handover::PRESENCE_PATIENCE, self.lease.say_present()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = crate::causes::one_line(&error), "could not tell whoever leads that this one lives"),
            Err(_) => tracing::debug!("telling whoever leads that this one lives took too long"),
        }
    }

    async fn confirm(&self, term: Term, business: &Business, asked: Duration) -> Duration {
        match self.lease.renew(term.epoch).await {
            Ok(wished) => {
                self.state().term = Some(Term { until: self.until(asked), ..term });
                if let Some((next, since)) = self.note_wish(wished, asked)
                    && handover::yields(asked.saturating_sub(term.since), asked.saturating_sub(since), (business.is_busy)())
                {
                    return self.hand_over(&next).await;
                }
            }
            Err(error @ LeaseError::Lost { .. }) => {
                tracing::warn!(error = crate::causes::one_line(&error), "this controller leads no longer");
                *self.state() = State { other: error.to_string(), ..State::default() };
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

    /// Who wishes to lead, and since when somebody does.
    fn note_wish(&self, by: Option<String>, now: Duration) -> Option<(String, Duration)> {
        let mut state = self.state();
        let since = state.wished.take().map_or(now, |(_, since)| since);
        state.wished = by.map(|by| (by, since));
        state.wished.clone()
    }

    /// Leads no longer, for another one has to; that one goes first while its wish stands.
    async fn hand_over(&self, next: &str) -> Duration {
        tracing::info!(next, "this controller hands the lease to another one, which has agents of its own to finish");
        self.state().other = format!("the lease was handed to {next}, which has agents of its own to finish");
        self.state().wished = None;
        if self.resign().await { ASK_INTERVAL } else { self.lease.ttl().unwrap_or(CONFIRM_INTERVAL) }
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
