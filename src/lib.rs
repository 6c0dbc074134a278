//! Pre-fork servers that reload themselves.

#![deny(unsafe_code)]

mod error;
mod log;
mod plan;
#[allow(unsafe_code)]
mod sys;
mod watch;

pub use error::{Error, Result};
pub use log::{Level, Sink};
pub use watch::{Backend, FileChangeWatcher};
