//! Sees what changed on disk, on a thread of its own.
//!
//! **Armed means armed.** `arm` places every watch on the calling thread; `spawn` starts the thread that reads what was queued
//! since. `start` does both. A master forks its first workers in between: what they load, they load under watch, and no
//! thread exists yet when they are forked.
//!
//! **The gate** (see `sys::process`). The thread holds it whenever it is awake: around everything but poll(2) and, in a
//! process without a master, the user's callbacks; and it steps aside after each directory of a long walk. So a fork never
//! copies the thread in the middle of anything. The spawner waits until the thread has the gate, for a thread's first
//! steps allocate.
//!
//! **One loop**: wait for the kernel, the next sweep or the end of the quiet window; let the backends write changed paths
//! into the batch; when `plan::Debounce` says that it is complete, say the line, then call `on_change`.
//!
//! Backends do not know of time, the debouncer not of files: inotify and polling may run side by side, when inotify
//! cannot watch everything.

mod batch;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod by_watch;
mod dir;
mod eyes;
mod filter;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod hops;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod inotify;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod links;
mod poll;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod records;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod settle;
#[cfg(test)]
mod tests;
mod thread;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod tree;
#[cfg(all(target_os = "linux", not(refork_portable)))]
mod walk;

use crate::error::{Error, Op, Result};
use crate::log;
use crate::plan::token::Watched;
use crate::sys::{self, process::Gate};
use eyes::Eyes;
use filter::{Filter, Glob};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use thread::{Running, Shared};

/// Where changes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// inotify(7) on Linux, and polling for what it cannot watch: file systems that do not deliver events (NFS, 9p, FUSE and
    /// the like), what is beyond the kernel's limits, and everything when the variable `REFORK_POLL` is `1` (or an interval in
    /// milliseconds). Elsewhere polling, once a second.
    Auto,
    /// inotify(7), whatever the file system; an error where it cannot be had.
    Inotify,
    /// stat(2) sweeps with this pause between them, longer if they would take more than 5 % of the time.
    Poll(Duration),
}

/// What a watcher has to say beside changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble<'a> {
    /// Events were lost (the kernel's queue was full), and the tree was read again. The batch that follows names what is
    /// known to have changed, and the watched directories themselves: anything in them may have.
    Rescan,
    /// Something is not watched, or only by polling.
    Degraded(&'a str),
    /// The watcher has ended: nothing is reported any more.
    Lost(&'a str),
}

/// Watches files and directories, and calls `on_change` exactly once for each batch of changes.
///
/// Directories are watched with all that is in them. A path may be a symbolic link, a part of it may be replaced, and it need
/// not exist yet: names are watched, not inodes. A relative path is looked up in the current directory, which must stay the
/// same while the watcher runs. Files count by their suffix (source files), unless [`include`], [`exclude`] or
/// [`watch_filter`] say otherwise; a file that was named explicitly always counts.
///
/// Left out, unless they are named themselves or there is a [`watch_filter`]: hidden directories, `node_modules`,
/// `__pycache__`, `site-packages`, `target`, `CVS`, `_darcs`; hidden files, unless an [`include`] begins with the dot, too; and
/// what editors leave for a moment: `*~`, `*.swp`, `*.swx`, `*.tmp`, `.#*`, `#*#`, names of four digits and more.
///
/// ```
/// # fn main() -> refork::Result<()> {
/// use refork::FileChangeWatcher;
///
/// let mut watcher = FileChangeWatcher::new(["src"], |paths| println!("{paths:?}"));
/// watcher.start()?; // from here on nothing is missed
/// # Ok(())
/// # }
/// ```
///
/// A program that forks while the watcher runs must do so as [`crate::Master`] does. The thread blocks all signals.
///
/// [`include`]: FileChangeWatcher::include
/// [`exclude`]: FileChangeWatcher::exclude
/// [`watch_filter`]: FileChangeWatcher::watch_filter
pub struct FileChangeWatcher {
    paths: Vec<PathBuf>,
    quiet: Duration,
    cap: Duration,
    backend: Backend,
    follow: bool,
    shared: Arc<Shared>,
    armed: Option<(Eyes, UnixStream, UnixStream)>,
    running: Option<Running>,
    /// An earlier image's inotify descriptor, or the digest of what it saw by polling.
    carried: (Option<OwnedFd>, Option<u64>),
    /// The inotify descriptor.
    queue: Option<RawFd>,
    private: Vec<RawFd>,
}

impl fmt::Debug for FileChangeWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileChangeWatcher")
            .field("paths", &self.paths)
            .field("running", &self.running.is_some())
            .finish_non_exhaustive()
    }
}

impl FileChangeWatcher {
    /// Watches `paths`. `on_change` gets the changed paths of a batch, as the watched path was named (relative stays relative),
    /// each once, sorted. It runs on the watcher's thread, after the line that names the paths, and nothing is seen while it
    /// blocks; if it panics, that is a line, and the watcher goes on. In a process that runs a [`crate::Master`] it holds up
    /// every fork as well, and must not wait for the start, stop or end of another watcher.
    ///
    /// A directory that is renamed is reported with the new paths of its files, one that is moved out by its own; what was
    /// in it before is named only by polling.
    pub fn new<P: Into<PathBuf>>(
        paths: impl IntoIterator<Item = P>,
        on_change: impl FnMut(&[PathBuf]) + Send + 'static,
    ) -> FileChangeWatcher {
        FileChangeWatcher {
            paths: paths.into_iter().map(P::into).collect(),
            quiet: Duration::from_millis(50),
            cap: Duration::from_millis(1600),
            backend: Backend::Auto,
            follow: true,
            shared: Arc::new(Shared::new(Box::new(on_change))),
            armed: None,
            running: None,
            carried: (None, None),
            queue: None,
            private: Vec::new(),
        }
    }

    fn filter(self, change: impl FnOnce(&mut Filter)) -> FileChangeWatcher {
        change(&mut self.shared.filter.lock().unwrap_or_else(PoisonError::into_inner));
        self
    }

    /// Decides which files count, instead of the built-in filter and [`FileChangeWatcher::include`]; no directory is left out
    /// then, except by [`FileChangeWatcher::exclude`]. Called on the watcher's thread and in `start`, with paths of files. A
    /// panic of it is that of `start`, or ends the watcher ([`Trouble::Lost`]).
    pub fn watch_filter(self, filter: impl Fn(&Path) -> bool + Send + 'static) -> FileChangeWatcher {
        self.filter(|all| all.own = Some(Box::new(filter)))
    }

    /// Counts files that match this glob instead of those with a source file's suffix; repeatable.
    ///
    /// `*` and `?` match within a name and not its leading dot, `**` any number of directories. A glob with a `/` is matched
    /// with the path below the watched directory, one without with the name alone.
    pub fn include(self, glob: impl Into<String>) -> FileChangeWatcher {
        let glob = Glob::new(&glob.into());
        self.filter(|all| all.include.push(glob))
    }

    /// Never counts what matches this glob, whatever includes it; a directory that matches is not entered. Repeatable.
    pub fn exclude(self, glob: impl Into<String>) -> FileChangeWatcher {
        let glob = Glob::new(&glob.into());
        self.filter(|all| all.exclude.push(glob))
    }

    /// A batch is complete when nothing changed for `quiet` (default 50 ms), at the latest `cap` (default 1,600 ms, at least
    /// `quiet`) after its first change.
    pub fn debounce(mut self, quiet: Duration, cap: Duration) -> FileChangeWatcher {
        (self.quiet, self.cap) = (quiet, cap);
        self
    }

    /// Where changes come from; default [`Backend::Auto`].
    pub fn backend(mut self, backend: Backend) -> FileChangeWatcher {
        self.backend = backend;
        self
    }

    /// Are symbolic links in a watched directory followed? Default: yes. The watched paths themselves always are.
    pub fn follow_symlinks(mut self, follow: bool) -> FileChangeWatcher {
        self.follow = follow;
        self
    }

    /// Hears of what is not a change; each also is a line in the log. Called on the watcher's thread, and in `start`.
    pub fn on_trouble(self, on_trouble: impl FnMut(Trouble<'_>) + Send + 'static) -> FileChangeWatcher {
        *self.shared.on_trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(on_trouble));
        self
    }

    /// The number that the next change's line carries.
    pub(crate) fn reload_number(self, number: Arc<AtomicUsize>) -> FileChangeWatcher {
        *self.shared.reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
        self
    }

    /// Starts watching. When it returns, every watch is in place: a change made from now on is reported, one made before is
    /// not. Does nothing when the watcher runs.
    ///
    /// # Errors
    ///
    /// No path, a directory that may not be read, `/` or a directory of proc or sysfs, no descriptor or no thread left. A path
    /// that does not exist is a warning, and watched for; so is a subdirectory that may not be read, and inotify being
    /// exhausted, which makes the rest be polled. Nothing is watched after an error.
    pub fn start(&mut self) -> Result<()> {
        if let Some(running) = &self.running {
            if running.resume() {
                return Ok(());
            }
            self.stop();
        }
        self.arm()?;
        self.spawn()
    }

    /// Takes what the watcher of an earlier image knew: what has changed since is reported once this one is armed.
    pub(crate) fn inherit(&mut self, carried: Watched) {
        self.carried = (carried.queue.and_then(|fd| sys::fd::adopt_own(fd).ok()), carried.digest);
        self.private = self.carried.0.iter().map(AsRawFd::as_raw_fd).collect();
    }

    /// Places every watch.
    pub(crate) fn arm(&mut self) -> Result<()> {
        let fail = |e| Error::new(Op::Watch, "", e);
        let (theirs, ours) = UnixStream::pair().map_err(fail)?;
        theirs.set_nonblocking(true).map_err(fail)?;
        ours.set_nonblocking(true).map_err(fail)?;
        let (queue, digest) = std::mem::take(&mut self.carried);
        let backend = eyes::Wanted { backend: self.backend, follow: self.follow, queue, digest };
        let eyes = Eyes::open(&self.paths, backend, &self.shared)?;
        self.private = vec![theirs.as_raw_fd(), ours.as_raw_fd()];
        self.queue = eyes.fd().map(|fd| fd.as_raw_fd());
        self.private.extend(self.queue);
        log::say(&log::Note::Watching { roots: self.paths.clone(), backend: eyes.describe() });
        self.armed = Some((eyes, theirs, ours));
        Ok(())
    }

    /// Starts the thread of an armed watcher.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let Some((eyes, theirs, ours)) = self.armed.take() else { return Ok(()) };
        let body = thread::Body::new(eyes, theirs, self.shared.clone(), self.quiet, self.cap);
        self.running = Some(Running::spawn(body, ours)?);
        Ok(())
    }

    /// What an image that replaces this one needs to lose no change: the inotify descriptor, which must be left open across
    /// the exec, and what polling has seen. Under the gate, so that the thread is in the middle of nothing.
    #[allow(dead_code)]
    pub(crate) fn carry(&self, _gate: &Gate) -> Watched {
        // Not armed yet: what was inherited is passed on.
        let queue = self.queue.or(self.carried.0.as_ref().map(AsRawFd::as_raw_fd));
        let digest = *self.shared.digest.lock().unwrap_or_else(PoisonError::into_inner);
        Watched { queue, digest: digest.or(self.carried.1) }
    }

    /// Changes the quiet time of a running watcher.
    #[allow(dead_code)]
    pub(crate) fn set_quiet(&self, quiet: Duration) {
        self.shared.quiet.store(u32::try_from(quiet.as_millis()).unwrap_or(u32::MAX), SeqCst);
    }

    /// Stops watching, and waits until the thread has ended: `on_change` is not called afterwards. Called from `on_change`
    /// itself it only asks for the end. Does nothing when the watcher does not run; it can be started again.
    pub fn stop(&mut self) {
        self.armed = None;
        if self.running.as_ref().is_some_and(Running::stop) {
            self.running = None;
            self.queue = None;
            self.private.clear();
        }
    }

    /// Descriptors that a forked worker must not keep.
    pub(crate) fn private_fds(&self) -> Vec<RawFd> {
        self.private.clone()
    }
}

impl Drop for FileChangeWatcher {
    fn drop(&mut self) {
        self.stop();
    }
}
