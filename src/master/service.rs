//! The one loop: wait, turn what happened into events, ask the plan, do what it says.

mod spawn;

use super::signals::{has_terminal, warn_of_threads, Signals};
use super::watching::{self, Flags};
use super::{sockets, Job, Master};
use crate::error::{Error, Op, Result};
use crate::handoff::Image;
use crate::listener::{Listener, Want};
use crate::log::{self, How, Note};
use crate::plan::supervise::{Action, Config, Event, Signal, Supervise};
use crate::plan::token::Token;
use crate::sys::process::{self, News};
use crate::sys::{self, fd::interest, signal};
use crate::watch::FileChangeWatcher;
use spawn::{read_channel, Proc};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Service<'a> {
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
    /// The executable is among what is watched.
    watches_image: bool,
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
        let mut pipe = [interest(Some(signals.fd()))];
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
    let watches_image = master.watch.executable || matches!(job, Job::Command(_));
    let mut watcher = watching::watcher(&mut master, &job, &flags);
    watching::arm(&mut watcher, token.is_none())?;
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
        watches_image,
        flags,
        ignored: master.ignored,
        shutdown_timeout: master.shutdown_timeout,
        terminal: has_terminal(),
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

impl Service<'_> {
    /// Until the plan says how it ends.
    fn go(&mut self) -> u8 {
        let mut actions = Vec::new();
        loop {
            while let Some(event) = self.events.pop_front() {
                self.plan.step(sys::now(), event, &mut actions);
                self.flags.reload.store(self.plan.next_reload() as usize, SeqCst);
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
                if self.events.is_empty() {
                    self.wait();
                }
            }
        }
    }

    /// The first workers are forked: now the watcher's thread may read what was queued since it was armed.
    fn start_watcher(&mut self) {
        if std::mem::replace(&mut self.watching, true) {
            return;
        }
        let Some(watcher) = &mut self.watcher else { return };
        // Between our exec and the arming nobody watched the executable.
        if self.watches_image && self.image.is_replaced() {
            let (reload, paths) = (Some(self.plan.next_reload()), vec![self.image.path.clone()]);
            log::say(&Note::Change { reload, paths, more: 0 });
            self.events.push_back(Event::Change { own: true });
        }
        if let Err(e) = watcher.spawn() {
            log::say(&Note::WatchLost { why: e.to_string() });
            self.watcher = None;
            self.events.push_back(Event::WatchLost);
        }
    }

    fn wait(&mut self) {
        let timeout = self.plan.deadline().map(|deadline| deadline.saturating_sub(sys::now()));
        let mut fds = vec![interest(Some(self.signals.fd()))];
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
        if self.flags.changed.swap(false, SeqCst) {
            let own = self.flags.own.swap(false, SeqCst);
            self.events.push_back(Event::Change { own });
        }
        if self.flags.lost.swap(false, SeqCst) {
            self.watcher = None;
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

    /// Before anything is drained: is the new code whole?
    fn look(&self, reexec: bool) -> std::result::Result<(), String> {
        match &self.job {
            Job::Command(command) => command.find().map(drop).map_err(|e| e.to_string())?,
            Job::Serve(_) => {}
        }
        if reexec {
            self.image.look()
        } else {
            Ok(())
        }
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
            state: self.image.state(),
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
    // One that is reaped already (its end is queued behind this) has no number any more: it may be a stranger's.
    let live = |pid| service.procs.iter().map(|proc| proc.pid).find(|proc| proc.get() == pid);
    let signal = |pid, signal| {
        if let Some(Err(e)) = live(pid).map(|pid| process::kill(pid, signal)) {
            log::warn(format!("cannot signal worker {pid}: {e}"));
        }
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
            let _ = live(pid).map(|pid| process::kill_group(pid, libc::SIGKILL));
            None
        }
        Action::Relay { pid } => {
            signal(pid, libc::SIGUSR1);
            None
        }
        Action::Look { reexec } => Some(Event::Looked(service.look(reexec))),
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
