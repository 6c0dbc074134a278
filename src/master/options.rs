//! What the user chooses among.

use std::time::Duration;

/// In which order the generations change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// The old workers drain first, then the new ones start: never two generations in memory. New connections wait in
    /// the listen queue meanwhile. The default.
    #[default]
    DrainFirst,
    /// The new workers start beside the old ones, which are drained once all of the new are ready: no moment without a
    /// worker that accepts, and twice the memory for a while.
    Overlap,
}

/// When a worker that executes a program counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It has lived this long. The default: one second.
    After(Duration),
    /// It has sent `READY=1` to the datagram socket named by `NOTIFY_SOCKET`, as sd_notify(3) does.
    Notify,
}
