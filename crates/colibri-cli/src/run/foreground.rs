//! The agent of `colibri run`: forwarded signals, the state of its output, and the exit code.

use std::collections::HashMap;
use std::time::Duration;

use colibri_client::glasspane::{Transcript, TranscriptFormatter};
use colibri_client::{
    ClientError, CurrentClient, Exit, ExitEvent, KillParams, KillResult, OutputChunk, Stream,
};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::SIGNAL_TIMEOUT;
use crate::exit::{self, BROKEN_PIPE, OWN_FAILURE};
use crate::output;
use crate::signals;
use crate::sink::{Sink, WriteFailure};

/// Number of the call that kills the agent after EPIPE on the output. Signals have the numbers from 1 on.
const KILL_CALL: u64 = 0;
/// Timeout for the daemon's answer to the kill after EPIPE on the output; it includes the grace period.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum time to wait for blocked output after both a signal and the agent's end.
const BLOCKED_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time without an answer or a written byte after which a repeated signal ends the command.
const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(300);
/// Time after a signal within which blocked output or the agent's end is attributed to it.
const SIGNAL_EFFECT: Duration = Duration::from_secs(10);

/// Returns the timeout for the daemon's answer to a call.
fn timeout_of(call: u64) -> Duration {
    match call {
        KILL_CALL => KILL_TIMEOUT,
        _ => SIGNAL_TIMEOUT,
    }
}

/// Result of a call to the daemon that runs as a task.
pub(super) enum CallOutcome {
    /// The call with this number, a signal or the kill, has finished.
    Finished(u64, Result<KillResult, ClientError>),
    /// The agent has ended; its output may not be written yet.
    Ended(Result<Option<Exit>, ClientError>),
}

/// A signal that was forwarded before, and was received again.
struct RepeatedSignal {
    signal: Signal,
    at: Instant,
}

/// The end of the agent.
struct Ended {
    /// Time at which it became known.
    at: Instant,
    exit_code: u8,
}

/// How much of the output was written.
#[derive(PartialEq, Eq)]
enum OutputState {
    Complete,
    /// Part of the output could not be written.
    Incomplete,
    /// The reader has closed the pipe.
    ReaderClosed,
}

/// An agent in the foreground.
pub(super) struct ForegroundAgent {
    id: String,
    socket: String,
    client: CurrentClient,
    pub(super) sink: Sink,
    /// Formats the output; absent if it is written unchanged.
    transcript: Option<(Transcript, TranscriptFormatter)>,
    pub(super) calls: JoinSet<CallOutcome>,
    /// Forwarded signals, repeated ones included.
    signals: Vec<Signal>,
    last_signal_at: Option<Instant>,
    repeated: Option<RepeatedSignal>,
    /// Start times of the calls without a result, by number.
    pending: HashMap<u64, Instant>,
    ended: Option<Ended>,
    written: OutputState,
}

impl ForegroundAgent {
    pub(super) fn new(
        id: String,
        socket: String,
        client: CurrentClient,
        sink: Sink,
        transcript: Option<(Transcript, TranscriptFormatter)>,
    ) -> Self {
        Self {
            id,
            socket,
            client,
            sink,
            transcript,
            calls: JoinSet::new(),
            signals: Vec::new(),
            last_signal_at: None,
            repeated: None,
            pending: HashMap::new(),
            ended: None,
            written: OutputState::Complete,
        }
    }

    /// Forwards a signal, without waiting for the result.
    pub(super) fn forward(&mut self, signal: Signal) {
        let at = Instant::now();
        if self.signals.contains(&signal) {
            self.repeated = Some(RepeatedSignal { signal, at });
        }
        if self.signals.is_empty() {
            self.watch_for_end();
        }
        self.signals.push(signal);
        self.last_signal_at = Some(at);
        let params = KillParams {
            signal: Some(signals::name(signal).to_owned()),
            escalate: false,
            no_restart: true,
            ..KillParams::new(&self.id)
        };
        self.kill(self.signals.len() as u64, params);
    }

    fn kill(&mut self, number: u64, params: KillParams) {
        self.pending.insert(number, Instant::now());
        let mut client = self.client.clone();
        self.calls.spawn(async move {
            let params = &params;
            let call = client.call(|client| async move { client.kill_agent(params.clone()).await });
            CallOutcome::Finished(number, call.await)
        });
    }

    /// Waits for the agent's end by a separate call: the exit event follows the output, which may be blocked.
    fn watch_for_end(&mut self) {
        let (mut client, id) = (self.client.clone(), self.id.clone());
        self.calls.spawn(async move {
            let id = &id;
            let call = client.call(|client| async move { client.wait_agent(id).await });
            CallOutcome::Ended(call.await.map(|agent| agent.exit))
        });
    }

    /// Processes the result of a call; returns the exit code if it ends the command.
    pub(super) fn handle_result(&mut self, result: CallOutcome) -> Option<u8> {
        match result {
            CallOutcome::Finished(call, result) => {
                self.pending.remove(&call);
                if let Err(error) = result
                    && (call == KILL_CALL || self.ended.is_none())
                {
                    output::message(&error.to_string());
                }
                (call == KILL_CALL).then_some(BROKEN_PIPE)
            }
            CallOutcome::Ended(exit) => {
                if let Ok(exit) = exit {
                    self.set_ended(exit::code(exit));
                }
                None
            }
        }
    }

    fn set_ended(&mut self, exit_code: u8) {
        self.ended.get_or_insert(Ended {
            at: Instant::now(),
            exit_code,
        });
    }

    /// Returns whether a signal or a kill was sent, so that time limits apply.
    pub(super) fn is_signalled(&self) -> bool {
        !self.pending.is_empty() || !self.signals.is_empty()
    }

    /// Returns the exit code if a time limit is exceeded, and reports on stderr which one.
    pub(super) fn check_limits(&self) -> Option<u8> {
        let id = &self.id;
        // Output that blocks long after a signal is not related to it: its reader is slow.
        if let (Some(ended), Some(last_signal_at)) = (&self.ended, self.last_signal_at)
            && ended.at.saturating_duration_since(last_signal_at) <= SIGNAL_EFFECT
            && ended.at.max(last_signal_at).elapsed() >= BLOCKED_OUTPUT_TIMEOUT
            && self.sink.blocked_for() >= BLOCKED_OUTPUT_TIMEOUT
        {
            output::message(&format!(
                "cannot write the output of agent {id}, which has ended: its reader does not read; see it with colibri logs {id}"
            ));
            return Some(self.or_own_failure(ended.exit_code));
        }
        let mut calls = self.pending.values();
        let is_unanswered = calls.any(|start| start.elapsed() >= UNRESPONSIVE_AFTER);
        if let Some(repeated) = &self.repeated
            && repeated.at.elapsed() <= SIGNAL_EFFECT
            && (is_unanswered || self.sink.blocked_for() >= UNRESPONSIVE_AFTER)
        {
            output::message(&format!(
                "agent {id} may still run; end it with colibri kill {id}"
            ));
            return Some(signals::exit_code(repeated.signal));
        }
        if self
            .pending
            .iter()
            .any(|(call, start)| start.elapsed() >= timeout_of(*call))
        {
            output::message(&format!(
                "the daemon at {socket} does not answer, and agent {id} may still run; when the daemon answers again, end the agent with colibri kill {id}",
                socket = self.socket,
            ));
            return Some(OWN_FAILURE);
        }
        None
    }

    /// Writes a chunk of output, unless its reader has closed the pipe.
    pub(super) fn write(&mut self, output: OutputChunk) {
        if self.written == OutputState::ReaderClosed {
            return;
        }
        if output.gap > 0 {
            output::message(&format!("{} bytes are no longer kept", output.gap));
        }
        let Some((transcript, formatter)) = &mut self.transcript else {
            return self.sink.write(output.stream, output.bytes);
        };
        if output.gap > 0 && output.stream == Stream::Stdout {
            transcript.skip_gap();
        }
        let items = match output.stream {
            Stream::Stdout => transcript.push_stdout(&output.bytes),
            Stream::Stderr => return self.sink.write(output.stream, output.bytes),
        };
        let text: String = items.iter().map(|item| formatter.format(item)).collect();
        self.sink.write(Stream::Stdout, text.into_bytes());
    }

    /// Handles a failed output. EPIPE kills the agent, as SIGPIPE would; after any other error the agent keeps running.
    pub(super) fn handle_write_failure(&mut self, failure: &WriteFailure) {
        if failure.is_broken_pipe() {
            if self.written != OutputState::ReaderClosed {
                self.written = OutputState::ReaderClosed;
                self.kill(KILL_CALL, KillParams::new(&self.id));
            }
            return;
        }
        if self.written == OutputState::Complete {
            self.written = OutputState::Incomplete;
        }
        output::message(&format!(
            "cannot write the agent's {name}: {error}; the agent keeps running; see the rest with colibri logs --stream {name} {id}",
            name = failure.stream,
            error = failure.error,
            id = self.id
        ));
    }

    /// Records the agent's end, and closes the queue of output.
    pub(super) fn handle_exit(&mut self, exit: &ExitEvent) {
        if let Some((_, formatter)) = &mut self.transcript {
            let end = formatter.end_line().as_bytes().to_vec();
            self.sink.write(Stream::Stdout, end);
        }
        self.set_ended(exit::explained_code(exit));
        self.sink.close();
    }

    /// Returns the exit code when all output is written.
    pub(super) fn exit_code(&self) -> u8 {
        match (&self.written, &self.ended) {
            (OutputState::ReaderClosed, _) => BROKEN_PIPE,
            (_, Some(ended)) => self.or_own_failure(ended.exit_code),
            (_, None) => OWN_FAILURE,
        }
    }

    /// Returns 125 instead of 0 if part of the output could not be written.
    fn or_own_failure(&self, exit_code: u8) -> u8 {
        match (exit_code, &self.written) {
            (0, OutputState::Incomplete) => OWN_FAILURE,
            _ => exit_code,
        }
    }
}
