//! The builder; what it builds runs in `service`.

mod ask;
mod command;
mod options;
mod service;
mod signals;
mod sockets;
mod watching;

use crate::error::{Error, Result};
use crate::handoff::{Image, Inherited};
use crate::listener::{self, Listener, Want};
use crate::log::{self, Level, Sink};
use crate::sys;
use crate::watch::Backend;
use crate::worker::Worker;
pub use ask::{exists, reload};
use command::Command;
pub use options::{Handover, Ready};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A socket that the caller makes.
type Make = Box<dyn FnOnce() -> io::Result<OwnedFd>>;

/// What was asked to be listened on.
enum Ask {
    Addr { name: String, addr: String },
    Make { name: String, make: Make },
}

/// Decides which files count.
type Filter = Box<dyn Fn(&Path) -> bool + Send>;

/// What is watched, and how.
struct Watch {
    paths: Vec<PathBuf>,
    executable: bool,
    include: Vec<String>,
    exclude: Vec<String>,
    filter: Option<Filter>,
    debounce: (Duration, Duration),
    backend: Backend,
}

/// What the workers run.
enum Job<'a> {
    Serve(&'a mut dyn FnMut(&mut Worker) -> io::Result<()>),
    Command(Command),
}

/// A master process: binds sockets, forks workers that inherit them, watches files, reloads.
///
/// Built by value; a value that makes no sense is reported by [`Master::run`], before anything is bound. `run` must be
/// called on the main thread, with no other thread running: it forks.
///
/// ```no_run
/// use refork::{Master, Worker};
/// use std::io::Write;
///
/// fn main() -> refork::Result<()> {
///     Master::new().bind("127.0.0.1:8000").workers(4).watch_executable().run(|worker: &mut Worker| {
///         while let Some((mut stream, _peer)) = worker.accept()? {
///             let _ = stream.write_all(b"hello\n");
///         }
///         Ok(())
///     })
/// }
/// ```
pub struct Master {
    inherited: Inherited,
    image: Image,
    /// Signal mask and ignored signals of the first start.
    mask: sys::signal::Mask,
    ignored: u64,
    asks: Vec<Ask>,
    workers: usize,
    watch: Watch,
    handover: Handover,
    check: bool,
    check_command: Option<OsString>,
    rollback: bool,
    ready: Ready,
    stop_signal: i32,
    shutdown_timeout: Duration,
    boot_timeout: Duration,
    check_timeout: Duration,
    status_file: Option<PathBuf>,
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Master")
            .field("image", &self.image.path)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

impl Default for Master {
    fn default() -> Master {
        Master::new()
    }
}

impl Master {
    /// Takes the executable's path, the arguments, the working directory, the signal mask and what an earlier image
    /// left.
    ///
    /// Call it first in `main`: before the working directory changes and before any thread starts, for it removes
    /// `BB_INHERIT_FDS` and `REFORK_HANDOFF` from the environment. After a reload all signals stay blocked until
    /// [`Master::run`], so that none is lost; nothing supervises in between.
    pub fn new() -> Master {
        let inherited = Inherited::take();
        let image = Image::find(inherited.token.as_ref());
        let first = inherited.token.as_ref().map(|token| (sys::signal::Mask::from_bits(token.mask), token.ignored));
        let (mask, ignored) = first.unwrap_or_else(|| (sys::signal::mask(), sys::signal::ignored()));
        let watch = Watch {
            paths: Vec::new(),
            executable: false,
            include: Vec::new(),
            exclude: Vec::new(),
            filter: None,
            debounce: (Duration::from_millis(50), Duration::from_millis(1600)),
            backend: Backend::Auto,
        };
        Master {
            inherited,
            image,
            mask,
            ignored,
            asks: Vec::new(),
            workers: 1,
            watch,
            handover: Handover::DrainFirst,
            check: true,
            check_command: None,
            rollback: true,
            ready: Ready::After(Duration::from_secs(1)),
            stop_signal: libc::SIGTERM,
            shutdown_timeout: Duration::from_secs(10),
            boot_timeout: Duration::from_secs(30),
            check_timeout: Duration::from_secs(5),
            status_file: None,
        }
    }

    /// Listens on an address; repeatable. None is allowed: a master of workers without sockets.
    ///
    /// `HOST:PORT`, `[V6]:PORT`, `:PORT` (all IPv4 and all IPv6 addresses: two sockets with one port; one family is
    /// enough), `unix:PATH[,mode=0660]`, `fd://N` (a listening socket inherited under that number). Port 0 lets the
    /// kernel choose.
    pub fn bind(self, addr: impl Into<String>) -> Master {
        self.bind_named("", addr)
    }

    /// As [`Master::bind`]; the name is [`crate::Listener::name`] in the worker, LISTEN_FDNAMES for a COMMAND, and by
    /// it and the address a socket is recognised after a reload. ASCII without `:`, `,` or spaces.
    pub fn bind_named(mut self, name: impl Into<String>, addr: impl Into<String>) -> Master {
        self.asks.push(Ask::Addr { name: name.into(), addr: addr.into() });
        self
    }

    /// Listens on a socket that the caller makes. `make` runs only if no socket of that name was inherited from the
    /// image before; its error ends [`Master::run`].
    pub fn listen_with<F, L>(mut self, name: impl Into<String>, make: F) -> Master
    where
        F: FnOnce() -> io::Result<L> + 'static,
        L: Into<OwnedFd>,
    {
        let make: Make = Box::new(|| make().map(L::into));
        self.asks.push(Ask::Make { name: name.into(), make });
        self
    }

    /// How many workers; default 1, at least 1, at most 65,535. SIGTTIN and SIGTTOU change it while the service runs.
    pub fn workers(mut self, n: usize) -> Master {
        self.workers = n;
        self
    }

    /// Reloads when this file, or a source file somewhere in this directory, changes; repeatable. A path that does not
    /// exist yet is a warning, and watched for.
    pub fn watch(mut self, path: impl Into<PathBuf>) -> Master {
        self.watch.paths.push(path.into());
        self
    }

    /// Reloads when the running executable's file is replaced.
    pub fn watch_executable(mut self) -> Master {
        self.watch.executable = true;
        self
    }

    /// Counts files that match this glob (`*`, `?`, `**`) instead of the default suffixes; repeatable.
    pub fn include(mut self, glob: impl Into<String>) -> Master {
        self.watch.include.push(glob.into());
        self
    }

    /// Never counts what matches this glob, whatever includes it; repeatable.
    pub fn exclude(mut self, glob: impl Into<String>) -> Master {
        self.watch.exclude.push(glob.into());
        self
    }

    /// Decides itself which files count, instead of the built-in filter. Called on the watcher's thread.
    pub fn watch_filter(mut self, filter: impl Fn(&Path) -> bool + Send + 'static) -> Master {
        self.watch.filter = Some(Box::new(filter));
        self
    }

    /// A batch of changes is complete when nothing changed for `quiet` (default 50 ms), at the latest `cap` (1,600 ms)
    /// after its first.
    pub fn debounce(mut self, quiet: Duration, cap: Duration) -> Master {
        self.watch.debounce = (quiet, cap);
        self
    }

    /// Where changes come from; default [`Backend::Auto`].
    pub fn backend(mut self, backend: Backend) -> Master {
        self.watch.backend = backend;
        self
    }

    /// In which order a reload changes the generations; default [`Handover::DrainFirst`].
    pub fn handover(mut self, handover: Handover) -> Master {
        self.handover = handover;
        self
    }

    /// Tries the new executable before it replaces the running one; default true. It is started once as a child without
    /// sockets, runs `main` up to [`Master::run`], and ends there, before anything is bound and before
    /// [`Master::listen_with`] is asked. If it does not get there in [`Master::check_timeout`], the reload is dropped, what it
    /// printed is in the log, and the running code serves on.
    ///
    /// What `main` does before `run` is thus done twice, the first time while the old code runs.
    pub fn check(mut self, check: bool) -> Master {
        self.check = check;
        self
    }

    /// A shell command (`sh -c`) that decides whether a new generation of a program ([`Master::run_command`]) may
    /// start: exit code 0 within [`Master::check_timeout`]; else the reload is dropped and the running code serves on.
    /// Not asked at the first start. Default: none.
    pub fn check_command(mut self, command: impl Into<OsString>) -> Master {
        self.check_command = Some(command.into());
        self
    }

    /// Goes back to the last good executable when the workers of a new one do not become ready; default true. That file
    /// is kept open until the new generation is ready, even if it is deleted. With false, or where the kernel cannot do
    /// it (elsewhere than on Linux), old workers serve on with [`Handover::Overlap`], and with [`Handover::DrainFirst`]
    /// the new ones are tried again and again until the next change.
    pub fn rollback(mut self, rollback: bool) -> Master {
        self.rollback = rollback;
        self
    }

    /// When a worker of [`Master::run_command`] counts as ready; default: after one second.
    pub fn ready(mut self, ready: Ready) -> Master {
        self.ready = match ready {
            Ready::After(time) => Ready::After(bounded(time)),
            Ready::Notify => Ready::Notify,
        };
        self
    }

    /// The signal's number that asks a worker of [`Master::run_command`] to drain; default SIGTERM (15).
    pub fn stop_signal(mut self, signal: i32) -> Master {
        self.stop_signal = signal;
        self
    }

    /// How long workers may finish what they are answering after SIGTERM; then SIGKILL. Default 10 s, at most 136
    /// years.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Master {
        self.shutdown_timeout = bounded(timeout);
        self
    }

    /// How long the workers of a new generation may take until all are ready; then it has failed: see
    /// [`Master::rollback`]. Default 30 s, at most 136 years.
    pub fn boot_timeout(mut self, timeout: Duration) -> Master {
        self.boot_timeout = bounded(timeout);
        self
    }

    /// How long [`Master::check`] and [`Master::check_command`] may take, together; default 5 s, at most 136 years.
    pub fn check_timeout(mut self, timeout: Duration) -> Master {
        self.check_timeout = bounded(timeout);
        self
    }

    /// Keeps a file that says what the service is doing, as `key='value'` lines that a shell can source: `pid`,
    /// `start_time` (field 22 of /proc/PID/stat, where there is one), `generation`, `reload` (the number of the last),
    /// `state` (`starting`, `serving`, `reloading`, `waiting`, `stopping`, `stopped`), `workers`
    /// (`slot:pid:generation:state`, separated by spaces), `done` (the last reload that has ended), `last_error` (why it
    /// had no effect; empty: it had), `image`.
    ///
    /// Replaced atomically, mode 0644, at every change of these; never written through a symbolic link. One that cannot
    /// be written is a warning. It stays after the end, with `state='stopped'`. Default: none.
    pub fn status_file(mut self, path: impl Into<PathBuf>) -> Master {
        self.status_file = Some(path.into());
        self
    }

    /// Takes the log's lines instead of stderr. A plain function: nothing to lock across a fork. It runs on the main
    /// thread, on the watcher's, and in workers.
    pub fn log(self, sink: Sink) -> Master {
        log::set_sink(sink);
        self
    }

    /// The least important lines still printed; default [`Level::Info`], or what `REFORK_LOG` says.
    pub fn log_level(self, level: Level) -> Master {
        log::log_level(level);
        self
    }

    /// Forks the workers, each of which runs `serve`, and supervises them until SIGTERM or SIGINT. Returns in the
    /// master when all is drained; never returns in a worker, whose exit code is 0, 1 if `serve` failed, 101 if it
    /// panicked.
    ///
    /// A reload replaces this process's image: the executable runs `main` again, with the same pid, and adopts the
    /// sockets here.
    ///
    /// # Errors
    ///
    /// A value that makes no sense, not the main thread, an address that cannot be bound or a socket that cannot be
    /// made, a path that cannot be watched; and, at the first start without a watcher, workers that die before they are
    /// ready five times in a row. Nothing is left behind: sockets are closed, signal handlers are what they were. Once
    /// the service runs, trouble is a line in the log.
    pub fn run<F>(self, mut serve: F) -> Result<()>
    where
        F: FnMut(&mut Worker) -> io::Result<()>,
    {
        self.supervise(Job::Serve(&mut serve))
    }

    /// As [`Master::run`], with workers that execute a program: `argv[0]` (found with PATH) with these arguments, and
    /// the sockets at descriptors 3, 4, ... in the systemd convention: `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`;
    /// and `REFORK_WORKER` (the slot), `REFORK_GENERATION`.
    ///
    /// The code lives in the program: a reload starts a new generation of it without a re-exec of this process, except
    /// after SIGUSR2 or when this process's own executable has changed. The program's file is watched too when anything
    /// is.
    ///
    /// # Errors
    ///
    /// As [`Master::run`]; and the program cannot be found or executed.
    pub fn run_command<S: Into<OsString>>(self, argv: impl IntoIterator<Item = S>) -> Result<()> {
        let mut command = Command { argv: argv.into_iter().map(S::into).collect(), path: None };
        match command.find() {
            Ok(path) => command.path = Some(path),
            // After a re-exec the service is worth more: it goes on trying.
            Err(e) if self.inherited.token.is_some() && !command.argv.is_empty() => log::warn(e.to_string()),
            Err(e) => return Err(e),
        }
        self.supervise(Job::Command(command))
    }

    fn supervise(self, job: Job<'_>) -> Result<()> {
        if !sys::os::is_main_thread() {
            return Err(Error::config("run", "must be called on the main thread"));
        }
        let wants = match self.validate() {
            Ok(wants) => wants,
            Err(e) if self.inherited.check.is_some() => return Err(e),
            Err(e) => return Err(self.give_back(e)),
        };
        if let Some((fd, nonce)) = self.inherited.check {
            // This image is only tried: it got here, and that is the answer.
            let _ = io::Write::write_all(&mut std::fs::File::from(fd), nonce.as_bytes());
            sys::process::exit_now(0);
        }
        service::run(self, wants, job)
    }

    /// An image that cannot begin to serve gives the service back to the one before, if that is possible.
    fn give_back(&self, why: Error) -> Error {
        let listeners: Vec<&Listener> = self.inherited.listeners.iter().collect();
        match &self.inherited.token {
            Some(token) => service::give_back(&self.image, token, &listeners, why),
            None => why,
        }
    }

    /// Everything that can be known to be wrong before anything is done. One entry per ask; none for a closure.
    fn validate(&self) -> Result<Vec<Vec<Want>>> {
        if !(1..=65_535).contains(&self.workers) {
            return Err(Error::config(self.workers.to_string(), "is not a number of workers from 1 to 65535"));
        }
        let (quiet, cap) = self.watch.debounce;
        if quiet > cap {
            return Err(Error::config("debounce", "the cap is shorter than the quiet time"));
        }
        if !(1..=64).contains(&self.stop_signal) {
            return Err(Error::config(self.stop_signal.to_string(), "is not a signal"));
        }
        let mut seen: Vec<String> = Vec::new();
        let mut wants = Vec::new();
        for ask in &self.asks {
            let (name, parsed) = match ask {
                Ask::Addr { name, addr } => (name, listener::parse(addr)?),
                Ask::Make { name, .. } => (name, Vec::new()),
            };
            let bad = |c: char| !c.is_ascii_graphic() || c == ':' || c == ',';
            if name.contains(bad) || name.len() > 255 {
                return Err(Error::config(name, "a name is ASCII without `:`, `,` or spaces, at most 255 bytes"));
            }
            let keys: Vec<String> = match ask {
                Ask::Make { name, .. } => vec![format!("name {name}")],
                // Several sockets with a port of the kernel's choice are not the same socket.
                Ask::Addr { .. } => parsed.iter().filter(|want| !want.any_port()).map(Want::request).collect(),
            };
            if let Some(twice) = keys.iter().find(|key| seen.contains(key)) {
                return Err(Error::config(twice, "is given twice"));
            }
            seen.extend(keys);
            wants.push(parsed);
        }
        Ok(wants)
    }
}

/// A deadline is a sum: "for ever" must not overflow it.
fn bounded(time: Duration) -> Duration {
    time.min(Duration::from_secs(u32::MAX.into()))
}
