//! Where inotify ends: its limits, file systems that do not tell, directories that may not be read.
#![cfg(all(target_os = "linux", not(refork_portable)))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use std::process::Command;

/// `refork watch --json` in a shell, so that limits can be set before it starts; its standard output goes where lines are heard.
fn watch(dir: &Dir, wrapper: &[&str], before: &str, what: &str) -> Proc {
    let script = format!("{before} cd '{}' && exec {REFORK} watch --json {what} >&2", dir.str(""));
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).args(["sh", "-ec", &script]);
    Proc::spawn(command)
}

fn can(wrapper: &[&str]) -> bool {
    let tried = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        println!("skipped: {} is not allowed here", wrapper.join(" "));
    }
    can
}

const NAMESPACE: [&str; 2] = ["unshare", "-Ur"];

#[test]
fn beyond_the_kernels_limit_the_rest_is_polled() {
    if !can(&NAMESPACE) {
        return;
    }
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir -p t/a/b t/c/d; echo > t/a/b/x.py", dir.str("")), "");
    let limit = "echo 3 > /proc/sys/user/max_inotify_watches;";
    let mut proc = watch(&dir, &NAMESPACE, limit, "t");
    let line = proc.line("the rest is polled");
    assert!(line.contains(", user.max_inotify_watches is 3)"), "{line}");
    proc.line("\"ready\":true");
    std::fs::write(dir.path("t/a/b/x.py"), "1").unwrap();
    proc.line("t/a/b/x.py\"");
    std::fs::write(dir.path("t/c/d/y.py"), "1").unwrap();
    proc.line("t/c/d/y.py\"");
    // Later ones as well, with what is in them; the limit is named once.
    std::fs::create_dir_all(dir.path("t/n/m")).unwrap();
    std::fs::write(dir.path("t/n/m/z.py"), "1").unwrap();
    proc.line("t/n/m/z.py\"");
    assert_eq!(proc.count("warning: inotify cannot watch"), 1, "{}", proc.log());
}

#[test]
fn without_an_instance_everything_is_polled() {
    if !can(&NAMESPACE) {
        return;
    }
    let dir = Dir::new();
    std::fs::create_dir_all(dir.path("t")).unwrap();
    let mut proc = watch(&dir, &NAMESPACE, "echo 0 > /proc/sys/user/max_inotify_instances;", "t");
    let line = proc.line("inotify cannot be had");
    assert!(line.contains(", user.max_inotify_instances is 0)") && line.contains("polled"), "{line}");
    proc.line("\"ready\":true");
    std::fs::write(dir.path("t/x.py"), "1").unwrap();
    proc.line("\"paths\":[\"t/x.py\"]");
}

#[test]
fn what_cannot_be_read_for_want_of_a_descriptor_is_read_when_there_is_one() {
    if !can(&["prlimit"]) {
        return;
    }
    // Standard input, output and error, the two ends of the wake-up, and inotify.
    for (few, what) in [(6, "t"), (5, "--poll=20 t")] {
        let dir = Dir::new();
        sh(&format!("cd '{}'; mkdir t; echo > t/x.py", dir.str("")), "");
        let mut command = Command::new("sh");
        let script = format!("exec prlimit --nofile={few}: {REFORK} watch --json {what} >&2");
        command.current_dir(dir.path("")).args(["-ec", &script]);
        let mut proc = Proc::spawn(command);
        let line = proc.line("warning: cannot read t now: ");
        assert!(line.contains("(os error 24)") && line.ends_with("it is tried again"), "{line}");
        proc.line("\"ready\":true");
        let pid = proc.pid();
        let limit = |most: u32| sh(&format!("prlimit --nofile={most}: --pid {pid}"), "");
        limit(64);
        // What was there nobody knows.
        proc.line("t/x.py\"");
        // While it runs, beside what is polled already.
        limit(3);
        std::fs::create_dir_all(dir.path("t/b/c/d")).unwrap();
        std::fs::write(dir.path("t/b/c/d/e.py"), "").unwrap();
        proc.line("warning: cannot read t");
        limit(64);
        proc.line("t/b/c/d/e.py\"");
        std::fs::write(dir.path("t/b/c/d/f.py"), "").unwrap();
        proc.line("t/b/c/d/f.py\"");
        assert_eq!(proc.count("warning: cannot read"), 2, "{}", proc.log());
    }
    // Where inotify had everything until then.
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir t", dir.str("")), "");
    let mut proc = watch(&dir, &["env"], "", "t");
    proc.line("\"ready\":true");
    let pid = proc.pid();
    let limit = |most: u32| sh(&format!("prlimit --nofile={most}: --pid {pid}"), "");
    limit(3);
    std::fs::create_dir_all(dir.path("t/b/c/d")).unwrap();
    std::fs::write(dir.path("t/b/c/d/e.py"), "").unwrap();
    proc.line("warning: inotify cannot watch t/b");
    proc.line("warning: cannot read t/b");
    limit(64);
    proc.line("t/b/c/d/e.py\"");
    std::fs::write(dir.path("t/b/c/d/f.py"), "").unwrap();
    proc.line("t/b/c/d/f.py\"");
}

#[test]
fn polling_can_be_asked_for_by_a_variable() {
    let dir = Dir::new();
    std::fs::create_dir_all(dir.path("t")).unwrap();
    let mut proc = watch(&dir, &["env", "REFORK_POLL=20"], "", "t");
    proc.line("\"ready\":true");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", proc.pid())).unwrap().flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    assert!(links.into_iter().all(|link| !link.to_string_lossy().contains("inotify")));
    std::fs::write(dir.path("t/x.py"), "1").unwrap();
    proc.line("\"paths\":[\"t/x.py\"]");
}

#[test]
fn what_may_not_be_read_is_named_once_and_seen_when_it_may() {
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !can(&nobody) {
        return;
    }
    let dir = Dir::new();
    for poll in ["", "--poll=20"] {
        // The command's own file must be reachable for somebody else, too.
        sh(
            &format!(
                "cd '{}'; rm -rf t; mkdir -p t/open t/shut; chmod 755 . t t/open; chmod 700 t/shut; cp {REFORK} refork",
                dir.str("")
            ),
            "",
        );
        let script = format!("cd '{}' && exec ./refork watch --json {poll} t >&2", dir.str(""));
        let mut command = Command::new(nobody[0]);
        command.args(&nobody[1..]).args(["sh", "-ec", &script]);
        let mut proc = Proc::spawn(command);
        let line = proc.line("Permission denied");
        assert!(line.contains("t/shut") && line.contains("the rest is watched"), "{line}");
        proc.line("\"ready\":true");
        sh(&format!("touch '{}'", dir.str("t/shut")), "");
        std::fs::write(dir.path("t/open/x.py"), "1").unwrap();
        proc.line("\"t/open/x.py\"");
        std::fs::write(dir.path("t/shut/y.py"), "1").unwrap();
        sh(&format!("chmod 755 '{}'", dir.str("t/shut")), "");
        proc.line("\"t/shut/y.py\"");
        std::fs::write(dir.path("t/shut/z.py"), "1").unwrap();
        proc.line("\"t/shut/z.py\"");
        assert_eq!(proc.count("warning: "), 1, "{}", proc.log());
        // A root that may not be read is an error.
        sh(&format!("chmod 700 '{}'", dir.str("t")), "");
        let script = format!("cd '{}' && exec ./refork watch --json {poll} t >&2", dir.str(""));
        let mut command = Command::new(nobody[0]);
        command.args(&nobody[1..]).args(["sh", "-ec", &script]);
        let mut proc = Proc::spawn(command);
        assert_eq!(proc.end().code(), Some(1));
        assert_eq!(proc.seen, ["refork: cannot watch `t`: Permission denied (os error 13)"]);
    }
}

#[test]
fn what_may_only_be_searched_or_only_be_listed_is_watched_by_other_means() {
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !can(&nobody) {
        return;
    }
    for poll in ["", "--poll=20"] {
        let dir = Dir::new();
        let here = |script: &str| sh(&format!("cd '{}'; {script}", dir.str("")), "");
        here(
            "mkdir -p w r1 r2 closed/in t/p/s t/up out; echo > w/app.py; ln -s ../r1 w/cur; ln -s ../out t/l; \
             chmod 755 . r1 r2 t; chmod 711 w; chmod 700 closed out t/up; chmod 744 t/p",
        );
        here(&format!("cp {REFORK} refork"));
        let script =
            format!("cd '{}' && exec ./refork watch --json {poll} w/app.py w/cur closed/in t >&2", dir.str(""));
        let mut command = Command::new(nobody[0]);
        command.args(&nobody[1..]).args(["sh", "-ec", &script]);
        let mut proc = Proc::spawn(command);
        proc.line("\"ready\":true");
        assert!(proc.count("closed/in: Permission denied") > 0, "{}", proc.log());
        for (deed, path) in [
            ("echo 2 >> w/app.py", "w/app.py"),
            ("ln -sfn ../r2 w/cur; echo > r2/b.py", "w/cur/b.py"),
            ("chmod 755 t/p; echo > t/p/s/a.py", "t/p/s/a.py"),
            ("chmod 755 t/up; mkdir -m 700 t/up/n; chmod 755 t/up/n; echo > t/up/n/x.py", "t/up/n/x.py"),
            ("chmod 755 closed; echo > closed/in/x.py", "closed/in/x.py"),
            ("chmod 755 out; echo > out/x.py", "t/l/x.py"),
        ] {
            here(deed);
            proc.line(&format!("\"{path}\""));
        }
    }
}

#[test]
fn links_to_the_kernels_files_and_to_everything_are_not_followed() {
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir t; ln -s /proc/self t/me; ln -s /sys t/sys; ln -s / t/all", dir.str("")), "");
    for poll in ["", "--poll=20"] {
        let mut proc = watch(&dir, &["env"], "", &format!("--all {poll} t"));
        proc.line("\"ready\":true");
        assert_eq!(proc.count("warning: "), 3, "{}", proc.log());
        std::fs::write(dir.path("t/x"), poll).unwrap();
        proc.line("\"paths\":[\"t/x\"]");
    }
}

#[test]
fn links_that_lead_to_each_other_in_all_ways_end() {
    let dir = Dir::new();
    let script = "mkdir t; for i in 1 2 3 4 5 6 7 8 9 10; do mkdir t/$i; for k in 1 2 3 4 5 6 7 8 9 10; do \
                  ln -s ../$k t/$i/l$k; done; done";
    sh(&format!("cd '{}'; {script}", dir.str("")), "");
    for poll in ["", "--poll=20"] {
        let mut proc = watch(&dir, &["env"], "", &format!("{poll} t"));
        proc.line("\"ready\":true");
        std::fs::write(dir.path("t/1/x.py"), poll).unwrap();
        let line = proc.line("\"t/1/x.py\"");
        // A look that polls is not one moment: it may have passed most names before.
        let least = if poll.is_empty() { 2 } else { 1 };
        assert!((least..=64).contains(&line.matches("x.py\"").count()), "{line}");
        assert_eq!(proc.count("warning: "), 1, "{}", proc.log());
    }
}

#[test]
fn a_full_queue_beside_a_named_file_is_no_change_of_it() {
    let dir = Dir::new();
    std::fs::write(dir.path("named"), "1").unwrap();
    let mut proc = watch(&dir, &["env"], "", "named");
    proc.line("\"ready\":true");
    proc.signal("STOP");
    let most: usize = sh("cat /proc/sys/fs/inotify/max_queued_events", "").trim().parse().unwrap();
    for i in 0..most.min(100_000) {
        std::fs::write(dir.path(&format!("other{i}")), "1").unwrap();
    }
    proc.signal("CONT");
    std::fs::write(dir.path("named"), "22").unwrap();
    proc.line("\"paths\":[\"named\"]");
    assert_eq!(proc.count("warning: "), proc.count("rescan"), "{}", proc.log());
}

#[test]
fn a_thread_that_cannot_be_started_is_one_line_and_the_service_goes_on() {
    // A user of its own, whose processes are counted apart from those of others.
    let uid = format!("--reuid={}", 100_000 + std::process::id());
    let nobody = ["setpriv", &uid, "--regid=65534", "--clear-groups"];
    if !can(&[&["prlimit", "--nproc=2"], &nobody[..]].concat()) {
        return;
    }
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir t; chmod 755 . t; cp {REFORK} refork", dir.str("")), "");
    let run = |processes: u32, what: &str| {
        let script = format!("cd '{}' && exec ./refork {what}", dir.str(""));
        let mut command = Command::new("prlimit");
        command.arg(format!("--nproc={processes}")).args(nobody).args(["sh", "-ec", &script]);
        Proc::spawn(command)
    };
    let why = "cannot start the watcher's thread: Resource temporarily unavailable (os error 11)";
    // A master and its worker are two.
    let mut proc = run(2, "run -w 1 --ready 0.05 --reload-path t -- sleep 1000");
    let line = proc.line("auto-reload disabled");
    assert!(line.ends_with(&format!(": auto-reload disabled: {why}")), "{line}");
    proc.line("ready: generation 1, 1 worker");
    proc.signal("HUP");
    proc.line("ready: generation 2, 1 worker");
    proc.stop();
    assert_eq!(proc.count("thread"), 1, "{}", proc.log());
    let mut proc = run(1, "watch t");
    assert_eq!(proc.end().code(), Some(1));
    assert_eq!(proc.seen.last(), Some(&format!("refork: {why}")));
}

#[test]
fn a_directory_with_more_names_than_are_watched_is_named() {
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir t out", dir.str("")), "");
    let out = std::fs::canonicalize(dir.path("out")).unwrap();
    let text = format!(" is not followed: {} is watched by 64 names, which is the most", out.display());
    for (links, lines) in [(64, 0), (70, 1)] {
        for i in 0..links {
            let _ = std::os::unix::fs::symlink("../out", dir.path(&format!("t/l{i}")));
        }
        let mut proc = watch(&dir, &["env"], "", "--all t");
        proc.line("\"ready\":true");
        std::fs::write(dir.path("out/x.py"), links.to_string()).unwrap();
        let line = proc.line("x.py\"");
        assert_eq!(line.matches("/x.py\"").count(), 64, "{line}");
        assert_eq!(proc.count("warning: "), lines, "{}", proc.log());
        assert_eq!(proc.count(&format!("{text}\"}}")), lines, "{}", proc.log());
    }
}

#[test]
fn mounts_come_and_go_and_loops_end() {
    let mounts = ["unshare", "-m"];
    if !can(&mounts) {
        return;
    }
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir -p t/a t/loop; echo > t/a/under.py", dir.str("")), "");
    // The shell stays and unmounts when told to.
    let script = format!(
        "cd '{0}'; mount -t tmpfs none t/a; mkdir t/a/deep; echo > t/a/deep/x.py; mount --bind t t/loop; mkfifo go; \
         {REFORK} watch --json t >&2 & \
         pid=$!; read line < go; umount -l t/a; echo unmounted >&2; read line < go; kill $pid",
        dir.str("")
    );
    let mut command = Command::new(mounts[0]);
    command.args(&mounts[1..]).args(["sh", "-ec", &script]);
    let mut proc = Proc::spawn(command);
    proc.line("\"ready\":true");
    let go = || sh(&format!("echo > '{}'", dir.str("go")), "");
    std::fs::write(dir.path("t/x.py"), "1").unwrap();
    let line = proc.line("t/x.py\"");
    assert!(!line.contains("loop/loop"), "{line}");
    go();
    // What was in it is gone; what it had hidden is there again, and watched.
    proc.line("t/a/under.py\"");
    assert!(proc.count("\"t/a\"") > 0, "{}", proc.log());
    std::fs::write(dir.path("t/a/new.py"), "1").unwrap();
    proc.line("t/a/new.py\"");
    go();
    proc.end();
}
