//! Signals by name: the numbers of many signals differ between Linux and FreeBSD (signal(7), signal(3)).

use std::fmt;
use std::str::FromStr;

use crate::JailError;

/// Names, with the number where POSIX fixes it (kill(1)).
const SIGNALS: &[(&str, Option<u8>)] = &[
    ("HUP", Some(1)),
    ("INT", Some(2)),
    ("QUIT", Some(3)),
    ("ABRT", Some(6)),
    ("KILL", Some(9)),
    ("ALRM", Some(14)),
    ("TERM", Some(15)),
    ("USR1", None),
    ("USR2", None),
    ("CONT", None),
    ("STOP", None),
    ("TSTP", None),
    ("TTIN", None),
    ("TTOU", None),
    ("WINCH", None),
];

/// A signal that callers may send to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(&'static str);

impl Signal {
    /// Requests termination.
    pub const TERM: Self = Self("TERM");
    /// Terminates immediately; cannot be caught.
    pub const KILL: Self = Self("KILL");

    /// Returns the name, without `SIG`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl FromStr for Signal {
    type Err = JailError;

    /// Parses `TERM`, `SIGTERM`, `term`, or a number that POSIX fixes, like `15`.
    fn from_str(text: &str) -> Result<Self, JailError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = text.parse::<u8>().ok();
        SIGNALS
            .iter()
            .find(|(known, fixed)| *known == name || (number.is_some() && *fixed == number))
            .map(|(known, _)| Self(known))
            .ok_or_else(|| {
                let problem = "is unknown; give a name like TERM, INT, HUP, QUIT, KILL, USR1, USR2, CONT, STOP or a portable number";
                JailError::invalid("signal", text, problem)
            })
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The id of a process that may be signalled: never 0 (the caller's process group) or 1 (init).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(u32);

impl Pid {
    /// Validates a process id.
    ///
    /// # Errors
    /// The id is 0 or 1, or negative as pid_t, which kill(2) interprets as a process group.
    pub fn new(pid: u32) -> Result<Self, JailError> {
        if pid > 1 && i32::try_from(pid).is_ok() {
            Ok(Self(pid))
        } else {
            let problem = "cannot belong to an agent; give 2 or more";
            Err(JailError::invalid("process id", pid, problem))
        }
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_parses_by_name_and_posix_number() {
        for (text, name) in [
            ("TERM", "TERM"),
            ("SIGTERM", "TERM"),
            ("term", "TERM"),
            ("15", "TERM"),
            ("9", "KILL"),
            ("usr1", "USR1"),
        ] {
            assert_eq!(text.parse::<Signal>().unwrap().name(), name);
        }
        for bad in ["", "SIG", "0", "-9", "10", "64", "TERM ", "-s"] {
            assert!(bad.parse::<Signal>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pid_of_init_or_group_is_refused() {
        for (pid, good) in [
            (0, false),
            (1, false),
            (2, true),
            (i32::MAX as u32, true),
            (u32::MAX, false),
        ] {
            assert_eq!(Pid::new(pid).is_ok(), good, "{pid}");
        }
    }
}
