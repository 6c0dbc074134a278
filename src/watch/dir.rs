//! Directories and files as the watcher sees them: listed and stated, with as few calls as the system allows.

use crate::plan::snapshot::{digest, State};
use crate::sys::Stat;
#[cfg(all(target_os = "linux", not(refork_portable)))]
use std::ffi::CString;
use std::ffi::OsStr;
#[cfg(all(target_os = "linux", not(refork_portable)))]
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a directory entry says of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    Link,
    /// A regular file, a socket, a pipe, a device.
    Other,
    /// The file system does not say.
    Unknown,
}

/// Appends `/name`; an empty path stays relative.
pub(crate) fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(all(target_os = "linux", not(refork_portable)))]
pub(crate) fn c_path(path: &[u8]) -> io::Result<CString> {
    CString::new(path).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a path"))
}

/// Everything that tells two versions of a file apart.
pub(crate) fn state(stat: &Stat) -> State {
    let times = [stat.mtime.0, stat.mtime.1, stat.ctime.0, stat.ctime.1].map(|field| field as u64);
    digest(&[stat.dev, stat.ino, stat.size, times[0], times[1], times[2], times[3]])
}

/// The kind of an entry, asked from the disk where the listing did not say.
#[cfg(all(target_os = "linux", not(refork_portable)))]
pub(crate) fn kind(path: &[u8], listed: Kind) -> Kind {
    if listed != Kind::Unknown {
        return listed;
    }
    match stat(path, false) {
        Ok(stat) if stat.is_dir() => Kind::Dir,
        Ok(stat) if stat.is_link() => Kind::Link,
        _ => Kind::Other,
    }
}

/// A path as a line shows it.
pub(crate) fn shown(path: &[u8]) -> String {
    crate::log::Shown(Path::new(OsStr::from_bytes(path))).to_string()
}

#[cfg(all(target_os = "linux", not(refork_portable)))]
pub(crate) use os::{exhausted, link_counts, silent};
pub(crate) use os::{stat, Dir};

#[cfg(all(target_os = "linux", not(refork_portable)))]
mod os {
    use super::super::records::Entries;
    use super::{c_path, shown, Kind};
    use crate::sys::{self, Stat};
    use std::ffi::CStr;
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};

    /// Room for some 500 entries: most directories are read with two calls, the second of which says that it was all.
    const ENTRIES: usize = 32 * 1024;

    pub(crate) fn stat(path: &[u8], follow: bool) -> io::Result<Stat> {
        sys::os::stat_at(None, &c_path(path)?, follow)
    }

    /// An open directory.
    pub(crate) struct Dir(OwnedFd);

    impl Dir {
        pub(crate) fn open(path: &[u8]) -> io::Result<Dir> {
            sys::os::open_dir(&c_path(path)?).map(Dir)
        }

        /// Each entry but `.` and `..`; `buf` is scratch memory.
        pub(crate) fn each(&self, buf: &mut Vec<u8>, each: &mut dyn FnMut(&[u8], Kind)) -> io::Result<()> {
            buf.resize(ENTRIES, 0);
            loop {
                let n = sys::os::read_dir(self.0.as_fd(), buf)?;
                if n == 0 {
                    return Ok(());
                }
                Entries(&buf[..n]).for_each(|(name, kind)| each(name, kind));
            }
        }

        /// What a name in it leads to, or the link itself.
        pub(crate) fn stat(&self, name: &[u8], follow: bool) -> io::Result<Stat> {
            // NAME_MAX and a NUL; a longer name does not exist.
            let mut buf = [0; 256];
            let room = buf.get_mut(..name.len()).filter(|room| room.len() < 256);
            room.ok_or(io::ErrorKind::NotFound)?.copy_from_slice(name);
            let name = CStr::from_bytes_until_nul(&buf).map_err(|_| io::ErrorKind::NotFound)?;
            sys::os::stat_at(Some(self.0.as_fd()), name, follow)
        }
    }

    /// File systems that accept watches and do not tell of what happens elsewhere: on the server, on the host.
    const SILENT: [(u64, &str); 12] = [
        (0x6969, "nfs"),
        (0x517b, "smb"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb3"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "fuse"),
        (0x786f_4256, "vboxsf"),
        (0x5346_414f, "afs"),
        (0x6b41_4653, "afs"),
        (0x00c3_6400, "ceph"),
        (0x7375_7245, "coda"),
        (0x5346_4846, "drvfs"),
    ];
    /// File systems on which a directory's link count is 2 plus its subdirectories: ext2 to ext4, xfs, tmpfs.
    const COUNTED: [u64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

    /// The name of the file system, if it is one that does not tell.
    pub(crate) fn silent(path: &[u8]) -> Option<&'static str> {
        let kind = sys::os::fs_type(&c_path(path).ok()?).ok()?;
        SILENT.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
    }

    /// Can link counts be relied on here?
    pub(crate) fn link_counts(path: &[u8]) -> bool {
        c_path(path).and_then(|path| sys::os::fs_type(&path)).is_ok_and(|kind| COUNTED.contains(&kind))
    }

    /// Why inotify cannot watch this, with the limit's name and value.
    pub(crate) fn exhausted(path: &[u8], e: &io::Error) -> String {
        let limit = match e.raw_os_error() {
            Some(libc::ENOSPC) => "fs.inotify.max_user_watches",
            Some(libc::EMFILE) if path.is_empty() => "fs.inotify.max_user_instances",
            _ => "",
        };
        let value = std::fs::read_to_string(format!("/proc/sys/{}", limit.replace('.', "/"))).unwrap_or_default();
        let limit = match limit {
            "" => String::new(),
            limit => format!(", {limit} is {}", value.trim()),
        };
        match path {
            [] => format!("inotify cannot be had ({e}{limit}): polled"),
            path => format!("inotify cannot watch {} ({e}{limit}): the rest is polled", shown(path)),
        }
    }
}

#[cfg(not(all(target_os = "linux", not(refork_portable))))]
mod os {
    use super::Kind;
    use crate::sys::Stat;
    use std::ffi::OsStr;
    use std::fs;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    pub(crate) fn stat(path: &[u8], follow: bool) -> io::Result<Stat> {
        at(Path::new(OsStr::from_bytes(path)), follow)
    }

    fn at(path: &Path, follow: bool) -> io::Result<Stat> {
        let meta = if follow { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
        Ok(Stat {
            mode: meta.mode(),
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// A directory.
    pub(crate) struct Dir(PathBuf);

    impl Dir {
        pub(crate) fn open(path: &[u8]) -> io::Result<Dir> {
            Ok(Dir(Path::new(OsStr::from_bytes(path)).to_owned()))
        }

        /// Each entry but `.` and `..`.
        pub(crate) fn each(&self, _buf: &mut Vec<u8>, each: &mut dyn FnMut(&[u8], Kind)) -> io::Result<()> {
            for entry in fs::read_dir(&self.0)? {
                let entry = entry?;
                let kind = match entry.file_type() {
                    Ok(kind) if kind.is_dir() => Kind::Dir,
                    Ok(kind) if kind.is_symlink() => Kind::Link,
                    Ok(_) => Kind::Other,
                    Err(_) => Kind::Unknown,
                };
                each(entry.file_name().as_bytes(), kind);
            }
            Ok(())
        }

        /// What a name in it leads to, or the link itself.
        pub(crate) fn stat(&self, name: &[u8], follow: bool) -> io::Result<Stat> {
            at(&self.0.join(OsStr::from_bytes(name)), follow)
        }
    }
}

/// Why a path is not watched at all: the whole system, or what the kernel makes up.
pub(crate) fn refused(path: &Path) -> Option<&'static str> {
    let real = std::fs::canonicalize(path).ok()?;
    match real.components().count() {
        1 => Some("the whole file system is too much; name a directory"),
        _ if real.starts_with("/proc") || real.starts_with("/sys") => {
            Some("the kernel's own files do not tell of changes")
        }
        _ => None,
    }
}
