//! inotify(7): the three calls. Records are read with read(2) and parsed by safe code in `watch`.

use super::cvt;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// inotify_init1(2), close-on-exec and non-blocking. EMFILE: fs.inotify.max_user_instances, or the process's own limit.
pub(crate) fn init() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// inotify_add_watch(2): the watch descriptor, the same one for the same inode. ENOSPC: fs.inotify.max_user_watches;
/// ENOENT, ENOTDIR (with IN_ONLYDIR), EACCES (no read permission).
pub(crate) fn add(fd: BorrowedFd<'_>, path: &CStr, mask: u32) -> io::Result<i32> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    cvt(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

/// inotify_rm_watch(2). EINVAL: the kernel has removed it already.
pub(crate) fn remove(fd: BorrowedFd<'_>, wd: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), wd as _) }).map(drop)
}
