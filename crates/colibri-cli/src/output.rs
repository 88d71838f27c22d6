//! Writes messages to stderr and results to stdout, and sanitizes untrusted text for a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use colibri_client::ConnectionEvent;
use colibri_types::is_unprintable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::error::CliError;

/// Maximum time to wait until stderr accepts a message; after it the message is dropped.
const STDERR_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// Returns the text of a message, which may quote what others chose: characters that a terminal obeys or does not show are
/// replaced, except newlines.
pub(crate) fn printable(text: &str) -> String {
    let replace = |c| match c {
        '\n' => c,
        '\t' => ' ',
        c if is_unprintable(c) => '?',
        c => c,
    };
    text.chars().map(replace).collect()
}

/// Returns a message as printed on stderr.
pub(crate) fn message_line(text: &str) -> String {
    format!("colibri: {}\n", printable(text))
}

/// Writes a message to stderr. A blocked stderr delays the command by at most [`STDERR_TIMEOUT`].
pub(crate) fn message(text: &str) {
    let (stderr, line) = (io::stderr(), message_line(text));
    // Without the buffers and locks of `std`. A pipe that poll(2) reports as writable accepts this many bytes.
    for part in line.as_bytes().chunks(4096) {
        let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
        match poll(&mut polled, Some(&STDERR_TIMEOUT)) {
            Ok(1..) => drop(rustix::io::write(&stderr, part)),
            Ok(0) | Err(_) => return,
        }
    }
}

/// Writes a message about a connection to stderr.
pub(crate) async fn connection_event(event: ConnectionEvent) {
    message(&event.to_string());
}

/// Writes the warnings of a spawn to stderr, with options in place of field names.
pub(crate) fn warnings(warnings: &[String]) {
    for warning in warnings {
        message(&crate::flags::with_options(warning));
    }
}

/// Writes to stdout. A reader that has closed the pipe is not an error.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), CliError> {
    match print_while_read(text.as_ref()) {
        Err(CliError::ReaderClosed) => Ok(()),
        other => other,
    }
}

/// Writes to stdout; fails with [`CliError::ReaderClosed`] if the reader has closed the pipe.
pub(crate) fn print_while_read(bytes: &[u8]) -> Result<(), CliError> {
    write_while_read(io::stdout(), "cannot write to stdout", bytes)
}

/// Writes to stdout or stderr; `context` is the start of the message of a failure.
pub(crate) fn write_while_read(
    mut to: impl Write,
    context: &'static str,
    bytes: &[u8],
) -> Result<(), CliError> {
    let written = to.write_all(bytes).and_then(|()| to.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::ReaderClosed,
        _ => CliError::io(context)(error),
    })
}

/// Returns one line of JSON, in which characters that a terminal obeys or does not show are escaped.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, CliError> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| CliError::io("cannot write JSON")(error.into()))?;
    Ok(escape_json(&text) + "\n")
}

/// Escapes unprintable characters of a JSON text, which are in strings only.
fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unprintable(c) {
            true => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
            false => escaped.push(c),
        }
    }
    escaped
}

/// Writes a result to stdout: as one line of JSON if `json`, otherwise as `text`.
pub(crate) fn print_result<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    print(if json { json_line(value)? } else { text(value) })
}

/// Returns whether to use colour: on a terminal, and without `NO_COLOR` (no-color.org).
pub(crate) fn in_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns text with an SGR code, if colour is used.
pub(crate) fn coloured(text: &str, code: &str) -> String {
    match in_colour() {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// Sanitizes untrusted text for a terminal: replaces control, bidirectional and invisible characters, and truncates to
/// `width` characters.
pub(crate) fn sanitize(text: &str, width: usize) -> String {
    let clean = printable(text).replace('\n', "?");
    if clean.chars().count() <= width {
        return clean;
    }
    clean
        .chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_contains_no_raw_unprintable_characters() {
        let value = "a\u{9b}31m\u{202e}\u{e0041}\u{1b}ä\n";
        let line = json_line(&value).unwrap();
        assert_eq!(line, "\"a\\u009b31m\\u202e\\udb40\\udc41\\u001bä\\n\"\n");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), value);
    }
}
