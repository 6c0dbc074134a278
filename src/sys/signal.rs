//! Signals: one self-pipe for the master, one drain handler for the worker, masks, dispositions.
//!
//! The master's handler writes the signal's number into a pipe, the worker's ends the worker's drain descriptor; nothing
//! else happens in a handler (signal-safety(7)). Order and number of signals survive in the pipe: the second SIGTERM counts.

use super::{cvt, os};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};

/// What a master answers to.
pub(crate) const MASTER: [libc::c_int; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
];

/// Write end of the master's self-pipe, or -1.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// Signals that found the pipe full, as bits: they are not lost, only no longer counted.
static OVERFLOW: AtomicU32 = AtomicU32::new(0);
/// The worker's end of its socketpair, or -1; the master's pid; seconds of grace once the master is dead.
static DRAIN: AtomicI32 = AtomicI32::new(-1);
static PARENT: AtomicI32 = AtomicI32::new(0);
static GRACE: AtomicU32 = AtomicU32::new(0);
static DRAINING: AtomicBool = AtomicBool::new(false);

extern "C" fn on_master_signal(signal: libc::c_int) {
    let place = os::errno();
    // SAFETY: `place` is this thread's errno.
    let saved = unsafe { *place };
    wake(signal as u8);
    // SAFETY: as above.
    unsafe { *place = saved };
}

/// Puts one byte into the master's self-pipe: a signal's number, or 0 for "look at the watcher's flags". Async-signal-safe.
pub(crate) fn wake(byte: u8) {
    // SAFETY: the pointer is to one live byte; WAKE is -1 (EBADF) or a non-blocking socket that lives while it is set.
    let n = unsafe { libc::write(WAKE.load(SeqCst), (&byte as *const u8).cast(), 1) };
    if n != 1 && byte < 32 {
        OVERFLOW.fetch_or(1 << byte, SeqCst);
    }
}

/// Signals that did not fit into the pipe since the last call, as bits (bit 0: the watcher).
pub(crate) fn take_overflow() -> u32 {
    OVERFLOW.swap(0, SeqCst)
}

/// Where `wake` writes; -1 for nowhere.
pub(crate) fn set_wake(fd: RawFd) {
    WAKE.store(fd, SeqCst);
}

extern "C" fn on_drain(_: libc::c_int) {
    let place = os::errno();
    // SAFETY: `place` is this thread's errno.
    let saved = unsafe { *place };
    begin_drain();
    // SAFETY: as above.
    unsafe { *place = saved };
}

extern "C" fn on_ignored(_: libc::c_int) {}

/// Marks this worker as draining and makes its drain descriptor readable for good. Async-signal-safe. When the master is
/// dead an alarm(2) replaces its deadline.
pub(crate) fn begin_drain() {
    DRAINING.store(true, SeqCst);
    // SAFETY: no pointers; -1 is answered with EBADF.
    unsafe { libc::shutdown(DRAIN.load(SeqCst), libc::SHUT_RD) };
    if !parent_lives() {
        alarm(GRACE.load(SeqCst));
    }
}

/// alarm(2): SIGALRM, which ends a process that does not handle it, in so many seconds. Async-signal-safe.
pub(super) fn alarm(seconds: u32) {
    // SAFETY: no pointers; async-signal-safe.
    unsafe { libc::alarm(seconds) };
}

/// raise(3): with the signal blocked it stays pending, also across an exec.
pub(crate) fn raise(signal: libc::c_int) {
    // SAFETY: no pointers; a wrong number is answered with an error.
    unsafe { libc::raise(signal) };
}

/// Has SIGTERM been seen by this worker?
pub(crate) fn draining() -> bool {
    DRAINING.load(SeqCst)
}

/// getppid(2): does the process that forked this worker still live?
pub(crate) fn parent_lives() -> bool {
    // SAFETY: no arguments; cannot fail.
    let parent = unsafe { libc::getppid() };
    parent == PARENT.load(SeqCst)
}

/// Sets what the worker's drain handler needs; before it is installed.
pub(super) fn prepare_drain(drain: RawFd, parent: libc::pid_t, grace: u32) {
    DRAIN.store(drain, SeqCst);
    PARENT.store(parent, SeqCst);
    GRACE.store(grace.max(1), SeqCst);
    DRAINING.store(false, SeqCst);
}

type Handler = extern "C" fn(libc::c_int);

fn action(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: sigaction is plain old data; all zeroes is an empty mask, no flags and SIG_DFL.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    action
}

/// sigaction(2) with SA_RESTART; async-signal-safe. EINVAL: a number that libc keeps for itself, KILL or STOP.
fn set(signal: libc::c_int, action: &libc::sigaction) -> io::Result<libc::sigaction> {
    // SAFETY: sigaction is plain old data.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live structures; every handler installed here is async-signal-safe.
    cvt(unsafe { libc::sigaction(signal, action, &mut old) })?;
    Ok(old)
}

fn get(signal: libc::c_int) -> Option<libc::sighandler_t> {
    // SAFETY: sigaction is plain old data.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null action only asks.
    cvt(unsafe { libc::sigaction(signal, std::ptr::null(), &mut old) }).ok()?;
    Some(old.sa_sigaction)
}

/// Dispositions that were in force before `install`.
pub(crate) struct Saved(Vec<(libc::c_int, libc::sigaction)>);

/// Installs the master's handler for every signal of `MASTER`.
pub(crate) fn install() -> io::Result<Saved> {
    let ours = action(on_master_signal as Handler as libc::sighandler_t);
    let mut saved = Saved(Vec::with_capacity(MASTER.len()));
    for signal in MASTER {
        saved.0.push((signal, set(signal, &ours)?));
    }
    Ok(saved)
}

impl Drop for Saved {
    fn drop(&mut self) {
        for (signal, old) in &self.0 {
            let _ = set(*signal, old);
        }
    }
}

/// Signals that are ignored now, as bits (bit n: signal n). Handlers do not survive an exec, SIG_IGN does.
pub(crate) fn ignored() -> u64 {
    (1..32).filter(|s| get(*s) == Some(libc::SIG_IGN)).fold(0, |bits, s| bits | 1 << s)
}

/// In a fresh child: every handler goes, what was ignored at the first start is ignored again. Async-signal-safe.
/// SIGSEGV and SIGBUS keep std's stack-overflow report (an exec drops it anyway).
pub(super) fn reset_in_child(ignored: u64) {
    let default = action(libc::SIG_DFL);
    let ignore = action(libc::SIG_IGN);
    for signal in 1..65 {
        if signal == libc::SIGSEGV || signal == libc::SIGBUS {
            continue;
        }
        let wanted = if signal < 32 && ignored & 1 << signal != 0 { &ignore } else { &default };
        let _ = set(signal, wanted);
    }
}

/// The worker's handlers: SIGTERM drains; SIGUSR1, which the master passes on, is harmless until the user takes it.
pub(super) fn install_worker(ignored: u64) {
    let _ = set(libc::SIGTERM, &action(on_drain as Handler as libc::sighandler_t));
    if ignored & 1 << libc::SIGUSR1 == 0 {
        let _ = set(libc::SIGUSR1, &action(on_ignored as Handler as libc::sighandler_t));
    }
}

/// Ignored from now on; in a child only.
pub(super) fn ignore(signal: libc::c_int) {
    let _ = set(signal, &action(libc::SIG_IGN));
}

/// A set of blocked signals.
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

impl Mask {
    fn empty() -> Mask {
        // SAFETY: sigset_t is plain old data.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is live.
        unsafe { libc::sigemptyset(&mut set) };
        Mask(set)
    }

    /// As bits: bit n - 1 is signal n.
    pub(crate) fn bits(&self) -> u64 {
        (1..=64).fold(0, |bits, signal| {
            // SAFETY: the set is initialised; a wrong number is answered with -1.
            let member = unsafe { libc::sigismember(&self.0, signal) } == 1;
            bits | u64::from(member) << (signal - 1)
        })
    }

    /// The inverse of `bits`.
    pub(crate) fn from_bits(bits: u64) -> Mask {
        let mut mask = Mask::empty();
        for signal in (1..=64).filter(|s| bits & 1 << (s - 1) != 0) {
            // SAFETY: the set is initialised; a wrong number is answered with -1.
            unsafe { libc::sigaddset(&mut mask.0, signal) };
        }
        mask
    }
}

fn change_mask(how: libc::c_int, mask: &Mask) -> Mask {
    let mut old = Mask::empty();
    // SAFETY: both sets are initialised. The call cannot fail for a valid `how`.
    unsafe { libc::pthread_sigmask(how, &mask.0, &mut old.0) };
    old
}

/// pthread_sigmask(3): blocks every signal in this thread and returns what was blocked.
pub(crate) fn block_all() -> Mask {
    // SAFETY: sigset_t is plain old data.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is live.
    unsafe { libc::sigfillset(&mut set) };
    change_mask(libc::SIG_BLOCK, &Mask(set))
}

/// pthread_sigmask(3): exactly this mask.
pub(crate) fn set_mask(mask: &Mask) {
    change_mask(libc::SIG_SETMASK, mask);
}

/// The mask of this thread.
pub(crate) fn mask() -> Mask {
    change_mask(libc::SIG_BLOCK, &Mask::empty())
}

/// Runs `write` with SIGTTOU and SIGTTIN blocked: a background process that writes to its terminal is then not stopped,
/// and a handler of ours is not run for ever.
pub(crate) fn without_tty_stops<T>(write: impl FnOnce() -> T) -> T {
    let tty = Mask::from_bits(1 << (libc::SIGTTOU - 1) | 1 << (libc::SIGTTIN - 1));
    let old = change_mask(libc::SIG_BLOCK, &tty);
    let result = write();
    set_mask(&old);
    result
}
