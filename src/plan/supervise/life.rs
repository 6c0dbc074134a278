//! A worker's life: forked, booting, ready, ended; and when its slot gets another.

use super::{Action, Phase, Pid, State, Supervise, Worker};
use crate::log::{How, Note};
use crate::plan::Moment;
use std::time::Duration;

/// Failures of one slot after which the first start has failed.
const FIRST_ATTEMPTS: u32 = 5;
/// Failures of one slot after which a new generation has failed: there is something better to run.
const ATTEMPTS: u32 = 3;

impl Supervise {
    pub(super) fn forked(&mut self, now: Moment, slot: usize, pid: Pid, out: &mut Vec<Action>) {
        let generation = self.generation;
        self.workers.push(Worker { pid, slot, generation, born: now, state: State::Booting { ready_at: None } });
        out.push(Action::Say(Note::Started { slot, pid, generation }));
    }

    pub(super) fn fork_failed(&mut self, now: Moment, slot: usize, why: String, out: &mut Vec<Action>) {
        if let Some(state) = self.slots.get_mut(slot) {
            // Never at once: what is exhausted needs a moment.
            if state.backoff.failures() == 0 {
                state.backoff.failed(Duration::ZERO);
            }
            let due = state.backoff.next(now, Duration::ZERO);
            state.due = Some(due);
            out.push(Action::Say(Note::ForkFailed { slot, why, retry: due - now }));
        }
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

    pub(super) fn exited(&mut self, now: Moment, pid: Pid, how: How, out: &mut Vec<Action>) {
        let Some(at) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let Worker { slot, born, state, generation, .. } = self.workers.swap_remove(at);
        let ours = generation == self.generation;
        match state {
            State::Draining { .. } | State::Killed => {
                out.push(Action::Say(Note::Ended { slot, pid, how }));
                // A slot that was taken away and given back while its worker drained.
                let serving = ours && self.runs();
                if let Some(state) = self.slots.get_mut(slot).filter(|_| serving) {
                    state.due.get_or_insert(now);
                }
                self.fork_due(now, out);
            }
            State::Booting { .. } | State::Ready => {
                let age = now.saturating_sub(born);
                match ours {
                    true => self.died(now, slot, pid, how, age, state == State::Ready, out),
                    // Its code is not here any more: the new generation is on its way.
                    false => out.push(Action::Say(Note::Died { slot, pid, how, age, retry: None })),
                }
            }
        }
        self.drained_if_empty(now, out);
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
            false => (booting || self.phase == Phase::Serving) && failures >= FIRST_ATTEMPTS,
        };
        let retry = retry.filter(|_| !gives_up);
        out.push(Action::Say(Note::Died { slot, pid, how, age, retry }));
        if gives_up {
            let why = match self.ever_ready {
                true => format!("workers of the new code die before they are ready: {how}"),
                false => format!("{failures} attempts"),
            };
            self.boot_failed(now, why, out);
        }
        self.fork_due(now, out);
    }

    /// The very first start has failed.
    pub(super) fn give_up(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        let waiting = self.config.watching;
        out.push(Action::Say(Note::CannotBoot { why: why.clone(), waiting }));
        self.last_error = format!("workers cannot boot ({why})");
        if waiting {
            self.phase = Phase::Dormant;
            self.slots.iter_mut().for_each(|slot| slot.due = None);
            self.begin_pending(now, out);
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
        if matches!(self.phase, Phase::Booting { until } if until <= now) {
            let ms = self.config.boot_timeout.as_millis();
            self.boot_failed(now, format!("not all workers are ready after {ms} ms"), out);
        }
        self.look_time(now, out);
        self.fork_due(now, out);
    }
}
