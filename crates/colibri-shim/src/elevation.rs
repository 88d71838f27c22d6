//! Runs commands of the privilege backend for what the shim may not do itself: signals to processes of other users or
//! in other jails, and the removal of the agent's jail. One command runs at a time, while the shim keeps serving
//! requests.
//!
//! The command is a child of the shim, and not a process of the agent: the lists of [`crate::descendants`] exclude it,
//! and wait(2) for all children collects it.

use std::collections::VecDeque;
use std::process::ChildStderr;
use std::time::{Duration, Instant};

use colibri_shim::control::{ShimReply, SignalDelivery, clock_ms};
use colibri_shim::launch::RunCommand;
use colibri_types::SignalTemplate;
use rustix::process::{Pid, Signal, WaitStatus};

use crate::control_server::ShimRequestId;
use crate::run_commands::{RunningCommand, TIMEOUT};
use crate::{descendants, signals};

/// Maximum time for the delivery of one signal to all its processes.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of pids in one command.
const MAX_PIDS: usize = 128;
/// Maximum number of processes that are signalled one by one after a command for several of them has failed.
const MAX_SINGLE: usize = 32;
/// Maximum number of waiting tasks.
const MAX_TASKS: usize = 64;

/// The commands of the privilege backend, and those that run or wait.
pub(crate) struct Elevation {
    template: Option<SignalTemplate>,
    remove_jail: Option<RunCommand>,
    queue: VecDeque<Task>,
    current: Option<CurrentCommand>,
    /// Why the last task failed; absent if it succeeded.
    failure: Option<String>,
}

/// The command that runs, and the task that it belongs to.
struct CurrentCommand {
    task: Task,
    command: RunningCommand,
}

/// A task of the privilege backend.
enum Task {
    Signal(SignalTask),
    RemoveJail,
}

/// A signal to processes that the shim may not signal.
struct SignalTask {
    /// Name of the signal, without `SIG`.
    name: &'static str,
    /// Processes that no command has included yet.
    pids: Vec<i32>,
    /// Processes of the current command.
    current: Vec<i32>,
    /// Number of pids in the next command.
    chunk: usize,
    /// The request to answer.
    request: Option<ShimRequestId>,
    /// Time of [`clock_ms`] after which the signal is dropped, because its caller has timed out.
    expires_ms: Option<u64>,
    /// When the task ends at the latest; absent before its first command.
    deadline: Option<Instant>,
    /// The result so far.
    delivery: SignalDelivery,
}

impl Elevation {
    /// Creates the state before the first command.
    pub(crate) fn new(template: Option<SignalTemplate>, remove_jail: Option<RunCommand>) -> Self {
        Self {
            template,
            remove_jail,
            queue: VecDeque::new(),
            current: None,
            failure: None,
        }
    }

    /// Returns whether the backend has a command that removes the agent's jail.
    pub(crate) fn can_remove_jail(&self) -> bool {
        self.remove_jail.is_some()
    }

    /// Returns whether no command runs or waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.queue.is_empty()
    }

    /// Returns the pid of the current command.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Some(self.current.as_ref()?.command.pid())
    }

    /// Returns the stderr of the current command, which the caller polls for input.
    pub(crate) fn stderr(&self) -> Option<&ChildStderr> {
        self.current.as_ref()?.command.stderr()
    }

    /// Returns the deadline of the current command.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.current.as_ref()?.command.deadline())
    }

    /// Returns why processes remain after a kill, of which the shim may not signal `denied`; absent if the backend was not
    /// used, or if that is not the cause.
    pub(crate) fn failure(&self, denied: &[i32]) -> Option<String> {
        let was_used = !denied.is_empty() && self.template.is_some();
        let tried = || "KILL was sent through the privilege backend too".to_owned();
        let failure = self.failure.clone();
        failure.or_else(|| was_used.then(tried))
    }

    /// Starts or queues a signal to the processes in `delivery.denied`. Returns the delivery if the backend cannot signal.
    /// Otherwise [`Elevation::poll`] returns the reply, if there is a request.
    pub(crate) fn signal(
        &mut self,
        signal: Signal,
        delivery: SignalDelivery,
        request: Option<ShimRequestId>,
        expires_ms: Option<u64>,
    ) -> Option<SignalDelivery> {
        let (Some(template), Some(name)) = (&self.template, signals::name(signal)) else {
            return Some(delivery);
        };
        if delivery.denied.is_empty() {
            return Some(delivery);
        }
        if self.queue.len() >= MAX_TASKS {
            let reason = Some(format!("{MAX_TASKS} signals are waiting; try again later"));
            return Some(SignalDelivery { reason, ..delivery });
        }
        let chunk = match template.takes_several_pids() {
            true => MAX_PIDS,
            false => 1,
        };
        let SignalDelivery { sent, denied, .. } = delivery;
        self.queue.push_back(Task::Signal(SignalTask {
            name,
            pids: denied,
            current: Vec::new(),
            chunk,
            request,
            expires_ms,
            deadline: None,
            delivery: SignalDelivery {
                sent,
                ..SignalDelivery::default()
            },
        }));
        None
    }

    /// Queues the removal of the agent's jail.
    pub(crate) fn remove_jail(&mut self) {
        self.queue.push_back(Task::RemoveJail);
    }

    /// Takes the exit status of a child that wait(2) has collected. Returns whether the child is the current command.
    pub(crate) fn collect(&mut self, pid: Pid, status: WaitStatus) -> bool {
        match &mut self.current {
            Some(current) if current.command.pid() == pid => {
                current.command.collect(status);
                true
            }
            _ => false,
        }
    }

    /// Advances as far as possible without blocking. Returns replies. Call it again on SIGCHLD, stderr input or the
    /// deadline.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(ShimRequestId, ShimReply)> {
        let mut replies = Vec::new();
        loop {
            let task = match self.current.take() {
                None => self.queue.pop_front(),
                Some(mut current) => match current.command.poll(now) {
                    None => {
                        self.current = Some(current);
                        break;
                    }
                    Some(outcome) => {
                        self.finish_command(&mut current.task, outcome, now);
                        match current.task {
                            Task::Signal(_) => Some(current.task),
                            Task::RemoveJail => continue,
                        }
                    }
                },
            };
            match task {
                None => break,
                Some(Task::Signal(task)) => replies.extend(self.continue_signal(task, now)),
                Some(Task::RemoveJail) => {
                    if let Some(command) = self.remove_jail.clone() {
                        self.start(Task::RemoveJail, &command, now, TIMEOUT);
                    }
                }
            }
        }
        replies
    }

    /// Returns the replies to the signals that wait when no process of the agent is left.
    pub(crate) fn end(&mut self) -> Vec<(ShimRequestId, ShimReply)> {
        let current = self.current.take().map(|current| current.task);
        let tasks = current.into_iter().chain(self.queue.drain(..));
        let reply = |task| match task {
            Task::Signal(SignalTask {
                request: Some(request),
                delivery,
                ..
            }) => Some((request, ShimReply::Signalled(delivery))),
            _ => None,
        };
        tasks.filter_map(reply).collect()
    }

    /// Starts the next command of a signal task. Returns the reply to its request if there is none left.
    fn continue_signal(
        &mut self,
        mut task: SignalTask,
        now: Instant,
    ) -> Option<(ShimRequestId, ShimReply)> {
        let request = task.request;
        let is_new = task.deadline.is_none();
        if is_new && task.expires_ms.is_some_and(|at| clock_ms() >= at) {
            return Some((request?, ShimReply::Expired));
        }
        let deadline = *task.deadline.get_or_insert(now + SIGNAL_TIMEOUT);
        // A pid may have been reused since it was listed.
        let running = descendants::running(&task.pids);
        task.pids = running.unwrap_or(std::mem::take(&mut task.pids));
        if task.pids.is_empty() || now >= deadline {
            task.delivery.denied.append(&mut task.pids);
            if !task.delivery.denied.is_empty() && task.delivery.reason.is_none() {
                let timeout = format!("the signal was not delivered within {SIGNAL_TIMEOUT:?}");
                task.delivery.reason = Some(timeout);
            }
            self.failure = task.delivery.reason.clone();
            return Some((request?, ShimReply::Signalled(task.delivery)));
        }
        let Some(template) = &self.template else {
            return None;
        };
        let rest = task.pids.split_off(task.chunk.min(task.pids.len()));
        task.current = std::mem::replace(&mut task.pids, rest);
        let mut words = template.words(task.name, &task.current).into_iter();
        let command = RunCommand {
            program: words.next().unwrap_or_default(),
            args: words.collect(),
        };
        let timeout = deadline.saturating_duration_since(now);
        self.start(Task::Signal(task), &command, now, timeout);
        None
    }

    fn start(&mut self, mut task: Task, command: &RunCommand, now: Instant, timeout: Duration) {
        match RunningCommand::start(command, now, timeout) {
            Ok(command) => {
                self.current = Some(CurrentCommand { task, command });
            }
            Err(error) => {
                self.finish_command(&mut task, Err(error), now);
                if let Task::Signal(_) = task {
                    self.queue.push_front(task);
                }
            }
        }
    }

    /// Records the outcome of a command. After a failure its processes are signalled one by one: the backend may have
    /// refused all of them because of one.
    fn finish_command(&mut self, task: &mut Task, outcome: Result<(), String>, now: Instant) {
        let Task::Signal(task) = task else {
            self.failure = outcome.err();
            return;
        };
        let current = std::mem::take(&mut task.current);
        let Err(error) = outcome else {
            task.delivery.sent += current.len();
            return;
        };
        if current.len() > 1 && task.deadline.is_none_or(|at| now < at) {
            task.pids.splice(0..0, current);
            let skipped = task.pids.split_off(MAX_SINGLE.min(task.pids.len()));
            if !skipped.is_empty() {
                task.delivery.denied.extend(skipped);
                task.delivery.reason.get_or_insert(error);
            }
            task.chunk = 1;
            return;
        }
        // A process that has ended meanwhile is not an error.
        let remaining = descendants::running(&current).unwrap_or(current);
        if !remaining.is_empty() {
            task.delivery.denied.extend(remaining);
            task.delivery.reason.get_or_insert(error);
        }
    }
}
