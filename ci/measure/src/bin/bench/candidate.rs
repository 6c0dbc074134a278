//! The watchers that are compared, and what is measured of each.

use crate::tree::{Tree, FILES_EACH};
use measure::process::{Speech, Watcher, CEILING};
use measure::Random;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub struct Candidate {
    pub name: &'static str,
    /// Without the root, which comes last.
    pub command: Vec<String>,
    pub speech: Speech,
    /// What it says it waits for after a change, ms; 0: it reports at once.
    pub debounce: u64,
    pub parts: Parts,
    pub results: Results,
    /// Why it is not measured any more.
    pub failed: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Parts {
    All,
    Arming,
    Bursts,
}

#[derive(Default)]
pub struct Results {
    pub arm_ms: Vec<f64>,
    pub memory_mib: Vec<f64>,
    pub calls: Option<f64>,
    pub burst_ms: Vec<f64>,
    pub missed: Vec<f64>,
    pub reports: Vec<f64>,
    pub beyond_ms: Vec<f64>,
    pub lost: usize,
    pub idle: Option<f64>,
}

type Done = Result<(), String>;

fn told<T>(result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

impl Candidate {
    pub fn new(name: &'static str, command: &[&str], debounce: u64, parts: Parts) -> Candidate {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let (speech, results) = (Speech::Json, Results::default());
        Candidate { name, command, speech, debounce, parts, results, failed: None }
    }

    fn start(&self, root: &Path) -> Result<(Watcher, u64), String> {
        let mut command = self.command.clone();
        command.push(root.display().to_string());
        let watcher = told(Watcher::start(&command, self.speech))?;
        let took = watcher.ready()?;
        Ok((watcher, took))
    }

    pub fn arm(&mut self, tree: &Tree) -> Done {
        let (watcher, took) = self.start(&tree.root)?;
        self.results.arm_ms.push(took as f64 / 1e6);
        self.results.memory_mib.push(watcher.memory() as f64 / (1 << 20) as f64);
        Ok(())
    }

    /// System calls per directory: those for the tree less those for an empty one.
    pub fn calls(&mut self, tree: &Tree) -> Done {
        let extra = self.traced(&tree.root)? - self.traced(&told(tree.empty())?)?;
        self.results.calls = Some(extra / (tree.dirs.len() - 1) as f64);
        Ok(())
    }

    fn traced(&self, root: &Path) -> Result<f64, String> {
        let summary = root.with_file_name("strace");
        let mut command: Vec<String> = ["strace", "-c", "-f", "-o"].map(str::to_owned).to_vec();
        command.push(summary.display().to_string());
        command.extend(self.command.iter().cloned());
        command.push(root.display().to_string());
        let tracer = told(Watcher::start(&command, self.speech))?;
        tracer.ready()?;
        let tracer_pid = tracer.pid();
        let children = told(std::fs::read_to_string(format!("/proc/{tracer_pid}/task/{tracer_pid}/children")))?;
        for child in children.split_whitespace() {
            told(Command::new("kill").arg(child).status())?;
        }
        tracer.ended(CEILING)?;
        let text = told(std::fs::read_to_string(summary))?;
        let total = text.lines().find(|line| line.ends_with(" total"));
        let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
        calls.ok_or_else(|| format!("strace says {text}"))
    }

    /// CPU for one new file in each directory; then as many in directories just created, and how many went unreported.
    pub fn bursts(&mut self, tree: &Tree) -> Done {
        let (watcher, _) = self.start(&tree.root)?;
        watcher.listen(Duration::from_millis(200))?;
        let before = watcher.cpu();
        let (missed, reports) = await_all(&watcher, told(tree.fill())?)?;
        self.results.burst_ms.push((watcher.cpu() - before) as f64 / 1e6);
        self.results.reports.push(reports as f64);
        if missed > 0 {
            return Err(format!("{missed} new files in existing directories went unreported"));
        }
        let (missed, _) = await_all(&watcher, told(tree.check_out())?)?;
        self.results.missed.push(missed as f64);
        Ok(())
    }

    /// From a save of one file to its report, beyond the nominal debounce.
    pub fn saves(&mut self, tree: &Tree, count: usize, idle: Duration, random: &mut Random) -> Done {
        let (watcher, _) = self.start(&tree.root)?;
        watcher.listen(Duration::from_millis(500))?;
        let before = watcher.switches();
        if !watcher.listen(idle)?.is_empty() {
            return Err("reports without a change".to_owned());
        }
        self.results.idle = Some((watcher.switches() - before) as f64 / idle.as_secs_f64());
        for n in 0..count {
            let (file, first, last) = told(tree.save(random, n % 2 == 0))?;
            let from = if self.debounce == 0 { first } else { last + self.debounce * 1_000_000 };
            match await_file(&watcher, &file)? {
                Some(at) => self.results.beyond_ms.push((at as f64 - from as f64) / 1e6),
                None => self.results.lost += 1,
            }
            // The pause has no beat, so that it does not fall in with the watcher's ticks.
            watcher.listen(Duration::from_millis(20 + random.below(50) as u64))?;
        }
        Ok(())
    }

    /// CPU of one sweep, ms: taken from outside as what is used between two stretches of idling.
    pub fn sweeps(&self, root: &Path, count: usize) -> Result<Vec<f64>, String> {
        let (watcher, _) = self.start(root)?;
        let (mut sweeps, mut still) = (Vec::new(), 0);
        let (mut start, mut last) = (watcher.cpu(), watcher.cpu());
        for _ in 0..CEILING.as_millis() / 10 {
            watcher.listen(Duration::from_millis(10))?;
            let now = watcher.cpu();
            still = if now == last { still + 1 } else { 0 };
            last = now;
            if still == 8 {
                if now - start > 100_000 {
                    sweeps.push((now - start) as f64 / 1e6);
                }
                start = now;
            }
            if sweeps.len() > count {
                return Ok(sweeps.split_off(1)); // the first one holds the rest of the start
            }
        }
        Err(format!("only {} sweeps seen", sweeps.len()))
    }

    /// Memory per file of a polling watcher, bytes.
    pub fn memory_per_file(&self, tree: &Tree) -> Result<f64, String> {
        let (full, _) = self.start(&tree.root)?;
        let (empty, _) = self.start(&told(tree.empty())?)?;
        Ok((full.memory() as f64 - empty.memory() as f64) / (tree.dirs.len() * FILES_EACH) as f64)
    }
}

/// Waits for the report of every one of `files`, then for silence; how many did not come, and the number of reports.
fn await_all(watcher: &Watcher, mut files: HashSet<PathBuf>) -> Result<(usize, usize), String> {
    let mut reports = 0;
    loop {
        let patience = if files.is_empty() { 300 } else { 3000 };
        match watcher.hear(Duration::from_millis(patience))? {
            None => return Ok((files.len(), reports)),
            Some(heard) => {
                reports += 1;
                for path in &heard.line.paths {
                    files.remove(path);
                }
            }
        }
    }
}

fn await_file(watcher: &Watcher, file: &Path) -> Result<Option<u64>, String> {
    while let Some(heard) = watcher.hear(Duration::from_secs(3))? {
        if heard.line.paths.iter().any(|path| path == file) {
            return Ok(Some(heard.at));
        }
    }
    Ok(None)
}

/// Whether a program can be found.
pub fn exists(program: &str) -> bool {
    let found = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok()
}
