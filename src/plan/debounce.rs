//! Quiet time and cap: many events, one report.

use super::Moment;
use std::time::Duration;

/// Collects changes into batches: a batch is due when nothing changed for `quiet`, and at the latest `cap` after its first
/// change, so that a file that is written without a pause is still reported.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Debounce {
    quiet: Duration,
    cap: Duration,
    /// First and last change of the open batch.
    open: Option<(Moment, Moment)>,
    /// Changes that came close upon each other.
    streak: u32,
}

/// Changes this far apart are not a burst: longer than the longest pause, which would end its own burst otherwise.
const APART: Duration = Duration::from_millis(20);
/// So many in a row are looked at as they come: a single save must be reported to the point.
const PROMPT: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_micros(250);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// A timed wait ends late: by the timer's slack (50 us, prctl(2)), and by the time that an idle processor takes to wake up,
/// 0.1 ms in a virtual machine.
const LATE: Duration = Duration::from_micros(150);

impl Debounce {
    pub(crate) fn new(quiet: Duration, cap: Duration) -> Debounce {
        Debounce { quiet, cap: cap.max(quiet), open: None, streak: 0 }
    }

    /// Something changed.
    pub(crate) fn change(&mut self, now: Moment) {
        let first = self.open.map_or(now, |(first, _)| first);
        self.streak = match self.open {
            Some((_, last)) if now.saturating_sub(last) <= APART => self.streak.saturating_add(1),
            _ => 0,
        };
        self.open = Some((first, now));
    }

    /// When the open batch is due; `None`: nothing changed.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.open.map(|(first, last)| last.saturating_add(self.quiet).min(first.saturating_add(self.cap)))
    }

    /// How long to wait for the deadline, in two steps: until shortly before, then the rest.
    pub(crate) fn wait(&self, now: Moment) -> Option<Duration> {
        let left = self.deadline()?.saturating_sub(now);
        Some(left.checked_sub(LATE).unwrap_or(left))
    }

    /// Closes the batch if it is due.
    pub(crate) fn fire(&mut self, now: Moment) -> bool {
        let due = self.deadline().is_some_and(|deadline| now >= deadline);
        if due {
            (self.open, self.streak) = (None, 0);
        }
        due
    }

    /// How long to let events gather before they are read: in a burst the wake-ups cost, not the events, and inside the
    /// quiet window nobody waits for us. Never beyond the deadline.
    pub(crate) fn pause(&self, now: Moment) -> Duration {
        let Some(deadline) = self.deadline().filter(|_| self.streak >= PROMPT) else { return Duration::ZERO };
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.streak - PROMPT).min(16)).min(LONGEST_PAUSE);
        pause.min(deadline.saturating_sub(now))
    }

    /// Another quiet time from now on.
    pub(crate) fn set_quiet(&mut self, quiet: Duration) {
        self.quiet = quiet;
        self.cap = self.cap.max(quiet);
    }
}
