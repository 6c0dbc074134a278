//! Directories and files as the watcher sees them: listed and stated, with as few calls as the system allows.

use crate::plan::snapshot::{digest, State};
use crate::sys::Stat;
use std::ffi::OsStr;
#[cfg(all(target_os = "linux", not(refork_portable)))]
use std::ffi::{CStr, CString};
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

/// Calls with the path as a C string; no allocation for a path of usual length.
#[cfg(all(target_os = "linux", not(refork_portable)))]
pub(crate) fn with_c<T>(path: &[u8], call: impl FnOnce(&CStr) -> io::Result<T>) -> io::Result<T> {
    let nul = || io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a path");
    let mut buf = [0; 512];
    match buf.get_mut(..=path.len()) {
        Some(room) => {
            room[..path.len()].copy_from_slice(path);
            call(CStr::from_bytes_with_nul(room).map_err(|_| nul())?)
        }
        None => call(&CString::new(path).map_err(|_| nul())?),
    }
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
pub(crate) use os::{exhausted, link_counts, silent, silent_mounts};
pub(crate) use os::{stat, Dir};

#[cfg(all(target_os = "linux", not(refork_portable)))]
mod os {
    use super::super::records::Entries;
    use super::{shown, with_c, Kind};
    use crate::sys::{self, Stat};
    use std::ffi::CStr;
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};

    /// Room for some 500 entries: most directories are read with two calls, the second of which says that it was all.
    const ENTRIES: usize = 32 * 1024;

    pub(crate) fn stat(path: &[u8], follow: bool) -> io::Result<Stat> {
        with_c(path, |path| sys::os::stat_at(None, path, follow))
    }

    /// An open directory.
    pub(crate) struct Dir(OwnedFd);

    impl Dir {
        pub(crate) fn open(path: &[u8]) -> io::Result<Dir> {
            with_c(path, sys::os::open_dir).map(Dir)
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

    /// What is mounted of such file systems: mount point and type. Usually nothing.
    pub(crate) fn silent_mounts(mountinfo: &[u8]) -> Vec<(Vec<u8>, String)> {
        let known =
            |kind: &str| SILENT.iter().any(|(_, name)| kind == *name || kind == "fuseblk" || kind.starts_with("fuse."));
        let also = |kind: &str| kind.starts_with("nfs") || kind == "virtiofs" || kind == "prl_fs";
        let lines = mountinfo.split(|byte| *byte == b'\n');
        let mounts = lines.filter_map(|line| {
            // proc_pid_mountinfo(5): the fifth field is the mount point, the type comes after a lone dash.
            let mut words = line.split(|byte| *byte == b' ');
            let point = unescape(words.nth(4)?);
            let kind = String::from_utf8_lossy(words.skip_while(|word| word != b"-").nth(1)?).into_owned();
            (known(&kind) || also(&kind)).then_some((point, kind))
        });
        mounts.collect()
    }

    /// Spaces, tabs, newlines and backslashes are written as `\040` and so on.
    fn unescape(word: &[u8]) -> Vec<u8> {
        let (mut text, mut rest) = (Vec::new(), word);
        while let [first, tail @ ..] = rest {
            let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
            match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                Some(byte) => (text.push(byte), rest = &tail[3..]).1,
                None => (text.push(*first), rest = tail).1,
            }
        }
        text
    }

    #[cfg(test)]
    #[test]
    fn mounts_that_do_not_tell() {
        let text = b"22 1 0:20 / /sys rw - sysfs sysfs rw\n36 35 98:0 /m /mnt/a\\040b rw master:1 - fuse.sshfs h: rw\n\
                     40 1 0:3 / /n rw shared:2 - nfs4 s:/ rw\n23 22 0:5 / /f rw - fusectl fusectl rw\nbroken line - \n\
                     41 1 0:9 / /x rw - ext4 /dev/x rw\n";
        let points = silent_mounts(text).into_iter().map(|(point, kind)| (String::from_utf8(point).unwrap(), kind));
        let wanted = [("/mnt/a b", "fuse.sshfs"), ("/n", "nfs4")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(points.collect::<Vec<_>>(), wanted);
    }

    /// The name of the file system, if it is one that does not tell.
    pub(crate) fn silent(path: &[u8]) -> Option<&'static str> {
        let kind = with_c(path, sys::os::fs_type).ok()?;
        SILENT.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
    }

    /// Can link counts be relied on here?
    pub(crate) fn link_counts(path: &[u8]) -> bool {
        with_c(path, sys::os::fs_type).is_ok_and(|kind| COUNTED.contains(&kind))
    }

    /// Why inotify cannot watch this, with the limit's name and value.
    pub(crate) fn exhausted(path: &[u8], e: &io::Error) -> String {
        let limits = match e.raw_os_error() {
            Some(libc::ENOSPC) => ["fs.inotify.max_user_watches", "user.max_inotify_watches"],
            Some(libc::EMFILE) if path.is_empty() => ["fs.inotify.max_user_instances", "user.max_inotify_instances"],
            _ => ["", ""],
        };
        // In a user namespace the lower one counts. Neither can be read when it is descriptors that the process lacks.
        let values = limits.iter().filter_map(|limit| {
            let value = std::fs::read_to_string(format!("/proc/sys/{}", limit.replace('.', "/"))).ok()?;
            Some((value.trim().parse::<u64>().ok()?, limit))
        });
        let limit = values.min_by_key(|(value, _)| *value);
        let limit = limit.map(|(value, limit)| format!(", {limit} is {value}")).unwrap_or_default();
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

/// Why the directory to which this link leads is not watched. Asked of the root and of what is on another file system.
#[cfg(all(target_os = "linux", not(refork_portable)))]
pub(crate) fn refused_link(path: &[u8], target: &Stat) -> Option<&'static str> {
    let near = stat(path, false).is_ok_and(|link| link.dev == target.dev);
    let root = stat(b"/", true).is_ok_and(|root| (root.dev, root.ino) == (target.dev, target.ino));
    (root || !near).then(|| refused(Path::new(OsStr::from_bytes(path)))).flatten()
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
