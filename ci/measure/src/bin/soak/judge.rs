//! Whether what was reported is what happened.
//!
//! Missed: a path whose state differs between the two looks at the tree, and of which no report came after the last
//! thing done to it. It may be reported by any of its names (through symlinks), and what was below a directory that
//! went away, or below a symlink that leads elsewhere now, by that directory's or symlink's own path, or by the paths
//! that it got from there.
//! Phantom: a reported path that nothing touched.
//! Not asked for: a file of several names, changed through another of them (inotify tells of the name that was used).

use crate::deeds::{Deed, Reach};
use crate::state::Tree;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

pub struct Judge<'a> {
    pub before: &'a Tree,
    pub after: &'a Tree,
    pub deeds: &'a [Deed],
    pub linked: &'a HashSet<(u64, u64)>,
    pub polls: bool,
}

impl Judge<'_> {
    /// All names of a path. `itself`: also what its last component leads to.
    pub fn names(&self, path: &Path, itself: bool) -> Vec<PathBuf> {
        let mut names = vec![path.to_owned()];
        for tree in [self.before, self.after] {
            names.extend(tree.names(path, false));
            if itself {
                names.extend(tree.names(path, true));
            }
        }
        names.sort();
        names.dedup();
        names
    }

    fn touches<'a>(&'a self, names: &'a [PathBuf]) -> impl Iterator<Item = (&'a Deed, Reach, bool)> {
        let all = self.deeds.iter().flat_map(|deed| deed.touched.iter().map(move |(path, reach)| (deed, path, *reach)));
        all.filter_map(|(deed, path, reach)| {
            let exact = names.contains(path);
            let touched = exact
                || matches!(reach, Reach::Whole | Reach::Moved) && names.iter().any(|name| name.starts_with(path));
            touched.then_some((deed, reach, exact))
        })
    }

    /// Where the path went with the directories above it.
    fn successors(&self, path: &Path) -> Vec<PathBuf> {
        let mut names = Vec::new();
        for deed in self.deeds {
            let moved = deed.touched.windows(2).filter(|pair| pair[0].1 == Reach::Moved);
            let at = names.last().map_or(path, PathBuf::as_path);
            let to = moved.filter_map(|pair| Some(pair[1].0.join(at.strip_prefix(&pair[0].0).ok()?))).next();
            names.extend(to);
        }
        names
    }

    /// `reported`: each path with the time of its last report.
    pub fn missed(&self, reported: &HashMap<PathBuf, u64>) -> Vec<PathBuf> {
        let mut known: HashMap<PathBuf, u64> = HashMap::new();
        for (path, &at) in reported {
            for name in self.names(path, true) {
                let last = known.entry(name).or_default();
                *last = at.max(*last);
            }
        }
        let paths: HashSet<&Path> = self.before.files().chain(self.after.files()).collect();
        let mut missed: Vec<_> =
            paths.into_iter().filter(|path| !self.is_told(path, &known)).map(Path::to_owned).collect();
        missed.sort();
        missed
    }

    fn is_told(&self, path: &Path, known: &HashMap<PathBuf, u64>) -> bool {
        let (before, after) = (self.before.file(path), self.after.file(path));
        if before == after {
            return true;
        }
        let own = self.names(path, false);
        let touched = self.touches(&own).next().is_some();
        if let (Some(before), Some(after)) = (before, after) {
            let same = (before.dev, before.ino) == (after.dev, after.ino);
            if same && !touched && self.linked.contains(&(after.dev, after.ino)) {
                return true;
            }
        }
        // Touched itself: reported itself, and not merely what it leads to.
        let names = if touched { own } else { self.names(path, true) };
        // The last thing done to it counts under the names it has now: not what a symlink once led to.
        let mut now = vec![path.to_owned()];
        now.extend(self.after.names(path, !touched));
        now.extend(self.after.names(path, false));
        let exact = self.touches(&now).filter(|(_, reach, exact)| *exact && (!self.polls || *reach == Reach::File));
        let last = exact.map(|(deed, ..)| deed.at).max().unwrap_or(0);
        if names.iter().any(|name| known.get(name).is_some_and(|&at| at >= last)) {
            return true;
        }
        // By the paths it got with a directory above, or by something above that was moved, removed or re-pointed.
        let later: Vec<_> = names.iter().filter(|_| before.is_some()).flat_map(|name| self.successors(name)).collect();
        if later.iter().any(|name| known.contains_key(name)) {
            return true;
        }
        names.iter().chain(&later).flat_map(|name| name.ancestors().skip(1)).any(|above| {
            let known = known.get(above).is_some_and(|&at| at >= last);
            let gone = before.is_some() || above.is_symlink();
            known && gone && self.touches(&self.names(above, false)).next().is_some()
        })
    }

    pub fn phantoms<'a>(&self, reported: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
        let real = |path: &PathBuf| {
            self.before.file(path) != self.after.file(path)
                || self.touches(&self.names(path, true)).next().is_some()
                || path.file_name().is_some_and(|name| name == "fence")
        };
        reported.filter(|path| !real(path)).cloned().collect()
    }
}
