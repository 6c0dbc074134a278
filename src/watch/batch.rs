//! The paths of the open batch. Each is allocated as whoever hears of the batch gets it; an event that only repeats one of
//! the last ones allocates nothing.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How many paths are kept before the first look for repetitions.
const FEW: usize = 4096;
/// So many paths are known without a look through all.
const RECENT: usize = 64;

/// Changed paths, in the order in which they were seen; most repetitions are not kept, the others removed now and then.
pub(crate) struct Batch {
    paths: Vec<PathBuf>,
    /// Where in `paths` a path with this hash was kept last.
    recent: [usize; RECENT],
    /// When there are this many, repetitions are removed.
    limit: usize,
    candidate: Vec<u8>,
    /// Events were lost: the tree was read again.
    pub(crate) rescan: bool,
    /// How often something was kept: whoever compares two counts learns whether something changed between.
    pub(crate) count: u64,
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Of the end alone: there paths differ.
fn hash(path: &[u8]) -> usize {
    let word = |chunk: &[u8]| u64::from_ne_bytes(chunk.try_into().unwrap_or_default());
    let mix = |hash: u64, chunk| (hash ^ word(chunk)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    path.rchunks_exact(8).take(3).fold(0, mix) as usize % RECENT
}

impl Batch {
    pub(crate) fn new() -> Batch {
        let candidate = Vec::new();
        Batch { paths: Vec::new(), recent: [0; RECENT], limit: FEW, candidate, rescan: false, count: 0 }
    }

    /// A buffer to write a path into; what is in it is the candidate for `keep`.
    pub(crate) fn candidate(&mut self) -> &mut Vec<u8> {
        self.candidate.clear();
        &mut self.candidate
    }

    /// The candidate.
    #[cfg(all(target_os = "linux", not(refork_portable)))]
    pub(crate) fn path(&self) -> &[u8] {
        &self.candidate
    }

    /// The candidate has changed.
    pub(crate) fn keep(&mut self) {
        self.count += 1;
        let recent = &mut self.recent[hash(&self.candidate)];
        if self.paths.get(*recent).is_some_and(|path| bytes(path) == self.candidate) {
            return;
        }
        *recent = self.paths.len();
        self.paths.push(OsString::from_vec(self.candidate.as_slice().to_vec()).into());
        if self.paths.len() >= self.limit {
            self.sort();
            self.limit = FEW.max(4 * self.paths.len());
        }
    }

    /// A path that is known as such has changed.
    pub(crate) fn report(&mut self, path: &[u8]) {
        self.candidate().extend_from_slice(path);
        self.keep();
    }

    /// Sorts, and removes repetitions. Whole directories come in order: a sort that sees it has little to do.
    fn sort(&mut self) {
        self.paths.sort_by(|a, b| bytes(a).cmp(bytes(b)));
        self.paths.dedup_by(|a, b| bytes(a) == bytes(b));
    }

    /// All of it, sorted, each path once; the batch is then empty and its memory small.
    pub(crate) fn take(&mut self) -> Vec<PathBuf> {
        self.sort();
        let batch = std::mem::replace(self, Batch { count: self.count, ..Batch::new() });
        batch.paths
    }
}
