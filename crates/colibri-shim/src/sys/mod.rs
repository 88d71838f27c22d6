//! The boundary to the system: all that differs between Linux and FreeBSD, and the unsafe blocks.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
use freebsd::open_descriptors;
#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::{become_reaper, descendants, signal_all};
#[cfg(target_os = "linux")]
use linux::open_descriptors;
#[cfg(target_os = "linux")]
pub(crate) use linux::{become_reaper, descendants, signal_all};

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use colibri_shim::launch::ProcessLimits;
use rustix::io::{close, fcntl_getfd};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

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

/// Closes every descriptor but stdio. Whoever started the daemon may have left some open, and an agent that
/// inherits a directory gets out of its jail by it. To be called before anything is opened.
pub(crate) fn close_inherited() {
    for descriptor in open_descriptors() {
        // SAFETY: nothing of this process is open yet but stdio, so nobody owns the number; it is borrowed to
        // see whether it is open, and closed only then.
        #[allow(unsafe_code)]
        unsafe {
            if fcntl_getfd(BorrowedFd::borrow_raw(descriptor)).is_ok() {
                close(descriptor);
            }
        }
    }
}

/// Prepares the command's process. The kernel ends it when the shim dies, so that a killed shim does not leave
/// its agent running unseen (prctl(2) `PR_SET_PDEATHSIG`, procctl(2) `PROC_PDEATHSIG_CTL`). It enters the cgroup
/// behind `door`, and gets these limits.
pub(crate) fn before_exec(command: &mut Command, door: Option<File>, limits: ProcessLimits) {
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
            Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
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
