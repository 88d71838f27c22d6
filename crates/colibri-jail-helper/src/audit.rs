//! Writes one line to syslogd(8) for every decision and one line to the caller for every failure. Both may contain text
//! of the caller, which is escaped: it cannot end a line or control a terminal. The decision and the caller come first, and
//! each value has a maximum length, so that no value hides another one.
//!
//! If syslogd does not accept the line of an allowed request in time and the policy requires it, the line goes to a fallback
//! file of root's for each caller: any local user can fill the queue of the log socket, but only its own requests fill a
//! caller's file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, SystemTime};

use crate::error::HelperError;
use crate::escape::{printable, shortened};
use crate::paths;
use crate::policy::Syslog;
use crate::safe_open;
use crate::sys;

/// `LOG_AUTH`: security messages (syslog(3)).
const FACILITY: u8 = 4 << 3;
/// `LOG_WARNING` (syslog(3)).
const WARNING: u8 = 4;
/// `LOG_NOTICE` (syslog(3)).
const NOTICE: u8 = 5;
/// Maximum length of a message, in bytes; a longer one is truncated. RFC 5424 recommends that receivers accept 2048 bytes.
const MAX_MESSAGE: usize = 2048;
/// Maximum length of the reason of a refusal, in bytes.
const MAX_REASON: usize = 600;
/// Maximum time to wait for a full log socket.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum length of a caller's fallback file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The log of one call, with what is known about the request so far.
pub(crate) struct AuditLog {
    uid: u32,
    /// The pid that the caller sees, also in the first process of a pid namespace.
    pid: u32,
    /// The request, for the lines.
    pub(crate) request: String,
    /// Whether a request is refused if its decision cannot be logged.
    pub(crate) syslog: Syslog,
}

impl AuditLog {
    /// Returns a log for a caller whose request and policy are not known yet.
    pub(crate) fn new(uid: u32) -> Self {
        Self {
            uid,
            pid: std::process::id(),
            request: String::new(),
            syslog: Syslog::BestEffort,
        }
    }

    /// Logs that the request is allowed; called before the request is performed.
    ///
    /// # Errors
    ///
    /// `NoLog` or `NoLogFile` if the policy requires a log line, and neither syslogd nor, while its socket is full, the fallback
    /// file accepts it.
    pub(crate) fn allowed(&self, detail: &str) -> Result<(), HelperError> {
        let rest = format!("{detail} {}", self.request);
        let line = format!("allowed uid={} {}", self.uid, rest.trim_start());
        match self.send(NOTICE, &line) {
            Err(error) if self.syslog == Syslog::Required && is_full(&error) => {
                append(self.uid, &line).map_err(HelperError::NoLogFile)
            }
            Err(error) if self.syslog == Syslog::Required => Err(HelperError::NoLog(error)),
            _ => Ok(()),
        }
    }

    /// Logs a refusal or a failure. A line that cannot be written is dropped: the request is refused all the same.
    pub(crate) fn refused(&self, error: &HelperError) {
        let outcome = match error.exit_code() {
            sys::EXIT_FAILED => "failed",
            _ => "refused",
        };
        let (uid, request) = (self.uid, &self.request);
        let reason = shortened(&error.reason(), MAX_REASON);
        let rest = format!("{request} why={reason}");
        let line = format!("{outcome} uid={uid} {}", rest.trim_start());
        let _ = self.send(WARNING, &line);
    }

    fn send(&self, severity: u8, line: &str) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let mut message = format!(
            "<{}>colibri-jail-helper[{}]: {}",
            FACILITY | severity,
            self.pid,
            printable(line)
        );
        message.truncate(MAX_MESSAGE);
        socket.connect(paths::log())?;
        socket.send(message.as_bytes()).map(drop)
    }
}

/// Reports whether the receiver of the log socket does not read: the queue is full (Linux: unix(7), FreeBSD: unix(4)).
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ETIMEDOUT | libc::ENOBUFS)
    )
}

/// Appends a line to the fallback file of a caller, which only root can read.
fn append(uid: u32, line: &str) -> Result<(), String> {
    let path = paths::log_files();
    let open = |path| safe_open::private_directory(&path);
    let opened = safe_open::fixed_path(&path).and_then(open);
    let directory = opened.map_err(|error| error.to_string())?;
    let write = || -> io::Result<()> {
        let mut file = File::from(sys::create_file_at(&directory, &uid.to_string(), false)?);
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = time.unwrap_or_default().as_secs();
        let line = format!("{seconds} {}\n", printable(line));
        if file.metadata()?.len() + line.len() as u64 > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.write_all(line.as_bytes())
    };
    write().map_err(|error| format!("cannot write {path}/{uid}: {error}"))
}

/// Prints the failure to the caller, on descriptor 2; to root with what only root may read.
pub(crate) fn print_error(error: &HelperError, caller_uid: u32) {
    let message = match caller_uid {
        0 => error.reason(),
        _ => error.to_string(),
    };
    // Short enough for a pipe that accepts bytes at all: a full one must not keep this process (pipe(7)).
    if sys::is_writable(2) {
        let message = shortened(&message, MAX_MESSAGE);
        let _ = io::stderr().write_all(format!("colibri-jail-helper: {message}\n").as_bytes());
    }
}
