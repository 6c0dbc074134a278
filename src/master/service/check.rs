//! The new code is looked at, and tried as a child that serves nobody, while the old code goes on serving.

use super::Service;
use crate::handoff::{self, Unfit};
use crate::log::{self, How, Note};
use crate::master::Job;
use crate::plan::snapshot::State;
use crate::plan::supervise::{Event, Verdict};
use crate::sys::process::{self, Fork, Pid, Program};
use crate::sys::signal;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a file may stay unfit before that is taken for final.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long git's lock holds a reload.
const LOCKED: Duration = Duration::from_secs(10);
/// What is kept of a trial's output, and how many lines of it are shown.
const OUTPUT: usize = 8192;
const LINES: usize = 20;

/// One trial.
enum Try {
    Command(PathBuf),
    Image,
}

/// A child that tries the new code.
pub(super) struct Trial {
    pid: Pid,
    what: String,
    /// It passes by saying this; `None`: by exit code 0.
    nonce: Option<String>,
    reply: Option<UnixStream>,
    output: Option<UnixStream>,
    heard: Vec<u8>,
    said: Vec<u8>,
    /// What is to be tried after it.
    rest: VecDeque<Try>,
    /// The image's file when the trials began; `None`: it is not tried.
    image: Option<Option<State>>,
}

impl Trial {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// What to wait for beside its end.
    pub(super) fn channels(&self) -> [Option<&UnixStream>; 2] {
        [self.reply.as_ref(), self.output.as_ref()]
    }

    pub(super) fn fds(&self) -> Vec<RawFd> {
        self.channels().into_iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }

    /// Takes what is there.
    pub(super) fn read(&mut self) {
        drain(&mut self.reply, &mut self.heard);
        drain(&mut self.output, &mut self.said);
    }
}

/// Reads what is there; keeps the last of it, and lets go of a channel that has ended.
fn drain(channel: &mut Option<UnixStream>, kept: &mut Vec<u8>) {
    let mut buf = [0; 4096];
    while let Some(stream) = channel {
        match stream.read(&mut buf) {
            Ok(n @ 1..) => {
                kept.extend_from_slice(&buf[..n]);
                kept.drain(..kept.len().saturating_sub(OUTPUT));
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => *channel = None,
        }
    }
}

impl Service<'_> {
    /// Is the new code whole?
    pub(super) fn look(&self, reexec: bool, only_own: bool, last: bool) -> Verdict {
        let verdict = |path: &Path, unfit: Unfit| match unfit.later && !last {
            true => Verdict::Later(format!("{} {}", log::Shown(path), unfit.why), PATIENCE),
            false => Verdict::Bad(format!("{} {}", log::Shown(path), unfit.why)),
        };
        let lock = self.roots.iter().flat_map(|root| root.ancestors()).map(|dir| dir.join(".git/index.lock"));
        if let Some(lock) = { lock }.find(|lock| !last && lock.exists()) {
            return Verdict::Later(format!("git is at work ({} exists)", log::Shown(&lock)), LOCKED);
        }
        if let Job::Command(command) = &self.job {
            if let Err(e) = command.find() {
                let later = command.path.as_ref().is_some_and(|path| handoff::executable(path).is_err_and(|u| u.later));
                return match later && !last {
                    true => Verdict::Later(e.to_string(), PATIENCE),
                    false => Verdict::Bad(e.to_string()),
                };
            }
        }
        if !reexec {
            return Verdict::Good;
        }
        match handoff::executable(&self.image.path) {
            Err(unfit) => verdict(&self.image.path, unfit),
            Ok(()) if only_own && self.image.is_same() => Verdict::Same,
            Ok(()) if self.image.is_bad() => {
                let path = log::Shown(&self.image.path);
                Verdict::Bad(format!("{path} is the image that failed before (touch it to have it tried again)"))
            }
            Ok(()) => Verdict::Good,
        }
    }

    /// Begins the trials; the fact at once when there is nothing to try.
    pub(super) fn begin_check(&mut self, reexec: bool) -> Option<Event> {
        let mut rest = VecDeque::new();
        if let (Job::Command(_), Some(command)) = (&self.job, &self.check_command) {
            rest.push_back(Try::Command(command.into()));
        }
        let image = (reexec && self.check).then(|| self.image.state());
        if image.is_some() {
            rest.push_back(Try::Image);
        }
        self.next_trial(rest, image)
    }

    fn next_trial(&mut self, mut rest: VecDeque<Try>, image: Option<Option<State>>) -> Option<Event> {
        let Some(next) = rest.pop_front() else {
            self.checked = image.flatten();
            return Some(Event::Checked(match image.is_some_and(|before| self.image.state() != before) {
                true => Verdict::Later(format!("{} changes", log::Shown(&self.image.path)), PATIENCE),
                false => Verdict::Good,
            }));
        };
        let what = match &next {
            Try::Command(command) => log::Shown(command).to_string(),
            Try::Image => log::Shown(&self.image.path).to_string(),
        };
        log::say(&Note::Checking { reload: self.plan.reload(), what: what.clone() });
        match self.try_out(next, what.clone(), rest, image) {
            Ok(trial) => {
                self.trial = Some(trial);
                None
            }
            Err(e) => Some(Event::Checked(Verdict::Bad(format!("the check {what} cannot be started: {e}")))),
        }
    }

    fn try_out(&self, next: Try, what: String, rest: VecDeque<Try>, image: Option<Option<State>>) -> io::Result<Trial> {
        let (reply, its_reply) = UnixStream::pair()?;
        let (output, its_output) = UnixStream::pair()?;
        reply.set_nonblocking(true)?;
        output.set_nonblocking(true)?;
        let (mut program, nonce) = match next {
            Try::Command(command) => {
                let argv = ["sh".into(), "-c".into(), command.into()];
                let argv = handoff::c_strings(&argv)?;
                let env = handoff::environment(&[]);
                (Program::new(handoff::c_string("/bin/sh".as_ref())?, argv, env, Vec::new(), false), None)
            }
            Try::Image => {
                let nonce = nonce();
                (self.image.trial(its_reply.as_raw_fd(), &nonce)?, Some(nonce))
            }
        };
        let child = process::Child {
            abandon: &[],
            channel: its_reply.as_raw_fd(),
            output: Some(its_output.as_raw_fd()),
            death: libc::SIGKILL,
            parent: std::process::id(),
            grace: u32::try_from(self.check_timeout.as_secs()).unwrap_or(u32::MAX).saturating_add(1),
            ignored: self.ignored,
            mask: self.signals.before,
            stop: None,
        };
        let _ = io::stdout().flush();
        let gate = process::gate();
        let before = signal::block_all();
        let forked = process::fork(&gate);
        match forked {
            Ok(Fork::Child) => program.exec_in_child(&child),
            Ok(Fork::Parent(pid)) => {
                signal::set_mask(&before);
                let (reply, output) = (Some(reply), Some(output));
                Ok(Trial { pid, what, nonce, reply, output, heard: Vec::new(), said: Vec::new(), rest, image })
            }
            Err(e) => {
                signal::set_mask(&before);
                Err(e)
            }
        }
    }

    /// Nobody waits for the trial any more.
    pub(super) fn end_check(&mut self) {
        // It may have ended a moment ago: its verdict is of code that is out of date, and not the next trial's.
        self.events.retain(|event| !matches!(event, Event::Checked(_)));
        if let Some(mut trial) = self.trial.take() {
            let _ = process::kill_group(trial.pid, libc::SIGKILL);
            let _ = process::kill(trial.pid, libc::SIGKILL);
            trial.read();
            show(&trial.said);
            self.ended.push(trial.pid);
        }
    }

    /// Has the trial ended? Its verdict, or the next trial.
    pub(super) fn reap_trial(&mut self) {
        self.ended.retain(|pid| process::reap(*pid, libc::SIGKILL).is_none());
        let Some(how) = self.trial.as_ref().and_then(|trial| super::news::ended(trial.pid, libc::SIGKILL)) else {
            return;
        };
        let Some(mut trial) = self.trial.take() else { return };
        trial.read();
        let passed = match &trial.nonce {
            Some(nonce) => trial.heard == nonce.as_bytes(),
            None => how == How::Code(0),
        };
        if passed {
            let event = self.next_trial(trial.rest, trial.image);
            self.events.extend(event);
            return;
        }
        let errno = trial.heard.as_slice().try_into().ok().map(i32::from_ne_bytes);
        let what = trial.what;
        let verdict = match errno {
            Some(libc::ETXTBSY) => Verdict::Later(format!("{what} is being written"), PATIENCE),
            Some(errno) => Verdict::Bad(format!("{what}: {}", io::Error::from_raw_os_error(errno))),
            None if trial.nonce.is_some() => Verdict::Bad(format!("{what} ended before Master::run ({how})")),
            None => Verdict::Bad(format!("the check {what} failed ({how})")),
        };
        show(&trial.said);
        self.events.push_back(Event::Checked(verdict));
    }
}

/// The last lines that a failed trial has printed.
fn show(said: &[u8]) {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        log::say(&Note::CheckSaid { line: log::Shown(Path::new(line)).to_string() });
    }
}

/// Not a secret: something that a program does not print by accident.
fn nonce() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{random:016x}{:032x}", crate::sys::now().as_nanos())
}
