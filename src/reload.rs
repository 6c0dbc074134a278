//! `refork reload`: asks a master, and waits for what comes of it.

use crate::cli::{show, Reload};
use refork::{Backend, FileChangeWatcher, Level};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

/// How often the master is asked for, which writes nothing when it is killed.
const LOOK: Duration = Duration::from_secs(1);
/// More than a status file with as many workers as there can be.
const MOST: u64 = 8 << 20;

/// What the status file says: see `refork::Master::status_file`.
struct Status {
    pid: u32,
    start_time: String,
    reload: u64,
    generation: u64,
    state: String,
    /// The last reload that has ended.
    done: u64,
    last_error: String,
}

impl Status {
    fn read(path: &Path) -> Result<Status, String> {
        let shown = show::line(path.as_os_str().as_encoded_bytes());
        let text = text_of(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        Status::parse(&text).ok_or_else(|| format!("{shown} is not a status file of refork"))
    }

    fn parse(text: &str) -> Option<Status> {
        let value = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let quoted = lines.into_iter().find(|(name, _)| *name == key)?.1;
            // As a shell reads it: single quotes, and a quote in them as '\\''.
            Some(quoted.strip_prefix('\'')?.strip_suffix('\'')?.replace(r"'\''", "'"))
        };
        Some(Status {
            pid: value("pid")?.parse().ok().filter(|pid| *pid > 0)?,
            start_time: value("start_time")?,
            reload: value("reload")?.parse().ok()?,
            generation: value("generation")?.parse().ok()?,
            state: value("state")?,
            done: value("done")?.parse().ok()?,
            last_error: value("last_error")?,
        })
    }

    /// Why nobody is to be asked: the process that wrote it does not live (another one may have got its number), or a
    /// HUP would be in vain, or would end a process that has left `Master::run`.
    fn gone(&self) -> Option<String> {
        let lives = match self.start_time.as_str() {
            // No /proc where it was written: another process may have got the number, but nobody has not.
            "" => refork::exists(self.pid),
            time => match start_time(self.pid) {
                Some(now) => now == time,
                // No /proc here: as above.
                None => start_time(std::process::id()).is_none() && refork::exists(self.pid),
            },
        };
        let what = match self.state.as_str() {
            "stopping" if lives => "is stopping",
            "stopped" => "has ended",
            _ if !lives => "has ended",
            _ => return None,
        };
        Some(format!("the master (process {}) {what}", self.pid))
    }
}

/// Whatever the path leads to: neither a pipe without a writer nor a file without an end holds us.
fn text_of(path: &Path) -> std::io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// proc(5), field 22 of stat. The name before it may contain anything.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    // A zombie is nobody any more.
    let alive = fields.next()? != "Z";
    fields.nth(18).filter(|_| alive).map(str::to_owned)
}

/// Asks, and says in one line what came of it; the exit code.
pub(crate) fn run(reload: Reload) -> refork::Result<ExitCode> {
    // Only our own words.
    refork::log_level(Level::Error);
    let said = match reload {
        Reload::Pid(pid) => refork::reload(pid).map(|()| (0, format!("asked process {pid} to reload")))?,
        Reload::Status(path, None) => ask(&path)?,
        Reload::Status(path, Some(timeout)) => wait(&path, timeout)?,
    };
    Ok(match said {
        (0, text) => crate::print(&format!("{text}\n")).map_or_else(crate::unread, |()| ExitCode::SUCCESS),
        (code, text) => {
            crate::complain(&text);
            ExitCode::from(code)
        }
    })
}

fn ask(path: &Path) -> refork::Result<(u8, String)> {
    let status = match Status::read(path) {
        Ok(status) => status,
        Err(why) => return Ok((1, why)),
    };
    if let Some(why) = status.gone() {
        return Ok((1, why));
    }
    refork::reload(status.pid)?;
    Ok((0, format!("asked process {} to reload", status.pid)))
}

/// Armed first, then read: no state is missed. One reload at a time has a number, so one that runs already is waited
/// for.
fn wait(path: &Path, timeout: Duration) -> refork::Result<(u8, String)> {
    let (send, changed) = channel();
    let mut watcher = FileChangeWatcher::new([path], move |_: &[std::path::PathBuf]| {
        let _ = send.send(());
    })
    .debounce(Duration::ZERO, Duration::ZERO)
    .backend(Backend::Auto);
    watcher.start()?;
    let until = refork::monotonic() + timeout;
    // The number of the last reload before ours.
    let mut asked: Option<u64> = None;
    loop {
        let status = match Status::read(path) {
            Ok(status) => status,
            Err(why) => return Ok((1, why)),
        };
        // A reload that a SIGTERM has ended has brought nothing.
        if let Some(why) = status.gone() {
            return Ok((1, why));
        }
        match asked {
            // By what has just been read, not anew: a reload that begins now may already be ours.
            None if status.state != "reloading" => {
                refork::reload(status.pid)?;
                asked = Some(status.reload);
            }
            Some(before) if status.done > before => {
                let (reload, error) = (status.done, &status.last_error);
                return Ok(match error.is_empty() {
                    true => (0, format!("reload #{reload}: generation {} is ready", status.generation)),
                    false => (1, format!("reload #{reload} has failed: {error}")),
                });
            }
            None | Some(_) => {}
        }
        let left = until.saturating_sub(refork::monotonic());
        if left.is_zero() {
            let ms = timeout.as_millis();
            return Ok(match asked {
                Some(_) => (5, format!("no outcome after {ms} ms")),
                None => (5, format!("another reload runs after {ms} ms: nothing was asked for")),
            });
        }
        match changed.recv_timeout(left.min(LOOK)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok((1, "the watcher has ended".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn a_status_file_is_read_as_a_shell_reads_it() {
        let text = "pid='7'\nstart_time='12'\ngeneration='3'\nreload='2'\nstate='serving'\nworkers=''\n\
                    done='1'\nlast_error='it'\\''s = bad'\nimage='/x'\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.pid, status.reload, status.done, status.generation), (7, 2, 1, 3));
        assert_eq!((status.start_time.as_str(), status.state.as_str()), ("12", "serving"));
        assert_eq!(status.last_error, "it's = bad");
        for bad in ["", "pid=7", "pid='0'", "pid='-1'", "pid='7'", "\0\u{fffd}", &text.replace("'2'", "'x'")] {
            assert!(Status::parse(bad).is_none(), "{bad}");
        }
    }
}
