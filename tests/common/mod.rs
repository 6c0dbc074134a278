//! Real processes for the tests: started, heard line by line, signalled, and gone at the end whatever happens.
//!
//! Nothing here sleeps to wait for something: lines, exits and answers are waited for, under one generous ceiling.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Against hangs only.
pub const CEILING: Duration = Duration::from_secs(20);

pub const REFORK: &str = env!("CARGO_BIN_EXE_refork");

/// An example's file.
pub fn example(name: &str) -> PathBuf {
    Path::new(REFORK).with_file_name("examples").join(name)
}

/// A directory of one's own, removed at the end.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Dir {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("refork-test-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn str(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file aside and renames it into place.
    pub fn save(&self, name: &str, text: &str) -> String {
        let name_only = name.rsplit('/').next().unwrap();
        let aside = self.path(name).with_file_name(format!(".{name_only}.new"));
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(&aside, self.path(name)).unwrap();
        self.str(name)
    }

    /// An executable script. Written by a process of its own: a descriptor open for writing that another test's fork
    /// inherits for a moment would make its execution fail (ETXTBSY).
    pub fn script(&self, name: &str, text: &str) -> String {
        sh(&format!("cat > '{0}.new' && chmod 755 '{0}.new' && mv '{0}.new' '{0}'", self.str(name)), text);
        self.str(name)
    }

    /// A copy of the probe server whose code is `tag`, renamed into place.
    pub fn probe(&self, name: &str, tag: &str) -> String {
        let probe = example("probe");
        let script =
            format!("cp '{}' '{1}.new' && cat >> '{1}.new' && mv '{1}.new' '{1}'", probe.display(), self.str(name));
        sh(&script, &format!("TAG:{tag}"));
        self.str(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a shell script with `input`; it must succeed.
pub fn sh(script: &str, input: &str) -> String {
    let mut child =
        Command::new("sh").args(["-ec", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Looks again and again until it is so. For what has no line, no exit and no answer to wait for.
pub fn until(what: impl Fn() -> String, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + CEILING;
    while !fact() {
        assert!(Instant::now() < deadline, "{}", what());
        std::thread::yield_now();
    }
}

/// A running process. Its standard error is heard, its standard output collected.
pub struct Proc {
    child: Child,
    lines: Receiver<String>,
    /// Every line so far.
    pub seen: Vec<String>,
    out: Option<JoinHandle<String>>,
}

impl Proc {
    pub fn start(program: impl AsRef<OsStr>, args: &[&str]) -> Proc {
        let mut command = Command::new(program.as_ref());
        command.args(args);
        Proc::spawn(command)
    }

    pub fn spawn(command: Command) -> Proc {
        Proc::spawn_with(command, Stdio::null())
    }

    pub fn spawn_with(mut command: Command, stdin: Stdio) -> Proc {
        command.stderr(Stdio::piped()).stdout(Stdio::piped()).stdin(stdin);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.split(b'\n') {
                let Ok(line) = line else { break };
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut stdout = child.stdout.take().unwrap();
        let out = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        Proc { child, lines, seen: Vec::new(), out: Some(out) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that contains `needle`; those before it are only remembered.
    pub fn line(&mut self, needle: &str) -> String {
        let deadline = Instant::now() + CEILING;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(needle) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no line with {needle:?} in:\n{}", self.log()),
                Err(RecvTimeoutError::Disconnected) => panic!("ended without {needle:?}:\n{}", self.log()),
            }
        }
    }

    pub fn log(&self) -> String {
        self.seen.join("\n")
    }

    /// How many lines so far contain `needle`.
    pub fn count(&self, needle: &str) -> usize {
        self.seen.iter().filter(|line| line.contains(needle)).count()
    }

    /// The address of the next `listening on` line.
    pub fn addr(&mut self) -> String {
        let line = self.line("listening on ");
        line.split("listening on ").nth(1).unwrap().to_owned()
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Its end, with all that it still says.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + CEILING;
        // Lines end when the last process that holds standard error has ended: master and workers.
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("does not end:\n{}", self.log()),
            }
        }
    }

    /// SIGTERM, and the end with exit code 0.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    pub fn stdout(&mut self) -> String {
        self.out.take().unwrap().join().unwrap()
    }

    /// The pids of its children that are not zombies, the oldest first; how many are.
    pub fn children(&self) -> (Vec<u32>, usize) {
        let pid = self.pid();
        let mut live = Vec::new();
        let mut zombies = 0;
        // In the order in which they were forked, for a number says nothing once numbers have begun anew; elsewhere by number.
        let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let names = || std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
        let all: Vec<u32> = match listed {
            Ok(text) => text.split_whitespace().filter_map(|child| child.parse().ok()).collect(),
            Err(_) => names().filter_map(|name| name.to_str()?.parse().ok()).collect(),
        };
        for child in all {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            let state = fields.next();
            if fields.next() == Some(&pid.to_string()) {
                match state {
                    Some("Z") => zombies += 1,
                    _ => live.push(child),
                }
            }
        }
        (live, zombies)
    }

    /// Its open descriptors and threads.
    pub fn resources(&self) -> (usize, usize) {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", self.pid())).unwrap().count();
        (count("fd"), count("task"))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // Its workers notice the end of their master.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
                self.seen.push(line);
            }
            eprintln!("--- log of {}\n{}\n---", self.pid(), self.log());
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// One request; everything up to the end of the connection. An answer that is not complete is an error.
pub fn get(addr: &str, path: &str) -> Result<String, String> {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(addr).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(CEILING)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).map_err(|e| format!("write: {e}"))?;
    stream.read_to_string(&mut answer).map_err(|e| format!("read: {e}, after {answer:?}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if complete(head, body) => Ok(body.to_owned()),
        _ => Err(format!("incomplete: {answer:?}")),
    }
}

fn complete(head: &str, body: &str) -> bool {
    match head.split_once("Content-Length: ") {
        Some((_, length)) => length.lines().next() == Some(&body.len().to_string()),
        None => body.ends_with("end\n"),
    }
}

/// The value of `key=` in an answer.
pub fn field(answer: &str, key: &str) -> String {
    let at = answer.find(&format!("{key}=")).unwrap_or_else(|| panic!("no {key} in {answer:?}"));
    answer[at + key.len() + 1..].split_whitespace().next().unwrap_or_default().to_owned()
}

/// A client that connects every 5 ms and wants a complete answer each time.
pub struct Load {
    stop: Arc<AtomicBool>,
    answers: Receiver<Result<String, String>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub fn start(addr: &str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, answers) = channel();
        let (flag, addr) = (stop.clone(), addr.to_owned());
        let thread = std::thread::spawn(move || {
            while !flag.load(SeqCst) {
                let _ = send.send(get(&addr, "/"));
                #[allow(clippy::disallowed_methods)] // the load's rhythm: nothing is waited for
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Load { stop, answers, thread: Some(thread) }
    }

    /// The next answers, until one contains `needle`. Every one must be complete.
    pub fn until(&self, needle: &str) -> String {
        let deadline = Instant::now() + CEILING;
        while Instant::now() < deadline {
            let answer = self.answers.recv_timeout(CEILING).expect("an answer").expect("a complete answer");
            if answer.contains(needle) {
                return answer;
            }
        }
        panic!("no answer with {needle:?}")
    }

    /// Ends it: how many answers there were since. Every one must have been complete.
    pub fn stop(mut self) -> usize {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        let mut count = 0;
        for answer in self.answers.try_iter() {
            answer.expect("a complete answer");
            count += 1;
        }
        count
    }
}
