//! Every line, and its text.

use super::{How, Level, Trigger};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Note {
    Listening {
        addr: String,
    },
    Watching {
        roots: Vec<PathBuf>,
        backend: String,
    },
    /// The first three paths of a batch.
    Change {
        reload: Option<u64>,
        paths: Vec<PathBuf>,
        more: usize,
    },
    Asked {
        reload: u64,
        trigger: Trigger,
    },
    /// The new code's file is not whole yet.
    Unsettled {
        reload: u64,
        why: String,
    },
    /// The image was rewritten with the bytes that run.
    Same {
        reload: u64,
    },
    Checking {
        reload: u64,
        what: String,
    },
    /// A line that a failed check has printed.
    CheckSaid {
        line: String,
    },
    /// An overlap: what drains already must go first.
    Waiting {
        reload: u64,
        workers: usize,
    },
    /// The code has changed after it was found good.
    Again {
        reload: u64,
    },
    Draining {
        reload: u64,
        workers: usize,
    },
    Drained {
        reload: u64,
    },
    Exec {
        reload: u64,
        path: PathBuf,
        fds: String,
    },
    /// A reload ends without effect: the old code serves on, if it is there.
    Dropped {
        reload: u64,
        why: String,
        command: bool,
        serving: bool,
    },
    /// The new generation does not come up: the last good image follows.
    RollingBack {
        reload: u64,
        why: String,
    },
    RolledBack {
        reload: u64,
        generation: u64,
        workers: usize,
        why: String,
    },
    /// The new generation does not come up, and there is no way back.
    Abandoned {
        reload: u64,
        why: String,
        serving: usize,
    },
    Summary {
        reload: u64,
        trigger: Trigger,
        settle: Duration,
        check: Duration,
        drain: Duration,
        exec: Duration,
        boot: Duration,
        gap: Duration,
    },
    /// The service seems to cause its own reloads.
    Looping {
        path: PathBuf,
        quiet: Duration,
    },
    Adopted {
        reload: u64,
        listeners: usize,
        workers: usize,
    },
    Ready {
        reload: u64,
        generation: u64,
        workers: usize,
    },
    Started {
        slot: usize,
        pid: i32,
        generation: u64,
    },
    /// Ended without being asked to.
    Died {
        slot: usize,
        pid: i32,
        how: How,
        age: Duration,
        retry: Option<Duration>,
    },
    /// Ended as asked.
    Ended {
        slot: usize,
        pid: i32,
        how: How,
    },
    Killing {
        slot: usize,
        pid: i32,
        timeout: Duration,
    },
    /// A worker has ended and left processes in its group.
    Left {
        slot: usize,
        pid: i32,
        died: bool,
    },
    KillingLeft {
        slot: usize,
        pid: i32,
        timeout: Duration,
    },
    LeftStays {
        slot: usize,
        pid: i32,
    },
    ForkFailed {
        slot: usize,
        why: String,
        retry: Option<Duration>,
    },
    /// COMMAND could not be executed by a worker.
    Refused {
        why: String,
    },
    Stopping {
        signal: &'static str,
        workers: usize,
    },
    KillingAll {
        workers: usize,
    },
    Stopped,
    /// No worker became ready at the first start.
    CannotBoot {
        why: String,
        waiting: bool,
    },
    WatchLost {
        why: String,
    },
    Plain(Level, String),
}

impl Note {
    pub(crate) fn warn(text: impl Into<String>) -> Note {
        Note::Plain(Level::Warn, text.into())
    }

    pub(crate) fn level(&self) -> Level {
        match self {
            Note::Plain(level, _) => *level,
            Note::Started { .. } | Note::Ended { .. } | Note::Same { .. } => Level::Debug,
            Note::Left { died: false, .. } => Level::Debug,
            Note::Left { .. } | Note::KillingLeft { .. } | Note::LeftStays { .. } => Level::Warn,
            Note::Died { .. } | Note::Killing { .. } | Note::KillingAll { .. } => Level::Warn,
            Note::Dropped { .. } | Note::ForkFailed { .. } | Note::Refused { .. } => Level::Error,
            Note::CannotBoot { .. } | Note::WatchLost { .. } => Level::Error,
            Note::RollingBack { .. } | Note::Abandoned { .. } | Note::CheckSaid { .. } => Level::Error,
            Note::Looping { .. } => Level::Warn,
            Note::Unsettled { .. } | Note::Checking { .. } | Note::Waiting { .. } => Level::Info,
            Note::RolledBack { .. } | Note::Summary { .. } => Level::Info,
            Note::Listening { .. } | Note::Watching { .. } | Note::Change { .. } | Note::Asked { .. } => Level::Info,
            Note::Again { .. }
            | Note::Draining { .. }
            | Note::Drained { .. }
            | Note::Exec { .. }
            | Note::Adopted { .. } => Level::Info,
            Note::Ready { .. } | Note::Stopping { .. } | Note::Stopped => Level::Info,
        }
    }
}

impl Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Code(code) => write!(f, "exit code {code}"),
            How::Signal(signal) => write!(f, "signal {signal}{}", signal_name(*signal)),
            How::Unknown => f.write_str("unknown cause"),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGQUIT => " (SIGQUIT)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGUSR1 => " (SIGUSR1)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGPIPE => " (SIGPIPE)",
        libc::SIGALRM => " (SIGALRM)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGSYS => " (SIGSYS)",
        _ => "",
    }
}

/// `n worker(s)`.
struct Workers(usize);

impl Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worker{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// A path from a stranger, fit for one line: control characters are escaped.
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string_lossy().chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, paths: &[PathBuf], more: usize) -> fmt::Result {
    for (i, path) in paths.iter().enumerate() {
        write!(f, "{}{}", if i == 0 { "" } else { ", " }, Shown(path))?;
    }
    match more {
        0 => Ok(()),
        more => write!(f, ", +{more} more"),
    }
}

impl Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: &Duration| d.as_millis();
        match self {
            Note::Listening { addr } => write!(f, "listening on {addr}"),
            Note::Watching { roots, backend } => {
                f.write_str("watching ")?;
                list(f, &roots[..roots.len().min(3)], roots.len().saturating_sub(3))?;
                write!(f, " ({backend})")
            }
            Note::Change { reload, paths, more } => {
                if let Some(reload) = reload {
                    write!(f, "reload #{reload}: ")?;
                }
                f.write_str("change: ")?;
                list(f, paths, *more)
            }
            Note::Asked { reload, trigger } => match trigger {
                Trigger::Start | Trigger::Change => write!(f, "reload #{reload}: starting after a change"),
                Trigger::Pending => write!(f, "reload #{reload}: asked for during the one before"),
                Trigger::Hup => write!(f, "reload #{reload}: asked for by SIGHUP"),
                Trigger::Usr2 => write!(f, "reload #{reload}: asked for by SIGUSR2"),
            },
            Note::Unsettled { reload, why } => write!(f, "reload #{reload}: waiting: {why}"),
            Note::Same { reload } => write!(f, "reload #{reload}: the bytes that run already: nothing to do"),
            Note::Checking { reload, what } => write!(f, "reload #{reload}: checking {what}"),
            Note::CheckSaid { line } => write!(f, "check: {line}"),
            Note::Waiting { reload, workers } => {
                write!(f, "reload #{reload}: waiting for {} to drain first", Workers(*workers))
            }
            Note::RollingBack { reload, why } => {
                write!(f, "reload #{reload}: {why}; rolling back to the last good image")
            }
            Note::RolledBack { reload, generation, workers, why } => write!(
                f,
                "reload #{reload}: rolled back: {}; generation {generation} serves on, {}; an image that is \
                 bad itself is tried again only after a change",
                why.trim_end(),
                Workers(*workers)
            ),
            Note::Abandoned { reload, why, serving: 0 } => write!(
                f,
                "reload #{reload}: abandoned: {why}; there is no way back: starting workers of the new code is tried \
                 again; the next change is tried at once"
            ),
            Note::Abandoned { reload, why, serving } => write!(
                f,
                "reload #{reload}: abandoned: {why}; {} of the old code serve on, but one that dies is replaced by the \
                 new code: change it, or restart the service",
                Workers(*serving)
            ),
            Note::Summary { reload, trigger, settle, check, drain, exec, boot, gap } => {
                let trigger = match trigger {
                    Trigger::Start | Trigger::Change => "change",
                    Trigger::Pending => "pending",
                    Trigger::Hup => "SIGHUP",
                    Trigger::Usr2 => "SIGUSR2",
                };
                let (settle, check, drain) = (ms(settle), ms(check), ms(drain));
                let (exec, boot, gap) = (ms(exec), ms(boot), ms(gap));
                write!(
                    f,
                    "reload #{reload}: done after {trigger} in {settle} ms settle, {check} ms check, {drain} ms drain, \
                     {exec} ms exec, {boot} ms boot; gap {gap} ms"
                )
            }
            Note::Looping { path, quiet } => write!(
                f,
                "{} changes right after each reload: does the service write it itself? Exclude it; changes are now \
                 collected for {} ms",
                Shown(path),
                ms(quiet)
            ),
            Note::Draining { reload, workers } => write!(f, "reload #{reload}: draining {}", Workers(*workers)),
            Note::Again { reload } => write!(f, "reload #{reload}: the code has changed again: looking anew"),
            Note::Drained { reload } => write!(f, "reload #{reload}: drained"),
            Note::Exec { reload, path, fds } => write!(f, "reload #{reload}: exec {} with fds {fds}", Shown(path)),
            Note::Dropped { reload, why, command, serving } => {
                let then = match (command, serving) {
                    (false, true) => "the running code serves on",
                    (false, false) => "workers of the running code are started again",
                    (true, true) => {
                        "the running code serves on; a worker that dies is replaced by what COMMAND is then"
                    }
                    (true, false) => "no worker is left to serve on: COMMAND is started as it is",
                };
                write!(f, "reload #{reload}: dropped: {why}; {then}")
            }
            Note::Adopted { reload, listeners, workers } => {
                write!(f, "reload #{reload}: adopted {listeners} listener(s), {}", Workers(*workers))
            }
            Note::Ready { reload: 0, generation, workers } => {
                write!(f, "ready: generation {generation}, {}", Workers(*workers))
            }
            Note::Ready { reload, generation, workers } => {
                write!(f, "reload #{reload}: ready: generation {generation}, {}", Workers(*workers))
            }
            Note::Started { slot, pid, generation } => {
                write!(f, "worker {slot} (pid {pid}) started, generation {generation}")
            }
            Note::Died { slot, pid, how, age, retry } => {
                let tenths = age.as_millis() / 100;
                write!(f, "worker {slot} (pid {pid}) died: {how}, age {}.{} s", tenths / 10, tenths % 10)?;
                match retry {
                    Some(wait) if wait.is_zero() => f.write_str("; starting another"),
                    Some(wait) => write!(f, "; starting another in {} ms", ms(wait)),
                    None => Ok(()),
                }
            }
            Note::Ended { slot, pid, how } => write!(f, "worker {slot} (pid {pid}) ended: {how}"),
            Note::Killing { slot, pid, timeout } => {
                write!(f, "worker {slot} (pid {pid}) did not drain in {} ms: SIGKILL", ms(timeout))
            }
            Note::Left { slot, pid, died } => {
                write!(f, "worker {slot} (pid {pid}) has left processes in its group; they are asked to end")?;
                f.write_str(if *died { " before another is started" } else { "" })
            }
            Note::KillingLeft { slot, pid, timeout } => write!(
                f,
                "worker {slot} (pid {pid}) has left processes in its group that did not end in {} ms: SIGKILL",
                ms(timeout)
            ),
            Note::LeftStays { slot, pid } => write!(
                f,
                "what worker {slot} has left in the process group {pid} cannot be killed; nobody waits for it any more"
            ),
            Note::ForkFailed { slot, why, retry } => {
                write!(f, "cannot fork worker {slot}: {why}")?;
                retry.iter().try_for_each(|retry| write!(f, "; next try in {} ms", ms(retry)))
            }
            Note::Refused { why } => write!(f, "cannot execute {why}"),
            Note::Stopping { signal, workers } => write!(f, "stopping on {signal}: draining {}", Workers(*workers)),
            Note::KillingAll { workers } => write!(f, "stopping at once: SIGKILL to {}", Workers(*workers)),
            Note::Stopped => f.write_str("stopped"),
            Note::CannotBoot { why, waiting: true } => {
                write!(f, "workers cannot boot ({why}); waiting for the next change")
            }
            Note::CannotBoot { why, .. } => write!(f, "workers cannot boot ({why})"),
            Note::WatchLost { why } => write!(f, "auto-reload disabled: {why}"),
            Note::Plain(_, text) => f.write_str(text),
        }
    }
}
