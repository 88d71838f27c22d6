//! Forwards standard input to an agent.

use std::time::Duration;

use colibri_client::{ClientError, CurrentClient};
use tokio::io::AsyncReadExt;

use crate::output;

/// Maximum size of a chunk, in bytes.
const MAX_CHUNK: usize = 64 * 1024;
/// Retry interval for sending input to an agent that does not read it.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Sends all input to an agent, and closes the agent's input at the end of file.
pub(super) async fn forward(mut client: CurrentClient, id: String) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; MAX_CHUNK];
    while let Ok(count @ 1..) = input.read(&mut buffer).await {
        let chunk = buffer.get(..count).unwrap_or_default();
        if !send(chunk, &mut client, &id).await {
            return;
        }
    }
    let id = &id;
    // Fails if the agent has ended or closed its input.
    let _ = client
        .call(|client| async move { client.close_input(id).await })
        .await;
}

/// Sends a chunk until the agent has accepted all of it; returns `false` if its input is closed. Bytes in transit when
/// the daemon ended are not sent again, because the agent may have received them.
async fn send(chunk: &[u8], client: &mut CurrentClient, id: &str) -> bool {
    let mut rest = chunk;
    while !rest.is_empty() {
        while client.get().is_closed() {
            if !client.changed().await {
                return false;
            }
        }
        match client.get().send_input(id, rest).await {
            Ok(0) => tokio::time::sleep(RETRY_INTERVAL).await,
            Ok(accepted) => rest = rest.get(accepted..).unwrap_or_default(),
            Err(ClientError::Closed) => {
                output::message(&format!(
                    "the daemon ended while {} bytes of input were in transit, which the agent may not have received",
                    rest.len()
                ));
                return client.changed().await;
            }
            Err(error) if error.is_lost_connection() => {
                if !client.changed().await {
                    return false;
                }
            }
            // The agent has closed its standard input.
            Err(_) => return false,
        }
    }
    true
}
