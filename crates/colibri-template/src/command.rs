//! External programs of the base system, with a timeout.

use std::fmt;
use std::io::{self, Read};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::TemplateError;
use crate::input::Cancellation;

/// Maximum time of a program that changes users or file systems.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time between two checks whether a program has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Timeout of poll(2) that only asks for the state.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Maximum length of a program's messages that an error contains, in bytes.
const MAX_MESSAGES: usize = 4096;
/// Maximum number of bytes that are read of a program's messages before the next check of its end: a full pipe.
const MAX_MESSAGES_AT_ONCE: usize = 64 * 1024;

/// A program with its arguments. Displays as a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExternalCommand {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
}

impl ExternalCommand {
    pub(crate) fn new(program: &str, args: &[&str]) -> Self {
        Self {
            program: program.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        }
    }

    /// Runs the program with a minimal environment, and fails unless it exits with 0.
    pub(crate) fn run(&self) -> Result<(), TemplateError> {
        self.run_for(TIMEOUT)
    }

    fn run_for(&self, timeout: Duration) -> Result<(), TemplateError> {
        let deadline = Instant::now() + timeout;
        let mut command = self.command();
        command
            .env_clear()
            .env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")
            .current_dir("/")
            .stdout(Stdio::null());
        let mut program = RunningProgram::start(self, &mut command)
            .map_err(|error| self.failed(&format!("{error}; install the program")))?;
        let ended = program.wait(deadline, &Cancellation::default())?;
        let messages = program.messages();
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) if messages.is_empty() => Err(self.failed(&format!(
                "{status} without a message; see the manual page of the program"
            ))),
            Some(status) => Err(self.failed(&format!(
                "{status}: {messages}; read its message and correct the cause"
            ))),
            None => Err(self.failed(&format!(
                "it did not end within {timeout:?}; find out what it waits for, e.g. with ps(1)"
            ))),
        }
    }

    /// Returns the program with its arguments and without an input.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null());
        command
    }

    pub(crate) fn failed(&self, problem: &str) -> TemplateError {
        TemplateError::Command {
            command: self.to_string(),
            problem: problem.to_owned(),
        }
    }
}

impl fmt::Display for ExternalCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// A started program, whose messages on standard error are collected. It is killed when the value is dropped.
pub(crate) struct RunningProgram<'a> {
    command: &'a ExternalCommand,
    child: Child,
    stderr: Option<ChildStderr>,
    messages: Vec<u8>,
}

impl<'a> RunningProgram<'a> {
    /// Starts `command`, whose name for messages is `name`.
    pub(crate) fn start(name: &'a ExternalCommand, command: &mut Command) -> io::Result<Self> {
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        Ok(Self {
            command: name,
            stderr: child.stderr.take(),
            child,
            messages: Vec::new(),
        })
    }

    /// Returns the program's standard output, if it is a pipe.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until the program has ended. Returns `None` if it has not ended at the deadline. A descendant that keeps standard
    /// error open is not waited for.
    pub(crate) fn wait(
        &mut self,
        deadline: Instant,
        cancellation: &Cancellation,
    ) -> Result<Option<ExitStatus>, TemplateError> {
        loop {
            cancellation.check()?;
            let ended = self.child.try_wait().map_err(|error| {
                self.command
                    .failed(&format!("{error}; report this as a bug"))
            })?;
            // After the check: an ended program has written all its messages.
            self.read_messages();
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
    }

    /// Reads what the program has written to standard error, so that it can write more. Does not wait.
    pub(crate) fn read_messages(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..MAX_MESSAGES_AT_ONCE / buffer.len() {
            let Some(stderr) = &mut self.stderr else {
                return;
            };
            let mut polled = [PollFd::new(stderr, PollFlags::IN)];
            if !matches!(poll(&mut polled, Some(&NO_WAIT)), Ok(1..)) {
                return;
            }
            match stderr.read(&mut buffer) {
                Ok(0) | Err(_) => self.stderr = None,
                Ok(count) => {
                    let room = MAX_MESSAGES - self.messages.len();
                    self.messages.extend_from_slice(&buffer[..count.min(room)]);
                }
            }
        }
    }

    /// Returns the beginning of the messages that were read.
    pub(crate) fn messages(&self) -> String {
        String::from_utf8_lossy(&self.messages).trim().to_owned()
    }
}

impl Drop for RunningProgram<'_> {
    fn drop(&mut self) {
        // Without effect on a program that has ended; it cannot fail for another one.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_or_late_program_is_an_error() {
        let shell = |script| ExternalCommand::new("/bin/sh", &["-c", script]);
        shell("exit 0").run().unwrap();
        let error = shell("echo no such dataset >&2; exit 3").run().unwrap_err();
        let text = error.to_string();
        let expected = "exit status: 3: no such dataset; read its message and correct the cause";
        assert!(text.contains(expected), "{text}");
        let text = shell("exit 1").run().unwrap_err().to_string();
        assert!(
            text.ends_with("exit status: 1 without a message; see the manual page of the program"),
            "{text}"
        );
        // A descendant that keeps stderr open does not extend the timeout.
        for script in ["exec sleep 30", "sleep 2 & exec sleep 30"] {
            let begin = Instant::now();
            let error = shell(script).run_for(Duration::from_millis(200));
            let text = error.unwrap_err().to_string();
            assert!(text.contains("it did not end within 200ms; find"), "{text}");
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
        let begin = Instant::now();
        shell("sleep 8 & exit 0").run().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(7));
        shell("head -c 300000 /dev/zero >&2").run().unwrap();
        let missing = ExternalCommand::new("/nonexistent/zfs", &["create"]);
        let text = missing.run().unwrap_err().to_string();
        assert!(
            text.starts_with("cannot run /nonexistent/zfs create"),
            "{text}"
        );
    }
}
