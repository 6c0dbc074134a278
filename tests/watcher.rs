//! What the watcher must see, as one table of scenarios that drives both backends.
//!
//! A row is: what is there, what happens, what must be reported. A path with `?` may be reported; `inotify:` and `poll:` begin
//! what only one of the backends can know. Absence is proved by a fence: a file saved last, whose report ends the row.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use refork::{Backend, FileChangeWatcher, Trouble};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const QUIET: Duration = Duration::from_millis(20);

/// What happens in each step, and what must be reported then.
struct Row {
    name: &'static str,
    before: &'static str,
    steps: &'static [(&'static str, &'static str)],
}

const fn row(name: &'static str, before: &'static str, steps: &'static [(&'static str, &'static str)]) -> Row {
    Row { name, before, steps }
}

/// Scripts run in the watched directory `tree`; `../out` is beside it.
const TREE: &[Row] = &[
    row("in place", "echo 1 > a.py", &[("echo 22 > a.py", "a.py")]),
    row("truncated", "echo 1 > a.py", &[(": > a.py", "a.py")]),
    row("appended", "echo 1 > a.py", &[("echo 2 >> a.py", "a.py")]),
    row("written aside and renamed", "echo 1 > a.py", &[("echo 2 > .a.py.tmp; mv .a.py.tmp a.py", "a.py")]),
    row("renamed aside and written", "echo 1 > a.py", &[("mv a.py a.py~; echo 2 > a.py; rm a.py~", "a.py")]),
    row("touched", "echo 1 > a.py", &[("touch a.py", "a.py")]),
    row("deleted", "echo 1 > a.py", &[("rm a.py", "a.py")]),
    row("deleted and created again", "echo 1 > a.py", &[("rm a.py; echo 2 > a.py", "a.py")]),
    row("renamed", "echo 1 > a.py", &[("mv a.py b.py", "a.py b.py")]),
    row("a hard link", "echo 1 > ../out/a.py", &[("ln ../out/a.py b.py", "b.py")]),
    row("a time in the past", "echo 1 > a.py", &[("touch -d 2001-01-01 a.py", "a.py")]),
    row("same size, same mtime", "echo 1 > a.py", &[("cp -p a.py ../out/r; echo 2 > a.py; touch -r ../out/r a.py", "a.py")]),
    row("mode", "echo 1 > a.py", &[("chmod 600 a.py", "a.py")]),
    row("reading is nothing", "echo 1 > a.py; mkdir d; echo 1 > d/b.py", &[("cat a.py d/b.py > ../out/x; ls -R > ../out/y", "")]),
    row("a new directory", "", &[("mkdir -p a/b/c/d && echo > a/b/c/d/x.py", "a/b/c/d/x.py"), ("echo 2 > a/b/x.py", "a/b/x.py")]),
    row(
        "ten deep",
        "",
        &[("mkdir -p 1/2/3/4/5/6/7/8/9/10; echo > 1/2/3/4/5/6/7/8/9/10/x.py", "1/2/3/4/5/6/7/8/9/10/x.py")],
    ),
    row("an empty directory is nothing", "", &[("mkdir -p a/b", ""), ("rmdir a/b a", ""), ("mkdir a; echo > a/x.py", "a/x.py")]),
    row("a tree deleted", "mkdir -p p/s; echo > p/x.py; echo > p/s/y.py", &[("rm -r p", "p/x.py p/s/y.py"), ("mkdir p; echo > p/z.py", "p/z.py")]),
    row(
        "a tree moved in",
        "mkdir -p ../out/p/s; echo > ../out/p/x.py; echo > ../out/p/s/y.py",
        &[("mv ../out/p .", "p/x.py p/s/y.py"), ("echo 2 > p/s/y.py", "p/s/y.py")],
    ),
    row(
        "a tree moved out, then silence",
        "mkdir -p p/s; echo > p/x.py; echo > p/s/y.py",
        &[
            ("mv p ../out/p", "inotify:p poll:p/x.py poll:p/s/y.py"),
            ("echo 2 > ../out/p/x.py; echo 2 > ../out/p/s/y.py; mkdir ../out/p/n; echo > ../out/p/n/x.py", ""),
            ("mv ../out/p back", "back/x.py back/s/y.py back/n/x.py"),
            ("echo 3 > back/s/y.py", "back/s/y.py"),
        ],
    ),
    row(
        "a directory renamed inside",
        "mkdir -p p/s q; echo > p/x.py; echo > p/s/y.py",
        &[
            ("mv p r", "r/x.py r/s/y.py poll:p/x.py poll:p/s/y.py"),
            ("echo 2 > r/s/y.py", "r/s/y.py"),
            ("mv r q/t", "q/t/x.py q/t/s/y.py poll:r/x.py poll:r/s/y.py"),
            ("echo 3 > q/t/s/y.py; echo > q/t/s/z.py", "q/t/s/y.py q/t/s/z.py"),
        ],
    ),
    row(
        "renamed and its name taken at once",
        "mkdir p; echo > p/x.py",
        &[("mv p r; mkdir p; echo > p/n.py", "r/x.py p/n.py poll:p/x.py"), ("echo 2 > p/n.py; echo 2 > r/x.py", "p/n.py r/x.py")],
    ),
    row(
        "two directories exchanged",
        "mkdir a b; echo 1 > a/x.py; echo 1 > b/y.py",
        &[
            ("EXCHANGE a b", "a/y.py b/x.py poll:a/x.py poll:b/y.py"),
            ("echo 2 > a/y.py; echo 2 > b/x.py", "a/y.py b/x.py"),
        ],
    ),
    row("made and moved away, as cargo makes `target`", "", &[("mkdir tmpX; echo > tmpX/CACHEDIR.TAG; mv tmpX target", "")]),
    row(
        "exchanged and moved out",
        "mkdir a b; echo 1 > a/x.py; echo 1 > b/y.py",
        &[
            ("EXCHANGE a b; mv a ../out/gone", "b/x.py ?a/y.py inotify:?a inotify:?b poll:a/x.py poll:b/y.py"),
            ("echo 2 > ../out/gone/y.py; echo 2 > b/x.py", "b/x.py"),
        ],
    ),
    row(
        "out of and into a hidden directory",
        "mkdir -p .h/s; echo > .h/x.py; echo > .h/s/y.py",
        &[("mv .h v", "v/x.py v/s/y.py"), ("mv v .h", "inotify:v poll:v/x.py poll:v/s/y.py"), ("echo 2 > .h/x.py", "")],
    ),
    row("a directory becomes a file", "mkdir a; echo > a/x.py", &[("rm -r a; echo > a; rm a; echo > b.py", "a/x.py b.py"), ("mkdir a; echo > a/y.py", "a/y.py")]),
    row(
        "what is left out",
        "mkdir .git node_modules target __pycache__ d",
        &[(
            "for d in .git node_modules target __pycache__; do echo > $d/x.py; done; echo > x.log; echo > x.pyc; echo > .x.py; \
             echo > d/4913; rm d/4913; echo > x.py~; echo > .#x.py; mkdir d/.venv; echo > d/.venv/x.py",
            "",
        )],
    ),
    row(
        "the root deleted and created again",
        "echo > a.py; mkdir d; echo > d/b.py",
        &[
            ("cd ..; rm -r tree; mkdir tree; cd tree; echo 2 > n.py", "a.py n.py ?d/b.py ?."),
            ("mkdir e; echo > e/x.py", "e/x.py"),
        ],
    ),
    row(
        "the root moved away and another put in its place",
        "mkdir ../out/t; echo > ../out/t/n.py; echo > a.py",
        &[
            ("mv tree out/old; mv out/t tree", ". n.py poll:a.py"),
            ("echo 2 > ../out/old/a.py; echo 2 > n.py", "n.py"),
        ],
    ),
    row(
        "the root away, then back",
        "echo > a.py",
        &[("mv tree out/old", ". poll:a.py"), ("mv out/old tree", ". a.py"), ("echo 2 > a.py", "a.py")],
    ),
    row(
        "a symlinked file",
        "echo 1 > ../out/real.py; ln -s ../../out/real.py l.py; mkdir d; ln -s ../../out/real.py d/m.py",
        &[
            ("echo 2 > ../out/real.py", "?l.py d/m.py"),
            ("echo 3 > ../out/t; mv ../out/t ../out/real.py", "?l.py d/m.py"),
            ("rm ../out/real.py", "?l.py d/m.py"),
            ("echo 4 > ../out/real.py", "?l.py d/m.py"),
        ],
    ),
    row(
        "a symlinked directory",
        "mkdir -p ../out/v1/s ../out/v2; echo 1 > ../out/v1/s/x.py; echo 1 > ../out/v2/y.py; ln -s ../out/v1 cur",
        &[
            ("echo 2 > ../out/v1/s/x.py", "cur/s/x.py"),
            ("ln -s ../out/v2 n; mv -T n cur", "cur/y.py ?cur ?n/y.py ?n poll:cur/s/x.py"),
            ("echo 2 > ../out/v1/s/x.py; echo 2 > ../out/v2/y.py", "cur/y.py"),
            ("rm cur", "inotify:cur poll:cur/y.py"),
            ("echo 3 > ../out/v2/y.py", ""),
            ("ln -s ../out/v1 cur", "cur/s/x.py"),
            ("mkdir ../out/v1/n; echo > ../out/v1/n/z.py", "cur/n/z.py"),
        ],
    ),
    row(
        "a link takes the place of a file that is still written",
        "mkdir ../out/d; echo 1 > a.py",
        &[
            ("exec 3>> a.py; ln -s ../out/d t; mv -T t a.py; echo 2 >&3; exec 3>&-", "?a.py ?t"),
            ("echo > ../out/d/n.py", "a.py/n.py"),
            ("rm a.py; echo 1 > a.py; exec 3>> a.py; rm a.py; ln -s ../out/d a.py; echo 2 >&3", "?a.py ?a.py/n.py"),
            ("echo 2 > ../out/d/n.py", "a.py/n.py"),
        ],
    ),
    row(
        "a link whose target comes later",
        "ln -s ../out/later later",
        &[("mkdir ../out/later; echo > ../out/later/x.py", "later/x.py ?later"), ("echo 2 > ../out/later/x.py", "later/x.py")],
    ),
    row(
        "a link that leads nowhere",
        "",
        &[
            ("ln -s ../out/no l.py; ln -s ../out/no l", "l.py"),
            ("mkdir d; ln -s ../../out/no d/m.py; ln -s ../../out/no d/m", "d/m.py"),
            ("rm l; rm l.py", "l.py"),
            ("rm -r d", "d/m.py"),
        ],
    ),
    row(
        "links that lead in circles",
        "mkdir a b; ln -s ../b a/b; ln -s ../a b/a; ln -s .. a/up; ln -s self self; echo > b/x.py",
        &[("echo 2 > b/x.py", "b/x.py a/b/x.py"), ("echo > a/y.py", "a/y.py b/a/y.py")],
    ),
    row(
        "Kubernetes' swap",
        "mkdir ..1 ..2; echo 1 > ..1/app.py; echo 2 > ..2/app.py; ln -s ..1 ..data; ln -s ..data/app.py app.py",
        &[("ln -s ..2 ..tmp; mv -T ..tmp ..data; rm -r ..1", "app.py"), ("echo 3 > ..2/app.py", "app.py")],
    ),
    row(
        "names of all kinds",
        "",
        &[("mkdir 'a b'; echo > 'a b/x y.py'; echo > \"$(printf 'n\\nl')\".py; echo > \"$(printf 'b\\377')\".py", "ODD")],
    ),
];

/// A running watcher and what it reports.
struct Scene {
    dir: Dir,
    root: PathBuf,
    watcher: FileChangeWatcher,
    batches: Receiver<Vec<PathBuf>>,
    fences: usize,
    /// How many fences end a row. A look that polls is not one moment: it can see the fence and have passed, before that,
    /// the place of what was changed before the fence. The next look cannot.
    looks: usize,
}

fn backends() -> Vec<Backend> {
    let mut all = vec![Backend::Poll(Duration::from_millis(10))];
    if cfg!(all(target_os = "linux", not(refork_portable))) {
        all.push(Backend::Inotify);
    }
    all
}

impl Scene {
    fn new(backend: Backend, before: &str) -> Scene {
        Scene::with(backend, before, |watcher| watcher)
    }

    fn with(backend: Backend, before: &str, build: impl FnOnce(FileChangeWatcher) -> FileChangeWatcher) -> Scene {
        let dir = Dir::new();
        sh(&format!("mkdir '{0}' '{1}'; cd '{0}'; {before}", dir.str("tree"), dir.str("out")), "");
        let root = dir.path("tree");
        Scene::watching(dir, vec![root.clone()], root, backend, build)
    }

    fn watching(
        dir: Dir,
        paths: Vec<PathBuf>,
        root: PathBuf,
        backend: Backend,
        build: impl FnOnce(FileChangeWatcher) -> FileChangeWatcher,
    ) -> Scene {
        let (send, batches) = channel();
        std::fs::write(dir.path("fence"), "").unwrap();
        let paths = paths.into_iter().chain([dir.path("fence")]);
        let watcher = FileChangeWatcher::new(paths, move |paths| drop(send.send(paths.to_vec())));
        let mut watcher = build(watcher.backend(backend).debounce(QUIET, 100 * QUIET));
        watcher.start().unwrap();
        let looks = if matches!(backend, Backend::Poll(_)) { 2 } else { 1 };
        Scene { dir, root, watcher, batches, fences: 0, looks }
    }

    /// Does something in the watched directory; what was reported of it, relative to it, `.` being itself.
    fn act(&mut self, script: &str) -> BTreeSet<String> {
        let here = if script.starts_with("mv tree") || script.starts_with("mv out") { "" } else { "tree" };
        let here = self.dir.path(here);
        match script.strip_prefix("EXCHANGE ") {
            Some(names) => {
                let (names, then) = names.split_once(';').unwrap_or((names, ""));
                let (a, b) = names.split_once(' ').unwrap();
                exchange(&self.root.join(a), &self.root.join(b));
                sh(&format!("cd '{}'; {then}", here.display()), "");
            }
            None => drop(sh(&format!("cd '{}'; {script}", here.display()), "")),
        }
        self.reported()
    }

    /// What is reported until the fence is.
    fn reported(&mut self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        for _ in 0..self.looks {
            self.fence(&mut seen);
        }
        seen
    }

    fn fence(&mut self, seen: &mut BTreeSet<String>) {
        self.fences += 1;
        // In one step, so that it is one change.
        self.dir.save("fence", &self.fences.to_string());
        let fence = self.dir.path("fence");
        loop {
            let batch = self.batches.recv_timeout(CEILING).expect("a batch with the fence");
            let mut sorted = batch.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(batch, sorted, "sorted, each once");
            for path in &batch {
                match path.strip_prefix(&self.root) {
                    Ok(inner) if inner.as_os_str().is_empty() => drop(seen.insert(".".into())),
                    Ok(inner) => drop(seen.insert(inner.to_string_lossy().into_owned())),
                    Err(_) if *path == fence => {}
                    Err(_) => drop(seen.insert(path.display().to_string())),
                }
            }
            if batch.contains(&fence) {
                return;
            }
        }
    }
}

/// renameat2(2), RENAME_EXCHANGE.
fn exchange(a: &Path, b: &Path) {
    #[cfg(target_os = "linux")]
    {
        let path = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        let (a, b) = (path(a), path(b));
        // SAFETY: both paths are NUL-terminated and live through the call.
        let result =
            unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), 2) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    #[cfg(not(target_os = "linux"))]
    {
        let aside = a.with_extension("aside");
        std::fs::rename(a, &aside).unwrap();
        std::fs::rename(b, a).unwrap();
        std::fs::rename(aside, b).unwrap();
    }
}

/// Is what was reported what the row wants?
fn check(name: &str, backend: Backend, step: &str, wanted: &str, mut seen: BTreeSet<String>) {
    let polls = backend != Backend::Inotify;
    let all = seen.clone();
    let mut missing = Vec::new();
    for word in wanted.split(' ').filter(|word| !word.is_empty()) {
        let (path, must) = match word.split_once(':') {
            Some(("inotify", path)) => (path.trim_start_matches('?'), !polls && !path.starts_with('?')),
            Some(("poll", path)) => (path, polls),
            _ => (word.trim_start_matches('?'), !word.starts_with('?')),
        };
        if !seen.remove(path) && must {
            missing.push(path);
        }
    }
    assert!(
        missing.is_empty() && seen.is_empty(),
        "{name}, {backend:?}, after {step:?}: missing {missing:?}, not wanted {seen:?}, of {all:?}"
    );
}

#[test]
fn every_scenario() {
    refork::log_level(refork::Level::Error);
    for backend in backends() {
        for Row { name, before, steps } in TREE {
            let mut scene = Scene::new(backend, before);
            for (step, wanted) in *steps {
                let seen = scene.act(step);
                if *wanted == "ODD" {
                    let odd: Vec<&str> = seen.iter().map(String::as_str).collect();
                    assert_eq!(odd, ["a b/x y.py", "b\u{fffd}.py", "n\nl.py"], "{backend:?}");
                    continue;
                }
                check(name, backend, step, wanted, seen);
            }
        }
    }
}

#[test]
fn a_file_that_was_named_always_counts_and_survives_every_kind_of_save() {
    refork::log_level(refork::Level::Error);
    let steps = [
        ("echo 2 > ../out/app.conf", "app.conf"),
        // Three in a row: a watch on the file itself would be lost after the first.
        ("for i in 1 2 3; do echo $i > ../out/new; mv ../out/new ../out/app.conf; done", "app.conf"),
        ("echo 4 > ../out/new; mv ../out/new ../out/app.conf", "app.conf"),
        ("echo 5 > ../out/app.conf", "app.conf"),
        ("echo > ../out/other.py; rm ../out/other.py", ""),
        ("rm ../out/app.conf", "app.conf"),
        ("echo 6 > ../out/app.conf", "app.conf"),
        ("mv ../out ../away", "app.conf"),
        ("echo 7 > ../away/app.conf", ""),
        ("mkdir ../out", ""),
        ("echo 8 > ../out/app.conf", "app.conf"),
    ];
    for backend in backends() {
        let dir = Dir::new();
        sh(&format!("cd '{}'; mkdir tree out; echo 1 > out/app.conf", dir.str("")), "");
        let file = dir.path("out/app.conf");
        let mut scene = Scene::watching(dir, vec![file], PathBuf::new(), backend, |watcher| watcher.exclude("*"));
        scene.root = scene.dir.path("tree");
        for (step, wanted) in steps {
            let seen = scene.act(step).into_iter().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
            check("a named file", backend, step, wanted, seen);
        }
    }
}

#[test]
fn a_root_or_a_named_file_behind_links() {
    refork::log_level(refork::Level::Error);
    for backend in backends() {
        let dir = Dir::new();
        let script = "mkdir -p r/1/app r/2/app tree; echo 1 > r/1/app/x.py; echo 2 > r/2/app/x.py; echo 1 > r/1/conf; \
                      echo 2 > r/2/conf; ln -s r/1 current; ln -s current now";
        sh(&format!("cd '{}'; {script}", dir.str("")), "");
        let paths = vec![dir.path("now/app"), dir.path("current/conf"), dir.path("not/yet.py")];
        let root = dir.path("now");
        let mut scene = Scene::watching(dir, paths, root, backend, |watcher| watcher);
        let mut step = |script: &str, wanted: &[&str]| {
            sh(&format!("cd '{}'; {script}", scene.dir.str("")), "");
            let base = scene.dir.str("");
            let seen: BTreeSet<String> = scene.reported().into_iter().map(|path| path.replace(&base, "")).collect();
            // What vanished with its directory only polling knows by name.
            let known =
                |path: &&String| wanted.contains(&path.as_str()) || backend == Backend::Inotify || *path != "app/x.py";
            assert_eq!(seen.iter().filter(known).collect::<Vec<_>>(), wanted, "{backend:?} after {script:?}");
        };
        step("echo 11 > r/1/app/x.py; echo 22 > r/2/app/x.py", &["app/x.py"]);
        step("ln -s r/2 n; mv -T n current", &["app", "app/x.py", "current/conf"]);
        step("echo 11 > r/1/app/x.py; echo 11 > r/1/conf", &[]);
        step("echo 33 > r/2/conf", &["current/conf"]);
        step("mkdir not; echo > not/yet.py", &["not/yet.py"]);
        step("rm -r not", &["not/yet.py"]);
        step("mkdir -p not; echo > not/yet.py", &["not/yet.py"]);
        // A directory on the way, in whose parent nothing else is watched.
        step(
            "mv r/2 old; mkdir -p r/2/app; echo > r/2/app/y.py; echo > r/2/conf",
            &["app", "app/y.py", "current/conf"],
        );
        step("echo > old/app/x.py; echo 4 > r/2/app/y.py", &["app/y.py"]);
    }
}

#[test]
fn relative_paths_stay_relative() {
    refork::log_level(refork::Level::Error);
    // The tests' working directory is the package: nothing in it is changed here but a directory of this test's own.
    let name = format!("target/refork-relative-{}", std::process::id());
    std::fs::create_dir_all(&name).unwrap();
    for backend in backends() {
        let (send, batches) = channel();
        let mut watcher = FileChangeWatcher::new([&name], move |paths| drop(send.send(paths.to_vec())));
        watcher = watcher.backend(backend).debounce(QUIET, QUIET);
        watcher.start().unwrap();
        let file = Path::new(&name).join("a.py");
        std::fs::write(&file, format!("{backend:?}")).unwrap();
        assert_eq!(batches.recv_timeout(CEILING).unwrap(), [file]);
    }
    std::fs::remove_dir_all(&name).unwrap();
}

#[test]
fn filters() {
    refork::log_level(refork::Level::Error);
    let script = "mkdir -p t/gen .git; for f in a.py t/b.html t/gen/c.html .env x.log .git/d.html; do echo > $f; done";
    type Build = fn(FileChangeWatcher) -> FileChangeWatcher;
    let rows: [(Build, &str); 6] = [
        (|w| w, "a.py"),
        (|w| w.include("*.html"), "t/b.html t/gen/c.html"),
        (|w| w.exclude("gen").include("*.html").include(".env"), "t/b.html .env"),
        (|w| w.include("t/*.html").include("*.py").exclude("a*"), "t/b.html"),
        (|w| w.watch_filter(|path| path.ends_with("x.log") || path.ends_with("d.html")), "x.log .git/d.html"),
        (|w| w.watch_filter(|_| true).exclude(".git"), "a.py t/b.html t/gen/c.html .env x.log"),
    ];
    for backend in backends() {
        for (build, wanted) in rows {
            let mut scene = Scene::with(backend, "", build);
            check("filters", backend, script, wanted, scene.act(script));
        }
    }
}

#[test]
fn many_saves_are_one_report_and_a_stream_of_writes_is_reported_at_the_cap() {
    refork::log_level(refork::Level::Error);
    for backend in backends() {
        let mut scene = Scene::with(backend, "", |watcher| watcher.debounce(20 * QUIET, 100 * QUIET));
        let file = scene.root.join("a.py");
        for i in 0..20 {
            std::fs::write(&file, format!("{i}")).unwrap();
        }
        assert_eq!(scene.batches.recv_timeout(CEILING).unwrap(), std::slice::from_ref(&file));
        assert!(scene.reported().is_empty(), "one report");
        // Never quiet: written to until it is reported all the same.
        let mut scene = Scene::with(backend, "", |watcher| watcher.debounce(50 * QUIET, 60 * QUIET));
        let file = scene.root.join("a.py");
        let begun = std::time::Instant::now();
        while scene.batches.try_recv().is_err() {
            std::fs::write(&file, format!("{:?}", begun.elapsed())).unwrap();
            assert!(begun.elapsed() < CEILING, "{backend:?}: starved");
        }
        scene.watcher.stop();
    }
}

#[test]
fn armed_means_armed() {
    refork::log_level(refork::Level::Error);
    let before = "i=0; while [ $i -lt 200 ]; do mkdir -p $i/a/b/c/d; i=$((i+1)); done";
    for backend in backends() {
        let mut scene = Scene::new(backend, before);
        for round in 0..30 {
            scene.watcher.stop();
            while scene.batches.try_recv().is_ok() {}
            let old = scene.root.join(format!("{}/a/b/c/d/old.py", round * 3));
            std::fs::write(&old, "before").unwrap();
            scene.watcher.start().unwrap();
            let new = scene.root.join(format!("{}/a/b/c/d/new.py", 199 - round));
            std::fs::write(&new, "after").unwrap();
            let seen: Vec<String> = scene.reported().into_iter().collect();
            assert_eq!(seen, [format!("{}/a/b/c/d/new.py", 199 - round)], "{backend:?}, round {round}");
        }
    }
}

#[test]
fn a_checkout_of_ten_thousand_files_in_new_directories() {
    refork::log_level(refork::Level::Error);
    for backend in backends() {
        let mut scene = Scene::new(backend, "");
        let mut wanted = BTreeSet::new();
        for d in 0..100 {
            let dir = format!("p{}/d{d}/s", d % 7);
            std::fs::create_dir_all(scene.root.join(&dir)).unwrap();
            for f in 0..100 {
                wanted.insert(format!("{dir}/f{f}.py"));
                std::fs::write(scene.root.join(format!("{dir}/f{f}.py")), "").unwrap();
            }
        }
        let mut seen = scene.reported();
        seen.retain(|path| !wanted.remove(path));
        assert!(wanted.is_empty() && seen.is_empty(), "{backend:?}: missed {wanted:?}, not wanted {seen:?}");
    }
}

#[test]
fn a_callback_may_start_and_stop_other_watchers_and_wait_for_who_does() {
    for backend in backends() {
        let dir = Dir::new();
        let save = |name: &str| std::fs::write(dir.path(name), format!("{:?}", std::time::Instant::now())).unwrap();
        save("a.py");
        save("b.py");
        let (tell, heard) = channel();
        let told = tell.clone();
        let other = FileChangeWatcher::new([dir.path("b.py")], move |_| told.send("other").unwrap());
        // Never longer than a year, and once a year.
        let other = other.backend(backend).debounce(QUIET, Duration::MAX);
        let shared = Arc::new(Mutex::new(Some(other)));
        let (inner, count) = (shared.clone(), AtomicUsize::new(0));
        let mut watcher = FileChangeWatcher::new([dir.path("a.py")], move |_| {
            let mut other = inner.lock().unwrap();
            match count.fetch_add(1, SeqCst) {
                0 => other.as_mut().unwrap().start().unwrap(),
                1 => other.as_mut().unwrap().stop(),
                2 => other.as_mut().unwrap().start().unwrap(),
                _ => drop(other.take()),
            }
            tell.send("own").unwrap();
        });
        watcher = watcher.backend(backend).debounce(QUIET, QUIET);
        watcher.start().unwrap();
        let next = || heard.recv_timeout(CEILING).unwrap();
        for step in 0..4 {
            save("a.py");
            assert_eq!(next(), "own", "step {step}");
            if step == 0 {
                save("b.py");
                assert_eq!(next(), "other", "it was started");
            }
        }
        // The callback waits for this lock, whose holder waits for another watcher.
        let (mut third, held) = (FileChangeWatcher::new([dir.path("b.py")], |_| ()), shared.lock().unwrap());
        third.start().unwrap();
        save("a.py");
        third.stop();
        drop(held);
        assert_eq!(next(), "own");
    }
    let mut never = FileChangeWatcher::new(["src"], |_| ()).backend(Backend::Poll(Duration::MAX));
    never.start().unwrap();
}

#[test]
fn starting_stopping_and_what_the_callback_may_do() {
    refork::log_level(refork::Level::Error);
    for backend in backends() {
        let dir = Dir::new();
        let file = dir.path("a.py");
        std::fs::write(&file, "").unwrap();
        let watcher: Arc<Mutex<Option<FileChangeWatcher>>> = Arc::default();
        let (send, heard) = channel();
        let (inner, count) = (watcher.clone(), AtomicUsize::new(0));
        let mut own = FileChangeWatcher::new([&file], move |_| {
            let call = count.fetch_add(1, SeqCst);
            send.send((call, std::thread::current().id(), std::thread::current().name().map(str::to_owned))).unwrap();
            match call {
                1 => panic!("asked to"),
                // From here it only asks for the end.
                3 => inner.lock().unwrap().as_mut().unwrap().stop(),
                _ => {}
            }
        });
        own = own.backend(backend).debounce(QUIET, QUIET);
        own.start().unwrap();
        own.start().unwrap();
        *watcher.lock().unwrap() = Some(own);
        let save = |text: &str| std::fs::write(&file, text).unwrap();
        let next = || heard.recv_timeout(CEILING).unwrap();
        save("1");
        let (_, thread, name) = next();
        assert_ne!(thread, std::thread::current().id());
        assert_eq!(name.as_deref(), Some("refork-watch"));
        save("22");
        assert_eq!(next().0, 1, "this one panics");
        save("333");
        assert_eq!(next(), (2, thread, name.clone()), "the watcher goes on, on the same thread");
        save("4444");
        assert_eq!(next().0, 3, "this one stops the watcher");
        let mut watcher = watcher.lock().unwrap().take().unwrap();
        watcher.stop();
        watcher.stop();
        save("55555");
        watcher.start().unwrap();
        save("666666");
        assert_eq!(next().0, 4, "what was saved while it was stopped is not reported");
        drop(watcher);
        save("7777777");
        assert!(heard.recv().is_err(), "dropped: the callback is gone, and was not called");
    }
}

#[test]
fn a_queue_that_overflows_is_said_and_nothing_is_lost_afterwards() {
    if cfg!(any(not(target_os = "linux"), refork_portable)) {
        return;
    }
    refork::log_level(refork::Level::Error);
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let dir = Dir::new();
    sh(&format!("cd '{}'; mkdir tree; echo > tree/a.py; echo > named", dir.str("")), "");
    let (send, batches) = channel();
    let (hold, held) = channel::<()>();
    let rescans = Arc::new(AtomicUsize::new(0));
    let count = rescans.clone();
    let held = Mutex::new(held);
    let mut watcher = FileChangeWatcher::new([dir.path("tree"), dir.path("named")], move |paths| {
        send.send(paths.to_vec()).unwrap();
        // While this waits, nobody reads the queue.
        let _ = held.lock().unwrap().recv();
    })
    .debounce(QUIET, QUIET)
    .on_trouble(move |trouble| {
        assert_eq!(trouble, Trouble::Rescan);
        count.fetch_add(1, SeqCst);
    });
    watcher.start().unwrap();
    std::fs::write(dir.path("tree/a.py"), "1").unwrap();
    assert_eq!(batches.recv_timeout(CEILING).unwrap(), [dir.path("tree/a.py")]);
    for i in 0..=limit {
        std::fs::write(dir.path(if i % 2 == 0 { "tree/x.py" } else { "tree/y.py" }), "").unwrap();
    }
    std::fs::create_dir_all(dir.path("tree/new/deep")).unwrap();
    std::fs::write(dir.path("tree/new/deep/z.py"), "").unwrap();
    std::fs::write(dir.path("named"), "changed").unwrap();
    hold.send(()).unwrap();
    let mut seen = BTreeSet::new();
    while !seen.contains(&dir.path("tree/new/deep/z.py")) {
        seen.extend(batches.recv_timeout(CEILING).unwrap());
        hold.send(()).unwrap();
    }
    assert_eq!(rescans.load(SeqCst), 1);
    for path in ["tree", "tree/x.py", "tree/y.py", "named"] {
        assert!(seen.contains(&dir.path(path)), "{path} in {seen:?}");
    }
    std::fs::write(dir.path("tree/new/deep/after.py"), "").unwrap();
    while !batches.recv_timeout(CEILING).unwrap().contains(&dir.path("tree/new/deep/after.py")) {
        hold.send(()).unwrap();
    }
    drop(hold);
}

#[test]
fn what_cannot_be_watched_is_an_error_that_says_so() {
    refork::log_level(refork::Level::Error);
    for backend in backends() {
        let start = |paths: &[&str]| {
            let error = FileChangeWatcher::new(paths, |_| ()).backend(backend).start().unwrap_err();
            error.to_string()
        };
        assert_eq!(start(&[]), "wrong value: nothing to watch");
        assert!(start(&["/"]).starts_with("cannot watch `/`: the whole file system is too much"));
        assert!(start(&["/proc"]).starts_with("cannot watch `/proc`: the kernel's own files"));
    }
}
