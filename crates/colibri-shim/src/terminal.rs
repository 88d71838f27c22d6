//! The pseudo-terminal of a run (pty(7), pts(4)).

use std::fs::File;
use std::os::fd::OwnedFd;

use colibri_types::TerminalSize;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Result;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Both ends of a new pseudo-terminal. Neither is the controlling terminal of this process.
pub(crate) struct Terminal {
    /// The shim's end, non-blocking.
    pub(crate) master: OwnedFd,
    /// The agent's end.
    pub(crate) agent: File,
}

impl Terminal {
    /// Creates a terminal of this size.
    ///
    /// # Errors
    /// The system has no more of them, or no descriptor.
    pub(crate) fn open(size: TerminalSize) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let agent = open(name.as_c_str(), flags, Mode::empty())?;
        resize(&master, size)?;
        Ok(Self {
            master,
            agent: agent.into(),
        })
    }
}

/// Sets the size of a terminal. The kernel sends SIGWINCH to the foreground process group if it changes.
pub(crate) fn resize(master: &OwnedFd, size: TerminalSize) -> Result<()> {
    tcsetwinsize(
        master,
        Winsize {
            ws_row: size.rows(),
            ws_col: size.cols(),
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
}
