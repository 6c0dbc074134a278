//! Which files count, and which directories are worth a watch.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Source files, by their suffix.
const SUFFIXES: [&str; 24] = [
    "py", "rs", "c", "h", "cc", "cpp", "hpp", "go", "js", "mjs", "cjs", "ts", "mts", "jsx", "tsx", "rb", "php", "lua",
    "pl", "sh", "java", "kt", "ex", "exs",
];
const MORE_SUFFIXES: [&str; 1] = ["erl"];

/// Directories that hold what is made from sources, or a VCS's own; hidden ones are left out anyway.
const PRUNED: [&str; 6] = ["__pycache__", "node_modules", "target", "site-packages", "CVS", "_darcs"];

/// Files that only an editor wants, and only for a moment.
const DROPPINGS: [&str; 6] = ["~", ".swp", ".swx", ".tmp", "___jb_old___", "___jb_tmp___"];

/// A user's own decision.
pub(crate) type Own = Box<dyn Fn(&Path) -> bool + Send>;

/// Decides by names alone; never asks the disk.
#[derive(Default)]
pub(crate) struct Filter {
    pub(crate) include: Vec<Glob>,
    pub(crate) exclude: Vec<Glob>,
    pub(crate) own: Option<Own>,
}

impl Filter {
    /// Does a change of this file count? `inner` is where the part below the watched root begins.
    pub(crate) fn counts(&self, path: &[u8], inner: usize) -> bool {
        let below = &path[inner.min(path.len())..];
        if self.exclude.iter().any(|glob| glob.matches(below)) {
            return false;
        }
        if let Some(own) = &self.own {
            return own(Path::new(OsStr::from_bytes(path)));
        }
        let name = name(path);
        if is_dropping(name) {
            return false;
        }
        match self.include.is_empty() {
            true => !name.starts_with(b".") && has_suffix(name),
            false => self.include.iter().any(|glob| glob.matches(below)),
        }
    }

    /// Is this directory left out, with all that is in it?
    pub(crate) fn prunes(&self, path: &[u8], inner: usize) -> bool {
        if self.exclude.iter().any(|glob| glob.matches(&path[inner.min(path.len())..])) {
            return true;
        }
        let name = name(path);
        self.own.is_none() && (name.starts_with(b".") || PRUNED.iter().any(|pruned| pruned.as_bytes() == name))
    }
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn has_suffix(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return false };
    let suffix = &name[dot + 1..];
    SUFFIXES.iter().chain(&MORE_SUFFIXES).any(|known| known.as_bytes() == suffix)
}

/// `4913` and its successors are vim's test whether a directory can be written to.
fn is_dropping(name: &[u8]) -> bool {
    DROPPINGS.iter().any(|end| name.ends_with(end.as_bytes()))
        || name.starts_with(b".#")
        || name.starts_with(b"#") && name.ends_with(b"#")
        || name.len() >= 4 && name.iter().all(u8::is_ascii_digit)
}

/// A pattern: `*` and `?` within a name, `**` for any number of directories. Without a `/` it is matched with the name alone,
/// wherever the file is; with one, with the path below the watched root. As in a shell, `*` and `?` do not match a leading dot.
#[derive(Clone, Debug)]
pub(crate) struct Glob(Vec<Box<[u8]>>);

impl Glob {
    pub(crate) fn new(pattern: &str) -> Glob {
        let parts = pattern.split('/').filter(|part| !part.is_empty() && *part != ".");
        let mut parts: Vec<Box<[u8]>> = parts.map(|part| part.as_bytes().into()).collect();
        if !pattern.trim_end_matches('/').contains('/') {
            parts.insert(0, b"**".as_slice().into());
        }
        Glob(parts)
    }

    fn matches(&self, below: &[u8]) -> bool {
        let parts: Vec<&[u8]> = below.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        wild(&self.0, &parts, |part| part.as_ref() == b"**", |part, text| name_matches(part, text))
    }
}

fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let hidden = name.starts_with(b".") && !pattern.starts_with(b".");
    !hidden && wild(pattern, name, |byte| *byte == b'*', |byte, is| *byte == b'?' || byte == is)
}

/// Matches with a wildcard that stands for any number of elements. Remembers the last wildcard only, which is enough.
fn wild<P, T>(pattern: &[P], text: &[T], is_star: impl Fn(&P) -> bool, one: impl Fn(&P, &T) -> bool) -> bool {
    let (mut p, mut t, mut back) = (0, 0, None);
    loop {
        match (pattern.get(p), text.get(t)) {
            (Some(star), _) if is_star(star) => {
                back = Some((p + 1, t));
                p += 1;
            }
            (Some(part), Some(is)) if one(part, is) => (p, t) = (p + 1, t + 1),
            (None, None) => return true,
            // The last star takes one more.
            _ => match back {
                Some((after, from)) if from < text.len() => {
                    back = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let globs = |list: &[&str]| list.iter().map(|glob| Glob::new(glob)).collect();
        Filter { include: globs(include), exclude: globs(exclude), own: None }
    }

    #[test]
    fn files() {
        // What is included, what is excluded, a path below the root, does it count?
        let rows: &[(&[&str], &[&str], &str, bool)] = &[
            (&[], &[], "app.py", true),
            (&[], &[], "a/b/main.rs", true),
            (&[], &[], "x.exs", true),
            (&[], &[], "x.erl", true),
            (&[], &[], "app.pyc", false),
            (&[], &[], "py", false),
            (&[], &[], "app.log", false),
            (&[], &[], ".app.py", false),
            (&[], &[], ".#app.py", false),
            (&[], &[], "app.py~", false),
            (&[], &[], "4913", false),
            (&["*.html"], &[], "app.py", false),
            (&["*.html"], &[], "t/index.html", true),
            (&["*"], &[], "anything", true),
            (&["*"], &[], ".hidden", false),
            (&["*"], &[], "49133", false),
            (&["*"], &[], "123", true),
            (&["*"], &[], "#x#", false),
            (&["*"], &[], "x.swp", false),
            (&[".env"], &[], ".env", true),
            (&["*.py"], &["test_*"], "a/test_x.py", false),
            (&[], &["migrations"], "a/migrations", false),
            (&["src/*.py"], &[], "src/a.py", true),
            (&["src/*.py"], &[], "src/b/a.py", false),
            (&["src/*.py"], &[], "x/src/a.py", false),
            (&["src/**/*.py"], &[], "src/a.py", true),
            (&["src/**/*.py"], &[], "src/b/c/a.py", true),
            (&["**/b/?.py"], &[], "x/b/a.py", true),
            (&["**/b/?.py"], &[], "x/b/aa.py", false),
            (&["a*b*c"], &[], "axxbxxbc", true),
            (&["a*b*c"], &[], "axxbxxb", false),
            (&["**"], &[], "a/b", true),
            (&["./src/*"], &[], "src/x", true),
        ];
        for (include, exclude, path, counts) in rows {
            let root = format!("/root/{path}");
            assert_eq!(filter(include, exclude).counts(root.as_bytes(), 6), *counts, "{include:?} {exclude:?} {path}");
        }
    }

    #[test]
    fn directories() {
        let rows: &[(&[&str], &str, bool)] = &[
            (&[], "src", false),
            (&[], "a/.git", true),
            (&[], "node_modules", true),
            (&[], "a/target", true),
            (&[], "targets", false),
            (&["build"], "a/build", true),
            (&["a/build/"], "a/build", true),
            (&["a/build"], "b/build", false),
            (&["gen/**"], "gen/x", true),
        ];
        for (exclude, path, pruned) in rows {
            assert_eq!(filter(&[], exclude).prunes(path.as_bytes(), 0), *pruned, "{exclude:?} {path}");
        }
        let own = Filter { own: Some(Box::new(|path| path.ends_with("x"))), ..filter(&[], &["a"]) };
        assert!(!own.prunes(b".git", 0) && own.prunes(b"a", 0));
        assert!(own.counts(b"r/x", 0) && !own.counts(b"r/y", 0));
    }
}
