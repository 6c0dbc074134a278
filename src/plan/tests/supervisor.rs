//! One life after another: events in, actions out, compared with a table.

use crate::log::How;
use crate::plan::supervise::*;
use std::time::Duration;

/// A supervisor with a clock that the test moves and forks that always work: pids 101, 102, ...
pub(super) struct Life {
    pub(super) plan: Supervise,
    pub(super) now: Duration,
    pub(super) next: Pid,
    pub(super) log: Vec<String>,
    /// Checks are answered by the test.
    pub(super) checks: bool,
}

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn config(reexec: bool) -> Config {
    Config {
        slots: 2,
        reexec,
        overlap: false,
        watching: true,
        ready_after: Some(SECOND),
        shutdown_timeout: 10 * SECOND,
        boot_timeout: 30 * SECOND,
        check_timeout: 5 * SECOND,
        quiet: Duration::from_millis(50),
    }
}

pub(super) fn change(own: bool) -> Event {
    Event::Change { own, others: !own, path: "/srv/code".into() }
}

impl Life {
    pub(super) fn new(config: Config) -> Life {
        Life::after(config, Past::default()).0
    }

    /// An image that goes on; what its start does.
    pub(super) fn after(config: Config, past: Past) -> (Life, String) {
        let now = 1000 * SECOND;
        let next = past.workers.iter().map(|worker| worker.pid + 1).max().unwrap_or(101);
        let mut life = Life { plan: Supervise::new(now, config, past), now, next, log: vec![], checks: false };
        let done = life.give(Event::Start);
        (life, done)
    }

    /// The image that this one executes; what its start does.
    pub(super) fn next_image(&self, rolled_back: bool) -> (Life, String) {
        let past = Past {
            generation: self.plan.generation(),
            reload: self.plan.reload(),
            workers: self.plan.adopted().collect(),
            pending: self.plan.pending(),
            way_back: !rolled_back,
            rolled_back: rolled_back.then(|| self.plan.last_error().into()),
            ..Past::default()
        };
        Life::after(self.plan.config.clone(), past)
    }

    /// Feeds an event, answers forks and looks, and returns what was done, without the notes.
    pub(super) fn give(&mut self, event: Event) -> String {
        let mut done = Vec::new();
        let mut queue = std::collections::VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let mut actions = Vec::new();
            self.plan.step(self.now, event, &mut actions);
            for action in actions {
                match action {
                    Action::Fork { slot } => {
                        done.push(format!("fork {slot}"));
                        queue.push_back(Event::Forked { slot, pid: self.next });
                        self.next += 1;
                    }
                    Action::Look { .. } => queue.push_back(Event::Looked(Verdict::Good)),
                    Action::Check { .. } if self.checks => done.push("check".into()),
                    Action::Check { .. } => queue.push_back(Event::Checked(Verdict::Good)),
                    Action::EndCheck => done.push("end check".into()),
                    Action::RollBack => done.push("roll back".into()),
                    Action::Quiet { quiet } => done.push(format!("quiet {}", quiet.as_millis())),
                    Action::Term { pid } => done.push(format!("term {pid}")),
                    Action::Kill { pid } => done.push(format!("kill {pid}")),
                    Action::Forget { pid } => done.push(format!("forget {pid}")),
                    Action::Relay { pid } => done.push(format!("relay {pid}")),
                    Action::HandOff => done.push("exec".into()),
                    Action::Settled => done.push("ready".into()),
                    Action::Exit { code } => done.push(format!("exit {code}")),
                    Action::Say(note) => self.log.push(note.to_string()),
                }
            }
        }
        done.join(", ")
    }

    pub(super) fn wait(&mut self, ms: u64) -> String {
        self.now += Duration::from_millis(ms);
        self.give(Event::Time)
    }

    pub(super) fn exit(&mut self, pid: Pid) -> String {
        self.give(Event::Exited { pid, how: How::Code(1), left: false })
    }

    /// It ends, and what it has started does not.
    fn leave(&mut self, pid: Pid) -> String {
        self.give(Event::Exited { pid, how: How::Code(0), left: true })
    }

    pub(super) fn ready(&mut self, pid: Pid) -> String {
        self.give(Event::Ready { pid })
    }

    pub(super) fn serving(reexec: bool) -> Life {
        let mut life = Life::new(config(reexec));
        life.ready(101);
        assert_eq!(life.ready(102), "ready");
        life.log.clear();
        life
    }
}

#[test]
fn library_reload_drains_then_execs() {
    let mut life = Life::serving(true);
    assert_eq!(life.give(change(false)), "term 101, term 102");
    assert_eq!(life.exit(101), "");
    assert_eq!(life.exit(102), "exec");
    assert_eq!((life.plan.generation(), life.plan.reload()), (2, 1));
    assert_eq!(life.log[0], "reload #1: draining 2 workers");
    assert_eq!(life.log.last().unwrap(), "reload #1: drained");
    // The exec fails: everything goes on.
    assert_eq!(life.give(Event::ExecFailed { why: "x".into() }), "fork 0, fork 1");
    assert_eq!(life.plan.generation(), 1);
}

#[test]
fn command_reload_needs_no_exec_unless_asked() {
    let mut life = Life::serving(false);
    assert_eq!(life.give(Event::Signal(Signal::Hup)), "term 101, term 102");
    life.exit(102);
    assert_eq!(life.exit(101), "fork 0, fork 1");
    assert_eq!(life.plan.generation(), 2);
    life.ready(103);
    assert_eq!(life.ready(104), "ready");
    assert_eq!(life.give(change(true)), "term 103, term 104");
    life.exit(103);
    assert_eq!(life.exit(104), "exec");
    let mut life = Life::serving(false);
    assert_eq!(life.give(Event::Signal(Signal::Usr2)), "term 101, term 102");
    life.exit(101);
    assert_eq!(life.exit(102), "exec");
}

#[test]
fn a_reload_during_a_drain_is_that_reload_and_may_make_it_an_exec() {
    let mut life = Life::serving(false);
    life.give(change(false));
    assert_eq!(life.give(Event::Signal(Signal::Hup)), "");
    assert_eq!(life.give(change(false)), "");
    assert_eq!(life.give(Event::Signal(Signal::Usr2)), "");
    life.exit(101);
    assert_eq!(life.exit(102), "exec");
    assert_eq!(life.plan.reload(), 1);
}

#[test]
fn a_worker_that_does_not_drain_is_killed_at_the_timeout() {
    let mut life = Life::serving(true);
    life.give(change(false));
    life.exit(101);
    assert_eq!(life.plan.deadline(), Some(life.now + Duration::from_secs(10)));
    assert_eq!(life.wait(9_999), "");
    assert_eq!(life.wait(1), "kill 102");
    assert_eq!(life.plan.deadline(), None);
    assert_eq!(life.exit(102), "exec");
}

#[test]
fn sigterm_outranks_a_reload_and_keeps_the_earlier_deadline() {
    let mut life = Life::serving(true);
    life.give(change(false));
    life.wait(4_000);
    assert_eq!(life.give(Event::Signal(Signal::Term)), "");
    assert_eq!(life.wait(6_000), "kill 101, kill 102");
    life.exit(101);
    assert_eq!(life.exit(102), "exit 0");
}

#[test]
fn a_second_signal_or_quit_kills_now() {
    for first in [Signal::Term, Signal::Int, Signal::Hangup] {
        for second in [Signal::Term, Signal::Int, Signal::Quit] {
            let mut life = Life::serving(true);
            assert_eq!(life.give(Event::Signal(first)), "term 101, term 102");
            assert_eq!(life.give(Event::Signal(second)), "kill 101, kill 102");
            life.exit(102);
            assert_eq!(life.exit(101), "exit 0");
        }
    }
    let mut life = Life::serving(true);
    assert_eq!(life.give(Event::Signal(Signal::Quit)), "kill 101, kill 102");
}

#[test]
fn a_dead_worker_is_replaced_in_its_slot_with_back_off() {
    let mut life = Life::serving(true);
    assert_eq!(life.exit(102), "fork 1");
    assert_eq!(life.exit(103), "");
    assert_eq!(life.plan.deadline(), Some(life.now + Duration::from_millis(100)));
    assert_eq!(life.wait(99), "");
    assert_eq!(life.wait(1), "fork 1");
    life.wait(10_000);
    assert_eq!(life.exit(104), "fork 1");
    assert_eq!(life.log.iter().filter(|line| line.contains("died: exit code 1, age 10.0 s")).count(), 1);
}

#[test]
fn a_fork_that_fails_is_tried_again_later() {
    let mut life = Life::serving(true);
    let mut actions = Vec::new();
    life.plan.step(life.now, Event::Exited { pid: 101, how: How::Signal(9), left: false }, &mut actions);
    assert_eq!(actions.last(), Some(&Action::Fork { slot: 0 }));
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(life.give(Event::ForkFailed { slot: 0, why: "EAGAIN".into() }), "");
        waits.push((life.plan.deadline().unwrap() - life.now).as_millis());
    }
    // The death was the first failure.
    assert_eq!(waits, [200, 400, 800, 1600]);
    assert_eq!(life.wait(1_600), "fork 0");
}

#[test]
fn a_first_start_that_can_never_fork_ends_like_one_whose_workers_die() {
    for watching in [false, true] {
        let mut life = Life::new(Config { slots: 1, watching, ..config(true) });
        life.exit(101);
        life.plan.step(life.now, Event::Exited { pid: 102, how: How::Code(1), left: false }, &mut Vec::new());
        let mut done = Vec::new();
        for _ in 0..3 {
            done.push(life.give(Event::ForkFailed { slot: 0, why: "EAGAIN".into() }));
        }
        assert_eq!(done, ["", "", if watching { "" } else { "exit 3" }]);
        assert_eq!(life.plan.deadline(), None);
        assert_eq!(life.log.iter().filter(|line| line.contains("next try in")).count(), 2, "{:?}", life.log);
    }
}

#[test]
fn what_a_worker_leaves_in_its_group_is_drained_and_killed_like_the_worker() {
    let mut life = Life::serving(false);
    life.give(change(false));
    assert_eq!(life.leave(101), "");
    assert_eq!(life.exit(102), "", "the group of 101 serves still");
    assert_eq!(life.give(Event::Emptied { pid: 101 }), "fork 0, fork 1");
    // At its deadline, which is the drain's; and again, in vain.
    let mut life = Life::serving(false);
    life.give(change(false));
    life.wait(4_000);
    life.exit(102);
    assert_eq!(life.leave(101), "");
    assert_eq!(life.wait(5_999), "");
    assert_eq!(life.wait(1), "kill 101");
    assert_eq!(life.wait(999), "");
    assert_eq!(life.wait(1), "forget 101, fork 0, fork 1");
    // At a stop; a second signal kills it now.
    let mut life = Life::serving(true);
    life.give(Event::Signal(Signal::Term));
    life.leave(101);
    life.leave(102);
    assert_eq!(life.give(Event::Signal(Signal::Term)), "kill 101, kill 102");
    assert_eq!(life.give(Event::Emptied { pid: 102 }), "");
    assert_eq!(life.give(Event::Emptied { pid: 101 }), "exit 0");
    // One that dies by itself: its slot waits.
    let mut life = Life::serving(true);
    assert_eq!(life.leave(101), "");
    assert_eq!(life.give(Event::Signal(Signal::Usr1)), "relay 102");
    assert_eq!(life.wait(10_000), "kill 101");
    assert_eq!(life.give(Event::Emptied { pid: 101 }), "fork 0");
}

#[test]
fn slots_come_and_go_with_ttin_and_ttou() {
    let mut life = Life::serving(true);
    assert_eq!(life.give(Event::Signal(Signal::Ttin)), "fork 2");
    assert_eq!(life.give(Event::Signal(Signal::Ttou)), "term 103");
    // Given back while its worker still drains: not two in one slot.
    assert_eq!(life.give(Event::Signal(Signal::Ttin)), "");
    assert_eq!(life.exit(103), "fork 2");
    life.give(Event::Signal(Signal::Ttou));
    assert_eq!(life.give(Event::Signal(Signal::Ttou)), "term 102");
    assert_eq!(life.give(Event::Signal(Signal::Ttou)), "", "one stays");
    assert_eq!(life.give(Event::Signal(Signal::Usr1)), "relay 101, relay 102, relay 104");
}

#[test]
fn a_first_start_that_fails_ends_with_3_or_waits_for_a_change() {
    for watching in [false, true] {
        let mut life = Life::new(Config { slots: 1, watching, ..config(true) });
        let mut done = Vec::new();
        for pid in 101..106 {
            done.push(life.exit(pid));
            done.push(life.wait(1_000));
        }
        let end = if watching { "" } else { "exit 3" };
        assert_eq!(done, ["fork 0", "", "", "fork 0", "", "fork 0", "", "fork 0", end, ""]);
        if watching {
            assert_eq!(life.plan.deadline(), None);
            assert_eq!(life.give(change(false)), "exec");
        }
    }
    let mut life = Life::new(Config { slots: 1, ..config(false) });
    for pid in 101..106 {
        life.exit(pid);
        life.wait(1_000);
    }
    assert_eq!(life.give(change(false)), "fork 0");
    // Nobody will tell of a change any more.
    for pid in 106..111 {
        life.exit(pid);
        life.wait(1_000);
    }
    assert_eq!(life.give(Event::WatchLost), "exit 3");
}

#[test]
fn a_command_that_cannot_be_executed_at_the_first_start_ends_the_service() {
    let mut life = Life::new(Config { slots: 1, ..config(false) });
    life.give(Event::Refused { pid: 101, code: 127, why: "x".into() });
    assert_eq!(life.exit(101), "exit 127");
    let mut life = Life::serving(false);
    assert_eq!(life.give(Event::Refused { pid: 101, code: 127, why: "x".into() }), "");
    assert_eq!(life.exit(101), "fork 0");
}

#[test]
fn serving_for_a_second_is_ready() {
    let mut life = Life::new(config(false));
    life.give(Event::Serving { pid: 101 });
    life.wait(500);
    life.give(Event::Serving { pid: 101 });
    life.give(Event::Serving { pid: 102 });
    assert_eq!(life.wait(500), "");
    assert_eq!(life.wait(500), "ready");
    assert_eq!(life.log.last().unwrap(), "ready: generation 1, 2 workers");
}
