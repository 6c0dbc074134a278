//! The argument loop: words in, options and their values out.

use super::{Result, Timing, Usage};
use crate::cli::show;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

/// What a program may take for "finish and end".
const SIGNALS: [(&str, i32); 8] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("WINCH", libc::SIGWINCH),
];

pub(super) enum Word {
    /// Its name is in `Args::option`.
    Option,
    Plain(OsString),
    Dashes,
}

/// Seconds with a fraction. Not a float: all that reads and writes floats would be in the program for it.
fn decimal(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || whole.len() + part.len() == 0 {
        return None;
    }
    let seconds = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos = part.bytes().chain(std::iter::repeat(b'0')).take(9);
    Some(Duration::new(seconds, nanos.fold(0, |nanos, digit| 10 * nanos + u32::from(digit - b'0'))))
}

/// The argument loop.
#[derive(Default)]
pub(super) struct Args {
    pub(super) words: std::vec::IntoIter<OsString>,
    /// The option being read, as the user wrote it: `--bind` or `-b`.
    pub(super) option: String,
    /// What stands behind `=`.
    pub(super) attached: Option<OsString>,
    /// What stands behind a short option in the same word: its value, or more short options.
    cluster: Vec<u8>,
}

impl Args {
    pub(super) fn new(words: impl IntoIterator<Item = OsString>) -> Args {
        Args { words: words.into_iter().collect::<Vec<_>>().into_iter(), ..Args::default() }
    }

    pub(super) fn next(&mut self) -> Result<Option<Word>> {
        if self.attached.is_some() {
            return Err(Usage(format!("`{}` takes no value", self.option)));
        }
        if self.cluster.is_empty() {
            let Some(word) = self.words.next() else { return Ok(None) };
            match word.as_bytes() {
                b"--" => return Ok(Some(Word::Dashes)),
                [b'-', b'-', ..] => {
                    let mut parts = word.as_bytes().splitn(2, |byte| *byte == b'=');
                    self.option = show::line(parts.next().unwrap_or_default());
                    self.attached = parts.next().map(|value| OsStr::from_bytes(value).to_owned());
                    return Ok(Some(Word::Option));
                }
                [b'-', rest @ ..] if !rest.is_empty() => self.cluster = rest.to_vec(),
                _ => return Ok(Some(Word::Plain(word))),
            }
        }
        self.option = show::line(&[b'-', self.cluster.remove(0)]);
        Ok(Some(Word::Option))
    }

    pub(super) fn unknown(&self) -> Usage {
        Usage(format!("unknown option `{}`", self.option))
    }

    pub(super) fn value(&mut self) -> Result<OsString> {
        let attached = self.attached.take();
        let value = match std::mem::take(&mut self.cluster) {
            cluster if cluster.is_empty() => attached.or_else(|| self.words.next()),
            cluster => Some(OsString::from_vec(cluster)),
        };
        value.ok_or_else(|| Usage(format!("`{}` needs a value", self.option)))
    }

    /// A value that names something.
    pub(super) fn filled(&mut self) -> Result<OsString> {
        let value = self.value()?;
        match value.is_empty() {
            true => Err(self.bad(&value, "is empty")),
            false => Ok(value),
        }
    }

    pub(super) fn bad(&self, value: &OsStr, why: &str) -> Usage {
        Usage(format!("{}: `{}` {why}", self.option, show::line(value.as_bytes())))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        self.value()?.into_string().map_err(|value| self.bad(&value, "is not UTF-8"))
    }

    pub(super) fn glob(&mut self) -> Result<String> {
        self.parsed("is no GLOB", |text| Some(text.to_owned()).filter(|text| !text.is_empty()))
    }

    pub(super) fn parsed<T>(&mut self, why: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text = self.text()?;
        parse(&text).ok_or_else(|| self.bad(text.as_ref(), why))
    }

    pub(super) fn milliseconds(&mut self, least: u32) -> Result<Duration> {
        let why = format!("is not a number of milliseconds from {least} to {}", u32::MAX);
        let ms: u32 = self.parsed(&why, |text| text.parse().ok().filter(|ms| *ms >= least))?;
        Ok(Duration::from_millis(ms.into()))
    }

    pub(super) fn seconds(&mut self) -> Result<Duration> {
        let most = Duration::from_secs(u32::MAX.into());
        self.parsed("is not a number of seconds, like 10 or 0.5", |text| decimal(text).filter(|time| *time <= most))
    }

    /// `notify`, or how long a worker must live.
    pub(super) fn ready(&mut self) -> Result<Option<Duration>> {
        let value = self.value()?;
        if value == "notify" {
            return Ok(None);
        }
        self.attached = Some(value);
        self.seconds().map(Some).map_err(|usage| Usage(usage.0 + ", nor `notify`"))
    }

    /// `TERM`, `SIGTERM` or a number.
    pub(super) fn signal(&mut self) -> Result<i32> {
        let known = |text: &str| {
            let handled = |n: &i32| (1..65).contains(n) && ![libc::SIGKILL, libc::SIGSTOP].contains(n);
            let name = text.strip_prefix("SIG").unwrap_or(text);
            let number = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
            number.or_else(|| text.parse().ok().filter(handled))
        };
        self.parsed("is not a signal, like TERM or 15", known)
    }

    /// `NAME=ADDR`: a name holds neither `:` nor `/`, so that `unix:PATH,mode=0660` has none.
    pub(super) fn bind(&mut self) -> Result<(String, String)> {
        let text = self.text()?;
        match text.split_once('=').filter(|(name, _)| !name.contains([':', '/'])) {
            Some((_, "")) => Err(self.bad(text.as_ref(), "has no ADDR")),
            Some(("", _)) => Err(self.bad(text.as_ref(), "has an empty NAME")),
            Some((name, addr)) => Ok((name.into(), addr.into())),
            None if text.is_empty() => Err(self.bad(text.as_ref(), "is no ADDR")),
            None => Ok((String::new(), text)),
        }
    }

    /// `py,rs`, also as `.py,.rs`.
    pub(super) fn extensions(&mut self) -> Result<Vec<String>> {
        let list = |text: &str| {
            let words: Vec<&str> = text.split(',').map(|word| word.strip_prefix('.').unwrap_or(word)).collect();
            let good = |word: &&str| !word.is_empty() && !word.contains(['/', '*', '?']);
            words.iter().all(good).then(|| words.into_iter().map(str::to_owned).collect())
        };
        self.parsed("is not a list of extensions, like py,rs", list)
    }

    /// Options that `run` and `watch` share; `false`: another one.
    pub(super) fn timing(&mut self, timing: &mut Timing) -> Result<bool> {
        match self.option.as_str() {
            "--debounce" => timing.quiet = self.milliseconds(0)?,
            "--debounce-max" => timing.cap = Some(self.milliseconds(0)?),
            "--poll" if self.attached.is_some() => timing.poll = Some(self.milliseconds(1)?),
            "--poll" => timing.poll = Some(Duration::from_secs(1)),
            _ => return Ok(false),
        }
        Ok(true)
    }
}
