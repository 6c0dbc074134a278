//! The tree as it is: every path that leads to a file, through symlinks too, and what it was found to be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What makes two looks at a file differ.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub modified_ns: i128,
    pub changed_ns: i128,
}

/// What a path leads to.
pub struct Seen {
    /// The same place without symlinks.
    pub real: PathBuf,
    /// `None`: a directory, or nowhere.
    pub state: Option<State>,
}

#[derive(Default)]
pub struct Tree(BTreeMap<PathBuf, Seen>);

impl Tree {
    pub fn read(root: &Path) -> Tree {
        let mut tree = Tree::default();
        tree.enter(root.to_owned(), root.to_owned(), &mut Vec::new());
        tree
    }

    /// `above`: the directories on the way here; a symlink to one of them is a loop and ends.
    fn enter(&mut self, path: PathBuf, real: PathBuf, above: &mut Vec<(u64, u64)>) {
        let (Ok(about), Ok(list)) = (fs::metadata(&path), fs::read_dir(&path)) else { return };
        let identity = (about.dev(), about.ino());
        if above.contains(&identity) {
            return;
        }
        above.push(identity);
        for entry in list.flatten() {
            let path = entry.path();
            let Ok(about) = fs::metadata(&path) else {
                if let Ok(target) = fs::read_link(&path) {
                    let real = real.join(target); // leads nowhere, now
                    self.0.insert(path, Seen { real, state: None });
                }
                continue;
            };
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let Ok(real) = (if is_link { fs::canonicalize(&path) } else { Ok(real.join(entry.file_name())) }) else {
                continue;
            };
            if about.is_dir() {
                self.enter(path, real, above);
            } else {
                let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
                let state = State {
                    dev: about.dev(),
                    ino: about.ino(),
                    size: about.size(),
                    modified_ns: ns(about.mtime(), about.mtime_nsec()),
                    changed_ns: ns(about.ctime(), about.ctime_nsec()),
                };
                self.0.insert(path, Seen { real, state: Some(state) });
            }
        }
        above.pop();
        self.0.insert(path, Seen { real, state: None });
    }

    pub fn file(&self, path: &Path) -> Option<&State> {
        self.0.get(path)?.state.as_ref()
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter(|(_, seen)| seen.state.is_some()).map(|(path, _)| path.as_path())
    }

    /// The other names of a path: for each ancestor that is known, the place it leads to and the rest. `itself`: the
    /// path's own last component may be a symlink that is followed too.
    pub fn names<'a>(&'a self, path: &'a Path, itself: bool) -> impl Iterator<Item = PathBuf> + 'a {
        path.ancestors().skip(usize::from(!itself)).filter_map(|above| {
            let real = &self.0.get(above)?.real;
            let rest = path.strip_prefix(above).ok()?;
            Some(if rest.as_os_str().is_empty() { real.clone() } else { real.join(rest) })
        })
    }
}
