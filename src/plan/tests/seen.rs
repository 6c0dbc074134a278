//! What the explorer and its toy kernel see of the supervisor.

use crate::plan::backoff::HEALTHY;
use crate::plan::supervise::*;
use crate::plan::Moment;

/// What the explorer needs to see.
impl Supervise {
    /// The same state, if only absolute times, pids, counters and words were different.
    pub(super) fn canonical(&self, past: Moment, base: Moment, pid: impl Fn(Pid) -> Pid) -> Supervise {
        let mut plan = self.clone();
        let shift = |at: Moment| base + at.saturating_sub(past);
        const GENERATION: u64 = 10;
        for worker in &mut plan.workers {
            worker.pid = pid(worker.pid);
            // Of an age only one thing matters.
            worker.born = if past.saturating_sub(worker.born) < HEALTHY { base } else { base - HEALTHY };
            worker.generation = GENERATION + worker.generation - self.generation;
            match &mut worker.state {
                State::Booting { ready_at: Some(at) } | State::Draining { kill_at: at } => *at = shift(*at),
                State::Left { kill_at, .. } => *kill_at = shift(*kill_at),
                State::Booting { ready_at: None } | State::Ready | State::Killed => {}
            }
        }
        plan.workers.sort_by_key(|worker| worker.pid);
        plan.slots.iter_mut().for_each(|slot| slot.due = slot.due.map(shift));
        match &mut plan.phase {
            Phase::Booting { until } => *until = shift(*until),
            Phase::Looking { again, fresh, .. } => {
                *again = again.map(|(at, until)| (shift(at), shift(until)));
                *fresh = if fresh.is_zero() { *fresh } else { shift(*fresh) };
            }
            Phase::Checking { until, patience, fresh, .. } => {
                *fresh = if fresh.is_zero() { *fresh } else { shift(*fresh) };
                *until = shift(*until);
                *patience = patience.map(shift);
            }
            Phase::New | Phase::Serving | Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff => {}
            Phase::RollingBack | Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => {}
        }
        (plan.generation, plan.reload) = (GENERATION, 1);
        // Only said, or counted elsewhere.
        (plan.record, plan.finishing, plan.repeats) = Default::default();
        (plan.rolled_back, plan.last_error, plan.done) = Default::default();
        // What decides nothing any more.
        if self.ever_ready {
            plan.config.watching = false;
        }
        if self.config.reexec {
            plan.pending = self.pending.map(|_| true);
        }
        if matches!(self.phase, Phase::Stopping { .. } | Phase::Ended) {
            plan.slots.fill(Slot::default());
            (plan.pending, plan.announced, plan.way_back, plan.ever_ready) = (None, true, false, true);
            plan.config.watching = false;
        }
        plan
    }

    pub(super) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::New => "New",
            Phase::Booting { .. } => "Booting",
            Phase::Serving => "Serving",
            Phase::Looking { .. } => "Looking",
            Phase::Checking { .. } => "Checking",
            Phase::Waiting { .. } => "Waiting",
            Phase::Draining { .. } => "Draining",
            Phase::HandingOff => "HandingOff",
            Phase::RollingBack => "RollingBack",
            Phase::Dormant => "Dormant",
            Phase::Stopping { .. } => "Stopping",
            Phase::Ended => "Ended",
        }
    }

    pub(super) fn accepting(&self) -> bool {
        self.workers.iter().any(|worker| worker.state == State::Ready)
    }

    pub(super) fn others_accept(&self) -> bool {
        self.workers.iter().any(|worker| worker.state == State::Ready && worker.generation != self.generation)
    }

    /// Is a slot empty for good?
    pub(super) fn forgotten_slot(&self) -> bool {
        let held = |slot| self.workers.iter().any(|w| w.slot == slot && w.generation == self.generation);
        self.slots.iter().enumerate().any(|(slot, state)| state.due.is_none() && !held(slot))
    }

    pub(super) fn reloading(&self) -> bool {
        matches!(self.phase_name(), "Looking" | "Checking" | "Waiting" | "Draining" | "HandingOff")
    }

    pub(super) fn next_image(&self, now: Moment, back: bool) -> Supervise {
        let past = Past {
            generation: self.generation,
            reload: self.reload,
            workers: self.adopted().collect(),
            pending: self.pending,
            way_back: !back && self.announced,
            rolled_back: back.then(String::new),
            ..Past::default()
        };
        Supervise::new(now, Config { slots: self.slots.len(), ..self.config.clone() }, past)
    }
}
