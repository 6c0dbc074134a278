//! Pre-fork servers that reload themselves.

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
pub use master::{Handover, Master, Ready};
pub use watch::{Backend, FileChangeWatcher};
pub use worker::Worker;
