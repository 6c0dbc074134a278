//! What one image's watcher leaves for the next, and buffers that lie. The scenarios are in `tests/watcher.rs`.

use super::*;
use crate::sys::process::gate;
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::mpsc::{channel, Receiver};

fn watcher(path: &Path, backend: Backend) -> (FileChangeWatcher, Receiver<Vec<PathBuf>>) {
    let (send, batches) = channel();
    let watcher = FileChangeWatcher::new([path], move |paths| drop(send.send(paths.to_vec())));
    (watcher.backend(backend).debounce(Duration::from_millis(10), Duration::from_millis(500)), batches)
}

fn next(batches: &Receiver<Vec<PathBuf>>) -> Vec<PathBuf> {
    batches.recv_timeout(Duration::from_secs(30)).expect("a change is reported")
}

/// Set: the kernel allows this many watches.
const LIMIT: &str = "REFORK_TEST_LIMIT";

#[test]
fn a_change_between_two_images_is_reported() {
    let root = std::env::temp_dir().canonicalize().unwrap().join(format!("refork-carry-{}", std::process::id()));
    let limited = std::env::var_os(LIMIT).is_some();
    let mut backends = vec![Backend::Poll(Duration::from_millis(10))];
    backends.extend(cfg!(all(target_os = "linux", not(refork_portable))).then_some(Backend::Inotify));
    let (backends, sub) = if limited { (vec![Backend::Auto], "d/".repeat(40)) } else { (backends, "sub".into()) };
    let sub = root.join(sub);
    for backend in backends {
        for change in [true, false] {
            let _ = std::fs::remove_dir_all(&root);
            std::fs::create_dir_all(&sub).unwrap();
            let (mut old, _) = watcher(&root, backend);
            old.start().unwrap();
            let mut carried = old.carry(&gate());
            let both = (carried.queue.is_some(), carried.digest.is_some());
            assert_eq!(both, (backend == Backend::Inotify || limited, backend != Backend::Inotify), "{backend:?}");
            // What exec does: the descriptor lives on.
            carried.queue = carried.queue.map(|fd| sys::fd::duplicate(fd, 3).unwrap().into_raw_fd());
            old.stop();
            let file = sub.join("a.py");
            if change {
                std::fs::write(&file, "").unwrap();
            }
            let (mut new, batches) = watcher(&root, backend);
            new.inherit(carried);
            new.arm().unwrap();
            new.spawn().unwrap();
            if change {
                let seen = next(&batches);
                assert_eq!(seen, [if backend == Backend::Inotify { file } else { root.clone() }]);
            }
            // Nothing else was there, and the watches work.
            std::fs::write(sub.join("b.py"), "").unwrap();
            assert_eq!(next(&batches), [sub.join("b.py")], "{backend:?}");
        }
    }
    std::fs::remove_dir_all(&root).unwrap();
}

#[cfg(all(target_os = "linux", not(refork_portable)))]
#[test]
fn a_change_between_two_images_is_reported_where_inotify_reaches_its_limit() {
    let this = std::fs::read_link("/proc/self/exe").unwrap();
    let script = format!("echo 20 > /proc/sys/user/max_inotify_watches || exit 99; exec '{}' \"$@\"", this.display());
    let test = ["sh", "--exact", "--nocapture", "watch::tests::a_change_between_two_images_is_reported"];
    let mut limited = std::process::Command::new("unshare");
    let ended = limited.args(["-Ur", "sh", "-c", &script]).args(test).env(LIMIT, "20").output();
    match ended {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("some polled)"), "{said}");
        }
        Ok(output) if !matches!(output.status.code(), Some(1 | 99)) => panic!("{output:?}"),
        _ => println!("skipped: unshare -Ur is not allowed here"),
    }
}

#[test]
fn the_digest_tells_what_counts_and_nothing_else() {
    let root = std::env::temp_dir().canonicalize().unwrap().join(format!("refork-digest-{}", std::process::id()));
    let digest = |names: &[&str]| {
        let (filter, mut poll) = (Filter::default(), poll::Poll::new(Duration::ZERO, true));
        for name in names {
            let mut cx =
                poll::Context { filter: &filter, batch: &mut batch::Batch::new(), gate: &mut None, report: false };
            let path = root.join(name).into_os_string().into_vec();
            poll.add(path, root.as_os_str().len(), &mut cx);
        }
        poll.digest()
    };
    std::fs::create_dir_all(root.join("a")).unwrap();
    std::fs::create_dir_all(root.join("b")).unwrap();
    std::fs::write(root.join("a/x.py"), "").unwrap();
    std::fs::write(root.join("b/\n.py"), "").unwrap();
    let (all, both) = (digest(&[""]), digest(&["a", "b"]));
    assert_eq!(digest(&["b", "a", "none", "b"]), both, "in whatever order, once or twice");
    std::fs::create_dir_all(root.join("c/d")).unwrap();
    std::fs::write(root.join("c/d/notes"), "").unwrap();
    assert_eq!(digest(&[""]), all, "nothing in it counts");
    std::fs::rename(root.join("b"), root.join("a/b")).unwrap();
    assert_ne!(digest(&[""]), all, "the same files in another directory");
    std::fs::remove_dir_all(&root).unwrap();
}

#[test]
fn a_sweep_looks_at_links_that_lead_nowhere() {
    use std::os::unix::fs::symlink;
    let base = std::env::temp_dir().canonicalize().unwrap().join(format!("refork-nowhere-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&base);
    std::fs::create_dir_all(base.join("r")).unwrap();
    for (name, target) in [("f.py", "../out/k.py"), ("d", "../out"), ("g.py", "f.py"), ("e", "d/sub"), ("self", "self")]
    {
        symlink(target, base.join("r").join(name)).unwrap();
    }
    let (filter, mut poll) = (Filter::default(), poll::Poll::new(Duration::ZERO, true));
    // No directory is so young that it is listed for that.
    poll.fresh = -1000;
    let root = base.join("r").into_os_string().into_vec();
    let mut batch = batch::Batch::new();
    let mut cx = poll::Context { filter: &filter, batch: &mut batch, gate: &mut None, report: false };
    poll.add(root.clone(), root.len(), &mut cx);
    let mut sweep = || {
        let mut cx = poll::Context { filter: &filter, batch: &mut batch, gate: &mut None, report: true };
        poll.sweep(&mut cx);
        let seen = batch.take().into_iter().map(|path| path.strip_prefix(base.join("r")).unwrap().to_owned());
        seen.map(|path| path.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let all = "d/k.py d/sub/s.py e/s.py f.py g.py";
    assert_eq!(sweep(), "");
    std::fs::create_dir_all(base.join("o9/sub")).unwrap();
    std::fs::write(base.join("o9/k.py"), "1").unwrap();
    std::fs::write(base.join("o9/sub/s.py"), "1").unwrap();
    for _ in 0..2 {
        std::fs::rename(base.join("o9"), base.join("out")).unwrap();
        assert_eq!((sweep().as_str(), sweep().as_str()), (all, ""));
        std::fs::write(base.join("out/k.py"), "22").unwrap();
        assert_eq!(sweep(), "d/k.py f.py g.py");
        std::fs::write(base.join("out/k.py"), "1").unwrap();
        assert_eq!(sweep(), "d/k.py f.py g.py");
        std::fs::rename(base.join("out"), base.join("o9")).unwrap();
        assert_eq!((sweep().as_str(), sweep().as_str()), (all, ""));
    }
    // Of the links themselves those count whose names do.
    std::fs::rename(base.join("r"), base.join("r9")).unwrap();
    assert_eq!(sweep(), " f.py g.py");
    std::fs::remove_dir_all(&base).unwrap();
}

#[cfg(all(target_os = "linux", not(refork_portable)))]
#[test]
fn moves_that_are_read_late_leave_nothing_behind() {
    let base = std::env::temp_dir().canonicalize().unwrap().join(format!("refork-moves-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&base);
    let r = base.join("r");
    let make = |name: &str| std::fs::create_dir_all(r.join(name)).unwrap();
    let mv = |from: &str, to: &str| std::fs::rename(r.join(from), r.join(to)).unwrap();
    let exchange = |a: &str, b: &str| {
        mv(a, "aside");
        mv(b, a);
        mv("aside", b);
    };
    ["c/b/a/c", "b/d/a/b", "d/c"].iter().for_each(|name| make(name));
    let mut inotify = inotify::Inotify::open(vec![r.clone().into_os_string().into_vec()], true, None).unwrap();
    let (filter, mut batch) = (Filter::default(), batch::Batch::new());
    inotify.arm(&mut inotify::Context { filter: &filter, batch: &mut batch, gate: &mut None });
    exchange("d/c", "c/b/a");
    make("d/d/c/a");
    exchange("c/b", "d/d/c");
    mv("d/d/c/a", "b/d/e");
    mv("d", "b/d/e/a");
    inotify.read(&mut inotify::Context { filter: &filter, batch: &mut batch, gate: &mut None }).unwrap();
    batch.take();
    let mut all = vec![r.clone()];
    let mut files = Vec::new();
    while let Some(dir) = all.pop() {
        all.extend(std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()));
        files.push(dir.join("x.py"));
    }
    files.iter().for_each(|file| std::fs::write(file, "").unwrap());
    files.sort_by_key(|file| file.as_os_str().as_encoded_bytes().to_vec());
    inotify.read(&mut inotify::Context { filter: &filter, batch: &mut batch, gate: &mut None }).unwrap();
    assert_eq!(batch.take(), files, "each in its place, and in no other");
    std::fs::remove_dir_all(&base).unwrap();
}

#[cfg(all(target_os = "linux", not(refork_portable)))]
#[test]
fn random_and_truncated_records_neither_panic_nor_loop() {
    use super::records::{Entries, Events};
    // One event with a name, one without; two entries.
    let mut events = Vec::new();
    for (wd, mask, name) in [(1i32, 0x100u32, &b"a.py\0\0\0\0"[..]), (2, 0x8000, b"")] {
        events.extend(wd.to_ne_bytes());
        events.extend(mask.to_ne_bytes());
        events.extend(7u32.to_ne_bytes());
        events.extend((name.len() as u32).to_ne_bytes());
        events.extend(name);
    }
    let seen: Vec<_> = Events(&events).map(|event| (event.wd, event.mask, event.name.to_vec())).collect();
    assert_eq!(seen, [(1, 0x100, b"a.py".to_vec()), (2, 0x8000, vec![])]);
    let mut entries = Vec::new();
    for (kind, name) in [(4u8, &b"d\0\0\0\0"[..]), (8, b"f.py\0"), (4, b"..\0\0\0")] {
        entries.extend(1u64.to_ne_bytes());
        entries.extend(2u64.to_ne_bytes());
        entries.extend((19 + name.len() as u16).to_ne_bytes());
        entries.push(kind);
        entries.extend(name);
    }
    let seen: Vec<_> = Entries(&entries).map(|(name, kind)| (name.to_vec(), kind)).collect();
    assert_eq!(seen, [(b"d".to_vec(), dir::Kind::Dir), (b"f.py".to_vec(), dir::Kind::Other)]);
    // Every byte, every length, and a long walk of a simple generator.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..20_000 {
        for sample in [&events, &entries] {
            let mut bytes = sample.clone();
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random as usize % bytes.len();
            bytes[at] = (random >> 32) as u8;
            bytes.truncate(if round % 2 == 0 { bytes.len() } else { (random >> 40) as usize % (bytes.len() + 1) });
            assert!(Events(&bytes).count() <= bytes.len() / 16);
            assert!(Entries(&bytes).count() <= bytes.len());
        }
    }
}
