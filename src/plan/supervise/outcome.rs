//! How a reload ends: dropped, rolled back, abandoned, or with a generation that is ready.

use super::{Action, Phase, State, Supervise};
use crate::log::Note;
use crate::plan::Moment;

impl Supervise {
    pub(super) fn exec_failed(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        match self.phase {
            Phase::HandingOff => {
                self.generation -= 1;
                self.drop_reload(now, why, out);
            }
            Phase::RollingBack => {
                self.way_back = false;
                self.abandon(now, format!("{}; rolling back: {why}", self.last_error), out);
            }
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } | Phase::Checking { .. } => {}
            Phase::Waiting { .. } | Phase::Draining { .. } | Phase::Dormant => {}
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// The reload is dropped: what ran goes on running, what was drained is forked again.
    pub(super) fn drop_reload(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        self.last_error.clone_from(&why);
        self.done = (self.reload, why.clone());
        let serving = self.workers.iter().any(|worker| worker.state.wanted());
        out.push(Action::Say(Note::Dropped { reload: self.reload, why, command: !self.config.reexec, serving }));
        self.go_on(now, out);
        self.begin_pending(now, out);
    }

    pub(super) fn go_on(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.phase = Phase::Serving;
        for slot in 0..self.slots.len() {
            if self.is_free(slot) {
                self.slots[slot].due.get_or_insert(now);
            }
        }
        self.fork_due(now, out);
        self.ready_if_all(now, out);
    }

    /// This generation does not come up.
    pub(super) fn boot_failed(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        if self.way_back {
            out.push(Action::Say(Note::RollingBack { reload: self.reload, why: why.clone() }));
            self.last_error = why;
            self.retreat(now, out);
            self.phase = Phase::RollingBack;
            out.push(Action::RollBack);
        } else if self.ever_ready {
            let generation = self.generation;
            if self.workers.iter().any(|w| w.generation != generation && w.state == State::Ready) {
                self.retreat(now, out);
            } else {
                // Old workers that were never ready are no better.
                self.term(now, |worker| worker.generation != generation, out);
            }
            self.abandon(now, why, out);
        } else {
            self.give_up(now, why, out);
        }
    }

    /// The generation before is the one that counts again.
    fn retreat(&mut self, now: Moment, out: &mut Vec<Action>) {
        let failed = self.generation;
        self.term(now, |worker| worker.generation == failed, out);
        self.generation -= 1;
    }

    /// No other image will help: old workers serve on, or the new ones are tried again and again.
    fn abandon(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        let serving = self.workers.iter().filter(|w| w.generation == self.generation && w.state == State::Ready);
        let serving = serving.count();
        self.last_error.clone_from(&why);
        self.done = (self.reload, why.clone());
        out.push(Action::Say(Note::Abandoned { reload: self.reload, why, serving }));
        self.announced = serving > 0;
        self.go_on(now, out);
        if self.phase == Phase::Serving {
            self.begin_pending(now, out);
        }
    }

    /// All workers of this generation are ready: it takes over.
    pub(super) fn ready_if_all(&mut self, now: Moment, out: &mut Vec<Action>) {
        let ready = |w: &&super::Worker| w.generation == self.generation && w.state == State::Ready;
        let workers = self.workers.iter().filter(ready).filter(|w| w.slot < self.slots.len()).count();
        if self.announced || workers < self.slots.len() || !self.runs() {
            return;
        }
        self.announced = true;
        self.way_back = false;
        let (reload, generation) = (self.reload, self.generation);
        if self.done.0 < reload {
            self.done = (reload, self.rolled_back.clone().unwrap_or_default());
        }
        // Before the line: whoever reads it finds nothing left of the old.
        out.push(Action::Settled);
        out.push(Action::Say(match self.rolled_back.take() {
            Some(why) => Note::RolledBack { reload, generation, workers, why },
            None => {
                self.repeats.ready(now);
                Note::Ready { reload, generation, workers }
            }
        }));
        if !matches!(self.phase, Phase::Booting { .. }) {
            // Late, after this generation had been given up; one before it may still be trying, too.
            return self.term(now, |worker| worker.generation != generation, out);
        }
        self.phase = Phase::Serving;
        if self.reload > 0 && self.record.reload == self.reload && self.last_error.is_empty() {
            self.record.ready = now;
            self.track(now);
            match self.others() {
                0 => out.push(Action::Say(self.record.summary(now))),
                workers => {
                    out.push(Action::Say(Note::Draining { reload, workers }));
                    self.finishing = Some(self.record.clone());
                }
            }
        }
        self.term(now, |worker| worker.generation != generation, out);
        self.begin_pending(now, out);
    }
}
