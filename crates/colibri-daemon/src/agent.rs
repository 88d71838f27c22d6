//! One registered agent: its specification, its latest snapshot and its journals.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use colibri_glasspane::{
    AgentRuntime, AgentState, AgentView, ExitStatus, Glasspane, recognize_program,
};
use colibri_journal::{JournalError, JournalReader};
use colibri_proto as wire;
use colibri_shim::control::ShimStatus;
use colibri_shim::layout;
use colibri_shim::record::ExitRecord;
use colibri_spawner::{AgentHandle, AgentSpec, NetworkLog};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::terminal::TerminalSizes;
use crate::times;

/// An agent in the registry.
pub(crate) struct RegisteredAgent {
    pub(crate) spec: Arc<AgentSpec>,
    pub(crate) directory: PathBuf,
    /// Connection to its shim; absent if it had ended before this daemon started.
    pub(crate) agent: Option<AgentHandle>,
    pub(crate) latest: watch::Sender<AgentSnapshot>,
    /// It was started by an earlier daemon.
    pub(crate) adopted: bool,
    /// Sequence number in this daemon's registry.
    pub(crate) number: u64,
    pub(crate) hook_memory: Mutex<HookMemory>,
    pub(crate) subscribers: Mutex<Vec<Weak<Mutex<StreamOffsets>>>>,
    /// Absent without a terminal. Boxed, because few agents have one.
    pub(crate) terminal: Option<Box<TerminalSizes>>,
}

impl RegisteredAgent {
    /// Returns the runtime of the agent; `auto` until it is recognized.
    pub(crate) fn runtime(&self) -> AgentRuntime {
        match self.latest.borrow().view.runtime {
            // The view of an agent that ended under an earlier release.
            AgentRuntime::Auto => self.spec.config.runtime.unwrap_or_default(),
            runtime => runtime,
        }
    }

    /// Reports whether the agent has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.latest.borrow().exit.is_some()
    }

    /// Returns the connection to the shim of a running agent.
    pub(crate) fn running(&self) -> Option<&AgentHandle> {
        self.agent.as_ref().filter(|_| !self.has_ended())
    }

    /// Returns a reader of one of the agent's journals.
    pub(crate) fn journal(&self, stream: wire::Stream) -> JournalReader {
        JournalReader::new(&self.directory.join(match stream {
            wire::Stream::Stdout => layout::STDOUT,
            wire::Stream::Stderr => layout::STDERR,
        }))
    }

    /// Registers a subscriber that starts at these offsets, until the result is dropped.
    pub(crate) fn subscribe(&self, from: StreamOffsets) -> Arc<Mutex<StreamOffsets>> {
        let position = Arc::new(Mutex::new(from));
        let mut subscribers = self.subscribers.lock();
        subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        subscribers.push(Arc::downgrade(&position));
        position
    }

    /// Returns for each subscriber the number of bytes that it has not been sent yet.
    pub(crate) fn bytes_behind(&self) -> Vec<u64> {
        let latest = self.latest.borrow();
        let subscribers = self.subscribers.lock();
        let positions = subscribers.iter().filter_map(Weak::upgrade);
        let behind = positions.map(|position| {
            let sent = *position.lock();
            latest.status.stdout.saturating_sub(sent.stdout)
                + latest.status.stderr.saturating_sub(sent.stderr)
        });
        behind.collect()
    }

    /// Returns the agent as clients see it.
    pub(crate) fn to_wire(&self) -> wire::Agent {
        let runtime = self.runtime();
        let latest = self.latest.borrow();
        let config = &self.spec.config;
        let status = &latest.status;
        let exit = latest.exit.as_ref();
        wire::Agent {
            id: self.spec.id.to_string(),
            name: config.name.clone(),
            state: latest.view.state,
            pid: status.pid.filter(|_| exit.is_none()),
            program: config.program.clone(),
            args: config.args.clone(),
            cwd: config.cwd.clone(),
            jail: config.jail.clone(),
            warnings: self.spec.warnings.clone(),
            runtime,
            preset: config.preset.clone(),
            added_args: config.added_args.clone(),
            asks: config.adapter.ask,
            variables: config.env.keys().cloned().collect(),
            resumes: config.resumes.clone(),
            guessed: latest.view.guessed
                && matches!(latest.view.state, AgentState::Idle | AgentState::Working),
            terminal: config.terminal.map(|first| {
                let claimed = self.terminal.as_ref().and_then(|sizes| sizes.current());
                claimed.or(status.terminal).unwrap_or(first)
            }),
            restart: config.restart.clone(),
            run: status.run,
            started_at: times::format_ns(self.spec.created_at_ns),
            exited_at: exit.map(|exit| times::format_ns(exit.exited_at_ns)),
            exit: exit.map(ExitRecord::exit),
            error: match exit {
                Some(exit) => latest.end_error(exit),
                None => status
                    .stalled
                    .as_ref()
                    .or(status.restart_message.as_ref())
                    .cloned(),
            },
            stdout_bytes: status.stdout,
            stderr_bytes: status.stderr,
            network: status.network.clone(),
            last_event_at: latest.view.last_activity.map(times::format_ms),
            view: (!latest.view.guessed).then(|| latest.view.clone()),
        }
    }
}

/// Returns the glasspane of an agent without output.
pub(crate) fn new_pane(spec: &AgentSpec) -> Glasspane {
    let config = &spec.config;
    let runtime = match config.runtime.unwrap_or_default() {
        AgentRuntime::Auto => recognize_program(&config.program, &config.args).unwrap_or_default(),
        runtime => runtime,
    };
    Glasspane::new(runtime, spec.created_at_ns / 1_000_000)
}

/// The state of an agent at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AgentSnapshot {
    pub(crate) view: AgentView,
    /// Number of state changes so far.
    pub(crate) state_changes: u64,
    /// Stdout offset of the end of the line that caused the state; for an agent without events that became idle, the
    /// number of bytes written. Absent for other causes.
    pub(crate) cause_offset: Option<u64>,
    /// Stdout offset of the state: subscribers get the output before it, then the state, then the rest.
    pub(crate) state_offset: u64,
    /// Number of stdout bytes that were parsed for events.
    pub(crate) parsed_bytes: u64,
    pub(crate) kill: Option<KillRequest>,
    /// The shim's status; after the exit with the final number of bytes.
    pub(crate) status: ShimStatus,
    /// Reports of the agent's proxy since this daemon follows it.
    pub(crate) network: NetworkLog,
    pub(crate) exit: Option<ExitRecord>,
    /// The agent has ended and waits to be resumed.
    pub(crate) waiting: Option<PendingResume>,
}

/// Why an ended agent waits to be resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingResume {
    pub(crate) message: String,
    /// Its state at its end.
    pub(crate) state: AgentState,
}

impl AgentSnapshot {
    /// Combines the parsed events, the shim's status and the exit of an agent.
    pub(crate) fn new(pane: &Glasspane, status: &ShimStatus, exit: Option<ExitRecord>) -> Self {
        let mut status = ShimStatus {
            // Not reported: it must not cause an event.
            lingering: false,
            ..status.clone()
        };
        if let Some(exit) = &exit {
            status.stdout = exit.stdout_bytes;
            status.stderr = exit.stderr_bytes;
            status.run = exit.run;
            if exit.network.is_some() {
                status.network.clone_from(&exit.network);
            }
        }
        Self {
            view: pane.view().clone(),
            state_changes: pane.state_changes(),
            cause_offset: None,
            state_offset: u64::MAX,
            parsed_bytes: match pane.needs_output() && exit.is_none() {
                true => 0,
                false => u64::MAX,
            },
            kill: None,
            network: NetworkLog::default(),
            status,
            exit,
            waiting: None,
        }
    }

    /// Returns why an ended agent is in error, if its exit status does not contain it.
    pub(crate) fn end_error(&self, exit: &ExitRecord) -> Option<String> {
        let reported = || {
            let has_failed =
                self.view.state == AgentState::Error && exit.exit == Some(ExitStatus::Code(0));
            let error = self.view.last_error.as_ref().filter(|_| has_failed)?;
            Some(format!("the agent reported a failure: {error}"))
        };
        let waiting = self.waiting.as_ref().map(|waiting| waiting.message.clone());
        waiting.or_else(|| exit.error.clone()).or_else(reported)
    }

    /// Returns why the agent is stalled, or else its last error.
    pub(crate) fn last_error(&self) -> Option<&str> {
        let stalled = self.status.stalled.as_deref();
        stalled.or(self.view.last_error.as_deref())
    }
}

/// The most recent `kill-agent` request for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KillRequest {
    /// Sequence number, from 1.
    pub(crate) number: u64,
    pub(crate) signal: String,
    pub(crate) escalate: bool,
    /// User who sent the request.
    pub(crate) uid: u32,
    pub(crate) at_ms: u64,
}

/// One occurrence of a state: a later occurrence of the same state has another `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateOccurrence {
    pub(crate) state: AgentState,
    /// End time of an agent that has ended, otherwise [`AgentSnapshot::cause_offset`].
    pub(crate) at: Option<u64>,
}

impl StateOccurrence {
    pub(crate) fn of(snapshot: &AgentSnapshot) -> Self {
        Self {
            state: snapshot.view.state,
            at: match &snapshot.exit {
                Some(exit) => Some(exit.exited_at_ns),
                None => snapshot.cause_offset,
            },
        }
    }
}

/// The last state of an agent that the hooks have handled.
#[derive(Default)]
pub(crate) struct HookMemory {
    pub(crate) handled: Option<StateOccurrence>,
    /// The agent's directory is being removed: no file is written there.
    pub(crate) removed: bool,
}

/// An offset in each of an agent's journals; `u64::MAX` in one that a subscriber does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamOffsets {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

/// Reads at most `limit` bytes from `offset` on with one read. A UTF-8 character that is cut at the end is left for the
/// next read.
///
/// # Errors
/// The journal cannot be read.
pub(crate) fn read_text(
    journal: &mut JournalReader,
    offset: u64,
    limit: u64,
) -> Result<Vec<u8>, JournalError> {
    let mut bytes = vec![0; usize::try_from(limit).unwrap_or(0)];
    let count = journal.read(offset, &mut bytes)?;
    bytes.truncate(count);
    bytes.truncate(wire::text_boundary(&bytes));
    Ok(bytes)
}
