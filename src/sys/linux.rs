//! Linux's own calls, and their answers to the questions that `portable.rs` answers by other means.

use super::{cvt, Stat};
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
    let ts = timeout.map(|t| libc::timespec { tv_sec: t.as_secs().min(1 << 30) as _, tv_nsec: t.subsec_nanos() as _ });
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

/// prctl(2) PR_SET_CHILD_SUBREAPER: orphans of our workers become our children, and their ends are told to us. Survives
/// exec, is not inherited.
pub(crate) fn inherit_orphans() {
    // SAFETY: no pointers; it cannot fail.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong) };
}

/// prctl(2) PR_GET_CHILD_SUBREAPER, or PID 1: orphans are ours to reap.
pub(crate) fn inherits_orphans() -> bool {
    let mut answer: libc::c_int = 0;
    let pointer: *mut libc::c_int = &mut answer;
    // SAFETY: `pointer` is valid for the one int that is written.
    unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, pointer) };
    answer != 0 || std::process::id() == 1
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC, by number. Async-signal-safe. False before Linux 5.11.
pub(super) fn close_range_on_exec(first: libc::c_int) -> bool {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no pointers.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    done == 0
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

/// open(2) of a directory, for `read_dir` and `stat_at`. ENOENT, ENOTDIR, EACCES, EMFILE.
pub(crate) fn open_dir(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    let fd = cvt(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// getdents64(2): records of the next entries, as many bytes as were written; 0 at the end. `watch::records` parses them.
pub(crate) fn read_dir(dir: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of one live slice.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// fstatat(2); `dir` is `None` for a path from the working directory. ENOENT, EACCES, ELOOP, ENOTDIR.
pub(crate) fn stat_at(dir: Option<BorrowedFd<'_>>, name: &CStr, follow: bool) -> io::Result<Stat> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: stat64 is plain old data.
    let mut stat: libc::stat64 = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is NUL-terminated, `stat` is live.
    cvt(unsafe { libc::fstatat64(dir, name.as_ptr(), &mut stat, flags) })?;
    Ok(Stat {
        mode: stat.st_mode,
        links: stat.st_nlink as u64,
        dev: stat.st_dev as u64,
        ino: stat.st_ino as u64,
        size: stat.st_size as u64,
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    })
}

/// statfs(2): the file system's magic number.
pub(crate) fn fs_type(path: &CStr) -> io::Result<u64> {
    // SAFETY: statfs is plain old data.
    let mut stat: libc::statfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, `stat` is live.
    cvt(unsafe { libc::statfs64(path.as_ptr(), &mut stat) })?;
    Ok(u64::from(stat.f_type as u32))
}
