//! What the image before has left, beside the listeners.

use super::spawn::Proc;
use crate::listener::Listener;
use crate::log;
use crate::plan::repeats::Repeats;
use crate::plan::supervise::{Adopted, Past, Record};
use crate::plan::token::Token;
use crate::plan::Moment;
use crate::sys::{self, process::Pid};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The old workers, and other children that may not have been reaped. Whether they live is asked next.
pub(super) fn workers(token: &Token) -> (Vec<Proc>, Vec<Pid>) {
    let proc = |worker: &crate::plan::token::OldWorker| {
        let channel = sys::fd::adopt_own(worker.channel).map(UnixStream::from).ok();
        let channel = channel.filter(|channel| channel.set_nonblocking(true).is_ok());
        Some(Proc { pid: Pid::new(worker.pid)?, channel, notify: None, reaped: false })
    };
    let ended = token.ended.iter().filter_map(|pid| Pid::new(*pid));
    (token.workers.iter().filter_map(proc).collect(), ended.collect())
}

/// The last good image. One that nobody wants is closed.
pub(super) fn image(token: &Token, wanted: bool) -> Option<OwnedFd> {
    let image = sys::fd::adopt_own(token.image?);
    image
        .map_err(|e| log::warn(format!("the last good image is lost ({e}): there is no way back")))
        .ok()
        .filter(|_| wanted)
}

/// Copies of listeners, which know what those know.
pub(super) fn copies(listeners: &[Listener]) -> Vec<Listener> {
    let copy = |listener: &Listener| {
        let fd = sys::fd::duplicate(listener.as_raw_fd(), 3).ok()?;
        let mut copy = Listener::from_fd(fd, listener.origin()).ok()?;
        copy.recall(&listener.carry());
        Some(copy)
    };
    listeners.iter().filter_map(copy).collect()
}

/// What the plan goes on from.
pub(super) fn past(token: &Token, now: Moment, way_back: bool) -> Past {
    let worker = |w: &crate::plan::token::OldWorker| {
        let (pid, slot, generation, kill_at) = (w.pid, w.slot, w.generation, w.kill_at);
        (pid > 1).then_some(Adopted { pid, slot, generation, kill_at })
    };
    Past {
        generation: token.generation,
        reload: token.reload,
        workers: token.workers.iter().filter_map(worker).collect(),
        pending: token.pending,
        way_back,
        rolled_back: Some(token.error.clone()).filter(|error| !error.is_empty()),
        repeats: Repeats { count: token.repeats.0, path: token.repeats.1, ready: None },
        record: Record::recall(now, token.reload, token.trigger, &token.stages),
    }
}
