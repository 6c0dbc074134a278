//! What one image tells the next: the text of `REFORK_HANDOFF`.
//!
//! `BB_INHERIT_FDS` carries the listeners' numbers and is enough by itself. This token says what the numbers cannot:
//! which address was asked for, who may unlink a Unix socket, which generation and reload this is, what the signal mask
//! was at the first start. It is one line of words:
//!
//! ```text
//! 1 pid=4711 gen=3 reload=2 slots=2 mask=0 ignored=1000 path=/srv/app l=3,web,127.0.0.1:80,bound,
//! l=4,,unix:/run/x,bound,40:77
//! ```
//!
//! The first word is the version; an unknown one makes the start a cold one (the listeners are still adopted). Values
//! are percent-encoded, numbers decimal, masks and identities hexadecimal; a key that is not known is skipped, a value
//! that is not understood makes the whole token malformed. Decoding is total: the text comes from the environment, so
//! from a stranger, and every number in it is checked again by whoever uses it.

use super::snapshot::State;
use super::Moment;
use crate::log::Trigger;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

const VERSION: &str = "1";
const TRIGGERS: [(Trigger, &str); 5] = [
    (Trigger::Start, "start"),
    (Trigger::Change, "change"),
    (Trigger::Pending, "pending"),
    (Trigger::Hup, "hup"),
    (Trigger::Usr2, "usr2"),
];
/// Counters from here on, and more slots than this, are nobody's.
const FAR: u64 = 1 << 62;
const MOST_SLOTS: usize = 1 << 16;

/// Where a listener came from: who may unlink its path, and whether it is kept although nobody asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Bound by this master, in this image or an earlier one.
    #[default]
    Bound,
    /// Made by the user's closure, or adopted by number: closed like the rest, never unlinked.
    Given,
    /// Passed by a service manager (LISTEN_FDS): kept even if no address asks for it.
    Activated,
}

/// A listener that crosses the exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) fd: i32,
    pub(crate) name: String,
    /// The address as it was asked for: port 0 stays 0.
    pub(crate) request: String,
    pub(crate) origin: Origin,
    /// Device and inode of a Unix socket's path.
    pub(crate) node: Option<(u64, u64)>,
}

/// A worker that lives through the exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OldWorker {
    pub(crate) slot: usize,
    pub(crate) pid: i32,
    pub(crate) generation: u64,
    /// Set once it drains.
    pub(crate) kill_at: Option<Moment>,
    /// The master's end of its socketpair.
    pub(crate) channel: i32,
}

/// What the watcher knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// An inotify descriptor with its watches and its queue.
    pub(crate) queue: Option<i32>,
    /// The digest of the last snapshot of what is polled: everything, or what inotify cannot watch.
    pub(crate) digest: Option<u64>,
}

/// Everything that crosses the exec beside the listeners' numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Token {
    /// The master: a stray heir of the environment has another pid.
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    pub(crate) reload: u64,
    /// Slots, as TTIN and TTOU left them.
    pub(crate) slots: usize,
    /// Slots that had been configured when they did.
    pub(crate) configured: usize,
    /// Signal mask and ignored signals of the first start.
    pub(crate) mask: u64,
    pub(crate) ignored: u64,
    /// The image's path, and the state of its file when it was executed.
    pub(crate) path: PathBuf,
    pub(crate) state: Option<State>,
    pub(crate) listeners: Vec<Carried>,
    pub(crate) workers: Vec<OldWorker>,
    /// Other children that were killed and may not have been reaped.
    pub(crate) ended: Vec<i32>,
    pub(crate) watched: Watched,
    /// The last good image, and the identity of one that was bad.
    pub(crate) image: Option<i32>,
    pub(crate) bad: Option<u64>,
    /// A reload was asked for during this one; with a re-exec?
    pub(crate) pending: Option<bool>,
    /// Reloads in a row that the service may have caused itself, and the digest of the path that did.
    pub(crate) repeats: (u32, u64),
    pub(crate) trigger: Trigger,
    /// Why the image that executed this one gave up.
    pub(crate) error: String,
    /// When the stages of this reload began.
    pub(crate) stages: Vec<Moment>,
}

impl Token {
    pub(crate) fn encode(&self) -> String {
        let mut text = format!("{VERSION} pid={} gen={} reload={}", self.pid, self.generation, self.reload);
        let mut put = |key: &str, value: String| text.extend([" ", key, "=", &value]);
        put("slots", format!("{},{}", self.slots, self.configured));
        put("mask", format!("{:x}", self.mask));
        put("ignored", format!("{:x}", self.ignored));
        put("path", escape(self.path.as_os_str().as_bytes()));
        if let Some(state) = self.state {
            put("state", format!("{state:x}"));
        }
        for l in &self.listeners {
            let origin = match l.origin {
                Origin::Bound => "bound",
                Origin::Given => "given",
                Origin::Activated => "activated",
            };
            let node = l.node.map_or(String::new(), |(dev, ino)| format!("{dev:x}:{ino:x}"));
            let (name, request) = (escape(l.name.as_bytes()), escape(l.request.as_bytes()));
            put("l", format!("{},{name},{request},{origin},{node}", l.fd));
        }
        for w in &self.workers {
            let kill_at = w.kill_at.map_or(String::new(), |at| at.as_nanos().to_string());
            put("w", format!("{},{},{},{kill_at},{}", w.slot, w.pid, w.generation, w.channel));
        }
        for pid in &self.ended {
            put("z", pid.to_string());
        }
        if let Some(digest) = self.watched.digest {
            put("digest", format!("{digest:x}"));
        }
        if let Some(fd) = self.watched.queue {
            put("queue", fd.to_string());
        }
        if let Some(fd) = self.image {
            put("image", fd.to_string());
        }
        if let Some(bad) = self.bad {
            put("bad", format!("{bad:x}"));
        }
        if let Some(reexec) = self.pending {
            put("pending", u8::from(reexec).to_string());
        }
        if self.repeats.0 > 0 {
            put("repeats", format!("{},{:x}", self.repeats.0, self.repeats.1));
        }
        let trigger = TRIGGERS.iter().find(|(trigger, _)| *trigger == self.trigger);
        put("trigger", trigger.map_or("", |(_, word)| word).into());
        if !self.error.is_empty() {
            put("error", escape(self.error.as_bytes()));
        }
        for stage in &self.stages {
            put("t", stage.as_nanos().to_string());
        }
        text
    }

    /// `None`: malformed, or of a version that this image does not know.
    pub(crate) fn decode(text: &str) -> Option<Token> {
        let mut words = text.split(' ');
        if words.next()? != VERSION {
            return None;
        }
        let mut token = Token::default();
        for word in words {
            let (key, value) = word.split_once('=')?;
            match key {
                "pid" => token.pid = value.parse().ok()?,
                "gen" => token.generation = value.parse().ok()?,
                "reload" => token.reload = value.parse().ok()?,
                "slots" => {
                    let (slots, configured) = value.split_once(',')?;
                    (token.slots, token.configured) = (slots.parse().ok()?, configured.parse().ok()?);
                }
                "mask" => token.mask = hex(value)?,
                "ignored" => token.ignored = hex(value)?,
                "path" => token.path = PathBuf::from(OsString::from_vec(unescape(value)?)),
                "state" => token.state = Some(hex(value)?),
                "l" => token.listeners.push(carried(value)?),
                "w" => token.workers.push(old_worker(value)?),
                "z" => token.ended.push(value.parse().ok()?),
                "queue" => token.watched.queue = Some(value.parse().ok()?),
                "digest" => token.watched.digest = Some(hex(value)?),
                "image" => token.image = Some(value.parse().ok()?),
                "bad" => token.bad = Some(hex(value)?),
                "pending" => token.pending = Some(value == "1"),
                "repeats" => {
                    let (count, path) = value.split_once(',')?;
                    token.repeats = (count.parse().ok()?, hex(path)?);
                }
                "trigger" => token.trigger = TRIGGERS.iter().find(|(_, word)| *word == value)?.0,
                "error" => token.error = String::from_utf8_lossy(&unescape(value)?).into_owned(),
                "t" => token.stages.push(nanos(value)?),
                _ => {}
            }
        }
        let sensible = token.generation < FAR && token.reload < FAR && token.slots < MOST_SLOTS;
        (token.pid > 0 && sensible).then_some(token)
    }
}

fn carried(value: &str) -> Option<Carried> {
    let mut fields = value.split(',');
    let fd = fields.next()?.parse().ok()?;
    let name = String::from_utf8(unescape(fields.next()?)?).ok()?;
    let request = String::from_utf8(unescape(fields.next()?)?).ok()?;
    let origin = match fields.next()? {
        "bound" => Origin::Bound,
        "given" => Origin::Given,
        "activated" => Origin::Activated,
        _ => return None,
    };
    let node = match fields.next()? {
        "" => None,
        node => {
            let (dev, ino) = node.split_once(':')?;
            Some((hex(dev)?, hex(ino)?))
        }
    };
    Some(Carried { fd, name, request, origin, node })
}

fn old_worker(value: &str) -> Option<OldWorker> {
    let mut fields = value.split(',');
    let slot = fields.next()?.parse().ok()?;
    let pid = fields.next()?.parse().ok()?;
    let generation = fields.next()?.parse().ok()?;
    let kill_at = match fields.next()? {
        "" => None,
        at => Some(nanos(at)?),
    };
    let channel = fields.next()?.parse().ok()?;
    Some(OldWorker { slot, pid, generation, kill_at, channel })
}

fn hex(value: &str) -> Option<u64> {
    u64::from_str_radix(value, 16).ok()
}

fn nanos(value: &str) -> Option<Moment> {
    value.parse().ok().map(Moment::from_nanos)
}

/// Everything but letters, digits and `.:-_/` as `%XX`.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b':' | b'-' | b'_' | b'/' => text.push(*byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = (rest.get(..2)?, rest.get(2..)?);
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    Some(bytes)
}
