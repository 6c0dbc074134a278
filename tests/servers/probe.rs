//! The server under test: it tells about itself, and does on request what servers do by accident.
//!
//! `probe KEY=VALUE...`: `bind=ADDR`, `bind=NAME=ADDR`, `workers=N`, `watch=PATH`, `watch=executable`, `filter=FIFO`
//! (the watcher reads it when it first sees `held.py`), `timeout=MS`, `debounce=MS`, `poll=MS`,
//! `lines=FILE` (each log line, and what is in the file then), `ill=FILE` (a worker that reads `unwell` there is),
//! `serve=accept|listeners`, `thread=1`, `handover=overlap`, `check=MS|off`, `boot=MS`, `rollback=off`, `status=PATH`,
//! and for `command=SCRIPT`, which sh runs: `ready=MS|notify`, `checkcmd=CMD`, `stop=N`.
//! Its version is what follows `TAG:` at the end of its own file, so that a copy with another tag is new code. A tag
//! that contains one of these words is code that is ill: `crashes`, `exits`, `hangs` in `main`; `misconfigured`,
//! `rebinds` in `run`; `unwell`, `aborts`, `dawdles` (is never ready) in its workers. `lives` calls nothing of its
//! worker's but `draining`.
//!
//! `probe plain TEXTFILE` is a program for `refork run` that knows nothing of refork: it serves the socket that is its
//! standard input (`0<&3`) and drains on nothing.

#![allow(clippy::expect_used, clippy::disallowed_methods)] // a server may sleep, its test may not

use refork::{Backend, Handover, Master, Ready, Worker};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::OnceLock;
use std::time::Duration;

/// What `lines` adds to each line.
static FILE: OnceLock<String> = OnceLock::new();

fn main() -> refork::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("plain") {
        plain();
    }
    let tag = tag();
    match tag.split('-').next().unwrap_or_default() {
        "crashes" => {
            eprintln!("about to crash");
            std::process::abort()
        }
        "exits" => return Ok(()),
        "hangs" => loop {
            std::thread::park();
        },
        _ => {}
    }
    let mut master = Master::new();
    let mut own_loop = false;
    let (mut command, mut ill) = (None, String::new());
    for arg in std::env::args().skip(1) {
        let (key, value) = arg.split_once('=').expect("KEY=VALUE");
        let ms = || Duration::from_millis(value.parse().expect("milliseconds"));
        master = match key {
            "bind" => match value.split_once('=').filter(|(name, _)| !name.contains(':')) {
                Some((name, addr)) => master.bind_named(name, addr),
                None => master.bind(value),
            },
            "make" => master.listen_with(value, || TcpListener::bind("127.0.0.1:0")),
            "workers" => master.workers(value.parse().expect("a number")),
            "watch" if value == "executable" => master.watch_executable(),
            "watch" => master.watch(value),
            "lines" => {
                let _ = FILE.set(value.to_owned());
                master.log(|_, line| {
                    let file = FILE.get().map(std::fs::read_to_string);
                    eprintln!("{line} {}", file.map(Result::unwrap_or_default).unwrap_or_default().replace('\n', " "));
                })
            }
            "ill" => {
                value.clone_into(&mut ill);
                master
            }
            "filter" => {
                let (fifo, held) = (value.to_owned(), AtomicBool::new(false));
                master.watch_filter(move |path| {
                    if path.ends_with("held.py") && !held.swap(true, SeqCst) {
                        let _ = std::fs::read(&fifo);
                    }
                    true
                })
            }
            "timeout" => master.shutdown_timeout(ms()),
            "debounce" => master.debounce(ms(), 10 * ms()),
            "handover" => master.handover(if value == "overlap" { Handover::Overlap } else { Handover::DrainFirst }),
            "check" if value == "off" => master.check(false),
            "check" => master.check_timeout(ms()),
            "boot" => master.boot_timeout(ms()),
            "rollback" => master.rollback(value != "off"),
            "status" => master.status_file(value),
            "poll" => master.backend(Backend::Poll(ms())),
            "serve" => {
                own_loop = value == "listeners";
                master
            }
            "ready" if value == "notify" => master.ready(Ready::Notify),
            "ready" => master.ready(Ready::After(ms())),
            "checkcmd" => master.check_command(value),
            "stop" => master.stop_signal(value.parse().expect("a signal's number")),
            "command" => {
                command = Some(value.to_owned());
                master
            }
            "thread" => {
                // A thread names itself, before it runs what it was given.
                let (runs, running) = std::sync::mpsc::channel();
                let stranger = move || {
                    runs.send(()).expect("a listener");
                    std::thread::park();
                };
                std::thread::Builder::new().name("stranger".into()).spawn(stranger).expect("a thread");
                running.recv().expect("a running thread");
                master
            }
            _ => panic!("unknown key {key}"),
        };
    }
    if tag == "misconfigured" {
        master = master.workers(0);
    } else if tag == "rebinds" {
        master = master.bind("fd://999");
    }
    if let Some(command) = command {
        return master.run_command(["/bin/sh", "-c", &command]);
    }
    master.run(|worker| {
        if tag.contains("unwell") || std::fs::read_to_string(&ill).is_ok_and(|text| text.contains("unwell")) {
            return Err(io::Error::other("unwell"));
        }
        if tag.contains("aborts") {
            std::process::abort();
        }
        if tag.contains("dawdles") || tag == "lives" {
            while !worker.draining() {
                std::thread::sleep(Duration::from_millis(10));
            }
            return Ok(());
        }
        match own_loop {
            true => poll_loop(worker, &tag),
            false => accept_loop(worker, &tag),
        }
    })?;
    println!("returned in {}", std::process::id());
    Ok(())
}

/// What follows `TAG:` at the end of the running image.
fn tag() -> String {
    let image = std::fs::read("/proc/self/exe").expect("the own image");
    let tail = &image[image.len() - 64..];
    let at = tail.windows(4).position(|word| word == b"TAG:").map_or(64, |at| at + 4);
    String::from_utf8_lossy(&tail[at..]).into_owned()
}

fn accept_loop(worker: &mut Worker, tag: &str) -> io::Result<()> {
    while let Some((mut stream, _peer)) = worker.accept()? {
        let _ = answer(&mut stream, worker, tag);
    }
    Ok(())
}

/// An event loop of one's own, as the documentation describes it; here it is as simple as possible: nothing is awaited,
/// for a test is patient, but every wake-up goes through the same steps.
fn poll_loop(worker: &mut Worker, tag: &str) -> io::Result<()> {
    let listeners: Vec<TcpListener> = worker
        .listeners()
        .iter()
        .map(|l| l.as_tcp().expect("a TCP listener").try_clone())
        .collect::<io::Result<_>>()?;
    loop {
        let draining = worker.draining();
        for listener in &listeners {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false)?;
                let _ = answer(&mut { stream }, worker, tag);
            }
        }
        if draining {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn answer<S: Read + Write + AsFd>(stream: &mut S, worker: &Worker, tag: &str) -> io::Result<()> {
    let mut request = [0; 4096];
    let n = stream.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..n]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (what, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let mut body = format!(
        "tag={tag} pid={} ppid={} slot={} gen={}\n",
        std::process::id(),
        std::os::unix::process::parent_id(),
        worker.slot(),
        worker.generation()
    );
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
    match what {
        "exit" => std::process::exit(rest.parse().unwrap_or(1)),
        "panic" => panic!("asked to"),
        // Until the test writes into a FIFO: a request that is being answered.
        "fifo" => body.push_str(&std::fs::read_to_string(format!("/{rest}"))?),
        // Never comes back, whatever it is told.
        "hang" => {
            stream.write_all(body.as_bytes())?;
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "fds" => list_fds(&mut body),
        "env" => std::env::vars().for_each(|(key, value)| body += &format!("{key}={value}\n")),
        // What a worker's own child sees.
        "child" => {
            let script = "for fd in /proc/self/fd/*; do echo \"${fd##*/} $(readlink $fd)\"; done; env; \
                          grep -E 'Sig(Blk|Ign)' /proc/self/status";
            let output = std::process::Command::new("sh").args(["-c", script]).output()?;
            body += &String::from_utf8_lossy(&output.stdout);
        }
        _ => {}
    }
    stream.write_all(body.as_bytes())?;
    stream.write_all(b"end\n")
}

fn list_fds(body: &mut String) {
    let mut fds: Vec<(u32, String)> = std::fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .flatten()
        .filter_map(|fd| Some((fd.file_name().to_str()?.parse().ok()?, std::fs::read_link(fd.path()).ok()?)))
        .map(|(fd, link)| (fd, link.to_string_lossy().into_owned()))
        .collect();
    fds.sort();
    for (fd, link) in fds {
        let _ = writeln!(body, "{fd} {link}");
    }
}

/// The sockets are where systemd's convention says.
fn plain() -> ! {
    let env = |key: &str| std::env::var(key).unwrap_or_default();
    assert_eq!(env("LISTEN_PID"), std::process::id().to_string(), "LISTEN_PID is this process");
    let text = std::env::args().nth(2).map(|path| std::fs::read_to_string(path).expect("the text"));
    match text.as_deref().map(str::trim) {
        Some("fails") => std::process::exit(7),
        Some("dawdles") => {}
        _ => notify(&env("NOTIFY_SOCKET")).expect("to notify"),
    }
    // The shell put the first socket here: `0<&3`.
    let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned().expect("standard input"));
    loop {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 4096];
        let n = stream.read(&mut request).unwrap_or(0);
        let path = String::from_utf8_lossy(&request[..n]).split(' ').nth(1).unwrap_or("/").to_owned();
        let mut body = format!("text={} pid={}", text.as_deref().unwrap_or_default().trim(), std::process::id());
        let _ = write!(body, " ppid={}", std::os::unix::process::parent_id());
        let _ = writeln!(body, " slot={} gen={}", env("REFORK_WORKER"), env("REFORK_GENERATION"));
        match path.as_str() {
            "/fds" => list_fds(&mut body),
            "/env" => std::env::vars().for_each(|(key, value)| body += &format!("{key}={value}\n")),
            "/exit" => std::process::exit(5),
            _ => {}
        }
        let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}end\n");
    }
}

/// sd_notify(3).
fn notify(name: &str) -> io::Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        let addr = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(b"STATUS=here\nREADY=1\n", &addr).map(drop);
    }
    socket.send_to(b"READY=1\n", name).map(drop)
}
