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
        match self.count() {
            0 => Duration::ZERO,
            n => doubled(n - 1),
        }
    }

    /// It could not even be forked: never again at once, what is exhausted needs a moment.
    pub(crate) fn no_fork(&mut self) -> Duration {
        doubled(self.count())
    }

    /// One failure more; how many there were before.
    fn count(&mut self) -> u32 {
        // More than ten doublings change nothing; the bound keeps the state space of the explorer finite.
        let more = (self.failures + 1).min(11);
        std::mem::replace(&mut self.failures, more)
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

fn doubled(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.min(16)).min(LONGEST)
}
