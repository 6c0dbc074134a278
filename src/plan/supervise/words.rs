//! The supervisor's words: what it is told, what it wishes, what it keeps of a worker and of a slot.

use crate::log::How;
use crate::log::Note;
use crate::plan::backoff::Backoff;
use crate::plan::Moment;
use std::time::Duration;

/// A worker's process id. The shell alone turns it into something that can be signalled.
pub(crate) type Pid = i32;

/// What the user decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    pub(crate) slots: usize,
    /// The code is in the image (library): every reload is a re-exec.
    pub(crate) reexec: bool,
    /// Somebody watches files: a first start that fails waits for the next change.
    pub(crate) watching: bool,
    pub(crate) shutdown_timeout: Duration,
}

/// Signals, by what they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Signal {
    Term,
    Int,
    /// The terminal went away.
    Hangup,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Ttin,
    Ttou,
}

/// Facts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Start,
    /// A settled change; `own`: of the master's own image.
    Change {
        own: bool,
    },
    WatchLost,
    Signal(Signal),
    /// The answer to `Action::Look`: why the new code cannot be executed.
    Looked(Result<(), String>),
    Forked {
        slot: usize,
        pid: Pid,
    },
    ForkFailed {
        slot: usize,
        why: String,
    },
    /// COMMAND runs, or the worker took its listeners: ready if it is still alive a second from now.
    Serving {
        pid: Pid,
    },
    Ready {
        pid: Pid,
    },
    /// COMMAND could not be executed.
    Refused {
        pid: Pid,
        code: u8,
        why: String,
    },
    Exited {
        pid: Pid,
        how: How,
    },
    /// The answer to `Action::HandOff`, if there is one.
    ExecFailed {
        why: String,
    },
    /// A deadline may have passed.
    Time,
}

/// Wishes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Answered at once by `Forked` or `ForkFailed`.
    Fork {
        slot: usize,
    },
    Term {
        pid: Pid,
    },
    Kill {
        pid: Pid,
    },
    /// Pass SIGUSR1 on.
    Relay {
        pid: Pid,
    },
    /// Can the new code be executed: COMMAND, and with `reexec` the image? Answered at once by `Looked`.
    Look {
        reexec: bool,
    },
    /// Replace the image. Always the last action of a step.
    HandOff,
    /// The new generation is ready: listeners that nobody asks for any more can go.
    CloseDropped,
    Exit {
        code: u8,
    },
    Say(Note),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::plan) enum Phase {
    New,
    Serving,
    Looking { reexec: bool },
    Draining { reexec: bool },
    HandingOff,
    Dormant,
    Stopping { code: u8, forced: bool },
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::plan) enum State {
    Booting { ready_at: Option<Moment> },
    Ready,
    Draining { kill_at: Moment },
    Killed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::plan) struct Worker {
    pub(in crate::plan) pid: Pid,
    pub(in crate::plan) slot: usize,
    pub(in crate::plan) generation: u64,
    pub(in crate::plan) born: Moment,
    pub(in crate::plan) state: State,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::plan) struct Slot {
    pub(in crate::plan) backoff: Backoff,
    /// When to fork; `None`: it has a worker, or nothing is to be forked.
    pub(in crate::plan) due: Option<Moment>,
}
