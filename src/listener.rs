//! Addresses, binding, and the two ends of a connection: [`Listener`] and [`Stream`].

use crate::error::{Error, Op, Result};
use crate::log;
use crate::plan::token::{Carried, Origin};
use crate::sys;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A killed master's workers may still be draining: how long an address in use is tried again at the start.
const IN_USE: Duration = Duration::from_secs(2);
const IN_USE_STEP: Duration = Duration::from_millis(50);
const UNIX_MODE: u32 = 0o660;

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

/// Reads `HOST:PORT`, `:PORT`, `[v6]:PORT`, `unix:PATH[,mode=OCTAL]` or `fd://N`. `:PORT` and a host with several
/// addresses are several sockets, which share one port.
pub(crate) fn parse(addr: &str) -> Result<Vec<Want>> {
    if let Some(rest) = addr.strip_prefix("unix:") {
        let (path, mode) = match rest.rsplit_once(",mode=") {
            Some((path, mode)) => (path, u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777)),
            None => (rest, Some(UNIX_MODE)),
        };
        let mode = mode.ok_or_else(|| Error::config(addr, "mode is not an octal number up to 777"))?;
        if path.is_empty() {
            return Err(Error::config(addr, "a Unix socket needs a path"));
        }
        return Ok(vec![Want::Unix { path: path.into(), mode }]);
    }
    if let Some(number) = addr.strip_prefix("fd://") {
        let fd = number.parse().ok().filter(|fd| *fd >= 0);
        return Ok(vec![Want::Fd(fd.ok_or_else(|| Error::config(addr, "is not a descriptor's number"))?)]);
    }
    let port = addr.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = port else {
        return Err(Error::config(
            addr,
            "is not HOST:PORT, :PORT, [v6]:PORT, unix:PATH or fd://N (PORT is 0 to 65535)",
        ));
    };
    if host.is_empty() {
        let any: [SocketAddr; 2] = [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
        return Ok(any.map(Want::Tcp).into());
    }
    let found = addr.to_socket_addrs().map_err(|e| Error::new(Op::Bind, addr, e))?;
    let mut wants = Vec::new();
    for addr in found.map(Want::Tcp) {
        if !wants.contains(&addr) {
            wants.push(addr);
        }
    }
    Ok(wants)
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

/// Binds one address. `pause` waits a moment and says whether to give up (a signal asked to stop).
pub(crate) fn bind(want: &Want, pause: &mut dyn FnMut(Duration) -> bool) -> Result<Listener> {
    let attempt = || match want {
        Want::Tcp(addr) => sys::net::bind_tcp(*addr).and_then(|fd| sys::net::listen(fd.as_fd()).map(|()| (fd, None))),
        Want::Unix { path, mode } => bind_unix(path, *mode).map(|(fd, node)| (fd, Some(node))),
        // A copy: whoever owns the number in this process keeps it.
        Want::Fd(fd) => take_fd(*fd).map(|fd| (fd, None)),
    };
    let begun = sys::now();
    let mut said = false;
    loop {
        match attempt() {
            Ok((fd, node)) => {
                let origin = if matches!(want, Want::Fd(_)) { Origin::Given } else { Origin::Bound };
                let listener = Listener::from_fd(fd, origin);
                let mut listener = listener.map_err(|e| Error::new(Op::Bind, want.request(), e))?;
                listener.node = node;
                return Ok(listener);
            }
            Err(e) => {
                let retry = e.kind() == io::ErrorKind::AddrInUse && sys::now() < begun + IN_USE;
                if retry && !std::mem::replace(&mut said, true) {
                    log::warn(format!("{} is in use; trying again for {} s", want.request(), IN_USE.as_secs()));
                }
                if !retry || pause(IN_USE_STEP) {
                    return Err(Error::new(Op::Bind, want.request(), e));
                }
            }
        }
    }
}

fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if !sys::net::is_listening(fd)? {
        return Err(io::Error::other("is not a listening stream socket"));
    }
    sys::fd::set_cloexec(fd, true)?;
    sys::fd::duplicate(fd, 3)
}

/// Replaces a stale socket file, refuses anything else. The mode is set before anybody can connect.
fn bind_unix(path: &Path, mode: u32) -> io::Result<(OwnedFd, (u64, u64))> {
    let fd = match sys::net::bind_unix(path.as_os_str()) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::other("the path exists and is not a socket; it is left alone"));
            }
            if sys::net::unix_answers(path.as_os_str())? {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            sys::net::bind_unix(path.as_os_str())?
        }
        other => other?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let meta = std::fs::symlink_metadata(path)?;
    sys::net::listen(fd.as_fd())?;
    Ok((fd, (meta.dev(), meta.ino())))
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

/// An accepted connection: blocking, close-on-exec, `Read` and `Write`.
///
/// Dropping it closes politely: the end of output first, then what the client sent and nobody read is read away (at most
/// 1 MiB and half a second), then the close. Closing with unread input would reset the connection and could destroy an
/// answer that is still on its way.
#[derive(Debug)]
pub struct Stream {
    conn: Conn,
    polite: bool,
}

#[derive(Debug)]
enum Conn {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The polite close: bytes read away at most, and how long to wait for more of them.
const UNREAD: usize = 1 << 20;
const LINGER: Duration = Duration::from_millis(500);

impl Stream {
    fn new(conn: Conn) -> Stream {
        Stream { conn, polite: true }
    }

    /// The connection as a plain descriptor, for an event loop; closing it politely is then the caller's task. EMFILE.
    pub fn into_fd(mut self) -> io::Result<OwnedFd> {
        let fd = self.as_fd().try_clone_to_owned()?;
        self.polite = false;
        Ok(fd)
    }

    /// The std stream, when this is a TCP connection.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.conn {
            Conn::Tcp(s) => Some(s),
            Conn::Unix(_) => None,
        }
    }

    /// The std stream, when this is a Unix connection.
    pub fn as_unix(&self) -> Option<&UnixStream> {
        match &self.conn {
            Conn::Unix(s) => Some(s),
            Conn::Tcp(_) => None,
        }
    }

    /// setsockopt(2) SO_RCVTIMEO: a read waits at most this long, then fails with `WouldBlock`. `None`: for ever (default).
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.conn {
            Conn::Tcp(s) => s.set_read_timeout(timeout),
            Conn::Unix(s) => s.set_read_timeout(timeout),
        }
    }

    /// setsockopt(2) SO_SNDTIMEO: as [`Stream::set_read_timeout`], for writes.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.conn {
            Conn::Tcp(s) => s.set_write_timeout(timeout),
            Conn::Unix(s) => s.set_write_timeout(timeout),
        }
    }

    /// shutdown(2): ends one or both directions.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match &self.conn {
            Conn::Tcp(s) => s.shutdown(how),
            Conn::Unix(s) => s.shutdown(how),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.conn {
            Conn::Tcp(s) => s.as_fd(),
            Conn::Unix(s) => s.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.conn {
            Conn::Tcp(s) => s.read(buf),
            Conn::Unix(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.conn {
            Conn::Tcp(s) => s.write(buf),
            Conn::Unix(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.polite || self.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let (mut buf, mut total, mut until) = ([0; 16 * 1024], 0, None);
        while total < UNREAD {
            match sys::fd::recv_now(self.as_fd(), &mut buf) {
                Ok(0) => return,
                Ok(n) => {
                    // Only a client that sends more than was read is waited for.
                    total += n;
                    until.get_or_insert_with(|| sys::now() + LINGER);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = until.and_then(|until: Duration| until.checked_sub(sys::now()));
                    let Some(left) = left.filter(|left| !left.is_zero()) else { return };
                    if sys::fd::poll(&mut [sys::fd::interest(Some(self.as_fd()))], Some(left)).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}
