//! COMMAND: its file, and everything that one worker's exec needs.

use crate::error::{Error, Op, Result};
use crate::handoff;
use crate::listener::Listener;
use crate::sys::process::Program;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// COMMAND.
pub(super) struct Command {
    pub(super) argv: Vec<OsString>,
    /// Found once, so that all workers run one file. `None`: a re-exec came when it was gone; each fork looks for it.
    pub(super) path: Option<PathBuf>,
}

impl Command {
    /// Its file, if that can be executed.
    pub(super) fn find(&self) -> Result<PathBuf> {
        let name = self.argv.first().ok_or_else(|| Error::config("", "COMMAND is empty"))?;
        let fail = |cause| Error::new(Op::Command, name.to_string_lossy(), cause);
        let known = self.path.clone();
        let found = known.or_else(|| handoff::search(name).map(|path| handoff::absolute(&path)));
        let path = found.ok_or_else(|| fail(io::Error::new(io::ErrorKind::NotFound, "is not in PATH")))?;
        // No such file, or a directory that may not be searched: the kernel's own word.
        std::fs::metadata(&path).map_err(fail)?;
        let unfit = |unfit: handoff::Unfit| fail(io::Error::new(io::ErrorKind::PermissionDenied, unfit.why));
        handoff::executable(&path).map_err(unfit)?;
        Ok(path)
    }

    /// For a line of the log.
    pub(super) fn name(&self) -> PathBuf {
        self.path.clone().or_else(|| self.argv.first().map(PathBuf::from)).unwrap_or_default()
    }

    /// Everything that one worker's exec needs.
    pub(super) fn program(
        &self,
        slot: usize,
        generation: u64,
        listeners: &[Listener],
        notify: Option<&str>,
    ) -> io::Result<Program> {
        let (slot, generation, count) = (slot.to_string(), generation.to_string(), listeners.len().to_string());
        let names: Vec<&str> =
            listeners.iter().map(|l| if l.name().is_empty() { "unknown" } else { l.name() }).collect();
        let names = names.join(":");
        let mut extra = vec![("REFORK_WORKER", slot.as_str()), ("REFORK_GENERATION", generation.as_str())];
        extra.extend(notify.map(|name| ("NOTIFY_SOCKET", name)));
        if !listeners.is_empty() {
            extra.extend([("LISTEN_FDS", count.as_str()), ("LISTEN_FDNAMES", names.as_str())]);
        }
        let argv = handoff::c_strings(&self.argv)?;
        let sockets: Vec<_> = listeners.iter().map(AsRawFd::as_raw_fd).collect();
        let listen = !sockets.is_empty();
        let path = self.path.clone().map_or_else(|| self.find(), Ok)?;
        Ok(Program::new(handoff::c_string(path.as_os_str())?, argv, handoff::environment(&extra), sockets, listen))
    }
}
