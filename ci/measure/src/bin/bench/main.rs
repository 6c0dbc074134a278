//! `bench watch [--quick]`: watchers side by side, in turn and in several rounds, medians, ratios to a C program.
//!
//! Everything is seen from outside: the lines they print, and /proc. Run through ci/bench, which builds the peers.
//! REFORK names the command under test, PEERS the directory of the C programs, PYTHON a Python that has watchfiles,
//! BENCH_DIR where the tree is built.

mod candidate;
mod table;
mod tree;

use candidate::{exists, Candidate, Parts};
use measure::process::Speech;
use measure::Random;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tree::Tree;

/// How much is done.
struct Size {
    dirs: usize,
    arms: usize,
    bursts: usize,
    /// Saves in each round, and the rounds.
    saves: (usize, usize),
    idle: Duration,
    sweeps: usize,
}

const FULL: Size = Size { dirs: 10_000, arms: 9, bursts: 9, saves: (100, 3), idle: Duration::from_secs(5), sweeps: 5 };
const QUICK: Size = Size { dirs: 2_000, arms: 3, bursts: 1, saves: (20, 1), idle: Duration::from_secs(1), sweeps: 2 };

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let size = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["watch"] => FULL,
        ["watch", "--quick"] => QUICK,
        _ => {
            eprintln!("usage: bench watch [--quick]");
            return ExitCode::from(2);
        }
    };
    match run(&size) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn candidates(skipped: &mut Vec<String>) -> Vec<Candidate> {
    let refork = variable("REFORK", "target/release/refork");
    let here = variable("PEERS", "ci/measure/target");
    let python = variable("PYTHON", "ci/measure/target/venv/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/watchfiles_json.py");
    let peer = |name: &str| format!("{here}/release/{name}");
    let c = format!("{here}/watch");
    let mut all = vec![
        Candidate::new("refork", &[&refork, "watch", "--json"], 50, Parts::All),
        Candidate::new("refork --no-follow", &[&refork, "watch", "--json", "--no-follow"], 50, Parts::Arming),
        Candidate::new("C", &[&c], 0, Parts::All),
        Candidate::new("C -n (leaves not opened)", &[&c, "-n"], 0, Parts::Arming),
        Candidate::new("C -d 5 (reads 5 ms late)", &[&c, "-d", "5"], 0, Parts::Bursts),
        Candidate::new("notify 8 (raw)", &[&peer("notify-raw")], 0, Parts::All),
        Candidate::new("notify-debouncer-full 0.7", &[&peer("notify-debounced")], 50, Parts::All),
        Candidate::new("watchfiles", &[&python, script], 50, Parts::All),
        Candidate::new(
            "inotifywait -m -r",
            &["inotifywait", "-m", "-r", "-e", "create,modify,close_write,attrib,delete,move", "--format", "%w%f"],
            0,
            Parts::All,
        ),
    ];
    all[8].speech = Speech::Plain;
    all.retain(|candidate| {
        let found = exists(&candidate.command[0]);
        if !found {
            skipped.push(format!("{}: {} cannot be run", candidate.name, candidate.command[0]));
        }
        found
    });
    all
}

/// One part for each candidate in turn, in another order each round; one that fails is not asked again.
fn each(all: &mut [Candidate], tree: &Tree, round: usize, mut part: impl FnMut(&mut Candidate) -> Result<(), String>) {
    let (before, after) = all.split_at_mut(round % all.len().max(1));
    for candidate in after.iter_mut().chain(before).filter(|candidate| candidate.failed.is_none()) {
        if let Err(error) = part(candidate) {
            eprintln!("bench: {}: {error}", candidate.name);
            candidate.failed = Some(error);
        }
        if let Err(error) = tree.clean() {
            eprintln!("bench: cannot clean the tree: {error}");
        }
    }
}

fn run(size: &Size) -> Result<bool, String> {
    let mut skipped = Vec::new();
    let mut all = candidates(&mut skipped);
    let tree = Tree::build(size.dirs).map_err(|error| format!("cannot build the tree: {error}"))?;
    println!("{} directories, {} files in {}", tree.dirs.len(), tree.dirs.len() * tree::FILES_EACH, kind(&tree.root));

    for round in 0..size.arms {
        each(&mut all, &tree, round, |candidate| match candidate.parts {
            Parts::Bursts => Ok(()),
            _ => candidate.arm(&tree),
        });
    }
    if exists("strace") {
        each(&mut all, &tree, 0, |candidate| match candidate.parts {
            Parts::Bursts => Ok(()),
            _ => candidate.calls(&tree),
        });
    } else {
        skipped.push("system calls: strace cannot be run".to_owned());
    }
    for round in 0..size.bursts {
        each(&mut all, &tree, round, |candidate| match candidate.parts {
            Parts::Arming => Ok(()),
            _ => candidate.bursts(&tree),
        });
    }
    let mut random = Random::new(1);
    for round in 0..size.saves.1 {
        each(&mut all, &tree, round, |candidate| match candidate.parts {
            Parts::All => candidate.saves(&tree, size.saves.0, size.idle, &mut random),
            _ => Ok(()),
        });
    }
    table::print(&all);
    let mut good = table::targets(&all);
    match polling(&tree, size.sweeps) {
        Ok(reached) => good &= reached,
        Err(error) => skipped.push(format!("polling: {error}")),
    }
    println!("skipped: {}", skipped.len());
    for reason in &skipped {
        println!("  {reason}");
    }
    Ok(good && all.iter().all(|candidate| candidate.failed.is_none()))
}

/// One sweep over all files, ours and the C program's; the memory ours takes.
fn polling(tree: &Tree, count: usize) -> Result<bool, String> {
    let refork = variable("REFORK", "target/release/refork");
    let ours = Candidate::new("refork --poll", &[&refork, "watch", "--json", "--poll=100"], 50, Parts::Bursts);
    let mut c = Vec::new();
    let (mut sweeps, mut error) = (Vec::new(), None);
    for _ in 0..count.div_ceil(2) {
        c.extend(c_sweeps(&tree.root)?);
        match ours.sweeps(&tree.root, 2) {
            Ok(more) => sweeps.extend(more),
            Err(why) => error = Some(why),
        }
    }
    println!("polling, CPU of a sweep: C {:.1} ms", table::median(&c));
    if let Some(why) = error {
        return Err(why);
    }
    let (ratio, memory) = (table::median(&sweeps) / table::median(&c), ours.memory_per_file(tree)?);
    println!("polling, CPU of a sweep: refork {:.1} ms; memory {memory:.0} bytes a file", table::median(&sweeps));
    let name = "module_0.py".len() as f64;
    let cheap = table::target("polling: CPU of a sweep, times C", ratio, 1.2);
    Ok(table::target("polling: bytes a file beside its name", memory - name, 64.0) && cheap)
}

fn c_sweeps(root: &Path) -> Result<Vec<f64>, String> {
    let program = format!("{}/sweep", variable("PEERS", "ci/measure/target"));
    let output = Command::new(&program).arg(root).arg("4").output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ns = text.lines().filter_map(|line| line.split(' ').nth(1)?.parse::<f64>().ok());
    Ok(ns.skip(1).map(|ns| ns / 1e6).collect()) // the first fills the kernel's caches
}

/// The directory and its file system.
fn kind(root: &Path) -> String {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(root).output();
    let kind = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!("{} ({kind})", root.display())
}
