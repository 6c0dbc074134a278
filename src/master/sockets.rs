//! From what was asked for and what was inherited to what is listened on.

use super::{Ask, Make};
use crate::error::{Error, Op, Result};
use crate::listener::{self, Listener, Want};
use crate::log;
use crate::plan::token::Origin;
use crate::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// How often two families are tried for one port of the kernel's choice.
const SAME_PORT: usize = 16;

/// One ask: one socket, or several that share a port (`:8000`, a host with several addresses).
struct Group {
    name: String,
    sockets: Vec<(Want, Option<Listener>)>,
    /// A socket that the caller makes, and what was inherited of that name.
    make: Option<(Make, Option<Listener>)>,
}

/// The listeners in the order of the asks; those adopted that nobody asks for; how many adopted ones are used.
///
/// Matched by name and requested address. Without any ask everything that was inherited is used; what a service manager
/// passed is used in any case.
pub(super) fn open(
    asks: Vec<Ask>,
    wants: Vec<Vec<Want>>,
    mut adopted: Vec<Listener>,
    pause: &mut dyn FnMut(Duration) -> bool,
) -> Result<(Vec<Listener>, Vec<Listener>, usize)> {
    let count = adopted.len();
    if asks.is_empty() {
        return Ok((adopted, Vec::new(), count));
    }
    let mut take = |name: &str, want: Option<&Want>| {
        let at = adopted.iter().position(|listener| listener.answers(name, want))?;
        let mut listener = adopted.remove(at);
        listener.settle(name, want.map(Want::request).unwrap_or_default());
        Some(listener)
    };
    let mut groups = Vec::new();
    for (ask, wants) in asks.into_iter().zip(wants) {
        groups.push(match ask {
            Ask::Make { name, make } => {
                let make = Some((make, take(&name, None)));
                Group { name, sockets: Vec::new(), make }
            }
            Ask::Addr { name, .. } => {
                let sockets =
                    wants.into_iter().map(|want| (take(&name, Some(&want)), want)).map(|(l, w)| (w, l)).collect();
                Group { name, sockets, make: None }
            }
        });
    }
    // Numbers first: a socket that is bound now could get a number that is still to be taken.
    for Group { name, sockets, .. } in &mut groups {
        for (want, place) in sockets.iter_mut().filter(|(want, place)| matches!(want, Want::Fd(_)) && place.is_none()) {
            let mut listener = listener::bind(want, pause)?;
            listener.settle(name, want.request());
            *place = Some(listener);
        }
    }
    for group in &mut groups {
        bind_missing(group, pause)?;
    }
    let mut listeners = Vec::new();
    for Group { name, sockets, make } in groups {
        listeners.extend(sockets.into_iter().filter_map(|(_, listener)| listener));
        if let Some((make, found)) = make {
            listeners.push(match found {
                Some(listener) => listener,
                None => made(&name, make).map_err(|e| Error::new(Op::Bind, name, e))?,
            });
        }
    }
    let (kept, dropped): (Vec<_>, Vec<_>) = adopted.into_iter().partition(|l| l.origin() == Origin::Activated);
    let used = count - dropped.len();
    listeners.extend(kept);
    Ok((listeners, dropped, used))
}

fn made(name: &str, make: Make) -> io::Result<Listener> {
    let fd = make()?;
    sys::fd::set_cloexec(fd.as_raw_fd(), true)?;
    // A socket that is only bound is made to listen; one that listens gets the long queue.
    sys::net::listen(fd.as_fd())?;
    let mut listener = Listener::from_fd(fd, Origin::Given)?;
    listener.settle(name, String::new());
    Ok(listener)
}

/// Binds what was not inherited. Sockets of one ask share a port; of several families one is enough.
fn bind_missing(group: &mut Group, pause: &mut dyn FnMut(Duration) -> bool) -> Result<()> {
    let shared = group.sockets.len() > 1;
    // An inherited socket's port is given.
    let tries = if group.sockets.iter().any(|(_, listener)| listener.is_some()) { 0 } else { SAME_PORT };
    for attempt in 0.. {
        let mut lacking = Vec::new();
        let mut again = false;
        for i in 0..group.sockets.len() {
            if group.sockets[i].1.is_some() {
                continue;
            }
            let want = &group.sockets[i].0;
            let port = group.sockets.iter().filter_map(|(_, l)| l.as_ref()).find_map(Listener::port);
            let chosen = port.filter(|_| want.any_port());
            let place = chosen.map_or_else(|| want.clone(), |port| want.with_port(port));
            // A port that the kernel chose for the sibling may be taken here: then both get another, at once.
            let result = match chosen {
                Some(_) if attempt < tries => listener::bind(&place, &mut |_| true),
                _ => listener::bind(&place, pause),
            };
            match result {
                Ok(mut listener) => {
                    listener.settle(&group.name, want.request());
                    group.sockets[i].1 = Some(listener);
                }
                Err(e) if shared && lacks_family(&e) => lacking.push(e),
                Err(e) if chosen.is_some() && attempt < tries && e.raw_os_error() == Some(libc::EADDRINUSE) => {
                    again = true;
                }
                Err(e) => return Err(e),
            }
        }
        if again {
            group.sockets.iter_mut().for_each(|(_, listener)| *listener = None);
            continue;
        }
        if lacking.len() == group.sockets.len() {
            return lacking.into_iter().next().map_or(Ok(()), Err);
        }
        for e in lacking {
            log::warn(format!("{e}; going on without this address family"));
        }
        return Ok(());
    }
    Ok(())
}

fn lacks_family(e: &Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}
