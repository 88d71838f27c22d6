//! `setuid_sleeper`: a setuid program that writes its pid to stderr and sleeps for 30 seconds. It sets its real uid to 0, so
//! that its caller cannot kill it (kill(2)). The caller controls nothing of what it executes.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::print_stderr)]

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    eprintln!("pid {}", std::process::id());
    let error = Command::new("/bin/sleep")
        .arg("30")
        .env_clear()
        .uid(0)
        .exec();
    panic!("cannot execute /bin/sleep as root: {error}");
}
