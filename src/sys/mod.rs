//! The only folder with `unsafe`: each function is one system call and its contract.
//!
//! Nothing here decides anything. What differs between systems is in `os`: `linux.rs`, or `portable.rs` for every other
//! Unix (and for Linux under the private cfg `refork_portable`, so that the tests run that path too).

pub(crate) mod fd;
#[cfg(all(target_os = "linux", not(refork_portable)))]
pub(crate) mod inotify;
pub(crate) mod net;
#[cfg_attr(all(target_os = "linux", not(refork_portable)), path = "linux.rs")]
#[cfg_attr(not(all(target_os = "linux", not(refork_portable))), path = "portable.rs")]
pub(crate) mod os;
pub(crate) mod process;
pub(crate) mod signal;

use std::io;
use std::time::Duration;

/// Turns the C convention (-1 and errno) into a `Result`.
fn cvt(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// clock_gettime(2), CLOCK_MONOTONIC: the same scale before and after an exec. Stands still during a suspend.
pub(crate) fn now() -> Duration {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid timespec; the call only writes to it. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    Duration::new(u64::try_from(ts.tv_sec).unwrap_or(0), u32::try_from(ts.tv_nsec).unwrap_or(0))
}

/// What stat(2) says of a file, as far as a change can be seen in it. Times are seconds and nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) mode: u32,
    #[cfg(all(target_os = "linux", not(refork_portable)))]
    pub(crate) links: u64,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

impl Stat {
    // The same numbers everywhere, in types that differ: inode(7).
    pub(crate) fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    #[cfg(all(target_os = "linux", not(refork_portable)))]
    pub(crate) fn is_link(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }
}

/// Reads a variable and removes it from the process's environment, whatever it held.
///
/// The only place that changes the environment. Called while the process has one thread (`Master::new`,
/// `adopt_inherited_sockets`: both say so).
pub(crate) fn take_var(name: &str) -> Option<std::ffi::OsString> {
    let value = std::env::var_os(name);
    std::env::remove_var(name);
    value
}
