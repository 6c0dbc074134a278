//! Descriptors across exec: how they leave this image and how they come back.

use crate::error::{Error, Op};
use crate::listener::Listener;
use crate::log;
use crate::plan::snapshot::{digest, State};
use crate::plan::token::{Origin, Token};
use crate::sys;
use crate::sys::process::Program;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
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
static BY_HAND: Mutex<Option<(Vec<(RawFd, Identity)>, Option<Token>)>> = Mutex::new(None);

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
            let fd = sys::fd::adopt_own(fd.parse().ok()?).ok()?;
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
    /// The state of a file whose workers did not boot.
    bad: Option<State>,
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
        let bad = token.and_then(|token| token.bad);
        let there = state(&path);
        let running = match sys::os::SELF_IMAGE.map(|running| state(Path::new(running))) {
            Some(running) => running,
            None => there,
        };
        if running != there && bad.is_none() {
            log::warn(format!("{} is not the image that runs; a reload will execute it", log::Shown(&path)));
        }
        // What was told is what was executed: where the two can never be the same (an emulator's
        // /proc/self/exe), comparing with it again would reload for ever.
        Image { running: token.and_then(|token| token.state).or(running), bad, path, argv }
    }

    /// Has the file been replaced since it was executed? A file that is missing is not a new one, nor is one that failed.
    pub(crate) fn is_replaced(&self) -> bool {
        let there = state(&self.path);
        there.is_some() && there != self.running && there != self.bad
    }

    /// The file's state, for the token and to see whether it stays the same.
    pub(crate) fn state(&self) -> Option<State> {
        state(&self.path)
    }

    /// The state that the file had when it was executed.
    pub(crate) fn running(&self) -> Option<State> {
        self.running
    }

    /// Is the file one that failed?
    pub(crate) fn is_bad(&self) -> bool {
        self.bad.is_some() && state(&self.path) == self.bad
    }

    /// Does the file hold the very bytes that run? Read only if the sizes are the same.
    pub(crate) fn is_same(&self) -> bool {
        let Some(running) = sys::os::SELF_IMAGE else { return false };
        same_bytes(Path::new(running), &self.path).unwrap_or(false)
    }

    /// execve(2) with `fds` left open and named, and `keep` left open. Returns only the error, with every flag as it was.
    pub(crate) fn replace(&self, argv: &[OsString], fds: &[RawFd], keep: &[RawFd], token: Option<&str>) -> io::Error {
        self.execute(argv, fds, keep, token, None)
    }

    /// As `replace`, with the arguments of this image and the file behind a descriptor.
    pub(crate) fn replace_by(&self, image: &OwnedFd, fds: &[RawFd], keep: &[RawFd], token: &str) -> io::Error {
        self.execute(&self.argv, fds, keep, Some(token), Some(image))
    }

    fn execute(
        &self,
        argv: &[OsString],
        fds: &[RawFd],
        keep: &[RawFd],
        token: Option<&str>,
        image: Option<&OwnedFd>,
    ) -> io::Error {
        let mut argv = argv.to_vec();
        let Some(first) = argv.first_mut() else {
            return io::Error::new(io::ErrorKind::InvalidInput, "argv is empty");
        };
        *first = self.path.clone().into();
        let list = fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
        let mut extra = vec![(FDS, list.as_str())];
        extra.extend(token.map(|token| (HANDOFF, token)));
        let strings = || -> io::Result<_> { Ok((c_string(self.path.as_os_str())?, c_strings(&argv)?)) };
        let (path, argv) = match strings() {
            Ok(strings) => strings,
            Err(e) => return e,
        };
        let env = environment(&extra);
        let mut cleared = Vec::new();
        for fd in fds.iter().chain(keep) {
            match sys::fd::set_cloexec(*fd, false) {
                Ok(was) => cleared.push((*fd, was)),
                Err(e) => log::warn(format!("fd {fd}: {e}: lost to the next image")),
            }
        }
        let error = match image {
            None => sys::process::exec(&path, &argv, &env),
            Some(image) => sys::os::exec_fd(image.as_fd(), &argv, &env),
        };
        for (fd, was) in cleared {
            let _ = sys::fd::set_cloexec(fd, was);
        }
        error
    }

    /// The image as a child that is only tried: what it answers to, and on which descriptor.
    pub(crate) fn trial(&self, fd: RawFd, nonce: &str) -> io::Result<Program> {
        let mut argv = self.argv.clone();
        if let Some(first) = argv.first_mut() {
            *first = self.path.clone().into();
        }
        // In the child it is the only descriptor beside the standard ones.
        let check = format!("3:{nonce}");
        let env = environment(&[(CHECK, check.as_str())]);
        Ok(Program::new(c_string(self.path.as_os_str())?, c_strings(&argv)?, env, vec![fd], false))
    }
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (std::fs::File::open(a)?, std::fs::File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(true);
        }
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
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

/// Why a file cannot be executed. `later`: perhaps it is still being written.
pub(crate) struct Unfit {
    pub(crate) why: String,
    pub(crate) later: bool,
}

/// Why the kernel would refuse to execute a file: an ELF image, all of it, or a script with `#!`.
pub(crate) fn executable(path: &Path) -> Result<(), Unfit> {
    let later = |why: String| Unfit { why, later: true };
    let never = |why: &str| Unfit { why: why.into(), later: false };
    // A build may remove the file before it writes the new one.
    let meta = std::fs::metadata(path)
        .map_err(|e| Unfit { later: e.kind() == io::ErrorKind::NotFound, why: format!("cannot be executed: {e}") })?;
    if !meta.is_file() {
        return Err(never("is not a regular file"));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(later("is not executable (no x-bit)".into()));
    }
    let mut head = Vec::new();
    // A file that may be executed but not read is the kernel's to judge.
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    let read = (&mut file).take(64).read_to_end(&mut head);
    read.map_err(|e| later(format!("cannot be read: {e}")))?;
    match head.as_slice() {
        [] => Err(later("is empty".into())),
        [b'#', b'!', ..] => Ok(()),
        [0x7f, b'E', b'L', b'F', ..] => match elf_end(&mut file, &head) {
            Some(end) if end <= meta.len() => Ok(()),
            Some(end) => Err(later(format!("is truncated: {} of {end} bytes", meta.len()))),
            None => Err(later("is truncated within its headers".into())),
        },
        _ if cfg!(target_vendor = "apple") => Ok(()),
        _ => Err(never("is neither an executable image nor a script with #!")),
    }
}

/// How long an ELF file must be: the end of its section headers, program headers and segments. `None`: shorter than those.
fn elf_end(file: &mut std::fs::File, head: &[u8]) -> Option<u64> {
    let wide = head.get(4)? == &2;
    let little = head.get(5)? == &1;
    let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + len)?;
        let step = |n: u64, b: &u8| n << 8 | u64::from(*b);
        Some(if little { bytes.iter().rev().fold(0, step) } else { bytes.iter().fold(0, step) })
    };
    // Elf64_Ehdr and Elf32_Ehdr, Elf64_Phdr and Elf32_Phdr: elf(5).
    let (word, [phoff, shoff, sizes], [offset, length]) =
        if wide { (8, [32, 40, 54], [8, 32]) } else { (4, [28, 32, 42], [4, 16]) };
    let (phoff, shoff) = (number(head, phoff, word)?, number(head, shoff, word)?);
    let size = |at: usize| number(head, sizes + 2 * at, 2);
    let (phentsize, phnum, shentsize, shnum) = (size(0)?, size(1)?, size(2)?, size(3)?);
    let mut table = Vec::new();
    file.seek(SeekFrom::Start(phoff)).ok()?;
    file.take(phentsize * phnum).read_to_end(&mut table).ok()?;
    let mut end = shoff.saturating_add(shentsize * shnum);
    for segment in 0..phnum as usize {
        let segment = table.get(segment * phentsize as usize..)?;
        let (offset, length) = (number(segment, offset, word)?, number(segment, length, word)?);
        end = end.max(offset.saturating_add(length));
    }
    Some(end)
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
