//! What one image's watcher leaves for the next, and buffers that lie. The scenarios are in `tests/watcher.rs`.

use super::*;
use crate::sys::process::gate;
use std::os::fd::IntoRawFd;
use std::sync::mpsc::{channel, Receiver};

fn watcher(path: &Path, backend: Backend) -> (FileChangeWatcher, Receiver<Vec<PathBuf>>) {
    let (send, batches) = channel();
    let watcher = FileChangeWatcher::new([path], move |paths| drop(send.send(paths.to_vec())));
    (watcher.backend(backend).debounce(Duration::from_millis(10), Duration::from_millis(500)), batches)
}

#[test]
fn a_change_between_two_images_is_reported() {
    let root = std::env::temp_dir().canonicalize().unwrap().join(format!("refork-carry-{}", std::process::id()));
    let mut backends = vec![Backend::Poll(Duration::from_millis(10))];
    backends.extend(cfg!(all(target_os = "linux", not(refork_portable))).then_some(Backend::Inotify));
    for backend in backends {
        for change in [true, false] {
            let _ = std::fs::remove_dir_all(&root);
            std::fs::create_dir_all(root.join("sub")).unwrap();
            let (mut old, _) = watcher(&root, backend);
            old.start().unwrap();
            let carried = match old.carry(&gate()) {
                // What exec does: the descriptor lives on.
                Watched::Queue(fd) => Watched::Queue(sys::fd::duplicate(fd, 3).unwrap().into_raw_fd()),
                other => other,
            };
            old.stop();
            let file = root.join("sub/a.py");
            if change {
                std::fs::write(&file, "").unwrap();
            }
            let (mut new, batches) = watcher(&root, backend);
            new.inherit(carried);
            new.arm().unwrap();
            new.spawn().unwrap();
            if change {
                let seen = batches.recv().unwrap();
                assert_eq!(seen, [if backend == Backend::Inotify { file } else { root.clone() }]);
            }
            // Nothing else was there, and the watches work.
            std::fs::write(root.join("sub/b.py"), "").unwrap();
            assert_eq!(batches.recv().unwrap(), [root.join("sub/b.py")], "{backend:?}");
        }
    }
    std::fs::remove_dir_all(&root).unwrap();
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
