//! The kernel's records in a byte buffer, read by safe code: inotify(7) events and getdents64(2) entries.
//!
//! Both parsers are total: a truncated or random buffer ends the iteration, it never panics and never loops.

use super::dir::Kind;

/// One inotify event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) wd: i32,
    pub(crate) mask: u32,
    /// Empty when the watched directory itself is meant.
    pub(crate) name: &'a [u8],
}

/// `struct inotify_event`: wd, mask, cookie, length of the name, name padded with NULs.
pub(crate) struct Events<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let word = |at: usize| Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?));
        let (wd, mask, len) = (word(0)? as i32, word(4)?, word(12)? as usize);
        let name = self.0.get(16..16usize.checked_add(len)?)?;
        self.0 = &self.0[16 + len..];
        Some(Event { wd, mask, name: until_nul(name) })
    }
}

/// `struct linux_dirent64`: inode, offset, length of the record, kind, name with NUL. `.` and `..` are left out.
pub(crate) struct Entries<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Kind);

    fn next(&mut self) -> Option<(&'a [u8], Kind)> {
        loop {
            let len = usize::from(u16::from_ne_bytes(self.0.get(16..18)?.try_into().ok()?));
            let record = self.0.get(..len)?;
            let name = until_nul(record.get(19..)?);
            let kind = match record[18] {
                4 => Kind::Dir,
                10 => Kind::Link,
                0 => Kind::Unknown,
                _ => Kind::Other,
            };
            self.0 = &self.0[len..];
            if name != b"." && name != b".." {
                return Some((name, kind));
            }
        }
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}
