//! Table tests of the pure parts; `explorer` walks every reachable state of the supervisor.

mod explorer;
mod kernel;
mod reloads;
mod seen;
mod supervisor;

use super::backoff::Backoff;
use super::debounce::Debounce;
use super::snapshot::{difference, Files};
use super::token::{Carried, OldWorker, Origin, Token, Watched};
use crate::log::Trigger;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

#[test]
fn backoff_is_at_once_then_doubles_to_its_limit_and_resets_after_health() {
    let mut backoff = Backoff::default();
    let waits: Vec<u128> = (0..12).map(|_| backoff.failed(MS).as_millis()).collect();
    assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    assert_eq!(backoff.failed(Duration::from_millis(9_999)).as_millis(), 30_000);
    assert_eq!(backoff.failed(Duration::from_secs(10)).as_millis(), 0);
    assert_eq!(backoff.failed(MS).as_millis(), 100);
}

#[test]
fn debounce_every_sequence_of_eight_steps() {
    // Steps: a change, or time passing by 1, 2 or 5 ms. Quiet 3 ms, cap 6 ms.
    let (quiet, cap) = (3 * MS, 6 * MS);
    for mut sequence in 0..4u32.pow(8) {
        let mut debounce = Debounce::new(quiet, cap);
        let (mut now, mut first, mut last) = (Duration::from_secs(1), None, None);
        for _ in 0..8 {
            let step = sequence % 4;
            sequence /= 4;
            if step == 0 {
                debounce.change(now);
                first = first.or(Some(now));
                last = Some(now);
            } else {
                now += [1, 2, 5][step as usize - 1] * MS;
            }
            // Asked at every step, as the loop does when it wakes.
            let due = first.zip(last).is_some_and(|(first, last)| now >= last + quiet || now >= first + cap);
            assert_eq!(debounce.deadline().is_some(), first.is_some(), "a change is never forgotten");
            assert_eq!(debounce.fire(now), due);
            if due {
                (first, last) = (None, None);
            }
        }
    }
}

#[test]
fn debounce_reads_late_in_a_burst_only_and_never_past_the_deadline() {
    let mut debounce = Debounce::new(50 * MS, 100 * MS);
    let mut now = Duration::from_secs(1);
    let mut pauses = Vec::new();
    for _ in 0..16 {
        debounce.change(now);
        pauses.push(debounce.pause(now).as_micros());
        now += MS;
    }
    assert_eq!(pauses, [0, 0, 0, 0, 0, 0, 250, 500, 1000, 2000, 4000, 8000, 10000, 10000, 10000, 10000]);
    // 99 ms after the first change the cap is near.
    now += 83 * MS;
    debounce.change(now);
    assert_eq!(debounce.pause(now), Duration::ZERO, "they are apart: no burst");
    for _ in 0..16 {
        debounce.change(now);
    }
    assert_eq!(debounce.pause(now), MS);
    assert!(debounce.fire(now + MS));
    assert_eq!(debounce.pause(now + MS), Duration::ZERO);
}

#[test]
fn the_deadline_is_awaited_in_two_steps() {
    let mut debounce = Debounce::new(50 * MS, 100 * MS);
    let mut now = Duration::from_secs(1);
    assert_eq!(debounce.wait(now), None, "nothing changed: no wake-up");
    debounce.change(now);
    let mut steps = Vec::new();
    while !debounce.fire(now) {
        steps.push(debounce.wait(now).map(|step| step.as_micros()));
        // Late by 0.1 ms, as timers are.
        now += debounce.wait(now).unwrap() + MS / 10;
    }
    assert_eq!(steps, [Some(49_850), Some(50)]);
    debounce.change(now);
    assert_eq!(debounce.wait(now + 51 * MS), Some(Duration::ZERO), "overdue");
}

#[test]
fn difference_names_what_came_went_and_changed() {
    let list = |items: &[(&str, u64)]| {
        let mut files = Files::default();
        items.iter().for_each(|(name, state)| files.push(name.as_bytes(), *state));
        files
    };
    // Also one name that begins another, a newline, the first byte after the NUL.
    let old = list(&[("a", 1), ("a\u{1}", 1), ("b", 1), ("d", 1), ("n\n", 1)]);
    let new = list(&[("a\u{1}", 1), ("aa", 1), ("b", 2), ("c", 1), ("d", 1), ("e", 1), ("n\n", 2)]);
    let mut seen = Vec::new();
    difference(&old, &new, |name, was, is| {
        seen.push(format!("{} {}{}", name.escape_ascii(), u8::from(was.is_some()), u8::from(is.is_some())));
    });
    assert_eq!(seen, ["a 10", "aa 01", "b 11", "c 01", "e 01", "n\\n 11"]);
    difference(&new, &new, |name, _, _| panic!("{name:?} is the same"));
    let mut gone = 0;
    difference(&old, &Files::default(), |_, _, is| gone += u32::from(is.is_none()));
    assert_eq!(gone, 5);
}

fn full() -> Token {
    let bound = Carried { fd: 3, name: "web".into(), request: "127.0.0.1:0".into(), ..Carried::default() };
    let unix = Carried {
        fd: 4,
        name: String::new(),
        request: "unix:/tmp/a b,%=é".into(),
        origin: Origin::Activated,
        node: Some((0x40, u64::MAX)),
    };
    let given = Carried { fd: 5, origin: Origin::Given, ..Carried::default() };
    let old = OldWorker { slot: 1, pid: 77, generation: 2, kill_at: Some(Duration::new(5, 7)), channel: 9 };
    Token {
        pid: 4711,
        generation: 3,
        reload: 2,
        slots: 5,
        configured: 4,
        mask: 0xffff_ffff_0000_0001,
        ignored: 0x1000,
        path: "/srv/my app/ü".into(),
        state: Some(7),
        listeners: vec![bound, unix, given],
        workers: vec![OldWorker { kill_at: None, ..old.clone() }, old],
        ended: vec![78],
        watched: Watched { queue: Some(8), digest: Some(0) },
        image: Some(11),
        bad: Some(0xabc),
        pending: Some(true),
        repeats: (3, 0xfeed),
        trigger: Trigger::Usr2,
        error: "exit code 1, 100 %\n".into(),
        stages: vec![Duration::from_nanos(1), Duration::from_secs(100)],
    }
}

#[test]
fn token_comes_back_as_it_went() {
    let polled = Token { watched: Watched { queue: None, digest: Some(u64::MAX) }, ..full() };
    let told = Token { watched: Watched { queue: Some(0), digest: None }, ..full() };
    let bare = Token { pid: 1, ..Token::default() };
    for token in [full(), polled, told, bare] {
        let text = token.encode();
        assert!(text.bytes().all(|b| b.is_ascii_graphic() || b == b' '), "{text}");
        assert_eq!(Token::decode(&text).as_ref(), Some(&token), "{text}");
    }
}

#[test]
fn token_of_another_version_or_without_sense_is_refused() {
    let bad = [
        "",
        "1",
        "2 pid=1",
        "1 pid=0",
        "1 pid=x",
        "1 pid=1 gen=-1",
        "1 pid=1 l=3",
        "1 pid=1 l=3,a,b,c,",
        "pid=1",
        "1 pid=1 w=1,2,3,4",
        "1 pid=1 path=%4",
        "1 pid=1 path=%zz",
        "1 pid=1 mask=xyz",
        "1 pid=1 queue=",
        "1 pid=1 queue=8 digest=0x1",
        "1  pid=1",
        "1 pid=1 gen=18446744073709551615",
        "1 pid=1 slots=18446744073709551615,1",
        "1 pid",
    ];
    for text in bad {
        assert_eq!(Token::decode(text), None, "{text}");
    }
    assert!(Token::decode("1 pid=1 later=thing").is_some(), "a key of a later 0.x is skipped");
}

#[test]
fn token_decoding_is_total() {
    let text = full().encode();
    for at in 0..text.len() {
        for byte in [0, b' ', b'%', b',', b'=', b'9', b'z', 0x7f] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = byte;
            let _ = Token::decode(&String::from_utf8_lossy(&bytes));
        }
        let _ = Token::decode(&text[..at]);
        let _ = Token::decode(&text[at..]);
    }
}
