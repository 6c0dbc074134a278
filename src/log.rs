//! Every line that refork can print, as one enum, and where the lines go.
//!
//! The plan decides that something is said by emitting a [`Note`]; its text exists only here. A line is one write(2), so
//! that lines of master and workers do not mix.

mod note;

pub(crate) use note::{Note, Shown};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

/// How much a line matters. The default shows `Info` and above; `REFORK_LOG` or [`crate::Master::log_level`] change that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Something failed and what follows is said in the line.
    Error,
    /// A degraded mode, or input that was refused.
    Warn,
    /// The stages of a start, a reload and a stop.
    Info,
    /// Each worker's life.
    Debug,
}

/// Where lines go when [`crate::Master::log`] was called: a plain function, so that there is nothing to lock across a fork.
pub type Sink = fn(Level, &dyn Display);

/// Why a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum How {
    Code(i32),
    Signal(i32),
    Unknown,
}

/// What asked for a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Trigger {
    #[default]
    Start,
    Change,
    /// Asked for during the reload before.
    Pending,
    Hup,
    Usr2,
}

/// How long standard error may be full before lines are dropped.
const PATIENCE: Duration = Duration::from_secs(1);

static LOST: AtomicU32 = AtomicU32::new(0);
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static TIME: AtomicBool = AtomicBool::new(false);
static SINK: Mutex<Option<Sink>> = Mutex::new(None);
static ENVIRONMENT: Once = Once::new();

/// The least important lines that this process still prints, whoever says them: a [`crate::Master`] or a
/// [`crate::FileChangeWatcher`] alone. Default [`Level::Info`], or what `REFORK_LOG` says; this call outranks both.
pub fn log_level(level: Level) {
    read_environment();
    LEVEL.store(level as u8, Relaxed);
}

/// The clock of the log's time stamps (`REFORK_LOG=time`) and of `refork watch --json`: CLOCK_MONOTONIC, which has the same
/// value in every process of a machine and goes on across a reload. What std's `Instant` measures without telling.
pub fn monotonic() -> Duration {
    crate::sys::now()
}

pub(crate) fn set_sink(sink: Sink) {
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = Some(sink);
}

/// `REFORK_LOG`: error, warn, info or debug, and `time` to put monotonic seconds before each line.
fn read_environment() {
    ENVIRONMENT.call_once(|| {
        let value = std::env::var("REFORK_LOG").unwrap_or_default();
        for word in value.split(',') {
            let level = match word.trim() {
                "error" => Level::Error,
                "warn" => Level::Warn,
                "info" => Level::Info,
                "debug" | "trace" => Level::Debug,
                "time" => {
                    TIME.store(true, Relaxed);
                    continue;
                }
                _ => continue,
            };
            LEVEL.store(level as u8, Relaxed);
        }
    });
}

/// Prints one line, or hands it to the user's sink.
pub(crate) fn say(note: &Note) {
    read_environment();
    let level = note.level();
    if level as u8 > LEVEL.load(Relaxed) {
        return;
    }
    let sink = *SINK.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sink) = sink {
        return sink(level, note);
    }
    let time = match TIME.load(Relaxed) {
        true => {
            let now = monotonic();
            format!("{}.{:03} ", now.as_secs(), now.subsec_millis())
        }
        false => String::new(),
    };
    let mark = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug => "",
    };
    let line = format!("{time}refork[{}]: {mark}{note}\n", std::process::id());
    print(line);
}

/// One write. A closed pipe is nobody's to report; one that is full and that nobody reads must not keep a master from its
/// work, which is to answer SIGTERM: after a moment lines are dropped, and counted, until there is room again.
fn print(line: String) {
    let patience = if LOST.load(Relaxed) == 0 { PATIENCE } else { Duration::ZERO };
    if !crate::sys::fd::takes_line(patience) {
        LOST.fetch_add(1, Relaxed);
        return;
    }
    let line = match LOST.swap(0, Relaxed) {
        0 => line,
        lost => format!("refork: warning: {lost} line(s) are lost: nobody read standard error\n{line}"),
    };
    crate::sys::signal::without_tty_stops(|| {
        let _ = std::io::stderr().write_all(cut(&line).as_bytes());
    });
}

/// What a pipe with room takes at once (PIPE_BUF on Linux): more would wait for a reader.
fn cut(line: &str) -> Cow<'_, str> {
    const MOST: usize = 4096;
    if line.len() <= MOST {
        return line.into();
    }
    // What went wrong stands at the end.
    let boundary = |at: usize| (0..=at).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    let (head, tail) = (boundary(MOST / 2), boundary(line.len() - MOST / 2 + 8));
    format!("{}...{}", &line[..head], &line[tail..]).into()
}

/// `say` for a warning that is used once.
pub(crate) fn warn(text: impl Into<String>) {
    say(&Note::warn(text));
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_line_is_at_most_what_a_pipe_takes_at_once() {
        assert_eq!(cut("a line\n"), "a line\n");
        let long = cut(&format!("x{}y\n", "\u{e4}".repeat(3000))).into_owned();
        assert!(long.len() <= 4096 && long.len() > 4080, "{}", long.len());
        assert!(long.starts_with("x\u{e4}") && long.contains("\u{e4}...\u{e4}") && long.ends_with("\u{e4}y\n"));
    }
}
