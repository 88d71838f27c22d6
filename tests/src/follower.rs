//! A client that reads every byte of an agent exactly once: when its connection ends, it reconnects and continues at
//! its last offset. It uses the wire protocol or `colibri logs -f`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use colibri_proto::{Notification, ServerMessage, Stream};
use serde_json::json;

use crate::SOON;
use crate::lines::Difference;

/// The data that a follower has received.
#[derive(Debug, Default)]
pub struct Followed {
    /// stdout and stderr.
    pub received: [Vec<u8>; 2],
    /// Gaps and repetitions, according to the offsets of the events.
    pub offset_difference: Difference,
    /// Whether the agent's end was reported.
    pub ended: bool,
    /// Reason for which the follower gave up.
    pub error: Option<String>,
    /// The clients to disconnect in [`Follower::disconnect`].
    clients: [Option<ClientHandle>; 2],
}

/// The client of a follower: a connection, or the process with this pid.
#[derive(Debug)]
enum ClientHandle {
    Connection(UnixStream),
    Process(i32),
}

/// A running follower.
pub struct Follower {
    followed: Arc<Mutex<Followed>>,
    threads: Vec<JoinHandle<()>>,
}

impl Follower {
    /// Follows both outputs over one connection.
    pub fn over_wire(socket: PathBuf, id: String) -> Self {
        Self::over_wire_with_pause(socket, id, Duration::ZERO)
    }

    /// Follows both outputs over one connection, with a pause after each message.
    pub fn over_wire_with_pause(socket: PathBuf, id: String, pause: Duration) -> Self {
        let followed = Arc::<Mutex<Followed>>::default();
        let shared = followed.clone();
        let thread = std::thread::spawn(move || {
            retry_until_done(&shared, || follow_once(&socket, &id, pause, &shared));
        });
        Self {
            followed,
            threads: vec![thread],
        }
    }

    /// Follows each output with a `colibri logs -f` process created by `command`.
    pub fn with_logs_command(command: impl Fn() -> Command, id: &str) -> Self {
        let followed = Arc::<Mutex<Followed>>::default();
        let ended_streams = Arc::new(Mutex::new(0));
        let threads = [(0, "stdout"), (1, "stderr")].map(|(output, name)| {
            let (shared, id) = (followed.clone(), id.to_owned());
            let ended_streams = ended_streams.clone();
            let command = command();
            std::thread::spawn(move || {
                retry_until_done(&shared, || {
                    let from = shared.lock().unwrap().received[output].len().to_string();
                    let mut logs = Command::new(command.get_program());
                    let variables = command.get_envs();
                    logs.envs(variables.filter_map(|(name, value)| Some((name, value?))));
                    logs.args(["--no-autostart", "logs", "-f", "--stream", name, "--from"]);
                    let ended = logs_once(logs.args([&from, &id]), output, &shared);
                    if ended {
                        let mut ended_streams = ended_streams.lock().unwrap();
                        *ended_streams += 1;
                        shared.lock().unwrap().ended |= *ended_streams == 2;
                    }
                    ended
                });
            })
        });
        Self {
            followed,
            threads: threads.into(),
        }
    }

    /// Closes the connection or kills the processes of the client, which then reconnects.
    pub fn disconnect(&self) {
        let followed = self.followed.lock().unwrap();
        for client in followed.clients.iter().flatten() {
            match client {
                ClientHandle::Connection(stream) => drop(stream.shutdown(Shutdown::Both)),
                ClientHandle::Process(pid) => crate::kill_9(*pid),
            }
        }
    }

    /// Calls `inspect` with the data received until now.
    pub fn inspect<T>(&self, inspect: impl FnOnce(&Followed) -> T) -> T {
        inspect(&self.followed.lock().unwrap())
    }

    /// Waits until the agent has ended or the follower has given up, and returns the received data.
    pub fn finish(self) -> Followed {
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::try_unwrap(self.followed)
            .unwrap()
            .into_inner()
            .unwrap()
    }
}

/// Repeats `once` until it returns true; gives up after one minute without progress.
fn retry_until_done(shared: &Mutex<Followed>, mut once: impl FnMut() -> bool) {
    let (mut progress_at, mut last_bytes) = (Instant::now(), 0);
    while !once() {
        let mut followed = shared.lock().unwrap();
        if followed.error.is_some() {
            return;
        }
        let bytes: usize = followed.received.iter().map(Vec::len).sum();
        if bytes > last_bytes {
            (progress_at, last_bytes) = (Instant::now(), bytes);
        }
        if progress_at.elapsed() > 3 * SOON {
            followed.error = Some(format!("no progress for {:?}", 3 * SOON));
            return;
        }
        drop(followed);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Follows over one connection; returns whether the agent has ended.
fn follow_once(socket: &Path, id: &str, pause: Duration, shared: &Mutex<Followed>) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    {
        let mut followed = shared.lock().unwrap();
        followed.clients[0] = stream.try_clone().ok().map(ClientHandle::Connection);
        for (output, name) in [(0, "stdout"), (1, "stderr")] {
            let params =
                json!({"id": id, "stream": name, "from_offset": followed.received[output].len()});
            let request =
                json!({"jsonrpc": "2.0", "id": output, "method": "subscribe", "params": params});
            if stream.write_all(format!("{request}\n").as_bytes()).is_err() {
                return false;
            }
        }
    }
    let mut exits = 0;
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return false };
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let Ok(message) = ServerMessage::parse(line.as_bytes()) else {
            return false;
        };
        let mut followed = shared.lock().unwrap();
        match message {
            ServerMessage::Notification(Notification::AgentOutput(event)) => {
                let output = usize::from(event.stream == Stream::Stderr);
                let bytes = event.data.into_bytes().unwrap();
                let next = followed.received[output].len() as u64;
                followed.offset_difference.lost += event.offset.saturating_sub(next);
                let overlap = next.saturating_sub(event.offset).min(bytes.len() as u64);
                followed.offset_difference.repeated += overlap;
                followed.received[output].extend(&bytes[overlap as usize..]);
            }
            ServerMessage::Notification(Notification::AgentExit(_)) => exits += 1,
            ServerMessage::Notification(_) => {}
            ServerMessage::Response(response) => {
                if let Err(error) = response.into_result() {
                    followed.error = Some(error.message);
                    return false;
                }
            }
        }
        if exits == 2 {
            followed.ended = true;
            return true;
        }
    }
    false
}

/// Follows with one run of `colibri logs -f`; returns whether the agent has ended.
fn logs_once(command: &mut Command, output: usize, shared: &Mutex<Followed>) -> bool {
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.unwrap();
    shared.lock().unwrap().clients[output] = Some(ClientHandle::Process(child.id() as i32));
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        let mut followed = shared.lock().unwrap();
        followed.received[output].extend(&buffer[..count]);
    }
    // After wait(2) the pid may be reused.
    shared.lock().unwrap().clients[output] = None;
    let mut message = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut message);
    if message.contains("no agent with") {
        shared.lock().unwrap().error = Some(message);
    }
    child.wait().unwrap().success()
}
