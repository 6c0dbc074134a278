//! What the shell may ask the supervisor.

use super::{Adopted, Phase, Record, State, Supervise, Worker};
use crate::plan::repeats::Repeats;
use crate::plan::Moment;

impl Supervise {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn reload(&self) -> u64 {
        self.reload
    }

    pub(crate) fn pending(&self) -> Option<bool> {
        self.pending
    }

    pub(crate) fn repeats(&self) -> &Repeats {
        &self.repeats
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The last reload that has ended, and why it had no effect; empty: it had.
    pub(crate) fn done(&self) -> (u64, &str) {
        (self.done.0, &self.done.1)
    }

    /// Why this reload has no effect; empty: it may have.
    pub(crate) fn last_error(&self) -> &str {
        &self.last_error
    }

    /// This generation has been ready: its image is a good one.
    pub(crate) fn is_good(&self) -> bool {
        self.announced
    }

    /// Slot, pid, generation and, if it drains, deadline of each worker.
    pub(crate) fn adopted(&self) -> impl Iterator<Item = Adopted> + '_ {
        self.workers.iter().map(|w| {
            let kill_at = match w.state {
                State::Booting { .. } | State::Ready => None,
                State::Draining { kill_at } | State::Left { kill_at, killed: false } => Some(kill_at),
                State::Killed | State::Left { killed: true, .. } => Some(Moment::ZERO),
            };
            Adopted { pid: w.pid, slot: w.slot, generation: w.generation, kill_at }
        })
    }

    /// One word for the status file: `starting`, `serving`, `reloading`, `waiting` (for a change), `stopping`,
    /// `stopped`.
    pub(crate) fn state(&self) -> &'static str {
        match self.phase {
            Phase::New | Phase::Booting { .. } if self.reload == 0 => "starting",
            Phase::Serving if !self.announced => "starting",
            Phase::Serving => "serving",
            Phase::New | Phase::Booting { .. } | Phase::Looking { .. } | Phase::Checking { .. } => "reloading",
            Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack => "reloading",
            Phase::Dormant => "waiting",
            Phase::Stopping { .. } => "stopping",
            Phase::Ended => "stopped",
        }
    }

    /// `slot:pid:generation:state` of each worker, separated by spaces.
    pub(crate) fn describe_workers(&self) -> String {
        let mut workers: Vec<&Worker> = self.workers.iter().collect();
        workers.sort_unstable_by_key(|w| (w.slot, w.generation, w.pid));
        let word = |w: &Worker| match w.state {
            State::Booting { .. } => "booting",
            State::Ready => "ready",
            State::Draining { .. } | State::Left { killed: false, .. } => "draining",
            State::Killed | State::Left { killed: true, .. } => "killed",
        };
        let one = |w: &&Worker| format!("{}:{}:{}:{}", w.slot, w.pid, w.generation, word(w));
        workers.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// The number of the reload that a change seen now belongs to.
    pub(crate) fn next_reload(&self) -> u64 {
        match self.phase {
            Phase::Looking { .. } | Phase::Checking { .. } | Phase::Waiting { .. } => self.reload,
            Phase::Draining { .. } | Phase::HandingOff => self.reload,
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::RollingBack => self.reload + 1,
            Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => self.reload + 1,
        }
    }

    /// The number of slots, as TTIN and TTOU left it.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Is `Action::HandOff` or `Action::RollBack` (true) still wished for?
    pub(crate) fn execs(&self) -> Option<bool> {
        match self.phase {
            Phase::HandingOff => Some(false),
            Phase::RollingBack => Some(true),
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } => None,
            Phase::Checking { .. } | Phase::Waiting { .. } | Phase::Draining { .. } => None,
            Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => None,
        }
    }
}
