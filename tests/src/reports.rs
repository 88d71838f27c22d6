//! Reports of the `writer` program about its output. They have a dedicated socket, so that they do not depend on the
//! tested code.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::lines::Written;

/// The latest report of a writer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    pub pid: i32,
    pub written: [Written; 2],
    /// Whether the writer has written everything and exits.
    pub done: bool,
    /// Whether the writer has closed its connection, which it does when it ends.
    pub ended: bool,
}

/// The latest report of each writer, by its token.
#[derive(Clone)]
pub struct Reports {
    socket: PathBuf,
    by_token: Arc<Mutex<HashMap<String, Report>>>,
}

impl Reports {
    /// Listens at `socket`.
    pub fn listen(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let reports = Self {
            socket: socket.to_owned(),
            by_token: Arc::default(),
        };
        let by_token = reports.by_token.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let by_token = by_token.clone();
                std::thread::spawn(move || record(stream, &by_token));
            }
        });
        reports
    }

    pub fn socket(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    /// Returns the report of the writer with this token; `None` if it never ran.
    pub fn get(&self, token: &str) -> Option<Report> {
        self.by_token.lock().unwrap().get(token).copied()
    }

    /// Returns the tokens of all writers that ever ran.
    pub fn tokens(&self) -> Vec<String> {
        self.by_token.lock().unwrap().keys().cloned().collect()
    }
}

/// Reads the reports of one writer until it ends.
fn record(stream: impl Read, by_token: &Mutex<HashMap<String, Report>>) {
    let mut reader = BufReader::new(stream);
    let mut token = String::new();
    let mut line = String::new();
    // The kill of a writer may truncate its last line, which is then no report.
    while reader.read_line(&mut line).is_ok() && line.ends_with('\n') {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut by_token = by_token.lock().unwrap();
        match words.as_slice() {
            ["hello", new_token, pid] => {
                (*new_token).clone_into(&mut token);
                by_token.entry(token.clone()).or_default().pid = pid.parse().unwrap();
            }
            ["wrote", output, bytes, checksum] => {
                let output: usize = output.parse().unwrap();
                by_token.entry(token.clone()).or_default().written[output] = Written {
                    bytes: bytes.parse().unwrap(),
                    checksum: checksum.parse().unwrap(),
                };
            }
            ["done"] => by_token.entry(token.clone()).or_default().done = true,
            _ => {}
        }
        line.clear();
    }
    if !token.is_empty() {
        by_token.lock().unwrap().entry(token).or_default().ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_last_report_is_ignored() {
        let all = "hello t 12\nwrote 0 50 99\nwrote 0 70 1234\ndone\n";
        let first_end = "hello t 12\n".len();
        let second_end = first_end + "wrote 0 50 99\n".len();
        let third_end = second_end + "wrote 0 70 1234\n".len();
        for length in 0..=all.len() {
            let by_token = Mutex::default();
            record(&all.as_bytes()[..length], &by_token);
            let reports = by_token.into_inner().unwrap();
            let report = reports.get("t").copied();
            assert_eq!(report.is_some(), length >= first_end, "{length}");
            let Some(report) = report else { continue };
            let bytes = match length {
                _ if length >= third_end => 70,
                _ if length >= second_end => 50,
                _ => 0,
            };
            assert_eq!(
                (
                    report.pid,
                    report.written[0].bytes,
                    report.done,
                    report.ended
                ),
                (12, bytes, length == all.len(), true),
                "{length}"
            );
        }
    }
}
