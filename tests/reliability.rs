//! A reload that cannot take the service down: one test per promise or fault, with real processes and both hand-overs.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use std::path::Path;

const ORDERS: [&str; 2] = ["handover=overlap", "handover=drain-first"];

/// Elsewhere no image can be executed by descriptor: see `Master::rollback`.
const ROLLS_BACK: bool = cfg!(all(target_os = "linux", not(refork_portable)));

/// A running probe of version `v1` on a port of the kernel's choice, with patience fit for a test.
fn probe(dir: &Dir, args: &[&str]) -> (Proc, String) {
    let image = dir.probe("probe", "v1");
    let limits = ["bind=127.0.0.1:0", "check=10000", "boot=10000"];
    let mut proc = Proc::start(image, &[&limits[..], args].concat());
    let addr = proc.addr();
    proc.line("ready: generation 1");
    (proc, addr)
}

fn tag(addr: &str) -> String {
    field(&get(addr, "/").unwrap(), "tag")
}

/// Zombies and live children settle a moment after a line: until there are `n` and none.
fn settle(proc: &Proc, n: usize) {
    let wrong = || format!("children {:?}, wanted {n}:\n{}", proc.children(), proc.log());
    until(wrong, || {
        let (live, zombies) = proc.children();
        (live.len(), zombies) == (n, 0)
    });
}

/// The status file, as a shell reads it.
fn status(path: &str, key: &str) -> String {
    sh(&format!(". '{path}'; printf %s \"${key}\""), "")
}

/// The line comes a moment before the file.
fn status_is(path: &str, key: &str, value: &str) {
    until(|| format!("{key} is {:?}, not {value:?}", status(path, key)), || status(path, key) == value);
}

#[test]
fn overlap_loses_nothing_under_load_and_somebody_always_accepts() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2", "handover=overlap"]);
    let loads: Vec<Load> = (0..2).map(|_| Load::start(&addr)).collect();
    for reload in 1..=5 {
        dir.probe("probe", &format!("v{}", reload + 1));
        proc.signal("HUP");
        let line = proc.line(&format!("reload #{reload}: done after SIGHUP"));
        assert!(line.contains(" gap 0 ms"), "{line}");
        loads.iter().for_each(|load| _ = load.until(&format!("tag=v{}", reload + 1)));
    }
    loads.into_iter().for_each(|load| _ = load.stop());
    for stage in
        ["checking", "exec", "adopted 1 listener(s), 2 workers", "ready: generation 2", "draining 2", "drained"]
    {
        assert_eq!(proc.count(&format!("reload #1: {stage}")), 1, "{stage}: {}", proc.log());
    }
    settle(&proc, 2);
    proc.stop();
    assert_eq!(proc.stdout(), format!("returned in {}\n", proc.pid()));
}

#[test]
fn overlap_serves_while_an_old_worker_is_still_answering() {
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["handover=overlap"]);
    let fifo = dir.str("fifo");
    sh(&format!("mkfifo {fifo}"), "");
    let (path, slow) = (format!("/fifo{fifo}"), addr.clone());
    let answer = std::thread::spawn(move || get(&slow, &path));
    let write = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    dir.probe("probe", "v2");
    proc.signal("HUP");
    proc.line("reload #1: ready: generation 2");
    assert_eq!(tag(&addr), "v2");
    // At most two generations: the next waits until the older has drained, and is told only once however often it is
    // asked for.
    dir.probe("probe", "v3");
    proc.signal("HUP");
    proc.line("reload #2: waiting for 1 worker to drain");
    proc.signal("HUP");
    assert_eq!(tag(&addr), "v2");
    std::io::Write::write_all(&mut { write }, b"finished\n").unwrap();
    let answer = answer.join().unwrap().unwrap();
    assert!(answer.contains("tag=v1") && answer.contains("finished"), "{answer}");
    proc.line("reload #2: done");
    assert_eq!(tag(&addr), "v3");
    settle(&proc, 1);
    proc.stop();
    assert_eq!(proc.count("reload #3"), 0, "{}", proc.log());
}

/// A new image, how it is put in place, and what the log says of it.
const ILL_FILES: [(&str, &str); 6] = [
    ("rm IMAGE", "No such file"),
    ("cp IMAGE X; chmod 644 X; mv X IMAGE", "no x-bit"),
    (": > X; chmod 755 X; mv X IMAGE", "is empty"),
    ("echo 'echo a shell ran this' > X; chmod 755 X; mv X IMAGE", "neither an executable image nor a script"),
    ("head -c 3000000 IMAGE > X; chmod 755 X; mv X IMAGE", "is truncated"),
    ("printf '\\177ELF' > X; chmod 755 X; mv X IMAGE", "is truncated"),
];

#[test]
fn a_file_that_cannot_be_executed_costs_nothing_and_the_next_good_one_recovers() {
    for order in ORDERS {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &[order]);
        let mut serving = "v1".to_owned();
        for (i, (script, why)) in ILL_FILES.into_iter().enumerate() {
            let before = field(&get(&addr, "/").unwrap(), "pid");
            let image = dir.str("probe");
            sh(&script.replace("IMAGE", &image).replace(" X", &format!(" {image}.x")), "");
            proc.signal("HUP");
            let line = proc.line(&format!("reload #{}: dropped", 2 * i + 1));
            assert!(line.contains(why), "{order}: {line}");
            let answer = get(&addr, "/").unwrap();
            assert_eq!((field(&answer, "tag"), field(&answer, "pid")), (serving, before), "{order}, {why}");
            serving = format!("good{i}");
            dir.probe("probe", &serving);
            proc.signal("HUP");
            proc.line(&format!("reload #{}: done", 2 * i + 2));
            assert_eq!(tag(&addr), serving);
        }
        settle(&proc, 1);
        proc.stop();
        assert_eq!(proc.count("a shell ran this"), 0);
    }
}

#[test]
fn code_that_is_ill_in_main_fails_its_check() {
    for order in ORDERS {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &[order, "check=3000"]);
        let cases = [
            ("crashes", "ended before Master::run (signal 6 (SIGABRT))"),
            ("exits", "ended before Master::run (exit code 0)"),
            ("hangs", "gave no answer in 3000 ms"),
        ];
        let before = field(&get(&addr, "/").unwrap(), "pid");
        for (i, (ill, why)) in cases.into_iter().enumerate() {
            dir.probe("probe", ill);
            proc.signal("HUP");
            let line = proc.line(&format!("reload #{}: dropped", i + 1));
            assert!(line.contains(why), "{order}: {line}");
            assert_eq!(field(&get(&addr, "/").unwrap(), "pid"), before, "the same worker serves on");
        }
        assert_eq!(proc.count("check: about to crash"), 1, "{}", proc.log());
        settle(&proc, 1);
        dir.probe("probe", "v2");
        proc.signal("HUP");
        proc.line("reload #4: done");
        assert_eq!(tag(&addr), "v2");
        proc.stop();
    }
}

#[test]
fn code_that_does_not_boot_is_rolled_back_and_only_other_code_is_tried() {
    if !ROLLS_BACK {
        return;
    }
    for order in ORDERS {
        let dir = Dir::new();
        let status_file = dir.str("status");
        let (mut proc, addr) = probe(&dir, &[order, "workers=2", "boot=4000", &format!("status={status_file}")]);
        let load = Load::start(&addr);
        let (mut reload, mut good) = (0, "v1".to_owned());
        let pids = |proc: &Proc| {
            let mut pids = proc.children().0;
            pids.sort_unstable();
            pids
        };
        for (ill, why) in [
            ("unwell", "die before they are ready: exit code 1"),
            ("aborts", "die before they are ready: signal 6 (SIGABRT)"),
            ("dawdles", "not all workers are ready after 4000 ms"),
        ] {
            let before = pids(&proc);
            dir.probe("probe", ill);
            proc.signal("HUP");
            reload += 1;
            let line = proc.line(&format!("reload #{reload}: rolled back"));
            assert!(line.contains(why), "{order}: {line}");
            assert_eq!(tag(&addr), good);
            settle(&proc, 2);
            if order == ORDERS[0] {
                assert_eq!(pids(&proc), before, "the same workers serve on");
            }
            // The fd of the image is gone, and the same code is not tried again.
            proc.signal("HUP");
            reload += 1;
            let line = proc.line(&format!("reload #{reload}: dropped"));
            assert!(line.contains("is the image that failed before"), "{line}");
            status_is(&status_file, "reload", &reload.to_string());
            status_is(&status_file, "state", "serving");
            assert!(status(&status_file, "last_error").contains("failed before"));
            good = format!("good{reload}");
            dir.probe("probe", &good);
            proc.signal("HUP");
            reload += 1;
            proc.line(&format!("reload #{reload}: done"));
            assert_eq!(tag(&addr), good);
            settle(&proc, 2);
        }
        load.stop();
        assert_eq!(field(&get(&addr, "/").unwrap(), "ppid"), proc.pid().to_string());
        proc.stop();
    }
}

#[test]
fn an_image_that_comes_during_the_drain_is_checked_too() {
    let dir = Dir::new();
    let fifo = dir.str("fifo");
    sh(&format!("mkfifo '{fifo}'"), "");
    let (mut proc, addr) = probe(&dir, &["timeout=600000"]);
    let (path, client) = (format!("/fifo{fifo}"), addr.clone());
    let answer = std::thread::spawn(move || get(&client, &path));
    let write = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    proc.signal("HUP");
    proc.line("reload #1: draining");
    dir.probe("probe", "crashes");
    std::io::Write::write_all(&mut { write }, b"finished\n").unwrap();
    assert!(answer.join().unwrap().unwrap().contains("finished"));
    let line = proc.line("reload #1: dropped");
    assert!(line.contains("ended before Master::run (signal 6 (SIGABRT))"), "{line}");
    assert!(line.ends_with("workers of the running code are started again"), "{line}");
    assert_eq!(tag(&addr), "v1");
    proc.stop();
}

#[test]
fn what_failed_for_another_reason_than_the_image_is_tried_again() {
    if !ROLLS_BACK {
        return;
    }
    for order in ORDERS {
        let dir = Dir::new();
        std::fs::create_dir(dir.path("src")).unwrap();
        let (watch, ill) = (format!("watch={}", dir.str("src")), format!("ill={}", dir.str("conf")));
        let (mut proc, addr) = probe(&dir, &[order, "boot=4000", &watch, &ill]);
        // The same image as before fails, for its configuration is ill.
        dir.save("conf", "unwell");
        proc.signal("HUP");
        proc.line("reload #1: workers of the new code die before they are ready");
        proc.line(if order == ORDERS[0] { "reload #1: rolled back" } else { "reload #1: abandoned" });
        dir.save("conf", "well again");
        proc.signal("HUP");
        proc.line("reload #2: done");
        dir.save("src/code.py", "");
        proc.line("reload #3: done");
        assert_eq!(tag(&addr), "v1");
        // An image that is ill itself: with a change elsewhere it is worth another try, without one it is not.
        dir.probe("probe", "unwell");
        proc.signal("HUP");
        proc.line("reload #4: rolled back");
        dir.save("src/other.py", "");
        proc.line("reload #5: rolled back");
        proc.signal("HUP");
        assert!(proc.line("reload #6: dropped").contains("is the image that failed before"), "{order}");
        assert_eq!(tag(&addr), "v1");
        proc.stop();
    }
}

#[test]
fn without_roll_back_the_old_workers_serve_on_or_the_new_are_tried() {
    for order in ORDERS {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &[order, "rollback=off"]);
        dir.probe("probe", "unwell");
        proc.signal("HUP");
        let line = proc.line("reload #1: abandoned");
        if order == ORDERS[0] {
            assert!(line.contains("1 worker of the old code serve on"), "{line}");
            assert_eq!(tag(&addr), "v1");
        } else {
            assert!(line.contains("is tried again"), "{line}");
        }
        dir.probe("probe", "v2");
        proc.signal("HUP");
        proc.line("reload #2: done");
        assert_eq!(tag(&addr), "v2");
        proc.stop();
    }
}

#[test]
fn an_image_whose_options_are_wrong_gives_the_service_back() {
    if !ROLLS_BACK {
        return;
    }
    for order in ORDERS {
        let dir = Dir::new();
        // Without a check nothing but the roll-back helps.
        let (mut proc, addr) = probe(&dir, &[order, "check=off"]);
        for (i, (ill, why)) in
            [("misconfigured", "is not a number of workers"), ("rebinds", "fd://999")].into_iter().enumerate()
        {
            dir.probe("probe", ill);
            proc.signal("HUP");
            let line = proc.line(&format!("reload #{}: rolled back", i + 1));
            assert!(line.contains(why), "{order}: {line}");
            assert_eq!(tag(&addr), "v1");
        }
        dir.probe("probe", "v2");
        proc.signal("HUP");
        proc.line("reload #3: done");
        assert_eq!(tag(&addr), "v2");
        proc.stop();
    }
}

#[test]
fn sigterm_at_any_stage_ends_cleanly() {
    for order in ORDERS {
        for (ill, stage) in [
            ("v2", "asked for"),
            ("v2", "checking"),
            ("v2", "exec "),
            ("v2", "adopted"),
            ("v2", "ready: generation 2"),
            ("hangs", "checking"),
            ("dawdles", "adopted"),
            ("unwell", "adopted"),
            ("unwell", "rolling back"),
            ("unwell", "rolled back"),
        ] {
            if stage.starts_with("roll") && !ROLLS_BACK {
                continue;
            }
            let dir = Dir::new();
            let (mut proc, _) = probe(&dir, &[order, "workers=2"]);
            dir.probe("probe", ill);
            proc.signal("HUP");
            proc.line(stage);
            proc.signal("TERM");
            assert_eq!(proc.end().code(), Some(0), "{order}, {ill}, {stage}: {}", proc.log());
            assert_eq!(proc.count("stopping on SIGTERM"), 1, "{order}, {ill}, {stage}: {}", proc.log());
        }
    }
}

#[test]
fn a_signal_that_comes_while_the_hand_off_waits_is_not_lost() {
    for order in ORDERS {
        let dir = Dir::new();
        std::fs::create_dir(dir.path("src")).unwrap();
        let fifo = dir.str("fifo");
        sh(&format!("mkfifo '{fifo}'"), "");
        let (watch, filter) = (format!("watch={}", dir.str("src")), format!("filter={fifo}"));
        // The status file is replaced before a hand-off begins: it says how far the master is.
        let file = dir.str("status");
        let status = format!("status={file}");
        let (mut proc, _) = probe(&dir, &["check=off", &watch, &filter, &status, order]);
        dir.save("src/held.py", "");
        // Opened when the watcher has opened it, too: from now on it keeps every hand-off waiting.
        let held = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        proc.signal("HUP");
        status_is(&file, "generation", "2");
        proc.signal("TERM");
        drop(held);
        assert_eq!(proc.end().code(), Some(0), "{order}: {}", proc.log());
        assert_eq!(proc.count("stopping on SIGTERM"), 1, "{order}: {}", proc.log());
    }
}

#[test]
fn a_reload_asked_for_during_a_reload_happens_once_afterwards() {
    if !ROLLS_BACK {
        return;
    }
    let dir = Dir::new();
    // The new generation is not ready before the second signal has come: its workers are never.
    let (mut proc, addr) = probe(&dir, &["handover=overlap", "boot=2000"]);
    dir.probe("probe", "dawdles");
    proc.signal("HUP");
    proc.line("reload #1: adopted");
    proc.signal("HUP");
    dir.probe("probe", "v2");
    proc.signal("USR2");
    proc.line("reload #1: rolled back");
    proc.line("reload #2: asked for during the one before");
    proc.line("reload #2: done after pending");
    assert_eq!(tag(&addr), "v2");
    proc.stop();
    assert_eq!(proc.count("reload #3"), 0, "{}", proc.log());
}

#[test]
fn no_edit_is_lost_whenever_the_last_save_comes() {
    for order in ORDERS {
        for stage in ["change: ", "checking ", "exec ", "adopted ", "ready: generation 2", "done after "] {
            let dir = Dir::new();
            let (mut proc, addr) = probe(&dir, &["workers=2", "watch=executable", order]);
            let load = Load::start(&addr);
            dir.probe("probe", "v2");
            proc.line(&format!("reload #1: {stage}"));
            dir.probe("probe", "v3");
            load.until("tag=v3");
            load.stop();
            assert_eq!(field(&get(&addr, "/").unwrap(), "ppid"), proc.pid().to_string());
            proc.stop();
        }
    }
}

#[test]
fn an_edit_between_two_images_is_not_lost() {
    for order in ORDERS {
        let dir = Dir::new();
        std::fs::create_dir(dir.path("src")).unwrap();
        let watch = format!("watch={}", dir.str("src"));
        let (mut proc, addr) = probe(&dir, &["check=off", "rollback=off", &watch, order]);
        let (new, fifo) = (dir.probe("new", "v2"), dir.str("fifo"));
        sh(&format!("mkfifo '{fifo}'"), "");
        // Neither the old image nor the new: it begins to be the new one when the FIFO is opened.
        let between = format!("#!/bin/sh\necho between >&2\nread -r _ < '{fifo}'\nexec '{new}' \"$@\"\n");
        dir.script("probe", &between);
        proc.signal("HUP");
        proc.line("between");
        dir.probe("probe", "v3");
        dir.save("src/code.py", "edited");
        std::fs::write(&fifo, "\n").unwrap();
        let line = proc.line("reload #2: change: ");
        assert!(line.contains(&dir.str("src")), "{line}");
        proc.line("reload #2: done");
        assert_eq!(tag(&addr), "v3");
        proc.stop();
    }
}

#[test]
fn identical_bytes_are_no_reload() {
    if !ROLLS_BACK {
        return; // Nothing names the running image here: it is reloaded.
    }
    let dir = Dir::new();
    let image = dir.probe("probe", "v1");
    let mut command = std::process::Command::new(image);
    command.args(["bind=127.0.0.1:0", "watch=executable", "check=10000"]).env("REFORK_LOG", "debug");
    let mut proc = Proc::spawn(command);
    let addr = proc.addr();
    proc.line("ready: generation 1");
    let before = field(&get(&addr, "/").unwrap(), "pid");
    dir.probe("probe", "v1");
    proc.line("reload #1: the bytes that run already: nothing to do");
    assert_eq!(field(&get(&addr, "/").unwrap(), "pid"), before);
    // The next is the first.
    dir.probe("probe", "v2");
    proc.line("reload #1: ready: generation 2");
    assert_eq!(tag(&addr), "v2");
    proc.stop();
}

#[test]
fn a_service_that_writes_what_it_watches_is_named_and_slowed_down() {
    let dir = Dir::new();
    let (code, server) = (dir.save("code.py", ""), dir.str("server"));
    dir.script("server", &format!("#!/bin/sh\necho 1 >> '{code}'\nexec sleep 1000\n"));
    let args = ["run", "--ready", "0.05", "--debounce", "20", "--reload-path", &code, "--", &server];
    let mut proc = Proc::start(REFORK, &args);
    let line = proc.line("changes right after each reload");
    assert!(line.contains(&code) && line.contains("collected for 40 ms"), "{line}");
    proc.line("collected for 80 ms");
    proc.stop();
}

#[test]
fn a_thousand_signals_are_a_few_reloads() {
    for order in ORDERS {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &[order]);
        let load = Load::start(&addr);
        sh(&format!("i=0; while [ $i -lt 1000 ]; do kill -HUP {}; i=$((i+1)); done", proc.pid()), "");
        dir.probe("probe", "v2");
        proc.signal("HUP");
        load.until("tag=v2");
        load.stop();
        settle_idle(&dir, &proc, &addr);
        proc.stop();
    }
}

/// One more reload, asked for until it is the last word.
fn settle_idle(dir: &Dir, proc: &Proc, addr: &str) {
    dir.probe("probe", "last");
    proc.signal("HUP");
    until(|| "the last version does not serve".into(), || tag(addr) == "last");
}

#[test]
fn workers_that_die_around_the_exec_are_reaped() {
    if !ROLLS_BACK {
        return;
    }
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=3", "handover=overlap", "boot=3000"]);
    let old = proc.children().0;
    dir.probe("probe", "dawdles");
    proc.signal("HUP");
    proc.line("reload #1: adopted");
    // Two of the old die during the overlap: not replaced, for their code is not here; the third serves.
    signal(old[0], "KILL");
    signal(old[1], "KILL");
    proc.line("died: signal 9");
    proc.line("died: signal 9");
    assert_eq!(field(&get(&addr, "/").unwrap(), "pid"), old[2].to_string());
    // The image that comes back replaces them.
    proc.line("reload #1: rolled back");
    assert_eq!(tag(&addr), "v1");
    settle(&proc, 3);
    proc.stop();
}

#[test]
fn a_worker_killed_at_a_random_moment_of_a_reload_is_only_one_worker() {
    for order in ORDERS {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &["workers=2", order]);
        for (i, stage) in ["checking", "exec", "adopted", "ready", "done"].into_iter().enumerate() {
            proc.signal("HUP");
            proc.line(&format!("reload #{}: {stage}", i + 1));
            if let Some(pid) = proc.children().0.first() {
                let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).output();
            }
            if stage != "done" {
                proc.line(&format!("reload #{}: done", i + 1));
            }
            get(&addr, "/").or_else(|_| get(&addr, "/")).unwrap();
            settle(&proc, 2);
        }
        proc.stop();
    }
}

#[test]
fn a_master_that_is_killed_leaves_nobody_whatever_it_was_doing() {
    for (ill, stage) in
        [("v2", "checking"), ("v2", "exec "), ("v2", "adopted"), ("dawdles", "adopted"), ("hangs", "checking")]
    {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &["workers=2", "handover=overlap"]);
        dir.probe("probe", ill);
        proc.signal("HUP");
        proc.line(stage);
        signal(proc.pid(), "KILL");
        // Standard error closes when the last process has ended; a trial's output is not it, so look.
        assert!(!proc.end().success());
        let left = || sh(&format!("pgrep -f '^{} ' || true", dir.str("probe")), "");
        until(|| format!("{stage}: left are {}", left()), || left().is_empty());
        dir.probe("probe", "v3");
        let mut proc = Proc::start(dir.str("probe"), &[&format!("bind={addr}")]);
        proc.line("ready: generation 1");
        assert_eq!(tag(&addr), "v3");
        proc.stop();
    }
}

#[test]
fn the_status_file_says_what_is_and_is_never_written_through_a_link() {
    let dir = Dir::new();
    let (path, target) = (dir.str("it's status"), dir.save("target", "untouched"));
    std::os::unix::fs::symlink(&target, &path).unwrap();
    // Whoever has read a line finds a file that is as new: here each line brings it along.
    let (mut proc, _) = probe(&dir, &["workers=2", &format!("status={path}"), &format!("lines={path}")]);
    let quoted = path.replace('\'', r"'\''");
    let get = |key: &str| status(&quoted, key);
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
    assert!(!std::fs::symlink_metadata(&path).unwrap().is_symlink());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(get("pid"), proc.pid().to_string());
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proc.pid())).unwrap();
    assert_eq!(get("start_time"), stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap());
    let is = |key: &str, value: &str| assert_eq!(get(key), value, "{key}");
    is("state", "serving");
    let workers: Vec<u32> = get("workers").split(' ').map(|w| w.split(':').nth(1).unwrap().parse().unwrap()).collect();
    let mut children = proc.children().0;
    children.sort_unstable();
    assert_eq!(workers, children);
    assert!(get("workers").starts_with(&format!("0:{}:1:ready 1:", workers[0])), "{}", get("workers"));
    dir.probe("probe", "exits");
    proc.signal("HUP");
    proc.line("dropped");
    is("reload", "1");
    is("last_error", &format!("{} ended before Master::run (exit code 0)", dir.str("probe")));
    dir.probe("probe", "v2");
    proc.signal("HUP");
    let done = proc.line("reload #2: done");
    assert!(done.contains("generation='2' reload='2' state='serving'"), "{done}");
    is("generation", "2");
    is("last_error", "");
    proc.stop();
    let stopped = proc.seen.iter().find(|line| line.contains("stopped")).unwrap();
    assert!(stopped.contains("state='stopped' workers=''"), "{stopped}");
    assert_eq!((get("state"), get("workers")), ("stopped".into(), String::new()));
    assert_eq!(
        std::fs::read_dir(dir.path(""))
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with('.'))
            .count(),
        0
    );
}

#[test]
fn a_status_file_that_cannot_be_written_is_one_warning() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let dir = Dir::new();
    let path = dir.str("missing/status");
    let (mut proc, addr) = probe(&dir, &[&format!("status={path}")]);
    proc.signal("HUP");
    proc.line("reload #1: done");
    // A reload is a new image: it says it once more.
    assert_eq!(proc.count("cannot write the status file"), 2, "{}", proc.log());
    assert_eq!(tag(&addr), "v1");
    std::fs::create_dir(dir.path("missing")).unwrap();
    proc.signal("TTIN");
    proc.stop();
    assert_eq!(status(&path, "state"), "stopped");
}

#[test]
fn an_image_that_is_still_being_written_is_waited_for() {
    for order in ORDERS {
        let dir = Dir::new();
        let (mut proc, addr) = probe(&dir, &[order]);
        let image = dir.str("probe");
        dir.probe("new", "v2");
        // Half of it, and the rest once the reload has noticed.
        sh(&format!("rm '{image}'; head -c 4000000 '{}' > '{image}'; chmod 755 '{image}'", dir.str("new")), "");
        proc.signal("HUP");
        let line = proc.line("reload #1: waiting");
        assert!(line.contains("is truncated: 4000000 of "), "{line}");
        assert_eq!(tag(&addr), "v1");
        sh(&format!("tail -c +4000001 '{}' >> '{image}'", dir.str("new")), "");
        proc.line("reload #1: done");
        assert_eq!(tag(&addr), "v2");
        // Complete, and open for writing: ETXTBSY.
        dir.probe("probe", "v3");
        let open = std::fs::OpenOptions::new().append(true).open(&image).unwrap();
        proc.signal("HUP");
        proc.line("reload #2: checking");
        assert_eq!(tag(&addr), "v2");
        drop(open);
        proc.line("reload #2: done");
        assert_eq!(tag(&addr), "v3");
        proc.stop();
    }
}

#[test]
fn thirty_overlaps_and_roll_backs_leave_nothing_behind() {
    if !ROLLS_BACK {
        return;
    }
    let dir = Dir::new();
    let (mut proc, addr) = probe(&dir, &["workers=2", "handover=overlap"]);
    let mut first = None;
    for round in 0..15 {
        dir.probe("probe", "aborts");
        proc.signal("HUP");
        proc.line("rolled back");
        dir.probe("probe", &format!("v{round}"));
        proc.signal("HUP");
        proc.line("done after");
        settle(&proc, 2);
        let fds = get(&addr, "/fds").unwrap().lines().count();
        let now = (proc.resources(), fds);
        assert_eq!(*first.get_or_insert(now), now, "round {round}: ((fds, threads) of the master, fds of a worker)");
    }
    proc.stop();
}

#[test]
fn gits_lock_holds_a_reload() {
    let dir = Dir::new();
    let tree = dir.str("tree");
    sh(&format!("mkdir -p '{tree}/.git' '{tree}/src'; : > '{tree}/.git/index.lock'"), "");
    let (mut proc, addr) = probe(&dir, &[&format!("watch={tree}/src")]);
    proc.signal("HUP");
    proc.line("reload #1: waiting: git is at work");
    get(&addr, "/").unwrap();
    assert_eq!(proc.count("draining"), 0);
    sh(&format!("rm '{tree}/.git/index.lock'"), "");
    proc.line("reload #1: done");
    proc.stop();
}

/// A master whose workers are `probe plain`, which serves the text of a file as it was when the worker started.
fn command(dir: &Dir, text: &str, args: &[&str]) -> (Proc, String) {
    let image = dir.probe("probe", "master");
    let plain = example("probe");
    let text = dir.save("text", text);
    let command = format!("command=exec '{}' plain '{text}' 0<&3", plain.display());
    let limits = ["bind=127.0.0.1:0", "check=10000", "boot=10000", command.as_str()];
    let mut proc = Proc::start(image, &[&limits[..], args].concat());
    let addr = proc.addr();
    proc.line("ready: generation 1");
    (proc, addr)
}

fn text(addr: &str) -> String {
    field(&get(addr, "/").unwrap(), "text")
}

#[test]
fn command_overlap_starts_the_new_beside_the_old_and_gives_up_what_does_not_boot() {
    let dir = Dir::new();
    let (mut proc, addr) = command(&dir, "one", &["handover=overlap", "ready=notify", "workers=2", "boot=3000"]);
    for (i, word) in ["two", "three"].into_iter().enumerate() {
        dir.save("text", word);
        proc.signal("HUP");
        let line = proc.line(&format!("reload #{}: done", i + 1));
        assert!(line.contains("0 ms exec") && line.contains("gap 0 ms"), "{line}");
        // `plain` drains on nothing, so no load: asked when the old are gone.
        assert_eq!(text(&addr), word);
    }
    // `plain` says nothing then; or it fails.
    for (i, (ill, why)) in
        [("dawdles", "not all workers are ready after 3000 ms"), ("fails", "die before they are ready: exit code 7")]
            .into_iter()
            .enumerate()
    {
        dir.save("text", ill);
        proc.signal("HUP");
        let line = proc.line(&format!("reload #{}: abandoned", i + 3));
        assert!(line.contains(why) && line.contains("2 workers of the old code serve on"), "{line}");
        settle(&proc, 2);
        assert_eq!(text(&addr), "three");
    }
    dir.save("text", "four");
    proc.signal("HUP");
    proc.line("reload #5: done");
    // The master itself, on demand: COMMAND's workers live through it.
    proc.signal("USR2");
    proc.line("reload #6: exec ");
    proc.line("reload #6: adopted 1 listener(s), 2 workers");
    proc.line("reload #6: done after SIGUSR2");
    assert_eq!(text(&addr), "four");
    settle(&proc, 2);
    proc.stop();
}

#[test]
fn command_drain_first_tries_again_until_the_next_change() {
    let dir = Dir::new();
    let (mut proc, addr) = command(&dir, "one", &["ready=notify"]);
    dir.save("text", "fails");
    proc.signal("HUP");
    proc.line("reload #1: abandoned");
    proc.line("died: exit code 7");
    dir.save("text", "two");
    proc.signal("HUP");
    proc.line("reload #2: done");
    assert_eq!(text(&addr), "two");
    proc.stop();
}

#[test]
fn a_check_command_decides_whether_a_new_generation_starts() {
    for order in ORDERS {
        let dir = Dir::new();
        let check = format!("checkcmd=echo looking at it; grep -q good {}", dir.str("text"));
        let (mut proc, addr) = command(&dir, "good1", &[order, "ready=notify", &check]);
        let before = field(&get(&addr, "/").unwrap(), "pid");
        dir.save("text", "ill");
        proc.signal("HUP");
        proc.line("check: looking at it");
        let line = proc.line("reload #1: dropped");
        assert!(line.contains("failed (exit code 1)"), "{line}");
        assert_eq!(field(&get(&addr, "/").unwrap(), "pid"), before);
        dir.save("text", "good2");
        proc.signal("HUP");
        proc.line("reload #2: done");
        assert_eq!(text(&addr), "good2");
        // A re-exec tries the image as well.
        dir.probe("probe", "exits");
        proc.signal("USR2");
        proc.line("reload #3: checking echo looking");
        proc.line("reload #3: checking /");
        proc.line("reload #3: dropped");
        settle(&proc, 1);
        proc.stop();
    }
}

#[test]
fn the_stop_signal_is_what_command_wants() {
    let dir = Dir::new();
    let script = "command=trap 'echo got usr1 >&2; exit 0' USR1; trap '' TERM; while :; do sleep 0.05; done";
    let image = dir.probe("probe", "master");
    let mut proc = Proc::start(image, &["ready=100", "stop=10", script]);
    proc.line("ready: generation 1");
    proc.signal("HUP");
    proc.line("got usr1");
    proc.line("reload #1: done");
    proc.stop();
    assert_eq!(proc.count("got usr1"), 2, "{}", proc.log());
}

#[test]
fn workers_without_sockets_are_ready_when_they_live() {
    let dir = Dir::new();
    let mut proc = Proc::start(dir.probe("probe", "lives"), &["boot=10000", "handover=overlap"]);
    proc.line("ready: generation 1, 1 worker");
    proc.signal("HUP");
    proc.line("reload #1: done");
    proc.stop();
}
