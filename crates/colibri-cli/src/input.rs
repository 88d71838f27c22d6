//! Reads standard input on a separate thread, because read(2) may block forever.

use std::io::{self, BufRead, Read};

use tokio::sync::mpsc;

use crate::error::CliError;

/// Maximum size of a chunk, in bytes.
const MAX_CHUNK: usize = 64 * 1024;
/// Maximum length of a line, in bytes; a longer line is split.
const MAX_LINE: u64 = 1 << 20;

/// Starts the thread; the receiver yields the input in chunks until end of file.
pub(crate) fn chunks() -> Result<mpsc::Receiver<Vec<u8>>, CliError> {
    start(|chunks| {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let chunk = buffer.get(..count).unwrap_or_default().to_vec();
                    if chunks.blocking_send(chunk).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

/// Starts the thread; the receiver yields the input line by line until end of file.
pub(crate) fn lines() -> Result<mpsc::Receiver<String>, CliError> {
    start(|lines| {
        let mut stdin = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match (&mut stdin).take(MAX_LINE).read_until(b'\n', &mut line) {
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
