//! The portable backend: stat(2) sweeps, and what is different from the last.
//!
//! A directory is listed again only when its own state has changed; the files known are stated each time. A stat
//! follows symbolic links; of one that leads nowhere the name is kept, with the state `NOWHERE`: what it leads to may
//! come to be, and its directory does not tell. The interval stretches so that sweeps take at most 5 % of the time.

use super::batch::Batch;
use super::dir::{self, Dir, Kind};
use super::filter::Filter;
use crate::plan::snapshot::{difference, digest, names, Files, State};
use crate::plan::Moment;
use crate::sys::{self, process::Gate, Stat};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A sweep that took one unit is followed by this many units of rest, if that is longer than the interval.
const REST: u32 = 19;
/// A directory whose time of change is this close to now, in seconds, may change again without showing it: it is
/// listed again.
const FRESH: i64 = 3;
/// The state of a link that leads nowhere: perhaps to a file that counts one day, perhaps to a directory.
const NOWHERE: State = 0;
/// Directories below directories, at most.
const DEPTH: usize = 500;
/// So many names for one directory are enough: links that lead to each other in all ways end.
const MOST_NAMES: u32 = 64;
const CROWDED: &str = "its directory is watched by 64 names, which is the most";

/// A path that is swept.
struct Root {
    path: Vec<u8>,
    inner: usize,
    entry: Entry,
}

enum Entry {
    Missing,
    File(State),
    Dir(Snap),
}

/// A directory as the last sweep saw it.
#[derive(Default)]
struct Snap {
    /// 0: to be listed again.
    own: State,
    id: (u64, u64),
    files: Files,
    dirs: Vec<(Box<[u8]>, Snap)>,
}

impl Snap {
    /// A directory without files that count changes nothing: nobody is told of it either.
    fn digest(&self, before: u64, name: &[u8]) -> u64 {
        let own = fold(before, name, 1);
        let files = self.files.iter().filter(|(_, state)| *state != NOWHERE);
        let hash = files.fold(own, |hash, (name, state)| fold(hash, name, state));
        let all = self.dirs.iter().fold(hash, |hash, (name, snap)| snap.digest(hash, name));
        if all == own {
            return before;
        }
        // It ends here: what comes next is beside it, not in it.
        fold(all, b"", 0)
    }
}

pub(crate) struct Poll {
    roots: Vec<Root>,
    interval: Duration,
    follow: bool,
    /// The whole file system's directory, to which a link may lead.
    root: Option<(u64, u64)>,
    pub(super) fresh: i64,
    due: Option<Moment>,
    /// Named once.
    told: HashSet<Vec<u8>>,
    /// How often this look at a root has come to each directory.
    visits: HashMap<(u64, u64), u32>,
    /// This sweep was short of descriptors or memory; and that has been said.
    short: (bool, bool),
    pub(crate) trouble: Vec<String>,
    /// Directories that contain the one that is swept.
    chain: Vec<(u64, u64)>,
    entries: Vec<u8>,
}

/// What a sweep needs: see `inotify::Context`.
pub(crate) struct Context<'a> {
    pub(crate) filter: &'a Filter,
    pub(crate) batch: &'a mut Batch,
    pub(crate) gate: &'a mut Option<Gate>,
    pub(crate) report: bool,
}

impl Poll {
    pub(crate) fn new(interval: Duration, follow: bool) -> Poll {
        Poll {
            roots: Vec::new(),
            interval,
            follow,
            root: dir::stat(b"/", true).ok().map(|root| (root.dev, root.ino)),
            fresh: FRESH,
            due: None,
            told: HashSet::new(),
            visits: HashMap::new(),
            short: (false, false),
            trouble: Vec::new(),
            chain: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// May this path be polled at all? What cannot be read only now may: the next sweep tries again.
    pub(crate) fn check(&mut self, path: &[u8]) -> io::Result<()> {
        if !dir::stat(path, true).is_ok_and(|stat| stat.is_dir()) {
            return Ok(());
        }
        let read = Dir::open(path).and_then(|dir| dir.each(&mut self.entries, &mut |_, _| ()));
        read.or_else(|e| if is_want(&e) { Ok(()) } else { Err(e) })
    }

    /// Takes a path over: from now on changes are seen. With `cx.report`, what is there is a change already.
    pub(crate) fn add(&mut self, path: Vec<u8>, inner: usize, cx: &mut Context<'_>) {
        let known = self.roots.iter().position(|root| root.path == path && root.inner == inner);
        let known = known.map(|at| self.roots.swap_remove(at));
        // What is known and not to be reported now is for the next sweep to report.
        let look = cx.report || known.is_none();
        let mut root = known.unwrap_or(Root { path, inner, entry: Entry::Missing });
        if look {
            self.look(&mut root, cx);
        }
        self.roots.push(root);
        self.due.get_or_insert(sys::now().saturating_add(self.interval));
    }

    #[cfg(all(target_os = "linux", not(refork_portable)))]
    pub(crate) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Is something in this path swept?
    pub(crate) fn reaches(&self, root: &[u8]) -> bool {
        let root = OsStr::from_bytes(root);
        self.roots.iter().any(|swept| Path::new(OsStr::from_bytes(&swept.path)).starts_with(root))
    }

    /// When the next sweep is due; `None`: there is nothing to sweep.
    pub(crate) fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Looks at everything.
    pub(crate) fn sweep(&mut self, cx: &mut Context<'_>) {
        let begun = sys::now();
        self.short.0 = false;
        let mut roots = std::mem::take(&mut self.roots);
        for root in &mut roots {
            self.look(root, cx);
        }
        self.roots = roots;
        self.short.1 = self.short.0;
        let now = sys::now();
        self.due = Some(now.saturating_add(self.interval.max((now - begun) * REST)));
    }

    /// All states as one number: two sweeps that saw the same have the same, in whatever order the paths were added.
    pub(crate) fn digest(&self) -> u64 {
        let digests = self.roots.iter().map(|root| match &root.entry {
            Entry::Missing => 0,
            Entry::File(state) => fold(0, &root.path, *state),
            Entry::Dir(snap) => snap.digest(0, &root.path),
        });
        digests.fold(0, u64::wrapping_add)
    }

    fn look(&mut self, root: &mut Root, cx: &mut Context<'_>) {
        self.visits = HashMap::new();
        let mut path = root.path.clone();
        let inner = root.inner;
        let before = std::mem::replace(&mut root.entry, Entry::Missing);
        let stat = dir::stat(&path, true);
        let changed = match (before, stat) {
            (before, Err(e)) if is_want(&e) => {
                root.entry = before;
                self.want(&path, &e);
                false
            }
            (Entry::Dir(mut snap), Ok(stat)) if stat.is_dir() && snap.id == (stat.dev, stat.ino) => {
                self.refresh(&mut snap, &mut path, inner, &stat, cx);
                root.entry = Entry::Dir(snap);
                false
            }
            (before, stat) => {
                if let Entry::Dir(snap) = &before {
                    report_all(snap, &mut path, inner, cx);
                }
                root.entry = match &stat {
                    Ok(stat) if stat.is_dir() => {
                        let mut snap = Snap::default();
                        self.refresh(&mut snap, &mut path, inner, stat, cx);
                        Entry::Dir(snap)
                    }
                    Ok(stat) => Entry::File(dir::state(stat)),
                    Err(_) => Entry::Missing,
                };
                match (&before, &root.entry) {
                    (Entry::Missing, Entry::Missing) => false,
                    (Entry::File(was), Entry::File(is)) => was != is,
                    _ => true,
                }
            }
        };
        self.visits = HashMap::new();
        // A directory that was left to polling is nothing that the user named.
        let named = root.inner == root.path.len() || !matches!(root.entry, Entry::Dir(_));
        if changed && named && cx.report {
            cx.batch.report(&root.path);
        }
    }

    /// Brings a directory's snapshot up to date; `stat` is the directory's. `path` is the same after as before.
    fn refresh(&mut self, snap: &mut Snap, path: &mut Vec<u8>, inner: usize, stat: &Stat, cx: &mut Context<'_>) {
        sys::process::yield_gate(cx.gate);
        let id = (stat.dev, stat.ino);
        if self.chain.contains(&id) {
            return;
        }
        if let Some(why) = self.refuses(id, path, stat) {
            // Links that lead to each other would fill the log: said once.
            let key: &[u8] = if why == CROWDED { b"" } else { path };
            self.tell(key, format!("{} is not watched: {why}", dir::shown(path)));
            return *snap = Snap::default();
        }
        snap.id = id;
        let own = if self.is_fresh(stat) { 0 } else { dir::state(stat) };
        let same = own != 0 && own == snap.own;
        let len = path.len();
        // Closed before its subdirectories are opened: depth takes no descriptors.
        let stats = Dir::open(path).and_then(|dir| {
            let quick = if same { self.restate(&dir, snap, path, cx) } else { None };
            quick.map_or_else(|| self.list(&dir, snap, path, inner, cx), Ok)
        });
        let stats = match stats {
            Ok(stats) => stats,
            Err(e) => {
                path.truncate(len);
                snap.own = 0;
                match e.raw_os_error() {
                    // Gone meanwhile, or a file by now: the next sweep sees it.
                    Some(libc::ENOENT | libc::ENOTDIR) => {}
                    _ if is_want(&e) => self.want(path, &e),
                    _ => self.tell(path, format!("cannot read {}: {e}; the rest is watched", dir::shown(path))),
                }
                return;
            }
        };
        snap.own = own;
        self.chain.push(id);
        for ((name, child), stat) in snap.dirs.iter_mut().zip(&stats) {
            dir::join(path, name);
            if child.id != (0, 0) && child.id != (stat.dev, stat.ino) {
                report_all(child, path, inner, cx);
                *child = Snap::default();
            }
            self.refresh(child, path, inner, stat, cx);
            path.truncate(len);
        }
        self.chain.pop();
    }

    /// Why this directory is not looked at.
    fn refuses(&mut self, id: (u64, u64), path: &[u8], stat: &Stat) -> Option<&'static str> {
        let visits = self.visits.entry(id).or_default();
        *visits += 1;
        match self.chain.last() {
            _ if *visits > MOST_NAMES => Some(CROWDED),
            _ if self.chain.len() >= DEPTH => Some("it is too deep"),
            Some((dev, _)) if self.follow && (*dev != stat.dev || self.root == Some(id)) => {
                dir::refused(Path::new(OsStr::from_bytes(path)))
            }
            _ => None,
        }
    }

    /// A line for the user, once per path.
    fn tell(&mut self, path: &[u8], text: String) {
        if self.told.insert(path.to_vec()) {
            self.trouble.push(text);
        }
    }

    fn is_fresh(&self, stat: &Stat) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        let newest = stat.mtime.0.max(stat.ctime.0);
        // A time in the future is one that the clock has yet to pass.
        newest >= now - self.fresh
    }

    /// What was known of it stays known.
    fn want(&mut self, path: &[u8], e: &io::Error) {
        self.short.0 = true;
        if !std::mem::replace(&mut self.short.1, true) {
            self.trouble.push(format!("cannot read {} now: {e}; it is tried again", dir::shown(path)));
        }
    }

    /// The names are the same: states what is known. `None`: they are not, after all.
    fn restate(&mut self, dir: &Dir, snap: &mut Snap, path: &mut Vec<u8>, cx: &mut Context<'_>) -> Option<Vec<Stat>> {
        let len = path.len();
        for (name, state) in snap.files.iter_mut() {
            if *state == NOWHERE {
                match dir.stat(name, self.follow) {
                    Ok(_) => return None,
                    Err(_) => continue,
                }
            }
            let stat = dir.stat(name, self.follow).ok().filter(|stat| !stat.is_dir())?;
            let is = dir::state(&stat);
            if std::mem::replace(state, is) != is && cx.report {
                dir::join(path, name);
                cx.batch.report(path);
                path.truncate(len);
            }
        }
        let mut stats = Vec::with_capacity(snap.dirs.len());
        for (name, _) in &snap.dirs {
            stats.push(dir.stat(name, self.follow).ok().filter(Stat::is_dir)?);
        }
        Some(stats)
    }

    /// Reads the names again. The stats of the subdirectories, in the order of `snap.dirs`.
    fn list(
        &mut self,
        dir: &Dir,
        snap: &mut Snap,
        path: &mut Vec<u8>,
        inner: usize,
        cx: &mut Context<'_>,
    ) -> io::Result<Vec<Stat>> {
        let len = path.len();
        let mut listed = Vec::new();
        dir.each(&mut self.entries, &mut |name, kind| {
            path.truncate(len);
            dir::join(path, name);
            // Most names count for nothing and are not worth a stat.
            let is_file = kind == Kind::Other;
            if cx.filter.counts(path, inner) || !is_file && !cx.filter.prunes(path, inner) {
                listed.extend_from_slice(name);
                listed.push(0);
            }
        })?;
        let mut sorted: Vec<&[u8]> = names(&listed).collect();
        sorted.sort_unstable();
        let (mut files, mut found) = (Files::default(), Vec::new());
        for name in sorted {
            path.truncate(len);
            dir::join(path, name);
            let stat = match dir.stat(name, self.follow) {
                Ok(stat) => stat,
                Err(e) if is_want(&e) => return Err(e),
                // Gone meanwhile, or a link that leads nowhere.
                Err(_) => {
                    if self.follow && dir.stat(name, false).is_ok() {
                        files.push(name, NOWHERE);
                    }
                    continue;
                }
            };
            if stat.is_dir() {
                if !cx.filter.prunes(path, inner) {
                    found.push((name, stat));
                }
            } else if cx.filter.counts(path, inner) {
                files.push(name, dir::state(&stat));
            }
        }
        path.truncate(len);
        files.shrink();
        if cx.report {
            difference(&snap.files, &files, |name, was, is| {
                dir::join(path, name);
                let is_file = was.or(is) != Some(NOWHERE) || is.is_some_and(|state| state != NOWHERE);
                if is_file || cx.filter.counts(path, inner) {
                    cx.batch.report(path);
                }
                path.truncate(len);
            });
        }
        snap.files = files;
        let mut old = std::mem::replace(&mut snap.dirs, Vec::with_capacity(found.len()));
        let mut stats = Vec::with_capacity(found.len());
        for (name, stat) in found {
            let was = old.binary_search_by(|(old, _)| (**old).cmp(name)).ok();
            let child = was.map(|at| std::mem::take(&mut old[at].1)).unwrap_or_default();
            snap.dirs.push((name.into(), child));
            stats.push(stat);
        }
        for (name, gone) in &old {
            dir::join(path, name);
            report_all(gone, path, inner, cx);
            path.truncate(len);
        }
        Ok(stats)
    }
}

/// Everything in a directory that is not there any more.
fn report_all(snap: &Snap, path: &mut Vec<u8>, inner: usize, cx: &mut Context<'_>) {
    if !cx.report {
        return;
    }
    let len = path.len();
    for (name, state) in snap.files.iter() {
        dir::join(path, name);
        if state != NOWHERE || cx.filter.counts(path, inner) {
            cx.batch.report(path);
        }
        path.truncate(len);
    }
    for (name, below) in &snap.dirs {
        dir::join(path, name);
        report_all(below, path, inner, cx);
        path.truncate(len);
    }
}

fn fold(hash: u64, name: &[u8], state: State) -> u64 {
    let name = name.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    digest(&[name, state])
}

/// The process or the system is short of something, which is no property of the directory.
fn is_want(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}
