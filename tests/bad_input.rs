//! Bad input is an error that says what, where and what follows: one table.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// It ends with this code.
    Ends(i32),
    /// It serves all the same, and stops as always.
    Serves,
}
use Then::{Ends, Serves};

/// The command, what exactly one line must contain, what follows. `@dir` is a directory of the case with the files
/// `text` (no program, mode 644), `shell` (the same, 755), `empty` (755), `lost` (755, its interpreter is missing) and
/// `pipe` (nobody writes to it);
/// descriptor 5 is a socket that listens on `@port`. `@nobody` makes sure that it is not the superuser's.
type Case = (&'static str, &'static str, Then);

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Addresses.
    ("refork run -b 127.0.0.1:@port sleep 1000", "cannot listen on `127.0.0.1:@port`: Address ", Ends(4)),
    ("refork run -b 127.0.0.1:65536 sleep 1000", "`127.0.0.1:65536`: is not HOST:PORT", Ends(2)),
    ("refork run -b odd sleep 1000", "`odd`: is not HOST:PORT, :PORT, [v6]:PORT, unix:PATH or fd://N", Ends(2)),
    ("@nobody refork run -b 127.0.0.1:1 sleep 1000", "cannot listen on `127.0.0.1:1`: Permission denied", Ends(4)),
    ("refork run -b 192.0.2.1:0 sleep 1000", "cannot listen on `192.0.2.1:0`: ", Ends(4)),
    ("refork run -b 127.0.0.1:1 -b 127.0.0.1:1 sleep 1000", "`127.0.0.1:1`: is given twice", Ends(2)),
    ("refork run -b unix:@dir/s -b x=unix:@dir/s sleep 1000", "s`: is given twice", Ends(2)),
    ("refork run -b unix:@dir/text sleep 1000", "the path exists and is not a socket; it is left alone", Ends(4)),
    ("refork run -b unix:@dir/@long sleep 1000", "a socket's path has 1 to 10", Ends(4)),
    ("refork run -b unix:@dir/none/s sleep 1000", "none/s`: No such file or directory", Ends(4)),
    ("refork run -b unix: sleep 1000", "`unix:`: a Unix socket needs a path", Ends(2)),
    ("refork run -b unix:@dir/s,mode=0999 sleep 1000", "mode is not an octal number up to 777", Ends(2)),
    ("refork run -b fd://0 sleep 1000", "cannot listen on `fd://0`: ", Ends(4)),
    ("refork run -b fd://99 sleep 1000", "cannot listen on `fd://99`: Bad file descriptor", Ends(4)),
    ("refork run -b fd://x sleep 1000", "`fd://x`: is not a descriptor's number", Ends(2)),
    ("refork run -b fd://+3 sleep 1000", "`fd://+3`: is not a descriptor's number", Ends(2)),
    ("refork run -b 127.0.0.1:+80 sleep 1000", "`127.0.0.1:+80`: is not HOST:PORT", Ends(2)),
    ("refork run -b unix:@dir/s,mode=+660 sleep 1000", "s,mode=+660`: mode is not an octal number", Ends(2)),
    ("refork run -b '' sleep 1000", "-b: `` is no ADDR", Ends(2)),
    ("refork run -b \"$(printf 'a\\033b')\" sleep 1000", "wrong value `a\\u{1b}b`: is not HOST:PORT", Ends(2)),
    ("refork run -b 'a b=127.0.0.1:0' sleep 1000", "`a b`: a name is ASCII without", Ends(2)),
    // Options.
    ("refork run --workers 0 sleep 1000", "--workers: `0` is neither `auto` nor a number from 1", Ends(2)),
    ("refork run --workers abc sleep 1000", "--workers: `abc` is neither `auto` nor a number from 1", Ends(2)),
    ("refork run --workers 99999 sleep 1000", "--workers: `99999` is neither `auto` nor a number from 1 to 65535", Ends(2)),
    ("refork run -w 99999999999999 sleep 1000", "-w: `99999999999999` is neither `auto` nor a number", Ends(2)),
    ("refork run", "COMMAND is missing", Ends(2)),
    ("refork run ''", "COMMAND is empty", Ends(2)),
    ("refork run --frobnicate sleep 1000", "unknown option `--frobnicate`", Ends(2)),
    ("refork", "`run`, `watch` or `reload` is missing", Ends(2)),
    ("refork run --handover none sleep 1000", "`none` is neither `drain-first` nor `overlap`", Ends(2)),
    ("refork run --stop-signal KIL sleep 1000", "--stop-signal: `KIL` is not a signal", Ends(2)),
    // Whom to ask.
    ("refork reload", "`--pid` or `--status-file` is missing", Ends(2)),
    ("refork reload --pid 2147483647", "cannot ask `process 2147483647`: No such process", Ends(1)),
    ("refork reload --pid 4294967295", "cannot ask `process 4294967295`: No such process", Ends(1)),
    ("refork reload --status-file @dir/none", "none: No such file or directory", Ends(1)),
    ("refork reload --status-file @dir/text --wait", "text is not a status file of refork", Ends(1)),
    ("refork reload --status-file @dir --wait", "cannot read @dir: is not a regular file", Ends(1)),
    ("refork reload --status-file @dir/pipe --wait", "cannot read @dir/pipe: is not a regular file", Ends(1)),
    ("refork reload --status-file /dev/null", "cannot read /dev/null: is not a regular file", Ends(1)),
    // COMMAND.
    ("refork run -b unix:@dir/s none", "cannot execute `none`: is not in PATH", Ends(127)),
    ("refork run -b unix:@dir/s @dir/none", "cannot execute `@dir/none`: No such file or directory", Ends(127)),
    ("sh -c 'cd @dir; exec refork run ./none'", "cannot execute `./none`: No such file or directory", Ends(127)),
    ("@nobody refork run @dir/tree/closed/none", "closed/none`: Permission denied", Ends(126)),
    ("refork run \"$(printf 'a\\n\\033b')\"", "cannot execute `a\\n\\u{1b}b`: is not in PATH", Ends(127)),
    ("refork run \"@dir/$(printf 'a\\033b')\"", "cannot execute `@dir/a\\u{1b}b`: No such file", Ends(127)),
    ("refork run @dir", "is not a regular file", Ends(126)),
    ("refork run @dir/text", "text`: is not executable (no x-bit)", Ends(126)),
    ("refork run @dir/shell", "shell`: is neither an executable image nor a script with #!", Ends(126)),
    ("refork run @dir/empty", "empty`: is empty", Ends(126)),
    ("refork run -b unix:@dir/s @dir/lost", "cannot execute @dir/lost: No such file or directory", Ends(127)),
    ("refork run -b unix:@dir/s -w 2 false", "workers cannot boot (5 attempts)", Ends(3)),
    // What a hand-off or a service manager leaves in the environment.
    ("BB_INHERIT_FDS=0,1,2 refork run -b unix:@dir/s sleep 1000", "fd 1: is a standard stream: not adopted", Serves),
    ("BB_INHERIT_FDS=99 refork run -b unix:@dir/s sleep 1000", "BB_INHERIT_FDS: fd 99: Bad file descriptor", Serves),
    ("BB_INHERIT_FDS=abc refork run -b unix:@dir/s sleep 1000", "`abc` is not a descriptor's number", Serves),
    ("BB_INHERIT_FDS=5,5 refork run -b 127.0.0.1:@port sleep 1000", "fd 5: is named twice: not adopted", Serves),
    ("BB_INHERIT_FDS=, refork run -b unix:@dir/s sleep 1000", "listening on unix:", Serves),
    ("BB_INHERIT_FDS=-1 refork run -b unix:@dir/s sleep 1000", "`-1` is not a descriptor's number: ignored", Serves),
    ("BB_INHERIT_FDS=+5 refork run -b unix:@dir/s sleep 1000", "`+5` is not a descriptor's number: ignored", Serves),
    ("REFORK_HANDOFF=x BB_INHERIT_FDS=5 refork run -b 127.0.0.1:@port sleep 1000", "_HANDOFF is malformed", Serves),
    ("LISTEN_PID=$$ LISTEN_FDS=2 refork run -b unix:@dir/s sleep 1000", "LISTEN_FDS: fd 4: Bad file d", Serves),
    ("LISTEN_PID=$$ LISTEN_FDS=+2 refork run -b unix:@dir/s sleep 1000", "LISTEN_FDS: `+2` is not a number", Serves),
];

/// What is watched: the last rows.
#[rustfmt::skip]
const WATCHED: &[Case] = &[
    ("refork run --reload-path @dir/none sleep 1000", "@dir/none", Serves),
    ("@nobody refork run --reload-path @dir/tree sleep 1000", "tree/closed", Serves),
];

/// Words that make a program somebody's who may not do everything; `None`: that cannot be had here.
fn nobody() -> Option<&'static str> {
    match sh("id -u; command -v setpriv || true", "").split_once('\n') {
        Some(("0", "")) => None,
        Some(("0", _)) => {
            Some("setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all")
        }
        _ => Some(""),
    }
}

/// `bin`: where `refork` is, for everybody to execute.
fn run(bin: &Dir, case: &Case) {
    let (input, message, then) = case;
    let ports = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    let any_port = input.contains(":1 ") && ports.trim().parse::<u32>().is_ok_and(|first| first < 2);
    let nobody = nobody();
    if input.contains("@nobody") && (nobody.is_none() || any_port) {
        return println!("skipped: {input}: the superuser, or a port for everybody");
    }
    let dir = Dir::new();
    let setup = "cd '@dir'; echo true | tee text shell >empty; : >empty; printf '#!@dir/none' >lost; \
                 chmod 755 shell empty lost; mkfifo pipe; mkdir -p tree/closed; \
                 chmod 0 tree/closed";
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap();
    let fill = |text: &str| {
        let text = text.replace("@long", &"x".repeat(200)).replace("@port", &addr.port().to_string());
        text.replace("@dir", dir.str("").trim_end_matches('/')).replace("@nobody", nobody.unwrap_or_default())
    };
    let files = || std::fs::read_dir(dir.path("")).unwrap().map(|e| e.unwrap().file_name()).collect::<BTreeSet<_>>();
    sh(&fill(setup), "");
    let before = files();
    let path = format!("{}:{}", bin.str(""), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec 5<&0 0</dev/null; exec env {}", fill(input))]).env("PATH", path);
    let mut proc = Proc::spawn_with(command, Stdio::from(OwnedFd::from(busy.try_clone().unwrap())));
    let needle = fill(message);
    let expected = match then {
        Ends(code) => *code,
        Serves => {
            proc.line("ready: generation 1, 1 worker");
            proc.signal("TERM");
            0
        }
    };
    // The end comes when nobody holds standard error any more: no process is left.
    let code = proc.end().code();
    let log = proc.log();
    assert_eq!(code, Some(expected), "{input}: {log}");
    let lines = proc.seen.iter().filter(|line| line.contains(&needle) && !line.contains("]: watching "));
    assert_eq!(lines.count(), 1, "{input}: one line with {needle:?} in\n{log}");
    assert_eq!(proc.count("panicked"), 0, "{input}: {log}");
    if expected == 2 {
        assert!(proc.seen.len() == 1 && log.ends_with("; try --help"), "{input}: {log}");
    }
    assert_eq!(files(), before, "{input}: files");
    sh(&fill("chmod 755 '@dir/tree/closed'"), "");
    TcpStream::connect(addr).expect("a socket that was lent listens on");
}

fn all(cases: &[Case]) {
    let bin = Dir::new();
    sh(&format!("cp '{REFORK}' '{0}' && chmod 755 '{0}'", bin.str("refork")), "");
    // Side by side: some take a second by their nature.
    std::thread::scope(|scope| {
        for part in 0..3 {
            let bin = &bin;
            scope.spawn(move || cases.iter().skip(part).step_by(3).for_each(|case| run(bin, case)));
        }
    });
}

#[test]
fn every_case_says_what_and_what_follows_and_leaves_nothing_behind() {
    all(CASES);
}

#[test]
fn what_cannot_be_watched_is_one_line() {
    all(WATCHED);
}
