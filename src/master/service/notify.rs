//! `READY=1` as COMMAND says it: sd_notify(3), on a socket that each worker has for itself.

use std::io;
use std::os::unix::net::UnixDatagram;

/// The master's end, and the name that the worker finds in NOTIFY_SOCKET.
pub(super) struct Notify {
    pub(super) socket: UnixDatagram,
    pub(super) name: String,
}

impl Notify {
    pub(super) fn new(slot: usize, generation: u64) -> io::Result<Notify> {
        let unique = crate::sys::now().as_nanos();
        let name = format!("refork-{}-{slot}-{generation}-{unique:x}", std::process::id());
        let (socket, name) = bind(&name)?;
        socket.set_nonblocking(true)?;
        Ok(Notify { socket, name })
    }

    /// Has it said that it is ready?
    pub(super) fn read(&self) -> bool {
        let mut buf = [0; 4096];
        let mut ready = false;
        while let Ok(n) = self.socket.recv(&mut buf) {
            ready |= buf[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1");
        }
        ready
    }
}

/// An abstract name: nothing to remove afterwards.
#[cfg(target_os = "linux")]
fn bind(name: &str) -> io::Result<(UnixDatagram, String)> {
    use std::os::linux::net::SocketAddrExt;
    let addr = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    Ok((UnixDatagram::bind_addr(&addr)?, format!("@{name}")))
}

/// A path, which goes with the master's end.
#[cfg(not(target_os = "linux"))]
fn bind(name: &str) -> io::Result<(UnixDatagram, String)> {
    let path = std::env::temp_dir().join(name);
    Ok((UnixDatagram::bind(&path)?, path.to_string_lossy().into_owned()))
}

#[cfg(not(target_os = "linux"))]
impl Drop for Notify {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.name);
    }
}
