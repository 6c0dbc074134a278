//! Every reachable state of the supervisor with a toy kernel, breadth first.
//!
//! The kernel says what could happen next: any signal, a change, a worker that becomes ready, dies, drains or ignores
//! SIGTERM, a fork, a look or an exec that fails, time passing to the next deadline or by ten seconds. States are the same
//! if they differ only in absolute time, pids and counters. In every state the promises below are checked; when one is
//! broken, the shortest way there is printed: it belongs into `supervisor.rs` as a row.

use crate::log::How;
use crate::plan::backoff::HEALTHY;
use crate::plan::supervise::*;
use crate::plan::Moment;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(3);

/// A process of the toy kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Toy {
    pid: Pid,
    termed: Option<Moment>,
    killed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    plan: Supervise,
    now: Moment,
    procs: Vec<Toy>,
    /// Deaths that the exploration still allows: keeps the number of states in hand.
    deaths: u8,
    next_pid: Pid,
    /// When a stop was first asked for.
    stopping: Option<Moment>,
    /// A change that no exec, no new generation and no line has answered yet.
    owed: bool,
    exited: bool,
}

impl World {
    fn new(config: Config, deaths: u8) -> World {
        let plan = Supervise::new(config, 1, 0);
        let now = Duration::from_secs(100);
        World { plan, now, procs: vec![], deaths, next_pid: 2, stopping: None, owed: false, exited: false }
    }

    /// The same world with times relative to now, pids in order and counters at their start.
    fn canonical(&self) -> World {
        let mut world = self.clone();
        let base = Duration::from_secs(100);
        let past = self.now;
        let shift = |at: Moment| base + at.saturating_sub(past);
        world.now = base;
        world.plan =
            self.plan.canonical(|pid| self.order(pid), shift, |born| base - past.saturating_sub(born).min(HEALTHY));
        for proc in &mut world.procs {
            proc.pid = self.order(proc.pid);
            // Only whether the timeout has passed matters, and the plan has that.
            proc.termed = proc.termed.map(|at| base - past.saturating_sub(at).min(TIMEOUT));
        }
        world.next_pid = 0;
        world.stopping = self.stopping.map(|at| base - past.saturating_sub(at).min(TIMEOUT));
        world
    }

    fn order(&self, pid: Pid) -> Pid {
        self.procs.iter().position(|proc| proc.pid == pid).map_or(-1, |at| at as Pid + 2)
    }

    /// Everything that could happen next. Killed processes can do nothing but end.
    fn possible(&self) -> Vec<Event> {
        let mut events = vec![
            Event::Start,
            Event::Change { own: false },
            Event::Change { own: true },
            Event::WatchLost,
            Event::Time,
            // Answers to questions that were not asked.
            Event::Looked(Ok(())),
            Event::ExecFailed { why: String::new() },
            Event::Exited { pid: 1, how: How::Unknown },
            Event::Ready { pid: 1 },
            Event::Refused { pid: 1, code: 126, why: String::new() },
        ];
        use Signal::*;
        for signal in [Term, Int, Hangup, Quit, Hup, Usr1, Usr2, Ttou] {
            events.push(Event::Signal(signal));
        }
        if self.plan.slots() < 2 {
            events.push(Event::Signal(Ttin));
        }
        for proc in &self.procs {
            let pid = proc.pid;
            if !proc.killed {
                events.push(Event::Ready { pid });
                events.push(Event::Serving { pid });
                events.push(Event::Refused { pid, code: 127, why: String::new() });
            }
            if proc.killed || proc.termed.is_some() || self.deaths > 0 {
                events.push(Event::Exited { pid, how: How::Signal(9) });
            }
        }
        events
    }

    fn die(&mut self, event: &Event) {
        if let Event::Exited { pid, .. } = event {
            if let Some(at) = self.procs.iter().position(|proc| proc.pid == *pid) {
                let proc = self.procs.remove(at);
                if proc.termed.is_none() && !proc.killed {
                    self.deaths -= 1;
                }
            }
        }
    }
}

/// What the choices of the kernel were in one step: fork, look and exec answer well or badly.
#[derive(Clone, Copy)]
struct Luck {
    fork: bool,
    look: bool,
    exec: bool,
}

struct Explorer {
    pairs: BTreeSet<(String, String)>,
    seen: HashMap<World, Option<(World, String)>>,
    todo: VecDeque<World>,
}

fn name(event: &Event) -> String {
    let text = format!("{event:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_string()
}

impl Explorer {
    /// One event and the answers to what it asks for; the worlds that can follow, or what was broken.
    fn step(&mut self, world: &World, event: Event, luck: Luck) -> Result<World, String> {
        let mut next = world.clone();
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            self.pairs.insert((next.plan.phase_name(), name(&event)));
            next.die(&event);
            if matches!(event, Event::Change { .. }) && next.plan.takes_changes() {
                next.owed = true;
            }
            if matches!(event, Event::Signal(Signal::Term | Signal::Int | Signal::Hangup | Signal::Quit)) {
                next.stopping.get_or_insert(next.now);
            }
            let mut actions = Vec::new();
            let generation = next.plan.generation();
            next.plan.step(next.now, event.clone(), &mut actions);
            next.check(&event, &actions, generation)?;
            for action in actions {
                match action {
                    Action::Fork { slot } if luck.fork => {
                        let pid = next.next_pid;
                        next.next_pid += 1;
                        next.procs.push(Toy { pid, termed: None, killed: false });
                        queue.push_back(Event::Forked { slot, pid });
                        if !next.plan.looking() {
                            next.owed = false;
                        }
                    }
                    Action::Fork { slot } => queue.push_back(Event::ForkFailed { slot, why: String::new() }),
                    Action::Term { pid } => {
                        let now = next.now;
                        let proc = next.procs.iter_mut().find(|p| p.pid == pid && !p.killed);
                        proc.ok_or("TERM to nobody")?.termed.get_or_insert(now);
                    }
                    Action::Kill { pid } => {
                        let proc = next.procs.iter_mut().find(|p| p.pid == pid).ok_or("KILL to nobody")?;
                        let waited = proc.termed.is_some_and(|at| next.now >= at + TIMEOUT);
                        if !waited && next.stopping.is_none() {
                            return Err("KILL before TERM and the timeout".into());
                        }
                        proc.killed = true;
                    }
                    Action::Relay { pid } => {
                        next.procs.iter().find(|p| p.pid == pid).ok_or("USR1 to nobody")?;
                    }
                    Action::Look => {
                        let answer = if luck.look { Ok(()) } else { Err(String::new()) };
                        next.owed &= luck.look;
                        queue.push_back(Event::Looked(answer));
                    }
                    Action::HandOff if luck.exec => {
                        // The next image begins.
                        next.owed = false;
                        next.plan = next.plan.next_image();
                        queue.push_back(Event::Start);
                    }
                    Action::HandOff => {
                        next.owed = false;
                        queue.push_back(Event::ExecFailed { why: String::new() });
                    }
                    Action::Exit { .. } => next.exited = true,
                    Action::CloseDropped | Action::Say(_) => {}
                }
            }
        }
        next.check_state()?;
        Ok(next)
    }

    fn visit(&mut self, from: &World, event: &Event, luck: Luck) {
        match self.step(from, event.clone(), luck) {
            Ok(next) => self.add(next, Some((from.canonical(), format!("{event:?}")))),
            Err(broken) => {
                let mut way = vec![format!("{event:?}")];
                let mut at = from.canonical();
                while let Some(Some((before, event))) = self.seen.get(&at) {
                    way.push(event.clone());
                    at = before.clone();
                }
                way.reverse();
                panic!("{broken}\nafter: {}\nin: {from:#?}", way.join(", "));
            }
        }
    }

    fn add(&mut self, world: World, from: Option<(World, String)>) {
        let world = world.canonical();
        if !self.seen.contains_key(&world) {
            self.seen.insert(world.clone(), from);
            self.todo.push_back(world);
        }
    }

    fn explore(&mut self, config: Config, deaths: u8) {
        self.add(World::new(config, deaths), None);
        while let Some(mut world) = self.todo.pop_front() {
            if world.exited {
                continue;
            }
            world.next_pid = 100;
            for event in world.possible() {
                for luck in [7, 6, 5, 3].map(|n| Luck { fork: n & 1 > 0, look: n & 2 > 0, exec: n & 4 > 0 }) {
                    self.visit(&world, &event, luck);
                }
            }
            // No dead end: if something is owed there is a deadline, and going there changes something.
            if let Some(deadline) = world.plan.deadline() {
                let mut later = world.clone();
                later.now = later.now.max(deadline);
                let before = later.plan.clone();
                self.visit(&later, &Event::Time, Luck { fork: true, look: true, exec: true });
                later.plan.step(later.now, Event::Time, &mut Vec::new());
                assert_ne!(before, later.plan, "a deadline that changes nothing");
            }
            let mut later = world.clone();
            later.now += HEALTHY;
            self.visit(&later, &Event::Time, Luck { fork: true, look: true, exec: true });
        }
    }
}

impl World {
    fn check(&self, event: &Event, actions: &[Action], generation: u64) -> Result<(), String> {
        let handoffs = actions.iter().filter(|a| **a == Action::HandOff).count();
        if handoffs > 1 || (handoffs == 1 && actions.last() != Some(&Action::HandOff)) {
            return Err("HandOff not once and last".into());
        }
        if handoffs == 1 && !self.procs.is_empty() {
            return Err("HandOff before all are drained".into());
        }
        let forks = actions.iter().any(|a| matches!(a, Action::Fork { .. }));
        if forks && self.stopping.is_some() {
            return Err("a fork after a stop was asked for".into());
        }
        if self.plan.generation() < generation && !matches!(event, Event::ExecFailed { .. }) {
            return Err("the generation went back".into());
        }
        Ok(())
    }

    fn check_state(&self) -> Result<(), String> {
        let workers = self.plan.workers();
        let mut slots: Vec<usize> = workers.iter().map(|worker| worker.1).collect();
        slots.sort_unstable();
        if slots.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two workers in one slot".into());
        }
        let mut have: Vec<Pid> = workers.iter().map(|worker| worker.0).collect();
        let mut live: Vec<Pid> = self.procs.iter().map(|proc| proc.pid).collect();
        have.sort_unstable();
        live.sort_unstable();
        if have != live {
            return Err("the plan's workers are not those that live".into());
        }
        if self.exited && !live.is_empty() {
            return Err("an exit that leaves workers behind".into());
        }
        if self.stopping.is_some() && !self.exited && live.is_empty() {
            return Err("stopping, nobody left, and no exit".into());
        }
        // After a stop every worker is asked to end, and killed at the latest when the timeout is over.
        let forgotten = |proc: &&Toy| proc.termed.is_none() && !proc.killed;
        if self.stopping.is_some() && self.procs.iter().any(|proc| forgotten(&proc)) {
            return Err("a worker that a stop has forgotten".into());
        }
        if self.procs.iter().any(|proc| !proc.killed && proc.termed.is_some()) && self.plan.deadline().is_none() {
            return Err("a draining worker without a deadline".into());
        }
        // A change is answered by a new generation, an exec or a line; or the drain for it is under way.
        if self.owed && self.stopping.is_none() && !self.exited && !self.plan.reloading() {
            return Err("a change is lost".into());
        }
        Ok(())
    }
}

#[test]
fn every_reachable_state() {
    let mut explorer = Explorer { pairs: BTreeSet::new(), seen: HashMap::new(), todo: VecDeque::new() };
    for reexec in [true, false] {
        for watching in [true, false] {
            let config = |slots| Config { slots, reexec, watching, shutdown_timeout: TIMEOUT };
            explorer.explore(config(1), 6);
            explorer.explore(config(2), 1);
        }
    }
    println!("{} states, {} pairs of phase and event", explorer.seen.len(), explorer.pairs.len());
    // Every pair is visited, but for the phases that last only until the shell's answer.
    let phases = ["New", "Serving", "Looking", "Draining", "HandingOff", "Dormant", "Stopping"];
    let events = [
        "Start",
        "Change",
        "WatchLost",
        "Signal",
        "Looked",
        "Forked",
        "ForkFailed",
        "Serving",
        "Ready",
        "Refused",
        "Exited",
        "ExecFailed",
        "Time",
    ];
    let mut missing = Vec::new();
    for phase in phases {
        for event in events {
            let reachable = match (phase, event) {
                // Answered by the shell before anything else is asked.
                ("Looking", event) => event == "Looked",
                ("HandingOff", event) => event == "ExecFailed",
                // Nothing is forked there.
                ("New" | "Draining" | "Dormant" | "Stopping", "Forked" | "ForkFailed") => false,
                ("New", "Serving") => false,
                _ => true,
            };
            let visited = explorer.pairs.contains(&(phase.to_string(), event.to_string()));
            if visited != reachable {
                missing.push(format!("{phase} x {event}: reachable {reachable}, visited {visited}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
