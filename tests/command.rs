//! `refork run`: workers that execute a program.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Instant;

/// `refork run` on a port of the kernel's choice, with the probe as a program that knows nothing of refork.
fn plain(dir: &Dir, args: &[&str], text: &str) -> (Proc, String) {
    let script = format!("exec '{}' plain '{}' 0<&3", example("probe").display(), dir.save("text", text));
    let mut proc = Proc::start(REFORK, &[&["run", "-b", "127.0.0.1:0"], args, &["--", "sh", "-c", &script]].concat());
    let addr = proc.addr();
    proc.line("ready: generation 1");
    (proc, addr)
}

/// A shell that writes down what it is and becomes a program that ends on SIGTERM.
fn witness(dir: &Dir) -> [String; 3] {
    // find writes by itself: a shell keeps a copy of what it redirects.
    let script = "find /proc/$$/fd -type l -fprintf FILE.new 'fd %f %l\\n'; env >>FILE.new; \
                  cat /proc/$$/fdinfo/3 >>FILE.new 2>/dev/null; \
                  echo \"pid $$\" >>FILE.new; cut -d' ' -f5 /proc/$$/stat | sed 's/^/group /' >>FILE.new; \
                  mv FILE.new FILE; exec sleep 1000";
    ["sh".into(), "-c".into(), script.replace("FILE", &dir.str("told"))]
}

/// What a witness wrote: the rest of each line that begins with `word`.
fn told(text: &str, word: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix(word)).map(|rest| rest.trim().to_owned()).collect()
}

/// Starts the command with a descriptor that nobody has closed.
fn careless(args: &[&str]) -> Proc {
    let script = "exec 9</dev/null; exec \"$0\" \"$@\"";
    Proc::start("sh", &[&["-c", script, REFORK], args].concat())
}

#[test]
fn a_worker_finds_its_sockets_as_from_systemd_and_nothing_else() {
    let dir = Dir::new();
    let command = witness(&dir);
    let binds = ["run", "-b", "web=127.0.0.1:0", "-b", "127.0.0.1:0", "--"];
    let mut command: Vec<&str> = binds.into_iter().chain(command.iter().map(String::as_str)).collect();
    let mut proc = careless(&command);
    let mut before = Vec::new();
    for generation in 1..=2 {
        proc.line(&format!("ready: generation {generation}, 1 worker"));
        let text = std::fs::read_to_string(dir.path("told")).unwrap();
        let pid = told(&text, "pid ")[0].clone();
        assert_eq!(proc.children().0, [pid.parse::<u32>().unwrap()]);
        let pid = [pid];
        assert_eq!(told(&text, "group "), pid, "its own process group");
        assert_eq!(told(&text, "LISTEN_PID="), pid);
        assert_eq!(
            (told(&text, "LISTEN_FDS="), told(&text, "LISTEN_FDNAMES=")),
            (vec!["2".into()], vec!["web:unknown".into()])
        );
        assert_eq!(
            (told(&text, "REFORK_WORKER="), told(&text, "REFORK_GENERATION=")),
            (vec!["0".into()], vec![generation.to_string()])
        );
        for name in ["BB_INHERIT_FDS", "REFORK_HANDOFF"] {
            assert!(told(&text, name).is_empty(), "{text}");
        }
        assert_eq!(told(&text, "fd 0 "), ["/dev/null"]);
        let sockets = [told(&text, "fd 3 "), told(&text, "fd 4 ")].concat();
        assert!(sockets.len() == 2 && sockets.iter().all(|link| link.starts_with("socket:")), "{text}");
        assert_eq!(told(&text, "fd ").len(), 5, "{text}");
        let flags = &told(&text, "flags:")[0];
        assert_eq!(u32::from_str_radix(flags, 8).unwrap() & 0o2_004_000, 0, "blocking, and not close-on-exec: {flags}");
        // A shell blocks signals now and then: wait for what it becomes.
        let proc_file = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", pid[0])).unwrap();
        until(|| proc_file("comm"), || proc_file("comm") == "sleep\n");
        let status = proc_file("status");
        let signals = (told(&status, "SigBlk:"), told(&status, "SigIgn:"), sockets);
        assert_eq!(u64::from_str_radix(&signals.1[0], 16).unwrap() & 1 << 12, 0, "SIGPIPE has its default action");
        before.push(signals);
        proc.signal(if generation == 1 { "USR2" } else { "TERM" });
    }
    assert_eq!(before[0], before[1], "mask, ignored signals and sockets of the first start");
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    // Without sockets nothing speaks of sockets.
    command.drain(1..5);
    let mut proc = careless(&command);
    proc.line("ready: generation 1");
    let text = std::fs::read_to_string(dir.path("told")).unwrap();
    assert_eq!(told(&text, "fd ").len(), 3, "{text}");
    assert!(told(&text, "LISTEN_").is_empty(), "{text}");
    proc.stop();
}

#[test]
fn hup_is_a_new_generation_without_an_exec() {
    let dir = Dir::new();
    let (mut proc, addr) = plain(&dir, &["-w", "2"], "v1");
    assert_eq!(field(&get(&addr, "/").unwrap(), "text"), "v1");
    dir.save("text", "v2");
    proc.signal("HUP");
    proc.line("ready: generation 2, 2 workers");
    let answer = get(&addr, "/").unwrap();
    assert_eq!((field(&answer, "text"), field(&answer, "gen")), ("v2".into(), "2".into()));
    assert_eq!(field(&answer, "ppid"), proc.pid().to_string());
    assert_eq!(proc.count("exec "), 0, "{}", proc.log());
    proc.stop();
}

#[test]
fn usr2_is_a_new_generation_and_a_new_image_in_the_same_process() {
    let dir = Dir::new();
    let copy = format!("cp '{REFORK}' '{0}.new' && mv '{0}.new' '{0}'", dir.str("refork"));
    sh(&copy, "");
    let script = format!("exec '{}' plain '{}' 0<&3", example("probe").display(), dir.save("text", "v1"));
    let mut proc = Proc::start(dir.str("refork"), &["run", "-b", "127.0.0.1:0", "sh", "-c", &script]);
    let addr = proc.addr();
    proc.line("ready: generation 1");
    let image = |proc: &Proc| std::fs::metadata(format!("/proc/{}/exe", proc.pid())).unwrap().ino();
    let first = image(&proc);
    sh(&copy, "");
    dir.save("text", "v2");
    proc.signal("USR2");
    for stage in
        ["asked for by SIGUSR2", "draining 1 worker", "drained", "exec ", "adopted 1 listener", "ready: generation 2"]
    {
        proc.line(&format!("reload #1: {stage}"));
    }
    assert_ne!(image(&proc), first);
    assert_eq!(image(&proc), std::fs::metadata(dir.path("refork")).unwrap().ino());
    let answer = get(&addr, "/").unwrap();
    assert_eq!((field(&answer, "text"), field(&answer, "ppid")), ("v2".into(), proc.pid().to_string()));
    proc.stop();
}

#[test]
fn an_unmodified_python_server_loses_no_answer() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return println!("skipped: python3 is not there");
    }
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/app.py");
    let mut proc = Proc::start(REFORK, &["run", "-b", "127.0.0.1:0", "-w", "2", "--", "python3", app]);
    let addr = proc.addr();
    let load = Load::start(&addr);
    load.until("hello from worker");
    proc.line("ready: generation 1, 2 workers");
    for (signal, generation) in [("HUP", 2), ("USR2", 3)] {
        proc.signal(signal);
        proc.line(&format!("ready: generation {generation}, 2 workers"));
        load.until(&format!("master {}\n", proc.pid()));
    }
    load.stop();
    proc.stop();
}

#[test]
fn a_worker_that_ignores_sigterm_is_killed_at_the_timeout() {
    let args = ["run", "--shutdown-timeout", "0.3", "-w2", "--", "sh", "-c", "trap '' TERM; exec sleep 1000"];
    let mut proc = Proc::start(REFORK, &args);
    proc.line("ready: generation 1, 2 workers");
    proc.signal("HUP");
    proc.line("did not drain in 300 ms: SIGKILL");
    proc.line("ready: generation 2, 2 workers");
    proc.stop();
    assert_eq!(proc.count("did not drain in 300 ms"), 4, "{}", proc.log());
}

#[test]
fn a_dead_worker_is_replaced_and_no_process_of_its_group_stays() {
    let mut proc = Proc::start(REFORK, &["run", "-w", "2", "-v", "--", "sh", "-c", "sleep 1000; exit 7"]);
    proc.line("ready: generation 1, 2 workers");
    let (before, _) = proc.children();
    signal(before[1], "KILL");
    let line = proc.line("died");
    assert!(line.contains(&format!("(pid {}) died: signal 9 (SIGKILL), age ", before[1])), "{line}");
    assert!(line.ends_with(" s"), "{line}");
    proc.line("has left processes in its group; they are asked to end before another is started");
    proc.line("started, generation 1");
    let (after, _) = proc.children();
    assert!(after.len() == 2 && after[0] == before[0] && after[1] != before[1], "{before:?} {after:?}");
    // The end comes when nobody holds standard error any more: the shells' children have ended too.
    proc.stop();
}

#[test]
fn what_a_shell_leaves_is_waited_for_and_killed_at_the_timeout() {
    let dir = Dir::new();
    let (fifo, file) = (dir.str("fifo"), dir.str("finished"));
    sh(&format!("mkfifo '{fifo}'"), "");
    // The shell dies of SIGTERM, and what it runs finishes first; or ignores it.
    let polite = format!(
        "(trap \"read -r _ <'{fifo}'; : >'{file}'; exit\" TERM; echo up >&2; while :; do sleep 1; done) & wait"
    );
    let mut proc = Proc::start(REFORK, &["run", "-v", "--", "sh", "-c", &polite]);
    proc.line("up");
    proc.line("ready: generation 1, 1 worker");
    proc.signal("HUP");
    proc.line("has left processes in its group; they are asked to end");
    assert_eq!(proc.count("started, generation 2"), 0, "not beside what is left: {}", proc.log());
    std::fs::write(&fifo, "\n").unwrap();
    proc.line("reload #1: drained");
    assert!(dir.path("finished").exists());
    proc.line("up");
    proc.signal("TERM");
    std::fs::write(&fifo, "\n").unwrap();
    assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    assert_eq!(proc.count("SIGKILL"), 0, "{}", proc.log());

    let deaf = "(trap '' TERM; echo up >&2; while :; do sleep 1000; done) & wait";
    let mut proc = Proc::start(REFORK, &["run", "--shutdown-timeout", "0.3", "--", "sh", "-c", deaf]);
    proc.line("up");
    proc.line("ready: generation 1, 1 worker");
    proc.signal("HUP");
    proc.line("has left processes in its group that did not end in 300 ms: SIGKILL");
    proc.line("reload #1: drained");
    proc.line("ready: generation 2, 1 worker");
    // All of them have ended when nobody holds standard error any more.
    proc.stop();
    assert_eq!(proc.count("did not end in 300 ms: SIGKILL"), 2, "{}", proc.log());
}

#[test]
fn a_command_hears_its_stop_signal_although_the_starter_blocks_it() {
    let starter = "import os, signal, sys\n\
                   signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2, signal.SIGWINCH])\n\
                   os.execv(sys.argv[1], sys.argv[1:])\n";
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return println!("skipped: python3 is not there");
    }
    let mut proc = Proc::start("python3", &["-c", starter, REFORK, "run", "--", "sleep", "1000"]);
    proc.line("ready: generation 1");
    let status = std::fs::read_to_string(format!("/proc/{}/status", proc.children().0[0])).unwrap();
    let blocked = u64::from_str_radix(&told(&status, "SigBlk:")[0], 16).unwrap();
    let bit = |signal: i32| blocked & 1 << (signal - 1) != 0;
    // Linux's numbers of SIGTERM, SIGUSR2 and SIGWINCH.
    assert_eq!([15, 12, 28].map(bit), [false, true, true], "all but the stop signal as the starter has it: {status}");
    proc.stop();
    assert_eq!(proc.count("SIGKILL"), 0, "{}", proc.log());
}

#[test]
fn a_master_whose_standard_error_nobody_reads_can_be_stopped() {
    let dir = Dir::new();
    // Opened anew, so that only this writer does not wait.
    let script = format!(
        "exec 3>&2; dd if=/dev/zero of=/proc/self/fd/3 oflag=nonblock bs=4096 2>/dev/null; \
                          : >'{}'; exec sleep 1000",
        dir.str("full")
    );
    let mut command = Command::new(REFORK);
    command.args(["run", "--", "sh", "-c", &script]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    while !dir.path("full").exists() {
        sh("true", "");
    }
    signal(child.id(), "TERM");
    let deadline = Instant::now() + CEILING;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < deadline => sh("true", ""),
            None => panic!("it does not end: {:?}", child.kill()),
        };
    };
    assert_eq!(status.code(), Some(0));
}

#[test]
fn more_workers_than_descriptors_are_no_trouble() {
    let script = "ulimit -n 64; exec \"$0\" run -w 40 -- sleep 1000";
    let mut proc = Proc::start("sh", &["-c", script, REFORK]);
    proc.line("ready: generation 1, 40 workers");
    proc.stop();
    assert_eq!(proc.count("poll"), 0, "{}", proc.log());
}

#[test]
fn a_command_that_disappears_costs_nothing() {
    let dir = Dir::new();
    let script = "#!/bin/sh\nexec sleep 1000\n";
    let command = dir.script("command", script);
    let mut proc = Proc::start(REFORK, &["run", &command]);
    proc.line("ready: generation 1");
    let before = proc.children();
    let cases = [
        ("rm FILE", "HUP", "No such file"),
        ("echo 'exec sleep 1000' > FILE; chmod 755 FILE", "USR2", "neither an executable image nor a script with #!"),
        (": > FILE", "HUP", "is empty"),
        ("chmod 644 FILE", "HUP", "no x-bit"),
        ("rm FILE", "USR2", "No such file"),
    ];
    for (i, (damage, name, why)) in cases.into_iter().enumerate() {
        sh(&damage.replace("FILE", &command), "");
        proc.signal(name);
        let line = proc.line(&format!("reload #{}: dropped", i + 1));
        assert!(line.contains(why) && line.contains("the running code serves on; "), "{line}");
        assert_eq!(proc.children(), before, "the same worker serves on");
    }
    dir.script("command", script);
    proc.signal("HUP");
    proc.line("ready: generation 2");
    proc.stop();
    // An interpreter that is missing is only known to the kernel.
    let command = dir.script("command", "#!/does/not/exist\n");
    let mut proc = Proc::start(REFORK, &["run", "-b", "127.0.0.1:0", &command]);
    assert_eq!(proc.end().code(), Some(127), "{}", proc.log());
    assert_eq!(proc.count(&format!("cannot execute {command}: No such file")), 1, "{}", proc.log());
}

/// It was there when the reload began, and is gone when the new image looks for it.
#[test]
fn a_command_that_disappears_during_a_re_exec_is_waited_for() {
    let dir = Dir::new();
    let script = "#!/bin/sh\nexec sleep 1000\n";
    let command = dir.script("command", script);
    sh(&format!("cp '{REFORK}' '{0}.new' && mv '{0}.new' '{0}'", dir.str("refork")), "");
    let mut proc = Proc::start(dir.str("refork"), &["run", "-b", "127.0.0.1:0", &command]);
    let addr = proc.addr();
    proc.line("ready: generation 1");
    dir.script("refork", &format!("#!/bin/sh\n[ -n \"$REFORK_CHECK\" ] || rm '{command}'\nexec '{REFORK}' \"$@\"\n"));
    proc.signal("USR2");
    proc.line("adopted 1 listener");
    let line = proc.line("cannot fork worker 0");
    assert!(
        line.contains(&format!("cannot execute `{command}`: No such file")) && line.contains("next try in"),
        "{line}"
    );
    std::net::TcpStream::connect(&addr).expect("the socket listens");
    dir.script("command", script);
    proc.line("ready: generation 2");
    proc.stop();
}

#[test]
fn a_command_that_ends_at_once_waits_for_better_code_when_reload_is_on() {
    let dir = Dir::new();
    let command = dir.script("command", "#!/bin/sh\nexit 9\n");
    let mut proc = Proc::start(REFORK, &["run", "--reload-path", &dir.str(""), "--", &command]);
    proc.line("died: exit code 9");
    proc.line("workers cannot boot (5 attempts); waiting for the next change");
    dir.script("command", "#!/bin/sh\nexec sleep 1000\n");
    // Whichever comes first, this or the change.
    proc.signal("HUP");
    proc.line("ready: generation");
    proc.stop();
}

#[test]
fn a_master_that_was_started_by_a_service_manager_takes_its_sockets() {
    let dir = Dir::new();
    for (variables, bind) in
        [("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web", ""), ("LISTEN_PID=1 LISTEN_FDS=1", "-b web=fd://3")]
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let text = dir.save("text", "v1");
        let serve = format!("test $LISTEN_FDNAMES = web && exec {} plain {text} 0<&3", example("probe").display());
        let script = format!("export {variables}; exec '{REFORK}' run {bind} -- sh -c '{serve}' 3<&0 0</dev/null");
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let mut proc = Proc::spawn_with(command, Stdio::from(OwnedFd::from(listener)));
        for generation in 1..=2 {
            proc.line(&format!("ready: generation {generation}, 1 worker"));
            let answer = get(&addr, "/fds").unwrap();
            let listening = answer.lines().find(|line| line.starts_with("3 socket:")).unwrap();
            assert!(answer.contains(&listening.replace("3 ", "0 ")), "{answer}");
            let env = get(&addr, "/env").unwrap();
            assert_eq!(field(&env, "LISTEN_FDS"), "1");
            assert!(!env.contains("BB_INHERIT_FDS") && !env.contains("REFORK_HANDOFF"), "{env}");
            proc.signal(if generation == 1 { "USR2" } else { "TERM" });
        }
        assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
    }
}

/// The kernel's word (PR_SET_PDEATHSIG): on other systems it is documented that a COMMAND may stay.
#[cfg(all(target_os = "linux", not(refork_portable)))]
#[test]
fn a_dead_master_leaves_no_command_behind() {
    let mut proc = Proc::start(REFORK, &["run", "-w", "3", "sleep", "1000"]);
    proc.line("ready: generation 1");
    signal(proc.pid(), "KILL");
    // Standard error closes when the last worker has ended.
    assert!(!proc.end().success());
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, expected) in [
        (&["--help"][..], "refork watch"),
        (&["run", "--help"], "--shutdown-timeout SECS"),
        (&["watch", "-h"], "--json"),
        (&["--version"], concat!("refork ", env!("CARGO_PKG_VERSION"))),
    ] {
        let mut proc = Proc::start(REFORK, args);
        assert_eq!((proc.end().code(), proc.log()), (Some(0), String::new()));
        let text = proc.stdout();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn quiet_and_verbose() {
    for (option, started, listening) in [("-q", 0, 0), ("-v", 1, 1), ("-w1", 0, 1)] {
        let script = "echo up >&2; kill $PPID; exec sleep 1000";
        let mut proc = Proc::start(REFORK, &["run", option, "-b", "127.0.0.1:0", "sh", "-c", script]);
        proc.line("up");
        assert_eq!(proc.end().code(), Some(0), "{}", proc.log());
        let counts = (proc.count("started, generation 1"), proc.count("listening on"));
        assert_eq!(counts, (started, listening), "{}", proc.log());
    }
}
