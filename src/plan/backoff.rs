//! When a slot may be forked again.

use super::Moment;
use std::time::Duration;

/// A worker that lived this long was healthy: its slot starts afresh.
pub(crate) const HEALTHY: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// Counts the failures of one slot: the first retry comes at once, then 100 ms, doubling to 30 s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A worker ended at `age`: how long to wait before the next.
    pub(crate) fn failed(&mut self, age: Duration) -> Duration {
        if age >= HEALTHY {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => FIRST.saturating_mul(1 << (n - 1).min(16)).min(LONGEST),
        };
        // More than ten doublings change nothing; the bound keeps the state space of the explorer finite.
        self.failures = (self.failures + 1).min(11);
        wait
    }

    /// Failures in a row, up to 11.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// The moment of the next try after a failure at `now`.
    pub(crate) fn next(&mut self, now: Moment, age: Duration) -> Moment {
        now + self.failed(age)
    }
}
