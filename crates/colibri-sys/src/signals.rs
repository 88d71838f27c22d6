//! The signal state that a process inherits: its mask and its ignored signals (signal(7), execve(2)).

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;

/// Highest signal number plus one: the highest are 64 on Linux (`_NSIG`) and 126 on FreeBSD (`SIGRTMAX`).
const SIGNAL_END: i32 = if cfg!(target_os = "freebsd") { 127 } else { 65 };

/// Unblocks every signal, and resets each ignored signal to its default action, except SIGPIPE, which the Rust runtime
/// ignores on purpose. Handlers stay: a process does not inherit them.
///
/// Call it first in `main`. A process that was started with `nohup`, from a shell script in the background, or by a
/// program that blocks signals would otherwise pass that state on to its children.
pub fn reset_inherited() {
    unblock_all();
    for signal in (1..SIGNAL_END).filter(|signal| *signal != libc::SIGPIPE) {
        reset_if_ignored(signal);
    }
}

/// Does the same as [`reset_inherited`], SIGPIPE included, between fork(2) and execve(2): the new program starts with
/// an empty mask and default actions. Makes only async-signal-safe calls (signal-safety(7)).
pub fn reset_for_exec() {
    unblock_all();
    for signal in 1..SIGNAL_END {
        reset_if_ignored(signal);
    }
}

fn unblock_all() {
    // SAFETY: sigemptyset(3) initializes the set, which lives until pthread_sigmask(3) has read it; the old mask is
    // not requested. Neither call can fail with these arguments.
    unsafe {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

fn reset_if_ignored(signal: i32) {
    // SAFETY: the first call writes the whole structure or fails, and it is read only after success; the second one
    // passes that structure with the action replaced by SIG_DFL, so no handler is installed. KILL, STOP and the
    // numbers that the C library keeps for itself fail with EINVAL, which changes nothing.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
            return;
        }
        let mut action = action.assume_init();
        if action.sa_sigaction == libc::SIG_IGN {
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}
