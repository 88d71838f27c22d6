//! A client that reads every byte of an agent exactly once: it reconnects with its last offset whenever the
//! connection ends. It uses the wire protocol or `colibri logs -f`.

use std::io::{BufRead, BufReader, Read, Write};
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

/// Received data.
#[derive(Debug, Default)]
pub struct Followed {
    /// stdout and stderr.
    pub received: [Vec<u8>; 2],
    /// Gaps and repetitions according to the offsets.
    pub by_offset: Difference,
    /// The agent's end was reported, after all output.
    pub ended: bool,
    /// Reason for giving up.
    pub refused: Option<String>,
    /// Handle for cutting the connection.
    cut: [Option<Cut>; 2],
}

#[derive(Debug)]
enum Cut {
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
        Self::slowly(socket, id, Duration::ZERO)
    }

    /// Follows both outputs over one connection, with a pause after each message.
    pub fn slowly(socket: PathBuf, id: String, pause: Duration) -> Self {
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
    pub fn with_program(command: impl Fn() -> Command, id: &str) -> Self {
        let followed = Arc::<Mutex<Followed>>::default();
        let ends = Arc::new(Mutex::new(0));
        let threads = [(0, "stdout"), (1, "stderr")].map(|(output, name)| {
            let (shared, ends, id) = (followed.clone(), ends.clone(), id.to_owned());
            let command = command();
            std::thread::spawn(move || {
                retry_until_done(&shared, || {
                    let from = shared.lock().unwrap().received[output].len().to_string();
                    let mut retry = Command::new(command.get_program());
                    let variables = command.get_envs();
                    retry.envs(variables.filter_map(|(name, value)| Some((name, value?))));
                    retry.args(["--no-autostart", "logs", "-f", "--stream", name, "--from"]);
                    let ended = logs_once(retry.args([&from, &id]), output, &shared);
                    if ended {
                        let mut ends = ends.lock().unwrap();
                        *ends += 1;
                        shared.lock().unwrap().ended |= *ends == 2;
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

    /// Cuts the connection or kills the process at an arbitrary moment.
    pub fn cut(&self) {
        let followed = self.followed.lock().unwrap();
        for cut in followed.cut.iter().flatten() {
            match cut {
                Cut::Connection(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
                Cut::Process(pid) => crate::kill_9(*pid),
            }
        }
    }

    /// Inspects the received data.
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

/// Repeats `once` until it returns true; gives up after a long time without progress.
fn retry_until_done(shared: &Mutex<Followed>, mut once: impl FnMut() -> bool) {
    let mut progress = (Instant::now(), 0);
    while !once() {
        let mut followed = shared.lock().unwrap();
        if followed.refused.is_some() {
            return;
        }
        let bytes: usize = followed.received.iter().map(Vec::len).sum();
        if bytes > progress.1 {
            progress = (Instant::now(), bytes);
        }
        if progress.0.elapsed() > 3 * SOON {
            followed.refused = Some(format!("no progress for {:?}", 3 * SOON));
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
        followed.cut[0] = stream.try_clone().ok().map(Cut::Connection);
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
                followed.by_offset.lost += event.offset.saturating_sub(next);
                let retry = next.saturating_sub(event.offset).min(bytes.len() as u64);
                followed.by_offset.repeated += retry;
                followed.received[output].extend(&bytes[retry as usize..]);
            }
            ServerMessage::Notification(Notification::AgentExit(_)) => exits += 1,
            ServerMessage::Notification(_) => {}
            ServerMessage::Response(response) => {
                if let Err(error) = response.into_result() {
                    followed.refused = Some(error.message);
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

/// Follows with one `colibri logs -f`; returns whether it reported the end of the agent.
fn logs_once(command: &mut Command, output: usize, shared: &Mutex<Followed>) -> bool {
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.unwrap();
    shared.lock().unwrap().cut[output] = Some(Cut::Process(child.id() as i32));
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        let mut followed = shared.lock().unwrap();
        followed.received[output].extend(&buffer[..count]);
    }
    // After wait(2) the pid may be reused.
    shared.lock().unwrap().cut[output] = None;
    let mut message = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut message);
    if message.contains("no agent has") {
        shared.lock().unwrap().refused = Some(message);
    }
    child.wait().unwrap().success()
}
