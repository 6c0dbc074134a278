//! `refork reload`: who is asked, and what the answer is.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use std::process::{Command, Output};

/// A service whose code is `@dir/server`, its status in `@dir/status`.
fn service(dir: &Dir, options: &[&str]) -> Proc {
    server(dir, "good");
    let (status, command) = (dir.str("status"), dir.str("server"));
    let fixed = ["run", "-b", "127.0.0.1:0", "--ready", "0.05", "--status-file", &status];
    let mut proc = Proc::start(REFORK, &[&fixed, options, &["--", &command]].concat());
    proc.line("ready: generation 1");
    proc
}

/// Another version of the code: `good` serves, `deaf` as well and ignores SIGTERM, what else is given is done.
fn server(dir: &Dir, what: &str) {
    let body = match what {
        "good" => "exec sleep 1000",
        "deaf" => "trap '' TERM; while :; do sleep 1000; done",
        other => other,
    };
    dir.script("server", &format!("#!/bin/sh\n{body}\n"));
}

fn reload(args: &[&str]) -> Output {
    Command::new(REFORK).arg("reload").args(args).output().unwrap()
}

fn wait(dir: &Dir, options: &[&str]) -> (i32, String) {
    let output = reload(&[&["--status-file", &dir.str("status"), "--wait"], options].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn the_outcome_is_waited_for_and_told() {
    for handover in ["drain-first", "overlap"] {
        let dir = Dir::new();
        let options =
            ["--handover", handover, "--boot-timeout", "5", "--check", &format!("test ! -e {}", dir.str("no"))];
        let mut proc = service(&dir, &options);
        assert_eq!(wait(&dir, &[]), (0, "reload #1: generation 2 is ready\n".into()));
        // The check fails.
        std::fs::write(dir.path("no"), "").unwrap();
        let (code, text) = wait(&dir, &[]);
        assert!(code == 1 && text.starts_with("refork: reload #2 has failed: the check "), "{code} {text}");
        std::fs::remove_file(dir.path("no")).unwrap();
        // COMMAND cannot be executed.
        sh(&format!("echo no program > '{}'", dir.str("server")), "");
        let (code, text) = wait(&dir, &[]);
        assert!(code == 1 && text.contains("reload #3 has failed: ") && text.contains("neither"), "{code} {text}");
        server(&dir, "good");
        let (code, text) = wait(&dir, &[]);
        assert!(code == 0 && text.starts_with("reload #4: generation "), "{code} {text}");
        proc.stop();
        // Nobody is left to be asked.
        let (code, text) = wait(&dir, &[]);
        assert!(code == 1 && text.ends_with("has ended\n"), "{code} {text}");
    }
}

#[test]
fn workers_that_die_at_once_are_a_reload_that_has_failed() {
    for handover in ["drain-first", "overlap"] {
        let dir = Dir::new();
        // However slowly a shell ends on this machine, it does not live so long.
        let mut proc = service(&dir, &["--handover", handover, "--ready", "4"]);
        server(&dir, "exit 7");
        let (code, text) = wait(&dir, &[]);
        assert!(code == 1 && text.contains("reload #1 has failed: ") && text.contains("exit code 7"), "{code} {text}");
        server(&dir, "good");
        let (code, text) = wait(&dir, &[]);
        assert!(code == 0 && text.starts_with("reload #2: generation "), "{code} {text}");
        proc.stop();
    }
}

#[test]
fn a_reload_that_does_not_end_in_time() {
    let dir = Dir::new();
    let mut proc = service(&dir, &["--shutdown-timeout", "1000"]);
    server(&dir, "deaf");
    assert_eq!(wait(&dir, &[]).0, 0);
    let (code, text) = wait(&dir, &["--timeout", "0.5"]);
    assert_eq!((code, text.as_str()), (5, "refork: no outcome after 500 ms\n"));
    // It still goes on: a second one waits for its turn.
    let (code, text) = wait(&dir, &["--timeout", "0.2"]);
    assert_eq!((code, text.as_str()), (5, "refork: another reload runs after 200 ms: nothing was asked for\n"));
    proc.signal("QUIT");
    assert_eq!(proc.end().code(), Some(0));
}

#[test]
fn a_reload_that_a_stop_ends_is_no_success() {
    let dir = Dir::new();
    let mut proc = service(&dir, &["--shutdown-timeout", "1000"]);
    server(&dir, "deaf");
    assert_eq!(wait(&dir, &[]).0, 0);
    let status = dir.str("status");
    let waiting = std::thread::spawn(move || reload(&["--status-file", &status, "--wait"]));
    // Neither the reload nor the stop ends before the last signal: the worker does not drain.
    proc.line("reload #2: draining 1 worker");
    proc.signal("TERM");
    let output = waiting.join().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let expected = format!("refork: the master (process {}) is stopping\n", proc.pid());
    assert_eq!((output.status.code(), String::from_utf8(text).unwrap()), (Some(1), expected));
    proc.signal("QUIT");
    assert_eq!(proc.end().code(), Some(0));
}

/// The status file as the master of a system without /proc writes it: no start time tells its process from another.
#[test]
fn a_master_that_is_killed_is_no_outcome_without_a_start_time_either() {
    if cfg!(any(not(target_os = "linux"), refork_portable)) {
        return; // A COMMAND outlives its master there, and holds what the test waits for.
    }
    let dir = Dir::new();
    let mut proc = service(&dir, &[]);
    let text = std::fs::read_to_string(dir.path("status")).unwrap();
    let time = text.lines().find(|line| line.starts_with("start_time=")).unwrap();
    std::fs::write(dir.path("other"), text.replace(time, "start_time=''")).unwrap();
    let other = dir.str("other");
    let waiting = std::thread::spawn(move || reload(&["--status-file", &other, "--wait", "--timeout", "20"]));
    proc.line("reload #1: asked for by SIGHUP");
    proc.signal("KILL");
    // Reaped, too.
    assert!(!proc.end().success());
    let expected = format!("refork: the master (process {}) has ended\n", proc.pid());
    for output in [waiting.join().unwrap(), reload(&["--status-file", &dir.str("other")])] {
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), expected.clone()));
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_no_panic() {
    if !std::path::Path::new("/dev/full").exists() {
        return println!("skipped: no /dev/full");
    }
    let dir = Dir::new();
    let mut proc = service(&dir, &[]);
    let asks = |redirected: &str| {
        let script = format!(
            "code=0; '{REFORK}' reload --status-file '{}' {redirected} || code=$?; echo $code",
            dir.str("status")
        );
        sh(&script, "").trim().to_owned()
    };
    assert_eq!(asks(&format!(">/dev/full 2>'{}'", dir.str("err"))), "1");
    let said = std::fs::read_to_string(dir.path("err")).unwrap();
    assert!(said.starts_with("refork: cannot write to standard output: ") && said.lines().count() == 1, "{said}");
    proc.line("reload #1: ready");
    proc.stop();
    assert_eq!(asks("2>/dev/full"), "1");
}

#[test]
fn only_the_process_that_wrote_the_file_is_asked() {
    let dir = Dir::new();
    let mut proc = service(&dir, &[]);
    let asked = reload(&["--pid", &proc.pid().to_string()]);
    assert!(asked.status.success(), "{asked:?}");
    proc.line("reload #1: ready: generation 2");
    let asked = reload(&["--status-file", &dir.str("status")]);
    assert!(asked.status.success(), "{asked:?}");
    proc.line("reload #2: ready: generation 3");
    if !std::path::Path::new("/proc/self/stat").exists() {
        return println!("skipped: no /proc tells when a process started");
    }
    // A living process that has left `Master::run`, which a HUP would end.
    let text = std::fs::read_to_string(dir.path("status")).unwrap();
    let state = text.lines().find(|line| line.starts_with("state=")).unwrap();
    std::fs::write(dir.path("left"), text.replace(state, "state='stopped'")).unwrap();
    for more in [&[][..], &["--wait"]] {
        let output = reload(&[&["--status-file", &dir.str("left")], more].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    // The same number, another process.
    let time = text.lines().find(|line| line.starts_with("start_time=")).unwrap();
    std::fs::write(dir.path("old"), text.replace(time, "start_time='1'")).unwrap();
    for more in [&[][..], &["--wait"]] {
        let output = reload(&[&["--status-file", &dir.str("old")], more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text.ends_with("has ended\n"), "{text}");
    }
    proc.stop();
    assert_eq!(proc.count("asked for by SIGHUP"), 2, "{}", proc.log());
}

#[test]
fn a_shell_that_sources_the_status_file_never_sees_half_of_it() {
    let dir = Dir::new();
    let mut proc = service(&dir, &[]);
    let script = "n=0; while [ -e GO ]; do unset pid state last_error; . ./status; n=$((n+1)); \
                  test \"$pid\" = PID && test -n \"$state\" && test -n \"${last_error+set}\"; done; echo $n"
        .replace("PID", &proc.pid().to_string());
    std::fs::write(dir.path("GO"), "").unwrap();
    let here = dir.str("");
    let reader = std::thread::spawn(move || sh(&format!("cd '{here}'; {script}"), ""));
    for i in 1..=10 {
        proc.signal("HUP");
        proc.line(&format!("reload #{i}: ready"));
    }
    std::fs::remove_file(dir.path("GO")).unwrap();
    assert_ne!(reader.join().unwrap().trim(), "0");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.path("status")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o644);
    proc.stop();
}
