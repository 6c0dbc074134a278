//! The times of one reload, for its summary line. They cross the exec.

use crate::log::{Note, Trigger};
use crate::plan::Moment;
use std::time::Duration;

/// When the stages of a reload ended; a stage that did not happen took no time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) reload: u64,
    pub(crate) trigger: Trigger,
    pub(crate) begun: Moment,
    /// The new code was whole.
    pub(crate) settled: Moment,
    pub(crate) checked: Moment,
    /// The exec, or the first fork of the new generation, began.
    pub(crate) handed: Moment,
    /// The new image was there.
    pub(crate) started: Moment,
    pub(crate) ready: Moment,
    /// No worker accepted from here on.
    pub(crate) gap_from: Option<Moment>,
    pub(crate) gap: Duration,
    /// The code was looked at again after it had been found good: that time belongs to the drain.
    pub(crate) again: bool,
}

impl Record {
    pub(super) fn begin(now: Moment, reload: u64, trigger: Trigger) -> Record {
        let gap_from = None;
        let (begun, settled, checked, handed, started, ready) = (now, now, now, now, now, now);
        let (gap, again) = (Duration::ZERO, false);
        Record { reload, trigger, begun, settled, checked, handed, started, ready, gap_from, gap, again }
    }

    pub(super) fn found_whole(&mut self, now: Moment) {
        self.settled = if self.again { self.settled } else { now };
    }

    pub(super) fn found_good(&mut self, now: Moment) {
        self.checked = if self.again { self.checked } else { now };
    }

    /// Whether anybody accepts, as of now.
    pub(super) fn accepting(&mut self, now: Moment, accepting: bool) {
        match (accepting, self.gap_from) {
            (false, None) => self.gap_from = Some(now),
            (true, Some(from)) => {
                self.gap += now.saturating_sub(from);
                self.gap_from = None;
            }
            (false, Some(_)) | (true, None) => {}
        }
    }

    /// The summary line, once all of the old generation is gone.
    pub(super) fn summary(&self, now: Moment) -> Note {
        let drain_first = self.handed.saturating_sub(self.checked);
        let drain_last = now.saturating_sub(self.ready);
        Note::Summary {
            reload: self.reload,
            trigger: self.trigger,
            settle: self.settled.saturating_sub(self.begun),
            check: self.checked.saturating_sub(self.settled),
            drain: drain_first + drain_last,
            exec: self.started.saturating_sub(self.handed),
            boot: self.ready.saturating_sub(self.started),
            gap: self.gap,
        }
    }

    /// The moments, for the token.
    pub(crate) fn stages(&self) -> Vec<Moment> {
        let mut stages = vec![self.begun, self.settled, self.checked, self.handed, self.gap];
        stages.extend(self.gap_from);
        stages
    }

    /// The inverse, in the next image.
    pub(crate) fn recall(now: Moment, reload: u64, trigger: Trigger, stages: &[Moment]) -> Record {
        let at = |i: usize| stages.get(i).copied().unwrap_or(now);
        let mut record = Record::begin(now, reload, trigger);
        (record.begun, record.settled, record.checked, record.handed) = (at(0), at(1), at(2), at(3));
        record.gap = stages.get(4).copied().unwrap_or_default();
        record.gap_from = stages.get(5).copied();
        record
    }
}
