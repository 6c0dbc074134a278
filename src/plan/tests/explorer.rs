//! Every reachable state of the supervisor with a toy kernel, breadth first.
//!
//! The kernel says what could happen next: any signal, a change, a worker that becomes ready, dies, drains or ignores
//! SIGTERM, a fork, a look, a check or an exec that goes well or badly, time passing to the next deadline or by ten
//! seconds. An exec leads into the next image, or back into the one before. States are the same if they differ only in
//! absolute time, pids, counters and what is only said. In every state the promises below are checked; when one is
//! broken, the shortest way there is printed: it belongs into `supervisor.rs` as a row.

use super::kernel::{Luck, World, GOOD, TIMEOUT};
use crate::log::How;
use crate::plan::backoff::HEALTHY;
use crate::plan::supervise::*;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault};
use std::time::Duration;

#[derive(Default)]
struct Explorer {
    pairs: BTreeSet<(&'static str, &'static str)>,
    /// Each state, and the state and the event that led there first.
    states: Vec<(World, Option<(usize, Event)>)>,
    /// Their hashes.
    seen: HashSet<u64>,
    hasher: BuildHasherDefault<DefaultHasher>,
}

pub(super) fn name(event: &Event) -> &'static str {
    match event {
        Event::Start => "Start",
        Event::Change { .. } => "Change",
        Event::WatchLost => "WatchLost",
        Event::Signal(Signal::Term) => "Term",
        Event::Signal(Signal::Int) => "Int",
        Event::Signal(Signal::Hangup) => "Hangup",
        Event::Signal(Signal::Quit) => "Quit",
        Event::Signal(Signal::Hup) => "Hup",
        Event::Signal(Signal::Usr1) => "Usr1",
        Event::Signal(Signal::Usr2) => "Usr2",
        Event::Signal(Signal::Ttin) => "Ttin",
        Event::Signal(Signal::Ttou) => "Ttou",
        Event::Looked(_) => "Looked",
        Event::Checked(_) => "Checked",
        Event::Forked { .. } => "Forked",
        Event::ForkFailed { .. } => "ForkFailed",
        Event::Serving { .. } => "Serving",
        Event::Ready { .. } => "Ready",
        Event::Refused { .. } => "Refused",
        Event::Exited { .. } => "Exited",
        Event::Emptied { .. } => "Emptied",
        Event::ExecFailed { .. } => "ExecFailed",
        Event::Time => "Time",
    }
}

impl Explorer {
    /// One event in `world`, which is the state `from` a moment later. The next world, and how it could have gone
    /// otherwise.
    fn visit(&mut self, from: usize, world: &World, event: &Event, luck: Luck) -> (World, &'static [Luck]) {
        let mut visited = Vec::new();
        let result = world.step(event.clone(), luck, &mut visited);
        for (phase, event) in visited {
            self.pairs.insert((phase, event));
        }
        match result {
            Ok((next, otherwise)) => {
                self.add(&next, Some((from, event.clone())));
                (next, otherwise)
            }
            Err(broken) => {
                let mut way = vec![format!("{event:?}")];
                let mut at = from;
                while let Some((before, event)) = &self.states[at].1 {
                    way.push(format!("{event:?}"));
                    at = *before;
                }
                way.reverse();
                panic!("{broken}\nafter: {}\nin: {world:#?}", way.join(",\n  "));
            }
        }
    }

    fn add(&mut self, world: &World, from: Option<(usize, Event)>) {
        let world = world.canonical();
        if self.seen.insert(self.hasher.hash_one(&world)) {
            self.states.push((world, from));
        }
    }

    fn explore(&mut self, start: World) {
        let mut at = self.states.len();
        self.add(&start, None);
        while at < self.states.len() {
            let world = self.states[at].0.clone();
            if !world.exited {
                self.explore_from(at, &world);
            }
            at += 1;
        }
    }

    fn explore_from(&mut self, at: usize, world: &World) {
        for event in world.possible() {
            for luck in self.visit(at, world, &event, GOOD).1 {
                self.visit(at, world, &event, *luck);
            }
        }
        if let Some(back) = world.plan.execs() {
            // The exec: the next image begins. Its failure is among the events.
            let image = world.next_image(back);
            self.visit(at, &image, &Event::Start, GOOD);
        }
        // No dead end: if something is owed there is a deadline, and going there changes something.
        if let Some(deadline) = world.plan.deadline() {
            let mut later = world.clone();
            later.now = later.now.max(deadline);
            let (next, _) = self.visit(at, &later, &Event::Time, GOOD);
            assert_ne!(next.plan, later.plan, "a deadline that changes nothing");
        }
        let mut later = world.clone();
        later.now += HEALTHY;
        self.visit(at, &later, &Event::Time, GOOD);
    }
}

fn config(slots: usize, reexec: bool, overlap: bool, watching: bool) -> Config {
    Config {
        slots,
        reexec,
        overlap,
        watching,
        ready_after: Some(TIMEOUT),
        shutdown_timeout: TIMEOUT,
        boot_timeout: TIMEOUT,
        check_timeout: TIMEOUT,
        quiet: Duration::from_millis(50),
    }
}

#[test]
fn every_reachable_state() {
    if cfg!(any(refork_portable, target_env = "musl")) {
        return; // The plan knows of no system: once is enough.
    }
    let mut explorer = Explorer::default();
    for reexec in [true, false] {
        for overlap in [true, false] {
            let one = World::new(config(1, reexec, overlap, true), 1, if reexec { 2 } else { 1 });
            let mut leaving = one.clone();
            (leaving.trouble, leaving.leave) = (1, 1);
            explorer.explore(one);
            if reexec && overlap {
                explorer.explore(leaving);
            }
            // A second slot comes and goes; readiness is always said.
            let two = Config { ready_after: None, ..config(1, reexec, overlap, true) };
            if reexec && overlap {
                explorer.explore(World::new(two, 2, 0));
            } else {
                // The others would take too long; this is the only pair that they would add.
                let mut world = World::new(two, 2, 0);
                use Event::{Checked, Ready, Signal as Got, Start};
                for event in [Start, Ready { pid: 2 }, Got(Signal::Hup), Checked(Verdict::Good), Got(Signal::Ttin)] {
                    let mut visited = Vec::new();
                    world = world.step(event, GOOD, &mut visited).unwrap().0;
                    explorer.pairs.extend(visited);
                }
            }
            // The first of two forks fails for the last time, and the second does not.
            for watching in [true, false] {
                let last = Config { boot_timeout: HEALTHY, watching, ..config(2, reexec, overlap, true) };
                let mut world = World::new(last, 2, 8);
                world = world.step(Event::Start, Luck::ForkFails, &mut Vec::new()).unwrap().0;
                for _ in 0..3 {
                    world.now += Duration::from_millis(800);
                    world = world.step(Event::Time, Luck::ForkFails, &mut Vec::new()).unwrap().0;
                }
                world.now += Duration::from_millis(800);
                for trouble in [1, 2] {
                    let mut visited = Vec::new();
                    let mut last = world.clone();
                    last.trouble = trouble;
                    let ended = last.step(Event::Time, Luck::ForkFails, &mut visited).unwrap().0;
                    assert_eq!(ended.exited, trouble == 2 && !watching, "{ended:#?}");
                    explorer.pairs.extend(visited);
                }
            }
            // A slot that has failed four times at the first start: its next failure is the last.
            for watching in [true, false] {
                let boot_timeout = Duration::from_secs(10);
                let first = Config { boot_timeout, ..config(1, reexec, overlap, watching) };
                let mut world = World::new(first, 1, 5);
                world = world.step(Event::Start, GOOD, &mut Vec::new()).unwrap().0;
                for _ in 0..4 {
                    let pid = world.procs[0].pid;
                    world = world
                        .step(Event::Exited { pid, how: How::Code(1), left: false }, GOOD, &mut Vec::new())
                        .unwrap()
                        .0;
                    world.now += Duration::from_secs(1);
                    world = world.step(Event::Time, GOOD, &mut Vec::new()).unwrap().0;
                }
                explorer.explore(world);
            }
        }
    }
    println!("{} states, {} pairs of phase and event", explorer.states.len(), explorer.pairs.len());
    check_pairs(&explorer);
}

/// Every pair is visited, but for those that the shell makes impossible.
fn check_pairs(explorer: &Explorer) {
    let phases = [
        "New",
        "Booting",
        "Serving",
        "Looking",
        "Checking",
        "Waiting",
        "Draining",
        "HandingOff",
        "RollingBack",
        "Dormant",
        "Stopping",
    ];
    let events =
        "Start Change WatchLost Term Int Hangup Quit Hup Usr1 Usr2 Ttin Ttou Looked Checked Forked ForkFailed \
                  Serving Ready Refused Exited Emptied ExecFailed Time";
    let mut missing = Vec::new();
    for phase in phases {
        for event in events.split_whitespace() {
            let reachable = match (phase, event) {
                // Nothing is forked there.
                ("New" | "Draining" | "HandingOff" | "RollingBack", "Forked" | "ForkFailed") => false,
                _ => true,
            };
            let visited = explorer.pairs.contains(&(phase, event));
            if visited != reachable {
                missing.push(format!("{phase} x {event}: reachable {reachable}, visited {visited}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
