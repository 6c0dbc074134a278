//! Can a file be executed, as far as its bytes tell?

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Why a file cannot be executed. `later`: perhaps it is still being written.
pub(crate) struct Unfit {
    pub(crate) why: String,
    pub(crate) later: bool,
}

/// Why the kernel would refuse to execute a file: an ELF image, all of it, or a script with `#!`.
pub(crate) fn executable(path: &Path) -> Result<(), Unfit> {
    let later = |why: String| Unfit { why, later: true };
    let never = |why: &str| Unfit { why: why.into(), later: false };
    // A build may remove the file before it writes the new one.
    let meta = std::fs::metadata(path)
        .map_err(|e| Unfit { later: e.kind() == io::ErrorKind::NotFound, why: format!("cannot be executed: {e}") })?;
    if !meta.is_file() {
        return Err(never("is not a regular file"));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(later("is not executable (no x-bit)".into()));
    }
    let mut head = Vec::new();
    // A file that may be executed but not read is the kernel's to judge.
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    let read = (&mut file).take(64).read_to_end(&mut head);
    read.map_err(|e| later(format!("cannot be read: {e}")))?;
    match head.as_slice() {
        [] => Err(later("is empty".into())),
        [b'#', b'!', ..] => Ok(()),
        [0x7f, b'E', b'L', b'F', ..] => match elf_end(&mut file, &head) {
            Some(end) if end <= meta.len() => Ok(()),
            Some(end) => Err(later(format!("is truncated: {} of {end} bytes", meta.len()))),
            None => Err(later("is truncated within its headers".into())),
        },
        _ if cfg!(target_vendor = "apple") => Ok(()),
        _ => Err(never("is neither an executable image nor a script with #!")),
    }
}

/// How long an ELF file must be: the end of its section headers, program headers and segments. `None`: shorter than
/// those.
fn elf_end(file: &mut std::fs::File, head: &[u8]) -> Option<u64> {
    let wide = head.get(4)? == &2;
    let little = head.get(5)? == &1;
    let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + len)?;
        let step = |n: u64, b: &u8| n << 8 | u64::from(*b);
        Some(if little { bytes.iter().rev().fold(0, step) } else { bytes.iter().fold(0, step) })
    };
    // Elf64_Ehdr and Elf32_Ehdr, Elf64_Phdr and Elf32_Phdr: elf(5).
    let (word, [phoff, shoff, sizes], [offset, length]) =
        if wide { (8, [32, 40, 54], [8, 32]) } else { (4, [28, 32, 42], [4, 16]) };
    let (phoff, shoff) = (number(head, phoff, word)?, number(head, shoff, word)?);
    let size = |at: usize| number(head, sizes + 2 * at, 2);
    let (phentsize, phnum, shentsize, shnum) = (size(0)?, size(1)?, size(2)?, size(3)?);
    let mut table = Vec::new();
    file.seek(SeekFrom::Start(phoff)).ok()?;
    file.take(phentsize * phnum).read_to_end(&mut table).ok()?;
    let mut end = shoff.saturating_add(shentsize * shnum);
    for segment in 0..phnum as usize {
        let segment = table.get(segment * phentsize as usize..)?;
        let (offset, length) = (number(segment, offset, word)?, number(segment, length, word)?);
        end = end.max(offset.saturating_add(length));
    }
    Some(end)
}
