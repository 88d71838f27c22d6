//! External programs of the base system, with a timeout.

use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::TemplateError;

/// Maximum time of a program that changes users or file systems.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time between two checks whether a program has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum length of a program's messages that an error contains, in bytes.
const MAX_MESSAGES: u64 = 4096;

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
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| self.failed(&format!("{error}; install the program")))?;
        let mut messages = Vec::new();
        if let Some(mut stderr) = child.stderr.take() {
            while let Some(left) = deadline.checked_duration_since(Instant::now()) {
                let wait = Timespec::try_from(left).ok();
                let mut polled = [PollFd::new(&stderr, PollFlags::IN)];
                if !matches!(poll(&mut polled, wait.as_ref()), Ok(1..)) {
                    continue;
                }
                let mut buffer = [0; 4096];
                match stderr.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => messages.extend_from_slice(&buffer[..count]),
                }
                messages.truncate(MAX_MESSAGES as usize);
            }
        }
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(CHECK_INTERVAL),
                Ok(None) => {
                    // It cannot fail for a child that was not waited for.
                    drop(child.kill());
                    drop(child.wait());
                    return Err(self.failed(&format!("no end within {timeout:?}")));
                }
                Err(error) => return Err(self.failed(&error.to_string())),
            }
        };
        match status.success() {
            true => Ok(()),
            false => {
                let messages = String::from_utf8_lossy(&messages);
                Err(self.failed(&format!("{status}: {}", messages.trim())))
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_or_late_program_is_an_error() {
        let shell = |script| ExternalCommand::new("/bin/sh", &["-c", script]);
        shell("exit 0").run().unwrap();
        let error = shell("echo no such dataset >&2; exit 3").run().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3: no such dataset"), "{text}");
        // A descendant that keeps stderr open does not extend the timeout.
        for script in ["exec sleep 30", "sleep 2 & exec sleep 30"] {
            let begin = Instant::now();
            let error = shell(script).run_for(Duration::from_millis(200));
            assert!(error.unwrap_err().to_string().contains("no end within"));
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
        let missing = ExternalCommand::new("/nonexistent/zfs", &["create"]);
        let text = missing.run().unwrap_err().to_string();
        assert!(
            text.starts_with("cannot run /nonexistent/zfs create"),
            "{text}"
        );
    }
}
