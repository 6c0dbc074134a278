//! The one loop: wait, turn what happened into events, ask the plan, do what it says.

use super::{sockets, Job, Master};
use crate::error::{Error, Op, Result};
use crate::handoff::Image;
use crate::listener::{Listener, Want};
use crate::log::{self, How, Note};
use crate::plan::supervise::{Action, Config, Event, Signal, Supervise};
use crate::plan::token::Token;
use crate::sys::process::{self, Fork, News, Pid};
use crate::sys::{self, fd::interest, signal};
use crate::watch::FileChangeWatcher;
use crate::worker::{Worker, READY, SERVING};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;

/// What the watcher's thread leaves for the loop, beside a byte in the self-pipe.
#[derive(Default)]
struct Flags {
    changed: AtomicBool,
    own: AtomicBool,
    lost: AtomicBool,
    /// The number that the next change's line carries.
    reload: Arc<AtomicU64>,
}

/// A live worker's process.
struct Proc {
    pid: Pid,
    slot: usize,
    /// The master's end; gone once it has nothing more to say.
    channel: Option<UnixStream>,
}

/// The self-pipe and the handlers that write into it; everything as before when it is dropped.
struct Signals {
    pipe: UnixStream,
    /// Kept open: the handlers know its number.
    write: UnixStream,
    _handlers: signal::Saved,
    before: signal::Mask,
}

impl Signals {
    fn install(first: &signal::Mask) -> Result<Signals> {
        let fail = |e| Error::new(Op::Signals, "", e);
        let (pipe, write) = UnixStream::pair().map_err(fail)?;
        pipe.set_nonblocking(true).map_err(fail)?;
        write.set_nonblocking(true).map_err(fail)?;
        signal::set_wake(write.as_raw_fd());
        let handlers = signal::install().map_err(fail)?;
        Ok(Signals { pipe, write, _handlers: handlers, before: *first })
    }

    /// Lets the master's signals through.
    fn unblock(&self) {
        let ours = signal::MASTER.iter().fold(0, |bits, signal| bits | 1 << (signal - 1));
        signal::set_mask(&signal::Mask::from_bits(self.before.bits() & !ours));
    }

    /// Empties the pipe: the signals' numbers, in order; 0 is the watcher.
    fn read(&mut self) -> Vec<u8> {
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

struct Service<'a> {
    image: Image,
    job: Job<'a>,
    plan: Supervise,
    configured: usize,
    listeners: Vec<Listener>,
    /// Adopted, and asked for by nobody: closed when the new generation is ready.
    dropped: Vec<Listener>,
    procs: Vec<Proc>,
    signals: Signals,
    watcher: Option<FileChangeWatcher>,
    /// The watcher's thread has been started.
    watching: bool,
    flags: Arc<Flags>,
    ignored: u64,
    shutdown_timeout: Duration,
    /// There is a terminal that could hang up.
    terminal: bool,
    events: VecDeque<Event>,
}

pub(super) fn run(mut master: Master, wants: Vec<Vec<Want>>, job: Job<'_>) -> Result<()> {
    let signals = Signals::install(&master.mask)?;
    let token = master.inherited.token.take();
    signals.unblock();
    let adopted = std::mem::take(&mut master.inherited.listeners);
    let asks = std::mem::take(&mut master.asks);
    // A stop that is asked for meanwhile ends the waiting; the loop answers it.
    let mut pause = |time| {
        let mut pipe = [interest(Some(signals.pipe.as_fd()))];
        sys::fd::poll(&mut pipe, Some(time)).is_err() || pipe[0].revents != 0
    };
    let (listeners, dropped, found) = sockets::open(asks, wants, adopted, &mut pause)?;
    let (generation, reload) = token.as_ref().map_or((1, 0), |token| (token.generation, token.reload));
    if token.is_some() {
        log::say(&Note::Adopted { reload, listeners: found, workers: 0 });
    }
    for listener in &listeners {
        // Shared by all who hold the socket: decided once, here.
        let nonblocking = matches!(job, Job::Serve(_));
        let _ = sys::fd::set_nonblocking(listener.as_fd(), nonblocking);
        if token.is_none() {
            let addr = listener.local_addr().map_or_else(|e| e.to_string(), |addr| addr.to_string());
            log::say(&Note::Listening { addr });
        }
    }
    let flags = Arc::new(Flags::default());
    let mut watcher = watcher(&mut master, &job, &flags);
    arm(&mut watcher, token.is_none())?;
    let slots = match &token {
        Some(token) if token.configured == master.workers => token.slots.max(1),
        _ => master.workers,
    };
    let config = Config {
        slots,
        reexec: matches!(job, Job::Serve(_)),
        watching: watcher.is_some(),
        shutdown_timeout: master.shutdown_timeout,
    };
    let mut service = Service {
        image: master.image,
        job,
        plan: Supervise::new(config, generation, reload),
        configured: master.workers,
        listeners,
        dropped,
        procs: Vec::new(),
        signals,
        watcher,
        watching: false,
        flags,
        ignored: master.ignored,
        shutdown_timeout: master.shutdown_timeout,
        terminal: terminal(),
        events: VecDeque::from([Event::Start]),
    };
    warn_of_threads();
    let code = service.go();
    drop(service.watcher.take());
    service.listeners.iter().chain(&service.dropped).for_each(Listener::unlink);
    let io = |kind, why: &str| io::Error::new(kind, why);
    match code {
        0 => Ok(()),
        3 => Err(Error::new(Op::Boot, "", io(ErrorKind::Other, "no worker became ready"))),
        127 => Err(Error::new(Op::Command, "", io(ErrorKind::NotFound, "its file or interpreter is missing"))),
        _ => Err(Error::new(Op::Command, "", io(ErrorKind::PermissionDenied, "the kernel refused it"))),
    }
}

/// Is there a controlling terminal?
fn terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// A fork copies one thread: what another holds at that moment stays locked in the worker.
fn warn_of_threads() {
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

fn watcher(master: &mut Master, job: &Job<'_>, flags: &Arc<Flags>) -> Option<FileChangeWatcher> {
    let watch = &mut master.watch;
    if watch.paths.is_empty() && !watch.executable {
        return None;
    }
    let (image, command) = match job {
        Job::Serve(_) => (watch.executable.then(|| master.image.path.clone()), None),
        Job::Command(command) => (Some(master.image.path.clone()), Some(command.path.clone())),
    };
    let (own, seen, lost) = (image.clone(), flags.clone(), flags.clone());
    let mut watcher = FileChangeWatcher::new(std::mem::take(&mut watch.paths), move |paths| {
        if own.as_ref().is_some_and(|own| paths.contains(own)) {
            seen.own.store(true, SeqCst);
        }
        seen.changed.store(true, SeqCst);
        signal::wake(0);
    });
    for path in image.into_iter().chain(command) {
        watcher = watcher.explicit(path);
    }
    for glob in watch.include.drain(..) {
        watcher = watcher.include(glob);
    }
    for glob in watch.exclude.drain(..) {
        watcher = watcher.exclude(glob);
    }
    if let Some(filter) = watch.filter.take() {
        watcher = watcher.watch_filter(filter);
    }
    let (quiet, cap) = watch.debounce;
    watcher = watcher.debounce(quiet, cap).backend(watch.backend).reload_number(flags.reload.clone());
    Some(watcher.on_lost(move |_| {
        lost.lost.store(true, SeqCst);
        signal::wake(0);
    }))
}

/// At the first start a watcher that cannot be armed is an error; after a reload the service is worth more.
fn arm(watcher: &mut Option<FileChangeWatcher>, first: bool) -> Result<()> {
    match watcher.as_mut().map(FileChangeWatcher::arm) {
        Some(Err(e)) if !first => {
            log::say(&Note::WatchLost { why: e.to_string() });
            *watcher = None;
            Ok(())
        }
        Some(result) => result,
        None => Ok(()),
    }
}

impl Service<'_> {
    /// Until the plan says how it ends.
    fn go(&mut self) -> u8 {
        let mut actions = Vec::new();
        loop {
            while let Some(event) = self.events.pop_front() {
                self.plan.step(sys::now(), event, &mut actions);
                self.flags.reload.store(self.plan.next_reload(), SeqCst);
                // Answers come before whatever else waits, in the order of the actions.
                let mut answers = Vec::new();
                for action in actions.drain(..) {
                    match action {
                        Action::Exit { code } => return code,
                        other => answers.extend(perform(self, other)),
                    }
                }
                answers.into_iter().rev().for_each(|answer| self.events.push_front(answer));
            }
            if self.plan.handing_off() {
                self.hand_off();
            } else {
                self.start_watcher();
                self.wait();
            }
        }
    }

    /// The first workers are forked: now the watcher's thread may read what was queued since it was armed.
    fn start_watcher(&mut self) {
        if std::mem::replace(&mut self.watching, true) {
            return;
        }
        if let Some(watcher) = &mut self.watcher {
            if let Err(e) = watcher.spawn() {
                log::say(&Note::WatchLost { why: e.to_string() });
                self.watcher = None;
                self.events.push_back(Event::WatchLost);
            }
        }
    }

    fn wait(&mut self) {
        let timeout = self.plan.deadline().map(|deadline| deadline.saturating_sub(sys::now()));
        let mut fds = vec![interest(Some(self.signals.pipe.as_fd()))];
        fds.extend(self.procs.iter().map(|proc| interest(proc.channel.as_ref().map(AsFd::as_fd))));
        if let Err(e) = sys::fd::poll(&mut fds, timeout) {
            log::warn(format!("poll: {e}"));
        }
        for (proc, fd) in self.procs.iter_mut().zip(&fds[1..]) {
            if fd.revents != 0 {
                read_channel(proc, &self.job, &mut self.events);
            }
        }
        if fds[0].revents != 0 {
            let signals = self.signals.read();
            self.take_signals(&signals);
        }
        self.events.push_back(Event::Time);
    }

    /// Turns bytes of the self-pipe into events.
    fn take_signals(&mut self, bytes: &[u8]) {
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
                libc::SIGHUP if self.terminal && !terminal() => {
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
        if self.flags.changed.swap(false, SeqCst) {
            let own = self.flags.own.swap(false, SeqCst);
            self.events.push_back(Event::Change { own });
        }
        if self.flags.lost.swap(false, SeqCst) {
            self.events.push_back(Event::WatchLost);
        }
    }

    fn reap(&mut self) {
        let (events, job) = (&mut self.events, &self.job);
        self.procs.retain_mut(|proc| loop {
            let how = match process::reap(proc.pid) {
                None => return true,
                Some(News::Stopped(signal)) => {
                    let (slot, pid) = (proc.slot, proc.pid.get());
                    log::warn(format!("worker {slot} (pid {pid}) is stopped by signal {signal}"));
                    continue;
                }
                Some(News::Exited(code)) => How::Code(code),
                Some(News::Signaled(signal)) => How::Signal(signal),
                Some(News::Lost) => How::Unknown,
            };
            // What it said last comes before its end.
            read_channel(proc, job, events);
            events.push_back(Event::Exited { pid: proc.pid.get(), how });
            return false;
        });
        if sys::os::inherits_orphans() {
            process::reap_orphans(|pid| self.procs.iter().any(|proc| proc.pid.get() == pid));
        }
    }

    /// Descriptors of the master that a library worker must not keep.
    fn private_fds(&self) -> Vec<RawFd> {
        let mut fds = vec![self.signals.pipe.as_raw_fd(), self.signals.write.as_raw_fd()];
        fds.extend(self.procs.iter().filter_map(|proc| proc.channel.as_ref()).map(AsRawFd::as_raw_fd));
        fds.extend(self.dropped.iter().map(AsRawFd::as_raw_fd));
        fds.extend(self.watcher.iter().flat_map(FileChangeWatcher::private_fds));
        fds
    }

    /// Forks a worker into `slot`. In the child it does not return.
    fn fork(&mut self, slot: usize) -> io::Result<i32> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut abandon = self.private_fds();
        abandon.push(ours.as_raw_fd());
        let child = process::Child {
            abandon: &abandon,
            channel: theirs.as_raw_fd(),
            parent: std::process::id(),
            grace: u32::try_from(self.shutdown_timeout.as_secs() + 1).unwrap_or(u32::MAX),
            ignored: self.ignored,
            mask: self.signals.before,
        };
        let generation = self.plan.generation();
        let mut program = match &self.job {
            Job::Serve(_) => None,
            Job::Command(command) => Some(command.program(slot, generation, &self.listeners)?),
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
                self.procs.push(Proc { pid, slot, channel: Some(ours) });
                Ok(pid.get())
            }
            Ok(Fork::Child) => {
                if let Some(program) = &mut program {
                    program.exec_in_child(&child);
                }
                process::enter_child(&child);
                drop(gate);
                let listeners = std::mem::take(&mut self.listeners);
                process::exit_now(self.serve(Worker::new(slot, generation, listeners, theirs)))
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

    /// The exact order of an exec: gate, block all, look into the self-pipe, exec. What was in the pipe is acted upon first,
    /// and what comes later is pending in the next image.
    fn hand_off(&mut self) {
        let gate = process::gate();
        let before = signal::block_all();
        let signals = self.signals.read();
        if signals.is_empty() {
            let why = self.exec();
            self.events.push_back(Event::ExecFailed { why: why.to_string() });
        }
        signal::set_mask(&before);
        drop(gate);
        self.take_signals(&signals);
    }

    /// Returns only the error.
    fn exec(&self) -> Error {
        let fds: Vec<RawFd> = self.listeners.iter().map(AsRawFd::as_raw_fd).collect();
        let token = Token {
            pid: std::process::id(),
            generation: self.plan.generation(),
            reload: self.plan.reload(),
            slots: self.plan.slots(),
            configured: self.configured,
            mask: self.signals.before.bits(),
            ignored: self.ignored,
            path: self.image.path.clone(),
            listeners: self.listeners.iter().map(Listener::carry).collect(),
            ..Token::default()
        };
        let (reload, path) = (self.plan.reload(), self.image.path.clone());
        let list = fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
        log::say(&Note::Exec { reload, path, fds: list });
        let shown = self.image.path.display().to_string();
        let looked = self.image.look();
        let error = match looked {
            Ok(()) => self.image.replace(&self.image.argv, &fds, Some(&token.encode())),
            Err(why) => io::Error::other(why),
        };
        Error::new(Op::Exec, shown, error)
    }
}

/// Does one thing; the fact that answers it, if there is one.
fn perform(service: &mut Service<'_>, action: Action) -> Option<Event> {
    let signal = |pid, signal| match Pid::new(pid).map(|pid| process::kill(pid, signal)) {
        Some(Err(e)) => log::warn(format!("cannot signal worker {pid}: {e}")),
        Some(Ok(())) | None => {}
    };
    match action {
        Action::Fork { slot } => Some(match service.fork(slot) {
            Ok(pid) => Event::Forked { slot, pid },
            Err(e) => Event::ForkFailed { slot, why: e.to_string() },
        }),
        Action::Term { pid } => {
            signal(pid, libc::SIGTERM);
            // A stopped worker would not see it.
            signal(pid, libc::SIGCONT);
            None
        }
        Action::Kill { pid } => {
            signal(pid, libc::SIGKILL);
            // With whatever it has started in its group.
            let _ = Pid::new(pid).map(|pid| process::kill_group(pid, libc::SIGKILL));
            None
        }
        Action::Relay { pid } => {
            signal(pid, libc::SIGUSR1);
            None
        }
        Action::Look => Some(Event::Looked(service.image.look())),
        Action::CloseDropped => {
            service.dropped.drain(..).for_each(|listener| listener.unlink());
            None
        }
        Action::Say(note) => {
            log::say(&note);
            None
        }
        // The loop asks the plan.
        Action::HandOff | Action::Exit { .. } => None,
    }
}

/// What a worker has said since: bytes of a library worker; of a COMMAND errno, or end of file when it has been executed.
fn read_channel(proc: &mut Proc, job: &Job<'_>, events: &mut VecDeque<Event>) {
    let Some(channel) = &mut proc.channel else { return };
    let pid = proc.pid.get();
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
            let why = format!("{}: {}", command.path.display(), io::Error::from_raw_os_error(errno));
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
