//! Decides, never does: time and facts come in as arguments, actions go out. No file, clock, thread or system call here.

pub(crate) mod backoff;
pub(crate) mod debounce;
pub(crate) mod repeats;
pub(crate) mod snapshot;
pub(crate) mod supervise;
#[cfg(test)]
mod tests;
pub(crate) mod token;

/// A point in time: what the monotonic clock shows.
pub(crate) type Moment = std::time::Duration;
