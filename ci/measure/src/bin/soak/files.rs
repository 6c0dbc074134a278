//! What there is to operate on, and the one operation that std lacks.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Real paths only: symlinks are not followed.
#[derive(Default)]
pub struct Found {
    pub files: Vec<PathBuf>,
    pub dirs: Vec<PathBuf>,
    pub links: Vec<PathBuf>,
}

pub fn find(dir: &Path, found: &mut Found) {
    found.dirs.push(dir.to_owned());
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&entry.path(), found),
            Ok(kind) if kind.is_symlink() => found.links.push(entry.path()),
            _ if entry.file_name() == "fence" => {}
            _ => found.files.push(entry.path()),
        }
    }
}

/// renameat2(2) with RENAME_EXCHANGE.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let [a, b] = [a, b].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (a, b) = (a?, b?);
    // SAFETY: two NUL-terminated strings that outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if done == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
