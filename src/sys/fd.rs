//! Descriptors: flags, copies, poll(2).

use super::cvt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// fcntl(2) F_GETFD/F_SETFD: sets or clears FD_CLOEXEC and returns what it was. EBADF: no such descriptor.
///
/// Takes a number and not a `BorrowedFd` because numbers come from the environment and from callers who may be wrong.
pub(crate) fn set_cloexec(fd: RawFd, on: bool) -> io::Result<bool> {
    // SAFETY: F_GETFD takes no pointer; a wrong number is answered with EBADF.
    let flags = cvt(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    let was = flags & libc::FD_CLOEXEC != 0;
    if was != on {
        let flags = if on { flags | libc::FD_CLOEXEC } else { flags & !libc::FD_CLOEXEC };
        // SAFETY: as above; the argument is an int.
        cvt(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) })?;
    }
    Ok(was)
}

/// fcntl(2) F_SETFL: O_NONBLOCK on or off. The flag is shared by all who hold the open file.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer and the descriptor is open.
    let flags = cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let new = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    if new != flags {
        // SAFETY: as above; the argument is an int.
        cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, new) })?;
    }
    Ok(())
}

/// fcntl(2) F_DUPFD_CLOEXEC: a close-on-exec copy with a number of at least `min`. EBADF, EMFILE.
pub(crate) fn duplicate(fd: RawFd, min: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are ints; a wrong number is answered with EBADF.
    let new = cvt(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, min) })?;
    // SAFETY: the call just made this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Takes ownership of a descriptor that this process inherited under a number, once it is known to be a listening socket.
///
/// The caller guarantees by construction that a number is adopted once: it comes from a variable that is removed as it is read.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::Error::other("is a standard stream"));
    }
    if !super::net::is_listening(fd)? {
        return Err(io::Error::other("is not a listening stream socket"));
    }
    set_cloexec(fd, true)?;
    // SAFETY: open (just asked), named by whoever started this image for us to own, and adopted only once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes ownership of a descriptor of any kind that our own earlier image left open for us (named in its token, pid checked).
pub(crate) fn adopt_own(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::Error::other("is a standard stream"));
    }
    set_cloexec(fd, true)?;
    // SAFETY: open (just asked); the token that names it was written by this very process and is read once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Every descriptor from `first` on is close-on-exec. For a fresh child that is about to exec: async-signal-safe.
pub(crate) fn close_on_exec_from(first: RawFd) {
    if super::os::close_range_on_exec(first) {
        return;
    }
    // SAFETY: no pointers.
    let open_max = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    for fd in first..RawFd::try_from(open_max).unwrap_or(RawFd::MAX).clamp(256, 1 << 16) {
        // SAFETY: ints; a number that is not open is answered with EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// poll(2): can standard error take a line, within `patience`? What is closed or in error takes it, too, and loses it.
/// An interruption is a no.
pub(crate) fn takes_line(patience: Duration) -> bool {
    let mut stderr = [libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 }];
    super::os::poll(&mut stderr, Some(patience)).is_ok() && stderr[0].revents != 0
}

/// Closes, in a fresh child, what belongs to the master: the objects that own these numbers are never dropped there.
pub(crate) fn abandon(fds: &[RawFd]) {
    for fd in fds {
        // SAFETY: called only in a forked child that ends with _exit or exec, so that no owner closes them again.
        unsafe { libc::close(*fd) };
    }
}

/// One entry of a poll set; `None` is an entry that the kernel skips.
pub(crate) fn interest(fd: Option<BorrowedFd<'_>>) -> libc::pollfd {
    libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 }
}

/// poll(2): waits until one of `fds` is readable, hung up or in error, or `timeout` has passed (`None`: for ever).
/// An interruption counts as "nothing ready". A time is never cut short: what is not a whole tick is rounded up.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    for fd in &mut *fds {
        fd.revents = 0;
    }
    match super::os::poll(fds, timeout) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
        _ => Ok(()),
    }
}

/// recv(2) with MSG_DONTWAIT: what is there now. `WouldBlock`: nothing.
pub(crate) fn recv_now(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of one live slice.
    let n = unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
