//! What the kernel and the watcher tell: signals, ends of children, changes.

use super::spawn::{read_channel, Proc};
use super::{Service, Trial};
use crate::log::{self, How};
use crate::master::signals::has_terminal;
use crate::master::Job;
use crate::plan::supervise::{Event, Signal};
use crate::sys;
use crate::sys::process::{self, News, Pid};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;

impl Service<'_> {
    /// Turns bytes of the self-pipe into events.
    pub(super) fn take_signals(&mut self, bytes: &[u8]) {
        let mut reap = false;
        for byte in bytes {
            let event = match libc::c_int::from(*byte) {
                0 => {
                    self.take_flags();
                    continue;
                }
                libc::SIGCHLD => {
                    reap = true;
                    continue;
                }
                libc::SIGTERM => Signal::Term,
                libc::SIGINT => Signal::Int,
                libc::SIGQUIT => Signal::Quit,
                libc::SIGHUP if self.terminal && !has_terminal() => {
                    self.terminal = false;
                    // nohup(1): the service is to outlive its terminal, and nobody asked for a reload.
                    if self.ignored & 1 << libc::SIGHUP != 0 {
                        continue;
                    }
                    Signal::Hangup
                }
                libc::SIGHUP => Signal::Hup,
                libc::SIGUSR1 => Signal::Usr1,
                libc::SIGUSR2 => Signal::Usr2,
                libc::SIGTTIN => Signal::Ttin,
                libc::SIGTTOU => Signal::Ttou,
                _ => continue,
            };
            self.events.push_back(Event::Signal(event));
        }
        if reap {
            self.reap();
        }
    }

    fn take_flags(&mut self) {
        let change = self.flags.take_change();
        if matches!(change, Some(Event::Change { others: true, .. })) {
            self.others_changed = true;
            self.image.forget_bad();
        }
        self.events.extend(change);
        if self.flags.lost.swap(false, SeqCst) {
            self.watcher = None;
            self.events.push_back(Event::WatchLost);
        }
    }

    pub(super) fn reap(&mut self) {
        reap_workers(&mut self.procs, &self.job, self.stop_signal, &mut self.events);
        self.reap_trial();
        if sys::os::inherits_orphans() {
            let others = self.trial.iter().map(Trial::pid).chain(self.ended.iter().copied());
            let ours: Vec<Pid> = self.procs.iter().map(|proc| proc.pid).chain(others).collect();
            process::reap_orphans(|pid| ours.iter().any(|ours| ours.get() == pid));
            if self.procs.iter().any(|proc| proc.reaped) {
                reap_workers(&mut self.procs, &self.job, self.stop_signal, &mut self.events);
            }
        }
    }
}

/// How a child ended, if it did. What it leaves in its process group gets `left`.
pub(super) fn ended(pid: Pid, left: i32) -> Option<How> {
    loop {
        return Some(match process::reap(pid, left)? {
            News::Stopped(signal) => {
                log::warn(format!("process {} is stopped by signal {signal}", pid.get()));
                continue;
            }
            News::Exited(code) => How::Code(code),
            News::Signaled(signal) => How::Signal(signal),
            News::Lost => How::Unknown,
        });
    }
}

/// Who has ended, and what they have left.
pub(super) fn reap_workers(procs: &mut Vec<Proc>, job: &Job<'_>, stop_signal: i32, events: &mut VecDeque<Event>) {
    procs.retain_mut(|proc| {
        let pid = proc.pid.get();
        if !proc.reaped {
            let Some(how) = ended(proc.pid, stop_signal) else { return true };
            // What it said last comes before its end.
            read_channel(proc, job, events);
            // It was reaped before the exec, or was never ours: then its group is only if one of our children is in it.
            proc.reaped = match how {
                How::Unknown => process::is_in_group(proc.pid),
                How::Code(_) | How::Signal(_) => process::group_lives(proc.pid),
            };
            events.push_back(Event::Exited { pid, how, left: proc.reaped });
        } else if !process::group_lives(proc.pid) {
            proc.reaped = false;
            events.push_back(Event::Emptied { pid });
        }
        proc.reaped
    });
}
