//! The backends of one watcher: inotify, polling, or both.

use super::batch::Batch;
use super::thread::Shared;
use super::{dir, poll, Backend};
use crate::error::{Error, Op, Result};
use crate::log;
use crate::plan::Moment;
use crate::sys::process::Gate;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

#[cfg(all(target_os = "linux", not(refork_portable)))]
use super::inotify::{self, Inotify};

/// How often what is polled only because it must be is swept.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the user decided.
pub(super) struct Wanted {
    pub(super) backend: Backend,
    pub(super) follow: bool,
    /// An earlier image's inotify descriptor, with what is queued in it.
    #[cfg_attr(not(all(target_os = "linux", not(refork_portable))), allow(dead_code))]
    pub(super) queue: Option<OwnedFd>,
    /// What an earlier image had seen by polling.
    pub(super) digest: Option<u64>,
}

pub(super) struct Eyes {
    #[cfg(all(target_os = "linux", not(refork_portable)))]
    inotify: Option<Inotify>,
    poll: poll::Poll,
    /// Changed while nobody looked: reported at once.
    unseen: Vec<Vec<u8>>,
}

impl Eyes {
    /// Everything in place, or nothing.
    pub(super) fn open(paths: &[PathBuf], wanted: Wanted, shared: &Shared) -> Result<Eyes> {
        if paths.is_empty() {
            return Err(Error::config("", "nothing to watch"));
        }
        let mut roots: Vec<Vec<u8>> = Vec::new();
        for path in paths {
            let bytes = path.as_os_str().as_bytes();
            if let Some(why) = dir::refused(path) {
                return Err(Error::new(Op::Watch, dir::shown(bytes), io::Error::other(why)));
            }
            if !roots.iter().any(|root| root == bytes) {
                roots.push(bytes.to_vec());
            }
            match dir::stat(bytes, true) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    log::warn(format!("{} does not exist yet; it is watched for", dir::shown(bytes)));
                }
                Err(e) => log::warn(format!("{}: {e}; it is watched for", dir::shown(bytes))),
            }
        }
        let interval = match wanted.backend {
            Backend::Poll(interval) => Some(interval),
            Backend::Inotify => None,
            Backend::Auto => polling_is_forced().or((!HAS_INOTIFY).then_some(INTERVAL)),
        };
        let mut eyes = Eyes {
            #[cfg(all(target_os = "linux", not(refork_portable)))]
            inotify: None,
            poll: poll::Poll::new(interval.unwrap_or(INTERVAL), wanted.follow),
            unseen: Vec::new(),
        };
        let before = wanted.digest;
        let mut trouble = Vec::new();
        let opened = match interval {
            Some(_) => eyes.poll_all(roots.clone(), shared),
            None => eyes.open_inotify(roots.clone(), wanted, shared, &mut trouble),
        };
        opened.map_err(|(path, e)| Error::new(Op::Watch, dir::shown(&path), e))?;
        trouble.append(&mut eyes.poll.trouble);
        shared.tell_all(&mut trouble, &mut None);
        let digest = eyes.publish(shared);
        if before.is_some() && before != digest {
            // Which file it was nobody knows, only where it was polled; if nothing is any more, not even that.
            let suspects = roots.iter().filter(|root| digest.is_none() || eyes.poll.reaches(root));
            eyes.unseen = suspects.cloned().collect();
        }
        Ok(eyes)
    }

    fn poll_all(&mut self, roots: Vec<Vec<u8>>, shared: &Shared) -> std::result::Result<(), (Vec<u8>, io::Error)> {
        let filter = shared.filter();
        let mut cx = poll::Context { filter: &filter, batch: &mut Batch::new(), gate: &mut None, report: false };
        for root in roots {
            let inner = root.len();
            self.poll.check(&root).map_err(|e| (root.clone(), e))?;
            self.poll.add(root, inner, &mut cx);
        }
        Ok(())
    }

    #[cfg(not(all(target_os = "linux", not(refork_portable))))]
    fn open_inotify(
        &mut self,
        roots: Vec<Vec<u8>>,
        _: Wanted,
        _: &Shared,
        _: &mut Vec<String>,
    ) -> std::result::Result<(), (Vec<u8>, io::Error)> {
        let why = io::Error::new(io::ErrorKind::Unsupported, "there is no inotify here");
        Err((roots.into_iter().next().unwrap_or_default(), why))
    }

    #[cfg(all(target_os = "linux", not(refork_portable)))]
    fn open_inotify(
        &mut self,
        roots: Vec<Vec<u8>>,
        wanted: Wanted,
        shared: &Shared,
        trouble: &mut Vec<String>,
    ) -> std::result::Result<(), (Vec<u8>, io::Error)> {
        let mut inotify = match Inotify::open(roots.clone(), wanted.follow, wanted.queue) {
            Ok(inotify) => inotify,
            Err(e) if wanted.backend == Backend::Auto => {
                trouble.push(dir::exhausted(b"", &e));
                return self.poll_all(roots, shared);
            }
            Err(e) => return Err((Vec::new(), e)),
        };
        let filter = shared.filter();
        let mut batch = Batch::new();
        inotify.arm(&mut inotify::Context { filter: &filter, batch: &mut batch, gate: &mut None });
        if let Some(unusable) = inotify.unusable.take() {
            return Err(unusable);
        }
        drop(filter);
        trouble.append(&mut inotify.trouble);
        self.inotify = Some(inotify);
        self.take_rest(shared, &mut batch, &mut None);
        Ok(())
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(all(target_os = "linux", not(refork_portable)))]
        return self.inotify.as_ref().map(Inotify::fd);
        #[cfg(not(all(target_os = "linux", not(refork_portable))))]
        None
    }

    /// For the `watching` line.
    pub(super) fn describe(&self) -> String {
        #[cfg(all(target_os = "linux", not(refork_portable)))]
        if let Some(inotify) = &self.inotify {
            let directories = inotify.directories();
            let also = if self.poll.is_empty() { "" } else { ", some polled" };
            return match directories {
                // Named files only.
                0 => format!("inotify{also}"),
                1 => format!("inotify, 1 directory{also}"),
                n => format!("inotify, {n} directories{also}"),
            };
        }
        "polling".into()
    }

    /// When polling wants a sweep.
    pub(super) fn due(&self) -> Option<Moment> {
        self.poll.due()
    }

    /// The descriptor is readable.
    #[cfg_attr(not(all(target_os = "linux", not(refork_portable))), allow(unused_variables, clippy::unused_self))]
    pub(super) fn read(&mut self, shared: &Shared, batch: &mut Batch, gate: &mut Option<Gate>) -> io::Result<()> {
        #[cfg(all(target_os = "linux", not(refork_portable)))]
        if let Some(inotify) = &mut self.inotify {
            let filter = shared.filter();
            inotify.read(&mut inotify::Context { filter: &filter, batch, gate })?;
            drop(filter);
            shared.tell_all(&mut inotify.trouble, gate);
            self.take_rest(shared, batch, gate);
            shared.tell_all(&mut self.poll.trouble, gate);
        }
        Ok(())
    }

    /// What has changed between an earlier image and this one.
    pub(super) fn unseen(&mut self, batch: &mut Batch) {
        self.unseen.drain(..).for_each(|path| batch.report(&path));
    }

    /// Leaves what polling has seen for the next image.
    fn publish(&self, shared: &Shared) -> Option<u64> {
        let digest = self.poll.due().map(|_| self.poll.digest());
        *shared.digest.lock().unwrap_or_else(PoisonError::into_inner) = digest;
        digest
    }

    pub(super) fn sweep(&mut self, shared: &Shared, batch: &mut Batch, gate: &mut Option<Gate>) {
        let before = batch.count;
        let filter = shared.filter();
        self.poll.sweep(&mut poll::Context { filter: &filter, batch, gate, report: true });
        drop(filter);
        shared.tell_all(&mut self.poll.trouble, gate);
        if batch.count > before {
            self.publish(shared);
        }
    }

    /// What inotify cannot watch is polled.
    #[cfg(all(target_os = "linux", not(refork_portable)))]
    fn take_rest(&mut self, shared: &Shared, batch: &mut Batch, gate: &mut Option<Gate>) {
        let all = self.inotify.as_mut().map(|inotify| std::mem::take(&mut inotify.rest)).unwrap_or_default();
        if all.is_empty() {
            return;
        }
        let filter = shared.filter();
        for rest in all {
            let mut cx = poll::Context { filter: &filter, batch, gate, report: rest.report };
            self.poll.add(rest.path, rest.inner, &mut cx);
        }
        drop(filter);
        self.publish(shared);
    }
}

const HAS_INOTIFY: bool = cfg!(all(target_os = "linux", not(refork_portable)));

/// `REFORK_POLL`: `1`, or an interval in milliseconds.
fn polling_is_forced() -> Option<Duration> {
    let value = std::env::var("REFORK_POLL").ok()?;
    match value.trim().parse::<u64>() {
        Ok(0) => None,
        Ok(1) => Some(INTERVAL),
        Ok(ms) => Some(Duration::from_millis(ms)),
        Err(_) if value.trim().is_empty() => None,
        Err(_) => {
            log::warn(format!("REFORK_POLL: `{}` is neither 0, 1 nor milliseconds: ignored", value.escape_default()));
            None
        }
    }
}
