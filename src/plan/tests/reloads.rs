//! Reloads that go wrong, overlap, and come back: as `supervisor`.

use super::supervisor::{change, config, Life, SECOND};
use crate::log::{How, Note, Trigger};
use crate::plan::supervise::*;

#[test]
fn an_image_that_cannot_be_executed_costs_no_drain() {
    let mut life = Life::serving(true);
    let mut actions = Vec::new();
    life.plan.step(life.now, Event::Signal(Signal::Hup), &mut actions);
    life.plan.step(life.now, Event::Looked(Verdict::Bad("it is empty".into())), &mut actions);
    let asked = Action::Say(Note::Asked { reload: 1, trigger: Trigger::Hup });
    let look = Action::Look { reexec: true, only_own: false, last: false };
    let dropped = Action::Say(Note::Dropped { reload: 1, why: "it is empty".into(), command: false, serving: true });
    assert_eq!(actions, [asked, look, dropped]);
    assert_eq!(life.plan.last_error(), "it is empty");
}

/// A check takes longer than the pause between two saves.
#[test]
fn saves_without_an_end_keep_nobody_waiting() {
    // While somebody serves the newest code is what is tried, for as long as a check may take.
    let mut life = Life::serving(false);
    life.checks = true;
    assert_eq!(life.give(change(false)), "check");
    for _ in 0..4 {
        life.now += SECOND;
        assert_eq!(life.give(change(false)), "end check, check");
    }
    life.now += SECOND;
    assert_eq!(life.give(change(false)), "");
    assert_eq!(life.give(Event::Checked(Verdict::Good)), "term 101, term 102");
    // Changed during the drain: tried again, once, for nobody serves.
    assert_eq!(life.give(change(false)), "");
    life.exit(101);
    assert_eq!(life.exit(102), "check");
    assert_eq!(life.give(change(false)), "");
    assert_eq!(life.give(Event::Checked(Verdict::Good)), "fork 0, fork 1");
    life.ready(103);
    // What was saved since is one more reload.
    assert_eq!(life.ready(104), "ready, check");
    assert_eq!(life.plan.reload(), 2);
    // One that is dropped, with a change that has waited: that is the next.
    life.now += 5 * SECOND;
    assert_eq!(life.give(change(false)), "");
    assert_eq!(life.give(Event::Checked(Verdict::Bad("x".into()))), "check");
    assert_eq!(life.plan.reload(), 3);
}

#[test]
fn a_reload_asked_for_during_a_check_is_the_next() {
    for verdict in [Verdict::Good, Verdict::Bad("x".into())] {
        let mut life = Life::serving(false);
        life.checks = true;
        assert_eq!(life.give(Event::Signal(Signal::Hup)), "check");
        assert_eq!(life.give(Event::Signal(Signal::Hup)), "");
        if verdict == Verdict::Good {
            assert_eq!(life.give(Event::Checked(verdict)), "term 101, term 102");
            life.exit(101);
            assert_eq!(life.exit(102), "fork 0, fork 1");
            life.ready(103);
            assert_eq!(life.ready(104), "ready, check");
        } else {
            assert_eq!(life.give(Event::Checked(verdict)), "check");
        }
        assert_eq!(life.plan.reload(), 2);
    }
    // During the drain: that reload.
    let mut life = Life::serving(false);
    life.checks = true;
    life.give(Event::Signal(Signal::Hup));
    life.give(Event::Checked(Verdict::Good));
    life.give(Event::Signal(Signal::Hup));
    life.exit(101);
    assert_eq!(life.exit(102), "fork 0, fork 1");
    assert_eq!(life.plan.reload(), 1);
}

/// The code changes during a drain, and is found bad or still being written: nobody waits for it.
#[test]
fn what_is_looked_at_while_nobody_serves_is_good_now_or_dropped() {
    for at_once in [true, false] {
        let mut life = Life::serving(true);
        life.checks = true;
        life.give(Event::Signal(Signal::Hup));
        life.now += SECOND;
        life.give(Event::Checked(Verdict::Good));
        life.give(change(true));
        life.exit(101);
        life.now += SECOND;
        let mut actions = Vec::new();
        life.plan.step(life.now, Event::Exited { pid: 102, how: How::Code(0), left: false }, &mut actions);
        assert_eq!(actions.last(), Some(&Action::Look { reexec: true, only_own: false, last: true }));
        let later = Verdict::Later("changes".into(), 2 * SECOND);
        let dropped = if at_once {
            life.give(Event::Looked(Verdict::Bad("is empty".into())))
        } else {
            assert_eq!(life.give(Event::Looked(Verdict::Good)), "check");
            life.give(Event::Checked(later))
        };
        assert_eq!(dropped, "fork 0, fork 1");
        assert_eq!(life.plan.done().0, 1);
    }
}

#[test]
fn a_signal_is_heard_between_forks() {
    let mut life = Life::new(Config { slots: 40, ..config(true) });
    assert_eq!(life.plan.adopted().count(), 16);
    assert_eq!(life.plan.deadline(), Some(life.now));
    life.wait(0);
    assert_eq!(life.plan.adopted().count(), 32);
    life.give(Event::Signal(Signal::Term));
    life.wait(0);
    assert_eq!(life.plan.adopted().count(), 32);
}

#[test]
fn a_file_that_is_not_whole_is_looked_at_again_until_patience_ends() {
    let mut life = Life::serving(true);
    let look = |life: &mut Life, event, verdict| {
        let mut actions = Vec::new();
        life.plan.step(life.now, event, &mut actions);
        let looks = actions.iter().find_map(|action| match action {
            Action::Look { last, .. } => Some(*last),
            _ => None,
        });
        life.plan.step(life.now, Event::Looked(verdict), &mut actions);
        looks
    };
    let later = || Verdict::Later("is empty".into(), 2 * SECOND);
    assert_eq!(look(&mut life, change(true), later()), Some(false));
    let begun = life.now;
    for _ in 0..19 {
        life.now = life.plan.deadline().unwrap();
        assert_eq!(look(&mut life, Event::Time, later()), Some(false));
    }
    life.now = life.plan.deadline().unwrap();
    assert_eq!(life.now, begun + 2 * SECOND);
    // A change begins the waiting anew.
    assert_eq!(look(&mut life, change(true), later()), Some(false));
    let begun = life.now;
    while life.now < begun + 2 * SECOND {
        life.now = life.plan.deadline().unwrap();
        let last = life.now == begun + 2 * SECOND;
        let verdict = if last { Verdict::Bad("is empty".into()) } else { later() };
        assert_eq!(look(&mut life, Event::Time, verdict), Some(last));
    }
    assert_eq!(life.plan.state(), "serving");
    assert_eq!(life.plan.deadline(), None);
}

#[test]
fn identical_bytes_are_no_reload() {
    let mut life = Life::serving(true);
    let mut actions = Vec::new();
    life.plan.step(life.now, change(true), &mut actions);
    assert_eq!(actions, [Action::Look { reexec: true, only_own: true, last: false }]);
    assert_eq!(life.give(Event::Looked(Verdict::Same)), "");
    assert_eq!((life.plan.reload(), life.plan.state()), (0, "serving"));
}

#[test]
fn the_old_code_serves_while_the_new_is_checked() {
    let mut life = Life::serving(true);
    life.checks = true;
    assert_eq!(life.give(change(true)), "check");
    assert_eq!(life.exit(101), "fork 0");
    assert_eq!(life.give(Event::Signal(Signal::Hup)), "", "the next, unless this begins anew");
    assert_eq!(life.give(change(true)), "end check, check", "what was checked is out of date");
    assert_eq!(life.give(Event::Checked(Verdict::Bad("x".into()))), "");
    assert_eq!(life.log.last().unwrap(), "reload #1: dropped: x; the running code serves on");
    assert_eq!(life.give(change(true)), "check");
    assert_eq!(life.wait(4_999), "");
    assert_eq!(life.wait(1), "end check");
    assert!(life.log.last().unwrap().contains("gave no answer in 5000 ms"), "{:?}", life.log);
    assert_eq!(life.give(change(true)), "check");
    assert_eq!(life.give(Event::Signal(Signal::Term)), "end check, term 102, term 103");
}

#[test]
fn what_changed_during_a_drain_is_checked_too() {
    let mut life = Life::serving(true);
    life.give(Event::Signal(Signal::Hup));
    assert_eq!(life.give(change(true)), "");
    life.exit(101);
    life.checks = true;
    assert_eq!(life.exit(102), "check");
    assert_eq!(life.give(Event::Checked(Verdict::Bad("x".into()))), "fork 0, fork 1");
}

fn overlap(reexec: bool) -> Life {
    let mut life = Life::new(Config { overlap: true, ..config(reexec) });
    life.ready(101);
    life.ready(102);
    life
}

#[test]
fn overlap_drains_the_old_when_all_of_the_new_are_ready() {
    for reexec in [false, true] {
        let mut life = overlap(reexec);
        let done = life.give(Event::Signal(Signal::Hup));
        let done = if reexec {
            assert_eq!(done, "exec");
            let (next, done) = life.next_image(false);
            life = next;
            done
        } else {
            done
        };
        assert_eq!(done, "fork 0, fork 1");
        assert_eq!(life.ready(103), "");
        // Of two requests one reload is made, afterwards.
        assert_eq!(life.give(Event::Signal(Signal::Hup)), "");
        assert_eq!(life.give(change(false)), "");
        assert_eq!(life.ready(104), "ready, term 101, term 102", "and a third generation waits");
        assert_eq!(life.plan.reload(), 2);
        assert_eq!(life.exit(101), "");
        assert_eq!(life.exit(103), "fork 0", "the serving generation is kept up meanwhile");
        let next = if reexec { "exec" } else { "fork 0, fork 1" };
        assert_eq!(life.exit(102), next);
        assert_eq!((life.plan.generation(), life.plan.pending()), (3, None));
    }
}

#[test]
fn an_old_worker_that_dies_in_an_overlap_is_not_replaced() {
    let mut life = overlap(false);
    life.give(Event::Signal(Signal::Hup));
    assert_eq!(life.exit(101), "");
    life.ready(103);
    assert_eq!(life.ready(104), "ready, term 102");
}

#[test]
fn a_generation_that_does_not_boot_is_rolled_back() {
    let mut life = overlap(true);
    life.give(Event::Signal(Signal::Hup));
    let (mut life, _) = life.next_image(false);
    life.exit(103);
    life.exit(105);
    assert_eq!(life.wait(100), "fork 0");
    // Asked for meanwhile: the image that comes back does it.
    life.give(Event::Signal(Signal::Hup));
    assert_eq!(life.exit(106), "term 104, roll back");
    assert_eq!(life.plan.generation(), 1);
    let (mut life, done) = life.next_image(true);
    assert_eq!(done, "ready");
    assert!(life.log[0].starts_with("reload #1: rolled back: workers of the new code die"), "{:?}", life.log);
    assert_eq!(life.exit(104), "exec", "the pending one, once those that failed are gone");
}

#[test]
fn a_generation_that_is_never_ready_is_abandoned_without_a_way_back() {
    let mut life = overlap(false);
    life.give(Event::Signal(Signal::Hup));
    life.ready(103);
    assert_eq!(life.wait(29_999), "");
    assert_eq!(life.wait(1), "term 103, term 104");
    assert!(life.log.last().unwrap().contains("2 workers of the old code serve on"), "{:?}", life.log);
    assert_eq!((life.plan.generation(), life.plan.state()), (1, "serving"));
    // The next try waits until those are gone.
    assert_eq!(life.give(change(false)), "");
    life.exit(103);
    assert_eq!(life.exit(104), "fork 0, fork 1");
}

#[test]
fn a_roll_back_that_fails_leaves_the_old_workers_or_tries_the_new() {
    for overlap in [true, false] {
        let workers = |overlap| match overlap {
            true => vec![Adopted { pid: 101, slot: 0, generation: 1, kill_at: None }],
            false => vec![],
        };
        let past = Past { generation: 2, reload: 1, workers: workers(overlap), way_back: true, ..Past::default() };
        let (mut life, _) = Life::after(Config { slots: 1, overlap, ..config(true) }, past);
        let pid = life.next - 1;
        assert_eq!(life.wait(30_000), format!("term {pid}, roll back"));
        let done = life.give(Event::ExecFailed { why: "x".into() });
        assert_eq!(done, if overlap { "" } else { "fork 0" }, "{:?}", life.log);
        assert_eq!(life.exit(pid), "");
    }
}

#[test]
fn a_service_that_causes_its_own_reloads_is_slowed_down() {
    let mut life = Life::new(Config { slots: 1, ..config(false) });
    life.ready(101);
    let mut quiet = Vec::new();
    for pid in 102..112 {
        let done = life.give(change(false));
        quiet.extend(done.strip_prefix("quiet ").map(|rest| rest.split(',').next().unwrap_or_default().to_owned()));
        life.exit(pid - 1);
        life.ready(pid);
        life.wait(2_000);
    }
    assert_eq!(quiet, ["100", "200", "400", "800", "1600", "3200"]);
    assert!(life.log.iter().any(|line| line.starts_with("/srv/code changes right after each reload")));
    // Another path, or a change that comes later, is nobody's loop.
    let other = Event::Change { own: false, others: true, path: "/srv/other".into() };
    assert_eq!(life.give(other), "quiet 50, term 111");
}

#[test]
fn changes_that_bring_no_new_generation_are_no_loop() {
    let mut life = Life::serving(true);
    life.checks = true;
    for _ in 0..20 {
        assert_eq!(life.give(change(true)), "check");
        assert_eq!(life.give(Event::Checked(Verdict::Bad("x".into()))), "");
    }
}
