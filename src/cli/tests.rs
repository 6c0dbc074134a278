//! Words in, a task or a complaint out: one row each.
#![allow(clippy::unwrap_used)]

use super::*;
use std::os::unix::ffi::OsStringExt;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn run(line: &str) -> Run {
    match parse(words(&format!("run {line}"))) {
        Ok(Task::Run(run)) => run,
        other => panic!("{line}: {other:?}"),
    }
}

fn watch(line: &str) -> Watch {
    match parse(words(&format!("watch {line}"))) {
        Ok(Task::Watch(watch)) => watch,
        other => panic!("{line}: {other:?}"),
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn defaults() {
    let run = run("server");
    assert_eq!((run.binds, run.workers, run.command), (vec![], Some(1), words("server")));
    assert_eq!((run.paths.len(), run.shutdown_timeout, run.verbosity), (0, ms(10_000), 0));
    assert_eq!((run.timing.quiet, run.timing.cap(), run.timing.poll), (ms(50), ms(1600), None));
    let watch = watch("");
    assert_eq!((watch.paths, watch.output, watch.filter), (vec![".".into()], Output::Lines, Filter::Source));
    assert!(watch.follow);
}

#[test]
fn values_stand_behind_a_space_behind_an_equals_sign_or_in_the_same_word() {
    for line in ["-w 2 c", "-w2 c", "--workers 2 c", "--workers=2 c", "-w 9 -w2 c", "-rw2 c", "-vrw 2 c"] {
        assert_eq!(run(line).workers, Some(2), "{line}");
    }
    assert_eq!(run("-w auto c").workers, None);
    assert_eq!(run("-w +2 c").workers, Some(2), "as strtol(3) reads numbers in other tools' options");
    for (text, time) in [("0.5", 500), (".25", 250), ("3.", 3000), ("+2", 2000), ("1.0019999999999", 1001), ("0", 0)] {
        assert_eq!(run(&format!("--shutdown-timeout {text} c")).shutdown_timeout.as_millis(), time, "{text}");
    }
    assert_eq!((run("-v c").verbosity, run("-q c").verbosity, run("-v -q c").verbosity), (1, -1, -1));
}

#[test]
fn how_a_reload_goes_and_whom_to_ask() {
    let run = run("--handover overlap --ready 0.25 --check x --boot-timeout 2 --stop-signal SIGINT --status-file s c");
    assert_eq!((run.overlap, run.ready, run.check), (true, Some(ms(250)), Some("x".into())));
    assert_eq!((run.boot_timeout, run.stop_signal, run.status_file), (ms(2000), Some(2), Some("s".into())));
    assert_eq!(self::run("--ready notify --stop-signal 12 c").ready, None);
    assert_eq!((self::run("c").ready, self::run("c").overlap), (Some(ms(1000)), false));
    let reload = |line: &str| match parse(words(&format!("reload {line}"))) {
        Ok(Task::Reload(reload)) => reload,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(reload("--pid 7"), Reload::Pid(7));
    assert_eq!(reload("--status-file s"), Reload::Status("s".into(), None));
    assert_eq!(reload("--status-file s --wait"), Reload::Status("s".into(), Some(ms(60_000))));
    assert_eq!(reload("--status-file s --wait --timeout .5"), Reload::Status("s".into(), Some(ms(500))));
}

#[test]
fn the_first_plain_word_begins_the_command() {
    assert_eq!(run("-r python3 -r app.py --workers -- x").command, words("python3 -r app.py --workers -- x"));
    assert_eq!(run("-r -- -odd -r").command, words("-odd -r"));
    assert_eq!(run("-r - x").command, words("- x"));
    let bytes = OsString::from_vec(b"\xff".to_vec());
    let parsed = parse([OsString::from("run"), bytes.clone(), bytes.clone()]);
    assert!(matches!(parsed, Ok(Task::Run(Run { command, .. })) if command == [bytes.clone(), bytes]));
}

#[test]
fn names_of_addresses() {
    let pair = |name: &str, addr: &str| (name.to_owned(), addr.to_owned());
    for (bind, expected) in [
        ("127.0.0.1:80", pair("", "127.0.0.1:80")),
        ("web=:80", pair("web", ":80")),
        ("unix:/run/a=b,mode=0600", pair("", "unix:/run/a=b,mode=0600")),
        ("s=unix:/run/s,mode=0600", pair("s", "unix:/run/s,mode=0600")),
        ("fd://3", pair("", "fd://3")),
        ("api=[::1]:0", pair("api", "[::1]:0")),
    ] {
        let expected = [expected];
        assert_eq!(run(&format!("-b {bind} c")).binds, expected, "{bind}");
        assert_eq!(run(&format!("--bind={bind} c")).binds, expected);
    }
    assert_eq!(run("-b :1 --bind :2 c").binds.len(), 2);
}

#[test]
fn what_is_watched() {
    let paths = |line: &str| run(line).paths;
    assert_eq!(paths("-r c"), [PathBuf::from(".")]);
    assert_eq!(paths("--reload-path a --reload-path=b c"), [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!(paths("-r --reload-path a c"), [PathBuf::from("a")]);
    assert!(paths("--reload-include *.x --reload-exclude=y c").is_empty());
    let run = run("--reload-include *.x --reload-include=*.z --reload-exclude y --poll=7 c");
    assert_eq!(
        (run.include.join(" "), run.exclude.join(" "), run.timing.poll),
        ("*.x *.z".into(), "y".into(), Some(ms(7)))
    );
}

#[test]
fn times() {
    let timing = |line: &str| {
        let timing = run(&format!("{line} c")).timing;
        (timing.quiet, timing.cap(), timing.poll)
    };
    assert_eq!(timing("--debounce 0"), (ms(0), ms(1600), None));
    assert_eq!(timing("--debounce=5000"), (ms(5000), ms(5000), None), "the default cap gives way");
    assert_eq!(timing("--debounce-max 60"), (ms(50), ms(60), None));
    assert_eq!(timing("--poll"), (ms(50), ms(1600), Some(ms(1000))), "the value only behind `=`");
}

#[test]
fn what_becomes_of_a_batch() {
    let watch_all = watch("a --all b --no-follow --poll");
    assert_eq!((watch_all.paths.len(), watch_all.filter, watch_all.follow), (2, Filter::All, false));
    assert_eq!(watch("--json").output, Output::Json);
    assert_eq!(watch("a -- make -j --json").output, Output::Command(words("make -j --json")));
    assert_eq!(watch("--ext py,.rs --ext=c").filter, Filter::Extensions(["py", "rs", "c"].map(String::from).into()));
}

#[test]
fn help_and_version_go_first() {
    let tell = |line: &str| match parse(words(line)) {
        Ok(Task::Tell(text)) => text,
        other => panic!("{line}: {other:?}"),
    };
    for (line, expected) in [("--help", help::ALL), ("run -rh", help::RUN), ("run --help -- x", help::RUN)] {
        assert_eq!(tell(line), expected);
    }
    assert_eq!(tell("watch --help"), help::WATCH);
    assert_eq!(tell("--version"), format!("refork {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(tell("reload -h"), help::RELOAD);
    for text in [help::ALL, help::RUN, help::WATCH, help::RELOAD] {
        assert!(text.lines().all(|line| line.len() <= 132), "{text}");
    }
}

#[test]
fn complaints_name_the_bad_argument() {
    for (line, expected) in [
        ("", "`run`, `watch` or `reload` is missing"),
        ("--", "`run`, `watch` or `reload` is missing"),
        ("serve x", "`serve` is neither `run`, `watch` nor `reload`"),
        ("--workers 2 run", "unknown option `--workers`"),
        ("run", "COMMAND is missing"),
        ("run --", "COMMAND is missing"),
        ("run --bind", "`--bind` needs a value"),
        ("run -w", "`-w` needs a value"),
        ("run --workers=0 c", "--workers: `0` is neither `auto` nor a number from 1"),
        ("run -w 65536 c", "-w: `65536` is neither `auto` nor a number from 1 to 65535"),
        ("run -w 99999999999999999999 c", "-w: `99999999999999999999` is neither"),
        ("run -wx c", "-w: `x` is neither"),
        ("run -w -1 c", "-w: `-1` is neither"),
        ("run --workers= c", "--workers: `` is neither"),
        ("run --reload=yes c", "`--reload` takes no value"),
        ("run --handover both c", "--handover: `both` is neither `drain-first` nor `overlap`"),
        ("run --ready soon c", "--ready: `soon` is not a number of seconds, like 10 or 0.5, nor `notify`"),
        ("run --boot-timeout x c", "--boot-timeout: `x` is not a number of seconds"),
        ("run --stop-signal TREM c", "--stop-signal: `TREM` is not a signal, like TERM or 15"),
        ("run --stop-signal 0 c", "--stop-signal: `0` is not a signal"),
        ("reload", "`--pid` or `--status-file` is missing"),
        ("reload --pid 1 --status-file x", "`--pid` and `--status-file` exclude each other"),
        ("reload --pid 0", "--pid: `0` is not a process's number"),
        ("reload --pid -1", "--pid: `-1` is not a process's number"),
        ("reload --pid 1 --wait", "`--wait` needs `--status-file`"),
        ("reload --status-file x --timeout 1", "`--timeout` goes with `--wait`"),
        ("reload 7", "`7` is one word too many"),
        ("run -rx c", "unknown option `-x`"),
        ("run --bind= c", "--bind: `` is no ADDR"),
        ("run --status-file= c", "--status-file: `` is empty"),
        ("run --reload-path= c", "--reload-path: `` is empty"),
        ("run --check= c", "--check: `` is empty"),
        ("run --reload-include= c", "--reload-include: `` is no GLOB"),
        ("run --stop-signal KILL c", "--stop-signal: `KILL` is not a signal"),
        ("run --stop-signal 19 c", "--stop-signal: `19` is not a signal"),
        ("run -b web= c", "-b: `web=` has no ADDR"),
        ("run -b =:80 c", "-b: `=:80` has an empty NAME"),
        ("run --shutdown-timeout -1 c", "--shutdown-timeout: `-1` is not a number of seconds"),
        ("run --shutdown-timeout . c", "--shutdown-timeout: `.` is not a number of seconds"),
        ("run --shutdown-timeout 1.-5 c", "`1.-5` is not a number of seconds"),
        ("run --shutdown-timeout 4294967295.1 c", "`4294967295.1` is not a number of seconds"),
        ("run --shutdown-timeout 99999999999999999999 c", "`99999999999999999999` is not a number of seconds"),
        ("run --shutdown-timeout inf c", "`inf` is not a number of seconds"),
        ("run --shutdown-timeout NaN c", "`NaN` is not a number of seconds"),
        ("run --shutdown-timeout 1e99 c", "`1e99` is not a number of seconds"),
        ("run --debounce 1.5 c", "--debounce: `1.5` is not a number of milliseconds"),
        ("run --debounce 2 --debounce-max 1 c", "`--debounce-max` is shorter than `--debounce`"),
        ("run --poll=0 c", "--poll: `0` is not a number of milliseconds from 1"),
        ("watch --reload", "unknown option `--reload`"),
        ("watch --", "CMD is missing after `--`"),
        ("watch --json -- c", "`--json` prints"),
        ("watch --ext py --all", "`--ext` and `--all` exclude each other"),
        ("watch --ext py,,rs", "--ext: `py,,rs` is not a list of extensions"),
        ("watch --ext *.py", "--ext: `*.py` is not a list of extensions"),
    ] {
        match parse(words(line)) {
            Err(Usage(why)) => assert!(why.contains(expected), "{line}: {why}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    let odd = OsString::from_vec(b"--b\xff\n".to_vec());
    assert_eq!(parse(["run".into(), odd]), Err(Usage("unknown option `--b\\xff\\n`".into())));
    let odd = OsString::from_vec(b"-bx\xff".to_vec());
    assert_eq!(parse(["run".into(), odd]), Err(Usage("-b: `x\\xff` is not UTF-8".into())));
}

#[test]
fn paths_as_lines_and_as_json() {
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let paths = [path(b"/a b/\"\\"), path("/é\n\u{1b}\u{85}".as_bytes()), path(b"/\xffx\xe9"), path(b"\xed\xa0\x80")];
    let written = |write: &dyn Fn(show::Put<'_>) -> std::io::Result<()>| {
        let mut out = String::new();
        write(&mut |piece| {
            out.push_str(piece);
            Ok(())
        })
        .unwrap();
        out
    };
    assert_eq!(
        written(&|put| show::lines(put, &paths)),
        "/a b/\"\\ /é\\n\\u{1b}\\u{85} /\\xffx\\xe9 \\xed\\xa0\\x80\n"
    );
    assert_eq!(
        written(&|put| show::json(put, 7, &paths, true, Some("no \"x\""))),
        "{\"t_ns\":7,\"paths\":[\"/a b/\\\"\\\\\",\"/é\\u000a\\u001b\\u0085\",\"/\\udcffx\\udce9\",\
         \"\\udced\\udca0\\udc80\"],\"rescan\":true,\"error\":\"no \\\"x\\\"\"}\n"
    );
    assert_eq!(written(&|put| show::json(put, 8, &[], false, None)), "{\"t_ns\":8,\"paths\":[]}\n");
    assert_eq!(show::json_ready(9), "{\"ready\":true,\"t_ns\":9}\n");
}
