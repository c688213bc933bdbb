//! One pass: live read -> validate -> observe -> plan -> status (compare-and-set) -> effects; `error_policy` beside it. What this controller
//! wrote a moment ago is as good as read (`own`), unless the plan stores nothing.
//!
//! The pass decides nothing itself: it carries facts to `plan` and starts what comes back, after the new status is stored. It waits for no
//! agent, gate or push. A pass that was interrupted anywhere can simply be run again.

use crate::api::agent::AgentStatus;
use crate::api::condition;
use crate::api::names::{ANNOTATION_DISCARD, ANNOTATION_ENDED_BY, Epoch, FINALIZER, Uid};
use crate::api::validate::{ValidAgent, validate};
use crate::cleanups::Cleanups;
use crate::controller::foresight::{Foresight, foresee};
use crate::controller::handover::{Waiting, needs_a_leader};
use crate::controller::own::{OwnWrites, version_of};
use crate::effect::{EffectError, Subject, World};
use crate::kill::latch::Latch;
use crate::plan::action::{Action, Effect};
use crate::plan::fleet::{Fleet, Member, Permit, Place, is_elsewhere, place, place_seen_from};
use crate::plan::observed::Observed;
use crate::plan::status::ending;
use crate::plan::{Desired, Plan, plan};
use crate::store::{Key, Record, Store, StoreError};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long a pass that failed for want of a store or a world waits at first; doubled by the caller up to `RETRY_MAX`.
pub const RETRY_INITIAL: Duration = Duration::from_millis(200);
/// Longest wait after failed passes.
pub const RETRY_MAX: Duration = Duration::from_secs(15);

/// A fact of a record changed.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Which record.
    pub key: Key,
    /// Its identity.
    pub uid: Uid,
    /// The stored status before.
    pub before: AgentStatus,
    /// The stored status now.
    pub after: AgentStatus,
}

/// Brings the intent of an effect to the disk; an error means that the effect must not begin.
pub type OnIntent = Arc<dyn Fn(Effect) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;
/// Told what came of an effect that was applied within the pass, or refused at its start.
pub type OnOutcome = Arc<dyn Fn(&Effect, Result<(), String>) + Send + Sync>;
/// Told of every stored change.
pub type OnTransition = Arc<dyn Fn(Transition) + Send + Sync>;

/// Where a pass tells what it does: the audit log, events, metrics.
#[derive(Clone)]
pub struct Journal {
    /// Before each effect.
    pub intent: OnIntent,
    /// After each effect that is not blocking; the in-flight table tells the end of the others.
    pub outcome: OnOutcome,
    /// After each stored status.
    pub transition: OnTransition,
    /// After each clean-up.
    pub cleanups: Cleanups,
}

impl Journal {
    /// Tells nobody: for simulations and measurements.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            intent: Arc::new(|_| ready(Ok(())).boxed()),
            outcome: Arc::new(|_, _| ()),
            transition: Arc::new(|_| ()),
            cleanups: Cleanups::default(),
        }
    }
}

/// Everything a pass works with.
pub struct Context {
    /// The records.
    pub store: Arc<dyn Store>,
    /// Looks and does.
    pub world: Arc<dyn World>,
    /// Who may run now.
    pub fleet: Mutex<Fleet>,
    /// Epoch of the lease that this controller holds; `None`: it does not lead and does nothing.
    pub epoch: Arc<dyn Fn() -> Option<Epoch> + Send + Sync>,
    /// What was killed or halted outside the store.
    pub latch: Arc<Latch>,
    /// The time.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Audit, events, metrics.
    pub journal: Journal,
    /// Wakes other records (their uid is looked up in the fleet).
    pub wake: Arc<dyn Fn(Key) + Send + Sync>,
    /// What it has just written itself: that wakes nobody, and needs not be read again.
    pub own_writes: OwnWrites,
    /// Agents under way, with the epoch in which a pass has last seen their record as it is stored: whose they are is known since then.
    pub seen_in: Mutex<BTreeMap<Uid, Epoch>>,
    /// Agents of this controller that wait for it to lead.
    pub waiting: Waiting,
}

impl Context {
    /// The fleet; held for moments only, never across an await.
    pub fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().expect("nobody panics while holding the fleet")
    }

    /// Takes a record into the fleet and wakes those whose answer may have changed.
    pub fn take_into_fleet(&self, record: &Record, agent: Option<&ValidAgent>) {
        let Ok(uid) = Uid::new(record.metadata.uid.clone().unwrap_or_default()) else { return };
        let woken = match agent {
            Some(agent) => self.fleet().upsert(self.member_of(record, agent)),
            None => self.fleet().remove(&uid),
        };
        self.wake_all(woken);
    }

    /// Takes a listed record into the fleet without waking anybody: after a list everybody is woken.
    pub fn fill_fleet(&self, record: &Record, agent: Option<&ValidAgent>) {
        if let Some(agent) = agent {
            let mut fleet = self.fleet();
            if fleet.is_news(&agent.uid, version_of(record)) {
                fleet.upsert(self.member_of(record, agent));
            }
        }
    }

    /// What the fleet needs of a record.
    fn member_of(&self, record: &Record, agent: &ValidAgent) -> Member {
        let labels = record.metadata.labels.clone().unwrap_or_default();
        let rerun_of = record.spec.get("rerunOf").and_then(|v| v.as_str()).map(str::to_owned);
        let member = Member::of(agent, labels, record.metadata.deletion_timestamp.is_some(), rerun_of, version_of(record));
        let here = self.world.place();
        let is_elsewhere = is_elsewhere(here, agent.status.installation.as_deref());
        Member { place: place_seen_from(here, &agent.status), is_elsewhere, ..member }
    }

    /// Takes a watched change into the fleet, unless a pass has seen the record later than that.
    pub fn take_watched(&self, record: &Record, agent: Option<&ValidAgent>) {
        let Ok(uid) = Uid::new(record.metadata.uid.clone().unwrap_or_default()) else { return };
        let is_news = self.fleet().is_news(&uid, version_of(record));
        if is_news {
            self.take_into_fleet(record, agent);
        }
    }

    /// Forgets a record that is gone and wakes those whose answer may have changed.
    pub fn drop_from_fleet(&self, uid: &Uid) {
        let woken = self.fleet().remove(uid);
        self.wake_all(woken);
    }

    /// Notes that a record was seen as it is stored, of an agent that is under way.
    fn note_seen(&self, uid: &Uid, epoch: Epoch, status: &AgentStatus) {
        let mut seen_in = self.seen_in.lock().expect("nobody panics while holding it");
        if status.attempt > 0 && ending(status).is_none() {
            seen_in.insert(uid.clone(), epoch);
        } else {
            seen_in.remove(uid);
        }
    }

    /// Whether a run of an agent may begin here, as far as the store has said since this controller leads.
    pub fn has_seen(&self, uid: &Uid) -> bool {
        let seen = self.seen_in.lock().expect("nobody panics while holding it").get(uid).copied();
        seen.is_some() && seen == (self.epoch)()
    }

    /// Forgets everything kept in memory for a record that is gone.
    pub fn forget(&self, key: &Key, uid: &Uid) {
        self.seen_in.lock().expect("nobody panics while holding it").remove(uid);
        self.waiting.note(uid, false);
        self.own_writes.forget(key);
        self.world.forget(uid);
    }

    /// Wakes agents by uid.
    pub fn wake_all(&self, uids: impl IntoIterator<Item = Uid>) {
        for uid in uids {
            let key = self.fleet().member(&uid).map(|member| Key::agent(&member.namespace, &member.name));
            if let Some(key) = key {
                (self.wake)(key);
            }
        }
    }
}

/// When to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When something changes.
    Await,
    /// After this time at the latest.
    After(Duration),
}

/// Why a pass was broken off.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The store refused or did not answer.
    #[error("failed to {what} {key:?}")]
    Store {
        /// Verb.
        what: &'static str,
        /// Which record.
        key: Key,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// An effect could not be applied or started.
    #[error("failed to apply {action} for {key:?}")]
    Effect {
        /// Which action.
        action: &'static str,
        /// Which record.
        key: Key,
        /// Why.
        #[source]
        source: EffectError,
    },
    /// A record without a usable uid: a store that breaks its contract.
    #[error("{0:?} has no usable uid")]
    NoUid(Key),
}

/// How long to wait after a pass that was broken off, by kind: a conflict is read again now, the rest waits.
#[must_use]
pub fn error_policy(error: &PassError, failures: u32) -> Next {
    let wait = RETRY_INITIAL.saturating_mul(1 << failures.min(10)).min(RETRY_MAX);
    match error {
        PassError::Store { source: StoreError::Conflict(_) | StoreError::NotFound(_), .. } => Next::After(Duration::ZERO),
        PassError::Effect { source: EffectError::Store(StoreError::Conflict(_) | StoreError::NotFound(_)), .. } => {
            Next::After(Duration::ZERO)
        }
        PassError::Effect { source: EffectError::Fenced { .. }, .. } => Next::Await,
        PassError::Store { .. } | PassError::Effect { .. } => Next::After(wait),
        PassError::NoUid(_) => Next::After(RETRY_MAX),
    }
}

/// The epoch of passes of a controller that does not lead: they end what this place holds, and begin nothing.
const ENDS_ONLY: Epoch = Epoch(0);

/// With which epoch this controller may act on an agent; `None`: it stands by. Whoever leads may, and besides whoever holds the sandbox of an
/// agent that has ended or is being deleted: nobody else can look at all of it, and a kill must not wait for its host to lead.
fn authority(ctx: &Context, record: &Record, stored: &AgentStatus) -> Option<Epoch> {
    let ends = record.metadata.deletion_timestamp.is_some() || ending(stored).is_some();
    (ctx.epoch)().or((is_held_here(ctx, stored) && ends).then_some(ENDS_ONLY))
}

/// Whether this controller has begun the agent: nobody else can look at all of it.
fn is_held_here(ctx: &Context, stored: &AgentStatus) -> bool {
    stored.installation.is_some() && stored.installation.as_deref() == ctx.world.place()
}

/// One pass over one agent.
/// # Errors
/// `PassError`; nothing is lost, and `error_policy` says when to come back.
pub async fn reconcile(key: &Key, ctx: &Context) -> Result<Next, PassError> {
    if (ctx.epoch)().is_none() && ctx.world.place().is_none() {
        return Ok(Next::Await);
    }
    if let Some(record) = ctx.own_writes.kept(key, (ctx.clock)())
        && let Some(next) = pass(record, true, ctx).await?
    {
        return Ok(next);
    }
    let read = ctx.store.get(key).await.map_err(|source| PassError::Store { what: "read", key: key.clone(), source })?;
    let Some(record) = read else {
        // An earlier pass may have taken it into the fleet after the watch had told that it is gone.
        let gone = ctx.fleet().uid_named(&key.namespace, &key.name).cloned();
        gone.inspect(|uid| ctx.drop_from_fleet(uid));
        return Ok(Next::Await);
    };
    Ok(pass(record, false, ctx).await?.unwrap_or(Next::Await))
}

/// One pass over a record as it was read, or kept since it was written (`is_kept`); `None`: it has to be read.
async fn pass(record: Record, is_kept: bool, ctx: &Context) -> Result<Option<Next>, PassError> {
    let uid = Uid::new(record.metadata.uid.clone().unwrap_or_default()).map_err(|_| PassError::NoUid(record.key()))?;
    let checked = validate(&record);
    if !is_kept {
        ctx.take_into_fleet(&record, checked.as_ref().ok());
    }
    let stored = match &checked {
        Ok(agent) => agent.status.clone(),
        Err(_) => serde_json::from_value(record.status.clone()).unwrap_or_default(),
    };
    let authority = authority(ctx, &record, &stored);
    let stands_by = authority.is_none();
    if stands_by && (is_kept || !is_held_here(ctx, &stored)) {
        ctx.waiting.note(&uid, false);
        // What was kept may have been overtaken by who leads.
        return Ok((!is_kept).then_some(Next::Await));
    }
    let mut subject = Subject { record, uid, agent: checked.as_ref().ok().cloned() };
    let observed = ctx.world.observe(&subject).await;
    let permit = permit_for(ctx, &subject);
    let latched = ctx.latch.killed(&subject.uid);
    let desired = desired(&subject, &stored, latched.as_deref(), checked.as_ref().map_err(Vec::as_slice));
    let now = (ctx.clock)();
    let mut decided = plan(&desired, &observed, &permit, now);
    debug_assert_eq!(crate::plan::invariants::check(&desired, &observed, &permit, &decided), Vec::<String>::new());
    ctx.waiting.note(&subject.uid, stands_by && needs_a_leader(&stored, &observed, &decided));
    let Some(epoch) = authority else { return Ok(Some(decided.requeue_after.map_or(Next::Await, Next::After))) };
    claim(&mut decided.status, &stored, &subject, &*ctx.world);
    if epoch == ENDS_ONLY {
        leave_word(&mut decided.status, &stored);
    }
    if is_kept && decided.status == stored {
        // No compare-and-set would tell that the copy was overtaken.
        return Ok(None);
    }
    let wrote = store_status(ctx, &mut subject, &stored, &decided).await?;
    ctx.note_seen(&subject.uid, epoch, &decided.status);
    if ending(&decided.status).is_some() {
        ctx.world.abandon(&subject.uid);
    }
    ctx.world.acknowledge(&subject.uid, &decided.taken);
    if !apply(ctx, &subject, epoch, &decided).await? {
        return Ok(Some(Next::After(Duration::ZERO)));
    }
    let mut ahead = Foresight::default();
    if asks_ahead(&observed, &decided, wrote) {
        let spec = subject.agent.as_ref().ok_or(checked.as_ref().err().map_or(&[][..], Vec::as_slice));
        ahead = foresee(
            &self::desired(&subject, &decided.status, latched.as_deref(), spec),
            &observed,
            &permit_for(ctx, &subject),
            &decided,
            now,
        );
    }
    ctx.world.end_quietly(&subject.uid, &ahead.quiet);
    let next = if ahead.opens_more { Next::After(Duration::ZERO) } else { decided.requeue_after.map_or(Next::Await, Next::After) };
    Ok(Some(next))
}

/// Whether there is anything to ask of the plan again: a write to the record wakes it by the watch, and a pass that found and did nothing
/// new leaves nothing to ask.
fn asks_ahead(observed: &Observed, decided: &Plan, wrote: bool) -> bool {
    let writes_record = decided.actions.iter().any(|action| !action.is_blocking());
    !writes_record && (wrote || !decided.actions.is_empty() || !observed.in_flight.is_empty())
}

fn desired<'a>(
    subject: &'a Subject,
    stored: &'a AgentStatus,
    latched: Option<&'a str>,
    spec: Result<&'a ValidAgent, &'a [String]>,
) -> Desired<'a> {
    let metadata = &subject.record.metadata;
    let annotation = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
    Desired {
        uid: &subject.uid,
        generation: metadata.generation.unwrap_or_default(),
        has_finalizer: metadata.finalizers.as_ref().is_some_and(|all| all.iter().any(|f| f == FINALIZER)),
        latched,
        deleting: metadata.deletion_timestamp.as_ref().map(|_| annotation(ANNOTATION_ENDED_BY).unwrap_or("delete")),
        discard: annotation(ANNOTATION_DISCARD) == Some("true"),
        status: stored,
        spec,
    }
}

fn permit_for(ctx: &Context, subject: &Subject) -> Permit {
    let namespace = subject.record.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(message) = ctx.latch.halted(namespace) {
        return Permit::Halted { by: None, message };
    }
    let fleet = ctx.fleet();
    if subject.agent.is_some() {
        return fleet.permit(&subject.uid);
    }
    let labels = subject.record.metadata.labels.clone().unwrap_or_default();
    fleet.halt_on(namespace, &labels).unwrap_or(Permit::Granted)
}

/// From its first attempt an agent belongs to the place that begins it: its sandbox and tree are there, and no other place can look at them. And
/// each attempt has one driver, whatever the settings say later: what it may have left behind is known by that.
fn claim(status: &mut AgentStatus, stored: &AgentStatus, subject: &Subject, world: &dyn World) {
    if status.attempt > 0 && status.installation.is_none() {
        status.installation = world.place().map(str::to_owned);
    }
    if status.attempt > stored.attempt {
        status.driver = subject.agent.as_ref().and_then(|agent| world.driver_of(agent));
    }
}

/// Who leads and who holds the sandbox both look at an agent that is being deleted: why it is not gone one of them says, or the two would
/// write their words over each other's for ever.
fn leave_word(status: &mut AgentStatus, stored: &AgentStatus) {
    let of = |status: &AgentStatus| status.conditions.iter().position(|c| c.type_ == condition::CLEANED_UP && c.status == "False");
    if let (Some(said), Some(known)) = (of(status), of(stored)) {
        status.conditions[said] = stored.conditions[known].clone();
    }
}

/// Stores the status if it says anything new. Facts are durable before any effect that needs them.
async fn store_status(ctx: &Context, subject: &mut Subject, stored: &AgentStatus, decided: &Plan) -> Result<bool, PassError> {
    if decided.status == *stored {
        return Ok(false);
    }
    if let Some(agent) = subject.agent.as_mut() {
        agent.status = decided.status.clone();
    }
    let (before, after) = (place(stored), place(&decided.status));
    if after != before && (after == Place::Starting || before == Place::Waiting && after == Place::Running) {
        // The place is taken before the write, so that no other pass is given it meanwhile; the next read puts a failed write right.
        // Everything else that a status says counts once it is stored.
        ctx.take_into_fleet(&subject.record, subject.agent.as_ref());
    }
    let mut record = subject.record.clone();
    record.status = serde_json::to_value(&decided.status).expect("a status is plain data");
    let key = record.key();
    let writing = ctx.begin_own_write(key.clone());
    let written = ctx.store.replace_status(record).await.map_err(|source| {
        // What was kept of it, if that is what was overtaken, would be so again.
        ctx.own_writes.let_go(&key);
        PassError::Store { what: "write the status of", key: key.clone(), source }
    })?;
    writing.done(&written);
    subject.record = written;
    ctx.take_into_fleet(&subject.record, subject.agent.as_ref());
    (ctx.journal.transition)(Transition { key, uid: subject.uid.clone(), before: stored.clone(), after: decided.status.clone() });
    Ok(true)
}

/// Applies the actions in order; the first error ends the pass. Returns whether all were started.
async fn apply(ctx: &Context, subject: &Subject, epoch: Epoch, decided: &Plan) -> Result<bool, PassError> {
    for action in &decided.actions {
        let effect = Effect { key: subject.record.key(), uid: subject.uid.clone(), epoch, action: action.clone() };
        if action.starts_something() && is_halted(ctx, subject) {
            return Ok(false);
        }
        let may = if epoch == ENDS_ONLY { !action.starts_something() } else { (ctx.epoch)() == Some(epoch) };
        if !may {
            // The lease ran out while this pass was under way (a stopped process, a silent store): somebody else may act by now.
            let source = EffectError::Fenced { mine: epoch, seen: (ctx.epoch)().unwrap_or_default() };
            return Err(PassError::Effect { action: action.name(), key: effect.key, source });
        }
        if let Err(why) = (ctx.journal.intent)(effect.clone()).await {
            // A stop goes on without its entry: a full disk must not keep anything alive.
            if !matches!(action, Action::StopSandbox { .. }) {
                let source = EffectError::Failed(format!("its intent could not be recorded: {why}"));
                return Err(PassError::Effect { action: action.name(), key: effect.key, source });
            }
        }
        if !action.is_blocking() {
            ctx.own_writes.let_go(&effect.key);
        }
        let result = ctx.world.apply(subject, effect.clone()).await;
        if result.is_err() || !action.is_blocking() {
            (ctx.journal.outcome)(&effect, result.as_ref().map(|_| ()).map_err(ToString::to_string));
        }
        result.map_err(|source| PassError::Effect { action: action.name(), key: effect.key, source })?;
    }
    Ok(true)
}

/// Halts and kills are looked at again right before each start: there may be one since the plan was made.
fn is_halted(ctx: &Context, subject: &Subject) -> bool {
    let metadata = &subject.record.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let labels = metadata.labels.clone().unwrap_or_default();
    let latched = ctx.latch.killed(&subject.uid).is_some() || ctx.latch.halted(namespace).is_some();
    latched || ctx.fleet().halt_on(namespace, &labels).is_some()
}
