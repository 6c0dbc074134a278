//! The Linux backend: what inotify(7) reports, turned into changed paths.
//!
//! The rules that keep it from missing anything:
//!
//! - *Arm, then list.* A directory gets its watch before it is read, so what appears in between is seen twice, never not at
//!   all. The same walk serves the start, a new directory, one that was moved, and the tree after an overflow.
//! - *Ask the kernel who a name is.* Adding a watch to a path returns the directory's descriptor, the same one for the same
//!   inode. So a node is verified by one call, whatever order events were read in, and no cookie need be paired.
//! - *Names, not inodes.* A root, a named file or a symbolic link depends on every name in `hops`; the directories of those
//!   names are watched (anchors), and an event that names one makes the path be resolved again.
//!
//! Nothing here knows of time, batches are somebody else's: a changed path is written into `Batch` and that is all.

use super::batch::Batch;
use super::by_watch::ByWatch;
use super::dir;
use super::filter::Filter;
use super::links::{Anchor, Link};
use super::records::{Event, Events};
use super::tree::{Tree, NONE};
use super::walk::{Report, Walker};
use crate::sys::{inotify, process::Gate};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

/// What happens to a file. Opening and reading it is nobody's business.
const FILES: u32 = libc::IN_MODIFY | libc::IN_CLOSE_WRITE | libc::IN_ATTRIB;
/// A file that has no name any more may still be written to, and would be taken for what has its name now.
const NAMED: u32 = libc::IN_EXCL_UNLINK;
/// What happens to a name, and to the watched directory itself.
const NAMES: u32 = libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_MOVE_SELF
    | libc::IN_DELETE_SELF
    | libc::IN_ONLYDIR;
/// No watch has this number.
const NOTHING: i32 = -1;
/// Reads at most this much at once: some 2,000 events.
const GULP: usize = 64 * 1024;
/// Gulps before the caller may look at its clock again.
const GULPS: usize = 64;
/// So many paths that were complained of are remembered.
const MOST_TOLD: usize = 256;

/// What every step needs: the filter, where changes go, and the gate to step aside for a master that wants to fork.
pub(crate) struct Context<'a> {
    pub(crate) filter: &'a Filter,
    pub(crate) batch: &'a mut Batch,
    pub(crate) gate: &'a mut Option<Gate>,
}

/// A number in a token is a stranger's until the kernel confirms it. Without /proc it is believed.
fn is_inotify(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or(true, |link| link.as_os_str() == "anon_inode:inotify")
}

/// A path that was moved away or unmounted, and where its part below the root begins.
pub(super) struct Was {
    pub(super) path: Vec<u8>,
    pub(super) inner: usize,
    /// With all that contains it, up to the mount point.
    pub(super) unmounted: bool,
}

/// A name that may be a symbolic link.
pub(super) struct Maybe {
    pub(super) node: u32,
    pub(super) name: Box<[u8]>,
    pub(super) report: Report,
    /// A walk has found it: its directory may have been moved here.
    pub(super) walked: bool,
}

/// What inotify cannot watch, for polling instead.
pub(crate) struct Rest {
    pub(crate) path: Vec<u8>,
    /// Where the part of the path below the root begins.
    pub(crate) inner: usize,
    pub(crate) report: bool,
}

pub(crate) struct Inotify {
    file: File,
    pub(super) roots: Vec<Vec<u8>>,
    buf: Vec<u8>,
    pub(super) follow: bool,
    pub(super) tree: Tree,
    pub(super) links: Vec<Option<Link>>,
    /// By the directory that holds it, and its name.
    pub(super) link_at: HashMap<(u32, Box<[u8]>), u32>,
    /// Places in `links`.
    pub(super) free_links: Vec<u32>,
    pub(super) anchors: ByWatch<Vec<Anchor>>,
    pub(super) walker: Walker,
    /// Subdirectories that may not be read: named once, tried again when their mode changes.
    pub(super) unreadable: Vec<(u32, Box<[u8]>)>,
    /// Nodes whose place is in doubt; of those that were moved or unmounted the path, for their parents may be moved
    /// too before they are looked at.
    pub(super) verify: Vec<(u32, Option<Was>)>,
    /// Names that may be symbolic links; found by a walk, or named by an event.
    pub(super) maybe: Vec<Maybe>,
    /// The watch and the name of what was created last and not written to yet: a file, unless nothing follows.
    created: (i32, Vec<u8>),
    /// The file of the last event of this gulp, and whether it counted: most come in threes.
    last: (i32, Vec<u8>, bool),
    overflow: bool,
    /// When the queue was last known to be empty.
    pub(super) quiet: SystemTime,
    pub(crate) rest: Vec<Rest>,
    pub(crate) trouble: Vec<String>,
    /// Mount points of file systems that do not tell.
    pub(super) silent: Vec<(Vec<u8>, String)>,
    /// Paths of which something has been said.
    told: Vec<Box<[u8]>>,
    /// It has been said that a limit is reached.
    pub(super) exhausted: bool,
    /// It has been said that a directory has more names than are watched.
    pub(super) crowded: bool,
    /// Why a root cannot be used.
    pub(super) unusable: Option<(Vec<u8>, io::Error)>,
}

impl Inotify {
    /// `carried`: the descriptor of an earlier image, whose queue may hold what changed meanwhile.
    pub(crate) fn open(roots: Vec<Vec<u8>>, follow: bool, carried: Option<OwnedFd>) -> io::Result<Inotify> {
        let fd = carried.filter(is_inotify).map_or_else(inotify::init, Ok)?;
        Ok(Inotify {
            file: File::from(fd),
            roots,
            buf: Vec::new(),
            follow,
            tree: Tree::default(),
            links: Vec::new(),
            link_at: HashMap::new(),
            free_links: Vec::new(),
            anchors: ByWatch::default(),
            walker: Walker::new(),
            unreadable: Vec::new(),
            verify: Vec::new(),
            maybe: Vec::new(),
            created: (NOTHING, Vec::new()),
            last: (NOTHING, Vec::new(), false),
            overflow: false,
            quiet: SystemTime::now(),
            rest: Vec::new(),
            trouble: Vec::new(),
            silent: dir::silent_mounts(&std::fs::read("/proc/self/mountinfo").unwrap_or_default()),
            told: Vec::new(),
            exhausted: false,
            crowded: false,
            unusable: None,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn directories(&self) -> usize {
        self.tree.len()
    }

    /// Places every watch. What was there before is not reported.
    pub(crate) fn arm(&mut self, cx: &mut Context<'_>) {
        self.arm_roots(Report::Nothing, cx);
        // Scratch memory of the walk is not needed while nothing happens.
        self.walker = Walker::new();
    }

    pub(super) fn arm_roots(&mut self, report: Report, cx: &mut Context<'_>) {
        for root in self.roots.clone() {
            let id = self.new_link(NONE, &root);
            self.relink(id, report, cx);
        }
        self.settle(cx);
    }

    /// Adds a watch: the directory's descriptor.
    pub(super) fn add(&self, path: &[u8], mask: u32) -> io::Result<i32> {
        dir::with_c(path, |path| inotify::add(self.file.as_fd(), path, mask))
    }

    pub(super) fn watch_tree(&self, path: &[u8], follow: bool) -> io::Result<i32> {
        self.add(path, FILES | NAMES | NAMED | if follow { 0 } else { libc::IN_DONT_FOLLOW })
    }

    /// For an anchor: names only, and what happens to files if one is named. Whatever else is watched there stays watched.
    pub(super) fn watch_names(&self, path: &[u8], file: bool) -> io::Result<i32> {
        self.add(path, NAMES | NAMED | libc::IN_MASK_ADD | if file { FILES } else { 0 })
    }

    /// For a directory on the way to something: only that it is moved.
    pub(super) fn watch_self(&self, path: &[u8]) -> io::Result<i32> {
        self.add(path, libc::IN_MOVE_SELF | libc::IN_ONLYDIR | NAMED | libc::IN_MASK_ADD)
    }

    /// The kernel forgets a watch that nobody uses any more.
    pub(super) fn release(&self, wd: i32) {
        if !self.tree.knows(wd) && !self.anchors.contains_key(&wd) {
            let _ = inotify::remove(self.file.as_fd(), wd);
        }
    }

    /// Reads what is queued.
    pub(crate) fn read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut buf = std::mem::take(&mut self.buf);
        buf.resize(GULP, 0);
        let begun = SystemTime::now();
        let mut emptied = false;
        self.last.0 = NOTHING;
        for _ in 0..GULPS {
            let n = match self.file.read(&mut buf) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(e) => return Err(e),
            };
            for event in Events(&buf[..n]) {
                self.event(event, cx);
            }
            // A gulp that is half empty was the last: poll(2) tells if more came.
            if n < GULP / 2 {
                emptied = true;
                break;
            }
        }
        self.buf = buf;
        self.settle(cx);
        if std::mem::take(&mut self.overflow) {
            self.rescan(cx);
        }
        if emptied {
            self.quiet = begun;
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, cx: &mut Context<'_>) {
        let Event { wd, mask, name } = event;
        if mask & libc::IN_Q_OVERFLOW != 0 {
            self.overflow = true;
            return;
        }
        if self.last.0 == wd && mask & !FILES == 0 && *self.last.1 == *name {
            self.note_created(wd, name, mask);
            cx.batch.count += u64::from(self.last.2);
            return;
        }
        let is = |bits: u32| mask & bits != 0;
        if let Some(list) = self.anchors.get(&wd) {
            let gone = is(libc::IN_IGNORED | libc::IN_MOVE_SELF);
            for anchor in list.iter().filter(|anchor| gone || *anchor.name == *name) {
                if let Some(link) = self.links.get_mut(anchor.link as usize).and_then(Option::as_mut) {
                    link.dirty = true;
                    let happens = is(FILES | libc::IN_MOVED_TO | libc::IN_CREATE) && !is(libc::IN_ISDIR);
                    link.touched |= anchor.file && happens;
                }
            }
            if is(libc::IN_IGNORED) {
                self.anchors.remove(&wd);
            }
        } else if !self.tree.knows(wd) && !is(libc::IN_IGNORED) {
            self.release(wd);
            return;
        }
        if is(libc::IN_IGNORED | libc::IN_UNMOUNT | libc::IN_MOVE_SELF) {
            for id in self.tree.of(wd) {
                if is(libc::IN_IGNORED) {
                    self.tree.detach(id);
                }
                // An unmount takes all that was in it away, without a word of each.
                let was = is(libc::IN_MOVE_SELF | libc::IN_UNMOUNT).then(|| {
                    let mut path = Vec::new();
                    let inner = self.tree.path(id, &mut path);
                    Was { path, inner, unmounted: is(libc::IN_UNMOUNT) }
                });
                self.verify.push((id, was));
            }
        }
        if name.is_empty() {
            if is(libc::IN_ATTRIB) && !self.unreadable.is_empty() {
                // What is in it may perhaps be entered now.
                self.tree.of(wd).into_iter().for_each(|node| self.try_again(|at, _| at == node, cx));
            }
            return;
        }
        self.note_created(wd, name, mask);
        if is(libc::IN_ISDIR) {
            self.last.0 = NOTHING;
            for node in self.tree.of(wd) {
                self.directory(node, name, mask, cx);
            }
        } else if self.last.0 == wd && *self.last.1 == *name {
            cx.batch.count += u64::from(self.last.2);
        } else {
            self.file(wd, name, cx);
        }
    }

    /// An event that names a file.
    fn file(&mut self, wd: i32, name: &[u8], cx: &mut Context<'_>) {
        let mut node = self.tree.first(wd);
        let mut counted = false;
        while node != NONE {
            let path = cx.batch.candidate();
            let inner = self.tree.path(node, path);
            dir::join(path, name);
            if cx.filter.counts(cx.batch.path(), inner) {
                cx.batch.keep();
                self.tree.mark(node);
                counted = true;
            }
            node = self.tree.next(node);
        }
        (self.last.0, self.last.2) = (wd, counted);
        self.last.1.clear();
        self.last.1.extend_from_slice(name);
    }

    /// A symbolic link is created or moved here and never written to: such names are looked at when all is read.
    fn note_created(&mut self, wd: i32, name: &[u8], mask: u32) {
        if !self.follow {
            return;
        }
        if self.created.0 != NOTHING {
            let same = self.created.0 == wd && *self.created.1 == *name;
            if !same || mask & (FILES | libc::IN_ISDIR) == 0 {
                self.flush_created();
            } else if mask & (libc::IN_MODIFY | libc::IN_CLOSE_WRITE) == 0 {
                return;
            }
            self.created.0 = NOTHING;
        }
        if mask & (libc::IN_CREATE | libc::IN_MOVED_TO) != 0 && mask & libc::IN_ISDIR == 0 {
            self.created.0 = wd;
            self.created.1.clear();
            self.created.1.extend_from_slice(name);
        }
    }

    pub(super) fn flush_created(&mut self) {
        let mut node = self.tree.first(self.created.0);
        while node != NONE {
            let name = self.created.1.as_slice().into();
            self.maybe.push(Maybe { node, name, report: Report::All, walked: false });
            node = self.tree.next(node);
        }
        self.created.0 = NOTHING;
    }

    /// An event that names a subdirectory.
    fn directory(&mut self, node: u32, name: &[u8], mask: u32, cx: &mut Context<'_>) {
        if mask & (libc::IN_CREATE | libc::IN_MOVED_TO) != 0 {
            self.walk_child(node, name, cx);
        } else if mask & libc::IN_ATTRIB != 0 {
            self.try_again(|at, what| at == node && *what == *name, cx);
        }
        // One that went away tells of it by its own watch.
    }

    /// Subdirectories that could not be read, once more.
    fn try_again(&mut self, which: impl Fn(u32, &[u8]) -> bool, cx: &mut Context<'_>) {
        let (again, still) = std::mem::take(&mut self.unreadable).into_iter().partition(|(at, name)| which(*at, name));
        self.unreadable = still;
        let again: Vec<(u32, Box<[u8]>)> = again;
        again.into_iter().for_each(|(node, name)| self.walk_child(node, &name, cx));
    }

    /// A line for the user, once per path.
    pub(super) fn tell(&mut self, path: &[u8], text: String) {
        if self.told.iter().any(|told| **told == *path) {
            return;
        }
        if self.told.len() >= MOST_TOLD {
            self.told.clear();
        }
        self.told.push(path.into());
        self.trouble.push(text);
    }

    pub(super) fn complain(&mut self, path: &[u8], e: &io::Error) {
        self.tell(path, format!("cannot watch {}: {e}; the rest is watched", dir::shown(path)));
    }
}
