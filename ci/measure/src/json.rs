//! The lines of `refork watch --json`: `{"ready":true,"t_ns":N}`, then `{"t_ns":N,"paths":["..."]}` a batch, with
//! `"rescan":true` and `"error":"..."` where they apply. Bytes that are not UTF-8 are written as `\udcXX`.

use std::ffi::OsString;
use std::io::Write;
use std::iter::Peekable;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// One line.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    pub ready: bool,
    pub rescan: bool,
    pub t_ns: u64,
    pub paths: Vec<PathBuf>,
    pub error: Option<String>,
}

/// Reads a line; `None` if it is not one of ours.
pub fn parse(line: &[u8]) -> Option<Line> {
    let mut reader = Reader { bytes: line.iter().copied().peekable() };
    let mut parsed = Line::default();
    reader.expect(b'{')?;
    loop {
        let key = reader.string()?;
        reader.expect(b':')?;
        match key.as_slice() {
            b"ready" => parsed.ready = reader.word()? == b"true",
            b"rescan" => parsed.rescan = reader.word()? == b"true",
            b"t_ns" => parsed.t_ns = String::from_utf8(reader.word()?).ok()?.parse().ok()?,
            b"error" => parsed.error = Some(String::from_utf8_lossy(&reader.string()?).into_owned()),
            b"paths" => parsed.paths = reader.paths()?,
            _ => return None,
        }
        match reader.next()? {
            b',' => {}
            b'}' => return reader.next().is_none().then_some(parsed),
            _ => return None,
        }
    }
}

struct Reader<I: Iterator<Item = u8>> {
    bytes: Peekable<I>,
}

impl<I: Iterator<Item = u8>> Reader<I> {
    /// The next byte that is not white space.
    fn next(&mut self) -> Option<u8> {
        self.peek()?;
        self.bytes.next()
    }

    fn peek(&mut self) -> Option<u8> {
        while self.bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        self.bytes.peek().copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn word(&mut self) -> Option<Vec<u8>> {
        self.peek()?;
        let mut word = Vec::new();
        while let Some(byte) = self.bytes.next_if(u8::is_ascii_alphanumeric) {
            word.push(byte);
        }
        Some(word)
    }

    fn paths(&mut self) -> Option<Vec<PathBuf>> {
        let mut paths = Vec::new();
        self.expect(b'[')?;
        if self.peek()? == b']' {
            self.next();
            return Some(paths);
        }
        loop {
            paths.push(OsString::from_vec(self.string()?).into());
            match self.next()? {
                b',' => {}
                b']' => return Some(paths),
                _ => return None,
            }
        }
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            match self.bytes.next()? {
                b'"' => return Some(text),
                b'\\' => match self.bytes.next()? {
                    b'n' => text.push(b'\n'),
                    b't' => text.push(b'\t'),
                    b'r' => text.push(b'\r'),
                    b'b' => text.push(8),
                    b'f' => text.push(12),
                    b'u' => match self.unit()? {
                        raw @ 0xdc80..=0xdcff => text.push(raw as u8),
                        high @ 0xd800..=0xdbff => {
                            (self.bytes.next()? == b'\\' && self.bytes.next()? == b'u').then_some(())?;
                            let low = self.unit()?.checked_sub(0xdc00)?;
                            push(&mut text, 0x10000 + ((high - 0xd800) << 10) + low)?;
                        }
                        other => push(&mut text, other)?,
                    },
                    other => text.push(other),
                },
                other => text.push(other),
            }
        }
    }

    fn unit(&mut self) -> Option<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit * 16 + char::from(self.bytes.next()?).to_digit(16)?;
        }
        Some(unit)
    }
}

fn push(text: &mut Vec<u8>, code: u32) -> Option<()> {
    text.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

/// For the peers: says that every watch is armed.
pub fn print_ready() {
    say(format!("{{\"ready\":true,\"t_ns\":{}}}\n", crate::now_ns()).as_bytes());
}

/// For the peers: prints a batch. The trees of the measurements have plain names, so nothing is escaped.
pub fn print_batch<'a>(paths: impl Iterator<Item = &'a PathBuf>) {
    let mut line = format!("{{\"t_ns\":{},\"paths\":[", crate::now_ns()).into_bytes();
    for (n, path) in paths.enumerate() {
        line.extend_from_slice(if n == 0 { b"\"" } else { b",\"" });
        line.extend_from_slice(path.as_os_str().as_bytes());
        line.push(b'"');
    }
    line.extend_from_slice(b"]}\n");
    say(&line);
}

fn say(line: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line); // nobody listens any more: we are about to be ended
    let _ = out.flush();
}

#[test]
fn lines() {
    let ready = Line { ready: true, t_ns: 7, ..Line::default() };
    assert_eq!(parse(b"{\"ready\":true,\"t_ns\":7}"), Some(ready));
    let odd = parse(br#"{"t_ns":9,"rescan":true,"paths":["a\"\n","\udcff\u00e9\ud83d\ude00","\u000b"],"error":"x"}"#);
    let names: [&[u8]; 3] = [b"a\"\n", b"\xff\xc3\xa9\xf0\x9f\x98\x80", b"\x0b"];
    let paths = names.iter().map(|name| OsString::from_vec(name.to_vec()).into()).collect();
    let expected = Line { ready: false, rescan: true, t_ns: 9, paths, error: Some("x".to_owned()) };
    assert_eq!(odd, Some(expected));
    assert_eq!(parse(b"{\"t_ns\":1,\"paths\":[]}").map(|line| line.paths.len()), Some(0));
    for bad in ["", "{", "{}", "{\"t_ns\":1", "{\"paths\":[\"a\"", "{\"t_ns\":1} x", "{\"error\":\"\\ud8", "ready"] {
        assert_eq!(parse(bad.as_bytes()), None, "{bad}");
    }
}
