//! `colibri run`: an agent in the foreground, as if the shell had started it.
//!
//! The loop never blocks: one thread writes output ([`crate::sink`]), a task reads input ([`input`]), and
//! calls to the daemon are tasks. Signals are therefore served while the output is blocked and while the daemon does
//! not answer.

mod foreground;
mod input;

use std::ops::ControlFlow;
use std::time::Duration;

use colibri_client::glasspane::{Transcript, TranscriptFormatter};
use colibri_client::{Client, Endpoint, FollowEvent, SpawnRequest, SpawnResult, SubscribeParams};
use rustix::process::Signal;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::foreground::ForegroundAgent;
use crate::args::{Global, Run};
use crate::connect::{connect_to, endpoint};
use crate::error::CliError;
use crate::exit::OWN_FAILURE;
use crate::output;
use crate::signals::{self, SignalStream, TERMINATING};
use crate::sink::Sink;

/// Timeout for the daemon's answer after a signal.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which time limits are checked after a signal.
const TICK: Duration = Duration::from_millis(50);

/// Runs an agent and exits as it does.
pub(crate) async fn run(global: &Global, run: Run) -> Result<u8, CliError> {
    let Run { spawn, raw, .. } = run;
    let is_formatted = spawn.agent.is_some() && !raw;
    let endpoint = endpoint(global)?;
    let client = connect_to(&endpoint).await?;
    let params = crate::config::spawn_params(global, &client, spawn).await?;
    let transcript = is_formatted.then(|| {
        let formatter = TranscriptFormatter::new(output::in_colour());
        (
            Transcript::new(params.runtime.unwrap_or_default()),
            formatter,
        )
    });
    let mut signals = SignalStream::install(&TERMINATING)?;
    let (sink, mut failures) = Sink::start()?;
    let mut early_signals = Vec::new();
    let agent = match start(&client, params, &mut signals, &mut early_signals).await? {
        ControlFlow::Continue(agent) => agent,
        ControlFlow::Break(exit_code) => {
            report_no_answer(&endpoint);
            return Ok(exit_code);
        }
    };
    output::warnings(&agent.warnings);
    let mut events = endpoint.follow(client, &agent.id, SubscribeParams::default());
    let forwarding = tokio::spawn(input::forward(events.client(), agent.id.clone()));
    let socket = endpoint.socket().display().to_string();
    let mut agent = ForegroundAgent::new(agent.id, socket, events.client(), sink, transcript);
    for signal in early_signals {
        agent.forward(signal);
    }
    let mut events_ended = false;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let exit_code = loop {
        tokio::select! {
            biased;
            signal = signals.next() => agent.forward(signal),
            Some(Ok(result)) = agent.calls.join_next() => if let Some(code) = agent.handle_result(result) {
                break Ok(code);
            },
            failure = failures.recv() => match failure {
                Some(failure) => agent.handle_write_failure(&failure),
                None => break Ok(agent.exit_code()),
            },
            _ = tick.tick(), if agent.is_signalled() => if let Some(code) = agent.check_limits() {
                break Ok(code);
            },
            event = async { agent.sink.room().await; events.next().await }, if !events_ended => match event {
                Some(Ok(FollowEvent::Output(output))) => agent.write(output),
                Some(Ok(FollowEvent::Exit(exit))) => {
                    agent.handle_exit(&exit);
                    events_ended = true;
                }
                Some(Ok(FollowEvent::Connection(event))) => output::connection_event(event).await,
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error.into()),
                None => events_ended = true,
            },
        }
    };
    forwarding.abort();
    exit_code
}

/// Reports that the agent may be started later.
pub(crate) fn report_no_answer(endpoint: &Endpoint) {
    output::message(&format!(
        "the daemon at {} has not answered, and may still start the agent; run colibri ps when it answers again",
        endpoint.socket().display()
    ));
}

/// Starts the agent, and collects the signals that arrive before the daemon answers. A second signal of the same kind
/// gives up, and so does the timeout after the first signal: `Break` with the exit code.
pub(crate) async fn start(
    client: &Client,
    params: SpawnRequest,
    signals: &mut SignalStream,
    early_signals: &mut Vec<Signal>,
) -> Result<ControlFlow<u8, SpawnResult>, CliError> {
    let client = client.clone();
    let mut starting = tokio::spawn(async move { client.spawn_agent(params).await });
    let mut deadline: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            agent = &mut starting => {
                let agent = agent.map_err(|error| CliError::io("cannot start the agent")(error.into()))??;
                return Ok(ControlFlow::Continue(agent));
            }
            signal = signals.next() => {
                if early_signals.contains(&signal) {
                    return Ok(ControlFlow::Break(signals::exit_code(signal)));
                }
                early_signals.push(signal);
                deadline.get_or_insert(Instant::now() + SIGNAL_TIMEOUT);
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                return Ok(ControlFlow::Break(OWN_FAILURE));
            }
        }
    }
}
