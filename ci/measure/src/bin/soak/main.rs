//! `soak watch [SECONDS] [SEED] [inotify|polling]`: random operations on a tree; what `refork watch --json --all`
//! reports, with inotify and with polling at once or with one of them, is compared after each pause with a full re-read
//! of the tree.
//!
//! REFORK names the command under test. The seed is printed, and the same seed gives the same operations.

mod deeds;
mod files;
mod judge;
mod state;

use deeds::{Deed, Place};
use judge::Judge;
use measure::now_ns;
use measure::process::{Speech, Watcher};
use state::Tree;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// After this long what was not reported never will be.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default: u64| args.get(n).map_or(Some(default), |text| text.parse().ok());
    let only = args.get(3).map(String::as_str);
    let (Some("watch"), Some(seconds), Some(seed), None | Some("inotify" | "polling"), ..=4) =
        (args.first().map(String::as_str), number(1, 20), number(2, now_ns() % 1_000_000), only, args.len())
    else {
        eprintln!("usage: soak watch [SECONDS] [SEED] [inotify|polling]");
        return ExitCode::from(2);
    };
    println!("seed {seed}");
    let top = std::env::temp_dir().join(format!("refork-soak-{}", std::process::id()));
    let result = std::fs::create_dir_all(&top)
        .and_then(|()| top.canonicalize())
        .map_err(|error| format!("cannot make {}: {error}", top.display()))
        .and_then(|top| soak(&top, Duration::from_secs(seconds), seed, only));
    let _ = std::fs::remove_dir_all(&top); // at the end: nothing more can be done about it
    match result {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A watcher and what it said since the last pause.
struct Ear {
    name: &'static str,
    polls: bool,
    watcher: Watcher,
    batches: Vec<(u64, Vec<PathBuf>)>,
    last: HashMap<PathBuf, u64>,
}

impl Ear {
    fn new(name: &'static str, option: Option<&str>, root: &Path) -> Result<Ear, String> {
        let refork = std::env::var("REFORK").unwrap_or_else(|_| "target/release/refork".to_owned());
        let mut command: Vec<String> = [&refork, "watch", "--json", "--all"].map(str::to_owned).to_vec();
        command.extend(option.map(str::to_owned));
        command.push(root.display().to_string());
        let watcher = Watcher::start(&command, Speech::Json).map_err(|error| format!("{refork}: {error}"))?;
        watcher.ready()?;
        Ok(Ear { name, polls: option.is_some(), watcher, batches: Vec::new(), last: HashMap::new() })
    }

    /// Takes one batch, if one comes in time.
    fn hear(&mut self, patience: Duration) -> Result<(), String> {
        let Some(heard) = self.watcher.hear(patience)? else { return Ok(()) };
        let line = heard.line;
        if let Some(error) = line.error {
            return Err(format!("it says: {error}"));
        }
        if !line.paths.windows(2).all(|pair| pair[0] < pair[1] || pair[0].as_os_str() < pair[1].as_os_str()) {
            return Err(format!("not sorted, or twice: {:?}", line.paths));
        }
        for path in &line.paths {
            self.last.insert(path.clone(), line.t_ns);
        }
        self.batches.push((line.t_ns, line.paths));
        Ok(())
    }

    /// Hears until `enough` is true of the last reports; false if that never comes.
    fn until(&mut self, enough: impl Fn(&HashMap<PathBuf, u64>) -> bool) -> Result<bool, String> {
        let end = Instant::now() + PATIENCE;
        while !enough(&self.last) {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return Ok(false) };
            self.hear(left)?;
        }
        Ok(true)
    }
}

fn soak(top: &Path, time: Duration, seed: u64, only: Option<&str>) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("an operation failed: {error}");
    let mut place = Place::new(top, seed).map_err(failed)?;
    let fence = place.root.join("fence");
    let mut ears = Vec::new();
    for (name, option) in [("inotify", None), ("polling", Some("--poll=50"))] {
        if only.is_none_or(|only| only == name) {
            ears.push(Ear::new(name, option, &place.root)?);
        }
    }
    let (start, mut before) = (Instant::now(), Tree::read(&place.root));
    let (mut pauses, mut operations) = (0, 0);
    while start.elapsed() < time {
        let mut deeds = Vec::new();
        for _ in 0..=place.below(30) {
            deeds.extend(place.deed().map_err(failed)?);
            match place.below(10) {
                0..=6 => {}
                7 | 8 => std::thread::sleep(Duration::from_millis(place.below(5) as u64)),
                _ => std::thread::sleep(Duration::from_millis(20 + place.below(60) as u64)), // into another batch
            }
        }
        let after = Tree::read(&place.root);
        for ear in &mut ears {
            let polls = ear.polls;
            let judge = Judge { before: &before, after: &after, deeds: &deeds, linked: &place.linked, polls };
            let told = ear.until(|reported| judge.missed(reported).is_empty());
            let verdict = told.map(|_| judge.missed(&ear.last));
            complain(ear, &judge, "missed", verdict, &place.root, pauses)?;
        }
        // Two fences: a sweep that sees the first may have been elsewhere too early, one that sees the second was not.
        for text in ["first\n", "second\n"] {
            let at = now_ns();
            std::fs::write(&fence, text).map_err(failed)?;
            for ear in &mut ears {
                let told = ear.until(|reported| reported.get(&fence).is_some_and(|&reported| reported >= at));
                let verdict = told.map(|told| if told { Vec::new() } else { vec![fence.clone()] });
                let judge =
                    Judge { before: &before, after: &after, deeds: &deeds, linked: &place.linked, polls: false };
                complain(ear, &judge, "missed", verdict, &place.root, pauses)?;
            }
        }
        for ear in &mut ears {
            let polls = ear.polls;
            let judge = Judge { before: &before, after: &after, deeds: &deeds, linked: &place.linked, polls };
            let verdict = Ok(judge.phantoms(ear.last.keys()));
            complain(ear, &judge, "phantom", verdict, &place.root, pauses)?;
            ear.batches.clear();
            ear.last.clear();
        }
        if std::env::var_os("SOAK_LOG").is_some() {
            for Deed { text, touched, .. } in &deeds {
                eprintln!("{pauses} {text} {:?}", touched.iter().map(|(path, _)| path).collect::<Vec<_>>());
            }
        }
        // The fences are the tree's only change since `after` was read.
        before = Tree::read(&place.root);
        pauses += 1;
        operations += deeds.len();
    }
    Ok(format!("{operations} operations, {pauses} pauses: nothing missed, nothing phantom"))
}

/// An error that shows the whole interval, unless there is nothing to complain about.
fn complain(
    ear: &Ear,
    judge: &Judge,
    what: &str,
    verdict: Result<Vec<PathBuf>, String>,
    root: &Path,
    pause: usize,
) -> Result<(), String> {
    let wrong = match verdict {
        Ok(paths) if paths.is_empty() => return Ok(()),
        Ok(paths) => {
            let lines = paths.iter().map(|path| {
                let states = (judge.before.file(path), judge.after.file(path));
                let names = judge.names(path, true);
                format!("  {what}: {names:?}\n    before {:?}\n    after  {:?}\n", states.0, states.1)
            });
            lines.collect()
        }
        Err(error) => format!("  {error}\n"),
    };
    let zero = judge.deeds.first().map_or(0, |deed| deed.at);
    let ms = |at: u64| (at as f64 - zero as f64) / 1e6;
    let short = |path: &Path| format!("{:?}", path.strip_prefix(root).unwrap_or(path));
    let deeds = judge.deeds.iter().map(|Deed { at, text, touched }| {
        let paths: Vec<_> = touched.iter().map(|(path, _)| short(path)).collect();
        format!("  {:8.1} ms {text}: {}\n", ms(*at), paths.join(" "))
    });
    let batches = ear.batches.iter().map(|(at, paths)| {
        format!("  {:8.1} ms {}\n", ms(*at), paths.iter().map(|path| short(path)).collect::<Vec<_>>().join(" "))
    });
    let (deeds, batches): (String, String) = (deeds.collect(), batches.collect());
    Err(format!("{}, pause {pause}\n{wrong}operations:\n{deeds}reports:\n{batches}", ear.name))
}
