//! Sees what changed on disk.
/// Where changes come from.
#[derive(Debug)]
pub enum Backend {}
/// Watches.
#[derive(Debug)]
pub struct FileChangeWatcher;
