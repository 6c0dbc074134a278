//! The tree that is watched, and what is done to it.
//!
//! Every directory has up to ten subdirectories, so nine in ten are leaves, as in a source tree with its dependencies;
//! every directory holds ten files.

use measure::{now_ns, Random};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub const FILES_EACH: usize = 10;

pub struct Tree {
    pub root: PathBuf,
    pub dirs: Vec<PathBuf>,
}

/// A file system that keeps the disk out of the figures, where there is one.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match std::env::var_os("BENCH_DIR") {
        Some(dir) => dir.into(),
        None if memory.is_dir() => memory.to_owned(),
        None => std::env::temp_dir(),
    }
}

impl Tree {
    pub fn build(count: usize) -> io::Result<Tree> {
        let root = place().join(format!("refork-bench-{}", std::process::id())).join("tree");
        let mut tree = Tree { dirs: vec![root.clone()], root };
        for n in 1..count {
            tree.dirs.push(tree.dirs[(n - 1) / 10].join(format!("package_{}", (n - 1) % 10)));
        }
        for dir in &tree.dirs {
            fs::create_dir_all(dir)?;
            for n in 0..FILES_EACH {
                fs::write(dir.join(format!("module_{n}.py")), "import os\n")?;
            }
        }
        Ok(tree)
    }

    /// A tree without anything in it, beside ours.
    pub fn empty(&self) -> io::Result<PathBuf> {
        let empty = self.root.with_file_name("empty");
        fs::create_dir_all(&empty)?;
        Ok(empty)
    }

    /// One new file in every directory.
    pub fn fill(&self) -> io::Result<HashSet<PathBuf>> {
        let made: HashSet<_> = self.dirs.iter().map(|dir| dir.join("new.py")).collect();
        for dir in &self.dirs {
            fs::write(dir.join("new.py"), "import sys\n")?;
        }
        Ok(made)
    }

    /// As many new files, ten in each chain of three directories made an instant before.
    pub fn check_out(&self) -> io::Result<HashSet<PathBuf>> {
        let mut made = HashSet::new();
        for n in 0..self.dirs.len() / 10 {
            let top = self.root.join(format!("checkout/{}/library_{n}", n % 10));
            fs::create_dir_all(top.join("a/b"))?;
            for k in 0..10 {
                let file = top.join(["", "a", "a/b", "a/b"][k % 4]).join(format!("module_{k}.py"));
                fs::write(&file, "import sys\n")?;
                made.insert(file);
            }
        }
        Ok(made)
    }

    /// Takes back what `fill` and `check_out` did.
    pub fn clean(&self) -> io::Result<()> {
        for dir in &self.dirs {
            let _ = fs::remove_file(dir.join("new.py")); // not there: not filled
        }
        match fs::remove_dir_all(self.root.join("checkout")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Saves one file, aside with a rename or in place. Returns it and the times just before the first and before the
    /// last system call that changes it.
    pub fn save(&self, random: &mut Random, aside: bool) -> io::Result<(PathBuf, u64, u64)> {
        let dir = &self.dirs[random.below(self.dirs.len())];
        let file = dir.join(format!("module_{}.py", random.below(FILES_EACH)));
        if aside {
            let other = dir.join(".save.tmp");
            fs::write(&other, "import io\n")?;
            let at = now_ns();
            fs::rename(&other, &file)?;
            return Ok((file, at, at));
        }
        let mut open = File::options().write(true).open(&file)?;
        let first = now_ns();
        open.write_all(b"import in\n")?;
        let last = now_ns();
        drop(open);
        Ok((file, first, last))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(all) = self.root.parent() {
            let _ = fs::remove_dir_all(all); // at the end: nothing more can be done about it
        }
    }
}
