//! The master's watcher: what it watches, and what its thread leaves for the loop.

use super::{Job, Master};
use crate::error::Result;
use crate::log::{self, Note};
use crate::plan::token::Watched;
use crate::sys::signal;
use crate::watch::{FileChangeWatcher, Trouble};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;

/// What the watcher's thread leaves for the loop, beside a byte in the self-pipe.
#[derive(Default)]
pub(super) struct Flags {
    pub(super) changed: AtomicBool,
    pub(super) own: AtomicBool,
    pub(super) lost: AtomicBool,
    /// The number that the next change's line carries.
    pub(super) reload: Arc<AtomicUsize>,
}

pub(super) fn watcher(master: &mut Master, job: &Job<'_>, flags: &Arc<Flags>) -> Option<FileChangeWatcher> {
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
        if own.as_ref().is_some_and(|own| paths.contains(own)) {
            seen.own.store(true, SeqCst);
        }
        seen.changed.store(true, SeqCst);
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
    let (quiet, cap) = watch.debounce;
    watcher = watcher.debounce(quiet, cap).backend(watch.backend).reload_number(flags.reload.clone());
    Some(watcher.on_trouble(move |trouble| {
        if let Trouble::Lost(_) = trouble {
            lost.lost.store(true, SeqCst);
            signal::wake(0);
        }
    }))
}

/// At the first start a watcher that cannot be armed is an error; after a reload the service is worth more.
pub(super) fn arm(watcher: &mut Option<FileChangeWatcher>, first: bool) -> Result<()> {
    match watcher.as_mut().map(|watcher| watcher.arm(Watched::Nothing)) {
        Some(Err(e)) if !first => {
            log::say(&Note::WatchLost { why: e.to_string() });
            *watcher = None;
            Ok(())
        }
        Some(result) => result,
        None => Ok(()),
    }
}
