//! Sends commands to agents in the form that their runtimes expect, and waits for their responses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use colibri_proto::{Agent, AgentState, Notification, StreamChoice, SubscribeParams};
use tokio::time::Instant;

use crate::client::Events;
use crate::follow::output_bytes;
use crate::glasspane::{
    AgentCommand, ResponseParser, encode_command, reads_no_commands, sends_response,
};
use crate::{Client, ClientError};

/// Retry interval for sending input to an agent that does not read it.
const INPUT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

impl Client {
    /// Sends bytes to an agent's stdin until it has accepted all of them. `timeout` is the maximum time without
    /// progress.
    ///
    /// # Errors
    /// [`ClientError::InputStuck`] after the timeout; otherwise see [`ClientError`].
    pub async fn send_all(
        &self,
        agent: &str,
        bytes: &[u8],
        timeout: Duration,
    ) -> Result<(), ClientError> {
        let mut rest = bytes;
        let mut progress = Instant::now();
        while !rest.is_empty() {
            let accepted = self.send_input(agent, rest).await?;
            rest = rest.get(accepted..).unwrap_or_default();
            if accepted > 0 {
                progress = Instant::now();
            } else if progress.elapsed() > timeout {
                return Err(ClientError::InputStuck {
                    id: agent.to_owned(),
                    left: rest.len(),
                });
            } else {
                tokio::time::sleep(INPUT_RETRY_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Subscribes to one agent, with its stdout from the current end on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn subscribe_new_stdout(&self, agent: &str) -> Result<Events, ClientError> {
        self.subscribe(SubscribeParams {
            id: Some(agent.to_owned()),
            stream: Some(StreamChoice::Stdout),
            from_offset: Some(self.get_agent(agent).await?.stdout_bytes),
            ..SubscribeParams::default()
        })
        .await
    }

    /// Sends a command to an agent, and waits until the agent has accepted it. `timeout` is the maximum time for the
    /// response, and the maximum time without progress of the input. A command without a response is only sent.
    ///
    /// # Errors
    /// [`ClientError::ReadsNoCommands`], [`ClientError::Refused`] with the agent's message, [`ClientError::NoAnswer`],
    /// [`ClientError::Ended`], [`ClientError::Command`]; otherwise see [`ClientError`].
    pub async fn command(
        &self,
        agent: &Agent,
        command: &AgentCommand<'_>,
        timeout: Duration,
    ) -> Result<Acceptance, ClientError> {
        if let Some(hint) = reads_no_commands(agent.runtime, &agent.args) {
            return Err(ClientError::ReadsNoCommands {
                id: agent.id.clone(),
                hint,
            });
        }
        let command_id = unique_command_id();
        let bytes = encode_command(agent.runtime, &command_id, command)?;
        let is_busy = agent.state == AgentState::Working;
        if !sends_response(agent.runtime, command, is_busy) {
            self.send_all(&agent.id, &bytes, timeout).await?;
            return Ok(Acceptance::Sent);
        }
        // Subscribe before the command is sent, so that the response is not missed.
        let mut events = self.subscribe_new_stdout(&agent.id).await?;
        let mut responses = ResponseParser::new(agent.runtime);
        let sending = self.send_all(&agent.id, &bytes, timeout);
        tokio::pin!(sending);
        let mut sent_at = None;
        loop {
            let event = tokio::select! {
                result = &mut sending, if sent_at.is_none() => {
                    result?;
                    sent_at = Some(Instant::now());
                    continue;
                }
                event = events.next() => event.ok_or(ClientError::Closed)?,
                () = tokio::time::sleep_until(sent_at.unwrap_or_else(Instant::now) + timeout), if sent_at.is_some() => {
                    return Err(ClientError::NoAnswer { id: agent.id.clone(), waited: timeout });
                }
            };
            let bytes = match event {
                Notification::AgentOutput(output) => output_bytes(output.data)?,
                Notification::AgentExit(_) => return Err(ClientError::Ended(agent.id.clone())),
                _ => continue,
            };
            let responses = responses.push(&bytes).into_iter();
            let mut own = responses.filter(|response| response.id.as_ref() == Some(&command_id));
            if let Some(response) = own.next() {
                return match response.error {
                    None => Ok(Acceptance::Accepted),
                    Some(error) => Err(ClientError::Refused {
                        id: agent.id.clone(),
                        command: response.command,
                        error,
                    }),
                };
            }
        }
    }
}

/// How far a command is known to have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The agent has accepted it.
    Accepted,
    /// It was sent to an agent that does not respond to it, or not before its current work has ended.
    Sent,
}

/// Returns a UUID for a command that no other command of this host has (RFC 9562, version 8).
#[must_use]
pub fn unique_command_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = now.unwrap_or_default().as_nanos() as u64;
    let process = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{process:08x}-{:04x}-8{:03x}-8{:03x}-{:012x}",
        number & 0xffff,
        (number >> 16) & 0xfff,
        nanoseconds >> 52,
        nanoseconds & 0xf_ffff_ffff_ffff & 0xffff_ffff_ffff
    )
}
