//! A worker's life: forked, booting, ready, ended; and when its slot gets another.

use super::{Action, Phase, Pid, State, Supervise, Worker};
use crate::log::{How, Note};
use crate::plan::Moment;
use std::time::Duration;

/// A worker that serves without saying so is ready after this time.
const READY_AFTER: Duration = Duration::from_secs(1);
/// Failures of one slot, before anything was ever ready, after which the first start has failed.
const BOOT_ATTEMPTS: u32 = 5;

impl Supervise {
    pub(super) fn forked(&mut self, now: Moment, slot: usize, pid: Pid, out: &mut Vec<Action>) {
        let generation = self.generation;
        self.workers.push(Worker { pid, slot, generation, born: now, state: State::Booting { ready_at: None } });
        out.push(Action::Say(Note::Started { slot, pid, generation }));
    }

    pub(super) fn fork_failed(&mut self, now: Moment, slot: usize, why: String, out: &mut Vec<Action>) {
        if let Some(state) = self.slots.get_mut(slot) {
            // Never at once: what is exhausted needs a moment.
            state.backoff.failed(Duration::ZERO);
            let due = state.backoff.next(now, Duration::ZERO);
            state.due = Some(due);
            out.push(Action::Say(Note::ForkFailed { slot, why, retry: due - now }));
        }
    }

    fn worker(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    pub(super) fn serving(&mut self, now: Moment, pid: Pid) {
        if let Some(Worker { state: State::Booting { ready_at }, .. }) = self.worker(pid) {
            ready_at.get_or_insert(now + READY_AFTER);
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
        let ready = self.workers.iter().filter(|worker| worker.state == State::Ready).count();
        if !self.announced && ready == self.slots.len() {
            self.announced = true;
            let (reload, generation) = (self.reload, self.generation);
            out.push(Action::Say(Note::Ready { reload, generation, workers: ready }));
            out.push(Action::CloseDropped);
        }
    }

    pub(super) fn refused(&mut self, now: Moment, pid: Pid, code: u8, why: String, out: &mut Vec<Action>) {
        if self.worker(pid).is_none() {
            return;
        }
        out.push(Action::Say(Note::Refused { why }));
        let starting = matches!(self.phase, Phase::New | Phase::Serving | Phase::Dormant | Phase::Looking { .. });
        if starting && !self.ever_ready {
            self.stop(now, code, out);
        }
    }

    pub(super) fn exited(&mut self, now: Moment, pid: Pid, how: How, out: &mut Vec<Action>) {
        let Some(at) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let Worker { slot, born, state, .. } = self.workers.swap_remove(at);
        match state {
            State::Draining { .. } | State::Killed => {
                out.push(Action::Say(Note::Ended { slot, pid, how }));
                // A slot that was taken away and given back while its worker drained.
                let serving = self.phase == Phase::Serving;
                if let Some(state) = self.slots.get_mut(slot).filter(|_| serving) {
                    state.due.get_or_insert(now);
                }
                self.fork_due(now, out);
            }
            State::Booting { .. } | State::Ready => self.died(now, slot, pid, how, now.saturating_sub(born), out),
        }
        self.drained_if_empty(now, out);
    }

    fn died(&mut self, now: Moment, slot: usize, pid: Pid, how: How, age: Duration, out: &mut Vec<Action>) {
        let respawns = matches!(self.phase, Phase::Serving | Phase::Looking { .. });
        let mut retry = None;
        let mut failures = 0;
        if let Some(state) = self.slots.get_mut(slot).filter(|_| respawns) {
            let due = state.backoff.next(now, age);
            failures = state.backoff.failures();
            state.due = Some(due);
            retry = Some(due - now);
        }
        let gives_up = !self.ever_ready && failures >= BOOT_ATTEMPTS;
        let retry = retry.filter(|_| !gives_up);
        out.push(Action::Say(Note::Died { slot, pid, how, age, retry }));
        if gives_up {
            self.give_up(now, failures, out);
        }
        self.fork_due(now, out);
    }

    /// The very first start has failed.
    fn give_up(&mut self, now: Moment, attempts: u32, out: &mut Vec<Action>) {
        let waiting = self.config.watching;
        out.push(Action::Say(Note::CannotBoot { attempts, waiting }));
        if waiting {
            self.phase = Phase::Dormant;
            self.slots.iter_mut().for_each(|slot| slot.due = None);
        } else {
            self.stop(now, 3, out);
        }
    }

    pub(super) fn time(&mut self, now: Moment, out: &mut Vec<Action>) {
        let mut ready = Vec::new();
        for worker in &mut self.workers {
            match worker.state {
                State::Booting { ready_at: Some(at) } if at <= now => ready.push(worker.pid),
                State::Draining { kill_at } if kill_at <= now => {
                    worker.state = State::Killed;
                    let (slot, pid, timeout) = (worker.slot, worker.pid, self.config.shutdown_timeout);
                    out.push(Action::Say(Note::Killing { slot, pid, timeout }));
                    out.push(Action::Kill { pid });
                }
                State::Booting { .. } | State::Ready | State::Draining { .. } | State::Killed => {}
            }
        }
        for pid in ready {
            self.ready(now, pid, out);
        }
        self.fork_due(now, out);
    }
}
