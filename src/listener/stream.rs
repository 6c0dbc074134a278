//! An accepted connection, and its polite end.

use crate::sys;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

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
pub(super) enum Conn {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The polite close: bytes read away at most, and how long to wait for more of them.
const UNREAD: usize = 1 << 20;
const LINGER: Duration = Duration::from_millis(500);

impl Stream {
    pub(super) fn new(conn: Conn) -> Stream {
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
