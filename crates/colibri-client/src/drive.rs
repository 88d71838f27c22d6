//! Tells agents what to do, in the words of each, and waits for what they answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use colibri_proto::{Agent, Notification, StreamChoice, SubscribeParams};
use tokio::time::Instant;

use crate::glasspane::{Command, Responses, answers, encode};
use crate::{Client, ClientError};

/// Between two offers to an agent that does not read.
const OFFER_AGAIN: Duration = Duration::from_millis(20);

impl Client {
    /// Offers bytes to an agent's stdin until it has taken all of them. With `patience`, no longer than that
    /// without any being taken.
    ///
    /// # Errors
    /// [`ClientError::InputStuck`] when patience is at its end; else see [`ClientError`].
    pub async fn send_all(
        &self,
        agent: &str,
        bytes: &[u8],
        patience: Option<Duration>,
    ) -> Result<(), ClientError> {
        let mut rest = bytes;
        let mut progress = Instant::now();
        while !rest.is_empty() {
            let taken = self.send_input(agent, rest).await?;
            rest = rest.get(taken..).unwrap_or_default();
            if taken > 0 {
                progress = Instant::now();
            } else if patience.is_some_and(|patience| progress.elapsed() > patience) {
                return Err(ClientError::InputStuck {
                    id: agent.to_owned(),
                    left: rest.len(),
                });
            } else {
                tokio::time::sleep(OFFER_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Tells an agent something and waits, for as long as `patience` lasts, until it says that it has taken it.
    /// Agents without events, and answers to an agent's questions, get no answer: these are sent, and no more.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the agent's own words, [`ClientError::NoAnswer`], [`ClientError::Ended`],
    /// [`ClientError::Command`]; else see [`ClientError`].
    pub async fn command(
        &self,
        agent: &Agent,
        command: &Command<'_>,
        patience: Duration,
    ) -> Result<(), ClientError> {
        let number = command_id();
        let bytes = encode(agent.runtime, &number, command)?;
        if !answers(agent.runtime) || matches!(command, Command::Answer(..)) {
            return self.send_all(&agent.id, &bytes, Some(patience)).await;
        }
        // From where its output ends before it is told: the answer is behind that.
        let params = SubscribeParams {
            id: Some(agent.id.clone()),
            stream: Some(StreamChoice::Stdout),
            from_offset: Some(self.get_agent(&agent.id).await?.stdout_bytes),
            ..SubscribeParams::default()
        };
        let mut events = self.subscribe(params).await?;
        let mut responses = Responses::default();
        let sending = self.send_all(&agent.id, &bytes, Some(patience));
        tokio::pin!(sending);
        let mut sent = None;
        loop {
            let event = tokio::select! {
                outcome = &mut sending, if sent.is_none() => {
                    outcome?;
                    sent = Some(Instant::now());
                    continue;
                }
                event = events.next() => event.ok_or(ClientError::Closed)?,
                () = tokio::time::sleep_until(sent.unwrap_or_else(Instant::now) + patience), if sent.is_some() => {
                    return Err(ClientError::NoAnswer { id: agent.id.clone(), waited: patience });
                }
            };
            let chunk = match event {
                Notification::AgentOutput(chunk) => chunk.data,
                Notification::AgentExit(_) => return Err(ClientError::Ended(agent.id.clone())),
                _ => continue,
            };
            let bytes = chunk.into_bytes().map_err(|error| ClientError::Protocol {
                method: "subscribe",
                message: error.to_string(),
            })?;
            for response in responses.push(&bytes) {
                if response.id.as_deref() != Some(&number) {
                    continue;
                }
                return match response.error {
                    None => Ok(()),
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

/// An id that no other command to the agent has.
fn command_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    format!(
        "colibri-{}-{}-{}",
        std::process::id(),
        now.unwrap_or_default().as_nanos(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
