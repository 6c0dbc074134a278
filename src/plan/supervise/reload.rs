//! A reload: from the wish to the generation that is ready, or back.

use super::record::Record;
use super::{Action, Phase, Slot, State, Supervise, Verdict, Worker};
use crate::log::{Note, Trigger};
use crate::plan::Moment;
use std::path::PathBuf;
use std::time::Duration;

/// How often a file that is still being written is looked at.
const AGAIN: Duration = Duration::from_millis(100);

/// All workers have been drained for this reload: there is no time for another look.
const NOW_OR_NEVER: Moment = Moment::ZERO;

impl Supervise {
    pub(super) fn start(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.phase == Phase::New {
            self.record.started = now;
            self.new_generation(now, out);
        }
    }

    /// Forks into every slot that has no worker of this generation, with a clean record.
    pub(super) fn new_generation(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.phase = Phase::Booting { until: now + self.config.boot_timeout };
        self.announced = false;
        for slot in 0..self.slots.len() {
            let due = self.is_free(slot).then_some(now);
            self.slots[slot] = Slot { due, ..Slot::default() };
        }
        self.fork_due(now, out);
        // After a roll-back all of them may be there already.
        self.ready_if_all(now, out);
    }

    pub(super) fn change(&mut self, now: Moment, own: bool, others: bool, path: PathBuf, out: &mut Vec<Action>) {
        let asks_exec = own || self.config.reexec;
        match &mut self.phase {
            Phase::Serving | Phase::Dormant => {
                self.count_repeats(now, path, false, out);
                self.begin_reload(now, asks_exec, own && !others, Trigger::Change, out);
            }
            // What was seen of the new code is out of date: look anew.
            Phase::Looking { reexec, only_own, fresh, .. } => {
                (*reexec, *only_own) = (*reexec || asks_exec, *only_own && own && !others);
                let (reexec, only_own, fresh) = (*reexec, *only_own, *fresh);
                if now < fresh {
                    self.look(reexec, only_own, fresh, out);
                }
            }
            Phase::Checking { reexec, fresh, .. } if now < *fresh => {
                // What was asked for meanwhile is answered by this, too.
                let pending = self.pending.take().unwrap_or(false);
                let (reexec, fresh) = (*reexec || asks_exec || pending, *fresh);
                out.push(Action::EndCheck);
                self.look(reexec, false, fresh, out);
            }
            // Who saves without an end must not keep everybody waiting.
            Phase::Checking { .. } => self.later(asks_exec),
            Phase::Waiting { reexec, dirty } | Phase::Draining { reexec, dirty } => {
                *reexec |= asks_exec;
                *dirty = true;
            }
            Phase::HandingOff => {
                self.generation -= 1;
                self.look_again(now, true, out);
            }
            Phase::New | Phase::Booting { .. } | Phase::RollingBack => {
                if self.pending.is_none() {
                    self.count_repeats(now, path, true, out);
                }
                self.later(asks_exec);
            }
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// A service that writes what it watches is slowed down.
    fn count_repeats(&mut self, now: Moment, path: PathBuf, booting: bool, out: &mut Vec<Action>) {
        let before = self.repeats.quiet(self.config.quiet);
        self.repeats.change(now, &path, booting, self.config.quiet);
        let quiet = self.repeats.quiet(self.config.quiet);
        if quiet > before {
            out.push(Action::Say(Note::Looping { path, quiet }));
        }
        if quiet != before {
            out.push(Action::Quiet { quiet });
        }
    }

    pub(super) fn ask_reload(&mut self, now: Moment, trigger: Trigger, out: &mut Vec<Action>) {
        let asks_exec = trigger == Trigger::Usr2 || self.config.reexec;
        match &mut self.phase {
            Phase::Serving | Phase::Dormant => self.begin_reload(now, asks_exec, false, trigger, out),
            // Nothing of the new code has been used yet: this is that reload.
            Phase::Looking { reexec, only_own, .. } => {
                *reexec |= asks_exec;
                *only_own = false;
            }
            Phase::Checking { reexec, fresh, .. } if asks_exec && !*reexec => {
                let fresh = *fresh;
                out.push(Action::EndCheck);
                self.look(true, false, fresh, out);
            }
            Phase::Waiting { reexec, dirty } | Phase::Draining { reexec, dirty } => {
                // An image that nobody has checked yet.
                *dirty |= asks_exec && !*reexec;
                *reexec |= asks_exec;
            }
            // What is tried may be older than the wish.
            Phase::Checking { .. } => self.later(asks_exec),
            Phase::New | Phase::Booting { .. } | Phase::RollingBack => self.later(asks_exec),
            Phase::HandingOff | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// Once, when this generation is ready or given up.
    fn later(&mut self, reexec: bool) {
        self.pending = Some(self.pending.unwrap_or(false) || reexec);
    }

    fn begin_reload(&mut self, now: Moment, reexec: bool, only_own: bool, trigger: Trigger, out: &mut Vec<Action>) {
        self.reload += 1;
        self.record = Record::begin(now, self.reload, trigger);
        self.last_error.clear();
        match trigger {
            // The watcher has said it.
            Trigger::Change => {}
            Trigger::Start | Trigger::Pending | Trigger::Hup | Trigger::Usr2 => {
                out.push(Action::Say(Note::Asked { reload: self.reload, trigger }));
            }
        }
        self.look(reexec, only_own, self.fresh(now), out);
    }

    pub(super) fn begin_pending(&mut self, now: Moment, out: &mut Vec<Action>) {
        if let Some(reexec) = self.pending.take() {
            self.begin_reload(now, reexec, false, Trigger::Pending, out);
        }
    }

    /// Until when changes begin the look at the new code anew. If nobody serves it has gone on for too long already.
    fn fresh(&self, now: Moment) -> Moment {
        match self.workers.iter().any(|worker| worker.state == State::Ready) {
            true => now + self.config.check_timeout,
            false => now,
        }
    }

    fn look(&mut self, reexec: bool, only_own: bool, fresh: Moment, out: &mut Vec<Action>) {
        self.phase = Phase::Looking { reexec, only_own, again: None, fresh };
        out.push(Action::Look { reexec, only_own, last: false });
    }

    /// The code has changed after it was found good. If nobody serves it is good now, or dropped.
    fn look_again(&mut self, now: Moment, reexec: bool, out: &mut Vec<Action>) {
        out.push(Action::Say(Note::Again { reload: self.reload }));
        self.record.again = true;
        let serving = self.workers.iter().any(|worker| worker.state == State::Ready);
        let fresh = if serving { self.fresh(now) } else { NOW_OR_NEVER };
        self.phase = Phase::Looking { reexec, only_own: false, again: None, fresh };
        out.push(Action::Look { reexec, only_own: false, last: !serving });
    }

    pub(super) fn looked(&mut self, now: Moment, verdict: Verdict, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Looking { reexec, only_own, again, fresh } => match verdict {
                Verdict::Good => {
                    self.record.found_whole(now);
                    let (until, patience) = (now + self.config.check_timeout, again.map(|(_, until)| until));
                    self.phase = Phase::Checking { reexec, until, patience, fresh };
                    out.push(Action::Check { reexec });
                }
                Verdict::Same => {
                    out.push(Action::Say(Note::Same { reload: self.reload }));
                    self.reload -= 1;
                    self.go_on(now, out);
                    self.begin_pending(now, out);
                }
                Verdict::Later(why, patience) => {
                    let until = again.map_or(now + patience, |(_, until)| until.min(now + patience));
                    if again.is_none() {
                        out.push(Action::Say(Note::Unsettled { reload: self.reload, why }));
                    }
                    let again = Some(((now + AGAIN).min(until), until));
                    self.phase = Phase::Looking { reexec, only_own, again, fresh };
                }
                Verdict::Bad(why) => self.drop_reload(now, why, out),
            },
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Checking { .. } | Phase::Waiting { .. } => {}
            Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack | Phase::Dormant => {}
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// A file that was not whole yet is looked at again; a check that does not answer has failed.
    pub(super) fn look_time(&mut self, now: Moment, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Looking { reexec, only_own, again: Some((at, until)), .. } if at <= now => {
                out.push(Action::Look { reexec, only_own, last: until <= now });
            }
            Phase::Checking { until, .. } if until <= now => {
                out.push(Action::EndCheck);
                let ms = self.config.check_timeout.as_millis();
                self.drop_reload(now, format!("the check of the new code gave no answer in {ms} ms"), out);
            }
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } => {}
            Phase::Checking { .. } | Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff => {}
            Phase::RollingBack | Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    pub(super) fn checked(&mut self, now: Moment, verdict: Verdict, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Checking { reexec, patience, fresh, .. } => match verdict {
                Verdict::Good | Verdict::Same => {
                    self.record.found_good(now);
                    self.commit(now, reexec, out);
                }
                Verdict::Later(why, time) => {
                    let until = patience.unwrap_or(now + time);
                    if until <= now || fresh == NOW_OR_NEVER {
                        return self.drop_reload(now, why, out);
                    }
                    let again = Some(((now + AGAIN).min(until), until));
                    self.phase = Phase::Looking { reexec, only_own: false, again, fresh };
                }
                Verdict::Bad(why) => self.drop_reload(now, why, out),
            },
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } | Phase::Waiting { .. } => {}
            Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack | Phase::Dormant => {}
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// The new code is worth it.
    fn commit(&mut self, now: Moment, reexec: bool, out: &mut Vec<Action>) {
        if !self.config.overlap {
            if self.workers.is_empty() {
                return self.advance(now, reexec, out);
            }
            self.phase = Phase::Draining { reexec, dirty: false };
            out.push(Action::Say(Note::Draining { reload: self.reload, workers: self.workers.len() }));
            self.term(now, |_| true, out);
            self.drained_if_empty(now, out);
        } else if self.in_the_way(reexec) > 0 {
            self.phase = Phase::Waiting { reexec, dirty: false };
            out.push(Action::Say(Note::Waiting { reload: self.reload, workers: self.in_the_way(reexec) }));
        } else {
            self.advance(now, reexec, out);
        }
    }

    /// To the next generation: by an exec or by forks.
    fn advance(&mut self, now: Moment, reexec: bool, out: &mut Vec<Action>) {
        self.generation += 1;
        (self.record.handed, self.record.started) = (now, now);
        if reexec {
            self.phase = Phase::HandingOff;
            out.push(Action::HandOff);
        } else {
            self.new_generation(now, out);
        }
    }

    /// How many live workers belong to another generation.
    pub(super) fn others(&self) -> usize {
        self.workers.iter().filter(|worker| worker.generation != self.generation).count()
    }

    /// How many must be gone before a third generation may begin. What a dead worker has left is nobody's child: the next
    /// image could not tell that it is ours.
    fn in_the_way(&self, reexec: bool) -> usize {
        let left = |worker: &&Worker| reexec && matches!(worker.state, State::Left { .. });
        self.workers.iter().filter(|worker| worker.generation != self.generation || left(worker)).count()
    }

    /// Overlap: has what was in the way gone?
    pub(super) fn waited(&self) -> bool {
        matches!(self.phase, Phase::Waiting { reexec, .. } if self.in_the_way(reexec) == 0)
    }

    /// The last worker of a drain or of a stop may be gone.
    pub(super) fn drained_if_empty(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.others() == 0 {
            if let Some(record) = self.finishing.take() {
                out.push(Action::Say(Note::Drained { reload: record.reload }));
                out.push(Action::Say(record.summary(now)));
            }
        }
        match self.phase {
            Phase::Waiting { reexec, dirty: true } if self.waited() => self.look_again(now, reexec, out),
            Phase::Waiting { reexec, dirty: false } if self.waited() => self.advance(now, reexec, out),
            Phase::Draining { reexec, dirty } if self.workers.is_empty() => {
                out.push(Action::Say(Note::Drained { reload: self.reload }));
                match dirty {
                    true => self.look_again(now, reexec, out),
                    false => self.advance(now, reexec, out),
                }
            }
            Phase::Stopping { code, .. } if self.workers.is_empty() && !self.slots.iter().any(|slot| slot.forking) => {
                self.phase = Phase::Ended;
                out.push(Action::Say(Note::Stopped));
                out.push(Action::Exit { code });
            }
            Phase::New | Phase::Booting { .. } | Phase::Serving | Phase::Looking { .. } | Phase::Checking { .. } => {}
            Phase::Waiting { .. } | Phase::Draining { .. } | Phase::HandingOff | Phase::RollingBack => {}
            Phase::Dormant | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }
}
