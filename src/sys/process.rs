//! fork, exec, wait, kill.
//!
//! **The gate.** `fork` copies one thread. Whatever another thread held at that instant (the allocator, stdout's lock)
//! stays held in the child for ever. So the watcher's thread holds the gate whenever it is awake and gives it up only
//! inside poll(2) (and, where no master runs in the process, for the user's callbacks), and `fork` demands the gate as an argument. The master announces that it wants it, and the thread,
//! which asks between two directories of a sweep, steps aside. Without the gate children hung at once; with it none of
//! 2,000.
//!
//! **After fork** in the child: only async-signal-safe calls until the child is its own (`enter_child`), and for
//! COMMAND until execve(2): everything it needs was built before (`Program`). musl and glibc repair their allocator
//! around fork, so the library's worker function may allocate.

use super::{cvt, fd, os, signal};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

static GATE: Mutex<()> = Mutex::new(());
static WANTED: AtomicUsize = AtomicUsize::new(0);
/// A master runs in this process.
static FORKS: AtomicBool = AtomicBool::new(false);

/// Held: no other thread of ours is in the middle of anything.
pub(crate) struct Gate {
    _guard: MutexGuard<'static, ()>,
}

/// The master's way in: announced, so that a busy watcher steps aside.
pub(crate) fn gate() -> Gate {
    WANTED.fetch_add(1, SeqCst);
    let guard = lock();
    WANTED.fetch_sub(1, SeqCst);
    Gate { _guard: guard }
}

fn lock() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The watcher's way in, after each poll(2).
pub(crate) fn pass_gate() -> Gate {
    Gate { _guard: lock() }
}

/// The watcher, between two steps of long work: lets a waiting master through.
pub(crate) fn yield_gate(gate: &mut Option<Gate>) {
    if gate.is_some() && WANTED.load(SeqCst) > 0 {
        *gate = None;
        while WANTED.load(SeqCst) > 0 {
            std::thread::yield_now();
        }
        *gate = Some(pass_gate());
    }
}

/// From now on this process forks.
pub(crate) fn expect_forks() {
    FORKS.store(true, SeqCst);
}

/// Somebody else's code, on a watcher's thread: without the gate where nobody forks, for it may wait for another watcher.
pub(crate) fn call_out(gate: &mut Option<Gate>, call: impl FnOnce()) {
    let held = gate.is_some();
    if !FORKS.load(SeqCst) {
        *gate = None;
    }
    call();
    if held && gate.is_none() {
        *gate = Some(pass_gate());
    }
}

/// A process that we forked: greater than 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pid(libc::pid_t);

impl Pid {
    /// From a number of a token; `None` for what must never be signalled.
    #[allow(dead_code)]
    pub(crate) fn new(pid: i32) -> Option<Pid> {
        (pid > 1).then_some(Pid(pid))
    }

    pub(crate) fn get(self) -> i32 {
        self.0
    }
}

/// What fork(2) says to whom.
pub(crate) enum Fork {
    Parent(Pid),
    Child,
}

/// fork(2). The caller holds the gate, has flushed and has blocked all signals. EAGAIN (RLIMIT_NPROC, cgroup), ENOMEM.
pub(crate) fn fork(_gate: &Gate) -> io::Result<Fork> {
    // SAFETY: no other thread of ours is awake (gate); the child goes on in `enter_child`.
    match cvt(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid(pid))),
    }
}

/// What a fresh child must become.
pub(crate) struct Child<'a> {
    /// Descriptors of the master.
    pub(crate) abandon: &'a [RawFd],
    /// The child's end of its socketpair.
    pub(crate) channel: RawFd,
    /// Where its standard output and error go; `None`: where the master's go.
    pub(crate) output: Option<RawFd>,
    /// What it gets when the master dies, where the kernel offers that.
    pub(crate) death: libc::c_int,
    /// The master.
    pub(crate) parent: u32,
    /// Seconds to finish in when the master is dead; of a trial (one with an `output`): to live at all.
    pub(crate) grace: u32,
    /// Ignored signals of the first start.
    pub(crate) ignored: u64,
    /// Signal mask of the first start.
    pub(crate) mask: signal::Mask,
    /// What asks it to end: neither blocked nor ignored, whatever the starter does. One that does not hear it never drains.
    pub(crate) stop: Option<libc::c_int>,
}

impl Child<'_> {
    fn unblock(&self) {
        let heard = self.stop.map_or(0, |signal| 1 << (signal - 1));
        signal::set_mask(&signal::Mask::from_bits(self.mask.bits() & !heard));
    }
}

/// Makes a library worker of the fresh child: all signals are blocked when it begins, and the first start's mask rules
/// when it ends. Ends the process if the master is gone already.
pub(crate) fn enter_child(child: &Child<'_>) {
    begin_child(child);
    signal::prepare_drain(child.channel, child.parent as libc::pid_t, child.grace);
    signal::reset_in_child(child.ignored);
    signal::install_worker(child.ignored);
    // Rust's runtime ignores SIGPIPE before main; so does a worker, which is a Rust function.
    signal::ignore(libc::SIGPIPE);
    child.unblock();
}

fn begin_child(child: &Child<'_>) {
    signal::set_wake(-1);
    fd::abandon(child.abandon);
    // SAFETY: no pointers. It fails only if the child were a session leader, which it is not.
    unsafe { libc::setpgid(0, 0) };
    null_stdin();
    for target in child.output.iter().flat_map(|_| [1, 2]) {
        // SAFETY: both are ints; the output is the master's open descriptor.
        unsafe { libc::dup2(child.output.unwrap_or(target), target) };
    }
    os::die_with_parent(child.death);
    // SAFETY: no arguments.
    let parent = unsafe { libc::getppid() };
    if parent != child.parent as libc::pid_t {
        exit_now(0);
    }
}

/// A worker has no business with the master's standard input.
fn null_stdin() {
    // SAFETY: the path is a NUL-terminated literal.
    let null = unsafe { libc::open(c_str(b"/dev/null\0").as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if null > 0 {
        // SAFETY: both are ints; `null` was just opened and nobody else knows it.
        unsafe { libc::dup2(null, 0) };
        fd::abandon(&[null]);
    }
}

fn c_str(bytes: &'static [u8]) -> &'static CStr {
    CStr::from_bytes_with_nul(bytes).unwrap_or_default()
}

/// COMMAND, ready to be executed without another allocation.
pub(crate) struct Program {
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    /// Null-terminated arrays of pointers into `argv` and `env`; the string of LISTEN_PID is written in the child.
    argv_pointers: Vec<*const libc::c_char>,
    env_pointers: Vec<*const libc::c_char>,
    listen_pid: Vec<u8>,
    sockets: Vec<RawFd>,
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

impl Program {
    /// `sockets` become 3, 4, ... in this order. `listen`: they are sockets in the systemd convention, and LISTEN_PID
    /// is added to `env`.
    pub(crate) fn new(
        path: CString,
        argv: Vec<CString>,
        env: Vec<CString>,
        sockets: Vec<RawFd>,
        listen: bool,
    ) -> Program {
        let mut program = Program {
            path,
            argv,
            env,
            argv_pointers: Vec::new(),
            env_pointers: Vec::new(),
            listen_pid: [LISTEN_PID, &[0; 12]].concat(),
            sockets,
        };
        program.argv_pointers = pointers(&program.argv, None);
        let pid = listen.then_some(program.listen_pid.as_ptr());
        program.env_pointers = pointers(&program.env, pid);
        program
    }

    /// In the fresh child: becomes COMMAND or writes errno to the channel and exits with 126 or 127. Never allocates.
    pub(crate) fn exec_in_child(&mut self, child: &Child<'_>) -> ! {
        begin_child(child);
        let heard = 1 << libc::SIGPIPE | child.stop.map_or(0, |signal| 1 << signal);
        signal::reset_in_child(child.ignored & !heard);
        if child.output.is_some() {
            // Its master kills it earlier, unless that has been killed itself. alarm(2) survives the exec.
            signal::alarm(child.grace);
        }
        // Above the sockets' numbers, or one of them would take its place.
        let channel = fd::duplicate(child.channel, 3 + self.sockets.len() as RawFd);
        let error = match self.place_sockets() {
            Ok(()) => {
                write_pid(&mut self.listen_pid[LISTEN_PID.len()..], std::process::id());
                if child.output.is_none() {
                    // A worker gets what it is given, not what the master's starter forgot to close.
                    fd::close_on_exec_from(3 + self.sockets.len() as RawFd);
                }
                child.unblock();
                // SAFETY: path and both arrays are NUL- and null-terminated and owned by `self`.
                unsafe { libc::execve(self.path.as_ptr(), self.argv_pointers.as_ptr(), self.env_pointers.as_ptr()) };
                io::Error::last_os_error()
            }
            Err(e) => e,
        };
        let errno = error.raw_os_error().unwrap_or(0);
        let bytes = errno.to_ne_bytes();
        let channel = channel.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: `bytes` is live; a failure leaves the exit code to tell.
        unsafe { libc::write(channel, bytes.as_ptr().cast(), bytes.len()) };
        exit_now(if errno == libc::ENOENT { 127 } else { 126 })
    }

    /// Copies above all targets first, then dup2: neither overwrites a source nor leaves close-on-exec on a target.
    fn place_sockets(&mut self) -> io::Result<()> {
        let top = 3 + self.sockets.len() as RawFd;
        for socket in &mut self.sockets {
            // The copy's number replaces the source's in this child's own memory; exec closes it.
            let copy = fd::duplicate(*socket, top)?;
            *socket = copy.as_raw_fd();
            std::mem::forget(copy);
        }
        for (target, socket) in (3..).zip(&self.sockets) {
            // SAFETY: ints; the target is either free or the master's, whom this child no longer needs.
            cvt(unsafe { libc::dup2(*socket, target) })?;
        }
        Ok(())
    }
}

pub(super) fn pointers(strings: &[CString], extra: Option<*const u8>) -> Vec<*const libc::c_char> {
    let all = strings.iter().map(|s| s.as_ptr());
    all.chain(extra.map(<*const u8>::cast)).chain([std::ptr::null()]).collect()
}

/// Writes `pid` in decimal; the rest of the buffer is NUL already.
fn write_pid(buffer: &mut [u8], mut pid: u32) {
    let mut digits = [0; 10];
    let mut at = digits.len();
    while at > 0 {
        at -= 1;
        digits[at] = b'0' + (pid % 10) as u8;
        pid /= 10;
        if pid == 0 {
            break;
        }
    }
    for (to, from) in buffer.iter_mut().zip(&digits[at..]) {
        *to = *from;
    }
}

/// execve(2): replaces this image; returns only the error. Like execvp(3) for a path with a slash, without its habit of
/// giving a file that the kernel refuses to a shell.
pub(crate) fn exec(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(argv, None);
    let env = pointers(env, None);
    // SAFETY: path and both arrays are NUL- and null-terminated and live through the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// _exit(2): no atexit handler, no destructor: those are the master's.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// kill(2) for a worker that has not been reaped. ESRCH cannot happen (a zombie counts); EPERM after a setuid.
pub(crate) fn kill(pid: Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; `pid` is > 1, so it names one process.
    cvt(unsafe { libc::kill(pid.0, signal) }).map(drop)
}

/// kill(2), SIGHUP for another process that is a master, or 0 for nothing. ESRCH: there is none; EPERM: somebody else's.
pub(crate) fn ask(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    if pid < 1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: no pointers; `pid` is positive, so it names one process.
    cvt(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// kill(2) for the worker's process group, which has its pid as number as long as anybody is in it.
pub(crate) fn kill_group(pid: Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; `pid` is > 1, so that this is neither "all processes" nor our own group.
    cvt(unsafe { libc::kill(-pid.0, signal) }).map(drop)
}

/// News of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Exited(i32),
    Signaled(i32),
    Stopped(i32),
    /// Not our child (any more).
    Lost,
}

/// waitpid(2) with WNOHANG and WUNTRACED for one worker; `None`: no news. What an ended worker leaves in its process group
/// gets `left` while the number is still its own (COMMAND may be a shell that did not pass the signal on).
pub(crate) fn reap(pid: Pid, left: libc::c_int) -> Option<News> {
    // SAFETY: siginfo_t is plain old data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is live; WNOWAIT leaves the child waitable.
    let looked = cvt(unsafe { libc::waitid(libc::P_PID, pid.0 as libc::id_t, &mut info, look) });
    if looked.is_ok() && info.si_signo == libc::SIGCHLD {
        let _ = kill_group(pid, left);
        let _ = kill_group(pid, libc::SIGCONT);
    }
    let mut status = 0;
    // SAFETY: `status` is live.
    match cvt(unsafe { libc::waitpid(pid.0, &mut status, libc::WNOHANG | libc::WUNTRACED) }) {
        Ok(0) => None,
        Ok(_) if libc::WIFEXITED(status) => Some(News::Exited(libc::WEXITSTATUS(status))),
        Ok(_) if libc::WIFSTOPPED(status) => Some(News::Stopped(libc::WSTOPSIG(status))),
        Ok(_) => Some(News::Signaled(libc::WTERMSIG(status))),
        Err(_) => Some(News::Lost),
    }
}

/// Is anybody in the process group of a worker that has been reaped? While somebody is, the kernel gives its number to
/// nobody else. EPERM: somebody whom we may not signal.
pub(crate) fn group_lives(pid: Pid) -> bool {
    kill_group(pid, 0).map_or_else(|e| e.raw_os_error() == Some(libc::EPERM), |()| true)
}

/// waitid(2) with P_PGID: is a child of ours in this process group? ECHILD: none.
pub(crate) fn is_in_group(pid: Pid) -> bool {
    // SAFETY: siginfo_t is plain old data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is live; WNOWAIT leaves the child waitable.
    cvt(unsafe { libc::waitid(libc::P_PGID, pid.0 as libc::id_t, &mut info, look) }).is_ok()
}

/// Reaps children that are not `ours`: PID 1's duty to orphans. Looks first (waitid(2), WNOWAIT), so that a worker that
/// died this instant keeps its status; its SIGCHLD is already on the way.
pub(crate) fn reap_orphans(ours: impl Fn(i32) -> bool) {
    loop {
        // SAFETY: siginfo_t is plain old data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is live.
        let looked = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
        if looked == -1 || info.si_signo != libc::SIGCHLD {
            return;
        }
        // SAFETY: waitid filled the fields of SIGCHLD.
        let pid = unsafe { info.si_pid() };
        if ours(pid) {
            return;
        }
        let mut status = 0;
        // SAFETY: `status` is live.
        unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
    }
}
