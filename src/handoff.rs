//! Descriptors across exec: how they leave this image and how they come back.

use crate::error::{Error, Op};
use crate::listener::Listener;
use crate::log;
use crate::plan::snapshot::{digest, State};
use crate::plan::token::{Origin, Token};
use crate::sys;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Comma-separated numbers of the listening sockets.
const FDS: &str = "BB_INHERIT_FDS";
/// Everything else that one image tells the next: see `plan::token`.
const HANDOFF: &str = "REFORK_HANDOFF";

/// What was adopted by hand, for the `Master` that may be built later: numbers and identities, not owners. A listener that
/// its owner has dropped since is simply not found again.
static BY_HAND: Mutex<Option<ByHand>> = Mutex::new(None);

type ByHand = (Vec<(RawFd, Identity)>, Option<Token>);

/// Device and inode.
type Identity = (u64, u64);

fn identity(file: &std::fs::File) -> Option<Identity> {
    file.metadata().ok().map(|m| (m.dev(), m.ino()))
}

/// Replaces this process's image by its own executable, with `argv`, and lets `sockets` stay open across it.
///
/// Clears close-on-exec (`FD_CLOEXEC`, fcntl(2)) on each socket, sets `BB_INHERIT_FDS` to their comma-separated numbers in
/// the environment of the new image, and executes the executable by its absolute path, as execvp(3) does, except that a
/// file which the kernel refuses is never handed to a shell. Does not return on success: everything of the old image is gone.
///
/// `argv` defaults to this process's own arguments. Element 0 is always the executable: whatever is given there is replaced.
/// The caller must have ended whatever other processes hold copies of the sockets. A [`crate::Master`] does all of this by itself.
///
/// # Errors
///
/// The only thing it returns: an empty `argv`, a NUL in an argument, no listening socket among `sockets` (one that is closed
/// or does not listen is skipped with a warning), or what execve(2) said. Everything is then as it was before the call.
pub fn exec_self_with_sockets<S: AsRawFd>(sockets: &[S], argv: Option<&[OsString]>) -> Error {
    let image = Image::find(None);
    let mut live = Vec::new();
    for fd in sockets.iter().map(AsRawFd::as_raw_fd).filter(|fd| !live.contains(fd)).collect::<Vec<_>>() {
        match sys::net::is_listening(fd) {
            _ if fd < 3 => log::warn(format!("fd {fd} is a standard stream: not handed over")),
            Ok(true) if !live.contains(&fd) => live.push(fd),
            Ok(true) => {}
            Ok(false) => log::warn(format!("fd {fd} is not a listening socket: not handed over")),
            Err(e) => log::warn(format!("fd {fd}: {e}: not handed over")),
        }
    }
    let shown = image.path.display().to_string();
    if live.is_empty() {
        return Error::new(
            Op::Exec,
            shown,
            io::Error::new(io::ErrorKind::InvalidInput, "no listening socket to hand over"),
        );
    }
    let argv = argv.map_or_else(|| image.argv.clone(), <[OsString]>::to_vec);
    let _gate = sys::process::gate();
    Error::new(Op::Exec, shown, image.replace(&argv, &live, None))
}

/// Takes the listening sockets that an earlier image of this process left open: the other half of
/// [`exec_self_with_sockets`].
///
/// `None` when `BB_INHERIT_FDS` is unset, blank, malformed or names no listening socket. What is valid is close-on-exec
/// again; what is not is refused with a line and never closed, for it is not ours. The variable is removed in every case, so
/// that no child sees it, and a second call finds nothing. A [`crate::Master`] that is built afterwards takes these sockets
/// for the addresses it is asked to bind.
///
/// Call it before any thread is started: it changes the environment.
pub fn adopt_inherited_sockets() -> Option<Vec<Listener>> {
    let inherited = Inherited::read();
    if inherited.listeners.is_empty() {
        return None;
    }
    let mut seen = Vec::new();
    for listener in &inherited.listeners {
        let fd = listener.as_raw_fd();
        let copy = sys::fd::duplicate(fd, 3).map(std::fs::File::from);
        seen.extend(copy.ok().and_then(|file| Some((fd, identity(&file)?))));
    }
    *BY_HAND.lock().unwrap_or_else(PoisonError::into_inner) = Some((seen, inherited.token));
    Some(inherited.listeners)
}

/// What came across the exec.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) token: Option<Token>,
}

impl Inherited {
    /// Everything there is for a master: its own earlier image's sockets, those adopted by hand, those of a service manager.
    pub(crate) fn take() -> Inherited {
        let mut inherited = Inherited::read();
        let by_hand = BY_HAND.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((fds, token)) = by_hand {
            for (fd, was) in fds {
                let same = |file: &std::fs::File| identity(file) == Some(was);
                let Ok(file) = sys::fd::duplicate(fd, 3).map(std::fs::File::from) else { continue };
                if let Some(listener) = same(&file).then(|| Listener::from_fd(file.into(), Origin::Given)) {
                    inherited.listeners.extend(listener.ok().map(|mut l| {
                        let carried = token.iter().flat_map(|t| &t.listeners).find(|c| c.fd == fd);
                        carried.into_iter().for_each(|carried| l.recall(carried));
                        l
                    }));
                }
            }
            inherited.token = inherited.token.or(token);
        }
        inherited.activated();
        inherited
    }

    /// `BB_INHERIT_FDS` and `REFORK_HANDOFF`: read once, removed at once.
    fn read() -> Inherited {
        let fds = sys::take_var(FDS);
        let token = sys::take_var(HANDOFF).and_then(|text| {
            let token = text.to_str().and_then(Token::decode);
            if token.is_none() {
                log::warn(format!(
                    "{HANDOFF} is malformed or of another version: ignored, only the sockets are adopted"
                ));
            }
            token
        });
        let mut inherited = Inherited::default();
        if token.as_ref().is_some_and(|token| token.pid != std::process::id()) {
            log::warn(format!("{HANDOFF} is meant for another process: ignored, with {FDS}"));
            return inherited;
        }
        let fds = fds.unwrap_or_default();
        for word in fds.to_string_lossy().split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let Some(fd) = word.parse::<RawFd>().ok().filter(|fd| *fd >= 0) else {
                log::warn(format!("{FDS}: `{}` is not a descriptor's number: ignored", word.escape_default()));
                continue;
            };
            let carried = token.iter().flat_map(|token| &token.listeners).find(|carried| carried.fd == fd);
            inherited.adopt(FDS, fd, carried.map_or(Origin::Given, |carried| carried.origin));
            if let (Some(carried), Some(listener)) = (carried, inherited.listeners.last_mut()) {
                if listener.as_raw_fd() == fd {
                    listener.recall(carried);
                }
            }
        }
        inherited.token = token;
        inherited
    }

    fn adopt(&mut self, variable: &str, fd: RawFd, origin: Origin) {
        let adopted = match self.listeners.iter().any(|listener| listener.as_raw_fd() == fd) {
            true => Err(io::Error::other("is named twice")),
            false => sys::fd::adopt(fd).and_then(|fd| Listener::from_fd(fd, origin)),
        };
        match adopted {
            Ok(listener) => self.listeners.push(listener),
            Err(e) => log::warn(format!("{variable}: fd {fd}: {e}: not adopted")),
        }
    }

    /// sd_listen_fds(3): LISTEN_FDS sockets from 3 on, if LISTEN_PID is this process.
    fn activated(&mut self) {
        let pid = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
        if pid != Some(std::process::id()) {
            return;
        }
        sys::take_var("LISTEN_PID");
        let count = sys::take_var("LISTEN_FDS").and_then(|n| n.to_str()?.parse::<RawFd>().ok()).unwrap_or(0);
        let names = sys::take_var("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.to_string_lossy().into_owned();
        let mut names = names.split(':');
        for fd in 3..3 + count.clamp(0, 1024) {
            let before = self.listeners.len();
            self.adopt("LISTEN_FDS", fd, Origin::Activated);
            let name = names.next().unwrap_or_default();
            if let Some(listener) = self.listeners.get_mut(before) {
                listener.set_name(if name == "unknown" { "" } else { name });
            }
        }
    }
}

/// The executable that a re-exec will execute, taken once: later /proc/self/exe names a deleted file.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) argv: Vec<OsString>,
    /// The state of the file that runs; `None`: not known.
    running: Option<State>,
}

impl Image {
    /// From the earlier image's word, the kernel's (AT_EXECFN) or `argv[0]` with PATH; absolute against the logical `$PWD`,
    /// so that a symlink like `current` is followed anew each time.
    pub(crate) fn find(token: Option<&Token>) -> Image {
        let argv: Vec<OsString> = std::env::args_os().collect();
        let told = token.map(|token| token.path.clone()).filter(|path| path.is_absolute());
        let path = told.unwrap_or_else(|| {
            let name = sys::os::exec_name().filter(|name| !name.as_bytes().starts_with(b"/dev/fd/"));
            let name = name.or_else(|| argv.first().cloned()).unwrap_or_default();
            absolute(&search(&name).unwrap_or_else(|| PathBuf::from(&name)))
        });
        let there = state(&path);
        let running = match sys::os::SELF_IMAGE.map(|running| state(Path::new(running))) {
            Some(running) => running,
            None => there,
        };
        if running != there {
            log::warn(format!("{} is not the image that runs; a reload will execute it", log::Shown(&path)));
        }
        // What was told is what was executed: where the two can never be the same (an emulator's
        // /proc/self/exe), comparing with it again would reload for ever.
        Image { running: token.and_then(|token| token.state).or(running), path, argv }
    }

    /// Has the file been replaced since it was executed? A file that is missing is not a new one.
    pub(crate) fn is_replaced(&self) -> bool {
        let there = state(&self.path);
        there.is_some() && there != self.running
    }

    /// The file's state, for the token.
    pub(crate) fn state(&self) -> Option<State> {
        state(&self.path)
    }

    /// Can it be executed? Looks before anything is drained, so that the usual accidents cost nothing.
    pub(crate) fn look(&self) -> Result<(), String> {
        executable(&self.path).map_err(|why| format!("{} {why}", log::Shown(&self.path)))
    }

    /// execve(2) with `fds` left open and named. Returns only the error, with every flag as it was.
    pub(crate) fn replace(&self, argv: &[OsString], fds: &[RawFd], token: Option<&str>) -> io::Error {
        let mut argv = argv.to_vec();
        let Some(first) = argv.first_mut() else {
            return io::Error::new(io::ErrorKind::InvalidInput, "argv is empty");
        };
        *first = self.path.clone().into();
        let list = fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
        let mut extra = vec![(FDS, list.as_str())];
        extra.extend(token.map(|token| (HANDOFF, token)));
        let strings = || -> io::Result<_> {
            Ok((c_string(self.path.as_os_str())?, argv.iter().map(|a| c_string(a)).collect::<io::Result<Vec<_>>>()?))
        };
        let (path, argv) = match strings() {
            Ok(strings) => strings,
            Err(e) => return e,
        };
        let env = environment(&extra);
        let mut cleared = Vec::new();
        for fd in fds {
            match sys::fd::set_cloexec(*fd, false) {
                Ok(was) => cleared.push((*fd, was)),
                Err(e) => log::warn(format!("fd {fd}: {e}: lost to the next image")),
            }
        }
        let error = sys::process::exec(&path, &argv, &env);
        for (fd, was) in cleared {
            let _ = sys::fd::set_cloexec(fd, was);
        }
        error
    }
}

fn state(path: &Path) -> Option<State> {
    let m = std::fs::metadata(path).ok()?;
    let fields = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(|field| field as u64);
    Some(digest(&[&[m.dev(), m.ino(), m.size()], &fields[..]].concat()))
}

pub(crate) fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a path or an argument"))
}

/// This environment without what belongs to a hand-off or an activation, and with `extra`.
pub(crate) fn environment(extra: &[(&str, &str)]) -> Vec<CString> {
    let ours = [FDS, HANDOFF, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "REFORK_WORKER", "REFORK_GENERATION"];
    let kept = std::env::vars_os().filter(|(key, _)| !ours.iter().any(|ours| key == ours));
    let kept = kept.map(|(key, value)| [key.into_vec(), value.into_vec()].join(&b'='));
    let extra = extra.iter().map(|(key, value)| format!("{key}={value}").into_bytes());
    kept.chain(extra).filter_map(|text| CString::new(text).ok()).collect()
}

/// Why the kernel would refuse to execute a file: an ELF image (of our word size, where ours is one) or a script with `#!`.
pub(crate) fn executable(path: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(path).map_err(|e| format!("cannot be executed: {e}"))?;
    if !meta.is_file() {
        return Err("is not a regular file".into());
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err("is not executable (no x-bit)".into());
    }
    let mut head = Vec::new();
    // A file that may be executed but not read is the kernel's to judge.
    let Ok(file) = std::fs::File::open(path) else { return Ok(()) };
    let read = file.take(5).read_to_end(&mut head);
    read.map_err(|e| format!("cannot be read: {e}"))?;
    match head.as_slice() {
        [] => Err("is empty".into()),
        [b'#', b'!', ..] => Ok(()),
        [0x7f, b'E', b'L', b'F', ..] => Ok(()),
        _ if cfg!(target_vendor = "apple") => Ok(()),
        _ => Err("is neither an executable image nor a script with #!".into()),
    }
}

/// The first executable file of that name in PATH; a name with a slash is itself.
pub(crate) fn search(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
    let runs =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(runs)
}

/// Against the logical working directory (`$PWD`, if it is the same directory), so that its symlinks are followed anew.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    let here = std::fs::metadata(".").ok().map(|m| (m.dev(), m.ino()));
    let logical = std::env::var_os("PWD").map(PathBuf::from).filter(|pwd| {
        pwd.is_absolute() && here.is_some() && std::fs::metadata(pwd).ok().map(|m| (m.dev(), m.ino())) == here
    });
    let base = logical.or_else(|| std::env::current_dir().ok()).unwrap_or_default();
    base.join(path).components().filter(|part| *part != Component::CurDir).collect()
}
