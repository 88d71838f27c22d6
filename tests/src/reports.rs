//! Reports of the `writer` program about its output. They have a dedicated socket, so that they do not depend on the
//! tested code.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
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
fn record(stream: UnixStream, by_token: &Mutex<HashMap<String, Report>>) {
    let mut token = String::new();
    for line in BufReader::new(stream).lines() {
        // The kill of a writer may truncate its last line.
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split(' ').collect();
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
    }
    if !token.is_empty() {
        by_token.lock().unwrap().entry(token).or_default().ended = true;
    }
}
