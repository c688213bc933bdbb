//! Chance and mischief: one small random generator per run, how often each fault strikes, and faults aimed at one effect.

use super::plants::Plant;

/// SplitMix64: the same seed gives the same run on every machine.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True in `per_mille` of 1000 cases. Draws nothing when that is 0.
    pub fn hits(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    /// One of the list.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let at = self.below(list.len() as u64) as usize;
        &list[at]
    }
}

/// How often each fault strikes, in thousandths per opportunity.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A store call is refused before anything happened.
    pub store_down: u64,
    /// A store write is done and its reply lost.
    pub store_reply_lost: u64,
    /// A look at sandboxes or trees fails.
    pub look_fails: u64,
    /// An effect cannot be started.
    pub apply_fails: u64,
    /// A blocking effect fails before it did anything.
    pub effect_fails: u64,
    /// A blocking effect is done, and reported as failed.
    pub effect_reply_lost: u64,
    /// A sandbox dies without a word.
    pub sandbox_lost: u64,
    /// A trigger is lost.
    pub trigger_lost: u64,
    /// A trigger comes twice.
    pub trigger_doubled: u64,
    /// A pass is dropped in the middle (its deadline is over).
    pub pass_dropped: u64,
    /// A controller crashes.
    pub crash: u64,
    /// A leader is paused while another one takes over.
    pub pause: u64,
    /// The wall clock jumps.
    pub clock_jump: u64,
    /// The remote does not answer for a while.
    pub remote_down: u64,
    /// Somebody moves the base branch.
    pub base_moves: u64,
    /// A user does something.
    pub user: u64,
    /// The lane kills somebody.
    pub kill: u64,
    /// The lane kills everything.
    pub kill_all: u64,
    /// The store comes back with an older copy of somebody whom the lane has killed.
    pub restore: u64,
    /// A killed process does not die at once.
    pub undying: u64,
    /// The latch does not reach the disk.
    pub disk_stuck: u64,
    /// The engine hangs, or works again.
    pub engine_hangs: u64,
    /// The engine does not answer a question.
    pub engine_silent: u64,
    /// The engine's answer is not so.
    pub engine_lies: u64,
}

impl Faults {
    /// A mix that differs from seed to seed: most runs have some kinds of faults and not the others.
    pub fn of(rng: &mut Rng) -> Self {
        // Most runs have no kills: those with many have little else.
        let mut killing = |share: u64, most: u64| if rng.hits(share) { 1 + rng.below(most) } else { 0 };
        let (kill, kill_all) = (killing(400, 20), killing(120, 2));
        let mut rate = |most: u64| if rng.hits(550) { 1 + rng.below(most) } else { 0 };
        Self {
            store_down: rate(60),
            store_reply_lost: rate(60),
            look_fails: rate(60),
            apply_fails: rate(40),
            effect_fails: rate(80),
            effect_reply_lost: rate(80),
            sandbox_lost: rate(30),
            trigger_lost: rate(200),
            trigger_doubled: rate(200),
            pass_dropped: rate(15),
            crash: rate(12),
            pause: rate(8),
            clock_jump: rate(8),
            remote_down: rate(15),
            base_moves: rate(15),
            user: rate(25),
            kill,
            kill_all,
            restore: rate(15),
            undying: rate(300),
            disk_stuck: rate(200),
            engine_hangs: rate(15),
            engine_silent: rate(300),
            engine_lies: rate(500),
        }
    }
}

/// Where a fault that is aimed at one effect strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The controller crashes before the effect is done.
    CrashBefore,
    /// The effect is done, and the controller crashes before it knows.
    CrashAfter,
    /// The effect is done, and reported as failed.
    ReplyLost,
    /// The controller crashes at once, and the effect is done later, beside its successor.
    CrashAndLand,
    /// The lane kills the agent.
    Kill(Moment),
}

/// When the lane kills, as seen from an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It was let through, and has not begun.
    Before,
    /// It has done so many of its parts; with every second one the engine has done a job.
    During(u32),
    /// It is done, and nobody has heard of it.
    After,
}

/// A fault aimed at one effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aim {
    /// Name of the action; empty: any.
    pub action: String,
    /// How many of them to let pass first.
    pub skip: u32,
    /// What happens then.
    pub strike: Strike,
}

/// Everything that makes one run what it is.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    pub plant: Option<Plant>,
}
