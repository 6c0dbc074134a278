//! From an address as it is written to a socket that listens.

use super::{Listener, Want};
use crate::error::{Error, Op, Result};
use crate::log;
use crate::plan::token::Origin;
use crate::sys;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// A killed master's workers may still be draining: how long an address in use is tried again at the start.
const IN_USE: Duration = Duration::from_secs(2);
const IN_USE_STEP: Duration = Duration::from_millis(50);
const UNIX_MODE: u32 = 0o660;

/// A descriptor, a port, a pid: ASCII digits only, where std would take a plus sign, too.
pub(crate) fn number<N: FromStr>(text: &str) -> Option<N> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Reads `HOST:PORT`, `:PORT`, `[v6]:PORT`, `unix:PATH[,mode=OCTAL]` or `fd://N`. `:PORT` and a host with several
/// addresses are several sockets, which share one port.
pub(crate) fn parse(addr: &str) -> Result<Vec<Want>> {
    if addr.is_empty() {
        return Err(Error::config("bind", "the address is empty"));
    }
    if let Some(rest) = addr.strip_prefix("unix:") {
        let (path, mode) = match rest.rsplit_once(",mode=") {
            // `+660` would be something else to chmod(1).
            Some((path, mode)) if mode.starts_with('+') => (path, None),
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
        let fd = self::number(number).ok_or_else(|| Error::config(addr, "is not a descriptor's number"))?;
        return Ok(vec![Want::Fd(fd)]);
    }
    let port = addr.rsplit_once(':').and_then(|(host, port)| Some((host, number::<u16>(port)?)));
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
                    let request = want.request();
                    let shown = log::Shown(Path::new(&request));
                    log::warn(format!("{shown} is in use; trying again for {} s", IN_USE.as_secs()));
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

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_number_is_digits() {
        assert_eq!((number("3"), number("007"), number("65535")), (Some(3), Some(7), Some(65_535_u16)));
        for bad in ["", "+3", "-1", " 3", "3 ", "3x", "0x3", "65536"] {
            assert_eq!(number::<u16>(bad), None, "{bad}");
        }
    }
}
