//! Arm, list, report: the one routine for the start, a new directory, one that was moved, and a tree that is read again.

use super::dir::{self, Dir, Kind};
use super::inotify::{Context, Inotify, Maybe, Rest};
use super::tree::NONE;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// What of the files that a walk finds is reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Report {
    Nothing,
    All,
    /// Those that may have changed since.
    Since(SystemTime),
}

/// Scratch memory.
pub(crate) struct Walker {
    todo: Vec<u32>,
    path: Vec<u8>,
    entries: Vec<u8>,
    /// Devices, and whether link counts can be relied on there.
    counted: Vec<(u64, bool)>,
}

impl Walker {
    pub(crate) fn new() -> Walker {
        Walker { todo: Vec::new(), path: Vec::new(), entries: Vec::new(), counted: Vec::new() }
    }
}

impl Inotify {
    /// Watches the subdirectory `name` of `node` and reports what is in it, unless it is watched already.
    pub(super) fn walk_child(&mut self, node: u32, name: &[u8], cx: &mut Context<'_>) {
        let mut path = Vec::new();
        let inner = self.tree.path(node, &mut path);
        dir::join(&mut path, name);
        if cx.filter.prunes(&path, inner) {
            return;
        }
        // One that is not new was found by a walk before its event was read.
        if let Some((child, true)) = self.arm_child(node, name, &path, inner, Report::All, cx) {
            self.walk(child, Report::All, cx);
        }
    }

    /// The node of a subdirectory that has a watch now, and whether it is new in this place.
    fn arm_child(
        &mut self,
        node: u32,
        name: &[u8],
        path: &[u8],
        inner: usize,
        report: Report,
        cx: &mut Context<'_>,
    ) -> Option<(u32, bool)> {
        if let Some(system) = self.silent_mount(path, name) {
            self.poll_silent(path, inner, report, &system);
            return None;
        }
        let wd = match self.watch_tree(path, false) {
            Ok(wd) => wd,
            Err(e) => {
                match e.raw_os_error() {
                    // Gone again, or something else by now.
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => {}
                    Some(libc::EACCES) => {
                        self.complain(path, &e);
                        self.unreadable.push((node, name.into()));
                    }
                    Some(libc::ENOSPC | libc::ENOMEM) => self.poll_instead(path, inner, report, &e),
                    _ => self.complain(path, &e),
                }
                return None;
            }
        };
        if self.tree.knows(wd) {
            if let Some(known) = self.tree.find(wd, node, name) {
                return Some((known, false));
            }
            if self.tree.is_loop(node, wd) {
                return None;
            }
            // Moved here, if it is no longer where it was.
            for id in self.tree.of(wd).into_iter().filter(|id| self.tree.link(*id) == NONE) {
                let mut old = Vec::new();
                self.tree.path(id, &mut old);
                if self.watch_tree(&old, false).ok() != Some(wd) {
                    self.tree.place_at(id, node, name);
                    // Events that are read late name what has its old path by now.
                    self.verify.extend(self.tree.below(id).map(|below| (below, None)));
                    return Some((id, true));
                }
            }
        }
        crate::sys::process::yield_gate(cx.gate);
        Some((self.tree.add(node, name, wd, NONE, report != Report::All), true))
    }

    /// Watches everything below `start`, which has its watch already.
    pub(super) fn walk(&mut self, start: u32, report: Report, cx: &mut Context<'_>) {
        let mut todo = std::mem::take(&mut self.walker.todo);
        let mut path = std::mem::take(&mut self.walker.path);
        let mut entries = std::mem::take(&mut self.walker.entries);
        let base = todo.len();
        todo.push(start);
        while todo.len() > base {
            let Some(node) = todo.pop() else { break };
            path.clear();
            let inner = self.tree.path(node, &mut path);
            if report == Report::Nothing && !self.follow && self.is_leaf(&path) {
                continue;
            }
            let listed = Dir::open(&path).and_then(|dir| {
                let len = path.len();
                dir.each(&mut entries, &mut |name, kind| {
                    // Most entries are files, and at the start of no interest.
                    if kind == Kind::Other && report == Report::Nothing {
                        return;
                    }
                    path.truncate(len);
                    dir::join(&mut path, name);
                    match dir::kind(&path, kind) {
                        Kind::Dir => {
                            if !cx.filter.prunes(&path, inner) {
                                todo.extend(
                                    self.arm_child(node, name, &path, inner, report, cx).map(|(child, _)| child),
                                );
                            }
                        }
                        Kind::Link if self.follow => {
                            self.maybe.push(Maybe { node, name: name.into(), report, walked: true });
                        }
                        Kind::Link | Kind::Other | Kind::Unknown => {
                            if found(&path, inner, report, cx) {
                                self.tree.mark(node);
                            }
                        }
                    }
                })
            });
            match listed {
                Ok(()) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
                // No descriptor or no memory left: polling comes back to it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                    self.poll_instead(&path, inner, report, &e);
                }
                Err(e) => self.complain(&path, &e),
            }
            crate::sys::process::yield_gate(cx.gate);
        }
        (self.walker.todo, self.walker.path, self.walker.entries) = (todo, path, entries);
    }

    /// A directory with two links has no subdirectory, where links are counted; its files need not be listed.
    fn is_leaf(&mut self, path: &[u8]) -> bool {
        let Ok(stat) = dir::stat(path, true) else { return false };
        let known = self.walker.counted.iter().find(|(dev, _)| *dev == stat.dev).map(|(_, counted)| *counted);
        let counted = known.unwrap_or_else(|| {
            let counted = dir::link_counts(path);
            self.walker.counted.push((stat.dev, counted));
            counted
        });
        counted && stat.links == 2
    }

    /// The file system that is mounted here, if it does not tell of changes.
    fn silent_mount(&self, path: &[u8], name: &[u8]) -> Option<String> {
        // A plain directory's name is that of its mount point: nothing is resolved for nothing.
        let named = |point: &[u8]| point.strip_suffix(name).is_some_and(|above| above.ends_with(b"/"));
        self.silent.iter().find(|(point, _)| named(point))?;
        let real = std::fs::canonicalize(OsStr::from_bytes(path)).ok()?;
        let mount = self.silent.iter().find(|(point, _)| *point == real.as_os_str().as_bytes());
        mount.map(|(_, system)| system.clone())
    }

    pub(super) fn poll_silent(&mut self, path: &[u8], inner: usize, report: Report, system: &str) {
        self.trouble.push(format!("{} is on {system}, which does not tell of all changes: polled", dir::shown(path)));
        self.rest.push(Rest { path: path.into(), inner, report: report == Report::All });
    }

    /// inotify has no more watches, or the process no descriptor: this directory is polled.
    pub(super) fn poll_instead(&mut self, path: &[u8], inner: usize, report: Report, e: &io::Error) {
        if !std::mem::replace(&mut self.exhausted, true) {
            self.trouble.push(dir::exhausted(path, e));
        }
        self.rest.push(Rest { path: path.into(), inner, report: report == Report::All });
    }
}

/// A file that a walk has found: is it reported?
pub(super) fn found(path: &[u8], inner: usize, report: Report, cx: &mut Context<'_>) -> bool {
    if report == Report::Nothing || !cx.filter.counts(path, inner) {
        return false;
    }
    if let Report::Since(since) = report {
        let changed = dir::stat(path, true).map(|stat| stat.ctime.max(stat.mtime));
        let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        if changed.map_or(true, |(seconds, _)| seconds < since) {
            return false;
        }
    }
    cx.batch.report(path);
    true
}
