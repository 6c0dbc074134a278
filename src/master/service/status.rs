//! The status file: what a script may know, as `key='value'` lines that a shell can source.

use super::Service;
use crate::log;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where it is, what it says, and whether the last try to write it failed.
pub(super) struct Status {
    path: Option<PathBuf>,
    start_time: String,
    said: String,
    failed: bool,
}

impl Status {
    pub(super) fn new(path: Option<PathBuf>) -> Status {
        Status { path, start_time: start_time().unwrap_or_default(), said: String::new(), failed: false }
    }
}

impl Service<'_> {
    /// Writes the status file if there is one and it has something new to say.
    pub(super) fn tell_status(&mut self) {
        let Some(path) = self.status.path.clone() else { return };
        let mut text = String::new();
        let (pid, plan) = (std::process::id(), &self.plan);
        let mut put = |key: &str, value: &str| text.extend([key, "=", &quoted(value), "\n"]);
        put("pid", &pid.to_string());
        put("start_time", &self.status.start_time);
        put("generation", &plan.generation().to_string());
        put("reload", &plan.reload().to_string());
        put("state", plan.state());
        put("workers", &plan.describe_workers());
        let (done, error) = plan.done();
        put("done", &done.to_string());
        put("last_error", error);
        put("image", &self.image.path.to_string_lossy());
        if text == self.status.said {
            return;
        }
        match replace(&path, text.as_bytes()) {
            Ok(()) => (self.status.said, self.status.failed) = (text, false),
            Err(e) if !std::mem::replace(&mut self.status.failed, true) => {
                let path = log::Shown(&path);
                log::warn(format!("cannot write the status file {path}: {e}; it is out of date, the service goes on"));
            }
            Err(_) => {}
        }
    }
}

/// Writes a new file beside it and renames it into place: a reader sees the old text or the new one, and a symbolic
/// link is replaced, not followed.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let aside = path.with_file_name(format!(".refork-status.{}", std::process::id()));
    // Left by a master with this pid that was killed.
    let _ = std::fs::remove_file(&aside);
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(&aside)?;
        // Whatever the umask is.
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.write_all(text)?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&aside);
        e
    })
}

/// When this process started, in the kernel's ticks: proc(5), field 22. Its name may contain anything, so from its end
/// on.
fn start_time() -> Option<String> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// For a shell: in single quotes, on one line.
fn quoted(value: &str) -> String {
    let line = value.trim().replace(|c: char| c.is_control(), " ");
    format!("'{}'", line.replace('\'', r"'\''"))
}
