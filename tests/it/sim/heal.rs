//! Phase two of a run: the faults stop, what is under way lands, and everything must settle within so many passes.

use super::mischief;
use super::oracle::{self, status_of};
use super::scheduler::{Controller, Sim};
use mosaic::api::condition;
use mosaic::plan::status::ending;
use mosaic::store::Kind;

/// Steps in which everything must settle once the faults have stopped.
const HEAL_STEPS_MAX: u32 = 60_000;
/// Passes of one agent in which it must settle once the faults have stopped,
const HEAL_PASSES_MAX: u64 = 120;
/// and one more for so many milliseconds: who is refused is looked at again every 30 s, who runs every 15 s.
const HEAL_PASS_MILLIS: u64 = 4_000;

impl Sim {
    /// Faults stop; everything must settle.
    pub fn heal(&mut self) {
        self.with(|truth| {
            truth.note("faults stop".into());
            truth.needs_resync |= truth.faults.trigger_lost > 0;
        });
        mischief::repair(self);
        while let Some(number) = self.with(|truth| truth.lane.kills.keys().next().copied()) {
            self.with(|truth| truth.step_kill(number));
        }
        while self.with(|truth| truth.effects.values().any(|p| p.late)) {
            let late = self.with(|truth| truth.effects.iter().find(|(_, p)| p.late).map(|(number, _)| *number));
            self.with(|truth| truth.step_effect(late.expect("there is one")));
        }
        self.passes.clear();
        self.healing = true;
        let began = self.with(|truth| truth.elapsed);
        if self.with(|truth| truth.needs_resync) {
            self.resync();
        }
        for round in 0..2 {
            self.settle();
            if round == 0 {
                self.begin_orphans(0);
            }
        }
        let worst = self.passes.iter().max_by_key(|(_, passes)| **passes).map(|(key, passes)| (key.name.clone(), *passes));
        let passes_max = HEAL_PASSES_MAX + (self.with(|truth| truth.elapsed) - began) / HEAL_PASS_MILLIS;
        if let Some((name, passes)) = worst.filter(|(_, passes)| u64::from(*passes) > passes_max) {
            self.with(|truth| truth.violate(format!("{name} needed {passes} passes to settle")));
        }
        self.with(oracle::at_the_end);
    }

    fn settle(&mut self) {
        for _ in 0..HEAL_STEPS_MAX {
            let quiet = self.controllers.iter().all(Controller::is_quiet);
            let killed = self.with(|truth| truth.lane.kills.is_empty() && truth.engine.jobs.is_empty() && truth.waiting_inits().is_empty());
            let still = killed && self.with(|truth| truth.effects.is_empty() && truth.pokes.is_empty() && truth.records.changes.is_empty());
            if quiet && still && self.unsettled().is_empty() {
                return;
            }
            if !self.step() {
                break;
            }
        }
        for text in self.unsettled() {
            self.with(|truth| truth.violate(format!("did not settle: {text}")));
        }
    }

    /// Agents that have not ended, and are not refused for a reason that stands.
    pub fn unsettled(&self) -> Vec<String> {
        self.with(|truth| {
            let agents = truth.records.map.values().filter(|record| record.kind == Kind::Agent);
            let open = agents.filter_map(|record| {
                let status = status_of(record);
                let cleaned = condition::is_true(&status.conditions, condition::CLEANED_UP);
                let settled = ending(&status).is_some() && cleaned && record.metadata.deletion_timestamp.is_none();
                (!settled && !truth.waits(record, 0)).then(|| format!("{} {:?} {:?}", record.key().name, status.phase, status.message))
            });
            open.collect()
        })
    }
}
