//! Reads standard input by a thread of its own: a read may block for ever.

use std::io::{self, BufRead, Read};

use tokio::sync::mpsc;

use crate::error::CliError;

/// Most bytes of one piece.
const AT_ONCE: usize = 64 * 1024;
/// Longest line that is typed, in bytes; a longer one comes in pieces.
const LINE: u64 = 1 << 20;

/// Returns what is read, in pieces, to its end.
pub(crate) fn pieces() -> Result<mpsc::Receiver<Vec<u8>>, CliError> {
    start(|pieces| {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; AT_ONCE];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let piece = buffer.get(..count).unwrap_or_default().to_vec();
                    if pieces.blocking_send(piece).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

/// Returns what is read, line by line, to its end.
pub(crate) fn lines() -> Result<mpsc::Receiver<String>, CliError> {
    start(|lines| {
        let mut stdin = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match (&mut stdin).take(LINE).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    let text = text.trim_end_matches(['\n', '\r']).to_owned();
                    if lines.blocking_send(text).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

fn start<T: Send + 'static>(
    read: impl FnOnce(mpsc::Sender<T>) + Send + 'static,
) -> Result<mpsc::Receiver<T>, CliError> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || read(sender))
        .map_err(CliError::Runtime)?;
    Ok(receiver)
}
