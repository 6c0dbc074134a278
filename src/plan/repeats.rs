//! A service that writes a file it watches reloads for ever: this notices it and slows it down.

use super::snapshot::digest;
use super::Moment;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// A change while a generation boots, or so soon after it became ready (and the quiet time), may be its own doing.
const SOON: Duration = Duration::from_secs(2);
/// So many in a row, by the same path, are.
const MANY: u32 = 5;
const LONGEST: Duration = Duration::from_secs(30);

/// Reloads in a row, each caused by the same path soon after the generation before became ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Repeats {
    /// Digest of the path.
    pub(crate) path: u64,
    pub(crate) count: u32,
    pub(crate) ready: Option<Moment>,
}

impl Repeats {
    /// A generation became ready.
    pub(crate) fn ready(&mut self, now: Moment) {
        self.ready = Some(now);
    }

    /// A change asks for a reload, perhaps while a generation boots. `base`: the quiet time that was asked for.
    pub(crate) fn change(&mut self, now: Moment, path: &Path, booting: bool, base: Duration) {
        let path = digest(&path.as_os_str().as_bytes().iter().map(|b| u64::from(*b)).collect::<Vec<_>>());
        // Once: a change that brought no new generation does not count for the next.
        let soon = self.ready.take().is_some_and(|ready| now <= ready + SOON + self.quiet(base)) || booting;
        self.count = match soon {
            true if path == self.path => self.count.saturating_add(1),
            true => 1,
            false => 0,
        };
        self.path = path;
    }

    /// The quiet time: `base`, doubled with each repeat from the fifth on, at most 30 s (or `base`, if that is longer).
    pub(crate) fn quiet(&self, base: Duration) -> Duration {
        let doublings = (self.count + 1).saturating_sub(MANY).min(16);
        base.saturating_mul(1 << doublings).min(LONGEST.max(base))
    }
}
