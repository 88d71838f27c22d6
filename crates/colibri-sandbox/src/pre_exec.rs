//! Restricts a new process between fork(2) and execve(2). The only unsafe code of this program.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Runs `restrict` in the process of `command` before its program is executed. An error of `restrict` is that of the spawn.
pub(crate) fn restrict_before_exec(
    command: &mut Command,
    restrict: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: this program has a single thread, so that the new process has a consistent heap and no held lock.
    unsafe {
        command.pre_exec(restrict);
    }
}
