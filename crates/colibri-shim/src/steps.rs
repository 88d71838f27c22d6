//! Runs the commands before and after each run, which limits and mounts of FreeBSD jails need. They run one after the
//! other, each with a timeout, while the shim keeps serving requests.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use colibri_shim::launch::Step;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};

/// Timeout of one command; it is killed after it.
const LIMIT: Duration = Duration::from_secs(30);
/// Maximum length of a command's stderr in an error message, in bytes.
const KEPT: usize = 4096;

/// What to do with the remaining commands when one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// Skip them: the agent must not start without complete preparation.
    Stop,
    /// Run them: each one undoes a separate preparation.
    Continue,
}

/// A sequence of commands that is being run.
pub(crate) struct Steps {
    queue: VecDeque<Step>,
    current: Option<Running>,
    errors: Vec<String>,
    on_error: OnError,
}

struct Running {
    step: Step,
    child: Child,
    stderr: Option<OwnedFd>,
    said: Vec<u8>,
    deadline: Instant,
}

impl Steps {
    /// Creates the sequence; the first [`Steps::poll`] starts the first command.
    pub(crate) fn new(steps: &[Step], on_error: OnError) -> Self {
        Self {
            queue: steps.iter().cloned().collect(),
            current: None,
            errors: Vec::new(),
            on_error,
        }
    }

    /// Returns what to wait for before the next [`Steps::poll`] besides SIGCHLD: the command's stderr and deadline.
    pub(crate) fn wanted(&self) -> (Option<&OwnedFd>, Option<Instant>) {
        match &self.current {
            Some(running) => (running.stderr.as_ref(), Some(running.deadline)),
            None => (None, None),
        }
    }

    /// Advances as far as possible without waiting. Returns the outcome when all commands have ended.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Result<(), String>> {
        loop {
            let Some(running) = &mut self.current else {
                let Some(step) = self.queue.pop_front() else {
                    let errors = std::mem::take(&mut self.errors);
                    return Some(if errors.is_empty() {
                        Ok(())
                    } else {
                        Err(errors.join("; "))
                    });
                };
                match Running::start(step.clone(), now) {
                    Ok(running) => self.current = Some(running),
                    Err(error) => self.fail(format!("{} cannot be run: {error}", shown(&step))),
                }
                continue;
            };
            running.read();
            let ended = match running.child.try_wait() {
                Ok(Some(status)) => running.outcome(status),
                Ok(None) if now >= running.deadline => {
                    // A command that runs as root cannot be killed: the shim abandons and reports it.
                    let _ = running.child.kill();
                    Err(format!(
                        "{} did not end within {LIMIT:?}",
                        shown(&running.step)
                    ))
                }
                Ok(None) => return None,
                Err(error) => Err(format!(
                    "the end of {} is not known: {error}",
                    shown(&running.step)
                )),
            };
            self.current = None;
            if let Err(error) = ended {
                self.fail(error);
            }
        }
    }

    /// Runs all commands to their end, blocking. `child_ended` becomes readable when a child ends.
    ///
    /// # Errors
    /// A command failed, or waiting failed.
    pub(crate) fn run(mut self, child_ended: &impl std::os::fd::AsFd) -> io::Result<()> {
        loop {
            if let Some(outcome) = self.poll(Instant::now()) {
                return outcome.map_err(io::Error::other);
            }
            let (stderr, deadline) = self.wanted();
            let mut fds = vec![PollFd::new(child_ended, PollFlags::IN)];
            fds.extend(stderr.map(|stderr| PollFd::new(stderr, PollFlags::IN)));
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // Drained, or it would stay readable. No agent runs yet, so that no other child's end is missed.
            while matches!(rustix::io::read(child_ended, &mut [0; 64]), Ok(count) if count > 0) {}
        }
    }

    /// Kills the current command and drops the remaining ones.
    pub(crate) fn abort(&mut self) {
        self.queue.clear();
        if let Some(mut running) = self.current.take() {
            let _ = running.child.kill();
        }
    }

    fn fail(&mut self, error: String) {
        self.errors.push(error);
        if self.on_error == OnError::Stop {
            self.queue.clear();
        }
    }
}

impl Running {
    fn start(step: Step, now: Instant) -> io::Result<Self> {
        let mut child = Command::new(&step.program)
            .args(&step.args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().map(OwnedFd::from);
        if let Some(stderr) = &stderr {
            ioctl_fionbio(stderr, true)?;
        }
        Ok(Self {
            step,
            child,
            stderr,
            said: Vec::new(),
            deadline: now + LIMIT,
        })
    }

    /// Reads the command's stderr; keeps only the first [`KEPT`] bytes.
    fn read(&mut self) {
        let mut buffer = [0; 1024];
        while let Some(stderr) = &self.stderr {
            match rustix::io::read(stderr, &mut buffer) {
                Ok(0) => self.stderr = None,
                Ok(count) => {
                    let room = KEPT.saturating_sub(self.said.len()).min(count);
                    self.said.extend(buffer.iter().take(room));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.stderr = None,
            }
        }
    }

    fn outcome(&mut self, status: ExitStatus) -> Result<(), String> {
        if status.success() {
            return Ok(());
        }
        self.read();
        let said = String::from_utf8_lossy(&self.said);
        Err(format!(
            "{} failed ({status}): {}",
            shown(&self.step),
            said.trim_end()
        ))
    }
}

fn shown(step: &Step) -> String {
    format!("{} {}", step.program, step.args.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Step {
        Step {
            program: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
        }
    }

    fn outcome(mut steps: Steps) -> Result<(), String> {
        loop {
            if let Some(outcome) = steps.poll(Instant::now()) {
                return outcome;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn failed_step_stops_preparation_and_not_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let trace = dir.path().join("trace");
        let leave = |word: &str| format!("echo {word} >> {}", trace.display());
        let steps = [
            shell(&leave("one")),
            shell("echo no >&2; exit 3"),
            shell(&leave("two")),
        ];
        for (on_error, left) in [(OnError::Stop, "one\n"), (OnError::Continue, "one\ntwo\n")] {
            let _ = std::fs::remove_file(&trace);
            let error = outcome(Steps::new(&steps, on_error)).unwrap_err();
            assert!(error.ends_with("failed (exit status: 3): no"), "{error}");
            assert_eq!(std::fs::read_to_string(&trace).unwrap(), left);
        }
        assert_eq!(outcome(Steps::new(&[], OnError::Stop)), Ok(()));
    }

    #[test]
    fn step_over_its_time_limit_is_killed_and_reported() {
        let mut steps = Steps::new(&[shell("exec sleep 1000")], OnError::Stop);
        assert_eq!(steps.poll(Instant::now()), None);
        let late = Instant::now() + LIMIT;
        let error = steps.poll(late).unwrap().unwrap_err();
        assert!(error.contains("did not end within 30s"), "{error}");
    }

    #[test]
    fn step_with_much_output_is_read_and_cut() {
        let much = "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1";
        let error = outcome(Steps::new(&[shell(much)], OnError::Stop)).unwrap_err();
        assert!(error.len() < KEPT + 200, "{}", error.len());
    }
}
