//! One line to syslogd(8) for every decision, and one line to the caller for every refusal. Both may hold
//! words of the caller's: no byte of them ends the line or moves a terminal's cursor.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::error::Stop;
use crate::fixed;
use crate::policy::Syslog;
use crate::request::Request;

/// `LOG_AUTH`: security messages (syslog(3)).
const FACILITY: u8 = 4 << 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
/// A longer line is cut: RFC 3164 has 1024 bytes for all of it.
const LINE: usize = 900;

/// What is known of the request so far.
pub(crate) struct Log {
    who: u32,
    what: String,
    demand: Syslog,
}

impl Log {
    pub(crate) fn new(who: u32) -> Self {
        Self {
            who,
            what: String::new(),
            demand: Syslog::BestEffort,
        }
    }

    /// From now on a decision that no log takes is no decision.
    pub(crate) fn demand(&mut self, demand: Syslog) {
        self.demand = demand;
    }

    pub(crate) fn concerns(&mut self, request: &Request) {
        self.what = request.to_string();
    }

    /// Written before the deed, so that none is without its line.
    pub(crate) fn allowed(&self, detail: &str) -> Result<(), Stop> {
        let line = format!("allowed uid={} {} {detail}", self.who, self.what);
        match (send(NOTICE, &line), self.demand) {
            (Err(error), Syslog::Required) => Err(Stop::NoLog(error)),
            _ => Ok(()),
        }
    }

    /// A refusal stands, also where no log takes it.
    pub(crate) fn refused(&self, stop: &Stop) {
        // What the system would not do was not refused by anybody.
        let word = match stop {
            Stop::System { .. } | Stop::NoProgram(_) | Stop::NotEmpty { .. } => "failed",
            _ => "refused",
        };
        let line = format!(
            "{word} uid={} {} why={}",
            self.who,
            self.what,
            stop.reason()
        );
        let _ = send(WARNING, &line);
    }
}

fn send(severity: u8, line: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A log that nobody reads must not hold anybody up for ever.
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    let pid = std::process::id();
    let mut message = format!(
        "<{}>colibri-jail-helper[{pid}]: {}",
        FACILITY | severity,
        plain(line)
    );
    message.truncate(LINE);
    socket.connect(fixed::log())?;
    socket.send(message.as_bytes()).map(drop)
}

/// The caller's one line, on descriptor 2.
pub(crate) fn complain(stop: &Stop) {
    let _ = writeln!(
        io::stderr(),
        "colibri-jail-helper: {}",
        plain(&stop.to_string())
    );
}

/// Printable ASCII as it is, and everything else escaped.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            shown.push(c);
        } else {
            let _ = write!(shown, "{}", c.escape_default());
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_ends_a_line_or_reaches_a_terminal(text in ".*") {
            prop_assert!(plain(&text).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn what_is_harmless_stays_readable() {
        assert_eq!(
            plain("a b\n\u{1b}[2J\u{202e}ö"),
            "a b\\n\\u{1b}[2J\\u{202e}\\u{f6}"
        );
    }
}
