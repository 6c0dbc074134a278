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
}

impl Debounce {
    pub(crate) fn new(quiet: Duration, cap: Duration) -> Debounce {
        Debounce { quiet, cap: cap.max(quiet), open: None }
    }

    /// Something changed.
    pub(crate) fn change(&mut self, now: Moment) {
        let first = self.open.map_or(now, |(first, _)| first);
        self.open = Some((first, now));
    }

    /// When the open batch is due; `None`: nothing changed.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.open.map(|(first, last)| (last + self.quiet).min(first + self.cap))
    }

    /// Closes the batch if it is due.
    pub(crate) fn fire(&mut self, now: Moment) -> bool {
        let due = self.deadline().is_some_and(|deadline| now >= deadline);
        if due {
            self.open = None;
        }
        due
    }
}
