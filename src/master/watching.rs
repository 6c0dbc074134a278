//! The master's watcher: what it watches, and what its thread leaves for the loop.

use super::{Job, Master};
use crate::error::Result;
use crate::log::{self, Note};
use crate::plan::supervise::Event;
use crate::plan::token::Watched;
use crate::sys::process::Gate;
use crate::sys::{self, signal};
use crate::watch::{FileChangeWatcher, Trouble};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the watcher's thread leaves for the loop, beside a byte in the self-pipe.
#[derive(Default)]
pub(super) struct Flags {
    /// What has changed since it was last taken.
    change: Mutex<Option<Change>>,
    pub(super) lost: AtomicBool,
    /// The number that the next change's line carries.
    pub(super) reload: Arc<AtomicUsize>,
}

/// Of the master's own image, of other files, and one path of it.
struct Change {
    own: bool,
    others: bool,
    path: PathBuf,
}

impl Flags {
    fn changed(&self, own: Option<&Path>, paths: &[PathBuf]) {
        let is_own = |path: &PathBuf| Some(path.as_path()) == own;
        let (own, others) = (paths.iter().any(is_own), paths.iter().any(|path| !is_own(path)));
        let mut change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let path = paths.iter().min().cloned().unwrap_or_default();
        let before = change.get_or_insert(Change { own, others, path });
        (before.own, before.others) = (before.own || own, before.others || others);
    }

    pub(super) fn take_change(&self) -> Option<Event> {
        let change = self.change.lock().unwrap_or_else(PoisonError::into_inner).take();
        change.map(|Change { own, others, path }| Event::Change { own, others, path })
    }
}

pub(super) fn watcher(
    master: &mut Master,
    job: &Job<'_>,
    flags: &Arc<Flags>,
    quiet: Duration,
) -> Option<FileChangeWatcher> {
    let watch = &mut master.watch;
    if watch.paths.is_empty() && !watch.executable {
        return None;
    }
    let (image, command) = match job {
        Job::Serve(_) => (watch.executable.then(|| master.image.path.clone()), None),
        Job::Command(command) => (Some(master.image.path.clone()), command.path.clone()),
    };
    let (own, seen, lost) = (image.clone(), flags.clone(), flags.clone());
    let paths = std::mem::take(&mut watch.paths).into_iter().chain(image).chain(command);
    let mut watcher = FileChangeWatcher::new(paths, move |paths| {
        seen.changed(own.as_deref(), paths);
        signal::wake(0);
    });
    for glob in watch.include.drain(..) {
        watcher = watcher.include(glob);
    }
    for glob in watch.exclude.drain(..) {
        watcher = watcher.exclude(glob);
    }
    if let Some(filter) = watch.filter.take() {
        watcher = watcher.watch_filter(filter);
    }
    watcher =
        watcher.debounce(quiet, watch.debounce.1.max(quiet)).backend(watch.backend).reload_number(flags.reload.clone());
    Some(watcher.on_trouble(move |trouble| {
        if let Trouble::Lost(_) = trouble {
            lost.lost.store(true, SeqCst);
            signal::wake(0);
        }
    }))
}

/// What the next image needs to lose no change: its watcher goes on where this one stops.
pub(super) fn carry(watcher: &FileChangeWatcher, gate: &Gate) -> Watched {
    watcher.carry(gate)
}

/// The quiet time from now on.
pub(super) fn set_quiet(watcher: &FileChangeWatcher, quiet: Duration) {
    watcher.set_quiet(quiet);
}

/// What the image before has carried goes to the watcher; if nobody watches any more, it goes.
pub(super) fn inherit(watcher: &mut Option<FileChangeWatcher>, watched: Watched) {
    match watcher {
        Some(watcher) => watcher.inherit(watched),
        None => drop(watched.queue.map(sys::fd::adopt_own)),
    }
}

/// At the first start a watcher that cannot be armed is an error; after a reload the service is worth more.
pub(super) fn arm(watcher: &mut Option<FileChangeWatcher>, first: bool) -> Result<()> {
    match watcher.as_mut().map(FileChangeWatcher::arm) {
        Some(Err(e)) if !first => {
            log::say(&Note::WatchLost { why: e.to_string() });
            *watcher = None;
            Ok(())
        }
        Some(result) => result,
        None => Ok(()),
    }
}
