//! What every Unix has: no atomic close-on-exec, no parent-death signal, no auxiliary vector.

use super::cvt;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Where this thread's errno lives.
pub(super) fn errno() -> *mut libc::c_int {
    #[cfg(any(target_os = "illumos", target_os = "solaris"))]
    use libc::___errno as location;
    #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
    use libc::__errno as location;
    #[cfg(any(target_os = "linux", target_os = "emscripten", target_os = "l4re"))]
    use libc::__errno_location as location;
    #[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
    use libc::__error as location;
    // SAFETY: no arguments; the answer is valid for the life of the thread.
    unsafe { location() }
}

/// socket(2), then close-on-exec: between the two another thread's exec could leak it; ours holds the gate when it
/// execs.
pub(super) fn socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the call just made this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    super::fd::set_cloexec(fd.as_raw_fd(), true)?;
    Ok(fd)
}

/// poll(2): a timeout in milliseconds, rounded up.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let ms = timeout.map_or(-1, |t| t.as_nanos().div_ceil(1_000_000).min(1 << 30) as libc::c_int);
    // SAFETY: `fds` is a live slice and its length is passed.
    cvt(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, ms) }).map(drop)
}

/// Nobody tells here what was given to execve(2).
pub(crate) fn exec_name() -> Option<OsString> {
    None
}

/// pthread_main_np(3) where it exists; elsewhere the name that std gives to the main thread alone.
pub(crate) fn is_main_thread() -> bool {
    #[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "openbsd"))]
    {
        // SAFETY: no arguments.
        let main = unsafe { libc::pthread_main_np() };
        main == 1
    }
    #[cfg(not(any(target_vendor = "apple", target_os = "freebsd", target_os = "openbsd")))]
    {
        std::thread::current().name() == Some("main")
    }
}

/// Nothing to ask for: a library worker notices the end of its lifeline, COMMAND does not.
pub(super) fn die_with_parent(_signal: libc::c_int) {}

/// No one call for all of them.
pub(super) fn close_range_on_exec(_first: libc::c_int) -> bool {
    false
}

/// Nobody but PID 1 gets orphans here.
pub(crate) fn inherit_orphans() {}

/// PID 1 reaps orphans.
pub(crate) fn inherits_orphans() -> bool {
    std::process::id() == 1
}

/// No path names the running image once its file has been replaced.
pub(crate) const SELF_IMAGE: Option<&str> = None;

/// No image is executed by descriptor here.
pub(crate) fn exec_fd(_fd: BorrowedFd<'_>, _argv: &[CString], _env: &[CString]) -> io::Error {
    io::ErrorKind::Unsupported.into()
}

/// See `exec_fd`.
pub(crate) fn open_image() -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}
