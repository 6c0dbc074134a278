//! Each statement of the document that refork implements, quoted, and the test that shows it. Its names and meanings
//! are kept; where refork differs, the test says so.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;

/// The seed server, on a copy of its own, and its address.
fn seed(dir: &Dir) -> (Proc, String) {
    sh(&format!("cp '{0}' '{1}.new' && mv '{1}.new' '{1}'", example("seed").display(), dir.str("server")), "");
    let mut proc = Proc::start(dir.str("server"), &[&dir.save("code.py", "v1"), "an argument"]);
    let addr = serving(&mut proc);
    (proc, addr)
}

fn serving(proc: &mut Proc) -> String {
    proc.line("serving on").rsplit(' ').next().unwrap().to_owned()
}

/// Says one word to the seed server: its answer, empty if it executed itself.
fn say(addr: &str, word: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(word.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// The sockets of a process, by number.
fn sockets(pid: u32) -> Vec<(u32, String)> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = links.filter_map(|fd| {
        let link = std::fs::read_link(fd.path()).ok()?.to_str()?.to_owned();
        Some((fd.file_name().to_str()?.parse().ok()?, link)).filter(|(_, link)| link.starts_with("socket:"))
    });
    let mut links: Vec<_> = links.collect();
    links.sort();
    links
}

/// The one among them that the workers have too.
fn listening(proc: &Proc, addr: &str) -> String {
    let answer = get(addr, "/fds").unwrap();
    let shared = sockets(proc.pid()).into_iter().map(|(_, link)| link).filter(|link| answer.contains(link.as_str()));
    let shared: Vec<String> = shared.collect();
    assert_eq!(shared.len(), 1, "{answer}");
    shared[0].clone()
}

// "The reload model is **master re-exec**:
//
// 1. Master binds and listens on the configured sockets.
// 2. Master forks worker processes; they inherit the listening sockets via fd inheritance.
// 4. Master sends SIGTERM to all workers and waits up to `shutdown_timeout` for them to drain in-flight requests.
// 5. Master marks the listening sockets inheritable, exports their fds via `BB_INHERIT_FDS`, and `os.execvp`s
//    `sys.executable` with the original argv.
// 6. The fresh master process adopts the inherited sockets and re-forks workers — now running the new code."
//
// "The listening sockets do not close at any point: kernel multiplexes the same fd across master+workers"
#[test]
fn the_reload_model_is_master_re_exec() {
    let dir = Dir::new();
    let args = ["bind=127.0.0.1:0", "workers=2", "timeout=500"];
    let mut proc = Proc::start(dir.probe("probe", "v1"), &args);
    let addr = proc.addr();
    proc.line("ready: generation 1, 2 workers");
    let socket = listening(&proc, &addr);
    let (workers, _) = proc.children();
    let image = std::fs::metadata(format!("/proc/{}/exe", proc.pid())).unwrap().ino();
    let load = Load::start(&addr);
    load.until("tag=v1");
    // A request in flight that is never finished: the wait is limited.
    let mut stuck = TcpStream::connect(&addr).unwrap();
    stuck.write_all(b"GET /hang HTTP/1.0\r\n\r\n").unwrap();
    stuck.read_exact(&mut [0; 30]).unwrap();
    dir.probe("probe", "v2");
    proc.signal("HUP");
    for stage in ["draining 2 workers", "drained", "exec ", "adopted 1 listener", "ready: generation 2, 2 workers"] {
        proc.line(&format!("reload #1: {stage}"));
    }
    assert_eq!(proc.count("did not drain in 500 ms: SIGKILL"), 1, "{}", proc.log());
    let answer = load.until("tag=v2");
    assert_eq!(field(&answer, "ppid"), proc.pid().to_string(), "the same process");
    load.stop();
    assert_eq!(listening(&proc, &addr), socket, "the same socket");
    assert!(proc.children().0.iter().all(|worker| !workers.contains(worker)));
    assert_ne!(std::fs::metadata(format!("/proc/{}/exe", proc.pid())).unwrap().ino(), image);
    let argv = std::fs::read_to_string(format!("/proc/{}/cmdline", proc.pid())).unwrap();
    assert_eq!(argv.split('\0').skip(1).collect::<Vec<_>>().join(" ").trim(), args.join(" "), "the original argv");
    proc.stop();
}

/// "Picking up new code requires the master itself to re-import, which is why we re-exec the whole process": the new
/// image can be anything. This one shows what a new image is given: "marks the listening sockets inheritable, exports
/// their fds via `BB_INHERIT_FDS`".
#[test]
fn the_new_image_is_given_the_sockets_and_their_numbers() {
    let dir = Dir::new();
    // It is no master, so it would not pass a check.
    let mut proc = Proc::start(dir.probe("probe", "v1"), &["check=off", "bind=127.0.0.1:0", "bind=127.0.0.1:0"]);
    proc.line("ready: generation 1");
    let before = sockets(proc.pid());
    let script = "#!/bin/sh\nfor fd in $(echo $BB_INHERIT_FDS | tr , ' '); do \
                  echo \"given $fd $(readlink /proc/$$/fd/$fd)\" >&2; done\n\
                  echo \"image $0, args $*, pid $$, fds $BB_INHERIT_FDS.\" >&2\n";
    dir.script("probe", script);
    proc.signal("HUP");
    let line = proc.line("image ");
    let expected = format!(
        "image {}, args check=off bind=127.0.0.1:0 bind=127.0.0.1:0, pid {}, fds ",
        dir.str("probe"),
        proc.pid()
    );
    let numbers = line.strip_prefix(&expected).unwrap_or_else(|| panic!("{line}")).trim_end_matches('.');
    assert_eq!(numbers.split(',').count(), 2, "comma-separated: {line}");
    for number in numbers.split(',') {
        let link = &before.iter().find(|(fd, _)| fd.to_string() == number).unwrap().1;
        assert_eq!(proc.count(&format!("given {number} {link}")), 1, "{}", proc.log());
    }
    proc.end();
}

/// "exec_self_with_sockets(sockets, argv=None): Re-execute the current Python process, preserving listening sockets."
/// "Does not return on success: the current process image is gone."
/// "argv: Argv to exec. Defaults to `sys.argv` (re-runs the same command line). `sys.executable` is always used as
/// `argv[0]`."
/// "unless FD_CLOEXEC is set, which we clear here"
#[test]
fn exec_self_with_sockets_keeps_the_sockets_the_pid_and_the_arguments() {
    let dir = Dir::new();
    let (mut proc, addr) = seed(&dir);
    assert_eq!(proc.count("adopted: None"), 1, "nothing was inherited: {}", proc.log());
    let before = format!("pid={} text=v1\n", proc.pid());
    assert_eq!(say(&addr, ""), before);
    // Only errors return, and everything is as before.
    assert!(say(&addr, "nothing").contains("no listening socket to hand over"));
    assert!(say(&addr, "no argv").contains("argv is empty"));
    assert_eq!(say(&addr, ""), before);
    dir.save("code.py", "v2");
    let (server, code) = (dir.str("server"), dir.str("code.py"));
    for (word, args) in [
        ("same", format!("args: [{server:?}, {code:?}, \"an argument\"]")),
        ("again", format!("args: [{server:?}, {code:?}, \"an argument\", \"again\"]")),
    ] {
        assert_eq!(say(&addr, word), "", "it does not return");
        proc.line(&args);
        proc.line("adopted: Some(1)");
        assert_eq!(serving(&mut proc), addr);
        assert!(say(&addr, "").starts_with(&format!("pid={} ", proc.pid())));
    }
    assert_eq!(say(&addr, ""), before.replace("v1", "v2"));
    assert_eq!(proc.count("fd 999: Bad file descriptor"), 4, "skipped with a warning: {}", proc.log());
}

/// "adopt_inherited_sockets": sockets are adopted once, and no child of the new image sees the variable. "Caller is
/// responsible for having already terminated any subprocesses that hold copies of these fds."
#[test]
fn adopt_inherited_sockets_takes_them_once() {
    let dir = Dir::new();
    let (mut proc, addr) = seed(&dir);
    for _ in 0..3 {
        say(&addr, "same");
        serving(&mut proc);
    }
    assert_eq!(proc.count("adopted: Some(1)"), 3, "{}", proc.log());
    assert_eq!(proc.count("again: false"), 4, "a second call finds nothing");
    assert_eq!(proc.count("variable: false"), 4, "the variable is gone");
    let flags = |pid: u32, fd: u32| {
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        u32::from_str_radix(&flags, 8).unwrap()
    };
    for (fd, link) in sockets(proc.pid()) {
        assert_ne!(flags(proc.pid(), fd) & 0o2_000_000, 0, "close-on-exec again: {fd} {link}");
    }
}

// What follows needs changes to be seen.

/// "3. A background watchfiles watcher signals the master when any watched `*.py` file changes."
/// "`paths`: Each path can be a file or a directory; directories are watched recursively."
/// Declared difference: not only `*.py`, but the usual suffixes of source files.
#[test]
fn the_watcher_signals_the_master_when_a_watched_file_changes() {
    let dir = Dir::new();
    std::fs::create_dir_all(dir.path("src/deep/er")).unwrap();
    let watch = format!("watch={}", dir.str("src"));
    let mut proc = Proc::start(dir.probe("probe", "v1"), &["bind=127.0.0.1:0", &watch]);
    proc.line("ready: generation 1");
    // Not watched; then what is: exactly one reload follows.
    std::fs::write(dir.path("src/deep/er/data.bin"), "x").unwrap();
    std::fs::write(dir.path("src/deep/er/module.py"), "x").unwrap();
    let line = proc.line("reload #1: change: ");
    assert!(line.ends_with("src/deep/er/module.py"), "{line}");
    proc.line("reload #1: ready: generation 2");
    proc.stop();
    assert_eq!(proc.count("change: "), 1, "{}", proc.log());
}

/// "`on_change`: callable invoked exactly once per debounced batch of file events. Runs on the watcher thread".
/// Declared difference: it receives the changed paths.
/// "start(): Start the watcher thread. No-op if already running." (the server calls it twice)
#[test]
fn on_change_is_called_once_per_batch_on_the_watchers_thread() {
    let dir = Dir::new();
    let (mut proc, addr) = seed(&dir);
    for i in 2..=21 {
        dir.save("code.py", &format!("v{i}"));
    }
    let line = proc.line("on_change");
    assert!(line.contains(&format!("[{:?}]", dir.str("code.py"))), "{line}");
    assert!(!line.contains("main") && line.contains("on Some("), "a thread of its own: {line}");
    assert_eq!(serving(&mut proc), addr);
    assert_eq!(say(&addr, ""), format!("pid={} text=v21\n", proc.pid()));
}

/// "The watcher runs in a daemon thread so it can not block the master's synchronous supervision loop. It debounces
/// filesystem events itself (watchfiles default ~50 ms) so a single editor save does not trigger multiple reloads."
#[test]
fn a_single_editor_save_does_not_trigger_multiple_reloads() {
    let dir = Dir::new();
    let watch = format!("watch={}", dir.save("code.py", "v1"));
    // Longer than 50 ms: the shell may be kept waiting between two steps of its save.
    let mut proc = Proc::start(dir.probe("probe", "v1"), &["bind=127.0.0.1:0", &watch, "debounce=1000"]);
    proc.line("ready: generation 1");
    // As editors do: a backup by rename, a new file, its mode.
    let code = dir.str("code.py");
    sh(&format!("mv {code} {code}~; printf v2 > {code}; chmod 644 {code}; rm {code}~"), "");
    proc.line("reload #1: ready: generation 2");
    proc.signal("HUP");
    proc.line("reload #2: ready: generation 3");
    proc.stop();
    assert_eq!(proc.count("change: "), 1, "{}", proc.log());
}

#[test]
fn a_callback_that_ends_the_process_leaves_its_line_behind() {
    let dir = Dir::new();
    sh(&format!("cp '{0}' '{1}.new' && mv '{1}.new' '{1}'", example("seed").display(), dir.str("server")), "");
    let mut proc = Proc::start(dir.str("server"), &[&dir.save("code.py", "v1"), "dies"]);
    serving(&mut proc);
    dir.save("code.py", "v2");
    assert!(!proc.end().success());
    let line = format!("change: {}", dir.str("code.py"));
    assert_eq!(proc.count(&line), 1, "{}", proc.log());
}
