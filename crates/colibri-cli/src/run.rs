//! `colibri run`: an agent in the foreground, as if it were started by the shell itself.
//!
//! The loop never blocks: one thread writes output ([`crate::sink`]), another one reads input ([`crate::input`]), and
//! calls to the daemon are tasks. Signals are therefore served while the output is blocked and while the daemon does
//! not answer.

use std::time::Duration;

use colibri_client::{
    Client, Exit, ExitEvent, ExitReason, Follow, Followed, KillParams, Output, SpawnRequest,
    SpawnResult, Stream,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::args::{Global, Spawn};
use crate::connect::endpoint;
use crate::error::CliError;
use crate::output;
use crate::signals::{Ending, Signals};
use crate::sink::{Failure, Piece, Sink};

/// Exit code of a program that wrote to a closed pipe, as a shell reports SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;
/// Exit code of `run`, `wait` and `attach` for a failure of Colibri itself.
pub(crate) const OWN_FAILURE: u8 = 125;
/// Timeout for the daemon's answer to a forwarded signal.
const ANSWER: Duration = Duration::from_secs(5);
/// Timeout for the daemon's answer to the kill after EPIPE on the output; it includes the grace period.
const KILL_ANSWER: Duration = Duration::from_secs(20);
/// Maximum time to wait for blocked output after both a signal and the agent's end.
const BLOCKED: Duration = Duration::from_secs(1);
/// Time without an answer or a written byte after which a repeated signal ends the command.
const STUCK: Duration = Duration::from_millis(300);
/// Time after a signal within which blocked output or the agent's end is attributed to it.
const RELATED: Duration = Duration::from_secs(10);
/// Interval at which these limits are checked after a signal.
const TICK: Duration = Duration::from_millis(50);
/// Interval between attempts to send input to an agent that does not read it.
const OFFER_AGAIN: Duration = Duration::from_millis(20);

/// Runs an agent and exits as it does.
pub(crate) async fn run(global: &Global, spawn: Spawn) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let client = endpoint.connect_or_start(output::link).await?;
    let params = crate::config::params(&client, spawn).await?;
    let mut signals = Signals::watch()?;
    let (sink, mut failures) = Sink::start()?;
    let input = crate::input::pieces()?;
    let (agent, early) = match start(&client, params, &mut signals).await? {
        Started::Agent(agent, early) => (agent, early),
        Started::GaveUp(code) => {
            output::complain(&format!(
                "the daemon at {} has not answered yet; it may still start the agent: run colibri ps when it answers again",
                endpoint.socket().display()
            ));
            return Ok(code);
        }
    };
    agent
        .warnings
        .iter()
        .for_each(|warning| output::warn(warning));
    let wanted = Follow {
        id: agent.id.clone(),
        stream: None,
        stdout: 0,
        stderr: 0,
        timed: false,
    };
    let mut following = endpoint.follow(client, wanted);
    let input = tokio::spawn(forward_input(input, following.client(), agent.id.clone()));
    let (answers, mut answered) = mpsc::unbounded_channel();
    let mut run = Run {
        id: agent.id,
        socket: endpoint.socket().display().to_string(),
        client: following.client(),
        sink,
        answers,
        sent: Vec::new(),
        unanswered: Vec::new(),
        last: None,
        repeated: None,
        end: None,
        ended_at: None,
        reader_gone: false,
        incomplete: false,
    };
    for signal in early {
        run.forward(signal);
    }
    let mut pending: Option<Piece> = None;
    let mut events_end = false;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            biased;
            signal = signals.next() => run.forward(signal),
            Some(answer) = answered.recv() => if let Some(code) = run.answered(answer) {
                break Ok(code);
            },
            failure = failures.recv() => match failure {
                Some(failure) => run.failed(&failure),
                None => break Ok(run.code()),
            },
            _ = tick.tick(), if run.is_watched() => if let Some(code) = run.overdue() {
                break Ok(code);
            },
            // At most one piece waits here, so order is kept; after the agent's end the queue is only drained.
            permit = run.sink.room(), if pending.is_some() => {
                if let (Some(permit), Some(piece)) = (permit, pending.take()) {
                    drop(permit.send(piece));
                }
            }
            event = following.next(), if pending.is_none() && !events_end => match event {
                Some(Ok(Followed::Output(output))) => pending = run.output(output),
                Some(Ok(Followed::Exit(exit))) => {
                    run.end(&exit);
                    run.sink.close();
                    events_end = true;
                }
                Some(Ok(Followed::Link(note))) => output::link(note),
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error.into()),
                None => events_end = true,
            },
        }
    };
    input.abort();
    outcome
}

/// Result of the request to start the agent.
enum Started {
    /// The agent runs; these signals arrived before it did.
    Agent(SpawnResult, Vec<Ending>),
    /// The daemon did not answer in time after a signal; exit with this code.
    GaveUp(u8),
}

/// Starts the agent, and collects the signals that arrive before the daemon answers.
async fn start(
    client: &Client,
    params: SpawnRequest,
    signals: &mut Signals,
) -> Result<Started, CliError> {
    let client = client.clone();
    let mut starting = tokio::spawn(async move { client.spawn_agent(params).await });
    let mut early: Vec<Ending> = Vec::new();
    let far = Instant::now() + Duration::from_secs(86_400 * 365);
    let mut until = far;
    loop {
        tokio::select! {
            biased;
            agent = &mut starting => {
                let agent = agent.map_err(|error| CliError::io("starting the agent")(error.into()))??;
                return Ok(Started::Agent(agent, early));
            }
            signal = signals.next() => {
                if early.contains(&signal) {
                    return Ok(Started::GaveUp(signal.exit_code()));
                }
                early.push(signal);
                until = until.min(Instant::now() + ANSWER);
            }
            () = tokio::time::sleep_until(until) => return Ok(Started::GaveUp(OWN_FAILURE)),
        }
    }
}

/// Result of a call to the daemon that runs as a task.
enum Answer {
    /// The call with this number has delivered its signal, or failed.
    Signal(u64, Result<(), CliError>),
    /// The kill after EPIPE on the output has finished.
    Killed(Result<(), CliError>),
    /// The agent has ended with this code; its output may not be written yet.
    Ended(u8),
}

struct Run {
    id: String,
    socket: String,
    client: watch::Receiver<Client>,
    sink: Sink,
    answers: mpsc::UnboundedSender<Answer>,
    /// Forwarded signals, repeated ones included.
    sent: Vec<Ending>,
    /// Calls without an answer: number, start and deadline.
    unanswered: Vec<(u64, Instant, Instant)>,
    /// Time of the last forwarded signal.
    last: Option<Instant>,
    /// The last repeated signal and its time: it ends this command if output or daemon is stuck.
    repeated: Option<(Ending, Instant)>,
    /// The exit code, once the exit event has arrived.
    end: Option<u8>,
    /// Time at which the agent's end became known, and its exit code.
    ended_at: Option<(Instant, u8)>,
    reader_gone: bool,
    /// Whether part of the output could not be written.
    incomplete: bool,
}

impl Run {
    /// Forwards a signal, without waiting for the answer.
    fn forward(&mut self, signal: Ending) {
        if self.sent.contains(&signal) {
            self.repeated = Some((signal, Instant::now()));
        }
        if self.sent.is_empty() {
            self.watch_the_end();
        }
        self.sent.push(signal);
        self.last = Some(Instant::now());
        let params = KillParams {
            id: self.id.clone(),
            signal: Some(signal.name.to_owned()),
            escalate: false,
            no_restart: true,
            ..KillParams::default()
        };
        let number = self.sent.len() as u64;
        self.call(number, ANSWER, params, move |outcome| {
            Answer::Signal(number, outcome)
        });
    }

    fn call(
        &mut self,
        number: u64,
        limit: Duration,
        params: KillParams,
        answer: impl FnOnce(Result<(), CliError>) -> Answer + Send + 'static,
    ) {
        let now = Instant::now();
        self.unanswered.push((number, now, now + limit));
        let (mut client, answers) = (self.client.clone(), self.answers.clone());
        tokio::spawn(async move {
            let outcome = loop {
                let present = client.borrow_and_update().clone();
                match present.kill_agent(params.clone()).await {
                    Err(error) if error.is_lost_connection() => {
                        if client.changed().await.is_err() {
                            break Err(error.into());
                        }
                    }
                    other => break other.map(drop).map_err(CliError::from),
                }
            };
            let _ = answers.send(answer(outcome));
        });
    }

    /// Waits for the agent's end by a separate call: the exit event comes after the output, which may be blocked.
    fn watch_the_end(&self) {
        let (mut client, answers, id) =
            (self.client.clone(), self.answers.clone(), self.id.clone());
        tokio::spawn(async move {
            loop {
                let present = client.borrow_and_update().clone();
                match present.wait_agent(&id).await {
                    Ok(agent) => {
                        let _ = answers.send(Answer::Ended(code(agent.exit)));
                        return;
                    }
                    Err(error) if error.is_lost_connection() => {
                        if client.changed().await.is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        });
    }

    /// Processes an answer; returns the exit code if it ends the command.
    fn answered(&mut self, answer: Answer) -> Option<u8> {
        match answer {
            Answer::Signal(number, outcome) => {
                self.unanswered.retain(|(other, ..)| *other != number);
                if let (Err(error), None) = (outcome, self.ended_at) {
                    output::complain(&error.to_string());
                }
                None
            }
            Answer::Killed(outcome) => {
                if let Err(error) = outcome {
                    output::complain(&error.to_string());
                }
                Some(BROKEN_PIPE)
            }
            Answer::Ended(code) => {
                self.ended_at = Some((Instant::now(), code));
                None
            }
        }
    }

    fn is_watched(&self) -> bool {
        !self.unanswered.is_empty() || !self.sent.is_empty()
    }

    /// Returns the exit code if a limit is exceeded, and reports on stderr which one.
    fn overdue(&self) -> Option<u8> {
        let now = Instant::now();
        // Output that blocks long after a signal is not related to it: its reader is slow.
        if let (Some((at, code)), Some(last)) = (self.ended_at, self.last)
            && at.saturating_duration_since(last) <= RELATED
            && at.max(last).elapsed() >= BLOCKED
            && self.sink.blocked_for() >= BLOCKED
        {
            output::complain(&format!(
                "nobody reads the output of agent {id}, which has ended; see colibri logs {id}",
                id = self.id
            ));
            return Some(self.or_own_failure(code));
        }
        let oldest = self.unanswered.iter().map(|(_, since, _)| *since).min();
        let is_silent = oldest.is_some_and(|since| since.elapsed() >= STUCK);
        if let Some((signal, at)) = self.repeated
            && at.elapsed() <= RELATED
            && (is_silent || self.sink.blocked_for() >= STUCK)
        {
            output::complain(&format!(
                "agent {id} may still run; to end it: colibri kill {id}",
                id = self.id
            ));
            return Some(signal.exit_code());
        }
        if self.unanswered.iter().any(|(.., until)| *until <= now) {
            output::complain(&format!(
                "the daemon at {socket} does not answer, and agent {id} may still run; when the daemon answers again, end the agent with: colibri kill {id}",
                socket = self.socket,
                id = self.id
            ));
            return Some(OWN_FAILURE);
        }
        None
    }

    fn output(&self, output: Output) -> Option<Piece> {
        if self.reader_gone {
            return None;
        }
        if output.gap > 0 {
            output::note(&format!("{} bytes are no longer kept", output.gap));
        }
        Some(Piece {
            stream: output.stream,
            bytes: output.bytes,
        })
    }

    /// Handles a failed output. EPIPE kills the agent, as SIGPIPE would; after any other error the agent keeps running.
    fn failed(&mut self, failure: &Failure) {
        if failure.is_reader_gone() {
            if !self.reader_gone {
                self.reader_gone = true;
                let params = KillParams {
                    id: self.id.clone(),
                    ..KillParams::default()
                };
                self.call(0, KILL_ANSWER, params, Answer::Killed);
            }
            return;
        }
        self.incomplete = true;
        let name = match failure.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        output::complain(&format!(
            "cannot write the agent's {name}: {error}; the agent goes on, and the rest of its {name} is not written here: see colibri logs --stream {name} {id}",
            error = failure.error,
            id = self.id
        ));
    }

    fn end(&mut self, exit: &ExitEvent) {
        let code = exit_code(exit);
        self.end = Some(code);
        self.ended_at.get_or_insert((Instant::now(), code));
    }

    /// Returns the exit code for the end of the writer thread.
    fn code(&self) -> u8 {
        match self.reader_gone {
            true => BROKEN_PIPE,
            false => self.or_own_failure(self.end.unwrap_or(OWN_FAILURE)),
        }
    }

    /// Returns 125 instead of 0 if part of the output could not be written.
    fn or_own_failure(&self, code: u8) -> u8 {
        match (code, self.incomplete) {
            (0, true) => OWN_FAILURE,
            _ => code,
        }
    }
}

/// Returns the exit code for an agent's end, and explains on stderr what the code does not show.
pub(crate) fn exit_code(exit: &ExitEvent) -> u8 {
    explain_exit(
        &exit.id,
        exit.exit,
        exit.exit_note.as_ref().or(exit.error.as_ref()),
    );
    code(exit.exit)
}

/// Prints why an agent ended to stderr, if the exit code does not show it.
pub(crate) fn explain_exit(id: &str, exit: Option<Exit>, note: Option<&String>) {
    let reason = exit.map_or(ExitReason::Lost, |exit| exit.reason);
    match (note, reason) {
        (Some(note), _) => output::note(note),
        (None, ExitReason::Exited | ExitReason::Signalled) => {}
        (None, ExitReason::KilledByUser) => {
            output::note(&format!("agent {id} was killed by a user"))
        }
        (None, ExitReason::WallTime) => {
            output::note(&format!("agent {id} reached its wall-time limit"));
        }
        (None, reason) => output::note(&format!(
            "agent {id} has no exit status ({reason}); see colibri status {id}"
        )),
    }
}

/// Returns an agent's exit code as a shell reports it; 125 where its exit status is unknown.
pub(crate) fn code(exit: Option<Exit>) -> u8 {
    match exit.filter(|exit| exit.status.is_some()) {
        Some(exit) => u8::try_from(exit.shell_code() & 0xff).unwrap_or(1),
        None => OWN_FAILURE,
    }
}

/// Our input becomes the agent's, to its end.
async fn forward_input(
    mut input: mpsc::Receiver<Vec<u8>>,
    mut client: watch::Receiver<Client>,
    id: String,
) {
    while let Some(piece) = input.recv().await {
        if !offer(&piece, &mut client, &id).await {
            return;
        }
    }
    loop {
        let present = client.borrow_and_update().clone();
        match present.close_input(&id).await {
            Err(error) if error.is_lost_connection() => {
                if client.changed().await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// Sends a piece until the agent has accepted all of it; returns `false` if its input is closed. Bytes in transit when
/// the daemon ended are not sent again, because the agent may have received them.
async fn offer(piece: &[u8], client: &mut watch::Receiver<Client>, id: &str) -> bool {
    let mut rest = piece;
    while !rest.is_empty() {
        let present = client.borrow_and_update().clone();
        if present.is_closed() {
            if client.changed().await.is_err() {
                return false;
            }
            continue;
        }
        match present.send_input(id, rest).await {
            Ok(0) => tokio::time::sleep(OFFER_AGAIN).await,
            Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
            Err(colibri_client::ClientError::Closed) => {
                output::complain(&format!(
                    "the daemon went while {} bytes of input were sent; the agent may not have got them",
                    rest.len()
                ));
                return client.changed().await.is_ok();
            }
            Err(error) if error.is_lost_connection() => {
                if client.changed().await.is_err() {
                    return false;
                }
            }
            // The agent has closed its standard input.
            Err(_) => return false,
        }
    }
    true
}
