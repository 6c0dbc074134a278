//! Which names decide what a path means: names are watched, not inodes.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// More symbolic links than this in one path are a loop, as for the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Each directory entry whose replacement makes `path` mean something else: every symbolic link on the way, the last
/// component, or the first that does not exist. The directories named are free of links.
///
/// An empty name stands for the directory itself: one on the way, which may be moved. Its own watch tells of that, so
/// that nobody need hear of everything that happens beside it.
pub(crate) fn hops(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut todo: Vec<OsString> = Vec::new();
    push(&mut todo, path);
    let (mut here, mut hops, mut links) = (PathBuf::new(), Vec::new(), 0);
    while let Some(part) = todo.pop() {
        if part == "/" || part == ".." {
            here.push(part);
            continue;
        }
        let full = here.join(&part);
        let dir = || if here.as_os_str().is_empty() { PathBuf::from(".") } else { here.clone() };
        match std::fs::symlink_metadata(&full) {
            Ok(meta) if meta.file_type().is_symlink() => {
                hops.push((dir(), part));
                links += 1;
                let Some(target) = std::fs::read_link(&full).ok().filter(|_| links <= MOST_LINKS) else { break };
                push(&mut todo, &target);
            }
            Ok(_) => {
                match todo.is_empty() {
                    true => hops.push((dir(), part)),
                    false => hops.push((full.clone(), OsString::new())),
                }
                here = full;
            }
            Err(_) => {
                hops.push((dir(), part));
                break;
            }
        }
    }
    hops
}

/// The components, last first.
fn push(todo: &mut Vec<OsString>, path: &Path) {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let at = todo.len();
    todo.extend(parts.map(|part| part.as_os_str().to_owned()));
    todo[at..].reverse();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_the_last_name_and_the_first_that_is_missing() {
        let base = std::env::temp_dir().canonicalize().unwrap().join(format!("refork-hops-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("releases/5/app")).unwrap();
        symlink("releases/5", base.join("current")).unwrap();
        symlink(base.join("current"), base.join("abs")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        let names = |path: &str| {
            let mut hops = hops(&base.join(path));
            hops.retain(|(dir, name)| {
                !name.is_empty() || dir.strip_prefix(&base).is_ok_and(|dir| dir != Path::new(""))
            });
            let short = |(dir, name): &(PathBuf, OsString)| {
                let dir = dir.strip_prefix(&base).map_or("?".into(), |dir| dir.display().to_string());
                format!("{dir}:{}", name.to_string_lossy())
            };
            hops.iter().map(short).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names("releases/5"), "releases: releases:5");
        assert_eq!(names("current/app"), ":current releases: releases/5: releases/5:app");
        assert_eq!(names("abs/app/none/x"), ":abs :current releases: releases/5: releases/5/app: releases/5/app:none");
        assert_eq!(names("current"), ":current releases: releases:5");
        assert!(names("loop/x").starts_with(":loop"));
        assert_eq!(hops(Path::new("no/thing")), [(PathBuf::from("."), OsString::from("no"))]);
        std::fs::remove_dir_all(&base).unwrap();
    }
}
