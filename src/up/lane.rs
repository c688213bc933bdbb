//! The kill lane of a running controller: what it is told by the rest, and what the rest is told by it.

use super::{Parts, UpError, part};
use crate::api::names::Uid;
use crate::audit::{Audit, AuditOptions};
use crate::config::Config;
use crate::controller::reconcile::Context;
use crate::kill::lane::Lane;
use crate::kill::receipt::KillRequest;
use crate::kill::{Controller, Killer, is_meant};
use crate::plan::fleet::{Fleet, Place};
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// How long the fleet is waited for, which is held for moments only; a kill goes on without it.
const FLEET_PATIENCE: Duration = Duration::from_millis(50);
/// Pause between two tries.
const FLEET_PAUSE: Duration = Duration::from_millis(1);

/// Starts it: a thread and an audit chain of its own.
pub(super) fn start(config: &Config, parts: &Parts, ctx: &Arc<Context>) -> Result<Lane, UpError> {
    let audit =
        Audit::open(&config.state.join("audit"), "kill", AuditOptions::default()).map_err(part("the audit log of the kill lane"))?;
    let (sandbox, remembers, told, asked) = (parts.sandbox.clone(), parts.sandbox.clone(), ctx.clone(), ctx.clone());
    let controller = Controller {
        tell: Box::new(move |runs, uids| {
            runs.iter().for_each(|run| sandbox.say_stop(run));
            uids.iter().for_each(|uid| told.world.abandon(uid));
            told.wake_all(uids.iter().cloned());
        }),
        known: Box::new(move |request| known(&asked, request)),
        alive: Box::new(move || remembers.alive()),
    };
    let killer = Killer {
        state: config.state.clone(),
        latch: Ok(ctx.latch.clone()),
        controller: Some(Arc::new(controller)),
        audit: Some(Arc::new(audit)),
    };
    Lane::start(killer).map_err(part("the kill lane"))
}

/// Agents that a request means, that have not ended and that only this controller may begin: there may be nothing of them on the disk yet.
fn known(ctx: &Context, request: &KillRequest) -> Vec<(Uid, String)> {
    if (ctx.epoch)().is_none() {
        return Vec::new();
    }
    let Some(fleet) = fleet(ctx) else { return Vec::new() };
    let alive = fleet.members().filter(|member| matches!(member.place, Place::Waiting | Place::Starting | Place::Running));
    let named = alive.map(|member| (member.uid.clone(), format!("{}/{}", member.namespace, member.name)));
    named.filter(|(uid, agent)| is_meant(request, uid, agent)).collect()
}

fn fleet(ctx: &Context) -> Option<MutexGuard<'_, Fleet>> {
    let until = Instant::now() + FLEET_PATIENCE;
    loop {
        match ctx.fleet.try_lock() {
            Ok(fleet) => return Some(fleet),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(FLEET_PAUSE),
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return None,
        }
    }
}
