//! The executable: where it is, whether it is another one now, and the exec of it.

use super::{absolute, c_string, c_strings, environment, search, CHECK, FDS, HANDOFF};
use crate::log;
use crate::plan::snapshot::{digest, State};
use crate::plan::token::Token;
use crate::sys;
use crate::sys::process::Program;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The executable that a re-exec will execute, taken once: later /proc/self/exe names a deleted file.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) argv: Vec<OsString>,
    /// The state of the file that runs; `None`: not known.
    running: Option<State>,
    /// The state of a file whose workers did not boot.
    bad: Option<State>,
}

impl Image {
    /// From the earlier image's word, the kernel's (AT_EXECFN) or `argv[0]` with PATH; absolute against the logical
    /// `$PWD`, so that a symlink like `current` is followed anew each time.
    pub(crate) fn find(token: Option<&Token>) -> Image {
        let argv: Vec<OsString> = std::env::args_os().collect();
        let told = token.map(|token| token.path.clone()).filter(|path| path.is_absolute());
        let path = told.unwrap_or_else(|| {
            let name = sys::os::exec_name().filter(|name| !name.as_bytes().starts_with(b"/dev/fd/"));
            let name = name.or_else(|| argv.first().cloned()).unwrap_or_default();
            absolute(&search(&name).unwrap_or_else(|| PathBuf::from(&name)))
        });
        let bad = token.and_then(|token| token.bad);
        let there = state(&path);
        // Where nobody tells what runs, it is what is there.
        let running = sys::os::SELF_IMAGE.and_then(|running| state(Path::new(running))).or(there);
        if running != there && bad.is_none() {
            log::warn(format!("{} is not the image that runs; a reload will execute it", log::Shown(&path)));
        }
        // What was told is what was executed: where the two can never be the same (an emulator's
        // /proc/self/exe), comparing with it again would reload for ever.
        Image { running: token.and_then(|token| token.state).or(running), bad, path, argv }
    }

    /// Has the file been replaced since it was executed? A file that is missing is not a new one, nor is one that
    /// failed.
    pub(crate) fn is_replaced(&self) -> bool {
        let there = state(&self.path);
        there.is_some() && there != self.running && there != self.bad
    }

    /// The file's state, for the token and to see whether it stays the same.
    pub(crate) fn state(&self) -> Option<State> {
        state(&self.path)
    }

    /// The state that this image's file had when it was executed: a bad one, if what failed is not the `good` image
    /// itself. Then something else was at fault.
    pub(crate) fn fault(&self, good: &OwnedFd) -> Option<State> {
        let (good, this) = (good.try_clone().map(File::from), sys::os::SELF_IMAGE.map(Path::new));
        let good = good.and_then(|good| good.metadata()).map(|meta| identity(&meta)).ok();
        self.running.filter(|_| good.is_none() || good != this.and_then(state))
    }

    /// Other code than the image's has changed: a bad image may be good with it.
    pub(crate) fn forget_bad(&mut self) {
        self.bad = None;
    }

    /// Is the file one that failed?
    pub(crate) fn is_bad(&self) -> bool {
        self.bad.is_some() && state(&self.path) == self.bad
    }

    /// Does the file hold the very bytes that run? Read only if the sizes are the same.
    pub(crate) fn is_same(&self) -> bool {
        let Some(running) = sys::os::SELF_IMAGE else { return false };
        same_bytes(Path::new(running), &self.path).unwrap_or(false)
    }

    /// execve(2) with `fds` left open and named, and `keep` left open. Returns only the error, with every flag as it
    /// was.
    pub(crate) fn replace(&self, argv: &[OsString], fds: &[RawFd], keep: &[RawFd], token: Option<&str>) -> io::Error {
        self.execute(argv, fds, keep, token, None)
    }

    /// As `replace`, with the arguments of this image and the file behind a descriptor.
    pub(crate) fn replace_by(&self, image: &OwnedFd, fds: &[RawFd], keep: &[RawFd], token: &str) -> io::Error {
        self.execute(&self.argv, fds, keep, Some(token), Some(image))
    }

    fn execute(
        &self,
        argv: &[OsString],
        fds: &[RawFd],
        keep: &[RawFd],
        token: Option<&str>,
        image: Option<&OwnedFd>,
    ) -> io::Error {
        let mut argv = argv.to_vec();
        let Some(first) = argv.first_mut() else {
            return io::Error::new(io::ErrorKind::InvalidInput, "argv is empty");
        };
        *first = self.path.clone().into();
        let list = fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
        let mut extra = vec![(FDS, list.as_str())];
        extra.extend(token.map(|token| (HANDOFF, token)));
        let strings = || -> io::Result<_> { Ok((c_string(self.path.as_os_str())?, c_strings(&argv)?)) };
        let (path, argv) = match strings() {
            Ok(strings) => strings,
            Err(e) => return e,
        };
        let env = environment(&extra);
        let mut cleared = Vec::new();
        for fd in fds.iter().chain(keep) {
            match sys::fd::set_cloexec(*fd, false) {
                Ok(was) => cleared.push((*fd, was)),
                Err(e) => log::warn(format!("fd {fd}: {e}: lost to the next image")),
            }
        }
        let error = match image {
            None => sys::process::exec(&path, &argv, &env),
            Some(image) => sys::os::exec_fd(image.as_fd(), &argv, &env),
        };
        for (fd, was) in cleared {
            let _ = sys::fd::set_cloexec(fd, was);
        }
        error
    }

    /// The image as a child that is only tried: what it answers to, and on which descriptor.
    pub(crate) fn trial(&self, fd: RawFd, nonce: &str) -> io::Result<Program> {
        let mut argv = self.argv.clone();
        if let Some(first) = argv.first_mut() {
            *first = self.path.clone().into();
        }
        // In the child it is the only descriptor beside the standard ones.
        let check = format!("3:{nonce}");
        let env = environment(&[(CHECK, check.as_str())]);
        Ok(Program::new(c_string(self.path.as_os_str())?, c_strings(&argv)?, env, vec![fd], false))
    }
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(true);
        }
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

fn state(path: &Path) -> Option<State> {
    std::fs::metadata(path).map(|meta| identity(&meta)).ok()
}

fn identity(m: &std::fs::Metadata) -> State {
    let fields = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(|field| field as u64);
    digest(&[&[m.dev(), m.ino(), m.size()], &fields[..]].concat())
}
