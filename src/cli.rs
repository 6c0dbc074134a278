//! The command's arguments: words in, what is to be done out. Reads nothing, prints nothing.
//!
//! Words are bytes and stay bytes: a path or an argument of COMMAND need not be UTF-8. Options follow getopt_long(3):
//! `--workers 2`, `--workers=2`, `-w 2`, `-w2`, `-rv`; the last of a repeated option counts, where it does not collect.

mod args;
mod help;
pub(crate) mod show;
#[cfg(test)]
mod tests;

use args::{Args, Word};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Print this.
    Tell(&'static str),
    Run(Run),
    Watch(Watch),
    Reload(Reload),
}

/// Why the arguments make no sense, naming the bad one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usage(pub(crate) String);

type Result<T> = std::result::Result<T, Usage>;

/// When a batch of changes is complete, and where changes come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) quiet: Duration,
    pub(crate) cap: Option<Duration>,
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
    pub(crate) overlap: bool,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) boot_timeout: Duration,
    /// `None`: COMMAND says it by itself.
    pub(crate) ready: Option<Duration>,
    pub(crate) check: Option<OsString>,
    pub(crate) stop_signal: Option<i32>,
    pub(crate) status_file: Option<PathBuf>,
    /// Above 0: more lines; below: fewer.
    pub(crate) verbosity: i8,
    pub(crate) command: Vec<OsString>,
}

/// Whom to ask for a reload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    Pid(u32),
    /// Whoever writes this file; wait so long for the outcome?
    Status(PathBuf, Option<Duration>),
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
    let mut args = Args::new(words);
    match args.next()? {
        Some(Word::Option) => match common(&args.option, help::ALL) {
            Some(task) => Ok(task),
            None => Err(args.unknown()),
        },
        Some(Word::Plain(word)) if word == "run" => run(&mut args),
        Some(Word::Plain(word)) if word == "watch" => watch(&mut args),
        Some(Word::Plain(word)) if word == "reload" => reload(&mut args),
        Some(Word::Plain(word)) => {
            Err(Usage(format!("`{}` is neither `run`, `watch` nor `reload`", show::line(word.as_bytes()))))
        }
        Some(Word::Dashes) | None => Err(Usage("`run`, `watch` or `reload` is missing".into())),
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
        overlap: false,
        shutdown_timeout: Duration::from_secs(10),
        boot_timeout: Duration::from_secs(30),
        ready: Some(Duration::from_secs(1)),
        check: None,
        stop_signal: None,
        status_file: None,
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
                    text => text.parse().ok().filter(|n| (1..=65_535).contains(n)).map(Some),
                };
                run.workers = args.parsed("is neither `auto` nor a number from 1 to 65535", workers)?;
            }
            "--reload" | "-r" => reload = true,
            "--reload-path" => run.paths.push(args.filled()?.into()),
            "--reload-include" => run.include.push(args.glob()?),
            "--reload-exclude" => run.exclude.push(args.glob()?),
            "--shutdown-timeout" => run.shutdown_timeout = args.seconds()?,
            "--boot-timeout" => run.boot_timeout = args.seconds()?,
            "--handover" => {
                let overlap = |text: &str| match text {
                    "drain-first" => Some(false),
                    "overlap" => Some(true),
                    _ => None,
                };
                run.overlap = args.parsed("is neither `drain-first` nor `overlap`", overlap)?;
            }
            "--ready" => run.ready = args.ready()?,
            "--check" => run.check = Some(args.filled()?),
            "--stop-signal" => run.stop_signal = Some(args.signal()?),
            "--status-file" => run.status_file = Some(args.filled()?.into()),
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
            Word::Plain(word) if word.is_empty() => return Err(Usage("a PATH is empty".into())),
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

fn reload(args: &mut Args) -> Result<Task> {
    let (mut pid, mut status, mut wait, mut timeout) = (None, None, false, None);
    while let Some(word) = args.next()? {
        if let Word::Plain(word) = word {
            return Err(Usage(format!("`{}` is one word too many", show::line(word.as_bytes()))));
        }
        let option = args.option.clone();
        match option.as_str() {
            "--pid" => {
                pid = Some(args.parsed("is not a process's number", |text| text.parse().ok().filter(|pid| *pid > 0))?);
            }
            "--status-file" => status = Some(PathBuf::from(args.filled()?)),
            "--wait" => wait = true,
            "--timeout" => timeout = Some(args.seconds()?),
            option => match common(option, help::RELOAD) {
                Some(task) => return Ok(task),
                None => return Err(args.unknown()),
            },
        }
    }
    match (pid, status) {
        (Some(_), Some(_)) => Err(Usage("`--pid` and `--status-file` exclude each other".into())),
        (None, None) => Err(Usage("`--pid` or `--status-file` is missing".into())),
        (Some(_), None) if wait => Err(Usage("`--wait` needs `--status-file`: a signal has no answer".into())),
        (Some(pid), None) => Ok(Task::Reload(Reload::Pid(pid))),
        (None, Some(_)) if timeout.is_some() && !wait => Err(Usage("`--timeout` goes with `--wait`".into())),
        (None, Some(path)) => {
            Ok(Task::Reload(Reload::Status(path, wait.then(|| timeout.unwrap_or(Duration::from_secs(60))))))
        }
    }
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
