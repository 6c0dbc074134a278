//! The exec: to the next image, or back to the last good one.

use super::Service;
use crate::error::{Error, Op};
use crate::handoff::Image;
use crate::listener::Listener;
use crate::log::{self, Note};
use crate::master::watching;
use crate::plan::supervise::Event;
use crate::plan::token::{OldWorker, Token};
use crate::sys::process::Gate;
use crate::sys::{self, process, signal};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

impl Service<'_> {
    /// The exact order of an exec: gate, block all, look into the self-pipe, exec. What was in the pipe is acted upon
    /// first, and what comes later is pending in the next image.
    pub(super) fn hand_off(&mut self, back: bool) {
        let gate = process::gate();
        let before = signal::block_all();
        let signals = self.signals.read();
        // Replaced since its check, during the drain: nobody has tried that one.
        let tried = back || self.checked.is_none() || self.checked == self.image.state();
        if signals.is_empty() && !tried {
            let path = self.image.path.clone();
            self.events.push_back(Event::Change { own: true, others: false, path });
        } else if signals.is_empty() {
            let why = if back { self.roll_back(&gate) } else { self.exec(&gate) };
            self.events.push_back(Event::ExecFailed { why: why.to_string() });
        }
        signal::set_mask(&before);
        drop(gate);
        self.take_signals(&signals);
    }

    /// Returns only the error.
    fn exec(&self, gate: &Gate) -> Error {
        let mut token = self.token();
        token.state = self.image.state();
        token.watched = self.watcher.as_ref().map(|watcher| watching::carry(watcher, gate)).unwrap_or_default();
        let good = self.last_good();
        token.image = good.as_ref().map(AsRawFd::as_raw_fd);
        let keep = kept(&token);
        let fds: Vec<RawFd> = self.listeners.iter().map(AsRawFd::as_raw_fd).collect();
        token.listeners = self.listeners.iter().map(Listener::carry).collect();
        say_exec(&self.image, &token, &fds);
        let error = self.image.replace(&self.image.argv, &fds, &keep, Some(&token.encode()));
        Error::new(Op::Exec, self.image.path.display().to_string(), error)
    }

    /// What a later roll-back would execute: this image, or if it was never good, the one before.
    fn last_good(&self) -> Option<OwnedFd> {
        if !self.rollback {
            return None;
        }
        let image = match &self.good {
            _ if self.plan.is_good() => sys::os::open_image(),
            Some(good) => good.try_clone(),
            None => return None,
        };
        let instead =
            "if it does not come up, old workers serve on (overlap) or new ones are tried again (drain first)";
        image.map_err(|e| log::warn(format!("no way back from the next image: {e}; {instead}"))).ok()
    }

    /// Returns only the error.
    fn roll_back(&self, gate: &Gate) -> Error {
        let token = Token {
            // What else has changed since this image began may have been the fault: then it is worth another try.
            bad: self.good.as_ref().filter(|_| !self.others_changed).and_then(|good| self.image.fault(good)),
            error: self.plan.last_error().into(),
            watched: self.watcher.as_ref().map(|watcher| watching::carry(watcher, gate)).unwrap_or_default(),
            ..self.token()
        };
        let listeners: Vec<&Listener> = self.listeners.iter().chain(&self.dropped).collect();
        let error = match &self.good {
            Some(good) => go_back(&self.image, token, &listeners, good),
            None => io::ErrorKind::NotFound.into(),
        };
        Error::new(Op::Exec, "the last good image", error)
    }

    /// What both ways have in common.
    fn token(&self) -> Token {
        let workers = self.plan.adopted().filter_map(|w| {
            let proc = self.procs.iter().find(|proc| proc.pid.get() == w.pid)?;
            let channel = proc.channel.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            Some(OldWorker { slot: w.slot, pid: w.pid, generation: w.generation, kill_at: w.kill_at, channel })
        });
        let repeats = self.plan.repeats();
        Token {
            pid: std::process::id(),
            generation: self.plan.generation(),
            reload: self.plan.reload(),
            slots: self.plan.slots(),
            configured: self.configured,
            mask: self.signals.before.bits(),
            ignored: self.ignored,
            path: self.image.path.clone(),
            workers: workers.collect(),
            ended: self.ended.iter().map(|pid| pid.get()).collect(),
            pending: self.plan.pending(),
            repeats: (repeats.count, repeats.path),
            trigger: self.plan.record().trigger,
            stages: self.plan.record().stages(),
            ..Token::default()
        }
    }
}

/// Descriptors that cross the exec beside the listeners.
fn kept(token: &Token) -> Vec<RawFd> {
    let channels = token.workers.iter().map(|worker| worker.channel).filter(|fd| *fd >= 0);
    channels.chain(token.watched.queue).chain(token.image).collect()
}

fn say_exec(image: &Image, token: &Token, fds: &[RawFd]) {
    let list = fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
    log::say(&Note::Exec { reload: token.reload, path: image.path.clone(), fds: list });
}

/// Executes the last good image. Returns only the error.
fn go_back(image: &Image, mut token: Token, listeners: &[&Listener], good: &OwnedFd) -> io::Error {
    let fds: Vec<RawFd> = listeners.iter().map(|listener| listener.as_raw_fd()).collect();
    token.listeners = listeners.iter().map(|listener| listener.carry()).collect();
    say_exec(image, &token, &fds);
    image.replace_by(good, &fds, &kept(&token), &token.encode())
}

/// This image cannot even begin to serve: back to the last good one, with everything that `token` brought. Returns the
/// error if there is none, or if it cannot be executed.
pub(in crate::master) fn give_back(image: &Image, token: &Token, listeners: &[&Listener], why: Error) -> Error {
    let Some(Ok(good)) = token.image.map(sys::fd::adopt_own) else { return why };
    let mut token = token.clone();
    log::say(&Note::RollingBack { reload: token.reload, why: why.to_string() });
    token.generation = token.generation.saturating_sub(1);
    (token.bad, token.state, token.image) = (image.fault(&good), None, None);
    token.error = why.to_string();
    let error = go_back(image, token, listeners, &good);
    log::say(&Note::Plain(log::Level::Error, format!("cannot roll back: {error}; the service ends")));
    why
}
