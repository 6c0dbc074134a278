//! A worker's process: forked, heard, and in the child the user's function.

use super::check::Trial;
use super::notify::Notify;
use super::Service;
use crate::log::{self, Note};
use crate::master::{Job, Ready};
use crate::plan::supervise::Event;
use crate::sys::process::{self, Fork, Pid};
use crate::sys::signal;
use crate::watch::FileChangeWatcher;
use crate::worker::{Worker, READY, SERVING};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// A live worker's process.
pub(super) struct Proc {
    pub(super) pid: Pid,
    /// The master's end; gone once it has nothing more to say.
    pub(super) channel: Option<UnixStream>,
    /// Where COMMAND says that it is ready.
    pub(super) notify: Option<Notify>,
    /// It has ended; what it left in its process group has not.
    pub(super) reaped: bool,
}

impl Proc {
    /// What it is heard on.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let notify = self.notify.as_ref().map(|notify| notify.socket.as_fd());
        self.channel.as_ref().map(AsFd::as_fd).into_iter().chain(notify)
    }
}

impl Service<'_> {
    /// Descriptors of the master that a library worker must not keep.
    fn private_fds(&self) -> Vec<RawFd> {
        let mut fds = self.signals.fds().to_vec();
        fds.extend(self.procs.iter().filter_map(|proc| proc.channel.as_ref()).map(AsRawFd::as_raw_fd));
        fds.extend(self.dropped.iter().map(AsRawFd::as_raw_fd));
        fds.extend(self.procs.iter().filter_map(|proc| proc.notify.as_ref()).map(|n| n.socket.as_raw_fd()));
        fds.extend(self.trial.iter().flat_map(Trial::fds));
        fds.extend(self.good.as_ref().map(AsRawFd::as_raw_fd));
        fds.extend(self.watcher.iter().flat_map(FileChangeWatcher::private_fds));
        fds
    }

    /// Forks a worker into `slot`. In the child it does not return.
    pub(super) fn fork(&mut self, slot: usize) -> io::Result<i32> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut abandon = self.private_fds();
        abandon.push(ours.as_raw_fd());
        let child = process::Child {
            abandon: &abandon,
            channel: theirs.as_raw_fd(),
            output: None,
            // One whose default is to be ignored may be handled by COMMAND, or not.
            death: match self.stop_signal {
                libc::SIGWINCH | libc::SIGURG | libc::SIGCHLD | libc::SIGCONT => libc::SIGTERM,
                signal => signal,
            },
            parent: std::process::id(),
            grace: u32::try_from(self.shutdown_timeout.as_secs() + 1).unwrap_or(u32::MAX),
            ignored: self.ignored,
            mask: self.signals.before,
            stop: Some(self.stop_signal),
        };
        let generation = self.plan.generation();
        let mut notify = None;
        let mut program = match &self.job {
            Job::Serve(_) => None,
            Job::Command(command) => {
                notify = (self.ready == Ready::Notify).then(|| Notify::new(slot, generation)).transpose()?;
                let name = notify.as_ref().map(|notify| notify.name.as_str());
                Some(command.program(slot, generation, &self.listeners, name)?)
            }
        };
        let _ = io::stdout().flush();
        let gate = process::gate();
        let before = signal::block_all();
        match process::fork(&gate) {
            Err(e) => {
                signal::set_mask(&before);
                Err(e)
            }
            Ok(Fork::Parent(pid)) => {
                signal::set_mask(&before);
                self.procs.push(Proc { pid, channel: Some(ours), notify, reaped: false });
                Ok(pid.get())
            }
            Ok(Fork::Child) => {
                if let Some(program) = &mut program {
                    program.exec_in_child(&child);
                }
                process::enter_child(&child);
                drop(gate);
                let listeners = std::mem::take(&mut self.listeners);
                let mut worker = Worker::new(slot, generation, listeners, theirs);
                if worker.has_no_listeners() {
                    // It may never have a reason to call accept: alive is ready.
                    worker.listeners();
                }
                process::exit_now(self.serve(worker))
            }
        }
    }

    /// The user's function, in the child: its exit code.
    fn serve(&mut self, mut worker: Worker) -> i32 {
        let Job::Serve(serve) = &mut self.job else { return 0 };
        let slot = worker.slot();
        let result = catch_unwind(AssertUnwindSafe(|| serve(&mut worker)));
        let code = match result {
            Ok(Ok(())) => 0,
            Ok(Err(e)) => {
                log::say(&Note::Plain(log::Level::Error, format!("worker {slot} failed: {e}")));
                1
            }
            Err(_) => 101,
        };
        let _ = io::stdout().flush();
        code
    }
}

/// What a worker has said since: bytes of a library worker; of a COMMAND errno, or end of file when it has been
/// executed.
pub(super) fn read_channel(proc: &mut Proc, job: &Job<'_>, events: &mut VecDeque<Event>) {
    let pid = proc.pid.get();
    if proc.notify.as_ref().is_some_and(Notify::read) {
        events.push_back(Event::Ready { pid });
    }
    let Some(channel) = &mut proc.channel else { return };
    let mut buf = [0; 16];
    let n = match channel.read(&mut buf) {
        Ok(n) => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => return,
        Err(_) => 0,
    };
    match (job, &buf[..n]) {
        (Job::Command(_), []) => events.push_back(Event::Serving { pid }),
        (Job::Command(command), bytes) => {
            let errno = bytes.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
            let code = if errno == libc::ENOENT { 127 } else { 126 };
            let why = format!("{}: {}", log::Shown(&command.name()), io::Error::from_raw_os_error(errno));
            events.push_back(Event::Refused { pid, code, why });
        }
        (Job::Serve(_), bytes) => events.extend(bytes.iter().filter_map(|byte| match *byte {
            READY => Some(Event::Ready { pid }),
            SERVING => Some(Event::Serving { pid }),
            _ => None,
        })),
    }
    if n == 0 || matches!(job, Job::Command(_)) {
        proc.channel = None;
    }
}
