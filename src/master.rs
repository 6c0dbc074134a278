//! The builder; what it builds runs in `service`.

mod service;
mod signals;
mod sockets;
mod watching;

use crate::error::{Error, Op, Result};
use crate::handoff::{self, Image, Inherited};
use crate::listener::{self, Listener, Want};
use crate::log::{self, Level, Sink};
use crate::sys;
use crate::sys::process::Program;
use crate::watch::Backend;
use crate::worker::Worker;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A socket that the caller makes.
type Make = Box<dyn FnOnce() -> io::Result<OwnedFd>>;

type Filter = Box<dyn Fn(&Path) -> bool + Send>;

/// What was asked to be listened on.
enum Ask {
    Addr { name: String, addr: String },
    Make { name: String, make: Make },
}

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

/// COMMAND.
struct Command {
    argv: Vec<OsString>,
    /// Found once, so that all workers run one file. `None`: a re-exec came when it was gone; each fork looks for it.
    path: Option<PathBuf>,
}

impl Command {
    /// Its file, if that can be executed.
    fn find(&self) -> Result<PathBuf> {
        let name = self.argv.first().ok_or_else(|| Error::config("", "COMMAND is empty"))?;
        let fail = |kind, why: &str| Error::new(Op::Command, name.to_string_lossy(), io::Error::new(kind, why));
        let known = self.path.clone();
        let found = known.or_else(|| handoff::search(name).map(|path| handoff::absolute(&path)));
        let path = found.filter(|path| path.exists());
        let path = path.ok_or_else(|| fail(io::ErrorKind::NotFound, "no such file, neither here nor in PATH"))?;
        handoff::executable(&path).map_err(|why| fail(io::ErrorKind::PermissionDenied, &why))?;
        Ok(path)
    }

    /// For a line of the log.
    fn name(&self) -> PathBuf {
        self.path.clone().or_else(|| self.argv.first().map(PathBuf::from)).unwrap_or_default()
    }

    /// Everything that one worker's exec needs.
    fn program(&self, slot: usize, generation: u64, listeners: &[Listener]) -> io::Result<Program> {
        let (slot, generation, count) = (slot.to_string(), generation.to_string(), listeners.len().to_string());
        let names: Vec<&str> =
            listeners.iter().map(|l| if l.name().is_empty() { "unknown" } else { l.name() }).collect();
        let names = names.join(":");
        let mut extra = vec![("REFORK_WORKER", slot.as_str()), ("REFORK_GENERATION", generation.as_str())];
        if !listeners.is_empty() {
            extra.extend([("LISTEN_FDS", count.as_str()), ("LISTEN_FDNAMES", names.as_str())]);
        }
        let argv = self.argv.iter().map(|arg| handoff::c_string(arg)).collect::<io::Result<Vec<_>>>()?;
        let sockets = listeners.iter().map(AsRawFd::as_raw_fd).collect();
        let path = self.path.clone().map_or_else(|| self.find(), Ok)?;
        Ok(Program::new(handoff::c_string(path.as_os_str())?, argv, handoff::environment(&extra), sockets))
    }
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
    shutdown_timeout: Duration,
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
    /// Takes the executable's path, the arguments, the working directory, the signal mask and what an earlier image left.
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
        let shutdown_timeout = Duration::from_secs(10);
        Master { inherited, image, mask, ignored, asks: Vec::new(), workers: 1, watch, shutdown_timeout }
    }

    /// Listens on an address; repeatable. None is allowed: a master of workers without sockets.
    ///
    /// `HOST:PORT`, `[V6]:PORT`, `:PORT` (all IPv4 and all IPv6 addresses: two sockets with one port; one family is enough),
    /// `unix:PATH[,mode=0660]`, `fd://N` (a listening socket inherited under that number). Port 0 lets the kernel choose.
    pub fn bind(self, addr: impl Into<String>) -> Master {
        self.bind_named("", addr)
    }

    /// As [`Master::bind`]; the name is [`crate::Listener::name`] in the worker, LISTEN_FDNAMES for a COMMAND, and by it and
    /// the address a socket is recognised after a reload. ASCII without `:`, `,` or spaces.
    pub fn bind_named(mut self, name: impl Into<String>, addr: impl Into<String>) -> Master {
        self.asks.push(Ask::Addr { name: name.into(), addr: addr.into() });
        self
    }

    /// Listens on a socket that the caller makes. `make` runs only if no socket of that name was inherited from the image
    /// before; its error ends [`Master::run`].
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

    /// Reloads when this file, or a source file somewhere in this directory, changes; repeatable. A path that does not exist
    /// yet is a warning, and watched for.
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

    /// A batch of changes is complete when nothing changed for `quiet` (default 50 ms), at the latest `cap` (1,600 ms) after its first.
    pub fn debounce(mut self, quiet: Duration, cap: Duration) -> Master {
        self.watch.debounce = (quiet, cap);
        self
    }

    /// Where changes come from; default [`Backend::Auto`].
    pub fn backend(mut self, backend: Backend) -> Master {
        self.watch.backend = backend;
        self
    }

    /// How long workers may finish what they are answering after SIGTERM; then SIGKILL. Default 10 s, at most 136 years.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Master {
        // A deadline is a sum: "for ever" must not overflow it.
        self.shutdown_timeout = timeout.min(Duration::from_secs(u32::MAX.into()));
        self
    }

    /// Takes the log's lines instead of stderr. A plain function: nothing to lock across a fork. It runs on the main thread,
    /// on the watcher's, and in workers.
    pub fn log(self, sink: Sink) -> Master {
        log::set_sink(sink);
        self
    }

    /// The least important lines still printed; default [`Level::Info`], or what `REFORK_LOG` says.
    pub fn log_level(self, level: Level) -> Master {
        log::log_level(level);
        self
    }

    /// Forks the workers, each of which runs `serve`, and supervises them until SIGTERM or SIGINT. Returns in the master when
    /// all is drained; never returns in a worker, whose exit code is 0, 1 if `serve` failed, 101 if it panicked.
    ///
    /// A reload replaces this process's image: the executable runs `main` again, with the same pid, and adopts the sockets here.
    ///
    /// # Errors
    ///
    /// A value that makes no sense, not the main thread, an address that cannot be bound or a socket that cannot be made, a
    /// path that cannot be watched; and, at the first start without a watcher, workers that die before they are ready five
    /// times in a row. Nothing is left behind: sockets are closed, signal handlers are what they were. Once the service
    /// runs, trouble is a line in the log.
    pub fn run<F>(self, mut serve: F) -> Result<()>
    where
        F: FnMut(&mut Worker) -> io::Result<()>,
    {
        self.supervise(Job::Serve(&mut serve))
    }

    /// As [`Master::run`], with workers that execute a program: `argv[0]` (found with PATH) with these arguments, and the
    /// sockets at descriptors 3, 4, ... in the systemd convention: `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`; and
    /// `REFORK_WORKER` (the slot), `REFORK_GENERATION`.
    ///
    /// The code lives in the program: a reload starts a new generation of it without a re-exec of this process, except after
    /// SIGUSR2 or when this process's own executable has changed. The program's file is watched too when anything is.
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
        let wants = self.check()?;
        service::run(self, wants, job)
    }

    /// Everything that can be known to be wrong before anything is done. One entry per ask; none for a closure.
    fn check(&self) -> Result<Vec<Vec<Want>>> {
        if !(1..=65_535).contains(&self.workers) {
            return Err(Error::config(self.workers.to_string(), "is not a number of workers from 1 to 65535"));
        }
        let (quiet, cap) = self.watch.debounce;
        if quiet > cap {
            return Err(Error::config("debounce", "the cap is shorter than the quiet time"));
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
