//! The connection to the monitor of an agent: a root process that runs the agent, signals it and removes its jail.
//! docs/helper-protocol.md specifies its lines.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use colibri_jail_core::SignalScope;
use colibri_types::ExitStatus;
use rustix::process::Signal;

use crate::signals;

/// Maximum length of a line, in bytes; a longer one closes the connection.
const MAX_LINE: usize = 8192;

/// A report of the monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MonitorReport {
    /// The agent's first process has this pid.
    Agent(i32),
    /// The agent's first process has ended.
    Ended(ExitStatus),
    /// A signal was refused, or something could not be removed: the message.
    Problem(String),
}

impl MonitorReport {
    /// Parses a line. Returns `None` for a line of a later protocol.
    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        match word {
            "agent" => Some(Self::Agent(rest.parse().ok().filter(|pid| *pid > 0)?)),
            "exit" => Some(Self::Ended(ExitStatus::Code(rest.parse().ok()?))),
            "signal" => Some(Self::Ended(ExitStatus::Signal(rest.parse().ok()?))),
            "refused" => Some(Self::Problem(format!(
                "the policy of colibri-jail-helper does not allow signal {rest}; add it to signals in helper.toml(5)"
            ))),
            "error" => Some(Self::Problem(rest.to_owned())),
            _ => None,
        }
    }
}

/// A connection to a monitor.
pub(crate) struct MonitorLink {
    socket: UnixStream,
    received: Vec<u8>,
}

impl MonitorLink {
    /// Takes the shim's end of the connection.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            received: Vec::new(),
        })
    }

    /// Returns the descriptor to poll for input.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Requests a signal. Returns whether the request was sent.
    pub(crate) fn signal(&self, signal: Signal, scope: SignalScope) -> bool {
        let Some(name) = signals::name(signal) else {
            return false;
        };
        let line = format!("signal {name} {scope}\n");
        (&self.socket).write_all(line.as_bytes()).is_ok()
    }

    /// Reads the available reports. Returns `false` with them when the connection has ended.
    pub(crate) fn receive(&mut self) -> (Vec<MonitorReport>, bool) {
        let mut buffer = [0; 1024];
        let open = loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break false,
                Ok(count) => {
                    self.received.extend(buffer.iter().take(count));
                    if self.received.len() > MAX_LINE {
                        break false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
            }
        };
        let mut reports = Vec::new();
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            reports.extend(MonitorReport::parse(line.trim_end_matches('\n')));
        }
        (reports, open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> (MonitorLink, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (MonitorLink::new(ours).unwrap(), theirs)
    }

    #[test]
    fn reports_are_read_in_any_portions() {
        let (mut link, mut monitor) = link();
        assert_eq!(link.receive(), (vec![], true));
        monitor.write_all(b"agent 812\nfuture thing\nex").unwrap();
        assert_eq!(link.receive(), (vec![MonitorReport::Agent(812)], true));
        monitor
            .write_all(b"it 7\nsignal 9\nrefused HUP\nerror cannot unmount /x\nagent -1\n")
            .unwrap();
        drop(monitor);
        let (reports, open) = link.receive();
        assert!(!open);
        assert_eq!(
            reports[..2],
            [
                MonitorReport::Ended(ExitStatus::Code(7)),
                MonitorReport::Ended(ExitStatus::Signal(9))
            ]
        );
        assert!(matches!(&reports[2], MonitorReport::Problem(text) if text.contains("signal HUP")));
        assert_eq!(
            reports[3..],
            [MonitorReport::Problem("cannot unmount /x".to_owned())]
        );
    }

    #[test]
    fn signal_is_one_line_and_fails_without_a_monitor() {
        let (link, mut monitor) = link();
        assert!(link.signal(Signal::TERM, SignalScope::All));
        assert!(link.signal(Signal::INT, SignalScope::Group));
        let mut text = [0; 64];
        let count = monitor.read(&mut text).unwrap();
        assert_eq!(&text[..count], b"signal TERM all\nsignal INT group\n");
        drop(monitor);
        assert!(!link.signal(Signal::KILL, SignalScope::All));
    }

    #[test]
    fn endless_line_closes_the_connection() {
        let (mut link, mut monitor) = link();
        monitor.write_all(&[b'x'; MAX_LINE + 1]).unwrap();
        assert_eq!(link.receive(), (vec![], false));
    }
}
