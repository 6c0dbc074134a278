//! The explorer's toy kernel: processes that live and die, and the promises that hold in every state.

use crate::log::{How, Note};
use crate::plan::supervise::*;
use crate::plan::Moment;
use std::collections::VecDeque;
use std::time::Duration;

/// Every timeout, as long as the supervisor's own first waits: fewer combinations of times.
pub(super) const TIMEOUT: Duration = Duration::from_millis(100);

/// A process of the toy kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Toy {
    pub(super) pid: Pid,
    termed: Option<Moment>,
    killed: bool,
    /// It has ended, and processes of its group have not.
    left: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) plan: Supervise,
    pub(super) now: Moment,
    pub(super) procs: Vec<Toy>,
    /// Deaths and failing forks that the exploration still allows: keeps the number of states in hand.
    pub(super) trouble: u8,
    /// Workers that may still leave processes in their group.
    pub(super) leave: u8,
    /// As many slots as TTIN may ask for.
    most: usize,
    next_pid: Pid,
    /// A check runs.
    checking: bool,
    /// A stop was asked for.
    stopping: bool,
    /// A change that no exec, no new generation and no line has answered yet.
    owed: bool,
    pub(super) exited: bool,
}

/// How what is asked for at once goes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Luck {
    Good,
    ForkFails,
    LookBad,
    LookSame,
    LookLater,
}

pub(super) const GOOD: Luck = Luck::Good;

impl Luck {
    const FORK: [Luck; 1] = [Luck::ForkFails];
    const LOOK: [Luck; 3] = [Luck::LookBad, Luck::LookSame, Luck::LookLater];
}

fn change(own: bool) -> Event {
    Event::Change { own, others: !own, path: "code".into() }
}

impl World {
    pub(super) fn new(config: Config, most: usize, trouble: u8) -> World {
        let now = Duration::from_secs(100);
        let plan = Supervise::new(now, config, Past::default());
        World {
            plan,
            now,
            procs: vec![],
            trouble,
            leave: 0,
            most,
            next_pid: 2,
            checking: false,
            stopping: false,
            owed: false,
            exited: false,
        }
    }

    /// The same world with times relative to now, pids in order and counters at their start.
    pub(super) fn canonical(&self) -> World {
        let mut world = self.clone();
        let base = Duration::from_secs(100);
        let past = self.now;
        world.now = base;
        world.plan = self.plan.canonical(past, base, |pid| self.order(pid));
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
    pub(super) fn possible(&self) -> Vec<Event> {
        let mut events = vec![
            Event::Start,
            change(false),
            change(true),
            Event::WatchLost,
            Event::Time,
            // Facts about nobody, and answers to questions that were not asked.
            Event::ExecFailed { why: String::new() },
            Event::Exited { pid: 1, how: How::Unknown, left: false },
            Event::Emptied { pid: 1 },
            Event::Ready { pid: 1 },
            Event::Serving { pid: 1 },
            Event::Refused { pid: 1, code: 126, why: String::new() },
            Event::Checked(Verdict::Good),
        ];
        if self.plan.phase_name() != "Looking" {
            events.push(Event::Looked(Verdict::Good));
        }
        if self.checking {
            events.push(Event::Checked(Verdict::Bad(String::new())));
            events.push(Event::Checked(Verdict::Later(String::new(), TIMEOUT)));
        }
        use Signal::*;
        for signal in [Term, Int, Hangup, Quit, Hup, Usr1, Usr2, Ttou] {
            events.push(Event::Signal(signal));
        }
        if self.plan.slots() < self.most {
            events.push(Event::Signal(Ttin));
        }
        for proc in &self.procs {
            let pid = proc.pid;
            if proc.left {
                events.extend([Event::Emptied { pid }, Event::Ready { pid }, Event::Serving { pid }]);
                continue;
            }
            if !proc.killed {
                events.push(Event::Ready { pid });
                events.push(Event::Serving { pid });
                events.push(Event::Refused { pid, code: 127, why: String::new() });
            }
            if proc.killed || proc.termed.is_some() || self.trouble > 0 {
                events.push(Event::Exited { pid, how: How::Signal(9), left: false });
                if self.leave > 0 {
                    events.push(Event::Exited { pid, how: How::Signal(9), left: true });
                }
            }
        }
        events
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Exited { pid, left, .. } => {
                let now = self.now;
                if let Some(proc) = self.procs.iter_mut().find(|proc| proc.pid == *pid) {
                    if proc.termed.is_none() && !proc.killed {
                        self.trouble -= 1;
                    }
                    // What it leaves is asked to end in the same instant.
                    proc.termed.get_or_insert(now);
                    proc.left = *left;
                    self.leave -= u8::from(*left);
                }
                self.procs.retain(|proc| proc.pid != *pid || proc.left);
            }
            Event::Emptied { pid } => self.procs.retain(|proc| proc.pid != *pid),
            Event::Checked(_) => self.checking = false,
            Event::Change { .. } => self.owed = true,
            Event::Signal(Signal::Term | Signal::Int | Signal::Hangup | Signal::Quit) => self.stopping = true,
            _ => {}
        }
    }

    /// One event and the answers to what it asks for: the world that follows and how it could have gone otherwise, or
    /// what was broken.
    pub(super) fn step(
        &self,
        event: Event,
        luck: Luck,
        visited: &mut Vec<(&'static str, &'static str)>,
    ) -> Result<(World, &'static [Luck]), String> {
        let mut next = self.clone();
        let mut otherwise: &[Luck] = &[];
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            visited.push((next.plan.phase_name(), super::explorer::name(&event)));
            let before = next.clone();
            next.happens(&event);
            let mut actions = Vec::new();
            next.plan.step(next.now, event.clone(), &mut actions);
            next.check_step(&before, &event, &actions)?;
            // Whoever is forked from now on loads what is there now.
            next.owed &= next.plan.generation() <= before.plan.generation();
            for action in actions {
                match action {
                    Action::Fork { .. } if otherwise.is_empty() => otherwise = &Luck::FORK,
                    Action::Look { .. } => otherwise = &Luck::LOOK,
                    _ => {}
                }
                next.perform(action, luck, &mut queue)?;
            }
        }
        next.check_state()?;
        Ok((next, otherwise))
    }

    fn perform(&mut self, action: Action, luck: Luck, queue: &mut VecDeque<Event>) -> Result<(), String> {
        match action {
            Action::Fork { slot } if luck == Luck::ForkFails && self.trouble > 0 => {
                self.trouble -= 1;
                queue.push_back(Event::ForkFailed { slot, why: String::new() });
            }
            Action::Fork { slot } => {
                let pid = self.next_pid;
                self.next_pid += 1;
                self.procs.push(Toy { pid, termed: None, killed: false, left: false });
                queue.push_back(Event::Forked { slot, pid });
            }
            Action::Term { pid } => {
                let now = self.now;
                let proc = self.procs.iter_mut().find(|p| p.pid == pid && !p.killed && !p.left);
                proc.ok_or("TERM to nobody")?.termed.get_or_insert(now);
            }
            Action::Kill { pid } => {
                let proc = self.procs.iter_mut().find(|p| p.pid == pid).ok_or("KILL to nobody")?;
                let waited = proc.termed.is_some_and(|at| self.now >= at + TIMEOUT);
                if !waited && !self.stopping {
                    return Err("KILL before TERM and the timeout".into());
                }
                proc.killed = true;
            }
            Action::Relay { pid } => {
                self.procs.iter().find(|p| p.pid == pid && !p.left).ok_or("USR1 to nobody")?;
            }
            Action::Forget { pid } => {
                let at = self.procs.iter().position(|p| p.pid == pid && p.left && p.killed);
                self.procs.remove(at.ok_or("somebody is forgotten that lives, or was not killed")?);
            }
            Action::Look { only_own, last, .. } => {
                queue.push_back(Event::Looked(match luck {
                    Luck::LookBad => Verdict::Bad(String::new()),
                    Luck::LookSame if only_own => Verdict::Same,
                    Luck::LookLater if !last => Verdict::Later(String::new(), TIMEOUT),
                    _ => Verdict::Good,
                }));
            }
            Action::Check { .. } if self.checking => return Err("two checks at once".into()),
            Action::Check { .. } => self.checking = true,
            Action::EndCheck if !self.checking => return Err("no check to end".into()),
            Action::EndCheck => self.checking = false,
            Action::Exit { .. } => self.exited = true,
            // A line has answered.
            Action::Say(Note::Dropped { .. } | Note::Same { .. }) => self.owed = false,
            Action::HandOff | Action::RollBack | Action::Settled | Action::Quiet { .. } | Action::Say(_) => {}
        }
        Ok(())
    }

    /// The image that is executed.
    pub(super) fn next_image(&self, back: bool) -> World {
        let mut world = self.clone();
        world.plan = self.plan.next_image(self.now, back);
        // What is left of the dead is nobody's child there: it is not followed any more.
        world.procs.iter_mut().for_each(|proc| proc.left = false);
        // It is what is there now; unless it is the old one.
        world.owed &= back;
        world
    }

    /// What one event may do.
    fn check_step(&self, before: &World, event: &Event, actions: &[Action]) -> Result<(), String> {
        let execs = |a: &&Action| matches!(a, Action::HandOff | Action::RollBack);
        let handoffs = actions.iter().filter(execs).count();
        if handoffs > 1 || (handoffs == 1 && !actions.iter().rev().take(1).any(|a| execs(&a))) {
            return Err("an exec not once and last".into());
        }
        let live = |wanted: bool| self.plan.adopted().filter(|w| !wanted || w.kill_at.is_none()).count();
        if handoffs == 1 && !self.plan.config.overlap && live(true) > 0 {
            return Err("drain first: an exec before all are drained".into());
        }
        if actions.iter().any(|a| matches!(a, Action::Fork { .. })) && self.stopping {
            return Err("a fork after a stop was asked for".into());
        }
        let (was, is) = (before.plan.generation(), self.plan.generation());
        let goes_back = matches!(event, Event::ExecFailed { .. } | Event::Change { .. }) || !before.plan.is_good();
        if is < was && !goes_back {
            return Err("the generation went back".into());
        }
        // Overlap: nothing but a death, a stop or a slot that is taken away leaves nobody who accepts.
        let excused = self.stopping || matches!(event, Event::Exited { .. } | Event::Signal(Signal::Ttou));
        // The old workers are dead, and not all of the new become ready: the way back.
        let excused = excused || actions.last() == Some(&Action::RollBack) && !before.plan.others_accept();
        if self.plan.config.overlap && !excused && before.plan.accepting() && !self.plan.accepting() {
            return Err("a gap".into());
        }
        Ok(())
    }

    /// What holds in every state.
    fn check_state(&self) -> Result<(), String> {
        let workers: Vec<Adopted> = self.plan.adopted().collect();
        let mut places: Vec<(u64, usize)> = workers.iter().map(|w| (w.generation, w.slot)).collect();
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two workers of one generation in one slot".into());
        }
        places.dedup_by_key(|place| place.0);
        if places.len() > 2 {
            return Err("three generations live".into());
        }
        let mut have: Vec<Pid> = workers.iter().map(|w| w.pid).collect();
        let mut live: Vec<Pid> = self.procs.iter().map(|proc| proc.pid).collect();
        have.sort_unstable();
        live.sort_unstable();
        if have != live {
            return Err("the plan's workers are not those that live".into());
        }
        if self.exited && !live.is_empty() {
            return Err("an exit that leaves workers behind".into());
        }
        if self.exited && self.checking {
            return Err("an exit that leaves a check behind".into());
        }
        if self.stopping && !self.exited && live.is_empty() {
            return Err("stopping, nobody left, and no exit".into());
        }
        // After a stop every worker is asked to end, and killed at the latest when the timeout is over.
        let forgotten = |proc: &&Toy| proc.termed.is_none() && !proc.killed;
        if self.stopping && self.procs.iter().any(|proc| forgotten(&proc)) {
            return Err("a worker that a stop has forgotten".into());
        }
        let deadline = self.plan.deadline();
        if self.procs.iter().any(|proc| !proc.killed && proc.termed.is_some()) && deadline.is_none() {
            return Err("a draining worker without a deadline".into());
        }
        let phase = self.plan.phase_name();
        if self.checking != (phase == "Checking") {
            return Err("a check that nobody waits for, or that does not run".into());
        }
        if matches!(phase, "Booting" | "Looking" | "Checking") && deadline.is_none() {
            return Err("waiting for ever".into());
        }
        // Once this generation has taken over, nobody else is kept.
        let kept = |proc: &&Toy| workers.iter().any(|w| w.pid == proc.pid && w.generation != self.plan.generation());
        if phase == "Serving" && self.plan.is_good() && self.procs.iter().filter(forgotten).any(|proc| kept(&proc)) {
            return Err("a worker of another generation that nobody ends".into());
        }
        let left = self.procs.iter().any(|proc| proc.left);
        if phase == "Waiting" && !left && workers.iter().all(|w| w.generation == self.plan.generation()) {
            return Err("waiting for nobody".into());
        }
        if phase == "Serving" && self.plan.forgotten_slot() {
            return Err("a slot that nobody fills".into());
        }
        // A change is answered by a new generation, an exec or a line; or the reload for it is under way or pending.
        let answered = self.plan.reloading() || self.plan.pending().is_some();
        if self.owed && !self.stopping && !self.exited && !answered && phase != "Stopping" {
            return Err("a change is lost".into());
        }
        if self.plan.pending().is_some() && matches!(phase, "Serving" | "Dormant") {
            return Err("a pending reload that does not begin".into());
        }
        Ok(())
    }
}
