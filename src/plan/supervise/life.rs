//! A worker's life: forked, booting, ready, ended; and when its slot gets another.

use super::{Action, Phase, Pid, State, Supervise, Worker};
use crate::log::{How, Note};
use crate::plan::Moment;
use std::time::Duration;

/// Failures of one slot after which the first start has failed.
const FIRST_ATTEMPTS: u32 = 5;
/// Failures of one slot after which a new generation has failed: there is something better to run.
const ATTEMPTS: u32 = 3;
/// How long processes that were killed are waited for that are nobody's children here.
const PATIENCE: Duration = Duration::from_secs(1);

impl Supervise {
    pub(super) fn forked(&mut self, now: Moment, slot: usize, pid: Pid, out: &mut Vec<Action>) {
        let generation = self.generation;
        self.slots.iter_mut().skip(slot).take(1).for_each(|state| state.forking = false);
        self.workers.push(Worker { pid, slot, generation, born: now, state: State::Booting { ready_at: None } });
        out.push(Action::Say(Note::Started { slot, pid, generation }));
        if matches!(self.phase, Phase::Stopping { .. }) {
            // Another slot's fork has failed just before, and was the last try.
            self.term(now, |_| true, out);
        }
    }

    pub(super) fn fork_failed(&mut self, now: Moment, slot: usize, why: String, out: &mut Vec<Action>) {
        let Some(state) = self.slots.get_mut(slot) else { return };
        state.forking = false;
        let retry = state.backoff.no_fork();
        let failures = state.backoff.failures();
        let gives_up = self.gives_up_first(failures) || !self.runs();
        if let Some(state) = self.slots.get_mut(slot).filter(|_| !gives_up) {
            state.due = Some(now + retry);
        }
        out.push(Action::Say(Note::ForkFailed { slot, why, retry: Some(retry).filter(|_| !gives_up) }));
        if self.gives_up_first(failures) {
            self.boot_failed(now, format!("{failures} attempts"), out);
        }
        self.drained_if_empty(now, out);
    }

    /// Has the very first start failed, with a slot that has failed so often?
    fn gives_up_first(&self, failures: u32) -> bool {
        let starts = matches!(self.phase, Phase::Booting { .. } | Phase::Serving);
        !self.ever_ready && starts && failures >= FIRST_ATTEMPTS
    }

    fn worker(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    pub(super) fn serving(&mut self, now: Moment, pid: Pid) {
        let Some(after) = self.config.ready_after else { return };
        if let Some(Worker { state: State::Booting { ready_at }, .. }) = self.worker(pid) {
            ready_at.get_or_insert(now + after);
        }
    }

    pub(super) fn ready(&mut self, now: Moment, pid: Pid, out: &mut Vec<Action>) {
        let Some(worker) = self.worker(pid) else { return };
        if !matches!(worker.state, State::Booting { .. }) {
            return;
        }
        worker.state = State::Ready;
        self.ever_ready = true;
        if self.phase == Phase::Dormant {
            self.phase = Phase::Serving;
            for slot in 0..self.slots.len() {
                if self.is_free(slot) {
                    self.slots[slot].due = Some(now);
                }
            }
            self.fork_due(now, out);
        }
        self.ready_if_all(now, out);
    }

    pub(super) fn refused(&mut self, now: Moment, pid: Pid, code: u8, why: String, out: &mut Vec<Action>) {
        if self.worker(pid).is_none() {
            return;
        }
        out.push(Action::Say(Note::Refused { why }));
        if self.runs() && !self.ever_ready {
            self.stop(now, code, out);
        }
    }

    pub(super) fn exited(&mut self, now: Moment, pid: Pid, how: How, left: bool, out: &mut Vec<Action>) {
        let Some(at) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let Worker { slot, born, state, generation, .. } = self.workers[at];
        let (timeout, give_up_at) = (self.config.shutdown_timeout, self.give_up_at(now));
        match state {
            State::Draining { kill_at } => self.workers[at].state = State::Left { kill_at, killed: false },
            State::Killed => self.workers[at].state = State::Left { kill_at: give_up_at, killed: true },
            State::Booting { .. } | State::Ready => {
                self.workers[at].state = State::Left { kill_at: now + timeout, killed: false };
            }
            State::Left { .. } => return,
        }
        match state {
            State::Booting { .. } | State::Ready if generation == self.generation => {
                self.died(now, slot, pid, how, now.saturating_sub(born), state == State::Ready, left, out);
            }
            State::Booting { .. } | State::Ready => {
                // Its code is not here any more: the new generation is on its way.
                out.push(Action::Say(Note::Died { slot, pid, how, age: now.saturating_sub(born), retry: None }));
            }
            State::Draining { .. } | State::Killed | State::Left { .. } => {
                out.push(Action::Say(Note::Ended { slot, pid, how }));
            }
        }
        match left {
            true if state == State::Killed => {}
            true => out.push(Action::Say(Note::Left { slot, pid, died: state.wanted() })),
            // When its slot gets another is decided already if it was not asked to end.
            false => self.gone(now, pid, !state.wanted(), out),
        }
    }

    pub(super) fn emptied(&mut self, now: Moment, pid: Pid, out: &mut Vec<Action>) {
        self.gone(now, pid, true, out);
    }

    /// Nothing of this worker is left.
    fn gone(&mut self, now: Moment, pid: Pid, refill: bool, out: &mut Vec<Action>) {
        let left = |worker: &Worker| worker.pid == pid && matches!(worker.state, State::Left { .. });
        let Some(at) = self.workers.iter().position(left) else { return };
        let Worker { slot, generation, .. } = self.workers.swap_remove(at);
        let refill = refill && generation == self.generation && self.runs();
        if let Some(state) = self.slots.get_mut(slot).filter(|_| refill) {
            // Not due yet: a slot that was taken away and given back while its worker drained.
            state.due.get_or_insert(now);
        }
        // A generation that ends this instant gets no worker more.
        if !self.waited() {
            self.fork_due(now, out);
        }
        self.drained_if_empty(now, out);
    }

    /// When processes that are killed now, and do not go, are given up.
    pub(super) fn give_up_at(&self, now: Moment) -> Moment {
        now + self.config.shutdown_timeout.min(PATIENCE)
    }

    #[allow(clippy::too_many_arguments)]
    fn died(
        &mut self,
        now: Moment,
        slot: usize,
        pid: Pid,
        how: How,
        age: Duration,
        was_ready: bool,
        left: bool,
        out: &mut Vec<Action>,
    ) {
        let respawns = self.runs();
        let mut retry = None;
        let mut failures = 0;
        if let Some(state) = self.slots.get_mut(slot).filter(|_| respawns) {
            let due = state.backoff.next(now, age);
            failures = state.backoff.failures();
            state.due = Some(due);
            retry = Some(due - now);
        }
        let booting = matches!(self.phase, Phase::Booting { .. });
        let gives_up = match self.ever_ready {
            true => booting && !was_ready && failures >= ATTEMPTS,
            false => self.gives_up_first(failures),
        };
        let retry = retry.filter(|_| !gives_up && !left);
        out.push(Action::Say(Note::Died { slot, pid, how, age, retry }));
        if gives_up {
            let why = match self.ever_ready {
                true => format!("workers of the new code die before they are ready: {how}"),
                false => format!("{failures} attempts"),
            };
            self.boot_failed(now, why, out);
        }
    }

    /// The very first start has failed.
    pub(super) fn give_up(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        let waiting = self.config.watching;
        out.push(Action::Say(Note::CannotBoot { why: why.clone(), waiting }));
        self.last_error = format!("workers cannot boot ({why})");
        self.done = (self.reload, self.last_error.clone());
        if waiting {
            self.phase = Phase::Dormant;
            self.slots.iter_mut().for_each(|slot| slot.due = None);
            self.begin_pending(now, out);
        } else {
            self.stop(now, 3, out);
        }
    }

    pub(super) fn time(&mut self, now: Moment, out: &mut Vec<Action>) {
        let give_up_at = self.give_up_at(now);
        let (mut ready, mut stay) = (Vec::new(), Vec::new());
        for worker in &mut self.workers {
            match worker.state {
                State::Booting { ready_at: Some(at) } if at <= now => ready.push(worker.pid),
                State::Draining { kill_at } if kill_at <= now => {
                    worker.state = State::Killed;
                    let (slot, pid, timeout) = (worker.slot, worker.pid, self.config.shutdown_timeout);
                    out.push(Action::Say(Note::Killing { slot, pid, timeout }));
                    out.push(Action::Kill { pid });
                }
                State::Left { kill_at, killed: false } if kill_at <= now => {
                    worker.state = State::Left { kill_at: give_up_at, killed: true };
                    let (slot, pid, timeout) = (worker.slot, worker.pid, self.config.shutdown_timeout);
                    out.push(Action::Say(Note::KillingLeft { slot, pid, timeout }));
                    out.push(Action::Kill { pid });
                }
                State::Left { kill_at, killed: true } if kill_at <= now => stay.push((worker.slot, worker.pid)),
                State::Booting { .. } | State::Ready | State::Draining { .. } | State::Killed => {}
                State::Left { .. } => {}
            }
        }
        for pid in ready {
            self.ready(now, pid, out);
        }
        if matches!(self.phase, Phase::Booting { until } if until <= now) {
            let ms = self.config.boot_timeout.as_millis();
            self.boot_failed(now, format!("not all workers are ready after {ms} ms"), out);
        }
        // Before a look, whose answer may ask for forks, too.
        self.fork_due(now, out);
        self.look_time(now, out);
        // Last: an exec may follow.
        for (slot, pid) in &stay {
            out.push(Action::Say(Note::LeftStays { slot: *slot, pid: *pid }));
            out.push(Action::Forget { pid: *pid });
        }
        stay.iter().for_each(|(_, pid)| self.emptied(now, *pid, out));
    }
}
