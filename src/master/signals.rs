//! Signals as the loop sees them: bytes in a pipe.

use crate::error::{Error, Op, Result};
use crate::log;
use crate::sys::signal;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The self-pipe and the handlers that write into it; everything as before when it is dropped.
pub(super) struct Signals {
    pipe: UnixStream,
    /// Kept open: the handlers know its number.
    write: UnixStream,
    _handlers: signal::Saved,
    pub(super) before: signal::Mask,
}

impl Signals {
    pub(super) fn install(first: &signal::Mask) -> Result<Signals> {
        let fail = |e| Error::new(Op::Signals, "", e);
        let (pipe, write) = UnixStream::pair().map_err(fail)?;
        pipe.set_nonblocking(true).map_err(fail)?;
        write.set_nonblocking(true).map_err(fail)?;
        signal::set_wake(write.as_raw_fd());
        let handlers = signal::install().map_err(fail)?;
        Ok(Signals { pipe, write, _handlers: handlers, before: *first })
    }

    /// Lets the master's signals through.
    pub(super) fn unblock(&self) {
        let ours = signal::MASTER.iter().fold(0, |bits, signal| bits | 1 << (signal - 1));
        signal::set_mask(&signal::Mask::from_bits(self.before.bits() & !ours));
    }

    /// Readable when a signal came.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Both ends: no worker's business.
    pub(super) fn fds(&self) -> [RawFd; 2] {
        [self.pipe.as_raw_fd(), self.write.as_raw_fd()]
    }

    /// Empties the pipe: the signals' numbers, in order; 0 is the watcher.
    pub(super) fn read(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buf = [0; 256];
        while let Ok(n @ 1..) = self.pipe.read(&mut buf) {
            bytes.extend_from_slice(&buf[..n]);
        }
        let overflow = signal::take_overflow();
        bytes.extend((0..32).filter(|signal| overflow & 1 << signal != 0));
        bytes
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        signal::set_wake(-1);
        signal::set_mask(&self.before);
    }
}

/// Is there a controlling terminal?
pub(super) fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// A fork copies one thread: what another holds at that moment stays locked in the worker.
pub(super) fn warn_of_threads() {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let me = std::process::id().to_string();
    let others = tasks.filter(|task| task.file_name() != *me);
    let names: Vec<String> = others
        .map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim().into())
        .collect();
    if !names.is_empty() {
        let names = names.join(", ");
        log::warn(format!(
            "threads run beside the master ({names}): what they hold at a fork stays locked in the worker"
        ));
    }
}
