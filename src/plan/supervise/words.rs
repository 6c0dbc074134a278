//! The supervisor's words: what it is told, what it wishes, what it keeps of a worker and of a slot.

use super::record::Record;
use crate::log::How;
use crate::log::Note;
use crate::plan::backoff::Backoff;
use crate::plan::repeats::Repeats;
use crate::plan::Moment;
use std::path::PathBuf;
use std::time::Duration;

/// A worker's process id. The shell alone turns it into something that can be signalled.
pub(crate) type Pid = i32;

/// What the user decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    pub(crate) slots: usize,
    /// The code is in the image (library): every reload is a re-exec.
    pub(crate) reexec: bool,
    /// The old generation serves until the new one is ready.
    pub(crate) overlap: bool,
    /// Somebody watches files: a first start that fails waits for the next change.
    pub(crate) watching: bool,
    /// A worker that serves without saying so is ready after this time; `None`: only when it says so.
    pub(crate) ready_after: Option<Duration>,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) boot_timeout: Duration,
    pub(crate) check_timeout: Duration,
    /// The watcher's quiet time, which a service that causes its own reloads makes longer.
    pub(crate) quiet: Duration,
}

/// A worker that another image has forked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Adopted {
    pub(crate) pid: Pid,
    pub(crate) slot: usize,
    pub(crate) generation: u64,
    /// It drains already.
    pub(crate) kill_at: Option<Moment>,
}

/// What came before: nothing, or the image that executed this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Past {
    pub(crate) generation: u64,
    pub(crate) reload: u64,
    pub(crate) workers: Vec<Adopted>,
    /// A reload that was asked for meanwhile; with a re-exec?
    pub(crate) pending: Option<bool>,
    /// The last good image is at hand.
    pub(crate) way_back: bool,
    /// This image was good before and is back: why.
    pub(crate) rolled_back: Option<String>,
    pub(crate) repeats: Repeats,
    pub(crate) record: Record,
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

/// What a look at the new code, or its check, has found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Good,
    /// The very bytes that run.
    Same,
    /// Still being written: worth another look, for so long.
    Later(String, Duration),
    Bad(String),
}

/// Facts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Start,
    /// A settled change: of the master's own image, of other files, or both; and one path of it.
    Change {
        own: bool,
        others: bool,
        path: PathBuf,
    },
    WatchLost,
    Signal(Signal),
    /// The answer to `Action::Look`.
    Looked(Verdict),
    /// The answer to `Action::Check`, some time later.
    Checked(Verdict),
    Forked {
        slot: usize,
        pid: Pid,
    },
    ForkFailed {
        slot: usize,
        why: String,
    },
    /// COMMAND runs, or the worker took its listeners: ready if it is still alive `ready_after` from now.
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
    /// `left`: it has left processes in its group, which have been asked to end.
    Exited {
        pid: Pid,
        how: How,
        left: bool,
    },
    /// What it had left is gone, too.
    Emptied {
        pid: Pid,
    },
    /// The answer to `Action::HandOff` and `Action::RollBack`, if there is one.
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
    /// The worker, and its process group.
    Kill {
        pid: Pid,
    },
    /// What this worker has left stays: nobody waits for it any more.
    Forget {
        pid: Pid,
    },
    /// Pass SIGUSR1 on.
    Relay {
        pid: Pid,
    },
    /// Is the new code whole: COMMAND, and with `reexec` the image? Answered at once by `Looked`.
    Look {
        reexec: bool,
        /// Nothing but the image's own file has changed: identical bytes are no change.
        only_own: bool,
        /// No more waiting: nothing is `Later` now.
        last: bool,
    },
    /// Try the new code. Answered by `Checked`, unless `EndCheck` comes first.
    Check {
        reexec: bool,
    },
    EndCheck,
    /// Replace the image. Always the last action of a step.
    HandOff,
    /// Replace the image by the last good one. Always the last action of a step.
    RollBack,
    /// The new generation is ready: listeners that nobody asks for any more can go, and the last good image.
    Settled,
    /// The watcher's quiet time from now on.
    Quiet {
        quiet: Duration,
    },
    Exit {
        code: u8,
    },
    Say(Note),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::plan) enum Phase {
    New,
    /// A new generation is on its way.
    Booting {
        until: Moment,
    },
    Serving,
    /// Is the new code whole? `again`: when to look the next time, and until when at all. `fresh`: a change begins all
    /// of this anew until then.
    Looking {
        reexec: bool,
        only_own: bool,
        again: Option<(Moment, Moment)>,
        fresh: Moment,
    },
    /// The new code is being tried. `patience`: until when it may turn out to be still being written.
    Checking {
        reexec: bool,
        until: Moment,
        patience: Option<Moment>,
        fresh: Moment,
    },
    /// Overlap: at most two generations live; one older than the last still drains. `dirty`: the code has changed
    /// since.
    Waiting {
        reexec: bool,
        dirty: bool,
    },
    /// Drain first: all must go.
    Draining {
        reexec: bool,
        dirty: bool,
    },
    HandingOff,
    RollingBack,
    Dormant,
    Stopping {
        code: u8,
        forced: bool,
    },
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::plan) enum State {
    Booting {
        ready_at: Option<Moment>,
    },
    Ready,
    Draining {
        kill_at: Moment,
    },
    Killed,
    /// It has ended, and processes of its group have not: they are killed then, or if they were, given up.
    Left {
        kill_at: Moment,
        killed: bool,
    },
}

impl State {
    /// Not asked to end.
    pub(in crate::plan) fn wanted(self) -> bool {
        match self {
            State::Booting { .. } | State::Ready => true,
            State::Draining { .. } | State::Killed | State::Left { .. } => false,
        }
    }
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
    /// A fork has been wished for and not been answered yet.
    pub(in crate::plan) forking: bool,
}
