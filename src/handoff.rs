//! Descriptors across exec: how they leave this image and how they come back.

mod fitness;
mod image;

use crate::error::{Error, Op};
use crate::listener::{number, Listener};
use crate::log;
use crate::plan::token::{Origin, Token};
use crate::sys;
pub(crate) use fitness::{executable, Unfit};
pub(crate) use image::Image;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Comma-separated numbers of the listening sockets.
const FDS: &str = "BB_INHERIT_FDS";
/// Everything else that one image tells the next: see `plan::token`.
const HANDOFF: &str = "REFORK_HANDOFF";
/// Where the answer of an image that is only tried goes, and the answer: `<fd>:<nonce>`.
const CHECK: &str = "REFORK_CHECK";

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
    Error::new(Op::Exec, shown, image.replace(&argv, &live, &[], None))
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
    /// This image is only tried: what to write, and where.
    pub(crate) check: Option<(OwnedFd, String)>,
}

impl Inherited {
    /// Everything there is for a master: its own earlier image's sockets, those adopted by hand, those of a service manager.
    pub(crate) fn take() -> Inherited {
        let mut inherited = Inherited::read();
        inherited.check = sys::take_var(CHECK).and_then(|text| {
            let (fd, nonce) = text.to_str()?.split_once(':')?;
            let fd = sys::fd::adopt_own(number(fd)?).ok()?;
            Some((fd, nonce.to_owned()))
        });
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
            let Some(fd) = number::<RawFd>(word) else {
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
        let pid = std::env::var("LISTEN_PID").ok().and_then(|pid| number(&pid));
        if pid != Some(std::process::id()) {
            return;
        }
        sys::take_var("LISTEN_PID");
        let count = sys::take_var("LISTEN_FDS").unwrap_or_default();
        let count = number(&count.to_string_lossy()).unwrap_or_else(|| {
            log::warn(format!("LISTEN_FDS: `{}` is not a number of sockets: ignored", log::Shown(count.as_ref())));
            0
        });
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

pub(crate) fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a path or an argument"))
}

pub(crate) fn c_strings(texts: &[OsString]) -> io::Result<Vec<CString>> {
    texts.iter().map(|text| c_string(text)).collect()
}

/// This environment without what belongs to a hand-off or an activation, and with `extra`.
pub(crate) fn environment(extra: &[(&str, &str)]) -> Vec<CString> {
    let ours =
        [FDS, HANDOFF, CHECK, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "REFORK_WORKER", "REFORK_GENERATION"];
    let set_anew = |name: &OsString| extra.iter().any(|(key, _)| name == key);
    let kept = std::env::vars_os().filter(|(key, _)| !ours.iter().any(|ours| key == ours) && !set_anew(key));
    let kept = kept.map(|(key, value)| [key.into_vec(), value.into_vec()].join(&b'='));
    let extra = extra.iter().map(|(key, value)| format!("{key}={value}").into_bytes());
    kept.chain(extra).filter_map(|text| CString::new(text).ok()).collect()
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
