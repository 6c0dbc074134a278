//! The seed's three names without a master: bind or adopt, watch, exec on a change. One process, no workers.
//!
//! `seed WATCHED [ARGUMENT]...` listens on 127.0.0.1:0, prints what it adopted and its arguments, and answers each
//! connection with its pid and the watched file's text as it was when this image started. A change, or the request
//! `again`, makes it execute itself with the argument `again` added; the request `same`, with its own arguments;
//! `nothing`, without a socket. With the argument `dies` the callback ends the process.

#![allow(clippy::expect_used)]

use refork::{adopt_inherited_sockets, exec_self_with_sockets, FileChangeWatcher};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;

fn main() -> std::io::Result<()> {
    let watched = std::env::args().nth(1).expect("WATCHED");
    let adopted = adopt_inherited_sockets();
    eprintln!("again: {}", adopt_inherited_sockets().is_some());
    eprintln!("variable: {}", std::env::var_os("BB_INHERIT_FDS").is_some());
    eprintln!("args: {:?}", std::env::args().collect::<Vec<_>>());
    eprintln!("adopted: {:?}", adopted.as_ref().map(|listeners| listeners.len()));
    let listener = match adopted {
        Some(listeners) => listeners[0].as_tcp().expect("a TCP listener").try_clone()?,
        None => TcpListener::bind("127.0.0.1:0")?,
    };
    listener.set_nonblocking(false)?;
    let text = std::fs::read_to_string(&watched)?;
    let changed = Arc::new(AtomicBool::new(false));
    let (flag, addr) = (changed.clone(), listener.local_addr()?);
    let dies = std::env::args().nth(2).as_deref() == Some("dies");
    let mut watcher = FileChangeWatcher::new([&watched], move |paths| {
        if dies {
            std::process::abort();
        }
        eprintln!("on_change {paths:?} on {:?}", std::thread::current().name());
        flag.store(true, SeqCst);
        // The loop below sits in accept.
        let _ = std::net::TcpStream::connect(addr);
    });
    // Patient: its test may be kept waiting between two saves of one burst.
    watcher = watcher.debounce(Duration::from_millis(500), Duration::from_secs(5));
    watcher.start()?;
    watcher.start()?;
    eprintln!("serving on {addr}");
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut request = String::new();
        let _ = stream.read_to_string(&mut request);
        let mut argv: Vec<OsString> = std::env::args_os().collect();
        // A closed descriptor among others is skipped.
        let sockets = [listener.as_raw_fd(), 999];
        let error = match request.as_str() {
            "same" => exec_self_with_sockets(&sockets, None),
            "nothing" => exec_self_with_sockets(&sockets[1..], None),
            "no argv" => exec_self_with_sockets(&sockets, Some(&[])),
            request if request == "again" || changed.swap(false, SeqCst) => {
                argv[0] = "replaced".into();
                argv.push("again".into());
                exec_self_with_sockets(&sockets, Some(&argv))
            }
            _ => {
                let _ = writeln!(stream, "pid={} text={}", std::process::id(), text.trim());
                continue;
            }
        };
        let _ = writeln!(stream, "exec failed: {error}");
    }
}
