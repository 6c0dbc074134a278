//! Listening sockets, as std does not make them: backlog, V6ONLY, and a Unix socket whose mode is set before it listens.

use super::{cvt, os};
use std::ffi::OsStr;
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Longest listen queue asked for; the kernel cuts it to its own limit (net.core.somaxconn).
const BACKLOG: libc::c_int = 4096;

/// Longest path of a Unix socket, without its NUL: the family (and on BSD the length) before it takes two bytes everywhere.
const UNIX_PATH: usize = size_of::<libc::sockaddr_un>() - 2 - 1;

/// getsockopt(2) SO_TYPE and SO_ACCEPTCONN: is this a listening stream socket? EBADF, ENOTSOCK.
pub(crate) fn is_listening(fd: RawFd) -> io::Result<bool> {
    Ok(option(fd, libc::SO_TYPE)? == libc::SOCK_STREAM && option(fd, libc::SO_ACCEPTCONN)? != 0)
}

fn option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer: *mut libc::c_int = &mut value;
    // SAFETY: `pointer` is valid for `len` bytes during the call; a wrong descriptor is answered with an error.
    cvt(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, pointer.cast(), &mut len) })?;
    Ok(value)
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer: *const libc::c_int = &value;
    // SAFETY: `pointer` is valid for `len` bytes during the call.
    cvt(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer.cast(), len) }).map(drop)
}

/// socket(2), bind(2) with SO_REUSEADDR (never SO_REUSEPORT) and IPV6_V6ONLY, close-on-exec from birth. Not listening yet.
/// EADDRINUSE, EACCES (port below 1024), EADDRNOTAVAIL, EAFNOSUPPORT (the machine lacks the family).
pub(crate) fn bind_tcp(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let fd = os::socket(family, libc::SOCK_STREAM)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    match addr {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_in is plain old data; all zeroes is a value of it.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            bind(&fd, &raw)?;
        }
        SocketAddr::V6(v6) => {
            set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            // SAFETY: sockaddr_in6 is plain old data; all zeroes is a value of it.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_flowinfo = v6.flowinfo();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            bind(&fd, &raw)?;
        }
    }
    Ok(fd)
}

/// `None` when the path does not fit in `sun_path`, is empty or holds a NUL.
fn unix_addr(path: &OsStr) -> Option<libc::sockaddr_un> {
    // SAFETY: sockaddr_un is plain old data; all zeroes is a value of it.
    let mut raw: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes.len() >= raw.sun_path.len() || bytes.contains(&0) {
        return None;
    }
    for (to, from) in raw.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Some(raw)
}

/// socket(2), bind(2) to a path that must not exist, close-on-exec from birth. Not listening yet, so that the mode can be
/// set before anybody can connect. EADDRINUSE (the path exists), EACCES, ENOENT; InvalidInput: see `unix_addr`.
pub(crate) fn bind_unix(path: &OsStr) -> io::Result<OwnedFd> {
    let addr = unix_addr(path).ok_or_else(|| {
        let why = format!("a socket's path has 1 to {} bytes, this one has {}", UNIX_PATH, path.len());
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    let fd = os::socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    bind(&fd, &addr)?;
    Ok(fd)
}

fn bind<A>(fd: &OwnedFd, addr: &A) -> io::Result<()> {
    let pointer: *const A = addr;
    // SAFETY: `A` is one of the sockaddr structures above, fully initialised, and its size is passed.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), pointer.cast(), size_of::<A>() as libc::socklen_t) }).map(drop)
}

/// listen(2) with the longest queue. On a socket that listens already: sets the queue length.
pub(crate) fn listen(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    cvt(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) }).map(drop)
}

/// connect(2), non-blocking: does somebody listen behind this path? A full queue counts as somebody.
pub(crate) fn unix_answers(path: &OsStr) -> io::Result<bool> {
    let Some(addr) = unix_addr(path) else { return Ok(false) };
    let fd = os::socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    super::fd::set_nonblocking(fd.as_fd(), true)?;
    let pointer: *const libc::sockaddr_un = &addr;
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `addr` is fully initialised and its size is passed.
    match cvt(unsafe { libc::connect(fd.as_raw_fd(), pointer.cast(), len) }) {
        Ok(_) => Ok(true),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EINPROGRESS) => Ok(true),
            Some(libc::ECONNREFUSED | libc::ENOENT) => Ok(false),
            _ => Err(e),
        },
    }
}
