//! The master's decisions: events in, actions out.
//!
//! ```text
//!            Start                 all slots forked, reaped, retried
//!   New ───────────────▶ Serving ◀──────────────────────────────────────┐
//!                         │    ▲                                        │
//!      Change, HUP, USR2  │    │ Looked: the new code cannot be executed│
//!                         ▼    │                                        │
//!                       Looking ──▶ Draining ──▶ HandingOff ──▶ (exec)  │ ExecFailed
//!                        (re-exec)   │   TERM, timeout, KILL     │      │
//!                                    │                           └──────┤
//!                                    └── new generation of COMMAND ─────┘
//!
//!   any ── TERM, INT ──▶ Stopping ── last worker reaped ──▶ Ended
//!   Serving ── no worker ever became ready ──▶ Dormant (reload on: next change tries again) or Stopping with code 3
//! ```
//!
//! A worker is `Booting` until it is ready, then `Ready`; asked to end it is `Draining` until its deadline, then `Killed`.
//! A slot is empty, or has one worker, or waits for its back-off to pass. A reload that is asked for while one is draining
//! is that reload: nothing of the new code has been read yet. It may only turn it into one with a re-exec.
//!
//! Every event has an answer in every phase: `step` has no catch-all arm.

mod life;
mod words;

use super::backoff::Backoff;
use super::Moment;
use crate::log::{Note, Trigger};
pub(crate) use words::{Action, Config, Event, Pid, Signal};
pub(super) use words::{Phase, Slot, State, Worker};

/// The state of the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Supervise {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) slots: Vec<Slot>,
    pub(super) workers: Vec<Worker>,
    pub(super) generation: u64,
    pub(super) reload: u64,
    /// A worker of this service was ready once, in this image or in an earlier one.
    ever_ready: bool,
    /// The `ready` line of this generation has been said.
    announced: bool,
}

impl Supervise {
    /// A service that starts (`reload` 0), or that goes on after a re-exec.
    pub(crate) fn new(config: Config, generation: u64, reload: u64) -> Supervise {
        let slots = vec![Slot::default(); config.slots];
        let ever_ready = reload > 0;
        let phase = Phase::New;
        Supervise { config, phase, slots, workers: Vec::new(), generation, reload, ever_ready, announced: false }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn reload(&self) -> u64 {
        self.reload
    }

    /// The number of the reload that a change seen now belongs to.
    pub(crate) fn next_reload(&self) -> u64 {
        match self.phase {
            Phase::Looking { .. } | Phase::Draining { .. } | Phase::HandingOff => self.reload,
            Phase::New | Phase::Serving | Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => self.reload + 1,
        }
    }

    /// The number of slots, as TTIN and TTOU left it.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Is `Action::HandOff` still wished for?
    pub(crate) fn handing_off(&self) -> bool {
        self.phase == Phase::HandingOff
    }

    /// The next moment at which `Event::Time` changes something.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let workers = self.workers.iter().filter_map(|worker| match worker.state {
            State::Booting { ready_at } => ready_at,
            State::Draining { kill_at } => Some(kill_at),
            State::Ready | State::Killed => None,
        });
        // A slot whose old worker still drains waits for that worker, not for a time.
        let forks = |slot: usize| self.phase == Phase::Serving && self.is_free(slot);
        let slots = self.slots.iter().enumerate().filter_map(|(slot, state)| state.due.filter(|_| forks(slot)));
        workers.chain(slots).min()
    }

    fn is_free(&self, slot: usize) -> bool {
        self.workers.iter().all(|worker| worker.slot != slot)
    }

    /// Answers one event. `out` gets the actions, in the order in which they are to be done.
    pub(crate) fn step(&mut self, now: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.start(now, out),
            Event::Change { own } => self.change(own, out),
            Event::WatchLost => self.watch_lost(now, out),
            Event::Signal(signal) => self.signal(now, signal, out),
            Event::Looked(answer) => self.looked(now, answer, out),
            Event::Forked { slot, pid } => self.forked(now, slot, pid, out),
            Event::ForkFailed { slot, why } => self.fork_failed(now, slot, why, out),
            Event::Serving { pid } => self.serving(now, pid),
            Event::Ready { pid } => self.ready(now, pid, out),
            Event::Refused { pid, code, why } => self.refused(now, pid, code, why, out),
            Event::Exited { pid, how } => self.exited(now, pid, how, out),
            Event::ExecFailed { why } => self.exec_failed(now, why, out),
            Event::Time => self.time(now, out),
        }
    }

    fn start(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.phase == Phase::New {
            self.new_generation(now, out);
        }
    }

    /// Forks into every slot, with a clean record.
    fn new_generation(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.phase = Phase::Serving;
        self.announced = false;
        self.slots.fill(Slot { backoff: Backoff::default(), due: Some(now) });
        self.fork_due(now, out);
    }

    fn fork_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.phase != Phase::Serving {
            return;
        }
        for slot in 0..self.slots.len() {
            if self.is_free(slot) && self.slots[slot].due.is_some_and(|due| due <= now) {
                self.slots[slot].due = None;
                out.push(Action::Fork { slot });
            }
        }
    }

    fn change(&mut self, own: bool, out: &mut Vec<Action>) {
        let reexec = own || self.config.reexec;
        match &mut self.phase {
            Phase::Serving | Phase::Dormant => self.begin_reload(reexec, None, out),
            Phase::Draining { reexec: planned } => *planned |= reexec,
            Phase::New | Phase::Looking { .. } | Phase::HandingOff | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// `asked`: say so; a change has had its line already.
    fn begin_reload(&mut self, reexec: bool, asked: Option<Trigger>, out: &mut Vec<Action>) {
        self.reload += 1;
        if let Some(trigger) = asked {
            out.push(Action::Say(Note::Asked { reload: self.reload, trigger }));
        }
        self.phase = Phase::Looking { reexec };
        out.push(Action::Look { reexec });
    }

    fn looked(&mut self, now: Moment, answer: Result<(), String>, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Looking { reexec } => match answer {
                Ok(()) => self.drain(now, reexec, out),
                Err(why) => self.resume(now, why, out),
            },
            Phase::New | Phase::Serving | Phase::Draining { .. } | Phase::HandingOff | Phase::Dormant => {}
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// The reload is dropped: what ran goes on running, what was drained is forked again.
    fn resume(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        out.push(Action::Say(Note::Dropped { reload: self.reload, why }));
        self.phase = Phase::Serving;
        for slot in 0..self.slots.len() {
            if self.is_free(slot) {
                self.slots[slot].due.get_or_insert(now);
            }
        }
        self.fork_due(now, out);
    }

    fn drain(&mut self, now: Moment, reexec: bool, out: &mut Vec<Action>) {
        self.phase = Phase::Draining { reexec };
        out.push(Action::Say(Note::Draining { reload: self.reload, workers: self.workers.len() }));
        self.term_all(now, out);
        self.drained_if_empty(now, out);
    }

    fn term_all(&mut self, now: Moment, out: &mut Vec<Action>) {
        let kill_at = now + self.config.shutdown_timeout;
        for worker in &mut self.workers {
            if matches!(worker.state, State::Booting { .. } | State::Ready) {
                worker.state = State::Draining { kill_at };
                out.push(Action::Term { pid: worker.pid });
            }
        }
    }

    fn kill_all(&mut self, out: &mut Vec<Action>) {
        out.push(Action::Say(Note::KillingAll { workers: self.workers.len() }));
        for worker in &mut self.workers {
            worker.state = State::Killed;
            out.push(Action::Kill { pid: worker.pid });
        }
    }

    /// The last worker of a drain or of a stop is gone.
    fn drained_if_empty(&mut self, now: Moment, out: &mut Vec<Action>) {
        if !self.workers.is_empty() {
            return;
        }
        match self.phase {
            Phase::Draining { reexec } => {
                out.push(Action::Say(Note::Drained { reload: self.reload }));
                self.generation += 1;
                if reexec {
                    self.phase = Phase::HandingOff;
                    out.push(Action::HandOff);
                } else {
                    self.new_generation(now, out);
                }
            }
            Phase::Stopping { code, .. } => {
                self.phase = Phase::Ended;
                out.push(Action::Say(Note::Stopped));
                out.push(Action::Exit { code });
            }
            Phase::New | Phase::Serving | Phase::Looking { .. } | Phase::HandingOff | Phase::Dormant | Phase::Ended => {
            }
        }
    }

    fn exec_failed(&mut self, now: Moment, why: String, out: &mut Vec<Action>) {
        match self.phase {
            Phase::HandingOff => {
                self.generation -= 1;
                self.resume(now, why, out);
            }
            Phase::New | Phase::Serving | Phase::Looking { .. } | Phase::Draining { .. } | Phase::Dormant => {}
            Phase::Stopping { .. } | Phase::Ended => {}
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
            Signal::Hup => self.ask_reload(Trigger::Hup, out),
            Signal::Usr2 => self.ask_reload(Trigger::Usr2, out),
            Signal::Usr1 => out.extend(self.workers.iter().map(|worker| Action::Relay { pid: worker.pid })),
            Signal::Ttin => self.more(now, out),
            Signal::Ttou => self.fewer(now, out),
        }
    }

    fn ask_reload(&mut self, trigger: Trigger, out: &mut Vec<Action>) {
        let reexec = trigger == Trigger::Usr2 || self.config.reexec;
        match &mut self.phase {
            Phase::Serving | Phase::Dormant => self.begin_reload(reexec, Some(trigger), out),
            Phase::Draining { reexec: planned } => *planned |= reexec,
            Phase::New | Phase::Looking { .. } | Phase::HandingOff | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    fn ask_stop(&mut self, now: Moment, signal: &'static str, out: &mut Vec<Action>) {
        match self.phase {
            Phase::New
            | Phase::Serving
            | Phase::Looking { .. }
            | Phase::Draining { .. }
            | Phase::HandingOff
            | Phase::Dormant => {
                out.push(Action::Say(Note::Stopping { signal, workers: self.workers.len() }));
                self.stop(now, 0, out);
            }
            Phase::Stopping { forced: false, .. } => self.stop_at_once(now, out),
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    fn stop(&mut self, now: Moment, code: u8, out: &mut Vec<Action>) {
        self.phase = Phase::Stopping { code, forced: false };
        self.term_all(now, out);
        self.drained_if_empty(now, out);
    }

    fn stop_at_once(&mut self, now: Moment, out: &mut Vec<Action>) {
        let code = match self.phase {
            Phase::Stopping { code, forced: false } => code,
            Phase::New | Phase::Serving | Phase::Looking { .. } | Phase::Draining { .. } | Phase::HandingOff => 0,
            Phase::Dormant => 0,
            Phase::Stopping { .. } | Phase::Ended => return,
        };
        self.phase = Phase::Stopping { code, forced: true };
        self.kill_all(out);
        self.drained_if_empty(now, out);
    }

    fn more(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.slots.push(Slot { backoff: Backoff::default(), due: Some(now) });
        self.fork_due(now, out);
    }

    fn fewer(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.slots.len() < 2 {
            return;
        }
        self.slots.pop();
        let kill_at = now + self.config.shutdown_timeout;
        for worker in self.workers.iter_mut().filter(|worker| worker.slot == self.slots.len()) {
            if matches!(worker.state, State::Booting { .. } | State::Ready) {
                worker.state = State::Draining { kill_at };
                out.push(Action::Term { pid: worker.pid });
            }
        }
    }
}
