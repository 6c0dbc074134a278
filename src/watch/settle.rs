//! What waits until the queue is read: places in doubt, links whose names were touched, a tree of which events were lost.

use super::by_watch::ByWatch;
use super::inotify::{Context, Inotify, Was};
use super::links::Target;
use super::tree::{Tree, NONE};
use super::walk::Report;
use std::time::{Duration, SystemTime};

/// Subtracted from the time since when files may have changed unseen: clocks of file systems are coarse.
const SLACK: Duration = Duration::from_secs(2);

impl Inotify {
    /// Everything that had to wait until the queue was read.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        loop {
            self.flush_created();
            let verify = std::mem::take(&mut self.verify);
            let maybe = std::mem::take(&mut self.maybe);
            let dirty: Vec<u32> = (0..self.links.len() as u32).filter(|id| self.is_dirty(*id)).collect();
            if verify.is_empty() && maybe.is_empty() && dirty.is_empty() {
                break;
            }
            for (id, was) in verify {
                self.verify_node(id, was, cx);
            }
            for maybe in maybe {
                self.look_for_link(&maybe, cx);
            }
            for id in dirty {
                self.relink(id, Report::All, cx);
            }
        }
        let mut gone = Vec::new();
        if let Some(alive) = self.tree.sweep(|wd| gone.push(wd)) {
            let lives = |node: u32| node == NONE || alive.get(node as usize) == Some(&true);
            self.unreadable.retain(|(node, _)| lives(*node));
            for id in 0..self.links.len() as u32 {
                if self.links[id as usize].as_ref().is_some_and(|link| !lives(link.parent)) {
                    self.forget_link(id);
                }
            }
            gone.into_iter().for_each(|wd| self.release(wd));
        }
    }

    /// Is the node still what its name means?
    fn verify_node(&mut self, id: u32, was: Option<Was>, cx: &mut Context<'_>) {
        if let Some(Some(link)) = self.links.get_mut(self.tree.link(id) as usize) {
            link.dirty = true;
            return;
        }
        let mut path = Vec::new();
        self.tree.path(id, &mut path);
        let there = self.watch_tree(&path, false);
        if there.as_ref().is_ok_and(|wd| *wd == self.tree.wd(id)) {
            return;
        }
        // Files that were deleted were reported one by one; what is in a tree that was moved away was not.
        // Of one that was made since and never held a file that counts there is nothing to say.
        // An unmounted tree is told of by its mount point: the directory above is still there.
        let (parent, name) = self.tree.place(id);
        let top = |was: &Was| !was.unmounted || self.tree.knows(self.tree.wd(parent));
        let counts = |was: &Was| self.tree.counts(id) && !cx.filter.prunes(&was.path, was.inner);
        if let Some(was) = was.filter(|was| top(was) && counts(was)) {
            cx.batch.report(&was.path);
        }
        self.kill(id);
        if let Ok(wd) = there {
            // Another directory is in its place, or the same one after an unmount.
            if self.tree.find(wd, parent, &name).is_none() {
                let id = self.tree.add(parent, &name, wd, NONE, false);
                self.walk(id, Report::All, cx);
            }
        }
    }

    pub(super) fn kill(&mut self, id: u32) {
        if let Some(wd) = self.tree.kill(id) {
            self.release(wd);
        }
    }

    /// Events were lost: all is read again, as at the start, on the same descriptor.
    pub(super) fn rescan(&mut self, cx: &mut Context<'_>) {
        let since = self.quiet.checked_sub(SLACK).unwrap_or(SystemTime::UNIX_EPOCH);
        let before: Vec<i32> = self.tree.watches().chain(self.anchors.keys().copied()).collect();
        let links = std::mem::take(&mut self.links);
        self.link_at.clear();
        self.free_links.clear();
        (self.tree, self.anchors) = (Tree::default(), ByWatch::default());
        self.unreadable.clear();
        self.verify.clear();
        let reported = cx.batch.count;
        self.arm_roots(Report::Since(since), cx);
        before.into_iter().for_each(|wd| self.release(wd));
        for link in links.into_iter().flatten().filter(|link| link.parent == NONE) {
            let now = self.links.iter().flatten().find(|now| now.parent == NONE && now.name == link.name);
            match (&link.target, now.map(|now| &now.target)) {
                (Target::File(was), Some(Target::File(is))) if was == is => {}
                (Target::Missing, Some(Target::Missing)) | (Target::Polled, _) => {}
                // What vanished has left no trace: the directory stands for it.
                _ => cx.batch.report(&link.name),
            }
        }
        // Nothing was lost if all that is watched is files, and they are as they were.
        cx.batch.rescan |= cx.batch.count > reported;
    }
}
