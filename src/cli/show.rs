//! Bytes of strangers as text: one line for people, JSON for programs.

use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Characters, and each byte that belongs to none.
fn each(mut bytes: &[u8], mut put: impl FnMut(Result<char, u8>)) {
    while !bytes.is_empty() {
        let valid = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        };
        valid.chars().for_each(|c| put(Ok(c)));
        bytes = &bytes[valid.len()..];
        if let Some((byte, rest)) = bytes.split_first() {
            put(Err(*byte));
            bytes = rest;
        }
    }
}

/// Nothing in it needs a second look, as in nearly all paths.
fn plain(bytes: &[u8]) -> Option<&str> {
    let plain = |byte: &u8| (b' '..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
    std::str::from_utf8(bytes).ok().filter(|_| bytes.iter().all(plain))
}

/// For a terminal: control characters as Rust writes them (`\n`, `\u{1b}`), bytes that are not UTF-8 as `\xXX`.
pub(crate) fn line(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    add_line(&mut text, bytes);
    text
}

fn add_line(text: &mut String, bytes: &[u8]) {
    if let Some(plain) = plain(bytes) {
        return text.push_str(plain);
    }
    each(bytes, |c| match c {
        Ok(c) if c.is_control() => text.extend(c.escape_default()),
        Ok(c) => text.push(c),
        Err(byte) => drop(write!(text, "\\x{byte:02x}")),
    });
}

/// Where lines go. That of a large batch comes in pieces, and takes no memory that matters.
pub(crate) type Put<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;
const PIECE: usize = 64 * 1024;

/// `text` and the paths, as far as they are not put yet.
fn all(
    put: Put<'_>,
    mut text: String,
    paths: &[PathBuf],
    between: char,
    add: fn(&mut String, &[u8]),
) -> io::Result<String> {
    for (i, path) in paths.iter().enumerate() {
        if i > 0 {
            text.push(between);
        }
        add(&mut text, path.as_os_str().as_bytes());
        if text.len() >= PIECE {
            put(&text)?;
            text.clear();
        }
    }
    Ok(text)
}

/// The paths of a batch in one line.
pub(crate) fn lines(put: Put<'_>, paths: &[PathBuf]) -> io::Result<()> {
    let text = all(put, String::new(), paths, ' ', add_line)?;
    put(&(text + "\n"))
}

/// A JSON string. Bytes that are not UTF-8 become `\udcXX`, as Python's surrogateescape writes and reads them.
fn string(text: &mut String, bytes: &[u8]) {
    text.push('"');
    if let Some(plain) = plain(bytes) {
        text.push_str(plain);
        return text.push('"');
    }
    each(bytes, |c| match c {
        Ok(c @ ('"' | '\\')) => text.extend(['\\', c]),
        Ok(c) if c.is_control() => drop(write!(text, "\\u{:04x}", u32::from(c))),
        Ok(c) => text.push(c),
        Err(byte) => drop(write!(text, "\\udc{byte:02x}")),
    });
    text.push('"');
}

/// `{"ready":true,"t_ns":N}`
pub(crate) fn json_ready(t_ns: u128) -> String {
    format!("{{\"ready\":true,\"t_ns\":{t_ns}}}\n")
}

/// `{"t_ns":N,"paths":["..."]}`, with `"rescan":true` and `"error":"..."` where there is something to tell.
pub(crate) fn json(put: Put<'_>, t_ns: u128, paths: &[PathBuf], rescan: bool, error: Option<&str>) -> io::Result<()> {
    let mut text = all(put, format!("{{\"t_ns\":{t_ns},\"paths\":["), paths, ',', string)?;
    text.push(']');
    if rescan {
        text.push_str(",\"rescan\":true");
    }
    if let Some(error) = error {
        text.push_str(",\"error\":");
        string(&mut text, error.as_bytes());
    }
    text.push_str("}\n");
    put(&text)
}
