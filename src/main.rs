//! The command: `refork run`, `refork watch` and `refork reload`, on the library's public API alone.

mod cli;
mod reload;

use cli::{show, Filter, Output, Task, Timing};
use refork::{Backend, FileChangeWatcher, Handover, Level, Master, Ready, Trouble};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::time::Duration;

fn main() -> ExitCode {
    let result = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Task::Tell(text)) => Ok(print(text).map_or_else(unread, |()| ExitCode::SUCCESS)),
        Ok(Task::Run(run)) => self::run(run),
        Ok(Task::Watch(watch)) => self::watch(watch),
        Ok(Task::Reload(reload)) => reload::run(reload),
        Err(usage) => {
            complain(&format!("{}; try --help", usage.0));
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        let code = error.exit_code();
        complain(&format!("{error}{}", if code == 2 { "; try --help" } else { "" }));
        ExitCode::from(code)
    })
}

/// One line on standard error. Nobody is left to be told when that fails.
fn complain(text: &str) {
    let _ = io::stderr().write_all(format!("refork: {text}\n").as_bytes());
}

/// To standard output, now.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut rest = text.as_bytes();
    loop {
        let wrote = match rest {
            [] => out.flush().map(|()| 0),
            rest => out.write(rest),
        };
        match wrote {
            Ok(0) if rest.is_empty() => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who shares it made it non-blocking: its reader is waited for all the same.
            // Not with poll(2), which is the library's own: by looking again.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::park_timeout(Duration::from_millis(10)),
            Err(e) => return Err(e),
        }
    }
}

/// What a failed write to standard output means. Rust ignores SIGPIPE, which would end us with 141 here: the reader
/// that went away (`refork watch | head -1`) has what it wanted.
fn unread(error: io::Error) -> ExitCode {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return ExitCode::SUCCESS;
    }
    complain(&format!("cannot write to standard output: {error}"));
    ExitCode::FAILURE
}

fn backend(timing: &Timing) -> Backend {
    timing.poll.map_or(Backend::Auto, Backend::Poll)
}

fn run(run: cli::Run) -> refork::Result<ExitCode> {
    let mut master = match run.verbosity {
        0 => Master::new(),
        1.. => Master::new().log_level(Level::Debug),
        _ => Master::new().log_level(Level::Warn),
    };
    for (name, addr) in run.binds {
        master = master.bind_named(name, addr);
    }
    for path in run.paths {
        master = master.watch(path);
    }
    for glob in run.include {
        master = master.include(glob);
    }
    for glob in run.exclude {
        master = master.exclude(glob);
    }
    if run.overlap {
        master = master.handover(Handover::Overlap);
    }
    if let Some(check) = run.check {
        master = master.check_command(check);
    }
    if let Some(signal) = run.stop_signal {
        master = master.stop_signal(signal);
    }
    if let Some(path) = run.status_file {
        master = master.status_file(path);
    }
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    master
        .workers(run.workers.unwrap_or_else(cpus))
        .debounce(run.timing.quiet, run.timing.cap())
        .backend(backend(&run.timing))
        .shutdown_timeout(run.shutdown_timeout)
        .boot_timeout(run.boot_timeout)
        .ready(run.ready.map_or(Ready::Notify, Ready::After))
        .run_command(run.command)?;
    Ok(ExitCode::SUCCESS)
}

/// What the watcher's thread tells the main one.
enum Seen {
    /// Something changed, and CMD is to be run.
    Batch,
    /// What is not watched, and when this was found.
    Trouble(Duration, String),
    /// A batch could not be printed.
    Unread(io::Error),
    Lost,
}

fn watch(watch: cli::Watch) -> refork::Result<ExitCode> {
    // What is seen is the output; the log's lines about it would only repeat it.
    refork::log_level(Level::Warn);
    let (send, seen) = channel();
    let (tell, rescan) = (send.clone(), Arc::new(AtomicBool::new(false)));
    let lost = rescan.clone();
    let (json, command) = match watch.output {
        Output::Json => (true, Vec::new()),
        Output::Lines => (false, Vec::new()),
        Output::Command(command) => (false, command),
    };
    let prints = command.is_empty();
    // Batches are printed where they are seen: one wake-up less on the way, and while the reader is slow the kernel keeps
    // what changes, and no memory of ours grows.
    let batch = move |paths: &[PathBuf]| {
        let _in_one_piece = io::stdout().lock();
        let printed = match (prints, json) {
            (true, true) => {
                let rescan = rescan.swap(false, Relaxed);
                show::json(&mut print, refork::monotonic().as_nanos(), paths, rescan, None)
            }
            (true, false) => show::lines(&mut print, paths),
            (false, _) => return drop(send.send(Seen::Batch)),
        };
        if let Err(e) = printed {
            let _ = send.send(Seen::Unread(e));
        }
    };
    let mut watcher = FileChangeWatcher::new(watch.paths, batch)
        .debounce(watch.timing.quiet, watch.timing.cap())
        .backend(backend(&watch.timing))
        .follow_symlinks(watch.follow)
        .on_trouble(move |trouble| {
            let why = match trouble {
                Trouble::Rescan => return lost.store(true, Relaxed),
                Trouble::Lost(why) | Trouble::Degraded(why) => why,
                _ => return,
            };
            if json {
                let _ = tell.send(Seen::Trouble(refork::monotonic(), why.to_owned()));
            }
            if matches!(trouble, Trouble::Lost(_)) {
                let _ = tell.send(Seen::Lost);
            }
        });
    match watch.filter {
        Filter::Source => {}
        Filter::All => watcher = watcher.watch_filter(|_| true),
        Filter::Extensions(extensions) => {
            for extension in extensions {
                watcher = watcher.include(format!("*.{extension}"));
            }
        }
    }
    // No batch is printed before the first line.
    let first = io::stdout().lock();
    watcher.start()?;
    let armed = refork::monotonic().as_nanos();
    let ready = if json {
        print(&show::json_ready(armed))
    } else {
        let _ = io::stderr().write_all(b"ready\n");
        Ok(())
    };
    drop(first);
    let ended = match prints {
        true => ready.and_then(|()| print_batches(&seen)),
        false => {
            run_after_batches(&seen, &command);
            Ok(())
        }
    };
    // The watcher has ended, and said why in a line of its own.
    Ok(ended.map_or_else(unread, |()| ExitCode::FAILURE))
}

/// Until the watcher has ended or nobody reads any more.
fn print_batches(seen: &Receiver<Seen>) -> io::Result<()> {
    for seen in seen {
        match seen {
            Seen::Trouble(at, why) => show::json(&mut print, at.as_nanos(), &[], false, Some(&why))?,
            Seen::Unread(e) => return Err(e),
            Seen::Batch => {}
            Seen::Lost => break,
        }
    }
    Ok(())
}

/// Until the watcher has ended. What changes while CMD runs waits in the channel: all of it is one run more.
fn run_after_batches(seen: &Receiver<Seen>, command: &[OsString]) {
    while let Ok(first) = seen.recv() {
        let waiting: Vec<Seen> = std::iter::once(first).chain(seen.try_iter()).collect();
        if waiting.iter().any(|seen| matches!(seen, Seen::Batch)) {
            match Command::new(&command[0]).args(&command[1..]).status() {
                Ok(status) if status.success() => {}
                Ok(status) => complain(&format!("{} ended with {status}", show::line(command[0].as_encoded_bytes()))),
                Err(e) => complain(&format!("cannot execute {}: {e}", show::line(command[0].as_encoded_bytes()))),
            }
        }
        if waiting.iter().any(|seen| matches!(seen, Seen::Lost)) {
            break;
        }
    }
}
