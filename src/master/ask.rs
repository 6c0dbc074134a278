//! From outside: asking another process, which is a master.

use crate::error::{Error, Op, Result};
use crate::sys;

/// Asks the master with this pid to reload: SIGHUP, as kill(1) sends it. It says nothing of the outcome; the status file
/// does ([`crate::Master::status_file`]).
///
/// # Errors
///
/// No such process (ESRCH), or one that is not ours to signal (EPERM). Whether it is a master cannot be known: a process
/// that does not handle SIGHUP ends.
pub fn reload(pid: u32) -> Result<()> {
    // What does not fit is nobody's.
    let asked = sys::process::ask(i32::try_from(pid).unwrap_or(0), libc::SIGHUP);
    asked.map_err(|e| Error::new(Op::Ask, format!("process {pid}"), e))
}

/// Is there a process with this pid? Whether it is a master cannot be known, nor whether it is the one that had the number
/// before; a process that has ended counts until its parent has asked for it.
pub fn exists(pid: u32) -> bool {
    let asked = sys::process::ask(i32::try_from(pid).unwrap_or(0), 0);
    !asked.is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH))
}
