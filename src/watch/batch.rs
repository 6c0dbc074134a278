//! The paths of the open batch: one buffer for all of them, so that a burst allocates nothing per event.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// How many paths are kept before the first look for repetitions.
const FEW: usize = 4096;

/// Changed paths, in the order in which they were seen, repetitions removed now and then.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where each path lies in `bytes`.
    spans: Vec<(usize, usize)>,
    /// When there are this many, repetitions are removed.
    limit: usize,
    /// The candidate's begin.
    mark: usize,
    /// Events were lost: the tree was read again.
    pub(crate) rescan: bool,
    /// How often something was kept: whoever compares two counts learns whether something changed between.
    pub(crate) count: u64,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch { bytes: Vec::new(), spans: Vec::new(), limit: FEW, mark: 0, rescan: false, count: 0 }
    }

    /// A buffer to write a path into; what is in it is the candidate for `keep`.
    pub(crate) fn candidate(&mut self) -> &mut Vec<u8> {
        self.bytes.truncate(self.mark);
        &mut self.bytes
    }

    /// The candidate.
    pub(crate) fn path(&self) -> &[u8] {
        &self.bytes[self.mark..]
    }

    /// The candidate has changed.
    pub(crate) fn keep(&mut self) {
        self.count += 1;
        let span = (self.mark, self.bytes.len());
        let last = self.spans.last().map(|(from, to)| &self.bytes[*from..*to]);
        if last == Some(self.path()) {
            return;
        }
        self.spans.push(span);
        self.mark = self.bytes.len();
        if self.spans.len() >= self.limit {
            self.compact();
            self.limit = FEW.max(4 * self.spans.len());
        }
    }

    /// A path that is known as such has changed.
    pub(crate) fn report(&mut self, path: &[u8]) {
        self.candidate().extend_from_slice(path);
        self.keep();
    }

    /// Removes repetitions; sorts.
    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.spans.sort_by_key(|(from, to)| &bytes[*from..*to]);
        self.spans.dedup_by_key(|(from, to)| &bytes[*from..*to]);
    }

    /// Gives up the bytes of what was repeated, once they are more than the others.
    fn compact(&mut self) {
        self.sort();
        if self.spans.iter().map(|(from, to)| to - from).sum::<usize>() >= self.bytes.len() / 2 {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        for span in &mut self.spans {
            let from = self.bytes.len();
            self.bytes.extend_from_slice(&bytes[span.0..span.1]);
            *span = (from, self.bytes.len());
        }
        self.mark = self.bytes.len();
    }

    /// All of it, sorted, each path once; the batch is then empty and its memory small.
    pub(crate) fn take(&mut self) -> Vec<PathBuf> {
        self.sort();
        let path = |(from, to): &(usize, usize)| OsString::from_vec(self.bytes[*from..*to].to_vec()).into();
        let paths = self.spans.iter().map(path).collect();
        let count = self.count;
        *self = Batch { count, ..Batch::new() };
        paths
    }
}
