//! Paths that are more than a directory entry: what the user named, and symbolic links in a watched tree.

use super::dir;
use super::hops::hops;
use super::inotify::{Context, Inotify, Maybe, Rest};
use super::tree::NONE;
use super::walk::{found, Report};
use crate::plan::snapshot::State;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// So many names for one directory are enough: links that lead to each other in all ways end.
const MOST_NAMES: usize = 64;
/// A path that keeps changing while it is resolved is resolved again on the next event.
const TRIES: usize = 8;

/// A name in a watched directory on which a link depends.
pub(crate) struct Anchor {
    pub(crate) name: Box<[u8]>,
    pub(crate) link: u32,
    /// It is the named file itself: writing to it counts.
    pub(crate) file: bool,
}

/// What a link leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// Not looked at yet.
    New,
    Missing,
    File(State),
    /// A node of the tree.
    Dir(u32),
    /// A directory that contains the link, or one that has names enough: not followed.
    Loop,
    /// Left to polling.
    Polled,
}

pub(crate) struct Link {
    /// The directory that holds it; `NONE`: a path that the user named.
    pub(crate) parent: u32,
    pub(crate) name: Box<[u8]>,
    pub(crate) target: Target,
    /// Watches of its anchors.
    aims: Vec<i32>,
    /// A name on the way was touched.
    pub(crate) dirty: bool,
    /// The file itself was.
    pub(crate) touched: bool,
}

impl Inotify {
    pub(super) fn new_link(&mut self, parent: u32, name: &[u8]) -> u32 {
        let link =
            Link { parent, name: name.into(), target: Target::New, aims: Vec::new(), dirty: false, touched: false };
        let id = self.free_links.pop().unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() as u32 - 1
        });
        self.links[id as usize] = Some(link);
        self.link_at.insert((parent, name.into()), id);
        id
    }

    pub(super) fn is_dirty(&self, id: u32) -> bool {
        self.links.get(id as usize).and_then(Option::as_ref).is_some_and(|link| link.dirty)
    }

    /// A name that may be a symbolic link worth following.
    pub(super) fn look_for_link(&mut self, maybe: &Maybe, cx: &mut Context<'_>) {
        let (node, name, report) = (maybe.node, &maybe.name, maybe.report);
        if let Some(id) = self.link_at.get(&(node, name.clone())).copied() {
            // An event was seen by its anchor, too. In a directory that was moved it has another path now, under which
            // all of it is news, and may lead elsewhere.
            if maybe.walked {
                self.moved_link(id, report, cx);
            }
            return;
        }
        let mut path = Vec::new();
        let inner = self.tree.path(node, &mut path);
        dir::join(&mut path, name);
        if !dir::stat(&path, false).is_ok_and(|stat| stat.is_link()) {
            return;
        }
        let counts = cx.filter.counts(&path, inner);
        let follows = match dir::stat(&path, true) {
            Ok(stat) if stat.is_dir() => !cx.filter.prunes(&path, inner),
            Ok(_) => counts,
            Err(_) => counts || !cx.filter.prunes(&path, inner),
        };
        if follows {
            let id = self.new_link(node, name);
            self.relink(id, report, cx);
        }
    }

    fn moved_link(&mut self, id: u32, report: Report, cx: &mut Context<'_>) {
        let was = self.target(id);
        self.relink(id, report, cx);
        match self.target(id) {
            now if now != was => {}
            Target::Dir(node) => self.walk(node, report, cx),
            _ => {
                let mut path = Vec::new();
                let Some(Some(Link { parent, name, .. })) = self.links.get(id as usize) else { return };
                let inner = self.tree.path(*parent, &mut path);
                dir::join(&mut path, name);
                let _ = found(&path, inner, report, cx);
            }
        }
    }

    /// Resolves a link again: its anchors, and what it leads to.
    pub(super) fn relink(&mut self, id: u32, report: Report, cx: &mut Context<'_>) {
        let Some(Some(link)) = self.links.get_mut(id as usize) else { return };
        link.dirty = false;
        let touched = std::mem::take(&mut link.touched);
        if link.target == Target::Polled {
            return;
        }
        let (parent, name) = (link.parent, link.name.clone());
        let mut path = Vec::new();
        let inner = match parent {
            NONE => name.len(),
            parent => self.tree.path(parent, &mut path),
        };
        dir::join(&mut path, &name);
        if parent != NONE && !dir::stat(&path, false).is_ok_and(|stat| stat.is_link()) {
            return self.not_a_link(id, &path, cx);
        }
        if let Some(why) = self.aim(id, &path) {
            self.poll_instead(&path, inner, report, &why);
            self.set_target(id, Target::Polled);
            return;
        }
        let was = self.target(id);
        let now = self.resolve(id, &path, inner, report, cx);
        self.set_target(id, now);
        if report != Report::All || now == was && !touched {
            return;
        }
        // Of a new link to a directory, the walk has reported what is in it.
        let dir = matches!(was, Target::Dir(_));
        let named = parent == NONE && was != Target::New;
        if named || dir || !matches!(now, Target::Dir(_)) && cx.filter.counts(&path, inner) {
            self.tree.mark(parent);
            cx.batch.report(&path);
        }
    }

    fn target(&self, id: u32) -> Target {
        self.links.get(id as usize).and_then(Option::as_ref).map_or(Target::Missing, |link| link.target)
    }

    /// What the path means now. A directory that it did not mean before is watched, and what is in it reported.
    fn resolve(&mut self, id: u32, path: &[u8], inner: usize, report: Report, cx: &mut Context<'_>) -> Target {
        let Some(Some(Link { parent, name, target, .. })) = self.links.get(id as usize) else {
            return Target::Missing;
        };
        let (parent, name, was) = (*parent, name.clone(), *target);
        let Ok(stat) = dir::stat(path, true) else { return Target::Missing };
        if let Some(system) = dir::silent(path) {
            self.poll_silent(path, inner, report, system);
            return Target::Polled;
        }
        if !stat.is_dir() {
            return Target::File(dir::state(&stat));
        }
        if let Some(why) = dir::refused_link(path, &stat).filter(|_| parent != NONE) {
            self.tell(path, format!("{} is not followed: {why}", dir::shown(path)));
            return Target::Loop;
        }
        let wd = match self.watch_tree(path, true) {
            Ok(wd) => wd,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM)) => {
                self.poll_instead(path, inner, report, &e);
                return Target::Polled;
            }
            // Gone since it was looked at; whatever comes in its place is an event.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Target::Missing,
            Err(e) if parent == NONE && report == Report::Nothing => {
                self.unusable.get_or_insert((path.into(), e));
                return Target::Missing;
            }
            Err(e) => {
                // May it be read one day? Its mode is not told of here.
                self.complain(path, &e);
                self.rest.push(Rest { path: path.into(), inner, report: report == Report::All });
                return Target::Polled;
            }
        };
        match was {
            // It may have been moved into what it leads to.
            _ if parent != NONE && self.tree.is_loop(parent, wd) => return Target::Loop,
            Target::Dir(node) if self.tree.wd(node) == wd => return was,
            _ if parent != NONE && self.tree.of(wd).len() >= MOST_NAMES => {
                self.complain_of_names(path);
                return Target::Loop;
            }
            _ => {}
        }
        let node = self.tree.add(parent, &name, wd, id, report != Report::All);
        self.walk(node, report, cx);
        Target::Dir(node)
    }

    /// A line for the user, once: links that lead to each other would fill the log.
    fn complain_of_names(&mut self, path: &[u8]) {
        if !std::mem::replace(&mut self.crowded, true) {
            let real = std::fs::canonicalize(OsStr::from_bytes(path)).unwrap_or_default();
            let (link, real) = (dir::shown(path), dir::shown(real.as_os_str().as_bytes()));
            self.trouble
                .push(format!("{link} is not followed: {real} is watched by {MOST_NAMES} names, which is the most"));
        }
    }

    fn set_target(&mut self, id: u32, target: Target) {
        if let Some(Some(link)) = self.links.get_mut(id as usize) {
            match std::mem::replace(&mut link.target, target) {
                Target::Dir(node) if target != Target::Dir(node) => self.kill(node),
                _ => {}
            }
        }
    }

    /// Watches the names that decide what the path means, until they are the same before and after. `Some`: inotify has no
    /// more watches.
    fn aim(&mut self, id: u32, path: &[u8]) -> Option<std::io::Error> {
        let shown = Path::new(OsStr::from_bytes(path));
        let mut last = Vec::new();
        for _ in 0..TRIES {
            let hops = hops(shown);
            if hops == last {
                break;
            }
            let old = self.take_aims(id);
            let stat = dir::stat(path, true);
            let (file, dir) = (stat.as_ref().is_ok_and(|stat| !stat.is_dir()), stat.is_ok_and(|stat| stat.is_dir()));
            let mut aims = Vec::new();
            for (i, (above, name)) in hops.iter().enumerate() {
                let last = i + 1 == hops.len();
                let above = above.as_os_str().as_bytes();
                let watched = match name.is_empty() {
                    true => self.watch_self(above),
                    false => self.watch_names(above, file && last),
                };
                match watched {
                    Ok(wd) => {
                        // What is missing may be a file: coming and going is a change of it.
                        let anchor = Anchor { name: name.as_bytes().into(), link: id, file: last && !dir };
                        self.anchors.entry(wd).or_default().push(anchor);
                        aims.push(wd);
                    }
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM)) => return Some(e),
                    Err(e) if e.raw_os_error() == Some(libc::EACCES) && !name.is_empty() => {
                        // What a name in a directory that may only be searched means, is seen by polling alone. Not of a
                        // whole tree, though, as long as it is there: it has its own watches.
                        if !last || !dir {
                            return Some(e);
                        }
                        let (shown, above) = (dir::shown(path), dir::shown(above));
                        self.tell(
                            path,
                            format!("names in {above} cannot be watched ({e}): if {shown} is replaced, nobody sees it"),
                        );
                    }
                    // Gone meanwhile: the next round sees it. One on the way that may not be read is taken as it is.
                    Err(_) => {}
                }
            }
            if let Some(Some(link)) = self.links.get_mut(id as usize) {
                link.aims = aims;
            }
            old.into_iter().for_each(|wd| self.release(wd));
            last = hops;
        }
        None
    }

    fn take_aims(&mut self, id: u32) -> Vec<i32> {
        let Some(Some(link)) = self.links.get_mut(id as usize) else { return Vec::new() };
        let aims = std::mem::take(&mut link.aims);
        for wd in &aims {
            if let Some(list) = self.anchors.get_mut(wd) {
                list.retain(|anchor| anchor.link != id);
                if list.is_empty() {
                    self.anchors.remove(wd);
                }
            }
        }
        aims
    }

    /// Where a link was is something else now, which has its own events.
    fn not_a_link(&mut self, id: u32, path: &[u8], cx: &mut Context<'_>) {
        let Some(Some(link)) = self.links.get(id as usize) else { return };
        if let Target::Dir(node) = link.target {
            if self.watch_tree(path, false).ok() == Some(self.tree.wd(node)) {
                self.tree.unlink(node);
            } else {
                self.kill(node);
                cx.batch.report(path);
            }
        }
        self.forget_link(id);
    }

    pub(super) fn forget_link(&mut self, id: u32) {
        let aims = self.take_aims(id);
        if let Some(link) = self.links.get_mut(id as usize).and_then(Option::take) {
            self.link_at.remove(&(link.parent, link.name));
            self.free_links.push(id);
            if let Target::Dir(node) = link.target {
                if self.tree.link(node) == id {
                    self.kill(node);
                }
            }
        }
        aims.into_iter().for_each(|wd| self.release(wd));
    }
}
