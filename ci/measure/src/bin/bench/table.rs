//! What was measured, as one table, and what is to be reached.

use crate::candidate::{Candidate, Parts};

/// The value below which a share of all lies.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn find<'a>(all: &'a [Candidate], name: &str) -> Option<&'a Candidate> {
    all.iter().find(|candidate| candidate.name.starts_with(name))
}

/// A value and its ratio to the yardstick's.
fn cell(value: f64, yardstick: f64, unit: &str) -> String {
    match (value.is_nan(), yardstick.is_nan()) {
        (true, _) => String::new(),
        (false, true) => format!("{value:.1}{unit}"),
        (false, false) => format!("{value:.1}{unit} ({:.2}x)", value / yardstick),
    }
}

pub fn print(all: &[Candidate]) {
    println!("medians; in parentheses the ratio to C: arming without following to C -n, bursts to C -d 5");
    let head = ["", "arm", "calls/dir", "RSS", "CPU burst", "missed in new dirs", "beyond debounce", "switches/s idle"];
    let mut rows = vec![head.map(str::to_owned)];
    let of = |name: &str, value: &dyn Fn(&Candidate) -> f64| find(all, name).map_or(f64::NAN, value);
    let arm = |candidate: &Candidate| median(&candidate.results.arm_ms);
    let memory = |candidate: &Candidate| median(&candidate.results.memory_mib);
    let burst = |candidate: &Candidate| median(&candidate.results.burst_ms);
    for candidate in all {
        let results = &candidate.results;
        let yardstick = if candidate.parts == Parts::Arming { "C -n" } else { "C" };
        let mut missed = String::new();
        if !results.missed.is_empty() {
            missed = format!("{:.0}, worst {:.0}", median(&results.missed), quantile(&results.missed, 1.0));
        }
        let mut beyond = String::new();
        if !results.beyond_ms.is_empty() {
            beyond = format!("{:.2} / {:.2} ms", median(&results.beyond_ms), quantile(&results.beyond_ms, 0.99));
        }
        if results.lost > 0 {
            beyond += &format!(", {} lost", results.lost);
        }
        rows.push([
            candidate.name.to_owned() + if candidate.failed.is_some() { " FAILED" } else { "" },
            cell(arm(candidate), of(yardstick, &arm), " ms"),
            results.calls.map_or(String::new(), |calls| format!("{calls:.1}")),
            cell(memory(candidate), of(yardstick, &memory), " MiB"),
            cell(burst(candidate), of("C -d", &burst), " ms"),
            missed,
            beyond,
            results.idle.map_or(String::new(), |idle| format!("{idle:.0}")),
        ]);
    }
    for row in &rows {
        let mut line = String::new();
        for (column, text) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            line += &format!("{text:width$}  ");
        }
        println!("{}", line.trim_end());
    }
}

/// Says whether something stays within its limit.
pub fn target(what: &str, value: f64, limit: f64) -> bool {
    let reached = value <= limit; // a NaN, not measured, is not
    println!("{} {what}: {value:.2}, at most {limit}", if reached { "ok  " } else { "MISS" });
    reached
}

/// What refork is to reach; true if it does.
pub fn targets(all: &[Candidate]) -> bool {
    let (Some(ours), Some(c)) = (find(all, "refork"), find(all, "C")) else { return false };
    let (Some(ours_n), Some(c_n), Some(c_d)) = (find(all, "refork --no"), find(all, "C -n"), find(all, "C -d")) else {
        return false;
    };
    let (ours_n, c_n, c_d) = (&ours_n.results, &c_n.results, &c_d.results);
    let (ours, c) = (&ours.results, &c.results);
    let limits = [
        ("arming, times C", median(&ours.arm_ms) / median(&c.arm_ms), 1.2),
        ("arming without following, times C -n", median(&ours_n.arm_ms) / median(&c_n.arm_ms), 1.3),
        ("system calls a directory", ours.calls.unwrap_or(f64::NAN), 5.05),
        ("system calls a directory without following", ours_n.calls.unwrap_or(f64::NAN), 3.05),
        ("resident memory, times C", median(&ours.memory_mib) / median(&c.memory_mib), 1.5),
        ("CPU of a burst, times C -d 5", median(&ours.burst_ms) / median(&c_d.burst_ms), 1.5),
        ("missed in new directories, worst round", quantile(&ours.missed, 1.0), 0.0),
        ("missed saves", ours.lost as f64, 0.0),
        ("beyond the debounce, p50, ms", median(&ours.beyond_ms), 0.3),
        ("beyond the debounce, p99, ms", quantile(&ours.beyond_ms, 0.99), 2.0),
        ("context switches a second, idle", ours.idle.unwrap_or(f64::NAN), 0.0),
    ];
    limits.iter().fold(true, |all, (what, value, limit)| target(what, *value, *limit) && all)
}
