//! Signals: those that the shim receives, and the names of those that it sends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGTERM};
use signal_hook::low_level::{pipe, signal_name};

/// Returns the host's signal of a name that [`colibri_jail_core::Signal::name`] returns.
pub(crate) fn by_name(name: &str) -> Option<Signal> {
    let parsed: colibri_jail_core::Signal = name.parse().ok()?;
    let full_name = (parsed.name() == name).then(|| format!("SIG{name}"))?;
    (1..32)
        .filter_map(Signal::from_named_raw)
        .find(|signal| signal_name(signal.as_raw()) == Some(&full_name))
}

/// Returns the name of a signal, without `SIG`; the inverse of [`by_name`].
pub(crate) fn name(signal: Signal) -> Option<&'static str> {
    signal_name(signal.as_raw())?.strip_prefix("SIG")
}

/// The signals that the shim receives, as readable descriptors.
pub(crate) struct Signals {
    /// SIGCHLD.
    pub(crate) child_ended: SignalPipe,
    /// SIGTERM.
    pub(crate) terminate: SignalPipe,
}

impl Signals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// The system refuses descriptors or handlers.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            child_ended: SignalPipe::new(SIGCHLD)?,
            terminate: SignalPipe::new(SIGTERM)?,
        })
    }

    /// Returns the descriptors to poll for input.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.child_ended.0.as_fd(), self.terminate.0.as_fd()].into_iter()
    }
}

/// A descriptor that becomes readable when a signal is received.
pub(crate) struct SignalPipe(pub(crate) UnixStream);

impl SignalPipe {
    fn new(signal: i32) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        pipe::register(signal, writer)?;
        Ok(Self(reader))
    }

    /// Empties the pipe. Returns whether the signal has been received since the last call.
    pub(crate) fn take(&self) -> bool {
        let mut received = false;
        while matches!(rustix::io::read(&self.0, &mut [0; 64]), Ok(count) if count > 0) {
            received = true;
        }
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_signal_exists_on_the_host() {
        for name in [
            "HUP", "INT", "QUIT", "ABRT", "KILL", "USR1", "USR2", "ALRM", "TERM", "CONT", "STOP",
            "TSTP", "TTIN", "TTOU", "WINCH",
        ] {
            let signal = by_name(name).unwrap();
            assert_eq!(super::name(signal), Some(name));
        }
        assert_eq!(by_name("TERM"), Some(Signal::TERM));
        for name in ["SIGTERM", "term", "CHLD", "SEGV", "15", ""] {
            assert_eq!(by_name(name), None, "{name}");
        }
    }
}
