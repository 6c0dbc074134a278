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

/// As long as a worker that only serves needs to be ready: fewer combinations of times.
const TIMEOUT: Duration = Duration::from_secs(1);

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
    /// Deaths and failing forks that the exploration still allows: keeps the number of states in hand.
    trouble: u8,
    /// As many slots as TTIN may ask for.
    most: usize,
    next_pid: Pid,
    /// A stop was asked for.
    stopping: bool,
    /// A change that no exec, no new generation and no line has answered yet.
    owed: bool,
    exited: bool,
}

impl World {
    fn new(config: Config, trouble: u8) -> World {
        let most = config.slots;
        let plan = Supervise::new(config, 1, 0);
        let now = Duration::from_secs(100);
        World { plan, now, procs: vec![], trouble, most, next_pid: 2, stopping: false, owed: false, exited: false }
    }

    /// The same world with times relative to now, pids in order and counters at their start.
    fn canonical(&self) -> World {
        let mut world = self.clone();
        let base = Duration::from_secs(100);
        let past = self.now;
        let shift = |at: Moment| base + at.saturating_sub(past);
        world.now = base;
        // Of an age only one thing matters.
        let born = |born: Moment| if past.saturating_sub(born) < HEALTHY { base } else { base - HEALTHY };
        world.plan = self.plan.canonical(|pid| self.order(pid), shift, born);
        for proc in &mut world.procs {
            proc.pid = self.order(proc.pid);
            // Only whether the timeout has passed matters, and the plan has that.
            proc.termed = proc.termed.map(|at| base - past.saturating_sub(at).min(TIMEOUT));
        }
        world.next_pid = 100;
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
        if self.plan.slots() < self.most {
            events.push(Event::Signal(Ttin));
        }
        for proc in &self.procs {
            let pid = proc.pid;
            if !proc.killed {
                events.push(Event::Ready { pid });
                events.push(Event::Serving { pid });
                events.push(Event::Refused { pid, code: 127, why: String::new() });
            }
            if proc.killed || proc.termed.is_some() || self.trouble > 0 {
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
                    self.trouble -= 1;
                }
            }
        }
    }
}

/// What the choices of the kernel were in one step: fork and look answer well or badly.
#[derive(Clone, Copy)]
struct Luck {
    fork: bool,
    look: bool,
}

const GOOD: Luck = Luck { fork: true, look: true };

struct Explorer {
    pairs: BTreeSet<(String, String)>,
    seen: HashMap<World, Option<(World, String)>>,
    todo: VecDeque<World>,
}

fn name(event: &Event) -> String {
    if let Event::Signal(signal) = event {
        return format!("{signal:?}");
    }
    let text = format!("{event:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_string()
}

impl Explorer {
    /// One event and the answers to what it asks for; the worlds that can follow, or what was broken.
    fn step(&mut self, world: &World, event: Event, luck: Luck) -> Result<(World, bool), String> {
        let mut next = world.clone();
        let mut asked = false;
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            self.pairs.insert((next.plan.phase_name(), name(&event)));
            next.die(&event);
            if matches!(event, Event::Change { .. }) && next.plan.takes_changes() {
                next.owed = true;
            }
            if matches!(event, Event::Signal(Signal::Term | Signal::Int | Signal::Hangup | Signal::Quit)) {
                next.stopping = true;
            }
            let mut actions = Vec::new();
            let generation = next.plan.generation();
            next.plan.step(next.now, event.clone(), &mut actions);
            next.check(&event, &actions, generation)?;
            // Whoever is forked from now on loads what is there now.
            next.owed &= next.plan.generation() <= generation;
            for action in actions {
                asked |= matches!(action, Action::Fork { .. } | Action::Look { .. });
                match action {
                    Action::Fork { slot } if luck.fork || next.trouble == 0 => {
                        let pid = next.next_pid;
                        next.next_pid += 1;
                        next.procs.push(Toy { pid, termed: None, killed: false });
                        queue.push_back(Event::Forked { slot, pid });
                    }
                    Action::Fork { slot } => {
                        next.trouble -= 1;
                        queue.push_back(Event::ForkFailed { slot, why: String::new() });
                    }
                    Action::Term { pid } => {
                        let now = next.now;
                        let proc = next.procs.iter_mut().find(|p| p.pid == pid && !p.killed);
                        proc.ok_or("TERM to nobody")?.termed.get_or_insert(now);
                    }
                    Action::Kill { pid } => {
                        let proc = next.procs.iter_mut().find(|p| p.pid == pid).ok_or("KILL to nobody")?;
                        let waited = proc.termed.is_some_and(|at| next.now >= at + TIMEOUT);
                        if !waited && !next.stopping {
                            return Err("KILL before TERM and the timeout".into());
                        }
                        proc.killed = true;
                    }
                    Action::Relay { pid } => {
                        next.procs.iter().find(|p| p.pid == pid).ok_or("USR1 to nobody")?;
                    }
                    Action::Look { .. } => {
                        let answer = if luck.look { Ok(()) } else { Err(String::new()) };
                        next.owed &= luck.look;
                        queue.push_back(Event::Looked(answer));
                    }
                    Action::Exit { .. } => next.exited = true,
                    Action::HandOff | Action::CloseDropped | Action::Say(_) => {}
                }
            }
        }
        next.check_state()?;
        Ok((next, asked))
    }

    /// One event in `world`, which is `from` a moment later. Was anything asked for that can go well or badly?
    fn visit(&mut self, from: &World, world: &World, event: &Event, luck: Luck) -> bool {
        match self.step(world, event.clone(), luck) {
            Ok((next, asked)) => {
                self.add(next, Some((from, event)));
                asked
            }
            Err(broken) => {
                let mut way = vec![format!("{event:?}")];
                let mut at = from;
                while let Some(Some((before, event))) = self.seen.get(at) {
                    way.push(event.clone());
                    at = before;
                }
                way.reverse();
                panic!("{broken}\nafter: {}\nin: {world:#?}", way.join(", "));
            }
        }
    }

    fn add(&mut self, world: World, from: Option<(&World, &Event)>) {
        let world = world.canonical();
        if !self.seen.contains_key(&world) {
            self.seen.insert(world.clone(), from.map(|(from, event)| (from.clone(), format!("{event:?}"))));
            self.todo.push_back(world);
        }
    }

    fn explore(&mut self, start: World) {
        self.add(start, None);
        while let Some(world) = self.todo.pop_front() {
            if world.exited {
                continue;
            }
            for event in world.possible() {
                if self.visit(&world, &world, &event, GOOD) {
                    self.visit(&world, &world, &event, Luck { fork: false, ..GOOD });
                    self.visit(&world, &world, &event, Luck { look: false, ..GOOD });
                }
            }
            if world.plan.handing_off() {
                // The exec: the next image begins. Its failure is among the events.
                let mut image = world.clone();
                image.plan = image.plan.next_image();
                image.owed = false;
                self.visit(&world, &image, &Event::Start, GOOD);
            }
            // No dead end: if something is owed there is a deadline, and going there changes something.
            if let Some(deadline) = world.plan.deadline() {
                let mut later = world.clone();
                later.now = later.now.max(deadline);
                let before = later.plan.clone();
                self.visit(&world, &later, &Event::Time, GOOD);
                later.plan.step(later.now, Event::Time, &mut Vec::new());
                assert_ne!(before, later.plan, "a deadline that changes nothing");
            }
            let mut later = world.clone();
            later.now += HEALTHY;
            self.visit(&world, &later, &Event::Time, GOOD);
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
        if forks && self.stopping {
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
        if self.stopping && !self.exited && live.is_empty() {
            return Err("stopping, nobody left, and no exit".into());
        }
        // After a stop every worker is asked to end, and killed at the latest when the timeout is over.
        let forgotten = |proc: &&Toy| proc.termed.is_none() && !proc.killed;
        if self.stopping && self.procs.iter().any(|proc| forgotten(&proc)) {
            return Err("a worker that a stop has forgotten".into());
        }
        if self.procs.iter().any(|proc| !proc.killed && proc.termed.is_some()) && self.plan.deadline().is_none() {
            return Err("a draining worker without a deadline".into());
        }
        // A change is answered by a new generation, an exec or a line; or the drain for it is under way.
        if self.owed && !self.stopping && !self.exited && !self.plan.reloading() {
            return Err("a change is lost".into());
        }
        Ok(())
    }
}

/// What the explorer needs to see.
impl Supervise {
    /// The same state, if only absolute times, pids and counters were different.
    fn canonical(
        &self,
        pid: impl Fn(Pid) -> Pid,
        shift: impl Fn(Moment) -> Moment,
        born: impl Fn(Moment) -> Moment,
    ) -> Supervise {
        let mut plan = self.clone();
        for worker in &mut plan.workers {
            worker.pid = pid(worker.pid);
            worker.born = born(worker.born);
            worker.generation = 0;
            match &mut worker.state {
                State::Booting { ready_at: Some(at) } | State::Draining { kill_at: at } => *at = shift(*at),
                State::Booting { ready_at: None } | State::Ready | State::Killed => {}
            }
        }
        plan.workers.sort_by_key(|worker| worker.pid);
        plan.slots.iter_mut().for_each(|slot| slot.due = slot.due.map(&shift));
        (plan.generation, plan.reload) = (1, 1);
        plan
    }

    fn phase_name(&self) -> String {
        format!("{:?}", self.phase).split([' ', '{']).next().unwrap_or_default().to_string()
    }

    fn takes_changes(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Dormant | Phase::Draining { .. })
    }

    fn reloading(&self) -> bool {
        matches!(self.phase, Phase::Looking { .. } | Phase::Draining { .. } | Phase::HandingOff)
    }

    fn next_image(&self) -> Supervise {
        Supervise::new(self.config.clone(), self.generation, self.reload)
    }

    /// Pid and slot of each worker.
    fn workers(&self) -> Vec<(Pid, usize)> {
        self.workers.iter().map(|worker| (worker.pid, worker.slot)).collect()
    }
}

#[test]
fn every_reachable_state() {
    let mut explorer = Explorer { pairs: BTreeSet::new(), seen: HashMap::new(), todo: VecDeque::new() };
    for reexec in [true, false] {
        for watching in [true, false] {
            let config = |slots| Config { slots, reexec, watching, shutdown_timeout: TIMEOUT };
            explorer.explore(World::new(config(1), 6));
            explorer.explore(World::new(config(2), 1));
            // Two slots, one of which has failed four times: its next failure is the last.
            let mut world = World::new(config(2), 5);
            world = explorer.step(&world, Event::Start, GOOD).unwrap().0;
            for _ in 0..4 {
                let pid = world.procs.iter().map(|proc| proc.pid).max().unwrap();
                world = explorer.step(&world, Event::Exited { pid, how: How::Code(1) }, GOOD).unwrap().0;
                world.now += Duration::from_secs(1);
                world = explorer.step(&world, Event::Time, GOOD).unwrap().0;
            }
            explorer.explore(world);
        }
    }
    println!("{} states, {} pairs of phase and event", explorer.seen.len(), explorer.pairs.len());
    // Every pair is visited, but for the phases that last only until the shell's answer.
    let phases = ["New", "Serving", "Looking", "Draining", "HandingOff", "Dormant", "Stopping"];
    let events = [
        "Start",
        "Change",
        "WatchLost",
        "Term",
        "Int",
        "Hangup",
        "Quit",
        "Hup",
        "Usr1",
        "Usr2",
        "Ttin",
        "Ttou",
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
                // Nothing is forked there.
                ("New" | "Draining" | "HandingOff" | "Dormant" | "Stopping", "Forked" | "ForkFailed") => false,
                // Nobody lives there.
                ("New" | "HandingOff", "Serving") => false,
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
