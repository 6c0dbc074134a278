//! The operations: what is done to the tree, and which paths each one touched. Chosen by the generator from the tree
//! as it is, so that a seed always gives the same ones.

use crate::files::{exchange, find, Found};
use measure::{now_ns, Random};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reach {
    File,
    Link,
    /// A directory and all below.
    Whole,
    /// The same, and the next path touched is where it went.
    Moved,
}

#[derive(Clone, Debug)]
pub struct Deed {
    /// Just before it, CLOCK_MONOTONIC ns.
    pub at: u64,
    pub text: &'static str,
    pub touched: Vec<(PathBuf, Reach)>,
}

/// What was done, and to what.
type Done = (&'static str, Vec<(PathBuf, Reach)>);

/// The watched tree, and what lies beside it.
pub struct Place {
    pub root: PathBuf,
    /// Where symlinks lead that leave the tree.
    outside: PathBuf,
    /// Where directories go that are moved out.
    parked: PathBuf,
    random: Random,
    count: usize,
    /// Files that ever had two names: what is done through one says nothing about the other.
    pub linked: HashSet<(u64, u64)>,
}

use Reach::{File as AFile, Link, Moved, Whole};

impl Place {
    pub fn new(top: &Path, seed: u64) -> io::Result<Place> {
        let [root, outside, parked] = ["tree", "outside", "parked"].map(|name| top.join(name));
        for dir in [&root, &outside.join("dir"), &parked] {
            fs::create_dir_all(dir)?;
        }
        for name in ["one", "two", "dir/three"] {
            fs::write(outside.join(name), "outside\n")?;
        }
        let mut place = Place { root, outside, parked, random: Random::new(seed), count: 0, linked: HashSet::new() };
        for _ in 0..6 {
            place.deep(&place.root.clone())?;
        }
        Ok(place)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        Some(from[self.below(from.len())].clone())
    }

    fn name(&mut self, dir: &Path, stem: &str) -> PathBuf {
        self.count += 1;
        let mut name = format!("{stem}{}", self.count).into_bytes();
        let odd: [&[u8]; 4] = [b"\n", b"\xff", b"\"\\", "é\u{1f600}".as_bytes()];
        match self.below(40) {
            n @ 0..=3 => name.extend_from_slice(odd[n]),
            4 => name.insert(0, b'.'),
            _ => {}
        }
        dir.join(OsString::from_vec(name))
    }

    /// Directories in each other, with files in each at once.
    fn deep(&mut self, dir: &Path) -> io::Result<PathBuf> {
        let top = self.name(dir, "d");
        let mut levels = vec![top.clone()];
        for _ in 0..self.below(4) {
            let next = self.name(&levels[levels.len() - 1], "d");
            levels.push(next);
        }
        fs::create_dir_all(&levels[levels.len() - 1])?;
        for level in levels {
            for _ in 0..self.below(4) {
                fs::write(self.name(&level, "f"), "new\n")?;
            }
        }
        Ok(top)
    }

    /// One operation; `None`: nothing to do it to. An error is the file system's, and the end.
    pub fn deed(&mut self) -> io::Result<Option<Deed>> {
        let mut found = Found::default();
        find(&self.root, &mut found);
        let choice = match found.files.len() {
            0..=20 => [0, 5, 9][self.below(3)],
            250.. => [6, 8, 16][self.below(3)],
            _ => self.below(26),
        };
        let at = now_ns();
        let done = self.perform(choice, &found)?;
        Ok(done.map(|(text, touched)| Deed { at, text, touched }))
    }

    fn perform(&mut self, choice: usize, found: &Found) -> io::Result<Option<Done>> {
        let Found { files, dirs, links } = found;
        let dir = self.pick(dirs).unwrap_or_else(|| self.root.clone());
        let below = self.pick(&dirs[1..]); // any directory but the root
        let file = self.pick(files).unwrap_or_else(|| dir.join("none"));
        let one = |text, path: PathBuf, reach| Ok(Some((text, vec![(path, reach)])));
        match choice {
            0 => {
                let new = self.name(&dir, "f");
                fs::write(&new, "new\n")?;
                one("create", new, AFile)
            }
            1 => {
                let mut open = File::options().write(true).open(&file)?;
                open.seek(SeekFrom::Start(1))?;
                open.write_all(b"in place\n")?;
                one("write in place", file, AFile)
            }
            2 => {
                fs::write(&file, format!("truncated {}\n", self.count))?;
                one("truncate and write", file, AFile)
            }
            3 => {
                let aside = self.name(file.parent().unwrap_or(&dir), "aside");
                fs::write(&aside, "aside\n")?;
                fs::rename(&aside, &file)?;
                Ok(Some(("write aside and rename", vec![(file, AFile), (aside, AFile)])))
            }
            4 => {
                File::options().append(true).open(&file)?.write_all(b"more\n")?;
                one("append", file, AFile)
            }
            5 => one("directories with files", self.deep(&dir)?, Whole),
            6 => {
                let Some(gone) = below else { return Ok(None) };
                fs::remove_dir_all(&gone)?;
                one("remove a directory", gone, Whole)
            }
            7 => {
                let to = if self.below(3) == 0 { self.pick(files) } else { Some(self.name(&dir, "r")) };
                let to = to.unwrap_or_else(|| dir.join("r"));
                if fs::metadata(&to).is_ok_and(|about| Some(about.ino()) == fs::metadata(&file).ok().map(|a| a.ino())) {
                    return Ok(None); // two names of one file: rename(2) does nothing
                }
                fs::rename(&file, &to)?;
                Ok(Some(("rename a file", vec![(file, AFile), (to, AFile)])))
            }
            8 => {
                let Some(gone) = below else { return Ok(None) };
                let to = self.name(&self.parked.clone(), "p");
                fs::rename(&gone, &to)?;
                Ok(Some(("move a directory out", vec![(gone, Moved), (to, Whole)])))
            }
            9 => {
                let mut parked: Vec<_> = fs::read_dir(&self.parked)?.flatten().map(|entry| entry.path()).collect();
                parked.sort();
                let Some(from) = self.pick(&parked) else { return Ok(None) };
                let to = self.name(&dir, "d");
                fs::rename(&from, &to)?;
                Ok(Some(("move a directory in", vec![(from, Moved), (to, Whole)])))
            }
            10 => {
                let Some(from) = below else { return Ok(None) };
                if dir.starts_with(&from) {
                    return Ok(None);
                }
                let to = self.name(&dir, "d");
                fs::rename(&from, &to)?;
                Ok(Some(("rename a directory", vec![(from, Moved), (to, Whole)])))
            }
            11 => {
                let link = self.name(&dir, "l");
                let target = self.target_file(&file);
                symlink(target, &link)?;
                one("symlink to a file", link, Link)
            }
            12 => {
                if links.iter().filter(|link| link.is_dir()).count() >= 4 {
                    return Ok(None);
                }
                let link = self.name(&dir, "l");
                let target = self.target_dir(dirs);
                symlink(target, &link)?;
                one("symlink to a directory", link, Whole)
            }
            13 => {
                let Some(link) = self.pick(links) else { return Ok(None) };
                let target = if link.is_dir() { self.target_dir(dirs) } else { self.target_file(&file) };
                if fs::read_link(&link)? == target {
                    return Ok(None);
                }
                if self.below(2) == 0 {
                    fs::remove_file(&link)?;
                    symlink(target, &link)?;
                    return one("re-point a symlink", link, Whole);
                }
                let aside = self.name(link.parent().unwrap_or(&dir), "aside");
                symlink(target, &aside)?;
                fs::rename(&aside, &link)?;
                Ok(Some(("re-point a symlink by rename", vec![(link, Whole), (aside, Whole)])))
            }
            14 => {
                let new = self.name(&dir, "h");
                fs::hard_link(&file, &new)?;
                let about = fs::metadata(&new)?;
                self.linked.insert((about.dev(), about.ino()));
                one("hard link", new, AFile)
            }
            15 => {
                let mode = fs::metadata(&file)?.permissions().mode() ^ 0o040;
                fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
                one("chmod", file, AFile)
            }
            16 => {
                fs::remove_file(&file)?;
                one("delete", file, AFile)
            }
            17 => {
                fs::remove_file(&file)?;
                fs::write(&file, "again\n")?;
                one("delete and re-create", file, AFile)
            }
            18 => {
                let all: Vec<PathBuf> = files.iter().chain(&dirs[1..]).cloned().collect();
                let (Some(a), Some(b)) = (self.pick(&all), self.pick(&all)) else { return Ok(None) };
                if a.starts_with(&b) || b.starts_with(&a) || fs::metadata(&a)?.ino() == fs::metadata(&b)?.ino() {
                    return Ok(None);
                }
                // Either may be the directory, so that each path had or has something below it.
                let (there, back) = if a.is_dir() || b.is_dir() { (Moved, Whole) } else { (AFile, AFile) };
                exchange(&a, &b)?;
                Ok(Some(("exchange", vec![(a.clone(), there), (b.clone(), back), (b, there), (a, back)])))
            }
            19 => {
                let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + self.below(1_000_000) as u64);
                File::options().write(true).open(&file)?.set_times(FileTimes::new().set_modified(past))?;
                one("touch, into the past", file, AFile)
            }
            20 => {
                let about = fs::metadata(&file)?;
                let open = File::options().write(true).open(&file)?;
                (&open).write_all(&vec![b'='; about.len() as usize])?;
                open.set_times(FileTimes::new().set_modified(about.modified()?))?;
                one("rewrite with the same size and mtime", file, AFile)
            }
            21 => {
                let aside = self.name(file.parent().unwrap_or(&dir), "backup~");
                fs::rename(&file, &aside)?;
                fs::write(&file, "vim\n")?;
                fs::remove_file(&aside)?;
                Ok(Some(("rename aside, write, delete", vec![(file, AFile), (aside, AFile)])))
            }
            22 => {
                for n in 0..20 {
                    fs::write(&file, format!("{n}\n"))?;
                }
                one("twenty saves", file, AFile)
            }
            23 => self.outside_deed(),
            24 => {
                let Some(link) = self.pick(links) else { return Ok(None) };
                fs::remove_file(&link)?;
                one("remove a symlink", link, Whole)
            }
            _ => {
                // Directories that were moved out: the watcher must not hear of them any more.
                let mut parked = Found::default();
                find(&self.parked.clone(), &mut parked);
                let Some(quiet) = self.pick(&parked.dirs) else { return Ok(None) };
                let new = self.name(&quiet, "f");
                fs::write(&new, "unheard\n")?;
                one("write in a directory that was moved out", new, AFile)
            }
        }
    }

    /// Something outside that symlinks may lead to.
    fn outside_deed(&mut self) -> io::Result<Option<Done>> {
        let name = ["one", "two", "dir/three"][self.below(3)];
        let file = self.outside.join(name);
        let text = match self.below(3) {
            0 => {
                let aside = file.with_file_name("aside");
                fs::write(&aside, "aside\n")?;
                fs::rename(&aside, &file)?;
                return Ok(Some(("save outside, by rename", vec![(file, AFile), (aside, AFile)])));
            }
            1 => {
                fs::write(&file, format!("outside {}\n", self.count))?;
                "save outside"
            }
            _ => {
                let new = self.name(&self.outside.join("dir"), "f");
                fs::write(&new, "new\n")?;
                return Ok(Some(("create outside", vec![(new, AFile)])));
            }
        };
        Ok(Some((text, vec![(file, AFile)])))
    }

    fn target_file(&mut self, file: &Path) -> PathBuf {
        match self.below(3) {
            0 => {
                let name = ["one", "two"][self.below(2)];
                self.outside.join(name)
            }
            _ => file.to_owned(),
        }
    }

    fn target_dir(&mut self, dirs: &[PathBuf]) -> PathBuf {
        match self.below(3) {
            0 => self.outside.join("dir"),
            _ => self.pick(dirs).unwrap_or_else(|| self.root.clone()),
        }
    }
}
