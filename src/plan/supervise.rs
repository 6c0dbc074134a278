//! The master's decisions: events in, actions out.
//!
//! ```text
//!              Start             all ready: the others are drained
//!     New ───────────▶ Booting ───────────────────────────────────▶ Serving
//!                        ▲ │                                         │   ▲
//!              next image│ │does not come up      change, HUP, USR2  │   │ not whole, bad, no answer
//!                        │ ▼                                         ▼   │
//!                        │ RollingBack ──▶ (exec of the last        Looking ──▶ Checking
//!                        │ good image); if there is none the             ▲         │ good
//!                        │ old workers are Serving, or the new           │         │
//!                        │ ones are tried again                  changed │         ▼
//!                        │                                       since   └── Draining (drain first: all must go)
//!                        └── (exec, or forks of COMMAND) ◀── HandingOff ◀─── Waiting (overlap: a third generation
//!                                                                            must go), usually passed over
//!
//!     any ── TERM, INT ──▶ Stopping ── last worker reaped ──▶ Ended
//!     Booting, and nothing was ever ready ──▶ Dormant (reload on: until the next change) or Stopping with code 3
//! ```
//!
//! A worker is `Booting` until it is ready, then `Ready`; asked to end it is `Draining` until its deadline, then
//! `Killed`. Processes that it leaves in its group are still that worker, `Left` until they have ended, too. A slot is
//! empty, or has one worker of this generation, or waits for its back-off to pass. Workers of
//! another generation are what an overlap leaves: the old ones until the new are ready, then until they have drained;
//! and after a roll-back those that failed. At most two generations live.
//!
//! A reload that is asked for while one is on its way is that reload, as long as nothing of the new code has been used;
//! after that it is pending and begins when the generation is ready or given up, across the exec.
//!
//! Every event has an answer in every phase: no `match` on a phase has a catch-all arm.

mod life;
mod outcome;
mod record;
mod reload;
mod view;
mod words;

use super::repeats::Repeats;
use super::Moment;
use crate::log::{Note, Trigger};
pub(crate) use record::Record;
pub(crate) use words::{Action, Adopted, Config, Event, Past, Pid, Signal, Verdict};
pub(super) use words::{Phase, Slot, State, Worker};

/// Forks in one step; a signal is heard before the next.
const AT_ONCE: usize = 16;

/// The state of the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Supervise {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) slots: Vec<Slot>,
    pub(super) workers: Vec<Worker>,
    pub(super) generation: u64,
    pub(super) reload: u64,
    /// A reload that waits for its turn; with a re-exec?
    pub(super) pending: Option<bool>,
    /// A worker of this service was ready once, in this image or in an earlier one.
    pub(super) ever_ready: bool,
    /// The `ready` line of this generation has been said.
    pub(super) announced: bool,
    /// The last good image can be executed.
    pub(super) way_back: bool,
    pub(super) rolled_back: Option<String>,
    pub(super) repeats: Repeats,
    /// The last reload, and one whose old workers still drain.
    pub(super) record: Record,
    pub(super) finishing: Option<Record>,
    /// Why this reload has no effect; empty: it may have.
    pub(super) last_error: String,
    /// The last reload that has ended, and why it had no effect.
    pub(super) done: (u64, String),
}

impl Supervise {
    /// A service that starts (`Past::default()`), or that goes on after a re-exec.
    pub(crate) fn new(now: Moment, config: Config, past: Past) -> Supervise {
        let worker = |w: Adopted| Worker {
            pid: w.pid,
            slot: w.slot,
            generation: w.generation,
            born: now,
            state: w.kill_at.map_or(State::Ready, |kill_at| State::Draining { kill_at }),
        };
        Supervise {
            phase: Phase::New,
            slots: vec![Slot::default(); config.slots],
            config,
            workers: past.workers.into_iter().map(worker).collect(),
            generation: past.generation.max(1),
            reload: past.reload,
            done: (past.reload.saturating_sub(1), String::new()),
            pending: past.pending,
            ever_ready: past.reload > 0,
            announced: false,
            way_back: past.way_back,
            last_error: past.rolled_back.clone().unwrap_or_default(),
            rolled_back: past.rolled_back,
            repeats: past.repeats,
            record: past.record,
            finishing: None,
        }
    }

    /// Are workers of this generation kept running?
    pub(super) fn runs(&self) -> bool {
        match self.phase {
            Phase::Booting { .. } | Phase::Serving | Phase::Waiting { .. } => true,
            Phase::Looking { .. } | Phase::Checking { .. } => true,
            Phase::New | Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack => false,
            Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => false,
        }
    }

    /// The next moment at which `Event::Time` changes something.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let workers = self.workers.iter().filter_map(|worker| match worker.state {
            State::Booting { ready_at } => ready_at,
            State::Draining { kill_at } | State::Left { kill_at, .. } => Some(kill_at),
            State::Ready | State::Killed => None,
        });
        // A slot whose old worker still drains waits for that worker, not for a time.
        let forks = |slot: usize| self.runs() && self.is_free(slot);
        let slots = self.slots.iter().enumerate().filter_map(|(slot, state)| state.due.filter(|_| forks(slot)));
        let phase = match self.phase {
            Phase::Booting { until } | Phase::Checking { until, .. } => Some(until),
            Phase::Looking { again, .. } => again.map(|(at, _)| at),
            Phase::New | Phase::Serving | Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff => None,
            Phase::RollingBack | Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => None,
        };
        workers.chain(slots).chain(phase).min()
    }

    /// No worker of this generation has this slot, or is about to.
    fn is_free(&self, slot: usize) -> bool {
        !self.slots[slot].forking
            && self.workers.iter().all(|worker| worker.slot != slot || worker.generation != self.generation)
    }

    /// Answers one event. `out` gets the actions, in the order in which they are to be done.
    pub(crate) fn step(&mut self, now: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.start(now, out),
            Event::Change { own, others, path } => self.change(now, own, others, path, out),
            Event::WatchLost => self.watch_lost(now, out),
            Event::Signal(signal) => self.signal(now, signal, out),
            Event::Looked(verdict) => self.looked(now, verdict, out),
            Event::Checked(verdict) => self.checked(now, verdict, out),
            Event::Forked { slot, pid } => self.forked(now, slot, pid, out),
            Event::ForkFailed { slot, why } => self.fork_failed(now, slot, why, out),
            Event::Serving { pid } => self.serving(now, pid),
            Event::Ready { pid } => self.ready(now, pid, out),
            Event::Refused { pid, code, why } => self.refused(now, pid, code, why, out),
            Event::Exited { pid, how, left } => self.exited(now, pid, how, left, out),
            Event::Emptied { pid } => self.emptied(now, pid, out),
            Event::ExecFailed { why } => self.exec_failed(now, why, out),
            Event::Time => self.time(now, out),
        }
        self.track(now);
    }

    /// Keeps the length of the gap in which nobody accepts.
    fn track(&mut self, now: Moment) {
        let accepting = self.workers.iter().any(|worker| worker.state == State::Ready);
        if self.reload > 0 {
            self.record.accepting(now, accepting);
        }
    }

    fn fork_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        if !self.runs() {
            return;
        }
        let mut left = AT_ONCE;
        for slot in 0..self.slots.len() {
            if left > 0 && self.is_free(slot) && self.slots[slot].due.is_some_and(|due| due <= now) {
                left -= 1;
                self.slots[slot] = Slot { due: None, forking: true, ..self.slots[slot].clone() };
                out.push(Action::Fork { slot });
            }
        }
    }

    /// Asks those workers to end that have not been asked yet.
    fn term(&mut self, now: Moment, which: impl Fn(&Worker) -> bool, out: &mut Vec<Action>) {
        let kill_at = now + self.config.shutdown_timeout;
        for worker in self.workers.iter_mut().filter(|worker| which(worker) && worker.state.wanted()) {
            worker.state = State::Draining { kill_at };
            out.push(Action::Term { pid: worker.pid });
        }
    }

    fn kill_all(&mut self, now: Moment, out: &mut Vec<Action>) {
        out.push(Action::Say(Note::KillingAll { workers: self.workers.len() }));
        let kill_at = self.give_up_at(now);
        for worker in &mut self.workers {
            worker.state = match worker.state {
                State::Left { .. } => State::Left { kill_at, killed: true },
                State::Booting { .. } | State::Ready | State::Draining { .. } | State::Killed => State::Killed,
            };
            out.push(Action::Kill { pid: worker.pid });
        }
    }

    fn watch_lost(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.config.watching = false;
        if self.phase == Phase::Dormant {
            self.stop(now, 3, out);
        }
    }

    fn signal(&mut self, now: Moment, signal: Signal, out: &mut Vec<Action>) {
        match signal {
            Signal::Term => self.ask_stop(now, "SIGTERM", out),
            Signal::Int => self.ask_stop(now, "SIGINT", out),
            Signal::Hangup => self.ask_stop(now, "SIGHUP (the terminal is gone)", out),
            Signal::Quit => self.stop_at_once(now, out),
            Signal::Hup => self.ask_reload(now, Trigger::Hup, out),
            Signal::Usr2 => self.ask_reload(now, Trigger::Usr2, out),
            Signal::Usr1 => {
                let live = self.workers.iter().filter(|worker| !matches!(worker.state, State::Left { .. }));
                out.extend(live.map(|worker| Action::Relay { pid: worker.pid }));
            }
            Signal::Ttin => self.more(now, out),
            Signal::Ttou => self.fewer(now, out),
        }
    }

    fn ask_stop(&mut self, now: Moment, signal: &'static str, out: &mut Vec<Action>) {
        match self.phase {
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } | Phase::Checking { .. } => {}
            Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack => {}
            Phase::Dormant => {}
            Phase::Stopping { forced: false, .. } => return self.stop_at_once(now, out),
            Phase::Stopping { .. } | Phase::Ended => return,
        }
        out.push(Action::Say(Note::Stopping { signal, workers: self.workers.len() }));
        self.stop(now, 0, out);
    }

    fn stop(&mut self, now: Moment, code: u8, out: &mut Vec<Action>) {
        self.end_check(out);
        self.phase = Phase::Stopping { code, forced: false };
        self.term(now, |_| true, out);
        self.drained_if_empty(now, out);
    }

    fn end_check(&self, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Checking { .. }) {
            out.push(Action::EndCheck);
        }
    }

    fn stop_at_once(&mut self, now: Moment, out: &mut Vec<Action>) {
        let code = match self.phase {
            Phase::Stopping { code, forced: false } => code,
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } | Phase::Checking { .. } => 0,
            Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack => 0,
            Phase::Dormant => 0,
            Phase::Stopping { .. } | Phase::Ended => return,
        };
        self.end_check(out);
        self.phase = Phase::Stopping { code, forced: true };
        self.kill_all(now, out);
        self.drained_if_empty(now, out);
    }

    fn more(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.slots.push(Slot { due: Some(now), ..Slot::default() });
        self.fork_due(now, out);
    }

    fn fewer(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.slots.len() < 2 {
            return;
        }
        self.slots.pop();
        let (slot, generation) = (self.slots.len(), self.generation);
        self.term(now, |worker| worker.slot == slot && worker.generation == generation, out);
        self.ready_if_all(now, out);
    }
}
