//! Runs the commands before and after each run, such as mounts and limits of FreeBSD jails: one after the other, each
//! with a timeout, while the shim keeps serving requests.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use colibri_shim::launch::RunCommand;
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, WaitStatus};

use crate::poll::poll_until;
use crate::signals::SignalPipe;

/// Timeout of one command, after which it is killed.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of a command's stderr in an error message, in bytes.
const MAX_STDERR: usize = 4096;

/// What to do with the remaining commands when one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// Skip them: the agent must not start without complete preparation.
    Stop,
    /// Run them: each one undoes a separate preparation.
    Continue,
}

/// A sequence of commands and its progress.
pub(crate) struct RunCommands {
    queue: VecDeque<RunCommand>,
    current: Option<RunningCommand>,
    errors: Vec<String>,
    on_error: OnError,
}

/// A command that runs.
pub(crate) struct RunningCommand {
    display_command: String,
    /// Has its stderr until the end of that file.
    child: Child,
    /// Its exit status, if the caller of wait(2) has collected it.
    collected: Option<ExitStatus>,
    stderr_text: Vec<u8>,
    started: Instant,
    deadline: Instant,
}

impl RunCommands {
    /// Creates the sequence; the first [`RunCommands::poll`] starts the first command.
    pub(crate) fn new(commands: &[RunCommand], on_error: OnError) -> Self {
        Self {
            queue: commands.iter().cloned().collect(),
            current: None,
            errors: Vec::new(),
            on_error,
        }
    }

    /// Returns the stderr of the current command, which the caller polls for input.
    pub(crate) fn stderr(&self) -> Option<&ChildStderr> {
        self.current.as_ref()?.stderr()
    }

    /// Returns the deadline of the current command.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.current.as_ref()?.deadline())
    }

    /// Advances as far as possible without blocking. Returns the outcome when all commands have ended; the error joins
    /// the errors of all failed commands. Call it again on SIGCHLD, stderr input or the deadline.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Result<(), String>> {
        loop {
            if let Some(running) = &mut self.current {
                let outcome = running.poll(now)?;
                self.current = None;
                self.record_outcome(outcome);
            } else if let Some(command) = self.queue.pop_front() {
                match RunningCommand::start(&command, now, TIMEOUT) {
                    Ok(running) => self.current = Some(running),
                    Err(error) => self.record_outcome(Err(error)),
                }
            } else if self.errors.is_empty() {
                return Some(Ok(()));
            } else {
                return Some(Err(std::mem::take(&mut self.errors).join("; ")));
            }
        }
    }

    /// Runs all commands, blocking.
    ///
    /// # Errors
    /// A command failed, or poll(2) failed.
    pub(crate) fn run(mut self, child_ended: &SignalPipe) -> io::Result<()> {
        loop {
            if let Some(outcome) = self.poll(Instant::now()) {
                return outcome.map_err(io::Error::other);
            }
            let mut fds = vec![PollFd::new(&child_ended.0, PollFlags::IN)];
            fds.extend(self.stderr().map(|fd| PollFd::new(fd, PollFlags::IN)));
            poll_until(&mut fds, self.deadline())?;
            // Level-triggered: unread bytes would make every poll return. No agent runs yet, so no other end is missed.
            child_ended.take();
        }
    }

    /// Kills the current command and drops the remaining ones.
    pub(crate) fn abort(&mut self) {
        self.queue.clear();
        if let Some(mut running) = self.current.take() {
            let _ = running.child.kill();
        }
    }

    fn record_outcome(&mut self, outcome: Result<(), String>) {
        if let Err(error) = outcome {
            self.errors.push(error);
            if self.on_error == OnError::Stop {
                self.queue.clear();
            }
        }
    }
}

impl RunningCommand {
    /// Starts a command, which is killed after `timeout`.
    ///
    /// # Errors
    /// The command cannot be started; the message names it.
    pub(crate) fn start(
        command: &RunCommand,
        now: Instant,
        timeout: Duration,
    ) -> Result<Self, String> {
        let start = || {
            let child = Command::new(&command.program)
                .args(&command.args)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(stderr) = &child.stderr {
                ioctl_fionbio(stderr, true)?;
            }
            Ok(child)
        };
        let display_command = display_command(command);
        let child =
            start().map_err(|error: io::Error| format!("cannot run {display_command}: {error}"))?;
        Ok(Self {
            display_command,
            child,
            collected: None,
            stderr_text: Vec::new(),
            started: now,
            deadline: now + timeout,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Returns the stderr, which the caller polls for input.
    pub(crate) fn stderr(&self) -> Option<&ChildStderr> {
        self.child.stderr.as_ref()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes the exit status from a caller of wait(2) that has collected this command.
    pub(crate) fn collect(&mut self, status: WaitStatus) {
        self.collected = Some(ExitStatus::from_raw(status.as_raw()));
    }

    /// Returns the outcome when the command has ended or reached its timeout.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Result<(), String>> {
        self.read_stderr();
        let ended = match self.collected {
            Some(status) => Ok(Some(status)),
            None => self.child.try_wait(),
        };
        let display_command = &self.display_command;
        match ended {
            Ok(Some(status)) => Some(self.outcome(status)),
            Ok(None) if now >= self.deadline => {
                // A command that runs as root cannot be killed. The shim abandons and reports it.
                let _ = self.child.kill();
                let timeout = self.deadline.duration_since(self.started);
                Some(Err(format!(
                    "{display_command} did not end within {timeout:?}"
                )))
            }
            Ok(None) => None,
            Err(error) => Some(Err(format!("cannot wait for {display_command}: {error}"))),
        }
    }

    /// Reads the command's stderr to its end or until a read would block; stores only the first [`MAX_STDERR`] bytes.
    fn read_stderr(&mut self) {
        let mut buffer = [0; 1024];
        while let Some(stderr) = &self.child.stderr {
            match rustix::io::read(stderr, &mut buffer) {
                Ok(count @ 1..) => {
                    let room = MAX_STDERR.saturating_sub(self.stderr_text.len());
                    self.stderr_text.extend(buffer.iter().take(room.min(count)));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => self.child.stderr = None,
            }
        }
    }

    fn outcome(&mut self, status: ExitStatus) -> Result<(), String> {
        if status.success() {
            return Ok(());
        }
        self.read_stderr();
        let failed = format!("{} failed ({status})", self.display_command);
        match String::from_utf8_lossy(&self.stderr_text).trim_end() {
            "" => Err(failed),
            stderr => Err(format!("{failed}: {stderr}")),
        }
    }
}

fn display_command(command: &RunCommand) -> String {
    format!("{} {}", command.program, command.args.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> RunCommand {
        RunCommand {
            program: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
        }
    }

    fn outcome(mut commands: RunCommands) -> Result<(), String> {
        loop {
            if let Some(outcome) = commands.poll(Instant::now()) {
                return outcome;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn failed_command_stops_pre_run_but_not_post_run() {
        let dir = tempfile::tempdir().unwrap();
        let trace = dir.path().join("trace");
        let append = |word: &str| format!("echo {word} >> {}", trace.display());
        let commands = [
            shell(&append("one")),
            shell("echo no >&2; exit 3"),
            shell(&append("two")),
        ];
        for (on_error, expected) in [(OnError::Stop, "one\n"), (OnError::Continue, "one\ntwo\n")] {
            let _ = std::fs::remove_file(&trace);
            let error = outcome(RunCommands::new(&commands, on_error)).unwrap_err();
            assert!(error.ends_with("failed (exit status: 3): no"), "{error}");
            assert_eq!(std::fs::read_to_string(&trace).unwrap(), expected);
        }
        assert_eq!(outcome(RunCommands::new(&[], OnError::Stop)), Ok(()));
    }

    #[test]
    fn command_over_its_timeout_is_killed_and_reported() {
        let mut commands = RunCommands::new(&[shell("exec sleep 1000")], OnError::Stop);
        assert_eq!(commands.poll(Instant::now()), None);
        let error = commands
            .poll(Instant::now() + TIMEOUT)
            .unwrap()
            .unwrap_err();
        assert!(error.contains("did not end within 30s"), "{error}");
    }

    #[test]
    fn long_stderr_is_read_and_truncated() {
        let script = "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1";
        let error = outcome(RunCommands::new(&[shell(script)], OnError::Stop)).unwrap_err();
        assert!(error.len() < MAX_STDERR + 200, "{}", error.len());
    }
}
