//! Bytes of strangers as text: one line for people, JSON for programs.

use std::fmt::Write;
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

/// For a terminal: control characters as Rust writes them (`\n`, `\u{1b}`), bytes that are not UTF-8 as `\xXX`.
pub(crate) fn line(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    each(bytes, |c| match c {
        Ok(c) if c.is_control() => text.extend(c.escape_default()),
        Ok(c) => text.push(c),
        Err(byte) => drop(write!(text, "\\x{byte:02x}")),
    });
    text
}

/// The paths of a batch in one line.
pub(crate) fn lines(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| line(path.as_os_str().as_bytes())).collect();
    paths.join(" ") + "\n"
}

/// A JSON string. Bytes that are not UTF-8 become `\udcXX`, as Python's surrogateescape writes and reads them.
fn string(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    each(bytes, |c| match c {
        Ok(c @ ('"' | '\\')) => text.extend(['\\', c]),
        Ok(c) if c.is_control() => drop(write!(text, "\\u{:04x}", u32::from(c))),
        Ok(c) => text.push(c),
        Err(byte) => drop(write!(text, "\\udc{byte:02x}")),
    });
    text.push('"');
    text
}

/// `{"ready":true,"t_ns":N}`
pub(crate) fn json_ready(t_ns: u128) -> String {
    format!("{{\"ready\":true,\"t_ns\":{t_ns}}}\n")
}

/// `{"t_ns":N,"paths":["..."]}`, with `"rescan":true` and `"error":"..."` where there is something to tell.
pub(crate) fn json(t_ns: u128, paths: &[PathBuf], rescan: bool, error: Option<&str>) -> String {
    let paths: Vec<String> = paths.iter().map(|path| string(path.as_os_str().as_bytes())).collect();
    let rescan = if rescan { ",\"rescan\":true" } else { "" };
    let error = error.map_or(String::new(), |error| format!(",\"error\":{}", string(error.as_bytes())));
    format!("{{\"t_ns\":{t_ns},\"paths\":[{}]{rescan}{error}}}\n", paths.join(","))
}
