//! Writes one line to syslogd(8) for every decision and one line to the caller for every failure. Both may contain text
//! of the caller, which is escaped: it cannot end a line or control a terminal.

use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::error::HelperError;
use crate::escape::printable;
use crate::paths;
use crate::policy::Syslog;
use crate::sys::SysError;

/// `LOG_AUTH`: security messages (syslog(3)).
const FACILITY: u8 = 4 << 3;
/// `LOG_WARNING` (syslog(3)).
const WARNING: u8 = 4;
/// `LOG_NOTICE` (syslog(3)).
const NOTICE: u8 = 5;
/// Maximum length of a message, in bytes; a longer one is truncated. RFC 3164 allows 1024 bytes for a packet.
const MAX_MESSAGE: usize = 900;
/// Maximum time to wait for a full log socket.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The log of one call, with what is known about the request so far.
pub(crate) struct AuditLog {
    uid: u32,
    /// The request, for the lines.
    pub(crate) request: String,
    /// Whether [`AuditLog::allowed`] fails if the line cannot be written.
    pub(crate) syslog: Syslog,
}

impl AuditLog {
    /// Returns a log for a caller whose request and policy are not known yet.
    pub(crate) fn new(uid: u32) -> Self {
        Self {
            uid,
            request: String::new(),
            syslog: Syslog::BestEffort,
        }
    }

    /// Logs that the request is allowed; called before the request is performed.
    ///
    /// # Errors
    ///
    /// `NoLog` if the policy requires a log line and it cannot be written.
    pub(crate) fn allowed(&self, detail: &str) -> Result<(), HelperError> {
        let line = format!("allowed uid={} {} {detail}", self.uid, self.request);
        match (send(NOTICE, &line), self.syslog) {
            (Err(error), Syslog::Required) => Err(HelperError::NoLog(error)),
            _ => Ok(()),
        }
    }

    /// Logs a refusal or a failure. A line that cannot be written is dropped: the request is refused all the same.
    pub(crate) fn refused(&self, error: &HelperError) {
        use HelperError as E;
        let outcome = match error {
            E::Sys(SysError::Descriptor(..)) => "refused",
            E::Sys(_)
            | E::NotEmpty { .. }
            | E::Orphaned
            | E::Remains(_)
            | E::Root(..)
            | E::Probe
            | E::ProxyPort { .. }
            | E::ProxyTimeout { .. } => "failed",
            _ => "refused",
        };
        let (uid, request, reason) = (self.uid, &self.request, error.reason());
        let _ = send(
            WARNING,
            &format!("{outcome} uid={uid} {request} why={reason}"),
        );
    }
}

fn send(severity: u8, line: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    let mut message = format!(
        "<{}>colibri-jail-helper[{}]: {}",
        FACILITY | severity,
        std::process::id(),
        printable(line)
    );
    message.truncate(MAX_MESSAGE);
    socket.connect(paths::log())?;
    socket.send(message.as_bytes()).map(drop)
}

/// Prints the failure to the caller, on descriptor 2.
pub(crate) fn print_error(error: &HelperError) {
    let message = printable(&error.to_string());
    let _ = writeln!(io::stderr(), "colibri-jail-helper: {message}");
}
