//! Pre-fork servers that reload themselves: same pid, same sockets, new code.
//!
//! A **master** binds listening sockets, forks **workers** that inherit them, and watches files. On a change it drains the
//! workers and replaces its own image by the new executable, keeping its pid and its sockets; the new image adopts them and
//! forks workers that run the new code. The sockets never close: who connects meanwhile waits, and is answered.
//!
//! ```no_run
//! use std::io::Write;
//!
//! fn main() -> refork::Result<()> {
//!     refork::Master::new().bind("127.0.0.1:8000").workers(4).watch_executable().run(|worker| {
//!         while let Some((mut stream, _peer)) = worker.accept()? {
//!             let _ = stream.write_all(b"hello\n");
//!         }
//!         Ok(()) // draining
//!     })
//! }
//! ```
//!
//! # The rules
//!
//! 1. [`Master::new`] comes first in `main`: it takes the path, the arguments and what an earlier image left, and changes the
//!    environment. Whatever comes before it runs again at every reload.
//! 2. [`Master::run`] is called on the main thread, and no thread runs before it: it forks, and fork(2) copies one thread.
//!    Threads, runtimes, connection pools and random seeds belong into the worker's function.
//! 3. A worker ends when [`Worker::accept`] returns `None`, or, with an event loop of its own, soon after
//!    [`Worker::drain_fd`] becomes readable. After `shutdown_timeout` it is killed.
//!
//! # Where to go next
//!
//! - [`Master`]: addresses, workers, what is watched, limits; [`Master::run_command`] for workers that are programs, which is
//!   what the command `refork run` does.
//! - [`Worker`]: what the worker's function gets.
//! - [`FileChangeWatcher`]: the watcher alone.
//! - [`exec_self_with_sockets`] and [`adopt_inherited_sockets`]: the hand-off alone, without a master.
//! - `README.md`: the life of a reload line by line, signals, environment, exit codes, limits.

#![deny(unsafe_code)]

mod error;
mod handoff;
mod listener;
mod log;
mod master;
mod plan;
#[allow(unsafe_code)]
mod sys;
mod watch;
mod worker;

pub use error::{Error, Result};
pub use handoff::{adopt_inherited_sockets, exec_self_with_sockets};
pub use listener::{Addr, Listener, Stream};
pub use log::{log_level, monotonic, Level, Sink};
pub use master::{exists, reload, Handover, Master, Ready};
pub use watch::{Backend, FileChangeWatcher, Trouble};
pub use worker::Worker;

// The README's code is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
