//! The watcher's thread: wait, read, debounce, tell.

use super::batch::Batch;
use super::eyes::Eyes;
use super::filter::Filter;
use super::Trouble;
use crate::error::{Error, Op, Result};
use crate::log::{self, Note};
use crate::plan::debounce::Debounce;
use crate::sys::fd::{interest, poll};
use crate::sys::process::{call_out, pass_gate, Gate};
use crate::sys::{self, signal};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

type OnChange = Box<dyn FnMut(&[PathBuf]) + Send>;
type OnTrouble = Box<dyn FnMut(Trouble<'_>) + Send>;

/// What the watcher and its thread share: kept from one start to the next.
pub(super) struct Shared {
    pub(super) filter: Mutex<Filter>,
    on_change: Mutex<OnChange>,
    pub(super) on_trouble: Mutex<Option<OnTrouble>>,
    pub(super) reload: Mutex<Option<Arc<AtomicUsize>>>,
    /// What polling has seen, as one number.
    pub(super) digest: Mutex<Option<u64>>,
    /// A new quiet time in milliseconds, or 0.
    pub(super) quiet: AtomicU32,
}

impl Shared {
    pub(super) fn new(on_change: OnChange) -> Shared {
        Shared {
            filter: Mutex::default(),
            on_change: Mutex::new(on_change),
            on_trouble: Mutex::default(),
            reload: Mutex::default(),
            digest: Mutex::default(),
            quiet: AtomicU32::new(0),
        }
    }

    pub(super) fn filter(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says it, and tells who wants to know.
    pub(super) fn tell(&self, trouble: Trouble<'_>) {
        match trouble {
            Trouble::Rescan => log::warn("file events were lost (the queue was full): everything was read again"),
            Trouble::Degraded(text) => log::warn(text),
            Trouble::Lost(why) => log::say(&Note::WatchLost { why: why.into() }),
        }
        let mut on_trouble = self.on_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(on_trouble) = on_trouble.as_mut() {
            guarded("on_trouble", || on_trouble(trouble));
        }
    }

    /// What cannot be watched.
    pub(super) fn tell_all(&self, trouble: &mut Vec<String>, gate: &mut Option<Gate>) {
        let all = std::mem::take(trouble);
        if !all.is_empty() {
            call_out(gate, || all.iter().for_each(|text| self.tell(Trouble::Degraded(text))));
        }
    }

    /// The line first, so that it is there whatever `on_change` does.
    fn change(&self, paths: &[PathBuf], rescan: bool) {
        if rescan {
            self.tell(Trouble::Rescan);
        }
        let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let reload = reload.as_ref().map(|number| number.load(SeqCst) as u64);
        let (some, more) = (paths.len().min(3), paths.len().saturating_sub(3));
        log::say(&Note::Change { reload, paths: paths[..some].to_vec(), more });
        let mut on_change = self.on_change.lock().unwrap_or_else(PoisonError::into_inner);
        guarded("on_change", || on_change(paths));
    }
}

/// A panic of the user's function is a line.
fn guarded(name: &str, call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        log::warn(format!("{name} panicked: {}", message(panic.as_ref())));
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// A started thread.
pub(super) struct Running {
    thread: Mutex<Option<JoinHandle<()>>>,
    id: std::thread::ThreadId,
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    wake: UnixStream,
}

impl Running {
    pub(super) fn spawn(mut body: Body, wake: UnixStream) -> Result<Running> {
        let (stop, ended) = (body.stop.clone(), body.ended.clone());
        let (ready, begun) = std::sync::mpsc::channel();
        // The thread inherits the mask: no signal ever lands on it.
        let before = signal::block_all();
        let spawned = Builder::new().name("refork-watch".into()).spawn(move || {
            let gate = pass_gate();
            let _ = ready.send(());
            drop(ready);
            body.run(gate);
        });
        signal::set_mask(&before);
        let thread = spawned.map_err(|e| Error::new(Op::Thread, "", e))?;
        let _ = begun.recv();
        let id = thread.thread().id();
        Ok(Running { thread: Mutex::new(Some(thread)), id, stop, ended, wake })
    }

    /// Still running? A stop that was only asked for, from `on_change` itself, is taken back there.
    pub(super) fn resume(&self) -> bool {
        if self.is_self() {
            self.stop.store(false, SeqCst);
        }
        !self.stop.load(SeqCst) && !self.ended.load(SeqCst)
    }

    fn is_self(&self) -> bool {
        std::thread::current().id() == self.id
    }

    /// Asks for the end, and waits for it unless this is the thread itself. Has it ended?
    pub(super) fn stop(&self) -> bool {
        self.stop.store(true, SeqCst);
        if self.is_self() {
            return false;
        }
        let _ = (&self.wake).write(&[0]);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map(JoinHandle::join);
        true
    }
}

/// What runs on the thread.
pub(super) struct Body {
    eyes: Eyes,
    wake: UnixStream,
    shared: Arc<Shared>,
    debounce: Debounce,
    batch: Batch,
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Body {
    pub(super) fn new(eyes: Eyes, wake: UnixStream, shared: Arc<Shared>, quiet: Duration, cap: Duration) -> Body {
        let (stop, ended) = Default::default();
        Body { eyes, wake, shared, debounce: Debounce::new(quiet, cap), batch: Batch::new(), stop, ended }
    }

    fn run(&mut self, gate: Gate) {
        let mut gate = Some(gate);
        let why = match catch_unwind(AssertUnwindSafe(|| self.watch(&mut gate))) {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(panic) => Some(message(panic.as_ref()).to_owned()),
        };
        self.ended.store(true, SeqCst);
        if let Some(why) = why {
            self.shared.tell(Trouble::Lost(&why));
        }
    }

    fn watch(&mut self, gate: &mut Option<Gate>) -> std::io::Result<()> {
        self.eyes.unseen(&mut self.batch);
        if self.batch.count > 0 {
            self.debounce.change(sys::now());
        }
        while !self.stop.load(SeqCst) {
            let quiet = self.shared.quiet.swap(0, SeqCst);
            if quiet > 0 {
                self.debounce.set_quiet(Duration::from_millis(quiet.into()));
            }
            let now = sys::now();
            let due = self.eyes.due().map(|at| at.saturating_sub(now));
            let timeout = self.debounce.wait(now).into_iter().chain(due).min();
            let readable = self.wait(true, timeout, gate)?;
            let mut now = sys::now();
            let before = self.batch.count;
            if readable {
                let pause = self.debounce.pause(now);
                if !pause.is_zero() {
                    self.wait(false, Some(pause), gate)?;
                    now = sys::now();
                }
                self.eyes.read(&self.shared, &mut self.batch, gate)?;
            }
            // A batch is complete when polling, too, has seen nothing more.
            let closing = self.debounce.deadline().is_some_and(|at| at <= now);
            if self.eyes.due().is_some_and(|due| due <= now || closing) {
                self.eyes.sweep(&self.shared, &mut self.batch, gate);
            }
            if self.batch.count > before {
                self.debounce.change(now);
            }
            if self.debounce.fire(sys::now()) {
                let rescan = self.batch.rescan;
                let paths = self.batch.take();
                call_out(gate, || self.shared.change(&paths, rescan));
            }
        }
        Ok(())
    }

    /// Waits without the gate: for a wake-up, for `timeout`, and with `events` for the kernel. Is there something to read?
    fn wait(&mut self, events: bool, timeout: Option<Duration>, gate: &mut Option<Gate>) -> std::io::Result<bool> {
        let inotify = self.eyes.fd().filter(|_| events);
        let mut fds = [interest(Some(self.wake.as_fd())), interest(inotify)];
        *gate = None;
        let polled = poll(&mut fds, timeout);
        *gate = Some(pass_gate());
        polled?;
        if fds[0].revents != 0 {
            let _ = self.wake.read(&mut [0; 16]);
        }
        Ok(fds[1].revents != 0)
    }
}
