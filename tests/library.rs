//! A service whose workers are a function: start, reload by re-exec, stop, and what goes wrong on the way.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use std::process::Command;

/// A running probe of version `v1` on a port of the kernel's choice.
fn probe(dir: &Dir, args: &[&str]) -> (Proc, String) {
    let image = dir.probe("probe", "v1");
    let mut proc = Proc::start(image, &[&["bind=127.0.0.1:0"], args].concat());
    let addr = proc.addr();
    proc.line("ready: generation 1");
    (proc, addr)
}

#[test]
fn a_save_brings_the_new_code_without_losing_an_answer() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2", "watch=executable"]);
    let load = Load::start(&addr);
    assert_eq!(field(&load.until("tag="), "tag"), "v1");
    for version in ["v2", "v3"] {
        dir.probe("probe", version);
        let answer = load.until(&format!("tag={version}"));
        assert_eq!(field(&answer, "ppid"), proc.pid().to_string(), "the pid never changes");
    }
    proc.line("reload #2: ready: generation 3, 2 workers");
    load.stop();
    for stage in ["change: ", "draining 2 workers", "drained", "exec ", "adopted 1 listener", "ready: generation 2"] {
        assert_eq!(proc.count(&format!("reload #1: {stage}")), 1, "{stage}: {}", proc.log());
    }
    proc.stop();
    assert_eq!(proc.stdout(), format!("returned in {}\n", proc.pid()), "run returns once, in the master");
}

#[test]
fn an_event_loop_of_ones_own_loses_nothing_either() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2", "watch=executable", "serve=listeners"]);
    let load = Load::start(&addr);
    load.until("tag=v1");
    dir.probe("probe", "v2");
    load.until("tag=v2");
    load.stop();
    proc.stop();
}

#[test]
fn twenty_saves_in_a_burst_are_one_reload_and_the_last_serves() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["watch=executable", "debounce=1000"]);
    for i in 2..=21 {
        dir.probe(&format!("new{i}"), &format!("v{i}"));
    }
    for i in 2..=21 {
        std::fs::rename(dir.path(&format!("new{i}")), dir.path("probe")).unwrap();
    }
    proc.line("reload #1: ready");
    assert_eq!(field(&get(&addr, "/").unwrap(), "tag"), "v21");
    proc.stop();
    assert_eq!(proc.count("change: "), 1, "{}", proc.log());
}

#[test]
fn what_is_being_answered_is_finished_first() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2"]);
    let fifo = dir.str("fifo");
    sh(&format!("mkfifo {fifo}"), "");
    let path = format!("/fifo{fifo}");
    let answer = std::thread::spawn({
        let addr = addr.clone();
        move || get(&addr, &path)
    });
    // Opening it for writing returns when the worker has opened it for reading: the request is being answered.
    let write = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    dir.probe("probe", "v2");
    proc.signal("HUP");
    proc.line("draining 2 workers");
    // The one that has nothing to do is gone: the other has been asked, too.
    until(|| proc.log(), || proc.children().0.len() == 1);
    // Queued meanwhile, for nobody accepts.
    let queued = std::thread::spawn({
        let addr = addr.clone();
        move || get(&addr, "/")
    });
    std::io::Write::write_all(&mut { write }, b"finished\n").unwrap();
    let answer = answer.join().unwrap().unwrap();
    assert!(answer.contains("tag=v1") && answer.contains("finished"), "{answer}");
    queued.join().unwrap().unwrap();
    proc.line("ready: generation 2");
    assert_eq!(field(&get(&addr, "/").unwrap(), "tag"), "v2");
    proc.stop();
}

#[test]
fn a_starter_that_blocks_sigterm_takes_the_drain_from_nobody() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return println!("skipped: python3 is not there");
    }
    let dir = Dir::new();
    let fifo = dir.str("fifo");
    sh(&format!("mkfifo {fifo}"), "");
    let starter = "import os, signal, sys\n\
                   signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGWINCH])\n\
                   os.execv(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new("python3");
    command.args(["-c", starter, &dir.probe("probe", "v1"), "bind=127.0.0.1:0", "workers=2", "timeout=600000"]);
    let mut proc = Proc::spawn(command);
    let addr = proc.addr();
    proc.line("ready: generation 1");
    // The next image knows of it, too, and the old workers drain.
    proc.signal("HUP");
    proc.line("ready: generation 2");
    let pid = field(&get(&addr, "/").unwrap(), "pid");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(blocked, 16).unwrap(), 1 << 27, "what else the starter blocked: {status}");
    let path = format!("/fifo{fifo}");
    let answer = std::thread::spawn(move || get(&addr, &path));
    // Returns when the worker has opened it for reading: the request is being answered.
    let write = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    proc.signal("TERM");
    proc.line("stopping on SIGTERM: draining 2 workers");
    until(|| proc.log(), || proc.children().0.len() == 1);
    std::io::Write::write_all(&mut { write }, b"finished\n").unwrap();
    let answer = answer.join().unwrap().unwrap();
    assert!(answer.contains("gen=2") && answer.contains("finished"), "{answer}");
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    assert_eq!(proc.count("SIGKILL"), 0, "{}", proc.log());
}

/// Sends a request that is never finished, and returns when the worker is at it.
fn hang(addr: &str) -> std::net::TcpStream {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(b"GET /hang HTTP/1.0\r\n\r\n").unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !line.contains("tag=") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    stream
}

#[test]
fn a_worker_that_ignores_sigterm_is_killed_at_the_timeout() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["timeout=300"]);
    let _client = hang(&addr);
    proc.signal("HUP");
    proc.line("did not drain in 300 ms: SIGKILL");
    proc.line("ready: generation 2");
    get(&addr, "/").unwrap();
    let _client = hang(&addr);
    proc.signal("TERM");
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    assert_eq!(proc.count("did not drain in 300 ms"), 2);
}

#[test]
fn a_dead_worker_is_replaced_in_its_slot() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=3"]);
    let (before, _) = proc.children();
    assert_eq!(before.len(), 3);
    signal(before[1], "KILL");
    let line = proc.line("died");
    assert!(line.contains(&format!("worker 1 (pid {}) died: signal 9 (SIGKILL), age ", before[1])), "{line}");
    assert!(line.ends_with("; starting another"), "{line}");
    for (request, why) in [("/exit/3", "exit code 3"), ("/panic", "exit code 101")] {
        get(&addr, request).unwrap_err();
        proc.line(&format!("died: {why}, age "));
    }
    // Three are there again when three slots have answered.
    let mut slots = std::collections::BTreeSet::new();
    while slots.len() < 3 {
        slots.insert(field(&get(&addr, "/").unwrap(), "slot"));
    }
    proc.stop();
}

#[test]
fn sigterm_during_the_drain_of_a_reload_ends_the_service() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2", "timeout=600000"]);
    let client = hang(&addr);
    proc.signal("HUP");
    proc.line("draining 2 workers");
    proc.signal("TERM");
    proc.line("stopping on SIGTERM");
    // A second one does not wait for the worker that hangs.
    proc.signal("TERM");
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    assert_eq!(proc.count("exec "), 0);
    // The idle worker may have been reaped by then, or not.
    assert_eq!(proc.count("stopping at once: SIGKILL to "), 1, "{}", proc.log());
    assert_eq!(proc.count("cannot signal"), 0, "{}", proc.log());
    drop(client);
}

#[test]
fn quit_kills_now_and_int_drains() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["timeout=600000"]);
    let _client = hang(&addr);
    proc.signal("QUIT");
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    let (mut proc, _) = probe(&dir, &[]);
    proc.signal("INT");
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    assert_eq!(proc.count("stopping on SIGINT"), 1);
}

#[test]
fn ttin_and_ttou_change_the_number_of_workers_across_a_reload() {
    let dir = Dir::new();
    let mut command = Command::new(dir.probe("probe", "v1"));
    command.args(["bind=127.0.0.1:0", "workers=1"]).env("REFORK_LOG", "debug");
    let mut proc = Proc::spawn(command);
    proc.line("ready: generation 1");
    // One at a time: the kernel makes one of two that are pending.
    proc.signal("TTIN");
    proc.line("worker 1 (pid");
    proc.signal("TTIN");
    proc.line("worker 2 (pid");
    proc.signal("HUP");
    proc.line("ready: generation 2, 3 workers");
    proc.signal("TTOU");
    proc.line("worker 2 (pid");
    proc.signal("USR2");
    proc.line("ready: generation 3, 2 workers");
    assert_eq!(proc.children().0.len(), 2);
    proc.stop();
}

#[test]
fn fifty_reloads_leave_nothing_behind() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2", "watch=executable"]);
    let mut after_first = None;
    for reload in 1..=50 {
        proc.signal("HUP");
        proc.line(&format!("reload #{reload}: ready"));
        let answer = get(&addr, "/fds").unwrap();
        let worker: Vec<&str> = answer.lines().skip(1).map(|line| line.split(' ').nth(1).unwrap_or("")).collect();
        let kinds = worker.iter().filter(|link| link.starts_with("socket:")).count();
        let now = (proc.resources(), proc.children().1, proc.children().0.len(), worker.len(), kinds);
        match &after_first {
            None => after_first = Some(now),
            Some(first) => assert_eq!(*first, now, "after reload {reload}: ((fds, threads), zombies, workers, ...)"),
        }
    }
    assert_eq!(after_first.map(|now| now.1), Some(0), "zombies");
    proc.stop();
}

#[test]
fn a_workers_child_sees_neither_the_hand_off_nor_foreign_descriptors() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["watch=executable"]);
    let expected = |answer: &str| {
        for name in ["BB_INHERIT_FDS", "REFORK_HANDOFF", "LISTEN_FDS", "REFORK_CHECK"] {
            assert!(!answer.contains(name), "{answer}");
        }
        let fds: Vec<&str> = answer.lines().filter(|line| line.as_bytes()[0].is_ascii_digit()).collect();
        // Standard streams; a shell may hold its /proc directory.
        let foreign = fds.iter().filter(|line| line.contains("socket") || line.contains("inotify")).count();
        assert_eq!(foreign, 0, "{answer}");
        assert!(fds.iter().any(|line| *line == "0 /dev/null" || line.starts_with("0 pipe:")), "{answer}");
        answer.lines().filter(|line| line.starts_with("Sig")).map(str::to_owned).collect::<Vec<_>>()
    };
    let first = expected(&get(&addr, "/child").unwrap());
    proc.signal("HUP");
    proc.line("ready: generation 2");
    assert_eq!(expected(&get(&addr, "/child").unwrap()), first, "mask and ignored signals of the first start");
    proc.stop();
}

#[test]
fn a_worker_has_its_own_descriptors_and_the_signals_of_the_first_start() {
    let dir = Dir::new();
    let image = dir.probe("probe", "v1");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' WINCH; exec {image} bind=127.0.0.1:0 workers=2 watch=executable")]);
    let mut proc = Proc::spawn(command);
    let addr = proc.addr();
    for generation in 1..=2 {
        proc.line(&format!("ready: generation {generation}"));
        let mut slots = std::collections::BTreeSet::new();
        while slots.len() < 2 {
            let answer = get(&addr, "/fds").unwrap();
            // The listener, the channel to the master, this connection; no other's, no watch, no image.
            let held = |what: &str| answer.lines().skip(1).filter(|line| line.contains(what)).count();
            assert_eq!((held(" socket:"), held(" anon_inode:"), held("/probe")), (3, 0, 0), "{answer}");
            let status = std::fs::read_to_string(format!("/proc/{}/status", field(&answer, "pid"))).unwrap();
            let bits = |name: &str| {
                let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                u64::from_str_radix(value.trim(), 16).unwrap()
            };
            assert_eq!(bits("SigBlk:"), 0, "no signal is blocked: {status}");
            assert_ne!(bits("SigIgn:") & 1 << 27, 0, "SIGWINCH is ignored: {status}");
            slots.insert(field(&answer, "slot"));
        }
        if generation == 1 {
            proc.signal("HUP");
        }
    }
    proc.stop();
}

#[test]
fn an_image_that_cannot_be_executed_costs_nothing() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &[]);
    let before = field(&get(&addr, "/").unwrap(), "pid");
    let image = dir.str("probe");
    let cases = [
        ("rm -f IMAGE", "No such file"),
        (
            "echo 'echo a shell ran this >&2' > IMAGE; chmod 755 IMAGE",
            "neither an executable image nor a script with #!",
        ),
        ("rm IMAGE; : > IMAGE; chmod 755 IMAGE", "is empty"),
        ("rm IMAGE; cp /bin/sh IMAGE; chmod 644 IMAGE", "no x-bit"),
        ("rm IMAGE; mkdir IMAGE", "not a regular file"),
        ("rmdir IMAGE; ln -s IMAGE IMAGE", "ymbolic link"), // "levels of symbolic links", "Symbolic link loop"
    ];
    for (i, (script, why)) in cases.into_iter().enumerate() {
        sh(&script.replace("IMAGE", &image), "");
        proc.signal("HUP");
        let line = proc.line(&format!("reload #{}: dropped", i + 1));
        assert!(line.contains(why) && line.contains("the running code serves on"), "{line}");
        assert_eq!(field(&get(&addr, "/").unwrap(), "pid"), before, "the same worker serves on");
    }
    // The file has its magic number, and the kernel refuses the rest: drained, and forked again.
    sh(&format!("rm {image}; printf '\\177ELF' > {image}; chmod 755 {image}"), "");
    proc.signal("HUP");
    proc.line("reload #7: dropped");
    let answer = get(&addr, "/").unwrap();
    assert_eq!((field(&answer, "tag"), field(&answer, "gen")), ("v1".into(), "1".into()));
    dir.probe("probe", "v2");
    proc.signal("HUP");
    proc.line("reload #8: ready");
    assert_eq!(field(&get(&addr, "/").unwrap(), "tag"), "v2");
    proc.stop();
    assert_eq!(proc.count("a shell ran this"), 0);
}

#[test]
fn a_dead_master_leaves_no_orphans() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=3"]);
    signal(proc.pid(), "KILL");
    // Standard error closes when the last worker has ended.
    assert!(!proc.end().success());
    // The port is free: it can be bound at once.
    let again = format!("bind={addr}");
    let mut proc = Proc::start(dir.str("probe"), &[&again]);
    proc.line("ready: generation 1");
    proc.stop();
}

#[test]
fn a_dead_master_leaves_no_worker_that_hangs() {
    if cfg!(any(not(target_os = "linux"), refork_portable)) {
        return; // Nothing tells a worker that does not ask.
    }
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["timeout=500"]);
    let _client = hang(&addr);
    signal(proc.pid(), "KILL");
    // It is told to finish, and does not: nobody but the kernel is left to end it.
    assert!(!proc.end().success());
}

#[test]
fn the_first_start_that_fails_ends_with_an_error_or_waits_for_a_change() {
    let dir = Dir::new();
    let image = dir.probe("probe", "unwell");
    let mut proc = Proc::start(&image, &["bind=127.0.0.1:0"]);
    assert_eq!(proc.end().code(), Some(1), "main returned the error");
    assert_eq!(proc.count("workers cannot boot (5 attempts)"), 1, "{}", proc.log());
    assert_eq!(proc.count("cannot boot: no worker became ready"), 1, "{}", proc.log());
    let mut proc = Proc::start(&image, &["bind=127.0.0.1:0", "watch=executable"]);
    let addr = proc.addr();
    proc.line("waiting for the next change");
    dir.probe("probe", "v2");
    proc.line("ready: generation 2");
    assert_eq!(field(&get(&addr, "/").unwrap(), "tag"), "v2");
    proc.stop();
}

#[test]
fn sockets_keep_their_names_ports_and_numbers() {
    let dir = Dir::new();
    let socket = dir.str("socket");
    let unix = format!("bind=unix:{socket},mode=0600");
    let args = ["bind=web=127.0.0.1:0", "bind=:0", unix.as_str(), "make=own"];
    let mut proc = Proc::start(dir.probe("probe", "v1"), &args);
    let addrs: Vec<String> = (0..5).map(|_| proc.addr()).collect();
    proc.line("ready: generation 1");
    let port = |addr: &str| addr.rsplit(':').next().unwrap().to_owned();
    assert!(addrs[1].starts_with("0.0.0.0:") && addrs[2].starts_with("[::]:"), "{addrs:?}");
    assert_eq!(port(&addrs[1]), port(&addrs[2]), "one port for both families");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    proc.signal("HUP");
    proc.line("adopted 5 listener(s)");
    proc.line("ready: generation 2");
    let v6 = format!("[::1]:{}", port(&addrs[2]));
    let v4 = format!("127.0.0.1:{}", port(&addrs[1]));
    for addr in [&addrs[0], &v4, &v6, &addrs[4]] {
        assert_eq!(field(&get(addr, "/").unwrap(), "gen"), "2", "{addr}");
    }
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.contains("gen=2") && answer.ends_with("end\n"), "{answer}");
    proc.stop();
    assert!(!std::path::Path::new(&socket).exists(), "unlinked at the final exit");
}

#[test]
fn threads_beside_the_master_are_named_and_run_wants_the_main_thread() {
    let dir = Dir::new();
    let (mut proc, _) = probe(&dir, &["thread=1"]);
    assert_eq!(proc.count("threads run beside the master (stranger)"), 1, "{}", proc.log());
    proc.stop();
    let error = std::thread::spawn(|| refork::Master::new().run(|_| Ok(()))).join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "wrong value `run`: must be called on the main thread");
}

/// How each thread of these processes waits and how often it has run, if all of them wait for ever: no timeout, no timer.
fn at_rest(pids: &[u32]) -> Option<Vec<String>> {
    let list = |path: String| std::fs::read_dir(path).unwrap().flatten().map(|entry| entry.path());
    let timer = |fd: std::path::PathBuf| std::fs::read_link(fd).is_ok_and(|to| to.ends_with("anon_inode:[timerfd]"));
    let mut waits = Vec::new();
    for pid in pids {
        let timers = std::fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
        if !timers.is_empty() || list(format!("/proc/{pid}/fd")).any(timer) {
            return None;
        }
        for task in list(format!("/proc/{pid}/task")) {
            let call = std::fs::read_to_string(task.join("syscall")).unwrap();
            let for_ever = match call.split_whitespace().collect::<Vec<_>>()[..] {
                // poll(2) with -1, an int: the low half of the register; ppoll(2) without a timespec.
                ["7", _, _, timeout, ..] => timeout.ends_with("ffffffff"),
                ["271", _, _, timeout, ..] => timeout == "0x0",
                _ => false,
            };
            if !for_ever {
                return None;
            }
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            waits.push(call);
            waits.extend(status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned));
        }
    }
    Some(waits)
}

#[test]
fn an_idle_service_does_not_wake_up() {
    let dir = Dir::new();
    // Polling is what wakes up.
    let watch: &[&str] = if cfg!(refork_portable) { &[] } else { &["watch=executable"] };
    let (mut proc, addr) = probe(&dir, &[&["workers=2"], watch].concat());
    get(&addr, "/").unwrap();
    let pids = [vec![proc.pid()], proc.children().0].concat();
    assert_eq!(pids.len(), 3);
    let file = format!("/proc/{}/syscall", proc.pid());
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) || std::fs::read_to_string(file).is_err() {
        return println!("skipped: nobody tells in which system call a thread waits");
    }
    // The same twice, and nobody ran in between: when the first look ended all of them waited at once, and nobody is
    // left to wake another.
    let mut before = None;
    let unrest = || sh(&pids.iter().map(|pid| format!("cat /proc/{pid}/task/*/syscall; ")).collect::<String>(), "");
    until(unrest, || {
        let last = std::mem::replace(&mut before, at_rest(&pids));
        last.is_some() && last == before
    });
    proc.stop();
}

#[test]
fn signals_at_any_moment_of_a_start_end_it_cleanly() {
    let dir = Dir::new();
    let image = dir.probe("probe", "v1");
    // As early as the shell can: sometimes before main, when SIGTERM ends it by default; never a hang or another end.
    let script = format!("{image} bind=127.0.0.1:0 workers=2 & pid=$!; kill -TERM $pid; wait $pid; echo $?");
    for _ in 0..50 {
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let mut proc = Proc::spawn(command);
        proc.end();
        let code = proc.stdout();
        assert!(["0", "143"].contains(&code.lines().last().unwrap_or("")), "{code}: {}", proc.log());
    }
}
