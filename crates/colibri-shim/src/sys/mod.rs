//! The boundary to the system: all that differs between Linux and FreeBSD, and the unsafe blocks.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::{
    become_reaper, descendants, sandbox_has_program, signal_all, stop_running,
};
#[cfg(target_os = "linux")]
pub(crate) use linux::{become_reaper, descendants, sandbox_has_program, signal_all, stop_running};

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;

use colibri_types::ProcessLimits;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, setrlimit, umask};

/// The signals that a request may name, spelled as in signal(7) without `SIG`.
const SIGNALS: &[(&str, Signal)] = &[
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ABRT", Signal::ABORT),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("WINCH", Signal::WINCH),
];

/// The host's signal of that name.
pub(crate) fn signal_by_name(name: &str) -> Option<Signal> {
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, signal)| *signal)
}

/// Prepares the process of a command. It enters the cgroup of `door`, and gets the limits, the umask, an empty signal
/// mask and the default action for every signal. The kernel kills it when the shim dies, so that a killed shim leaves
/// no unsupervised agent.
pub(crate) fn before_exec(
    command: &mut Command,
    door: Option<File>,
    limits: ProcessLimits,
    mask: u32,
) {
    let shim = getpid();
    // The type is 16 bits wide on FreeBSD.
    let mask = Mode::from_bits_truncate((mask & 0o777) as _);
    // A shim that waited for its agent may have been started while its parent had few descriptors left.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, most);
    // SAFETY: the closure runs between fork(2) and execve(2) of a single-threaded process and makes a few
    // system calls; it neither allocates nor takes a lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            if let Some(door) = &door {
                rustix::io::write(door, b"0")?;
            }
            match limits.open_files {
                Some(most) => limit(Resource::Nofile, Some(most))?,
                None => lower(Resource::Nofile, limits.soft_files)?,
            }
            limit(Resource::Data, limits.data)?;
            umask(mask);
            colibri_sys::signals::reset_for_exec();
            colibri_sys::process::die_with_parent(shim)
        });
    }
}

/// Sets the soft limit alone; one that would be above the hard one is left as it is.
fn lower(resource: Resource, soft: Option<u64>) -> std::io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if soft.is_some_and(|soft| current.is_none_or(|current| soft < current)) {
        let current = soft;
        setrlimit(resource, Rlimit { current, maximum })?;
    }
    Ok(())
}

fn limit(resource: Resource, most: Option<u64>) -> std::io::Result<()> {
    if most.is_some() {
        let both = Rlimit {
            current: most,
            maximum: most,
        };
        setrlimit(resource, both)?;
    }
    Ok(())
}
