//! The command's arguments: words in, what is to be done out. Reads nothing, prints nothing.
//!
//! Words are bytes and stay bytes: a path or an argument of COMMAND need not be UTF-8. Options follow getopt_long(3):
//! `--workers 2`, `--workers=2`, `-w 2`, `-w2`, `-rv`; the last of a repeated option counts, where it does not collect.

mod help;
pub(crate) mod show;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Print this.
    Tell(&'static str),
    Run(Run),
    Watch(Watch),
}

/// Why the arguments make no sense, naming the bad one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usage(pub(crate) String);

type Result<T> = std::result::Result<T, Usage>;

/// When a batch of changes is complete, and where changes come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) quiet: Duration,
    cap: Option<Duration>,
    pub(crate) poll: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Names (empty without one) and addresses.
    pub(crate) binds: Vec<(String, String)>,
    /// `None`: one per CPU.
    pub(crate) workers: Option<usize>,
    /// Empty: no reload after a change.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) include: Vec<String>,
    pub(crate) exclude: Vec<String>,
    pub(crate) timing: Timing,
    pub(crate) shutdown_timeout: Duration,
    /// Above 0: more lines; below: fewer.
    pub(crate) verbosity: i8,
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) output: Output,
    pub(crate) filter: Filter,
    pub(crate) timing: Timing,
    pub(crate) follow: bool,
}

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Lines,
    Json,
    Command(Vec<OsString>),
}

/// Which files count.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Source,
    Extensions(Vec<String>),
    All,
}

/// Reads everything after the command's own name.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Task> {
    let mut args = Args { words: words.into_iter().collect::<Vec<_>>().into_iter(), ..Args::default() };
    match args.next()? {
        Some(Word::Option) => match common(&args.option, help::ALL) {
            Some(task) => Ok(task),
            None => Err(args.unknown()),
        },
        Some(Word::Plain(word)) if word == "run" => run(&mut args),
        Some(Word::Plain(word)) if word == "watch" => watch(&mut args),
        Some(Word::Plain(word)) => {
            Err(Usage(format!("`{}` is neither `run` nor `watch`", show::line(word.as_bytes()))))
        }
        Some(Word::Dashes) | None => Err(Usage("`run` or `watch` is missing".into())),
    }
}

fn common(option: &str, help: &'static str) -> Option<Task> {
    match option {
        "--help" | "-h" => Some(Task::Tell(help)),
        "--version" | "-V" => Some(Task::Tell(concat!("refork ", env!("CARGO_PKG_VERSION"), "\n"))),
        _ => None,
    }
}

fn run(args: &mut Args) -> Result<Task> {
    let mut run = Run {
        binds: Vec::new(),
        workers: Some(1),
        paths: Vec::new(),
        include: Vec::new(),
        exclude: Vec::new(),
        timing: Timing::default(),
        shutdown_timeout: Duration::from_secs(10),
        verbosity: 0,
        command: Vec::new(),
    };
    let mut reload = false;
    loop {
        match args.next()? {
            Some(Word::Option) => {}
            Some(Word::Plain(word)) => {
                run.command.push(word);
                break;
            }
            Some(Word::Dashes) | None => break,
        }
        let option = args.option.clone();
        match option.as_str() {
            "--bind" | "-b" => run.binds.push(args.bind()?),
            "--workers" | "-w" => {
                let workers = |text: &str| match text {
                    "auto" => Some(None),
                    text => text.parse().ok().filter(|n| *n > 0).map(Some),
                };
                run.workers = args.parsed("is neither `auto` nor a number from 1", workers)?;
            }
            "--reload" | "-r" => reload = true,
            "--reload-path" => run.paths.push(args.value()?.into()),
            "--reload-include" => run.include.push(args.text()?),
            "--reload-exclude" => run.exclude.push(args.text()?),
            "--shutdown-timeout" => run.shutdown_timeout = args.seconds()?,
            "-v" => run.verbosity = 1,
            "-q" => run.verbosity = -1,
            _ if args.timing(&mut run.timing)? => {}
            option => match common(option, help::RUN) {
                Some(task) => return Ok(task),
                None => return Err(args.unknown()),
            },
        }
    }
    run.command.extend(&mut args.words);
    match run.command.first() {
        None => return Err(Usage("COMMAND is missing".into())),
        Some(name) if name.is_empty() => return Err(Usage("COMMAND is empty".into())),
        Some(_) => {}
    }
    if reload && run.paths.is_empty() {
        run.paths.push(".".into());
    }
    run.timing.check()?;
    Ok(Task::Run(run))
}

fn watch(args: &mut Args) -> Result<Task> {
    let (mut paths, mut extensions, mut all, mut json, mut follow) = (Vec::new(), Vec::new(), false, false, true);
    let (mut timing, mut command) = (Timing::default(), None);
    while let Some(word) = args.next()? {
        match word {
            Word::Option => {}
            Word::Plain(word) => {
                paths.push(PathBuf::from(word));
                continue;
            }
            Word::Dashes => {
                command = Some(args.words.by_ref().collect::<Vec<_>>());
                break;
            }
        }
        let option = args.option.clone();
        match option.as_str() {
            "--json" => json = true,
            "--ext" => extensions.extend(args.extensions()?),
            "--all" => all = true,
            "--no-follow" => follow = false,
            _ if args.timing(&mut timing)? => {}
            option => match common(option, help::WATCH) {
                Some(task) => return Ok(task),
                None => return Err(args.unknown()),
            },
        }
    }
    let output = match command {
        Some(command) if command.is_empty() => return Err(Usage("CMD is missing after `--`".into())),
        Some(_) if json => return Err(Usage("`--json` prints, `-- CMD` runs instead: one of both".into())),
        Some(command) => Output::Command(command),
        None if json => Output::Json,
        None => Output::Lines,
    };
    let filter = match (all, extensions.is_empty()) {
        (true, false) => return Err(Usage("`--ext` and `--all` exclude each other".into())),
        (true, true) => Filter::All,
        (false, false) => Filter::Extensions(extensions),
        (false, true) => Filter::Source,
    };
    if paths.is_empty() {
        paths.push(".".into());
    }
    timing.check()?;
    Ok(Task::Watch(Watch { paths, output, filter, timing, follow }))
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { quiet: Duration::from_millis(50), cap: None, poll: None }
    }
}

impl Timing {
    /// A quiet time that is longer than the default cap moves it.
    pub(crate) fn cap(&self) -> Duration {
        self.cap.unwrap_or(Duration::from_millis(1600).max(self.quiet))
    }

    fn check(&self) -> Result<()> {
        match self.cap() < self.quiet {
            true => Err(Usage("`--debounce-max` is shorter than `--debounce`".into())),
            false => Ok(()),
        }
    }
}

enum Word {
    /// Its name is in `Args::option`.
    Option,
    Plain(OsString),
    Dashes,
}

/// The argument loop.
#[derive(Default)]
struct Args {
    words: std::vec::IntoIter<OsString>,
    /// The option being read, as the user wrote it: `--bind` or `-b`.
    option: String,
    /// What stands behind `=`.
    attached: Option<OsString>,
    /// What stands behind a short option in the same word: its value, or more short options.
    cluster: Vec<u8>,
}

impl Args {
    fn next(&mut self) -> Result<Option<Word>> {
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

    fn unknown(&self) -> Usage {
        Usage(format!("unknown option `{}`", self.option))
    }

    fn value(&mut self) -> Result<OsString> {
        let attached = self.attached.take();
        let value = match std::mem::take(&mut self.cluster) {
            cluster if cluster.is_empty() => attached.or_else(|| self.words.next()),
            cluster => Some(OsString::from_vec(cluster)),
        };
        value.ok_or_else(|| Usage(format!("`{}` needs a value", self.option)))
    }

    fn bad(&self, value: &OsStr, why: &str) -> Usage {
        Usage(format!("{}: `{}` {why}", self.option, show::line(value.as_bytes())))
    }

    fn text(&mut self) -> Result<String> {
        self.value()?.into_string().map_err(|value| self.bad(&value, "is not UTF-8"))
    }

    fn parsed<T>(&mut self, why: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text = self.text()?;
        parse(&text).ok_or_else(|| self.bad(text.as_ref(), why))
    }

    fn milliseconds(&mut self, least: u32) -> Result<Duration> {
        let why = format!("is not a number of milliseconds from {least} to {}", u32::MAX);
        let ms: u32 = self.parsed(&why, |text| text.parse().ok().filter(|ms| *ms >= least))?;
        Ok(Duration::from_millis(ms.into()))
    }

    fn seconds(&mut self) -> Result<Duration> {
        let most = Duration::from_secs(u32::MAX.into());
        let duration = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok().filter(|d| *d <= most);
        self.parsed("is not a number of seconds, like 10 or 0.5", duration)
    }

    /// `NAME=ADDR`: a name holds neither `:` nor `/`, so that `unix:PATH,mode=0660` has none.
    fn bind(&mut self) -> Result<(String, String)> {
        let text = self.text()?;
        match text.split_once('=').filter(|(name, _)| !name.contains([':', '/'])) {
            Some(("", _)) => Err(self.bad(text.as_ref(), "has an empty NAME")),
            Some((name, addr)) => Ok((name.into(), addr.into())),
            None => Ok((String::new(), text)),
        }
    }

    /// `py,rs`, also as `.py,.rs`.
    fn extensions(&mut self) -> Result<Vec<String>> {
        let list = |text: &str| {
            let words: Vec<&str> = text.split(',').map(|word| word.strip_prefix('.').unwrap_or(word)).collect();
            let good = |word: &&str| !word.is_empty() && !word.contains(['/', '*', '?']);
            words.iter().all(good).then(|| words.into_iter().map(str::to_owned).collect())
        };
        self.parsed("is not a list of extensions, like py,rs", list)
    }

    /// Options that `run` and `watch` share; `false`: another one.
    fn timing(&mut self, timing: &mut Timing) -> Result<bool> {
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
