//! A daemon that serves metrics, and a client of them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::{Daemon, SOON};

impl Daemon {
    /// Starts a daemon that serves metrics on a Unix socket.
    pub fn start_with_metrics() -> Self {
        let mut daemon = Self::prepare();
        daemon.launch_with_metrics();
        daemon
    }

    /// Starts the daemon with metrics, or restarts it after its end.
    pub fn launch_with_metrics(&mut self) {
        let mut command = self.command("colibri-daemon");
        command.env(
            "COLIBRI_METRICS",
            format!("unix:{}", socket(self).display()),
        );
        self.launch_command(command);
    }
}

/// Returns the path of the metrics socket.
pub fn socket(daemon: &Daemon) -> PathBuf {
    daemon.path("metrics/metrics.sock")
}

/// Sends an HTTP request and returns everything that the server sends until it closes the connection.
pub fn request(mut stream: impl Read + Write, head: &str) -> String {
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // The connection of a refused client may be reset.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// Returns the current metrics.
pub fn scrape(daemon: &Daemon) -> String {
    let stream = UnixStream::connect(socket(daemon)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let answer = request(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body.to_owned()
}

/// Returns the number of subscriptions since the start of the daemon.
pub fn subscriptions(daemon: &Daemon) -> u64 {
    let text = scrape(daemon);
    let count = text.lines().find_map(|line| {
        line.strip_prefix("colibri_requests_total{method=\"subscribe\",result=\"ok\"} ")
    });
    count.map_or(0, |count| count.parse().unwrap())
}
