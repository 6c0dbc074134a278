//! The one loop: wait, turn what happened into events, ask the plan, do what it says.

mod adopt;
mod check;
mod exec;
mod news;
mod notify;
mod spawn;
mod status;

use super::signals::{has_terminal, warn_of_threads, Signals};
use super::watching::{self, Flags};
use super::{sockets, Handover, Job, Master, Ready};
use crate::error::{Error, Op, Result};
use crate::handoff::Image;
use crate::listener::{Listener, Want};
use crate::log::{self, Note};
use crate::plan::snapshot::State;
use crate::plan::supervise::{Action, Config, Event, Supervise};
use crate::plan::token::Watched;
use crate::sys::process::{self, Pid};
use crate::sys::{self, fd::interest, signal};
use crate::watch::FileChangeWatcher;
use check::Trial;
pub(super) use exec::give_back;
use news::reap_workers;
use spawn::{read_channel, Proc};
use status::Status;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::Duration;

/// How often it is asked whether what a dead worker has left is gone: nobody tells.
const LEFT: Duration = Duration::from_millis(20);

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
    /// Its watches are in place; its thread has been started.
    armed: bool,
    watching: bool,
    /// The executable is among what is watched.
    watches_image: bool,
    flags: Arc<Flags>,
    /// Since this image began: other files than its own.
    others_changed: bool,
    /// The state of the file that the last check has passed.
    checked: Option<State>,
    /// It has been said that poll(2) refuses.
    deaf: bool,
    ignored: u64,
    ready: Ready,
    stop_signal: i32,
    shutdown_timeout: Duration,
    check: bool,
    check_command: Option<OsString>,
    check_timeout: Duration,
    rollback: bool,
    /// The last good image, until this one is.
    good: Option<OwnedFd>,
    /// The new code is being tried.
    trial: Option<Trial>,
    /// Killed trials that are to be reaped.
    ended: Vec<Pid>,
    /// Where git's lock is looked for.
    roots: Vec<PathBuf>,
    status: Status,
    /// There is a terminal that could hang up.
    terminal: bool,
    events: VecDeque<Event>,
}

pub(super) fn run(mut master: Master, wants: Vec<Vec<Want>>, job: Job<'_>) -> Result<()> {
    let mut signals = Signals::install(&master.mask)?;
    process::expect_forks();
    if matches!(job, Job::Command(_)) {
        // What a shell leaves is then reaped at its end, and not when PID 1 finds the time. In a library's master that
        // would take the children of the user's own code.
        sys::os::inherit_orphans();
    }
    let token = master.inherited.token.take();
    let mut events = VecDeque::from([Event::Start]);
    // Who died between the two images is known before any signal comes through.
    let (mut procs, mut ended) = token.as_ref().map(adopt::workers).unwrap_or_default();
    let stop_signal = match job {
        Job::Serve(_) => libc::SIGTERM,
        Job::Command(_) => master.stop_signal,
    };
    reap_workers(&mut procs, &job, stop_signal, &mut events);
    // Their SIGCHLD may have been the last image's.
    ended.retain(|pid| process::reap(*pid, libc::SIGKILL).is_none());
    signals.unblock();
    let adopted = std::mem::take(&mut master.inherited.listeners);
    // What a way back would need: a socket that is not wanted here is closed by its owner.
    let spare = token.as_ref().filter(|token| token.image.is_some()).map_or(Vec::new(), |_| adopt::copies(&adopted));
    let asks = std::mem::take(&mut master.asks);
    // A stop that is asked for meanwhile ends the waiting; the loop answers it.
    let mut pause = |time| {
        let mut pipe = [interest(Some(signals.fd()))];
        sys::fd::poll(&mut pipe, Some(time)).is_err() || pipe[0].revents != 0
    };
    let (listeners, dropped, found) = match (sockets::open(asks, wants, adopted, &mut pause), &token) {
        (Ok(opened), _) => opened,
        (Err(e), Some(token)) => {
            signal::block_all();
            // Seen already: pending again, for the image that follows.
            signals.read().into_iter().filter(|byte| *byte > 0).for_each(|byte| signal::raise(byte.into()));
            return Err(give_back(&master.image, token, &spare.iter().collect::<Vec<_>>(), e));
        }
        (Err(e), None) => return Err(e),
    };
    drop(spare);
    if let Some(token) = &token {
        let (reload, workers) = (token.reload, procs.len());
        log::say(&Note::Adopted { reload, listeners: found, workers });
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
    let now = sys::now();
    let good = token.as_ref().and_then(|token| adopt::image(token, master.rollback));
    let past = token.as_ref().map(|token| adopt::past(token, now, good.is_some())).unwrap_or_default();
    let flags = Arc::new(Flags::default());
    let watches_image = master.watch.executable || matches!(job, Job::Command(_));
    let roots = master.watch.paths.iter().map(|path| crate::handoff::absolute(path)).collect();
    let quiet = master.watch.debounce.0;
    let mut watcher = watching::watcher(&mut master, &job, &flags, past.repeats.quiet(quiet));
    let watched = token.as_ref().map(|token| token.watched).unwrap_or_default();
    watching::inherit(&mut watcher, watched);
    // What was carried tells of changes since: then the workers come first, for a gap is worse than a reload too many.
    let armed = watched == Watched::default();
    if armed {
        watching::arm(&mut watcher, token.is_none())?;
    }
    let slots = match &token {
        Some(token) if token.configured == master.workers => token.slots.max(1),
        _ => master.workers,
    };
    let ready_after = match (&job, master.ready) {
        (Job::Serve(_), _) => Some(Duration::from_secs(1)),
        (Job::Command(_), Ready::After(time)) => Some(time),
        (Job::Command(_), Ready::Notify) => None,
    };
    let config = Config {
        slots,
        reexec: matches!(job, Job::Serve(_)),
        overlap: master.handover == Handover::Overlap,
        watching: watcher.is_some(),
        ready_after,
        shutdown_timeout: master.shutdown_timeout,
        boot_timeout: master.boot_timeout,
        check_timeout: master.check_timeout,
        quiet,
    };
    let mut service = Service {
        image: master.image,
        job,
        plan: Supervise::new(now, config, past),
        configured: master.workers,
        listeners,
        dropped,
        procs,
        signals,
        watcher,
        armed,
        watching: false,
        watches_image,
        flags,
        others_changed: false,
        checked: None,
        deaf: false,
        ignored: master.ignored,
        ready: master.ready,
        stop_signal,
        shutdown_timeout: master.shutdown_timeout,
        check: master.check,
        check_command: master.check_command,
        check_timeout: master.check_timeout,
        rollback: master.rollback,
        good,
        trial: None,
        ended,
        roots,
        status: Status::new(master.status_file),
        terminal: has_terminal(),
        events,
    };
    warn_of_threads();
    let code = service.go();
    service.tell_status();
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
            self.tell_status();
            if let Some(back) = self.plan.execs() {
                self.hand_off(back);
                continue;
            }
            self.start_watcher();
            if self.events.is_empty() {
                self.wait();
            }
        }
    }

    /// The first workers are forked: now the watcher's thread may read what was queued since it was armed.
    fn start_watcher(&mut self) {
        if std::mem::replace(&mut self.watching, true) {
            return;
        }
        if !std::mem::replace(&mut self.armed, true) && self.watcher.is_some() {
            let _ = watching::arm(&mut self.watcher, false);
            self.events.extend(self.watcher.is_none().then_some(Event::WatchLost));
        }
        let Some(watcher) = &mut self.watcher else { return };
        // Between our exec and the arming nobody watched the executable.
        if self.watches_image && self.image.is_replaced() {
            let (reload, paths) = (Some(self.plan.next_reload()), vec![self.image.path.clone()]);
            log::say(&Note::Change { reload, paths, more: 0 });
            let path = self.image.path.clone();
            self.events.push_back(Event::Change { own: true, others: false, path });
        }
        if let Err(e) = watcher.spawn() {
            log::say(&Note::WatchLost { why: e.to_string() });
            self.watcher = None;
            self.events.push_back(Event::WatchLost);
        }
    }

    fn wait(&mut self) {
        let mut timeout = self.plan.deadline().map(|deadline| deadline.saturating_sub(sys::now()));
        let left = self.procs.iter().any(|proc| proc.reaped);
        if left {
            timeout = Some(timeout.map_or(LEFT, |timeout| timeout.min(LEFT)));
        }
        let mut fds = vec![interest(Some(self.signals.fd()))];
        for proc in &self.procs {
            fds.extend(proc.fds().map(|fd| interest(Some(fd))));
        }
        let trial = self.trial.as_ref().map_or([None, None], Trial::channels);
        fds.extend(trial.into_iter().flatten().map(|channel| interest(Some(channel.as_fd()))));
        let polled = sys::fd::poll(&mut fds, timeout);
        if let Err(e) = &polled {
            // More descriptors than a limit that was lowered allows: all of them are asked from time to time.
            if !std::mem::replace(&mut self.deaf, true) {
                log::warn(format!("poll: {e}; looking every {} ms", LEFT.as_millis()));
            }
            let _ = sys::fd::poll(&mut [], Some(timeout.unwrap_or(LEFT).min(LEFT)));
        }
        let mut ready = fds[1..].iter().map(|fd| fd.revents != 0 || polled.is_err());
        for proc in &mut self.procs {
            let told = proc.fds().count();
            if ready.by_ref().take(told).fold(false, |any, one| any | one) {
                read_channel(proc, &self.job, &mut self.events);
            }
        }
        self.trial.iter_mut().for_each(Trial::read);
        if fds[0].revents != 0 || polled.is_err() {
            let signals = self.signals.read();
            self.take_signals(&signals);
        }
        if left {
            self.reap();
        }
        self.events.push_back(Event::Time);
    }
}

/// Does one thing; the fact that answers it, if there is one.
fn perform(service: &mut Service<'_>, action: Action) -> Option<Event> {
    // One that is reaped already (its end is queued behind this) has no number any more: it may be a stranger's.
    let known = |pid| service.procs.iter().find(|proc| proc.pid.get() == pid);
    let signal = |pid, signal| {
        let live = known(pid).filter(|proc| !proc.reaped);
        if let Some(Err(e)) = live.map(|proc| process::kill(proc.pid, signal)) {
            log::warn(format!("cannot signal worker {pid}: {e}"));
        }
    };
    match action {
        Action::Fork { slot } => Some(match service.fork(slot) {
            Ok(pid) => Event::Forked { slot, pid },
            Err(e) => Event::ForkFailed { slot, why: e.to_string() },
        }),
        Action::Term { pid } => {
            signal(pid, service.stop_signal);
            // A stopped worker would not see it.
            signal(pid, libc::SIGCONT);
            None
        }
        Action::Kill { pid } => {
            signal(pid, libc::SIGKILL);
            // With whatever it has started in its group.
            let _ = known(pid).map(|proc| process::kill_group(proc.pid, libc::SIGKILL));
            None
        }
        Action::Forget { pid } => {
            service.procs.retain(|proc| proc.pid.get() != pid);
            None
        }
        Action::Relay { pid } => {
            signal(pid, libc::SIGUSR1);
            None
        }
        Action::Look { reexec, only_own, last } => Some(Event::Looked(service.look(reexec, only_own, last))),
        Action::Check { reexec } => service.begin_check(reexec),
        Action::EndCheck => {
            service.end_check();
            None
        }
        Action::Settled => {
            service.dropped.drain(..).for_each(|listener| listener.unlink());
            service.good = None;
            None
        }
        Action::Quiet { quiet } => {
            service.watcher.iter().for_each(|watcher| watching::set_quiet(watcher, quiet));
            None
        }
        Action::Say(note) => {
            // First: whoever reads the line finds a file that is as new.
            service.tell_status();
            log::say(&note);
            None
        }
        // The loop asks the plan.
        Action::HandOff | Action::RollBack | Action::Exit { .. } => None,
    }
}
