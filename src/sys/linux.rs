//! Linux's own calls, and their answers to the questions that `portable.rs` answers by other means.

use super::cvt;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Where this thread's errno lives.
pub(super) fn errno() -> *mut libc::c_int {
    // SAFETY: no arguments; the answer is valid for the life of the thread.
    unsafe { libc::__errno_location() }
}

/// socket(2), close-on-exec.
pub(super) fn socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// ppoll(2): poll with a timeout in nanoseconds.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let ts = timeout
        .map(|t| libc::timespec { tv_sec: t.as_secs().min(1 << 30) as libc::time_t, tv_nsec: t.subsec_nanos() as _ });
    let pointer = ts.as_ref().map_or(std::ptr::null(), |ts| ts as *const libc::timespec);
    // SAFETY: `fds` is a live slice; `pointer` is null or points to `ts`; a null mask leaves the mask alone.
    cvt(unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, pointer, std::ptr::null()) }).map(drop)
}

/// getauxval(3) AT_EXECFN: the path that was given to execve(2).
pub(crate) fn exec_name() -> Option<OsString> {
    // SAFETY: no pointers in; the answer is 0 or the address of a string that lives as long as the process.
    let pointer = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, so the kernel's NUL-terminated copy at the top of the stack.
    let name = unsafe { CStr::from_ptr(pointer) };
    Some(OsStr::from_bytes(name.to_bytes()).to_owned())
}

/// gettid(2): the main thread's id is the process's.
pub(crate) fn is_main_thread() -> bool {
    // SAFETY: no arguments.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    tid == libc::c_long::from(std::process::id() as libc::pid_t)
}

/// prctl(2) PR_SET_PDEATHSIG: `signal` comes when the thread that forked us (the master's main thread) ends. Survives
/// exec. The caller must then ask once whether the parent lives, for it may have died before.
pub(super) fn die_with_parent(signal: libc::c_int) {
    // SAFETY: no pointers; async-signal-safe. It cannot fail for a valid signal.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) };
}

/// prctl(2) PR_GET_CHILD_SUBREAPER, or PID 1: orphans are ours to reap.
pub(crate) fn inherits_orphans() -> bool {
    let mut answer: libc::c_int = 0;
    let pointer: *mut libc::c_int = &mut answer;
    // SAFETY: `pointer` is valid for the one int that is written.
    unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, pointer) };
    answer != 0 || std::process::id() == 1
}

/// The image that this process runs, even when its file has been replaced: open or stat it, never read the link.
pub(crate) const SELF_IMAGE: Option<&str> = Some("/proc/self/exe");

/// execveat(2) with AT_EMPTY_PATH: executes the file behind a descriptor (O_PATH is enough), whatever its name is now.
/// By number: musl has no such function. Returns only the error; ENOSYS before Linux 3.19.
pub(crate) fn exec_fd(fd: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (super::process::pointers(argv, None), super::process::pointers(env, None));
    // SAFETY: the path is empty and NUL-terminated, both arrays are null-terminated and live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            b"\0".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// open(2) O_PATH, close-on-exec: the file is kept, even unlinked, and need not be readable.
pub(crate) fn open_image() -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open("/proc/self/exe");
    file.map(OwnedFd::from)
}
