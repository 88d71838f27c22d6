//! Resolves names in a separate process: the server cannot open files, which getaddrinfo(3) needs.
//!
//! The server writes lines `ID NAME`. The resolver answers each by a line `ID ADDRESS…` or `ID !MESSAGE`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use colibri_jail_core::Host;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Maximum number of concurrent lookups, and of threads for them.
const MAX_THREADS: usize = 8;
/// Size of a thread's stack, in bytes: getaddrinfo(3) needs some 64 KiB.
const STACK_SIZE: usize = 512 * 1024;
/// Maximum number of lookups that wait for an answer.
const MAX_LOOKUPS: usize = 64;
/// Maximum number of addresses of one name.
const MAX_ADDRESSES: usize = 16;
/// Maximum length of a line, in bytes: an id, and addresses or a message.
const MAX_LINE: u64 = 1024;
/// Timeout of one lookup.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The number of lookups that run, and its decrease.
type Running = Arc<(Mutex<usize>, Condvar)>;

/// Runs the resolver process until the server closes the connection. A thread exists during a lookup only: threads count
/// towards the agent's process limit.
pub(crate) fn run(connection: UnixStream) -> io::Result<()> {
    let writer = Arc::new(Mutex::new(connection.try_clone()?));
    let running = Running::default();
    let mut reader = BufReader::new(connection);
    loop {
        let mut line = String::new();
        let count = io::Read::take(&mut reader, MAX_LINE).read_line(&mut line)?;
        if count == 0 || !line.ends_with('\n') {
            return Ok(());
        }
        let (count, decreased) = &*running;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = decreased.wait_while(count, |count| *count >= MAX_THREADS);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        let lookup = {
            let (running, writer, line) = (running.clone(), writer.clone(), line.clone());
            move || {
                respond(&line, &writer);
                let (count, decreased) = &*running;
                *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                decreased.notify_one();
            }
        };
        let thread = std::thread::Builder::new().stack_size(STACK_SIZE);
        if thread.spawn(lookup).is_err() {
            // The process limit is reached.
            let (count, _) = &*running;
            *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            respond(&line, &writer);
        }
    }
}

/// Answers a request line. An error of the connection ends the process at its next read.
fn respond(request: &str, writer: &Mutex<UnixStream>) {
    if let Some(answer) = answer(request) {
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.write_all(answer.as_bytes());
    }
}

/// Resolves the name of a request line; `None` if the line is invalid.
fn answer(request: &str) -> Option<String> {
    let (id, name) = request.trim_end().split_once(' ')?;
    let id: u64 = id.parse().ok()?;
    // The server is less trusted than this process.
    let Ok(Host::Name(name)) = name.parse() else {
        return None;
    };
    let mut line = id.to_string();
    match (name.as_str(), 0).to_socket_addrs() {
        Ok(found) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|address| address.ip().to_canonical()) {
                if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
                    addresses.push(address);
                }
            }
            for address in addresses {
                let _ = write!(line, " {address}");
            }
        }
        Err(error) => {
            let message: String = error
                .to_string()
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect();
            let _ = write!(line, " !{message}");
        }
    }
    line.push('\n');
    Some(line)
}

type Answer = Result<Vec<IpAddr>, String>;

/// Lookups without an answer, by id.
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// The server's side of the resolver process.
#[derive(Debug)]
pub(crate) struct Resolver {
    writer: tokio::sync::Mutex<(u64, OwnedWriteHalf)>,
    pending: Pending,
    permits: Semaphore,
}

impl Resolver {
    /// Connects to the resolver process.
    pub(crate) fn new(connection: UnixStream) -> io::Result<Self> {
        connection.set_nonblocking(true)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(connection)?.into_split();
        let pending = Pending::default();
        tokio::spawn(read_answers(reader, pending.clone()));
        Ok(Self {
            writer: tokio::sync::Mutex::new((0, writer)),
            pending,
            permits: Semaphore::new(MAX_LOOKUPS),
        })
    }

    /// Resolves a name; an error is a message.
    pub(crate) async fn lookup(&self, name: &str) -> Answer {
        let _permit = self.permits.acquire().await;
        let ended = || "the resolver has ended; restart the agent".to_owned();
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut writer = self.writer.lock().await;
            let (last, connection) = &mut *writer;
            *last += 1;
            let id = *last;
            lock(&self.pending).insert(id, sender);
            // A name has been validated, so it contains no line break.
            if connection
                .write_all(format!("{id} {name}\n").as_bytes())
                .await
                .is_err()
            {
                lock(&self.pending).remove(&id);
                return Err(ended());
            }
            id
        };
        match timeout(TIMEOUT, receiver).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(ended())),
            Err(_) => {
                lock(&self.pending).remove(&id);
                Err(format!("no answer of the name servers within {TIMEOUT:?}"))
            }
        }
    }
}

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_answers(reader: OwnedReadHalf, pending: Pending) {
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        let read = (&mut reader).take(MAX_LINE).read_line(&mut line).await;
        if read.is_err() || !line.ends_with('\n') {
            // The senders end, and with them the lookups.
            lock(&pending).clear();
            return;
        }
        if let Some((id, answer)) = parse_answer(&line)
            && let Some(sender) = lock(&pending).remove(&id)
        {
            let _ = sender.send(answer);
        }
    }
}

fn parse_answer(line: &str) -> Option<(u64, Answer)> {
    let (id, rest) = match line.trim_end().split_once(' ') {
        Some((id, rest)) => (id, rest),
        None => (line.trim_end(), ""),
    };
    let answer = match rest.strip_prefix('!') {
        Some(message) => Err(message.to_owned()),
        None => Ok(rest
            .split(' ')
            .filter_map(|address| address.parse::<IpAddr>().ok())
            .map(|address| address.to_canonical())
            .collect()),
    };
    Some((id.parse().ok()?, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[allow(clippy::disallowed_methods)]
    async fn names_are_resolved_until_the_resolver_ends() {
        let (server, resolver) = UnixStream::pair().unwrap();
        let second = resolver.try_clone().unwrap();
        let thread = std::thread::spawn(move || run(resolver));
        let client = Resolver::new(server).unwrap();
        let found = client.lookup("localhost").await.unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
        let error = client.lookup("colibri.invalid").await.unwrap_err();
        assert!(!error.is_empty());
        second.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(
            client
                .lookup("localhost")
                .await
                .unwrap_err()
                .contains("ended")
        );
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn invalid_lines_have_no_answer() {
        for line in [
            "",
            "1",
            "x localhost",
            "1 ",
            "1 a b",
            "1 127.0.0.1",
            "1 a/b",
            "1 -x",
            "-1 a",
        ] {
            assert_eq!(answer(line), None, "{line:?}");
        }
        for (line, id, answer) in [
            (
                "7 ::1 10.0.0.1\n",
                7,
                Ok(vec!["::1".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
            ),
            (
                "7 ::ffff:10.0.0.1 x\n",
                7,
                Ok(vec!["10.0.0.1".parse().unwrap()]),
            ),
            ("7\n", 7, Ok(vec![])),
            ("8 !no such name\n", 8, Err("no such name".to_owned())),
        ] {
            assert_eq!(parse_answer(line), Some((id, answer)));
        }
        assert_eq!(parse_answer("x ::1\n"), None);
    }
}
