//! The crate's error: which operation, on what, why.

use crate::log::Shown;
use std::fmt;
use std::io;
use std::path::Path;

/// What `refork` was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A value the caller gave makes no sense.
    Config,
    Bind,
    Watch,
    /// Starting the watcher's thread.
    Thread,
    Exec,
    Signals,
    Ask,
    Boot,
    Command,
}

/// The result of what can fail at the start.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a master could not start or go on: operation, subject and cause in one line.
///
/// `Debug` prints what `Display` prints, so that `fn main() -> refork::Result<()>` ends with a readable line.
/// [`std::error::Error::source`] is the operating system's error where there is one.
pub struct Error {
    op: Op,
    subject: String,
    cause: io::Error,
}

impl Error {
    pub(crate) fn new(op: Op, subject: impl Into<String>, cause: io::Error) -> Error {
        Error { op, subject: subject.into(), cause }
    }

    pub(crate) fn config(subject: impl Into<String>, why: &str) -> Error {
        Error::new(Op::Config, subject, io::Error::new(io::ErrorKind::InvalidInput, why))
    }

    /// The errno behind this error, when a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }

    /// The exit code that the command uses for this error: 2 a wrong value, 3 workers cannot boot, 4 cannot bind or adopt,
    /// 126 or 127 COMMAND cannot be executed or found, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self.op {
            Op::Config => 2,
            Op::Boot => 3,
            Op::Bind => 4,
            Op::Command if self.cause.kind() == io::ErrorKind::NotFound => 127,
            Op::Command => 126,
            Op::Watch | Op::Thread | Op::Exec | Op::Signals | Op::Ask => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.op {
            Op::Config => "wrong value",
            Op::Bind => "cannot listen on",
            Op::Watch => "cannot watch",
            Op::Thread => "cannot start the watcher's thread",
            Op::Exec => "cannot execute",
            Op::Signals => "cannot set up signals",
            Op::Ask => "cannot ask",
            Op::Boot => "cannot boot",
            Op::Command => "cannot execute",
        };
        match self.subject.as_str() {
            "" => write!(f, "{what}: {}", self.cause),
            // As the user wrote it, and it is still one line.
            subject => write!(f, "{what} `{}`: {}", Shown(Path::new(subject)), self.cause),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(error.cause.kind(), error.to_string())
    }
}
