//! Addresses, binding, and the two ends of a connection: [`Listener`] and [`Stream`].

mod bind;
mod stream;

use crate::log;
use crate::plan::token::{Carried, Origin};
use crate::sys;
pub(crate) use bind::{bind, number, parse};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use stream::Conn;
pub use stream::Stream;

/// One socket that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Tcp(SocketAddr),
    Unix { path: PathBuf, mode: u32 },
    Fd(RawFd),
}

impl Want {
    /// What an adopted socket is recognised by: the address as it was asked for.
    pub(crate) fn request(&self) -> String {
        match self {
            Want::Tcp(addr) => addr.to_string(),
            Want::Unix { path, .. } => format!("unix:{}", path.display()),
            Want::Fd(fd) => format!("fd://{fd}"),
        }
    }

    /// Does the kernel choose the port?
    pub(crate) fn any_port(&self) -> bool {
        matches!(self, Want::Tcp(addr) if addr.port() == 0)
    }

    /// The same address with the port that a sibling got.
    pub(crate) fn with_port(&self, port: u16) -> Want {
        match self {
            Want::Tcp(addr) => Want::Tcp(SocketAddr::new(addr.ip(), port)),
            other => other.clone(),
        }
    }
}

/// A listening socket, in the master and in its workers: a plain std listener with the name it was bound under.
///
/// A library worker's listeners are non-blocking, and must stay so: the flag belongs to the open socket, which all share.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    name: String,
    request: String,
    origin: Origin,
    /// Device and inode of a Unix socket's path.
    node: Option<(u64, u64)>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Of a descriptor that listens; the family is asked from the kernel.
    pub(crate) fn from_fd(fd: OwnedFd, origin: Origin) -> io::Result<Listener> {
        let tcp = TcpListener::from(fd);
        let socket = match tcp.local_addr() {
            Ok(_) => Socket::Tcp(tcp),
            Err(_) => {
                let unix = UnixListener::from(OwnedFd::from(tcp));
                unix.local_addr().map_err(|_| io::Error::other("is neither a TCP nor a Unix socket"))?;
                Socket::Unix(unix)
            }
        };
        Ok(Listener { socket, name: String::new(), request: String::new(), origin, node: None })
    }

    /// The name it was bound under; empty without one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address it listens on; with port 0, the port the kernel chose.
    pub fn local_addr(&self) -> io::Result<Addr> {
        match &self.socket {
            Socket::Tcp(l) => l.local_addr().map(Addr::Tcp),
            Socket::Unix(l) => l.local_addr().map(|addr| Addr::Unix(addr.as_pathname().map(Path::to_owned))),
        }
    }

    /// The std listener, when this is a TCP socket.
    pub fn as_tcp(&self) -> Option<&TcpListener> {
        match &self.socket {
            Socket::Tcp(l) => Some(l),
            Socket::Unix(_) => None,
        }
    }

    /// The std listener, when this is a Unix socket.
    pub fn as_unix(&self) -> Option<&UnixListener> {
        match &self.socket {
            Socket::Tcp(_) => None,
            Socket::Unix(l) => Some(l),
        }
    }

    /// A connection if one waits; `None`: nothing waits, or what waited went away.
    pub(crate) fn accept_now(&self) -> io::Result<Option<(Stream, Addr)>> {
        loop {
            let accepted = match &self.socket {
                Socket::Tcp(l) => l.accept().map(|(s, a)| (Stream::new(Conn::Tcp(s)), Addr::Tcp(a))),
                Socket::Unix(l) => {
                    let peer = |a: std::os::unix::net::SocketAddr| Addr::Unix(a.as_pathname().map(Path::to_owned));
                    l.accept().map(|(s, a)| (Stream::new(Conn::Unix(s)), peer(a)))
                }
            };
            return match accepted {
                Ok((stream, addr)) => {
                    // BSD and macOS hand the listener's O_NONBLOCK on.
                    sys::fd::set_nonblocking(stream.as_fd(), false)?;
                    Ok(Some((stream, addr)))
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Err(e),
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EFAULT) => Err(e),
                    // EAGAIN, ECONNABORTED, and the network's errors that accept(2) passes on for a connection it drops.
                    _ => Ok(None),
                },
            };
        }
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        self.name = name.into();
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Takes over what the earlier image knew.
    pub(crate) fn recall(&mut self, carried: &Carried) {
        self.name = carried.name.clone();
        self.request = carried.request.clone();
        self.origin = carried.origin;
        self.node = carried.node;
    }

    /// What the next image should know.
    pub(crate) fn carry(&self) -> Carried {
        Carried {
            fd: self.as_raw_fd(),
            name: self.name.clone(),
            request: self.request.clone(),
            origin: self.origin,
            node: self.node,
        }
    }

    /// Is this the socket that `name` and `request` ask for? Without a request of its own (it came by number alone), its
    /// address decides; port 0 fits any port.
    pub(crate) fn answers(&self, name: &str, want: Option<&Want>) -> bool {
        let Some(want) = want else { return !name.is_empty() && self.name == name };
        if !self.request.is_empty() {
            return self.name == name && self.request == want.request();
        }
        let fits = match (self.local_addr(), want) {
            (Ok(Addr::Tcp(have)), Want::Tcp(want)) => {
                have.ip() == want.ip() && (want.port() == 0 || want.port() == have.port())
            }
            (Ok(Addr::Unix(Some(have))), Want::Unix { path, .. }) => have == *path,
            (_, Want::Fd(fd)) => self.as_raw_fd() == *fd,
            (Ok(_) | Err(_), Want::Tcp(_) | Want::Unix { .. }) => false,
        };
        fits && (self.name.is_empty() || self.name == name)
    }

    /// Fixes what it will be recognised by after the next exec.
    pub(crate) fn settle(&mut self, name: &str, request: String) {
        self.name = name.into();
        self.request = request;
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.as_tcp()?.local_addr().ok().map(|addr| addr.port())
    }

    /// Removes a Unix socket's path, if this master made it and it is still the same file.
    pub(crate) fn unlink(&self) {
        let Ok(Addr::Unix(Some(path))) = self.local_addr() else { return };
        let same = std::fs::symlink_metadata(&path).is_ok_and(|m| Some((m.dev(), m.ino())) == self.node);
        if self.origin == Origin::Bound && same {
            let _ = std::fs::remove_file(&path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(l) => l.as_fd(),
            Socket::Unix(l) => l.as_fd(),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Where a listener listens, or who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addr {
    /// An IPv4 or IPv6 address and port.
    Tcp(SocketAddr),
    /// A Unix socket's path; most clients have none.
    Unix(Option<PathBuf>),
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Tcp(addr) => write!(f, "{addr}"),
            Addr::Unix(path) => {
                let path = path.as_deref().unwrap_or(Path::new(OsStr::new("(unnamed)")));
                write!(f, "unix:{}", log::Shown(path))
            }
        }
    }
}
