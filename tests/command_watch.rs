//! The command and files that change: `refork run --reload`, and `refork watch`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// A server that reloads when something in `src` changes, and its address.
fn server(dir: &Dir, options: &[&str], command: &[&str]) -> (Proc, String) {
    let watched = ["run", "-b", "127.0.0.1:0", "--reload-path", &dir.str("src")];
    let mut proc = Proc::start(REFORK, &[&watched[..], options, &["--"], command].concat());
    let addr = proc.addr();
    proc.line("ready: generation 1");
    (proc, addr)
}

fn plain(text: &str) -> [String; 3] {
    ["sh".into(), "-c".into(), format!("exec '{}' plain '{text}' 0<&3", example("probe").display())]
}

/// A directory with a subdirectory `src`.
fn with_source() -> Dir {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("src")).unwrap();
    dir
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

#[test]
fn a_python_server_that_is_edited_answers_anew_and_loses_no_answer() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return println!("skipped: python3 is not there");
    }
    let dir = with_source();
    let text = include_str!("servers/app.py");
    let app = dir.save("src/app.py", text);
    let (mut proc, addr) = server(&dir, &["-w", "2"], &["python3", &app]);
    let load = Load::start(&addr);
    load.until("hello from worker");
    for (i, word) in ["good morning", "good night"].into_iter().enumerate() {
        dir.save("src/app.py", &text.replace("\"hello\"", &format!("{word:?}")));
        let answer = load.until(&format!("{word} from worker"));
        assert!(answer.ends_with(&format!("master {}\n", proc.pid())), "{answer}");
        proc.line(&format!("reload #{}: ready: generation {}, 2 workers", i + 1, i + 2));
    }
    load.stop();
    proc.stop();
    assert_eq!((proc.count("change: "), proc.count("exec ")), (2, 0), "{}", proc.log());
}

#[test]
fn twenty_saves_in_a_burst_are_one_reload_and_the_last_serves() {
    let dir = with_source();
    let command = plain(&dir.save("src/text.py", "v1"));
    let (mut proc, addr) = server(&dir, &["--debounce=1000"], &words(&command));
    for i in 2..=21 {
        dir.save("src/text.py", &format!("v{i}"));
    }
    proc.line("reload #1: ready: generation 2");
    assert_eq!(field(&get(&addr, "/").unwrap(), "text"), "v21");
    proc.stop();
    assert_eq!(proc.count("change: "), 1, "{}", proc.log());
}

#[test]
fn the_file_of_command_is_watched_too() {
    let dir = with_source();
    let script = |text: &str| format!("#!/bin/sh\necho {text} >&2\nexec sleep 1000\n");
    let command = dir.script("command", &script("one"));
    let (mut proc, _) = server(&dir, &[], &[&command]);
    dir.script("command", &script("two"));
    proc.line(&format!("reload #1: change: {command}"));
    proc.line("two");
    proc.line("reload #1: ready: generation 2");
    proc.stop();
    assert_eq!(proc.count("exec "), 0, "{}", proc.log());
}

#[test]
fn a_new_refork_replaces_the_image() {
    let dir = with_source();
    let copy = format!("cp '{REFORK}' '{0}.new' && mv '{0}.new' '{0}'", dir.str("refork"));
    sh(&copy, "");
    let args = ["run", "-b", "127.0.0.1:0", "--reload-path", &dir.str("src"), "sleep", "1000"];
    let mut proc = Proc::start(dir.str("refork"), &args);
    proc.line("ready: generation 1");
    // The very bytes that run are no new code: one byte more is.
    sh(&copy.replace(" && mv", &format!(" && echo >> '{}.new' && mv", dir.str("refork"))), "");
    for stage in ["change: ", "draining 1 worker", "drained", "exec ", "adopted 1 listener", "ready: generation 2"] {
        proc.line(&format!("reload #1: {stage}"));
    }
    proc.stop();
}

/// `refork watch` with standard output beside standard error, so that lines of both are heard.
fn watch(dir: &Dir, args: &str) -> Proc {
    Proc::start("sh", &["-c", &format!("cd '{}' && exec '{REFORK}' watch {args} 1>&2", dir.str("src"))])
}

/// Its end by SIGTERM, which it leaves alone.
fn end(mut proc: Proc) -> Vec<String> {
    proc.signal("TERM");
    assert_eq!(proc.end().signal(), Some(15), "{}", proc.log());
    std::mem::take(&mut proc.seen)
}

#[test]
fn watch_prints_a_line_for_each_batch() {
    let dir = with_source();
    // What the options leave out comes first; had it counted, it would be in the line, or one line more.
    for (args, before, after, expected) in [
        ("", "a.txt", "b.py", "./b.py"),
        (".", "a.txt", "c.py", "./c.py"),
        ("--ext txt,.md .", "a.py", "d.md", "./d.md"),
        ("--poll=20 .", "a.txt", "e.py", "./e.py"),
    ] {
        let mut proc = watch(&dir, args);
        proc.line("ready");
        dir.save(&format!("src/{before}"), "text");
        dir.save(&format!("src/{after}"), "text");
        let line = proc.line(after);
        assert_eq!(line.trim_start_matches("./"), expected.trim_start_matches("./"), "{args}");
        assert_eq!(end(proc).len(), 2, "{args}");
    }
    let mut proc = watch(&dir, "--all --debounce 300 .");
    proc.line("ready");
    sh(&format!("cd '{}' && mkdir .hidden && echo x >.hidden/log && printf x >'a\nb'", dir.str("src")), "");
    let line = proc.line("log");
    assert!(line.contains(".hidden/log") && line.contains("a\\nb"), "{line}");
    end(proc);
}

#[test]
fn watch_prints_json() {
    let dir = with_source();
    let mut proc = watch(&dir, "--json \"$PWD\"");
    let time = |line: &str| {
        let digits = line.split("\"t_ns\":").nth(1).unwrap();
        digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap()].parse::<u64>().unwrap()
    };
    let first = proc.line("ready");
    assert_eq!(first, format!("{{\"ready\":true,\"t_ns\":{}}}", time(&first)));
    dir.save("src/\"é\".py", "text");
    let line = proc.line("paths");
    let path = dir.str("src/\\\"é\\\".py");
    assert_eq!(line, format!("{{\"t_ns\":{},\"paths\":[\"{path}\"]}}", time(&line)));
    assert!(time(&line) > time(&first));
    assert_eq!(end(proc).len(), 2, "everything is on standard output");
}

#[test]
fn watch_runs_a_command_after_each_batch_and_once_more_for_what_changed_meanwhile() {
    let dir = with_source();
    sh(&format!("mkfifo '{}'", dir.str("fifo")), "");
    let mut proc = watch(&dir, "-- sh -c 'echo begin; read code <../fifo; echo end; exit $code'");
    proc.line("ready");
    // Opening the FIFO returns when the command reads it.
    let finish = |code: &str| std::fs::write(dir.path("fifo"), code).unwrap();
    dir.save("src/a.py", "1");
    proc.line("begin");
    dir.save("src/a.py", "2");
    finish("3\n");
    proc.line("end");
    proc.line("sh ended with exit status: 3");
    proc.line("begin");
    finish("0\n");
    proc.line("end");
    dir.save("src/a.py", "3");
    proc.line("begin");
    finish("0\n");
    proc.line("end");
    let seen = end(proc);
    assert_eq!(seen.iter().filter(|line| *line == "begin").count(), 3, "{seen:?}");
    let mut proc = watch(&dir, "-- ./not-there");
    proc.line("ready");
    dir.save("src/a.py", "4");
    proc.line("cannot execute ./not-there: No such file");
    dir.save("src/a.py", "5");
    proc.line("cannot execute ./not-there: No such file");
    end(proc);
}

#[test]
fn watch_ends_with_0_when_nobody_reads() {
    let dir = with_source();
    let script = "cd 'DIR' && { 'REFORK' watch; echo \"code $?\" >&2; } | { head -n 1 >&2; exec <&-; echo gone >&2; }";
    let script = script.replace("DIR", &dir.str("src")).replace("REFORK", REFORK);
    let mut proc = Proc::start("sh", &["-c", &script]);
    proc.line("ready");
    dir.save("src/a.py", "1");
    proc.line("gone");
    dir.save("src/a.py", "2");
    proc.line("code 0");
    proc.end();
}

#[test]
fn a_reader_that_pauses_is_waited_for_and_loses_nothing() {
    let dir = with_source();
    // The line is six times what a pipe holds: it is printed in pieces, and none is read before all is saved.
    let watch = "'REFORK' watch --debounce=200 & echo pid $! >&2; wait";
    let script = format!("cd 'DIR' && {{ {watch}; }} | {{ read go <../fifo; cat >&2; }}");
    let script = script.replace("DIR", &dir.str("src")).replace("REFORK", REFORK);
    sh(&format!("mkfifo '{}'", dir.str("fifo")), "");
    let mut proc = Proc::start("sh", &["-c", &script]);
    let pid = proc.line("pid ")[4..].parse().unwrap();
    proc.line("ready");
    let mut missing: HashSet<String> = (0..2000).map(|n| format!("./{}{n}.py", "x".repeat(200))).collect();
    for name in &missing {
        dir.save(&format!("src/{name}"), "");
    }
    std::fs::write(dir.path("fifo"), "go\n").unwrap();
    while !missing.is_empty() {
        for path in proc.line(".py").split(' ') {
            missing.remove(path);
        }
    }
    signal(pid, "TERM");
    proc.end();
    // Also where somebody has made the other end non-blocking.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut command = Command::new(REFORK);
    command.args(["watch", "--debounce=200", &dir.str("src")]).stderr(Stdio::null());
    let mut child = command.stdout(std::os::fd::OwnedFd::from(theirs)).spawn().unwrap();
    drop(command);
    let inotify = || sh(&format!("ls -l /proc/{}/task | wc -l", child.id()), "").trim() == "3";
    until(|| "no second thread".into(), inotify);
    let mut missing: HashSet<String> = (0..4000).map(|n| dir.str(&format!("src/{}{n}.py", "y".repeat(200)))).collect();
    for path in &missing {
        std::fs::write(path, "").unwrap();
    }
    for line in BufReader::new(ours).lines() {
        for path in line.unwrap().split(' ') {
            missing.remove(path);
        }
        if missing.is_empty() {
            break;
        }
    }
    assert_eq!(missing, HashSet::new(), "{:?}", child.wait());
    child.kill().unwrap();
    child.wait().unwrap();
}
