//! The lease: how long init goes on without a word from the controller. Pure: times are arguments.
//!
//! The clock counts suspended time, so that an agent on a laptop whose lid was closed does not outlive a controller that is gone. But the
//! controller slept as well: after a jump one round of renewal is allowed before the lease counts as expired.

/// How long one round of renewal may take after the host was suspended.
pub const ROUND_AFTER_SUSPEND_MILLIS: u64 = 2_000;
/// A difference between the clocks that means that the host was suspended.
const SUSPENDED_MILLIS_MIN: u64 = 500;

/// What a look at the clocks says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Go on.
    Valid,
    /// The host was suspended: renew now.
    Resumed,
    /// End everything.
    Expired,
}

/// A lease and the two clocks it is looked at with. Units: milliseconds since boot.
#[derive(Debug)]
pub struct Lease {
    length: u64,
    until: u64,
    /// Difference of the clocks at the last look: it grows only while the host is suspended.
    suspended: u64,
}

impl Lease {
    /// Starts a lease.
    #[must_use]
    pub fn new(length: u64, boot: u64, awake: u64) -> Self {
        Self { length, until: boot + length, suspended: boot.saturating_sub(awake) }
    }

    /// When it expires.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.until
    }

    /// A renewal was received.
    pub fn renew(&mut self, boot: u64) {
        self.until = boot + self.length;
    }

    /// Looks at the clocks.
    pub fn tick(&mut self, boot: u64, awake: u64) -> Tick {
        let suspended = boot.saturating_sub(awake);
        let jump = suspended.saturating_sub(self.suspended);
        self.suspended = self.suspended.max(suspended);
        if jump >= SUSPENDED_MILLIS_MIN {
            self.until = self.until.max(boot + ROUND_AFTER_SUSPEND_MILLIS);
            return Tick::Resumed;
        }
        if boot >= self.until { Tick::Expired } else { Tick::Valid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_expires_without_renewal() {
        let mut lease = Lease::new(30_000, 1_000, 1_000);
        assert_eq!(lease.tick(30_999, 30_999), Tick::Valid);
        assert_eq!(lease.tick(31_000, 31_000), Tick::Expired);
    }

    #[test]
    fn renewed_lease_goes_on() {
        let mut lease = Lease::new(30_000, 0, 0);
        lease.renew(29_000);
        assert_eq!(lease.tick(58_999, 58_999), Tick::Valid);
        assert_eq!(lease.tick(59_000, 59_000), Tick::Expired);
    }

    #[test]
    fn suspended_host_gets_one_round_and_no_more() {
        let mut lease = Lease::new(30_000, 0, 0);
        assert_eq!(lease.tick(3_600_000, 1_000), Tick::Resumed);
        assert_eq!(lease.tick(3_601_999, 2_999), Tick::Valid);
        assert_eq!(lease.tick(3_602_000, 3_000), Tick::Expired);
    }
}
