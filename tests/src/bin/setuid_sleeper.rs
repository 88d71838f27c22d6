//! `setuid_sleeper`: a setuid program that writes its pid to stderr and sleeps for two minutes. It sets its real uid to 0,
//! so that its caller cannot kill it (kill(2)).

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
