//! What the user's function gets.

use crate::listener::{Addr, Listener, Stream};
use crate::log;
use crate::sys;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a worker that has no descriptor left waits before it tries to accept again.
const NO_FDS: Duration = Duration::from_millis(100);

/// One byte that a worker sends to its master.
pub(crate) const READY: u8 = b'R';
pub(crate) const SERVING: u8 = b'S';

/// A worker process, as the function given to [`crate::Master::run`] sees it.
///
/// The function returns when the worker is to end: [`Worker::accept`] returns `None` then. A function with its own
/// event loop takes [`Worker::listeners`], watches [`Worker::drain_fd`] beside them, and when that becomes readable
/// accepts what is queued, closes idle connections, finishes the others and returns.
///
/// What fork(2) copies: a random generator or a hash seed made before `run` is the same in every worker.
#[derive(Debug)]
pub struct Worker {
    slot: usize,
    generation: u64,
    listeners: Vec<Listener>,
    channel: UnixStream,
    /// Which listener is asked first: they take turns.
    turn: usize,
    told: Told,
    /// The drain descriptor was readable.
    ending: bool,
    drained: bool,
    said_full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Told {
    Nothing,
    Serving,
    Ready,
}

impl Worker {
    pub(crate) fn new(slot: usize, generation: u64, listeners: Vec<Listener>, channel: UnixStream) -> Worker {
        let told = Told::Nothing;
        Worker { slot, generation, listeners, channel, turn: 0, told, ending: false, drained: false, said_full: false }
    }

    pub(crate) fn has_no_listeners(&self) -> bool {
        self.listeners.is_empty()
    }

    /// This worker's number, from 0. It survives a respawn: the successor of a dead worker has the same.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// How many times the code was replaced, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The listeners, in the order in which they were bound, for an event loop of one's own. They are non-blocking and
    /// must stay so. A worker that takes them, or has none, is ready when it is still alive a second later, or says
    /// [`Worker::ready`].
    pub fn listeners(&mut self) -> &[Listener] {
        self.tell(Told::Serving);
        &self.listeners
    }

    /// A descriptor that becomes readable (end of file), for good, when this worker is to drain or its master is dead.
    /// Do not read from it.
    pub fn drain_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Is this worker to drain?
    pub fn draining(&self) -> bool {
        let mut drain = [sys::fd::interest(Some(self.drain_fd()))];
        let polled = sys::fd::poll(&mut drain, Some(Duration::ZERO));
        sys::signal::draining() || (polled.is_ok() && drain[0].revents != 0)
    }

    /// Tells the master that this worker serves. [`Worker::accept`] does it by itself.
    pub fn ready(&mut self) {
        self.tell(Told::Ready);
    }

    fn tell(&mut self, what: Told) {
        if self.told < what {
            self.told = what;
            // A dead master needs no news; a write to it must not end this worker (SIGPIPE is ignored).
            let _ = self.channel.write(&[if what == Told::Ready { READY } else { SERVING }]);
        }
    }

    /// Waits for the next connection on any listener; `None`: this worker is draining, and everything that was queued
    /// has been returned. The first call tells the master that this worker is ready.
    ///
    /// Interrupted calls, connections that went away while they were queued and the like are absorbed. When no
    /// descriptor is left it says so once and tries again every 100 ms.
    ///
    /// # Errors
    ///
    /// A listener that is no longer one (EBADF, EINVAL): the worker cannot go on.
    pub fn accept(&mut self) -> io::Result<Option<(Stream, Addr)>> {
        self.ready();
        while !self.drained {
            let draining = self.ending || sys::signal::draining();
            if draining && !sys::signal::parent_lives() {
                // The port first: a new master must be able to bind. Then what is being answered, under an alarm.
                self.listeners.clear();
                sys::signal::begin_drain();
            }
            match self.accept_now() {
                Ok(Some(accepted)) => return Ok(Some(accepted)),
                Ok(None) if draining => self.drained = true,
                Ok(None) => self.wait(None)?,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK)) => {
                    return Err(e)
                }
                Err(e) => {
                    if !std::mem::replace(&mut self.said_full, true) {
                        log::warn(format!("worker {} cannot accept: {e}; trying again every 100 ms", self.slot));
                    }
                    self.wait(Some(NO_FDS))?;
                }
            }
        }
        Ok(None)
    }

    fn accept_now(&mut self) -> io::Result<Option<(Stream, Addr)>> {
        for _ in 0..self.listeners.len() {
            self.turn = (self.turn + 1) % self.listeners.len();
            if let Some(accepted) = self.listeners[self.turn].accept_now()? {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    /// Until a client comes or the drain begins; with `pause`, until that has passed or the drain begins.
    fn wait(&mut self, pause: Option<Duration>) -> io::Result<()> {
        let mut fds = Vec::with_capacity(self.listeners.len() + 1);
        fds.push(sys::fd::interest(Some(self.channel.as_fd()).filter(|_| !self.ending)));
        let listeners = self.listeners.iter().filter(|_| pause.is_none());
        fds.extend(listeners.map(|listener| sys::fd::interest(Some(listener.as_fd()))));
        let polled = sys::fd::poll(&mut fds, pause);
        self.ending |= fds[0].revents != 0;
        polled
    }
}
