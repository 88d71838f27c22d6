//! `setuid_sleeper`: a setuid program that does not end. It becomes root also by its real uid, so that its caller cannot
//! kill it (kill(2)), writes its pid to stderr, and waits for a signal for at most two minutes.

#![forbid(unsafe_code)]
#![allow(clippy::panic)]

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let error = Command::new("/bin/sh")
        .args(["-c", "echo pid $$ >&2; exec sleep 120"])
        .uid(0)
        .exec();
    panic!("cannot execute /bin/sh as root: {error}");
}
