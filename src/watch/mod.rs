//! Sees what changed on disk.
use crate::error::Result;
use std::path::{Path, PathBuf};
use std::sync::{atomic::AtomicU64, Arc};
use std::time::Duration;
/// Where changes come from.
#[derive(Debug, Clone, Copy)]
pub enum Backend {
    /// auto
    Auto,
    /// p
    Poll(Duration),
}
/// What the watcher's user must know.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Trouble<'a> {
    /// r
    Rescan,
    /// d
    Degraded(&'a str),
    /// l
    Lost(&'a str),
}
/// Watches.
#[derive(Debug)]
pub struct FileChangeWatcher;
#[allow(missing_docs, unused)]
impl FileChangeWatcher {
    pub fn new(
        paths: impl IntoIterator<Item = impl Into<PathBuf>>,
        on_change: impl FnMut(&[PathBuf]) + Send + 'static,
    ) -> Self {
        FileChangeWatcher
    }
    pub fn explicit(self, p: PathBuf) -> Self {
        self
    }
    pub fn follow_symlinks(self, p: bool) -> Self {
        self
    }
    pub fn on_trouble(self, p: impl FnMut(Trouble<'_>) + Send + 'static) -> Self {
        self
    }
    pub fn include(self, p: impl Into<String>) -> Self {
        self
    }
    pub fn exclude(self, p: impl Into<String>) -> Self {
        self
    }
    pub fn watch_filter(self, p: impl Fn(&Path) -> bool + Send + 'static) -> Self {
        self
    }
    pub fn debounce(self, a: Duration, b: Duration) -> Self {
        self
    }
    pub fn backend(self, a: Backend) -> Self {
        self
    }
    pub fn reload_number(self, a: Arc<AtomicU64>) -> Self {
        self
    }
    pub fn on_lost(self, p: impl FnMut(String) + Send + 'static) -> Self {
        self
    }
    pub fn arm(&mut self) -> Result<()> {
        Ok(())
    }
    pub fn spawn(&mut self) -> Result<()> {
        Ok(())
    }
    pub fn start(&mut self) -> Result<()> {
        Ok(())
    }
    pub fn private_fds(&self) -> Vec<i32> {
        vec![]
    }
}
