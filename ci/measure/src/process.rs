//! A watcher as a process: started, heard line by line, each line with the time it arrived here, weighed by /proc.

use crate::json::{self, Line};
use crate::now_ns;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Against hangs only.
pub const CEILING: Duration = Duration::from_secs(60);

/// What a watcher prints.
#[derive(Clone, Copy, PartialEq)]
pub enum Speech {
    /// As `refork watch --json`.
    Json,
    /// As `inotifywait -m -r --format %w%f`: one path a line, "Watches established." when armed.
    Plain,
}

pub struct Watcher {
    child: Child,
    lines: Receiver<(u64, Vec<u8>)>,
    reader: Option<JoinHandle<()>>,
    speech: Speech,
    started: u64,
}

/// One line and when it arrived, CLOCK_MONOTONIC in ns.
pub struct Heard {
    pub at: u64,
    pub line: Line,
}

impl Watcher {
    pub fn start(command: &[String], speech: Speech) -> io::Result<Watcher> {
        let (mut from, to) = io::pipe()?;
        // SAFETY: plain call on a descriptor we own. Only a hint (1 MiB): a full pipe would hold the watcher up.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20)
        };
        let mut child = Command::new(&command[0]);
        child.args(&command[1..]).stdin(Stdio::null());
        if speech == Speech::Plain {
            child.stderr(to.try_clone()?);
        }
        let started = now_ns();
        let child = child.stdout(to).spawn()?;
        let (send, lines) = channel();
        let reader = std::thread::spawn(move || {
            let (mut chunk, mut line) = (vec![0; 1 << 16], Vec::new());
            while let Ok(len @ 1..) = from.read(&mut chunk) {
                let at = now_ns();
                for piece in chunk[..len].split_inclusive(|&byte| byte == b'\n') {
                    line.extend_from_slice(piece);
                    if line.pop_if(|&mut byte| byte == b'\n').is_some() {
                        let _ = send.send((at, std::mem::take(&mut line))); // not heard any more: at the end
                    }
                }
            }
        });
        Ok(Watcher { child, lines, reader: Some(reader), speech, started })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, if one comes within `patience`.
    pub fn hear(&self, patience: Duration) -> Result<Option<Heard>, String> {
        match self.lines.recv_timeout(patience) {
            Ok((at, line)) => match self.understand(&line) {
                Some(line) => Ok(Some(Heard { at, line })),
                None => Err(format!("not understood: {}", String::from_utf8_lossy(&line))),
            },
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("the watcher has ended".to_owned()),
        }
    }

    fn understand(&self, line: &[u8]) -> Option<Line> {
        if self.speech == Speech::Json {
            return json::parse(line);
        }
        let text = String::from_utf8(line.to_vec()).ok()?;
        let ready = text == "Watches established.";
        let paths = if text.starts_with('/') { vec![text.into()] } else { Vec::new() };
        Some(Line { ready, paths, ..Line::default() })
    }

    /// Waits until it is armed; the time since it was started, in ns.
    pub fn ready(&self) -> Result<u64, String> {
        let end = Instant::now() + CEILING;
        while let Some(patience) = end.checked_duration_since(Instant::now()) {
            match self.hear(patience)? {
                Some(heard) if heard.line.ready => return Ok(heard.at - self.started),
                _ => {}
            }
        }
        Err("not ready".to_owned())
    }

    /// Waits until it has ended by itself.
    pub fn ended(mut self, patience: Duration) -> Result<(), String> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            match self.lines.recv_timeout(patience) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    return self.child.wait().map(|_| ()).map_err(|error| error.to_string());
                }
            }
        }
        Err("does not end".to_owned())
    }

    /// All that is said until nothing was for `quiet`.
    pub fn listen(&self, quiet: Duration) -> Result<Vec<Heard>, String> {
        let mut heard = Vec::new();
        while let Some(next) = self.hear(quiet)? {
            heard.push(next);
        }
        Ok(heard)
    }

    /// Sum over all threads of a number in /proc/PID/task/*.
    fn per_thread(&self, read: impl Fn(&std::path::Path) -> Option<u64>) -> u64 {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return 0 };
        tasks.flatten().filter_map(|task| read(&task.path())).sum()
    }

    /// User and system time of all threads, ns.
    pub fn cpu(&self) -> u64 {
        self.per_thread(|task| fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok())
    }

    /// Context switches of all threads, voluntary and not.
    pub fn switches(&self) -> u64 {
        self.per_thread(|task| {
            let status = fs::read_to_string(task.join("status")).ok()?;
            Some(status.lines().filter(|line| line.contains("_ctxt_switches:")).filter_map(number).sum())
        })
    }

    /// Resident memory, bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        status.lines().find(|line| line.starts_with("VmRSS:")).and_then(number).unwrap_or(0) * 1024
    }
}

/// The first number of a line.
fn number(line: &str) -> Option<u64> {
    line.split_whitespace().find_map(|word| word.parse().ok())
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill(); // gone already: as good
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
